//! The job of `prompt_variants`: pictures of a text-to-image model under variants of a prompt,
//! divided into those that are memorised and the others.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Serialize;
use siss::backend::DeviceSpec;
use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::images::{Annotations, ImageFiles, Images, Transparency};
use siss::metrics::{Features, KMeans};
use siss::models::{ModelFolder, PromptVariation, UNet2dCondition};
use siss::process::SchedulerConfig;
use siss::report::{ImageGrid, binomial_interval};
use siss::sampling::Guided;
use siss::{Condition, DdpmScheduler};

use crate::files::{self, as_optional_text, as_text};
use crate::options::{at_least_one, number};
use crate::probe::{Chunks, Probe, distances, mean};
use crate::progress::Progress;
use crate::resume::open_results;
use crate::subject::source::Source;
use crate::subject::{Conditions, Latents, Space, Subject, Text};
use crate::triggers::{self, Entry, Found};
use crate::unlearn::pictures;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Generates pictures under variants of a prompt, and divides them into memorised and other ones.
///
/// For a text-to-image model without its training data: what it generates under a prompt that it
/// memorised in part is both the picture to forget and what it should keep. Writes two folders with
/// captions, for --forget and --retain of `unlearn`.
#[derive(Parser, Debug, Serialize)]
#[command(version, allow_negative_numbers = true)]
pub struct Options {
    /// The model: the folder of a pipeline of Stable Diffusion 1 or 2, or a name on the hub that
    /// has been downloaded.
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_text")]
    pub model: PathBuf,

    /// The memorised pictures, with which the generated ones are compared: a folder, or one image.
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_text")]
    pub forget: PathBuf,

    /// A variant of the prompt; may be given several times [default: the captions of the memorised
    /// pictures].
    #[arg(long = "variant", value_name = "TEXT")]
    pub variants: Vec<String>,

    /// Searches for variants: makes N of each prompt by inserting, leaving out, replacing and
    /// swapping words, tests for each memorised picture which of them are memorised, and takes the
    /// prompts and the best of those that are memorised in part.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<u64>,

    /// A file of words for --search, separated by white space [default: those of the tokenizer].
    #[arg(long, value_name = "FILE", requires = "search")]
    #[serde(serialize_with = "as_optional_text")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<PathBuf>,

    /// Most variants that --search takes for each memorised picture.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub keep: usize,

    /// Pictures for each variant.
    #[arg(long, default_value_t = 128)]
    pub samples: usize,

    /// Scale of classifier-free guidance.
    #[arg(long, value_name = "S", default_value_t = 7.5)]
    pub guidance: f64,

    /// Seed of the clusters and of the search. Pictures have a seed of their own, as in `unlearn`.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Where to compute: flex (CPU), wgpu or cuda:INDEX, as far as compiled in.
    #[arg(long, default_value_t)]
    pub device: DeviceSpec,

    /// Folder for everything that is written.
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_text")]
    pub out: PathBuf,
}

/// The results, which appear in the output folder together.
const RESULTS: [&str; 5] = [
    "memorised",
    "other",
    "triggers",
    "clusters.png",
    "summary.json",
];
/// A split is clear if the pictures on one side are this much closer to the memorised ones.
const CLEAR: f64 = 0.5;
/// Pictures of each side that are shown.
const SHOWN: usize = 64;

/// What was found under one variant.
#[derive(Debug, Clone, Serialize)]
pub struct Variant {
    pub prompt: String,
    pub samples: usize,
    /// Pictures in the cluster that is closer to the memorised ones; none if the split is not
    /// clear.
    pub memorised: usize,
    pub interval: [f64; 2],
    /// Mean distance of the pictures of the closer and of the other cluster from the memorised
    /// pictures, pixels in `[0, 1]`.
    pub distances: [f64; 2],
    pub is_clear: bool,
}

/// The contents of `summary.json`.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    config: &'a Options,
    /// What the search tested, the best first.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    triggers: &'a [Found],
    variants: &'a [Variant],
}

/// Generates, divides, writes the folders, and returns a table.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<String> {
    at_least_one(&[("samples", Some(options.samples))])?;
    if options.samples < 2 {
        return Err("--samples is 1; two clusters need at least 2".into());
    }
    let scale = options.guidance;
    number("guidance", scale, scale.is_finite(), "a finite number")?;
    let device = options.device.device()?;
    let origin = ModelFolder::find(&options.model).map_err(|error| format!("--model: {error}"))?;
    let results = open_results(&options.out, &RESULTS)?;
    progress.phase("loading");
    let mut generator = Generator::load(options, &origin, &device, progress)?;

    let searched = generator.search(progress)?;
    let mut found = Vec::new();
    let mut sides = Sides::new(results.path());
    let prompts = match options.search {
        Some(_) => triggers::taken(&searched, options.keep),
        None => generator.prompts(),
    };
    for (index, prompt) in prompts.iter().enumerate() {
        let pictures = generator.pictures(prompt, index, progress)?;
        let (variant, is_memorised) = generator.divide(prompt, &pictures)?;
        // Without a clear split nothing says which pictures to keep.
        if variant.is_clear {
            sides.add(prompt, &pictures, &is_memorised)?;
        }
        found.push(variant);
    }
    sides.write(&results.path())?;
    if options.search.is_some() {
        let folder = results.path().join("triggers");
        triggers::write(&folder, &searched, &generator.memorised, options.keep)?;
    }
    let summary = Summary {
        config: options,
        triggers: &searched,
        variants: &found,
    };
    let text = serde_json::to_string_pretty(&summary)?;
    files::write(&results.path().join("summary.json"), text)?;
    results.publish()?;
    let mut text = triggers::table(&searched) + &table(options, &found);
    if options.search.is_some() {
        let out = path_text(&options.out);
        text += &format!("every trigger that was taken: unlearn --forget {out}/triggers …\n");
    }
    Ok(text)
}

/// A model, and the pictures that it memorised.
struct Generator<'a> {
    options: &'a Options,
    text: Text<UNet2dCondition>,
    unet: UNet2dCondition,
    probe: Probe,
    scheduler: DdpmScheduler,
    shape: [usize; 3],
    /// The prompts of each memorised picture.
    prompts: Vec<Vec<String>>,
    /// The words of the tokenizer or of the file.
    words: Vec<String>,
    /// `[count, channels, height, width]`, from −1 to 1.
    memorised: Tensor<4>,
    device: Device,
}

impl<'a> Generator<'a> {
    fn load(
        options: &'a Options,
        origin: &ModelFolder,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let conditions = Conditions {
            guidance: Some(options.guidance),
            ..Conditions::default()
        };
        let source = Source::from(origin.clone());
        let latents = Latents::read(&source, None, device, progress)?;
        let parts = (&source, Space::Latents(Box::new(latents)));
        let (text, unet) = Text::<UNet2dCondition>::load(&conditions, parts, device, progress)?;
        let found = ImageFiles::find(&options.forget)?;
        let transparency = Transparency::default();
        let (space, input) = (text.space(), text.input());
        let format = space.format(input, &found, transparency, &options.model)?;
        let annotations = Annotations::of(&found)?;
        let (images, _) = Images::read_all(found, format, |_| {})?;
        let of_file = |file: &PathBuf| match options.variants.is_empty() {
            false => Ok(options.variants.clone()),
            true => Ok(vec![annotations.caption(file)?]),
        };
        let prompts = images.files().iter().map(of_file);
        let prompts = prompts.collect::<siss::Result<_>>()?;
        let words = match &options.words {
            Some(file) => {
                let text = files::read_text(file)?;
                text.split_whitespace().map(String::from).collect()
            }
            None => text.words(),
        };
        let config = SchedulerConfig {
            clip_sample: false,
            ..SchedulerConfig::from_file(origin.scheduler_file())?
        };
        let chunks = Chunks {
            rows: 1,
            in_parallel: false,
        };
        Ok(Self {
            options,
            shape: space.shape(input, format),
            text,
            unet,
            probe: Probe::new(&config, chunks)?,
            scheduler: DdpmScheduler::from_config(&config)?,
            prompts,
            words,
            memorised: images.all(device),
            device: device.clone(),
        })
    }

    /// All prompts.
    fn prompts(&self) -> Vec<String> {
        let mut prompts = self.prompts.concat();
        prompts.sort();
        prompts.dedup();
        prompts
    }

    /// Which variants of the prompts of each memorised picture are memorised, if requested.
    fn search(&mut self, progress: &dyn Progress) -> Result<Vec<Found>> {
        let Some(count) = self.options.search else {
            return Ok(Vec::new());
        };
        let variation = PromptVariation {
            count: count as usize,
            seed: self.options.seed,
            ..PromptVariation::new(self.words.clone())
        };
        let mut found = Vec::new();
        for (picture, prompts) in self.prompts.iter().enumerate() {
            let mut asked = prompts.clone();
            for prompt in prompts {
                asked.extend(variation.variants(prompt)?);
            }
            asked.sort();
            asked.dedup();
            let count = asked.len();
            progress.phase(&format!("testing {count} prompts of picture {picture}"));
            let controls = triggers::controls(&variation, &asked)?;
            let latent = self.memorised.clone().narrow(0, picture, 1);
            let latent = self.text.space_mut().encode(latent)?;
            let conditions = self.text.encoded_all(&asked, &self.device)?;
            let controls = self.text.encoded_all(&controls, &self.device)?;
            let test = triggers::test(self.scheduler.num_timesteps());
            let (model, scheduler) = (&self.unet, &self.scheduler);
            let tested = test.run(model, scheduler, &latent, &conditions, &controls)?;
            let own = asked.into_iter().zip(tested);
            found.extend(own.map(|(prompt, trigger)| Found {
                picture,
                is_given: prompts.contains(&prompt),
                prompt,
                trigger,
            }));
        }
        found.sort_by(|a, b| {
            let by_picture = a.picture.cmp(&b.picture);
            by_picture.then(b.trigger.score.total_cmp(&a.trigger.score))
        });
        Ok(found)
    }

    /// The pictures under the variant with this number, from −1 to 1.
    fn pictures(
        &mut self,
        prompt: &str,
        variant: usize,
        progress: &dyn Progress,
    ) -> Result<Tensor<4>> {
        let count = self.options.samples;
        let rows = vec![0; count];
        let wanted = self.text.encoded(prompt, &self.device)?.take_rows(&rows);
        let none = self.text.without_prompt().take_rows(&rows);
        let model = Guided::new(self.unet.clone(), self.options.guidance)?;
        let [channels, height, width] = self.shape;
        let latents = self.probe.sample(
            &model,
            &(wanted, none),
            (variant * count) as u64,
            [count, channels, height, width],
            &self.device,
            |done| progress.phase(&format!("`{prompt}`: {done} of {count}")),
        )?;
        Ok(self.text.space().pictures(&latents)?)
    }

    /// Divides pictures into two clusters of pixels, and says for each whether it is in the one
    /// that is closer to the memorised pictures.
    fn divide(&self, prompt: &str, pictures: &Tensor<4>) -> Result<(Variant, Vec<bool>)> {
        let features = Features::of("pixels", pictures.clone().flatten::<2>(1, 3))?;
        let clusters = KMeans {
            seed: self.options.seed,
            ..KMeans::new(2)
        };
        let labels = clusters.fit(&features)?.labels;
        let nearest = self.nearest(pictures);
        let (is_memorised, distances) = split(&labels, &nearest);
        let memorised = is_memorised.iter().filter(|&&it| it).count();
        let (low, high) = binomial_interval(memorised as u64, labels.len() as u64, 0.95)?;
        let variant = Variant {
            prompt: prompt.into(),
            samples: labels.len(),
            memorised,
            interval: [low, high],
            distances,
            is_clear: memorised > 0,
        };
        Ok((variant, is_memorised))
    }

    /// The distance of each picture from the nearest memorised one.
    fn nearest(&self, pictures: &Tensor<4>) -> Vec<f64> {
        let mut nearest = vec![f64::INFINITY; pictures.dims()[0]];
        for row in 0..self.memorised.dims()[0] {
            let memorised = self.memorised.clone().narrow(0, row, 1);
            for (nearest, distance) in nearest.iter_mut().zip(distances(pictures, &memorised)) {
                *nearest = nearest.min(distance);
            }
        }
        nearest
    }
}

/// Whether each picture is in the cluster that is closer to the memorised ones, and the mean
/// distance of the closer and of the other cluster. None is memorised if the split is not clear.
fn split(labels: &[usize], nearest: &[f64]) -> (Vec<bool>, [f64; 2]) {
    let of = |label: usize| {
        let own = labels.iter().zip(nearest).filter(|(own, _)| **own == label);
        mean(&own.map(|(_, distance)| *distance).collect::<Vec<_>>())
    };
    let means = [of(0), of(1)];
    let closer = usize::from(means[1] < means[0]);
    let apart = [means[closer], means[1 - closer]];
    // A cluster without pictures has no mean, and nothing is clear.
    let is_clear = apart[0] < CLEAR * apart[1];
    let is_memorised = labels.iter().map(|&label| is_clear && label == closer);
    (is_memorised.collect(), apart)
}

/// The two folders of pictures.
struct Sides {
    folders: [PathBuf; 2],
    listings: [String; 2],
    written: [usize; 2],
    shown: [Vec<Tensor<4>>; 2],
}

impl Sides {
    fn new(results: PathBuf) -> Self {
        Self {
            folders: ["memorised", "other"].map(|name| results.join(name)),
            listings: Default::default(),
            written: [0; 2],
            shown: Default::default(),
        }
    }

    fn add(&mut self, prompt: &str, pictures: &Tensor<4>, is_memorised: &[bool]) -> Result<()> {
        for (row, &is_memorised) in is_memorised.iter().enumerate() {
            let side = usize::from(!is_memorised);
            let picture = pictures.clone().narrow(0, row, 1);
            let number = self.written[side];
            // Names of three digits up to the last of a thousand.
            pictures::single(&self.folders[side], number, picture.clone(), 1)?;
            let entry = Entry {
                file_name: format!("{number:03}.png"),
                text: prompt,
            };
            writeln!(self.listings[side], "{}", serde_json::to_string(&entry)?)?;
            self.written[side] += 1;
            if self.shown[side].len() < SHOWN {
                self.shown[side].push(picture);
            }
        }
        Ok(())
    }

    /// Writes the captions, and a picture of both sides.
    fn write(self, results: &Path) -> Result<()> {
        for (folder, listing) in self.folders.iter().zip(&self.listings) {
            files::create_folder(folder)?;
            files::write(&folder.join("metadata.jsonl"), listing)?;
        }
        let [memorised, other] = self.shown;
        if memorised.is_empty() || other.is_empty() {
            return Ok(());
        }
        let grid = |pictures, title| {
            Ok::<_, Box<dyn Error>>(
                ImageGrid::new(Tensor::cat(pictures, 0))?
                    .columns(8)
                    .title(title),
            )
        };
        let both = grid(memorised, "memorised")?.beside(grid(other, "other")?);
        Ok(both.save(results.join("clusters.png"))?)
    }
}

fn table(options: &Options, variants: &[Variant]) -> String {
    let mut text = String::from("memorised                distance  others'  variant\n");
    for variant in variants {
        let [low, high] = variant.interval.map(|end| 100.0 * end);
        let share = match variant.is_clear {
            true => format!(
                "{} of {} [{low:.1}, {high:.1}] %",
                variant.memorised, variant.samples
            ),
            false => "no clear split".into(),
        };
        let [near, far] = variant.distances;
        text += &format!("{share:<24} {near:>8.2} {far:>8.2}  {}\n", variant.prompt);
    }
    let out = path_text(&options.out);
    text += &match variants.iter().any(|variant| variant.is_clear) {
        true => format!(
            "\nnext: unlearn --model {} --forget {out}/memorised --retain {out}/other --protocol stable-diffusion --out DIR\n",
            path_text(&options.model)
        ),
        false => "\nnote: under no variant the pictures fall into two clear clusters: it is memorised always or never; give variants between them \
                  (--variant), or search for some (--search N)\n"
            .into(),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_clear_if_one_cluster_is_much_closer() {
        let (is_memorised, distances) = split(&[1, 0, 1, 0], &[1.0, 5.0, 2.0, 7.0]);
        assert_eq!(is_memorised, [true, false, true, false]);
        assert_eq!(distances, [1.5, 6.0]);
        let (is_memorised, distances) = split(&[0, 1], &[4.0, 3.0]);
        assert_eq!((is_memorised, distances), (vec![false; 2], [3.0, 4.0]));
        // Without a second cluster nothing is clear.
        assert_eq!(split(&[0, 0], &[1.0, 1.0]).0, [false; 2]);
    }

    /// What is written is read by `unlearn`: pictures with their captions.
    #[test]
    fn both_folders_hold_pictures_with_captions() {
        let place = tempfile::tempdir().unwrap();
        let pictures = Tensor::<4>::zeros([3, 3, 4, 4], &Device::flex());
        let mut sides = Sides::new(place.path().into());
        sides
            .add("a hat", &pictures, &[true, false, false])
            .unwrap();
        sides
            .add("one \"hat\"", &pictures, &[false, true, false])
            .unwrap();
        sides.write(place.path()).unwrap();
        for (name, captions) in [
            ("memorised", vec!["a hat", "one \"hat\""]),
            (
                "other",
                vec!["a hat", "a hat", "one \"hat\"", "one \"hat\""],
            ),
        ] {
            let found = ImageFiles::find(&place.path().join(name)).unwrap();
            let annotations = Annotations::of(&found).unwrap();
            let read = found
                .pictures
                .iter()
                .map(|file| annotations.caption(file).unwrap());
            assert_eq!(read.collect::<Vec<_>>(), captions);
        }
        assert!(place.path().join("clusters.png").exists());
    }
}
