//! The command line of `unlearn`, and the settings that follow from it for a model.

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use serde::Serialize;
use siss::backend::DeviceSpec;
use siss::clipper::ClipperSpec;
use siss::images::{Format, Transparency};

use crate::audit::summary::Reporting;
use crate::files::{as_optional_text, as_text};
use crate::options::{at_least_one, clipper, learning_rate};
use crate::probe::Chunks;
use crate::resume::Checkpointing;
use crate::subject::{Conditions, Named};
use crate::target::Target;
use crate::unlearn::memory::Wanted;
use crate::unlearn::published::PublishedWeights;
use crate::way::{Way, parse_way};

/// Makes a diffusion model forget images and keep generating everything else.
///
/// Takes a diffusers model (UNet2DModel, with or without classes; DiT; Stable Diffusion 1, 2, XL
/// and 3), the images to forget, and images of what it must keep generating. Classes come from the
/// names of folders or from a metadata.jsonl, captions from a metadata.jsonl or from NAME.txt
/// beside an image. Measures, unlearns, measures again; writes pictures, curves, numbers and the
/// unlearned model.
#[derive(Parser, Debug, Clone, Serialize)]
#[command(name = "siss", version, allow_negative_numbers = true)]
pub struct Options {
    /// The model: the folder of a pipeline (`unet` or `transformer`, `scheduler`), of its network,
    /// of a training checkpoint or of a download, a name on the hub that has been downloaded, or a
    /// single file of Stable Diffusion 1, 2 or XL (.safetensors).
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_text")]
    pub model: PathBuf,

    /// What a single file of Stable Diffusion as --model lacks: a folder of the same version in the
    /// diffusers layout, which needs no weights of what the file holds.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "as_optional_text")]
    pub config: Option<PathBuf>,

    /// Images to forget: a folder, with its subfolders, or one image. All must be readable.
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_text")]
    pub forget: PathBuf,

    /// Images the model was trained on and keeps: a folder, with its subfolders, or tar shards
    /// ("shard-{000..009}.tar", or a folder of them). Those to forget are removed from it.
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_text")]
    pub retain: PathBuf,

    /// Images like the retained ones that the model was never trained on, to compare with: a
    /// folder, with its subfolders
    /// [default: a tenth of the retained images, which are not trained on here].
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_optional_text")]
    pub control: Option<PathBuf>,

    #[command(flatten)]
    #[serde(flatten)]
    pub streaming: Streaming,

    /// The values of black and white in the model's training, LOW:HIGH.
    #[arg(long, value_name = "LOW:HIGH", default_value = "-1:1", allow_hyphen_values = true, value_parser = parse_range)]
    pub range: ValueRange,

    /// Transparent parts of images: drop (hidden colours show, as in diffusers' training scripts),
    /// white or black.
    #[arg(long, default_value_t)]
    pub transparency: Transparency,

    /// Random changes of the images in the model's training, which are forgotten as well: none, or
    /// flip (left for right).
    #[arg(long, value_enum, default_value_t)]
    pub augment: Augment,

    /// Folder for everything that is written.
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_text")]
    pub out: PathBuf,

    /// Method: counterfactual, which teaches the answers that a model retrained without the images
    /// is predicted to give; siss, siss-no-is, bernoulli, naive-deletion, neg-grad, erase-diff or
    /// re-track [default: counterfactual; siss with --target none].
    #[arg(
        long,
        default_value_t,
        default_value_ifs([
            ("target", "none", Some("siss")),
            ("protocol", "celeba-hq", Some("siss")),
            ("protocol", "stable-diffusion", Some("siss")),
        ]),
        hide_default_value = true,
        value_parser = parse_way
    )]
    pub method: Way,

    /// Where forgetting stops: where a model retrained without the images is predicted to be, or
    /// nowhere [default: retrained; none with the paper's protocols].
    #[arg(
        long,
        value_enum,
        default_value_t,
        default_value_ifs([
            ("protocol", "celeba-hq", Some("none")),
            ("protocol", "stable-diffusion", Some("none")),
        ]),
        hide_default_value = true
    )]
    pub target: Target,

    /// Settings: quick (few steps, a falling learning rate); or those of the paper, with uniform
    /// timesteps, coins and no thinning: celeba-hq for faces of 256x256 (60 steps of 64, 4 at a
    /// time, 5e-6, rescale:500), stable-diffusion for version 1.4 (35 steps of 16, 1 at a time,
    /// 1e-5, rescale:750, AdamW with a decay of 1e-2).
    #[arg(long, value_enum, default_value_t)]
    pub protocol: Protocol,

    /// Optimiser steps [default: 100; 60 with --protocol celeba-hq, 35 with stable-diffusion].
    #[arg(
        long,
        default_value_t = 100,
        default_value_ifs([
            ("protocol", "celeba-hq", Some("60")),
            ("protocol", "stable-diffusion", Some("35")),
        ]),
        hide_default_value = true
    )]
    pub steps: usize,

    /// Pairs of a retained and a forgotten image in a step [default: 16; 64 with --protocol
    /// celeba-hq].
    #[arg(
        long,
        default_value_t = 16,
        default_value_if("protocol", "celeba-hq", "64"),
        hide_default_value = true
    )]
    pub batch: usize,

    /// Learning rate of the first step; it falls to 0, except with the paper's protocols [default:
    /// 1e-4 below 20 million trained parameters, 5e-6 from there and with --protocol celeba-hq,
    /// 1e-5 with stable-diffusion].
    #[arg(long)]
    #[serde(skip)]
    pub learning_rate: Option<f64>,

    /// How the two gradients are weighed: fraction:F (of the retain gradient's norm),
    /// fraction:F:MAX, rescale:N, clip:N, constant:S, blend:S, erase-diff:R or projected [default:
    /// the method's own; rescale:500 with --protocol celeba-hq, rescale:750 with stable-diffusion].
    /// With one that weighs by the retain gradient (fraction, blend, erase-diff, projected),
    /// counterfactual learns the retained images' noise instead of keeping the model's answers.
    #[arg(long, default_value_ifs([
        ("protocol", "celeba-hq", Some("rescale:500")),
        ("protocol", "stable-diffusion", Some("rescale:750")),
    ]))]
    pub clipper: Option<ClipperSpec>,

    /// Seed of the run. Samples have a seed of their own, the same before and after.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Images generated before and after, by DDIM in 25 steps [default: 128 below 20 million
    /// parameters, 8 from there; 16 with --protocol stable-diffusion].
    #[arg(long)]
    #[serde(skip)]
    pub samples: Option<usize>,

    /// Writes the first N generated images as single files too, into the output folder's
    /// `samples/before` and `samples/after`. N may be larger than --samples.
    #[arg(long, value_name = "N")]
    pub save_samples: Option<usize>,

    /// Where to compute: flex (CPU), wgpu or cuda:INDEX, as far as compiled in.
    #[arg(long, default_value_t)]
    pub device: DeviceSpec,

    /// Several devices instead of one, separated by commas: each step's images are shared out among
    /// them, and the first does everything else.
    #[arg(
        long,
        value_name = "D,…",
        value_delimiter = ',',
        conflicts_with = "device"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<DeviceSpec>>,

    /// Images run at a time in a step: less memory, the same result [default: on the CPU as many as
    /// fit into the available memory, elsewhere by the size of the images; at most 4 with
    /// --protocol celeba-hq, 1 with stable-diffusion].
    #[arg(long)]
    #[serde(skip)]
    pub micro_batch: Option<usize>,

    /// Computes cheap operations again in the backward pass instead of storing their results: less
    /// memory for more time, the same result.
    #[arg(long)]
    #[serde(skip_serializing_if = "is_off")]
    pub recompute: bool,

    /// Keeps the optimiser's two moments in the host's memory, and brings those of one parameter
    /// at a time to the device: less memory of a GPU for more time, the same result. A resumed run
    /// may change it.
    #[arg(long)]
    #[serde(skip)]
    pub moments_on_host: bool,

    /// Trains weights in bf16, with a copy in f32 that takes the steps: half of the memory for
    /// activations, for a little accuracy. Measured and written as they came. Not with --lora
    /// and --lora-rank.
    #[arg(long, conflicts_with_all = ["lora", "lora_rank"])]
    #[serde(skip_serializing_if = "is_off")]
    pub bf16_weights: bool,

    /// CPU threads [default: all].
    #[arg(long)]
    #[serde(skip)]
    pub threads: Option<usize>,

    #[command(flatten)]
    #[serde(flatten)]
    pub published: PublishedWeights,

    #[command(flatten)]
    #[serde(flatten)]
    pub conditions: Conditions,

    #[command(flatten)]
    #[serde(skip)]
    pub checkpointing: Checkpointing,

    #[command(flatten)]
    #[serde(skip)]
    pub reporting: Reporting,
}

/// The options for retained images that do not fit in memory.
#[derive(Args, Debug, Clone, Copy, Default, Serialize)]
pub struct Streaming {
    /// Decodes retained images ahead of each step instead of holding them in memory
    /// [default: where they would take more than 2 GiB].
    #[arg(long)]
    #[serde(skip_serializing_if = "is_off")]
    pub stream: bool,

    /// With a stream: passes over retained images that cannot be read, and counts them, instead of
    /// stopping at the first.
    #[arg(long)]
    #[serde(skip_serializing_if = "is_off")]
    pub skip_broken: bool,

    /// With a stream: compares all retained images with those to forget before the run, and adds
    /// the nearest to the sample that stands for them.
    #[arg(long)]
    #[serde(skip_serializing_if = "is_off")]
    pub search: bool,
}

fn is_off(option: &bool) -> bool {
    !option
}

/// A set of defaults.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    #[default]
    Quick,
    /// What the paper ran on faces.
    CelebaHq,
    /// What the paper ran on Stable Diffusion 1.4.
    StableDiffusion,
}

/// The values of black and white.
pub type ValueRange = [f64; 2];

fn parse_range(text: &str) -> Result<ValueRange, String> {
    let ends = text.split_once(':').and_then(|(low, high)| {
        let number = |text: &str| text.trim().parse::<f64>().ok();
        Some([number(low)?, number(high)?])
    });
    match ends {
        Some([low, high]) if low < high && (high - low).is_finite() => Ok([low, high]),
        _ => Err("write two numbers, the lower first, such as -1:1 or 0:1".into()),
    }
}

/// Random changes of the images in the model's training.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    #[default]
    None,
    /// Left for right, half of the time.
    Flip,
}

/// From this many parameters on a model counts as large: it takes a lower rate, and sampling is
/// expensive.
const LARGE: usize = 20_000_000;
/// The paper's rate for a large model, that of CelebA-HQ.
const LARGE_LEARNING_RATE: f64 = 5e-6;
const SMALL_LEARNING_RATE: f64 = 1e-4;
const LARGE_SAMPLES: usize = 8;
const SMALL_SAMPLES: usize = 128;
/// Faces that the paper runs at a time.
const FACES_AT_A_TIME: usize = 4;
/// The paper's rate for Stable Diffusion, and the pictures that it looks at.
const TEXT_LEARNING_RATE: f64 = 1e-5;
const TEXT_SAMPLES: usize = 16;
/// Most numbers in the generated images that are compared: 2 GiB of them.
const MOST_SAMPLED_VALUES: usize = 1 << 29;

/// Settings that depend on the model unless the command line gives them.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Settings {
    pub learning_rate: f64,
    pub samples: usize,
    /// Images run at a time in a step.
    pub micro_batch: usize,
    /// Images run at a time in measurements.
    #[serde(skip)]
    pub measured_at_a_time: usize,
}

impl Options {
    /// Rejects options that are invalid for every run, before anything is read.
    pub fn check(&self) -> Result<(), String> {
        at_least_one(&[
            ("steps", Some(self.steps)),
            ("batch", Some(self.batch)),
            ("samples", self.samples),
            ("save-samples", self.save_samples),
            ("micro-batch", self.micro_batch),
            ("threads", self.threads),
        ])?;
        learning_rate(self.learning_rate)?;
        self.conditions.check()?;
        clipper(self.clipper)
    }

    /// The model, as it is read.
    pub fn named(&self) -> Named<'_> {
        Named {
            option: "model",
            path: &self.model,
            config: self.config.as_deref(),
            range: self.range,
            conditions: &self.conditions,
            takes: &Conditions::NAMES,
        }
    }

    /// How the learning rate changes, in words.
    pub fn rate_change(&self) -> &'static str {
        match self.protocol {
            Protocol::Quick => " falling to 0",
            Protocol::CelebaHq | Protocol::StableDiffusion => "",
        }
    }

    /// The device of the model, and those that share its steps.
    pub fn all_devices(&self) -> (DeviceSpec, &[DeviceSpec]) {
        let several = self
            .devices
            .as_deref()
            .and_then(<[DeviceSpec]>::split_first);
        several.map_or((self.device, &[]), |(first, others)| (*first, others))
    }

    /// How many images of a step are run at a time, if the memory allows.
    pub fn wanted(&self, format: Format) -> Wanted {
        let most = match self.protocol {
            Protocol::Quick => self.batch,
            Protocol::CelebaHq => FACES_AT_A_TIME,
            Protocol::StableDiffusion => 1,
        };
        Wanted {
            most: self.micro_batch.unwrap_or(most).min(self.batch),
            is_firm: self.micro_batch.is_some(),
            few: few(format),
        }
    }

    /// The settings for a model with these numbers of parameters, and of those that are trained,
    /// and for images of this format.
    pub fn settings(
        &self,
        [parameters, trained]: [usize; 2],
        format: Format,
    ) -> Result<Settings, String> {
        let learning_rate = match trained < LARGE {
            true => SMALL_LEARNING_RATE,
            false => LARGE_LEARNING_RATE,
        };
        let samples = match parameters < LARGE {
            true => SMALL_SAMPLES,
            false => LARGE_SAMPLES,
        };
        let micro_batch = few(format);
        let (learning_rate, micro_batch, samples) = match self.protocol {
            Protocol::Quick => (learning_rate, micro_batch, samples),
            Protocol::CelebaHq => (LARGE_LEARNING_RATE, FACES_AT_A_TIME, samples),
            Protocol::StableDiffusion => (TEXT_LEARNING_RATE, 1, TEXT_SAMPLES),
        };
        let settings = Settings {
            learning_rate: self.learning_rate.unwrap_or(learning_rate),
            samples: self.samples.unwrap_or(samples),
            micro_batch: self.micro_batch.unwrap_or(micro_batch),
            measured_at_a_time: self.micro_batch.unwrap_or(micro_batch),
        };
        let most = MOST_SAMPLED_VALUES / format.values();
        if settings.samples > most {
            return Err(format!(
                "--samples is {}; at most {most} of {}x{} pixels are kept in memory; --save-samples has no such limit",
                settings.samples, format.height, format.width
            ));
        }
        Ok(settings)
    }
}

/// Images run at a time by their size.
fn few(format: Format) -> usize {
    Chunks::of_pictures(format.height * format.width, DeviceSpec::Flex).rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use siss::Method;

    fn parsed(more: &str) -> Options {
        let words = format!("unlearn --model m --forget f --retain r --out o {more}");
        Options::try_parse_from(words.split_whitespace()).unwrap()
    }

    /// The paper's Appendix and its scripts for CelebA-HQ; an option that is given overrides them.
    #[test]
    fn the_protocol_of_the_paper_is_a_set_of_defaults() {
        let format = Format {
            height: 256,
            width: 256,
            channels: 3,
            is_configured: true,
            range: [-1.0, 1.0],
            transparency: Transparency::default(),
        };
        let settings = |options: &Options| options.settings([113_673_219; 2], format).unwrap();
        let paper = parsed("--protocol celeba-hq");
        assert_eq!(paper.method, Way::Method(Method::Siss));
        assert_eq!(
            (paper.target, paper.steps, paper.batch),
            (Target::None, 60, 64)
        );
        assert_eq!(paper.clipper, Some(ClipperSpec::Rescale(500.0)));
        assert_eq!(settings(&paper).learning_rate, 5e-6);
        assert_eq!(settings(&paper).micro_batch, 4);
        let wanted = paper.wanted(format);
        assert_eq!((wanted.most, wanted.is_firm, wanted.few), (4, false, 1));

        let text = parsed("--protocol stable-diffusion");
        assert_eq!(text.method, Way::Method(Method::Siss));
        assert_eq!(
            (text.target, text.steps, text.batch),
            (Target::None, 35, 16)
        );
        assert_eq!(text.clipper, Some(ClipperSpec::Rescale(750.0)));
        assert_eq!(settings(&text).learning_rate, 1e-5);
        assert_eq!(
            (settings(&text).micro_batch, settings(&text).samples),
            (1, 16)
        );

        let changed = parsed("--protocol celeba-hq --method siss-no-is --batch 8 --micro-batch 2");
        assert_eq!(changed.method, Way::Method(Method::SissNoIs));
        assert_eq!((changed.steps, changed.batch), (60, 8));
        assert_eq!(settings(&changed).micro_batch, 2);
        let wanted = changed.wanted(format);
        assert_eq!((wanted.most, wanted.is_firm), (2, true));

        let quick = parsed("");
        assert_eq!(
            (quick.method, quick.target),
            (Way::Counterfactual, Target::Retrained)
        );
        assert_eq!((quick.steps, quick.batch, quick.clipper), (100, 16, None));
    }
}
