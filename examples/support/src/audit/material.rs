//! The models and the images of an audit.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::images::{Format, ImageFiles, ImageReader, Images, Transparency};
use siss::models::{ModelFolder, UNet2d, UNet2dConfig};
use siss::process::SchedulerConfig;
use siss::report::audit::{Manifest, Subject};
use siss::{DdpmScheduler, Method, PairSampler};

use crate::audit::options::Options;
use crate::cases::{Case, CaseData};
use crate::files::create_folder;
use crate::probe::{Probe, distances};
use crate::progress::Progress;
use crate::quick::{BATCH, FORGET_PROB, Quick};
use crate::request::Copies;
use crate::run::tell;
use crate::target::{predict_answers, predict_losses};
use crate::tshirt::evaluate::chunks;
use crate::way::Way;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Most retained images that are read.
const MOST_RETAINED: usize = 1000;

/// The models of an audit, plain ones.
pub struct Models {
    pub before: UNet2d,
    pub after: UNet2d,
    /// Never saw the items.
    pub retrained: Option<UNet2d>,
    /// Another such model.
    pub another: Option<UNet2d>,
    pub config: SchedulerConfig,
    /// Where the model before and the model after are.
    pub folders: [PathBuf; 2],
}

/// Everything that an audit looks at.
pub struct Material {
    pub models: Models,
    pub scheduler: DdpmScheduler,
    pub probe: Probe,
    /// `[items, channels, height, width]` in `[-1, 1]`.
    pub subjects: Tensor<4>,
    pub records: Vec<Subject>,
    /// Never seen by any model.
    pub controls: Tensor<4>,
    /// Kept by the model.
    pub retain: Tensor<4>,
    pub retained: usize,
    pub manifest: Manifest,
    pub description: String,
    pub name: String,
    /// Finds copies of the items among generated images.
    pub copies: Copies,
    pub copies_rule: String,
    /// How the model was unlearned, if it was here.
    pub unlearning: BTreeMap<String, String>,
}

impl Material {
    /// Loads, and lets the model unlearn first if there is none after.
    pub fn load(options: &Options, progress: &dyn Progress) -> Result<Self> {
        progress.phase("loading");
        match &options.before {
            None => Self::bundled(options, progress),
            Some(before) => Self::own(options, before),
        }
    }

    fn bundled(options: &Options, progress: &dyn Progress) -> Result<Self> {
        let (assets, case) = (&options.assets, Case::Tshirt);
        let device = options.device.device()?;
        let origin = ModelFolder::find(case.model(assets))?;
        let config = SchedulerConfig::from_file(origin.scheduler_file())?;
        let load = |path: &Path| UNet2d::load(ModelFolder::find(path)?.network(), &device);
        let [retrained, another] = case.retrained(assets);
        let before = UNet2d::load(origin.network(), &device)?;
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
            another: Some(load(&another)?),
            folders: [
                origin.network().into(),
                ModelFolder::find(&after)?.network().into(),
            ],
            config,
        };
        let item = Manifest::of(assets.join("data/tshirt.png"))?;
        let copies = Copies::of(case, &data);
        let retained = data.retain.dims()[0];
        Ok(Self {
            scheduler: DdpmScheduler::from_config(&models.config)?,
            probe: Probe::new(&models.config, chunks(options.device))?,
            models,
            subjects: data.forget,
            records: subjects(&item),
            controls: few(data.heldout, options.controls),
            retain: few(data.retain, MOST_RETAINED),
            retained,
            manifest: Manifest::of(assets.join("data/digits10k-images-idx3-ubyte.gz"))?,
            description: "handwritten digits of 28×28 pixels (MNIST); the file also holds 1,000 digits that no model saw".into(),
            name: "the bundled model of digits, which memorised a picture".into(),
            copies,
            copies_rule: "an L2 distance below 10, pixels from 0 to 1".into(),
            unlearning,
        })
    }

    fn own(options: &Options, before: &Path) -> Result<Self> {
        let device = options.device.device()?;
        let origin = ModelFolder::find(before).map_err(|error| format!("--before: {error}"))?;
        let config = SchedulerConfig::from_file(origin.scheduler_file())?;
        let load = |option: &str, path: &Option<PathBuf>| -> Result<Option<(UNet2d, PathBuf)>> {
            let Some(path) = path else { return Ok(None) };
            let found = ModelFolder::find(path).map_err(|error| format!("--{option}: {error}"))?;
            let model = UNet2d::load(found.network(), &device)?;
            Ok(Some((model, found.network().into())))
        };
        let needed = |option: &str, path: &Option<PathBuf>| {
            path.clone()
                .ok_or_else(|| format!("--{option} is needed with --before"))
        };
        let after = needed("after", &options.after)?;
        let (after, after_folder) = load("after", &Some(after))?.ok_or("--after is needed")?;
        let before_model = UNet2d::load(origin.network(), &device)?;
        let format = format(before_model.config())?;
        let [forget, retain, control] = [
            needed("forget", &options.forget)?,
            needed("retain", &options.retain)?,
            needed("control", &options.control)?,
        ];
        let files = ImageFiles::find(&forget)?;
        let (items, _) = Images::read_all(files, format, |_| {})?;
        let read = |path: &Path, count: usize| -> Result<(Tensor<4>, usize)> {
            let files = ImageFiles::find(path)?;
            let found = files.pictures.len();
            let images = ImageReader::new(files, format)
                .without(&items)
                .read(count, |_| {});
            match images.len() {
                0 | 1 => {
                    Err(format!("{}: fewer than two images can be read", path_text(path)).into())
                }
                _ => Ok((images.all(&device), found)),
            }
        };
        let (controls, _) = read(&control, options.controls)?;
        let (retained_images, retained) = read(&retain, MOST_RETAINED)?;
        let records = items.files().iter().enumerate().map(|(index, file)| {
            let sha256 = Manifest::of(file)?.files()[0].sha256.clone();
            Ok(Subject {
                name: item_name(index),
                sha256,
            })
        });
        let subjects = items.all(&device);
        let data = CaseData {
            retain: controls.clone(),
            heldout: controls.clone(),
            forget: subjects.clone(),
        };
        let models = Models {
            before: before_model,
            after,
            retrained: load("retrained", &options.retrained)?.map(|it| it.0),
            another: load("another", &options.another)?.map(|it| it.0),
            folders: [origin.network().into(), after_folder],
            config,
        };
        Ok(Self {
            scheduler: DdpmScheduler::from_config(&models.config)?,
            probe: Probe::new(&models.config, chunks(options.device))?,
            models,
            records: records.collect::<siss::Result<_>>()?,
            subjects,
            // Half the distance to the nearest image that no model saw.
            copies: Copies::of(Case::Faces, &data),
            copies_rule:
                "nearer than half the distance of the nearest picture that no model saw (L2)".into(),
            controls,
            retain: retained_images,
            retained,
            manifest: Manifest::of(&retain)?,
            description: format!("the images of {}", path_text(&retain)),
            name: path_text(origin.pipeline()),
            unlearning: BTreeMap::new(),
        })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.subjects.dims()[0]
    }

    /// The device of the images.
    pub fn device(&self) -> Device {
        self.subjects.device()
    }

    /// The distance of each image from its nearest item, pixels from 0 to 1.
    pub fn distances(&self, images: &Tensor<4>) -> Vec<f64> {
        let mut nearest = vec![f64::INFINITY; images.dims()[0]];
        for row in 0..self.items() {
            let item = self.subjects.clone().narrow(0, row, 1);
            for (nearest, distance) in nearest.iter_mut().zip(distances(images, &item)) {
                *nearest = nearest.min(distance);
            }
        }
        nearest
    }
}

/// The items of a manifest, under names that give nothing away.
pub fn subjects(manifest: &Manifest) -> Vec<Subject> {
    let files = manifest.files().iter().enumerate();
    files
        .map(|(index, file)| Subject {
            name: item_name(index),
            sha256: file.sha256.clone(),
        })
        .collect()
}

fn item_name(index: usize) -> String {
    format!("item {}", index + 1)
}

fn few(images: Tensor<4>, most: usize) -> Tensor<4> {
    let count = images.dims()[0].min(most);
    images.narrow(0, 0, count)
}

fn format(config: &UNet2dConfig) -> Result<Format> {
    let channels = config.in_channels;
    let (Some([height, width]), true) = (config.sample_size, matches!(channels, 1 | 3)) else {
        return Err("--before: the model must have 1 or 3 channels and a `sample_size`".into());
    };
    Ok(Format {
        channels,
        height,
        width,
        is_configured: true,
        range: [-1.0, 1.0],
        transparency: Transparency::Drop,
    })
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
