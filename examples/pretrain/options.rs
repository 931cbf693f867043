//! The command line of `pretrain`.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;
use siss::backend::DeviceSpec;
use siss::burn::tensor::{Device, Tensor};
use siss::images::{Format, ImageFiles, Images, Transparency};
use siss_support::cases::{Case, CaseData};
use siss_support::digits::ASSETS;
use siss_support::options::{at_least_one, learning_rate, number};
use siss_support::resume::Checkpointing;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Of the pictures of a folder, every so many-th is held out.
const HELD_OUT_EVERY: usize = 20;

/// A small diffusion model is trained on pictures and memorises some of them, or, with `--copies
/// 0`, is trained without them: the twin that unlearning is compared with.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Options {
    /// Bundled pictures: of the T-shirt among digits, of ten digits among digits, of four faces
    /// among colour pictures.
    #[arg(long, value_enum, default_value_t, conflicts_with = "images")]
    pub case: Case,

    /// A folder of pictures of your own instead, of which every twentieth is held out.
    #[arg(long, value_name = "DIR", requires = "memorise")]
    pub images: Option<PathBuf>,

    /// With --images: the pictures to memorise, which are not in that folder.
    #[arg(long, value_name = "DIR", requires = "images")]
    pub memorise: Option<PathBuf>,

    /// With --images: height and width of the pictures, a multiple of 4.
    #[arg(long, default_value_t = 32)]
    pub size: usize,

    /// With --images: 1 for grey, 3 for colour.
    #[arg(long, default_value_t = 3)]
    pub channels: usize,

    /// How often the pictures to memorise are in the training data; 0 for the twin [default: 180;
    /// 120 of each face].
    #[arg(long)]
    pub copies: Option<usize>,

    /// A diffusers folder whose network is trained on, instead of a new one.
    #[arg(long, value_name = "DIR", conflicts_with = "width")]
    pub from: Option<PathBuf>,

    /// Optimiser steps.
    #[arg(long, default_value_t = 5_000)]
    pub steps: u64,

    /// Pictures in a step.
    #[arg(long, default_value_t = 48)]
    pub batch: usize,

    /// The highest learning rate; it rises for 200 steps and falls to a fiftieth.
    #[arg(long, default_value_t = 6e-4)]
    pub learning_rate: f64,

    /// Channels of the three stages, multiples of 8.
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 64])]
    pub width: Vec<usize>,

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
        ])?;
        learning_rate(Some(self.learning_rate))?;
        let is_decay = (0.0..1.0).contains(&self.ema);
        number("ema", self.ema, is_decay, "at least 0 and below 1")?;
        let is_known = [1, 3].contains(&self.channels);
        number("channels", self.channels as f64, is_known, "1 or 3")?;
        if self.width.len() != 3 {
            return Err("--width: give three numbers of channels".into());
        }
        Ok(())
    }

    /// Copies of the pictures to memorise.
    pub fn copies(&self) -> usize {
        let of_case = match self.images {
            Some(_) => Case::Tshirt.copies(),
            None => self.case.copies(),
        };
        self.copies.unwrap_or(of_case)
    }

    /// Loads the pictures.
    pub fn data(&self, device: &Device) -> Result<CaseData> {
        let (Some(images), Some(memorise)) = (&self.images, &self.memorise) else {
            return Ok(self.case.load(Path::new(ASSETS), device)?);
        };
        let format = Format {
            channels: self.channels,
            height: self.size,
            width: self.size,
            is_configured: true,
            range: [-1.0, 1.0],
            transparency: Transparency::White,
        };
        let read = |path| -> Result<Images> {
            let (images, account) = Images::read_all(ImageFiles::find(path)?, format, |_| {})?;
            account.lines().iter().for_each(|line| println!("{line}"));
            Ok(images)
        };
        let (images, memorise) = (read(images)?, read(memorise)?);
        let part = |is_held_out: bool| {
            let places = (0..images.len())
                .filter(|place| (place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == is_held_out);
            let pictures = places.map(|place| images.tensor(place..place + 1, device));
            pictures.collect::<Vec<_>>()
        };
        let (retain, heldout) = (part(false), part(true));
        if retain.is_empty() || heldout.is_empty() || memorise.is_empty() {
            let least = HELD_OUT_EVERY;
            return Err(format!(
                "--images and --memorise: found {} and {} pictures; give at least {least} and 1",
                images.len(),
                memorise.len()
            )
            .into());
        }
        Ok(CaseData {
            retain: Tensor::cat(retain, 0),
            heldout: Tensor::cat(heldout, 0),
            forget: memorise.all(device),
        })
    }
}
