//! Models of pixels without a condition.

use std::path::Path;

use siss::Result as SissResult;
use siss::answer::OtherCondition;
use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::images::{Format, ImageFiles, Images};
use siss::models::{LeftOut, ModelFolder, UNet2d, UNet2dConfig, save_pipeline};

use super::{MakePoints, Origin, Points, Result, Subject, from_range};
use crate::progress::Progress;
use crate::unlearn::data::MOST_VALUES;
use crate::unlearn::options::Options;

/// A [`UNet2d`] without classes.
pub struct Pixels {
    config: UNet2dConfig,
    range: [f64; 2],
}

/// Parts of a pipeline that do not change pixels.
pub const PARTS: &[&str] = &[
    "unet",
    "scheduler",
    "feature_extractor",
    "image_processor",
    "safety_checker",
];

impl Subject for Pixels {
    type Model = UNet2d;

    const PARTS: &'static [&'static str] = PARTS;
    const OPTIONS: &'static [&'static str] = &[];

    fn read(
        options: &Options,
        origin: &ModelFolder,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, UNet2d)> {
        let unet = UNet2d::load(origin.network(), device)?;
        for note in unet.notes() {
            progress.say(&note.to_string());
        }
        let pixels = Self {
            config: unet.config().clone(),
            range: options.range,
        };
        Ok((pixels, unet))
    }

    fn format(&self, found: &ImageFiles, options: &Options) -> Result<Format> {
        format(&self.config, found, options)
    }

    fn range(&self) -> Option<[f64; 2]> {
        Some(self.range)
    }

    fn points(
        &mut self,
        images: &Images,
        origin: &Origin<'_>,
        _: &dyn Progress,
    ) -> Result<Points<()>> {
        Ok(Points {
            points: images.all(origin.device),
            condition: (),
            keys: vec![0; images.len()],
            words: Vec::new(),
        })
    }

    fn maker(&self, _: &ImageFiles, device: &Device) -> Result<MakePoints<()>> {
        let device = device.clone();
        Ok(Box::new(move |images| Ok((images.all(&device), ()))))
    }

    fn pictures(&self, points: &Tensor<4>) -> SissResult<Tensor<4>> {
        Ok(from_range(points, self.range))
    }

    fn other(&self, _: usize) -> SissResult<(OtherCondition<()>, String)> {
        Ok((OtherCondition::of_retained()?, String::new()))
    }

    fn save(
        &self,
        model: &UNet2d,
        origin: &ModelFolder,
        folder: &Path,
        note: &str,
    ) -> SissResult<Vec<LeftOut>> {
        save_pipeline(model, origin, folder, note)
    }
}

/// The format of the model; its images determine the size if the configuration does not.
pub fn format(model: &UNet2dConfig, found: &ImageFiles, options: &Options) -> Result<Format> {
    let folder = path_text(&options.model);
    let (channels, out) = (model.in_channels, model.out_channels);
    if !matches!((channels, out), (1, 1) | (3, 3)) {
        return Err(format!(
            "{folder}: the model takes {channels} channels and predicts {out}; only models of 1 (grey) or 3 (RGB) on both sides are unlearned here, \
             and none that also learn the variance"
        )
        .into());
    }
    // If none can be read, reading all of them will say why.
    let size = model.sample_size.or_else(|| found.first_size());
    let [height, width] = size.unwrap_or([1, 1]);
    check_size([height, width], &folder)?;
    Ok(Format {
        channels,
        height,
        width,
        is_configured: model.sample_size.is_some(),
        range: options.range,
        transparency: options.transparency,
    })
}

/// Rejects a size that no image has.
pub fn check_size([height, width]: [usize; 2], folder: &str) -> Result<()> {
    let pixels = height.saturating_mul(width);
    match (1..=MOST_VALUES / 128).contains(&pixels) {
        true => Ok(()),
        false => Err(format!(
            "{folder}: `sample_size` is {height}x{width}, which is not a valid image size"
        )
        .into()),
    }
}
