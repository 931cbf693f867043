//! Models without a condition.

use std::path::Path;

use siss::Result as SissResult;
use siss::answer::OtherCondition;
use siss::burn::tensor::Device;
use siss::images::{ImageFiles, Images};
use siss::models::{LeftOut, UNet2d, UNet2dConfig, save_pipeline};

use super::source::Source;
use super::{Input, MakePoints, Named, Origin, Result, Space, Subject, Told, say_all};
use crate::progress::Progress;

/// A [`UNet2d`] without classes.
pub struct Unconditional {
    input: Input,
    space: Space,
}

/// Parts of a pipeline without a text encoder.
pub const PARTS: &[&str] = &[
    "unet",
    "transformer",
    "vae",
    "scheduler",
    "feature_extractor",
    "image_processor",
    "safety_checker",
];

/// What a [`UNet2d`] takes and predicts.
pub fn input(config: &UNet2dConfig) -> Input {
    Input {
        channels: config.in_channels,
        predicted: config.out_channels,
        size: config.sample_size,
    }
}

impl Subject for Unconditional {
    type Model = UNet2d;

    const PARTS: &'static [&'static str] = PARTS;
    const OPTIONS: &'static [&'static str] = &[];

    fn read(
        named: &Named<'_>,
        source: &Source,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, UNet2d)> {
        let unet = UNet2d::load(source.network(), device)?;
        say_all(unet.notes(), progress);
        let unconditional = Self {
            input: input(unet.config()),
            space: Space::read(named, source, device, progress)?,
        };
        Ok((unconditional, unet))
    }

    fn space(&self) -> &Space {
        &self.space
    }

    fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }

    fn input(&self) -> Input {
        self.input
    }

    fn told(&mut self, images: &Images, _: &Origin<'_>) -> Result<Told<()>> {
        Ok(Told {
            condition: (),
            keys: vec![0; images.len()],
            words: Vec::new(),
        })
    }

    fn maker(&self, _: &ImageFiles, device: &Device) -> Result<MakePoints<()>> {
        let device = device.clone();
        Ok(Box::new(move |images| Ok((images.all(&device), ()))))
    }

    fn other(&self, _: usize) -> SissResult<(OtherCondition<()>, String)> {
        Ok((OtherCondition::of_retained()?, String::new()))
    }

    fn save(
        &self,
        model: &UNet2d,
        source: &Source,
        folder: &Path,
        note: &str,
    ) -> SissResult<Vec<LeftOut>> {
        save_pipeline(model, source.folder(), folder, note)
    }
}
