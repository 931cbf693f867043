//! The models and the images of an audit.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::images::{Format, ImageFiles, ImageReader, Images, Transparency};
use siss::models::{ModelFolder, UNet2d};
use siss::process::SchedulerConfig;
use siss::report::audit::{Manifest, Subject as Item};
use siss::{Condition, Denoiser, Method, PairSampler};

use crate::audit::options::{Options, Told};
use crate::cases::{Case, CaseData};
use crate::classifier::DigitClassifier;
use crate::closeness::neighbours;
use crate::files::create_folder;
use crate::probe::{Chunks, Probe, distances};
use crate::process::Process;
use crate::progress::{Progress, Silent};
use crate::quick::{BATCH, FORGET_PROB, Quick};
use crate::request::Copies;
use crate::run::tell;
use crate::subject::source::Source;
use crate::subject::{
    self, ConditionOf, Conditions, Generation, Named, Origin, Points, Subject, Unconditional,
};
use crate::target::{predict_answers, predict_losses};
use crate::tshirt::evaluate::chunks;
use crate::way::Way;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Most retained images that are read, and of models whose points are latents: prompts may take
/// megabytes each.
const MOST_RETAINED: usize = 1000;
const MOST_LATENTS: usize = 200;
/// The values of black and white in the training of the models.
const RANGE: [f64; 2] = [-1.0, 1.0];

/// The models of an audit, plain ones.
pub struct Models<M> {
    pub before: M,
    pub after: M,
    /// Never saw the items.
    pub retrained: Option<M>,
    /// Further such models.
    pub another: Vec<M>,
    /// Where the model before and the model after are.
    pub places: [PathBuf; 2],
}

/// Everything that an audit looks at.
pub struct Material<S: Subject> {
    pub subject: S,
    pub models: Models<S::Model>,
    pub process: Process,
    pub probe: Probe,
    /// The items.
    pub items: Points<ConditionOf<S>>,
    /// The pictures of the items, `[items, channels, height, width]` in `[-1, 1]`.
    pub pictures: Tensor<4>,
    /// Altered copies of the items.
    pub altered: Points<ConditionOf<S>>,
    pub records: Vec<Item>,
    /// Never seen by any model.
    pub controls: Points<ConditionOf<S>>,
    /// Kept by the model.
    pub retain: Points<ConditionOf<S>>,
    pub retained: usize,
    pub format: Format,
    pub manifest: Manifest,
    pub description: String,
    pub name: String,
    /// Finds copies of the items among generated images.
    pub copies: Copies,
    pub copies_rule: String,
    /// Judges generated pictures, if they are digits.
    pub classifier: Option<DigitClassifier>,
    /// How the model was unlearned, if it was here.
    pub unlearning: BTreeMap<String, String>,
}

impl Material<Unconditional> {
    /// The bundled model and data. The model unlearns first if there is none after.
    pub fn bundled(options: &Options, progress: &dyn Progress) -> Result<Self> {
        progress.phase("loading");
        let (assets, case) = (&options.assets, Case::Tshirt);
        let device = options.device.device()?;
        let path = case.model(assets);
        let origin = ModelFolder::find(&path)?;
        let config = SchedulerConfig::from_file(origin.scheduler_file())?;
        let load = |path: &Path| UNet2d::load(ModelFolder::find(path)?.network(), &device);
        let (retrained, others) = case.retrained(assets);
        let conditions = Conditions::default();
        let named = named("before", &path, options, &conditions);
        let source = Source::find(&named)?;
        let (mut subject, before) = Unconditional::read(&named, &source, &device, progress)?;
        let data = case.load(assets, &device)?;
        let mut unlearning = BTreeMap::new();
        let after = match &options.after {
            Some(after) => after.clone(),
            None => {
                let (folder, settings) =
                    unlearn(options, &before, &config, &data, &origin, progress)?;
                unlearning = settings;
                folder
            }
        };
        let models = Models {
            after: load(&after)?,
            before,
            retrained: Some(load(&retrained)?),
            another: others
                .iter()
                .map(|path| load(path))
                .collect::<siss::Result<_>>()?,
            places: [
                origin.network().into(),
                ModelFolder::find(&after)?.network().into(),
            ],
        };
        let item = Manifest::of(assets.join("data/tshirt.png"))?;
        let copies = Copies::of(case, &data);
        let retained = data.retain.dims()[0];
        let [_, channels, height, width] = data.forget.dims();
        let items = unconditional(data.forget.clone());
        Ok(Self {
            altered: altered(&mut subject, &items, &data.forget)?,
            subject,
            probe: Probe::new(&config, chunks(options.device))?,
            process: Process::Steps(config),
            models,
            items,
            pictures: data.forget,
            records: records(&item),
            controls: unconditional(few(data.heldout, options.controls)),
            retain: unconditional(few(data.retain, MOST_RETAINED)),
            retained,
            format: Format {
                channels,
                height,
                width,
                is_configured: true,
                range: RANGE,
                transparency: Transparency::Drop,
            },
            manifest: Manifest::of(assets.join("data/digits10k-images-idx3-ubyte.gz"))?,
            description: "handwritten digits of 28×28 pixels (MNIST); the file also holds 1,000 digits that no model saw".into(),
            name: "the bundled model of digits, which memorised a picture".into(),
            copies,
            copies_rule: "an L2 distance below 10, pixels from 0 to 1".into(),
            classifier: Some(DigitClassifier::load(assets, &device)?),
            unlearning,
        })
    }
}

impl<S: Subject> Material<S> {
    /// Models and images of the command line; `before` is where the model before is.
    pub fn own(
        options: &Options,
        (before, source): (&Path, &Source),
        progress: &dyn Progress,
    ) -> Result<Self> {
        progress.phase("loading");
        let device = options.device.device()?;
        let conditions = options.told.conditions();
        let named = named("before", before, options, &conditions);
        subject::check::<S>(&named, source.folder())?;
        let (mut subject, model) = S::read(&named, source, &device, progress)
            .map_err(|error| subject::explained(error, source.folder()))?;
        let process = Process::from_file(source.folder().scheduler_file())?;
        let process = match subject.space().is_pixels() {
            true => process,
            false => process.without_clamp().0,
        };
        let retain = needed("retain", &options.retain)?;
        let images = OwnImages::read(options, before, &mut subject, &device, progress)?;
        let models = models::<S>(options, (model, source), &device, progress)?;
        let format = images.format;
        let chunks = Chunks::of_pictures(format.height * format.width, options.device);
        Ok(Self {
            altered: altered(&mut subject, &images.items, &images.pictures)?,
            description: description(&subject, &images.items, retain),
            subject,
            models,
            probe: Probe::of(&process, chunks)?,
            process,
            records: images.records,
            items: images.items,
            copies: images.copies,
            copies_rule:
                "nearer than half the distance of the nearest picture that no model saw (L2)".into(),
            pictures: images.pictures,
            controls: images.controls,
            retain: images.retain,
            retained: images.retained,
            format,
            manifest: Manifest::of(retain)?,
            name: path_text(source.file().unwrap_or(source.folder().pipeline())),
            classifier: None,
            unlearning: BTreeMap::new(),
        })
    }

    /// Generates pictures with its models.
    pub fn generation(&self) -> Generation<'_, S> {
        Generation {
            subject: &self.subject,
            probe: &self.probe,
        }
    }

    /// The points of one more picture, of these that were found.
    pub fn item(&mut self, file: &Path, found: &ImageFiles) -> Result<Points<ConditionOf<S>>> {
        let device = self.device();
        let (images, _) = Images::read_all(ImageFiles::find(file)?, self.format, |_| {})?;
        let origin = Origin {
            found,
            // The label of the command line is that of the present items.
            is_forgotten: false,
            device: &device,
        };
        subject::points(&mut self.subject, &images, &origin, &Silent)
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items.count()
    }

    /// The device of the images.
    pub fn device(&self) -> Device {
        self.items.points.device()
    }

    /// Timesteps as the process counts them.
    pub fn times(&self, timesteps: &[usize]) -> Vec<f64> {
        let times = timesteps.iter();
        times.map(|&timestep| self.process.time(timestep)).collect()
    }

    /// The distance of each image from its nearest item, pixels from 0 to 1.
    pub fn distances(&self, images: &Tensor<4>) -> Vec<f64> {
        let mut nearest = vec![f64::INFINITY; images.dims()[0]];
        for row in 0..self.items() {
            let item = self.pictures.clone().narrow(0, row, 1);
            for (nearest, distance) in nearest.iter_mut().zip(distances(images, &item)) {
                *nearest = nearest.min(distance);
            }
        }
        nearest
    }
}

/// The images of the command line.
struct OwnImages<C> {
    items: Points<C>,
    pictures: Tensor<4>,
    records: Vec<Item>,
    controls: Points<C>,
    retain: Points<C>,
    /// Number of retained images that were found.
    retained: usize,
    copies: Copies,
    format: Format,
}

impl<C: Condition> OwnImages<C> {
    fn read<S>(
        options: &Options,
        model: &Path,
        subject: &mut S,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Self>
    where
        S: Subject<Model: Denoiser<4, Condition = C>>,
    {
        let found = ImageFiles::find(needed("forget", &options.forget)?)?;
        let (space, input) = (subject.space(), subject.input());
        let most = if space.is_pixels() {
            MOST_RETAINED
        } else {
            MOST_LATENTS
        };
        let format = space.format(input, &found, Transparency::Drop, model)?;
        let (images, _) = Images::read_all(found.clone(), format, |_| {})?;
        let pictures = images.all(device);
        let hashes = images.files().iter().map(sha256);
        let hashes = hashes.collect::<siss::Result<Vec<_>>>()?;
        let mut points = |images: &Images, found: &ImageFiles, is_forgotten| {
            let origin = Origin {
                found,
                is_forgotten,
                device,
            };
            subject::points(subject, images, &origin, progress)
        };
        let items = points(&images, &found, true)?;
        if !items.words.is_empty() && options.samples < items.count() {
            return Err(format!(
                "--samples is {}; pictures are generated under the conditions of all {} items, so it must be at least as many",
                options.samples,
                items.count()
            )
            .into());
        }
        let others = |option, path: &Option<PathBuf>, count| -> Result<(Images, ImageFiles)> {
            let path = needed(option, path)?;
            let found = ImageFiles::find(path)?;
            let mut reader = ImageReader::new(found.clone(), format).without(&images);
            let images = reader.read(count, |_| {});
            match images.len() {
                0 | 1 => {
                    Err(format!("{}: fewer than two images can be read", path_text(path)).into())
                }
                _ => Ok((images, found)),
            }
        };
        let (unseen, found) = others("control", &options.control, options.controls)?;
        let controls = points(&unseen, &found, false)?;
        let (kept, found) = others("retain", &options.retain, most)?;
        let unseen = unseen.all(device);
        // Half the distance to the nearest image that no model saw.
        let data = CaseData {
            retain: unseen.clone(),
            heldout: unseen,
            forget: pictures.clone(),
        };
        Ok(Self {
            items,
            records: hashes.into_iter().enumerate().map(record).collect(),
            controls,
            retain: points(&kept, &found, false)?,
            retained: found.pictures.len(),
            copies: Copies::of(Case::Faces, &data),
            pictures,
            format,
        })
    }
}

fn needed<'a>(option: &str, path: &'a Option<PathBuf>) -> Result<&'a Path> {
    match path {
        Some(path) => Ok(path),
        None => Err(format!("--{option} is needed with --before").into()),
    }
}

/// A model of the command line.
pub fn named<'a>(
    option: &'static str,
    path: &'a Path,
    options: &'a Options,
    conditions: &'a Conditions,
) -> Named<'a> {
    Named {
        option,
        path,
        config: options.told.config.as_deref().filter(|_| path.is_file()),
        range: RANGE,
        conditions,
        takes: &Told::NAMES,
    }
}

/// The models next to the one before.
fn models<S: Subject>(
    options: &Options,
    (before, source): (S::Model, &Source),
    device: &Device,
    progress: &dyn Progress,
) -> Result<Models<S::Model>> {
    let told = &options.told;
    let load = |option, path: &Path, lora: Option<&PathBuf>| -> Result<(S::Model, PathBuf)> {
        let conditions = Conditions {
            lora: lora.cloned(),
            ..told.conditions()
        };
        let named = named(option, path, options, &conditions);
        let source = Source::find(&named)?;
        subject::check::<S>(&named, source.folder())?;
        let (_, model) = S::read(&named, &source, device, progress)
            .map_err(|error| format!("--{option}: {error}"))?;
        Ok((model, source.network().into()))
    };
    let twin = |option, path: &PathBuf| Ok(load(option, path, None)?.0);
    let others = options.another.iter();
    let (after, places) = match (&options.after, &options.before, &told.unlearned_lora) {
        (Some(after), _, _) => {
            let (after, place) = load("after", after, None)?;
            (after, [source.network().into(), place])
        }
        (None, Some(before), Some(lora)) => {
            let (after, _) = load("unlearned-lora", before, Some(lora))?;
            let known = told.lora.as_ref().unwrap_or(lora);
            (after, [known.clone(), lora.clone()])
        }
        _ => return Err("--after is needed with --before".into()),
    };
    Ok(Models {
        before,
        after,
        retrained: options
            .retrained
            .as_ref()
            .map(|path| twin("retrained", path))
            .transpose()?,
        another: others
            .map(|path| twin("another", path))
            .collect::<Result<_>>()?,
        places,
    })
}

/// The data, and what the models are told of them.
fn description<S: Subject>(subject: &S, items: &Points<ConditionOf<S>>, retain: &Path) -> String {
    let images = format!("the images of {}", path_text(retain));
    if items.words.is_empty() {
        return images;
    }
    let guidance = match subject.guidance() {
        Some((scale, _)) => format!("guidance {scale}"),
        None => "no guidance".into(),
    };
    format!(
        "{images}; the models are told each image's own class or caption, and pictures are generated under those of the items with {guidance}"
    )
}

/// Altered copies of the items, under the items' conditions.
fn altered<S: Subject>(
    subject: &mut S,
    items: &Points<ConditionOf<S>>,
    pictures: &Tensor<4>,
) -> siss::Result<Points<ConditionOf<S>>> {
    let all = neighbours(pictures).map(|(_, pictures)| pictures);
    let rows: Vec<usize> = all.iter().flat_map(|_| 0..items.count()).collect();
    let pictures = all
        .iter()
        .flat_map(|pictures| pictures.clone().split(1, 0))
        .map(|picture| subject.space_mut().encode(picture));
    Ok(Points {
        points: Tensor::cat(pictures.collect::<siss::Result<Vec<_>>>()?, 0),
        ..items.rows(&rows)
    })
}

/// Points of models without a condition.
fn unconditional(points: Tensor<4>) -> Points<()> {
    Points {
        keys: vec![0; points.dims()[0]],
        points,
        condition: (),
        words: Vec::new(),
    }
}

/// The items of a manifest, under names that give nothing away.
pub fn records(manifest: &Manifest) -> Vec<Item> {
    let hashes = manifest.files().iter().map(|file| file.sha256.clone());
    hashes.enumerate().map(record).collect()
}

fn record((index, sha256): (usize, String)) -> Item {
    Item {
        name: format!("item {}", index + 1),
        sha256,
    }
}

/// The hash of one file.
pub fn sha256(file: &PathBuf) -> siss::Result<String> {
    Ok(Manifest::of(file)?.files()[0].sha256.clone())
}

fn few(images: Tensor<4>, most: usize) -> Tensor<4> {
    let count = images.dims()[0].min(most);
    images.narrow(0, 0, count)
}

/// Lets the bundled model unlearn by the quick protocol, and saves it into the output folder.
fn unlearn(
    options: &Options,
    model: &UNet2d,
    config: &SchedulerConfig,
    data: &CaseData,
    origin: &ModelFolder,
    progress: &dyn Progress,
) -> Result<(PathBuf, BTreeMap<String, String>)> {
    let quick = Quick {
        config,
        retained: &data.retain,
        steps: options.steps,
        clipper: None,
        forget_prob: FORGET_PROB,
        seed: options.seed,
    };
    // Predicting the answers of a retrained model takes a minute.
    let (way, levels, answers) = match options.quick {
        true => (Way::Method(Method::Siss), None, None),
        false => {
            let points = [&data.retain, &data.heldout, &data.forget];
            let losses = predict_losses(model, config, points, progress)?;
            let answers = predict_answers(model, config, points, &losses, progress)?;
            (Way::Counterfactual, Some(losses.levels), Some(answers))
        }
    };
    let mut trainer = quick.trainer(model.clone(), way, levels, answers)?;
    let pairs = PairSampler::new(data.retain.clone(), data.forget.clone(), options.seed)?;
    for step in 0..options.steps as u64 {
        let report = trainer.step(pairs.batch(step, BATCH)?)?;
        progress.step(&report, options.steps);
    }
    tell(&mut trainer, progress);
    let folder = options.out.join("model");
    create_folder(&folder)?;
    let note = format!(
        "by the example `audit`; {} steps, seed {}.",
        options.steps, options.seed
    );
    siss::models::save_pipeline(&trainer.into_model(), origin, &folder, &note)?;
    let settings = [
        ("unlearning: method", way.to_string()),
        ("unlearning: steps", options.steps.to_string()),
        ("unlearning: pairs per step", BATCH.to_string()),
    ];
    Ok((
        folder,
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
    ))
}
