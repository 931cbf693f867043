//! The kinds of models that are unlearned, and what differs between them: how a network is read,
//! what makes a point and a condition of a picture, and what makes a picture of a point.

mod classes;
mod encoders;
mod generation;
mod kind;
mod options;
pub mod source;
mod space;
mod text;
mod unconditional;

use std::error::Error;
use std::fmt::Debug;
use std::path::Path;

use siss::answer::OtherCondition;
use siss::burn::tensor::{Device, Int, Tensor};
use siss::images::{Format, ImageFiles, Images};
use siss::models::{LeftOut, LoadNote};
use siss::{Condition, Denoiser};

use crate::progress::Progress;
use crate::subject::source::Source;

pub use classes::{ClassNetwork, Classes};
pub use generation::Generation;
pub use kind::{Kind, check, explained};
pub use options::{Conditions, Named};
pub use space::{Input, Latents, MOST_VALUES, NO_STREAM, Space, from_range};
pub use text::{Text, TextNetwork};
pub use unconditional::Unconditional;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The condition of a subject's model.
pub type ConditionOf<S> = <<S as Subject>::Model as Denoiser<4>>::Condition;

/// Makes points of images, with their conditions, on any thread.
pub type MakePoints<C> = Box<dyn Fn(&Images) -> siss::Result<(Tensor<4>, C)> + Send + Sync>;

/// A kind of model, with everything that a run needs of it besides the network.
pub trait Subject: Sized + Sync {
    type Model: Denoiser<4, Condition: Debug + Sync + 'static> + Sync;

    /// The parts of a pipeline that such a model may have.
    const PARTS: &'static [&'static str];
    /// The options for conditions that it has a use for.
    const OPTIONS: &'static [&'static str];

    /// Reads the model.
    fn read(
        named: &Named<'_>,
        source: &Source,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, Self::Model)>;

    /// What its points are.
    fn space(&self) -> &Space;

    fn space_mut(&mut self) -> &mut Space;

    /// What the network takes and predicts.
    fn input(&self) -> Input;

    /// The number of parameters that are trained, of `all`.
    fn trained(&self, all: usize) -> usize {
        all
    }

    /// What is kept of conditions, for `images` images: names and numbers of values.
    fn kept(&self, images: usize) -> Vec<(&'static str, usize)> {
        let _ = images;
        Vec::new()
    }

    /// What the model is told of images.
    fn told(&mut self, images: &Images, origin: &Origin<'_>) -> Result<Told<ConditionOf<Self>>>;

    /// What makes points of retained images on any thread, for a model of pixels; `found` are the
    /// files of their folder.
    fn maker(&self, found: &ImageFiles, device: &Device) -> Result<MakePoints<ConditionOf<Self>>> {
        let _ = (found, device);
        Err(NO_STREAM.into())
    }

    /// The scale of guidance with which pictures are generated, and one row of the condition that
    /// stands for none.
    fn guidance(&self) -> Option<(f64, ConditionOf<Self>)> {
        None
    }

    /// One row of the condition that stands for none, if there is one.
    fn none(&self) -> Option<ConditionOf<Self>> {
        None
    }

    /// The condition under which the model's answers at `count` forgotten points are those of a
    /// model that never saw them, in words too.
    fn other(&self, count: usize) -> siss::Result<(OtherCondition<ConditionOf<Self>>, String)>;

    /// Writes the model into a folder, with the rest of the original. Returns what was left out.
    fn save(
        &self,
        model: &Self::Model,
        source: &Source,
        folder: &Path,
        note: &str,
    ) -> siss::Result<Vec<LeftOut>>;
}

/// The points of images, with their conditions.
pub fn points<S: Subject>(
    subject: &mut S,
    images: &Images,
    origin: &Origin<'_>,
    progress: &dyn Progress,
) -> Result<Points<ConditionOf<S>>> {
    // What is told first: a missing caption is found before anything is encoded.
    let told = subject.told(images, origin)?;
    Ok(Points {
        points: subject
            .space_mut()
            .points(images, origin.device, progress)?,
        condition: told.condition,
        keys: told.keys,
        words: told.words,
    })
}

/// What is kept besides the model and the points, for `images` images: names and bytes.
pub fn kept<S: Subject>(subject: &S, format: Format, images: usize) -> Vec<(&'static str, u64)> {
    const BYTES_A_NUMBER: usize = 4;
    let space = subject.space();
    let shape = space.shape(subject.input(), format);
    let kept = space.kept(shape, images).into_iter();
    kept.chain(subject.kept(images))
        .map(|(name, numbers)| (name, (numbers * BYTES_A_NUMBER) as u64))
        .collect()
}

/// Tells the decisions made while a part was read.
fn say_all(notes: &[LoadNote], progress: &dyn Progress) {
    for note in notes {
        progress.say(&note.to_string());
    }
}

/// Where images come from.
pub struct Origin<'a> {
    /// The files that were found in their folder.
    pub found: &'a ImageFiles,
    pub is_forgotten: bool,
    pub device: &'a Device,
}

/// What a model is told of images, in their order.
pub struct Told<C> {
    pub condition: C,
    /// A key for each image: images of the same condition have the same.
    pub keys: Vec<u64>,
    /// Each image's condition in words; empty for a model without.
    pub words: Vec<String>,
}

/// Points as a model takes them, each with its condition.
#[derive(Debug, Clone)]
pub struct Points<C> {
    /// `[n, channels, height, width]`
    pub points: Tensor<4>,
    /// `n` rows.
    pub condition: C,
    /// A key for each point: points of the same condition have the same.
    pub keys: Vec<u64>,
    /// Each point's condition in words; empty for a model without.
    pub words: Vec<String>,
}

impl<C: Condition> Points<C> {
    /// Number of points.
    pub fn count(&self) -> usize {
        self.points.dims()[0]
    }

    /// The first points.
    pub fn first(&self, count: usize) -> Self {
        self.rows(&(0..count).collect::<Vec<_>>())
    }

    /// These points, then others.
    pub fn extended_by(mut self, other: Self) -> siss::Result<Self> {
        self.keys.extend(other.keys);
        self.words.extend(other.words);
        Ok(Self {
            points: Tensor::cat(vec![self.points, other.points], 0),
            condition: self.condition.extended_by(other.condition)?,
            keys: self.keys,
            words: self.words,
        })
    }

    /// The points with these indices, each of which may occur several times.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let index: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &self.points.device());
        Self {
            points: self.points.clone().select(0, index),
            condition: self.condition.take_rows(rows),
            keys: rows.iter().map(|&row| self.keys[row]).collect(),
            words: rows
                .iter()
                .filter_map(|&row| self.words.get(row).cloned())
                .collect(),
        }
    }
}
