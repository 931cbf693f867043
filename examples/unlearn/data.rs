//! The images of a run: to forget, to keep, and to compare with.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use siss::models::UNet2dConfig;
use siss::rand::seq::SliceRandom;
use siss::{Stream, keyed_rng};

use crate::common::probe::EVALUATION_SEED;
use crate::common::progress::Progress;
use crate::images::{self, Format, Images};
use crate::options::Options;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The control set is this part of the retained images, within these numbers.
const CONTROL_PART: usize = 10;
const LEAST_CONTROL: usize = 8;
const MOST_CONTROL: usize = 256;
/// Most numbers in the images of a run: 8 GiB of them.
const MOST_VALUES: usize = 1 << 31;

/// The images of a run.
pub struct Data {
    pub forget: Images,
    /// Retained images: the control set, then those to train on.
    pub retain: Images,
    pub control_count: usize,
    /// Retained images there are, of which not all are needed.
    pub retain_found: usize,
}

impl Data {
    /// Reads the images in the format of the model. Of the retained ones it takes, by lot, a control set and as many
    /// others as the steps use.
    pub fn load(options: &Options, model: &UNet2dConfig, progress: &dyn Progress) -> Result<Self> {
        let forget = images::find(&options.forget)?;
        let mut retain = images::find(&options.retain)?;
        let format = format(model, &forget[0], &options.model)?;
        let retain_found = retain.len();
        let control_count = control_count(retain_found, options)?;
        let fit = MOST_VALUES / format.values();
        if forget.len() + control_count + options.batch > fit {
            let (height, width) = (format.height, format.width);
            return Err(format!(
                "{}: {} images to forget, {control_count} to compare with and a step of {} are too many: at most {fit} of \
                 {height}x{width} pixels are kept in memory; give fewer, or unlearn them in several runs",
                options.forget.display(),
                forget.len(),
                options.batch
            )
            .into());
        }
        // The same lot in every run, so that runs can be compared.
        retain.shuffle(&mut keyed_rng(EVALUATION_SEED, 0, 0, Stream::Pairs));
        let used = options.steps.saturating_mul(options.batch);
        retain.truncate(control_count.saturating_add(used).min(fit - forget.len()));

        let total = forget.len() + retain.len();
        let read = |files: &[_], before: usize| {
            Images::read(files, format, |done| {
                progress.phase(&format!("reading images: {} of {total}", before + done));
            })
        };
        let data = Self {
            forget: read(&forget, 0)?,
            retain: read(&retain, forget.len())?,
            control_count,
            retain_found,
        };
        images::refuse_common(&data.forget, &data.retain)?;
        Ok(data)
    }

    pub fn format(&self) -> Format {
        self.forget.format
    }

    /// Retained images that are never trained on.
    pub fn control(&self) -> Range<usize> {
        0..self.control_count
    }

    /// Retained images that are trained on.
    pub fn trained(&self) -> Range<usize> {
        self.control_count..self.retain.len()
    }
}

/// What the model takes; its images say the size where the configuration does not.
fn format(model: &UNet2dConfig, image: &Path, folder: &Path) -> Result<Format> {
    let (channels, out) = (model.in_channels, model.out_channels);
    if !matches!((channels, out), (1, 1) | (3, 3)) {
        return Err(format!(
            "{}: the model takes {channels} channels and predicts {out}; it must be 1 (grey) or 3 (RGB) on both sides",
            folder.display()
        )
        .into());
    }
    let [height, width] = match model.sample_size {
        Some(size) => size,
        None => images::size(image)?,
    };
    let pixels = height.saturating_mul(width);
    if !(1..=MOST_VALUES / 128).contains(&pixels) {
        return Err(format!(
            "{}: `sample_size` is {height}x{width}, no size of an image",
            folder.display()
        )
        .into());
    }
    Ok(Format {
        channels,
        height,
        width,
        is_configured: model.sample_size.is_some(),
    })
}

/// Size of the control set. What is left must fill a step.
fn control_count(found: usize, options: &Options) -> Result<usize> {
    let control = (found / CONTROL_PART).clamp(LEAST_CONTROL, MOST_CONTROL);
    let needed = control.saturating_add(options.batch);
    match found >= needed {
        true => Ok(control),
        false => Err(format!(
            "{}: it holds {found} images, {needed} are needed: {control} to compare with, which are never trained on, and {} for \
             a step; give more, or a smaller --batch",
            options.retain.display(),
            options.batch
        )
        .into()),
    }
}
