//! The points of a training, with their conditions.

use std::error::Error;
use std::path::Path;

use siss::Condition;
use siss::burn::tensor::{Device, Tensor};
use siss::images::{ImageFiles, Images, Transparency};
use siss_support::cases::CaseData;
use siss_support::progress::{Progress, Silent};
use siss_support::subject::{ConditionOf, Origin, Points, Subject, points};

use crate::options::Options;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Of the pictures of a folder, every so many-th is held out.
const HELD_OUT_EVERY: usize = 20;

/// The points of a training.
pub struct Data<C> {
    /// What every model is trained on.
    pub retain: Points<C>,
    /// What no model is trained on.
    pub heldout: Points<C>,
    /// What is to be memorised.
    pub memorise: Points<C>,
}

impl<C: Condition> Data<C> {
    /// What a model is trained on, with so many copies of what is to be memorised.
    pub fn training(&self, copies: usize) -> siss::Result<Points<C>> {
        let rows = (0..copies).flat_map(|_| 0..self.memorise.count());
        match rows.collect::<Vec<_>>() {
            none if none.is_empty() => Ok(self.retain.clone()),
            rows => self.retain.clone().extended_by(self.memorise.rows(&rows)),
        }
    }
}

/// Those of a bundled case, which has no condition.
pub fn bundled(case: CaseData) -> Data<()> {
    let plain = |points: Tensor<4>| Points {
        keys: vec![0; points.dims()[0]],
        points,
        condition: (),
        words: Vec::new(),
    };
    Data {
        retain: plain(case.retain),
        heldout: plain(case.heldout),
        memorise: plain(case.forget),
    }
}

/// Those of the user's folders.
pub fn of_folders<S: Subject>(
    subject: &mut S,
    options: &Options,
    model: &Path,
    device: &Device,
) -> Result<Data<ConditionOf<S>>> {
    let (Some(images), Some(memorise)) = (&options.images, &options.memorise) else {
        return Err(
            "the bundled pictures are for models without a condition: give --images and --memorise"
                .into(),
        );
    };
    let mut read = |path: &Path| -> Result<Points<ConditionOf<S>>> {
        let found = ImageFiles::find(path)?;
        let input = subject.input();
        let format = subject
            .space()
            .format(input, &found, Transparency::White, model)?;
        let (images, account) = Images::read_all(found.clone(), format, |_| {})?;
        account.lines().iter().for_each(|line| println!("{line}"));
        let origin = Origin {
            found: &found,
            is_forgotten: false,
            device,
        };
        let progress: &dyn Progress = &Silent;
        points(subject, &images, &origin, progress)
    };
    let (all, memorise) = (read(images)?, read(memorise)?);
    let is_held_out = |row: &usize| row % HELD_OUT_EVERY == HELD_OUT_EVERY - 1;
    let (heldout, retain): (Vec<_>, Vec<_>) = (0..all.count()).partition(is_held_out);
    if heldout.is_empty() || memorise.count() == 0 {
        return Err(format!(
            "--images and --memorise: found {} and {} pictures; give at least {HELD_OUT_EVERY} and 1",
            all.count(),
            memorise.count()
        )
        .into());
    }
    Ok(Data {
        retain: all.rows(&retain),
        heldout: all.rows(&heldout),
        memorise,
    })
}
