//! The command line of `pretrain`.

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use siss::backend::DeviceSpec;
use siss_support::cases::Case;
use siss_support::options::{at_least_one, learning_rate, number};
use siss_support::resume::Checkpointing;
use siss_support::subject::Conditions;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A kind of new network.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A `UNet2DModel` of three stages.
    Unet,
    /// A `DiTTransformer2DModel`, which needs --classes.
    Dit,
}

/// The forward process of a new network.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// A thousand steps with a linear schedule; the network predicts the noise.
    Steps,
    /// The straight path of flow matching; the network predicts the velocity.
    Flow,
}

/// A diffusion model is trained on pictures and memorises some of them, or, with `--copies 0`, is
/// trained without them: the twin that unlearning is compared with.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Options {
    /// Bundled pictures: of the T-shirt among digits, of ten digits among digits, of four faces
    /// among colour pictures.
    #[arg(long, value_enum, default_value_t, conflicts_with = "images")]
    pub case: Case,

    /// A folder of pictures of your own instead, of which every twentieth is held out. Classes and
    /// captions are beside them, as `unlearn` takes them.
    #[arg(long, value_name = "DIR", requires = "memorise")]
    pub images: Option<PathBuf>,

    /// With --images: the pictures to memorise, which are not in that folder.
    #[arg(long, value_name = "DIR", requires = "images")]
    pub memorise: Option<PathBuf>,

    /// How often the pictures to memorise are in the training data; 0 for the twin [default: 180;
    /// 120 of each face].
    #[arg(long)]
    pub copies: Option<usize>,

    /// The folder of a pipeline whose network is trained on, instead of a new one; of any kind that
    /// `unlearn` takes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["network", "process", "width", "layers", "patch", "classes", "size", "channels"])]
    pub from: Option<PathBuf>,

    /// The new network.
    #[arg(long, value_enum, default_value_t = Network::Unet)]
    pub network: Network,

    /// The new network's forward process.
    #[arg(long, value_enum, default_value_t = Process::Steps)]
    pub process: Process,

    /// How many classes the new network is told; one more stands for none.
    #[arg(long, value_name = "N", requires = "images")]
    pub classes: Option<usize>,

    /// With --images: height and width that the new network is for, a multiple of 4.
    #[arg(long, default_value_t = 32)]
    pub size: usize,

    /// With --images: 1 for grey, 3 for colour.
    #[arg(long, default_value_t = 3)]
    pub channels: usize,

    /// Channels of the new network: of the three stages of a U-Net, multiples of 8, or of a
    /// transformer, a multiple of 16 [default: 32,64,64; 128].
    #[arg(long, value_delimiter = ',')]
    pub width: Vec<usize>,

    /// Blocks of a new transformer.
    #[arg(long, default_value_t = 4)]
    pub layers: usize,

    /// Side of a new transformer's patches.
    #[arg(long, default_value_t = 4)]
    pub patch: usize,

    /// With --from: the class that stands for none in a U-Net with classes.
    #[arg(long, value_name = "N", requires = "from")]
    pub null_label: Option<usize>,

    /// Probability with which a picture's class or caption is left out, for guidance.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub drop_condition: f64,

    /// A file of captions in the format of metadata.jsonl, before those beside the pictures.
    #[arg(long, value_name = "FILE", requires = "images")]
    pub prompts: Option<PathBuf>,

    /// Optimiser steps.
    #[arg(long, default_value_t = 5_000)]
    pub steps: u64,

    /// Pictures in a step.
    #[arg(long, default_value_t = 48)]
    pub batch: usize,

    /// The highest learning rate; it rises for 200 steps and falls to a fiftieth.
    #[arg(long, default_value_t = 6e-4)]
    pub learning_rate: f64,

    /// Decay of the average of the weights, which is what is saved.
    #[arg(long, default_value_t = 0.999)]
    pub ema: f64,

    /// Seed of the weights, the order and the noise: another one for a twin.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Where to compute: flex (CPU), wgpu or cuda:INDEX, as far as compiled in.
    #[arg(long, default_value_t)]
    pub device: DeviceSpec,

    /// Folder for the model.
    #[arg(long, value_name = "DIR", default_value = "target/pretrain")]
    pub out: PathBuf,

    #[command(flatten)]
    pub checkpointing: Checkpointing,
}

impl Options {
    /// Refuses settings outside their range, with the option's name.
    pub fn check(&self) -> Result<()> {
        at_least_one(&[
            ("steps", Some(self.steps as usize)),
            ("batch", Some(self.batch)),
            ("size", Some(self.size)),
            ("classes", self.classes),
            ("layers", Some(self.layers)),
            ("patch", Some(self.patch)),
        ])?;
        learning_rate(Some(self.learning_rate))?;
        let is_decay = (0.0..1.0).contains(&self.ema);
        number("ema", self.ema, is_decay, "at least 0 and below 1")?;
        let is_known = [1, 3].contains(&self.channels);
        number("channels", self.channels as f64, is_known, "1 or 3")?;
        let widths = match self.network {
            Network::Unet => 3,
            Network::Dit => 1,
        };
        if !self.width.is_empty() && self.width.len() != widths {
            return Err("--width: give three numbers for a U-Net, one for a transformer".into());
        }
        Ok(self.conditions().check()?)
    }

    /// Copies of the pictures to memorise.
    pub fn copies(&self) -> usize {
        let of_case = match self.images {
            Some(_) => Case::Tshirt.copies(),
            None => self.case.copies(),
        };
        self.copies.unwrap_or(of_case)
    }

    /// Channels of a new network.
    pub fn width(&self) -> Vec<usize> {
        match (self.width.as_slice(), self.network) {
            ([], Network::Unet) => vec![32, 64, 64],
            ([], Network::Dit) => vec![128],
            (given, _) => given.to_vec(),
        }
    }

    /// What the model is told, as `unlearn` has it.
    pub fn conditions(&self) -> Conditions {
        Conditions {
            // Of a new network it is the last class.
            null_label: self.null_label.or(self.classes),
            drop_condition: self.drop_condition,
            prompts: self.prompts.clone(),
            ..Conditions::default()
        }
    }
}
