//! The images of a run: to forget, to keep, and to compare with.

use std::error::Error;
use std::path::{Path, PathBuf};

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
    /// What the others are compared with. Never trained on.
    pub control: Images,
    /// Retained images to train on.
    pub retain: Images,
    /// Retained images there are, of which not all are needed.
    pub retain_found: usize,
}

impl Data {
    /// Reads the images in the format of the model. Of the retained ones it takes, by lot, a control set and as many
    /// others as the steps use. With `--control` the control set comes from there.
    pub fn load(options: &Options, model: &UNet2dConfig, progress: &dyn Progress) -> Result<Self> {
        let forget = images::find(&options.forget)?;
        let mut retain = images::find(&options.retain)?;
        let format = format(model, &forget[0], &options.model)?;
        let retain_found = retain.len();
        let mut control = control_files(options, &mut retain)?;
        let fit = MOST_VALUES / format.values();
        if forget.len() + control.len() + options.batch > fit {
            let (height, width) = (format.height, format.width);
            return Err(format!(
                "{}: {} images to forget, {} to compare with and a step of {} are too many: at most {fit} of \
                 {height}x{width} pixels are kept in memory; give fewer, or unlearn them in several runs",
                options.forget.display(),
                forget.len(),
                control.len(),
                options.batch
            )
            .into());
        }
        let used = options.steps.saturating_mul(options.batch);
        retain.truncate(used.min(fit - forget.len() - control.len()));
        control.sort();

        let total = forget.len() + control.len() + retain.len();
        let read = |files: &[_], before: usize| {
            Images::read(files, format, |done| {
                progress.phase(&format!("reading images: {} of {total}", before + done));
            })
        };
        let data = Self {
            forget: read(&forget, 0)?,
            control: read(&control, forget.len())?,
            retain: read(&retain, forget.len() + control.len())?,
            retain_found,
        };
        images::refuse_common(&data.forget, &data.retain)?;
        images::refuse_common(&data.forget, &data.control)?;
        Ok(data)
    }

    pub fn format(&self) -> Format {
        self.forget.format
    }
}

/// What the model takes; its images say the size where the configuration does not.
fn format(model: &UNet2dConfig, image: &Path, folder: &Path) -> Result<Format> {
    let (channels, out) = (model.in_channels, model.out_channels);
    if !matches!((channels, out), (1, 1) | (3, 3)) {
        return Err(format!(
            "{}: the model takes {channels} channels and predicts {out}; only models of 1 (grey) or 3 (RGB) on both sides are unlearned here, \
             and none that learn the variance beside the noise",
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

/// The control set: images of a folder of its own, or retained ones, which are taken away. The same lot in every run,
/// so that runs can be compared. What is left must fill a step.
fn control_files(options: &Options, retain: &mut Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let lot = || keyed_rng(EVALUATION_SEED, 0, 0, Stream::Pairs);
    retain.shuffle(&mut lot());
    let found = retain.len();
    let Some(folder) = &options.control else {
        let count = (found / CONTROL_PART).clamp(LEAST_CONTROL, MOST_CONTROL);
        let needed = count.saturating_add(options.batch);
        if found < needed {
            return Err(format!(
                "{}: it holds {found} images, {needed} are needed: {count} to compare with, which are never trained on, and {} for \
                 a step; give more, or a smaller --batch",
                options.retain.display(),
                options.batch
            )
            .into());
        }
        return Ok(retain.drain(..count).collect());
    };
    let mut control = images::find(folder)?;
    for (set, found, needed) in [
        (&options.retain, found, options.batch),
        (folder, control.len(), LEAST_CONTROL),
    ] {
        if found < needed {
            return Err(format!(
                "{}: it holds {found} images, at least {needed} are needed",
                set.display()
            )
            .into());
        }
    }
    control.shuffle(&mut lot());
    control.truncate(MOST_CONTROL);
    Ok(control)
}
