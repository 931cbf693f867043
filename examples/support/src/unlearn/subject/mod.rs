//! The kinds of models that are unlearned, and what differs between them: how a network is read,
//! what makes a point and a condition of a picture, and what makes a picture of a point.

mod classes;
mod pixels;
mod text;

use std::error::Error;
use std::fmt::Debug;
use std::path::Path;

use serde_json::{Map, Value};
use siss::answer::OtherCondition;
use siss::burn::tensor::{Device, Int, Tensor};
use siss::files::path_text;
use siss::images::{Format, ImageFiles, Images};
use siss::models::{LeftOut, ModelFolder};
use siss::{Condition, Denoiser};

use crate::files;
use crate::progress::Progress;
use crate::unlearn::options::Options;

pub use classes::Classes;
pub use pixels::Pixels;
pub use text::Text;

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
    /// Whether retained images can be streamed, by [`maker`](Self::maker).
    const STREAMS: bool = true;

    /// Reads the model.
    fn read(
        options: &Options,
        origin: &ModelFolder,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, Self::Model)>;

    /// The format of the pictures; those to forget determine the size if the model does not.
    fn format(&self, found: &ImageFiles, options: &Options) -> Result<Format>;

    /// The shape of a point, without rows.
    fn shape(&self, format: Format) -> [usize; 3] {
        [format.channels, format.height, format.width]
    }

    /// The values of black and white in points, if these are pictures.
    fn range(&self) -> Option<[f64; 2]>;

    /// The number of parameters that are trained, of `all`.
    fn trained(&self, all: usize) -> usize {
        all
    }

    /// What is kept besides the model and the points, for `images` images: names and bytes.
    fn kept(&self, format: Format, images: usize) -> Vec<(&'static str, u64)> {
        let _ = (format, images);
        Vec::new()
    }

    /// The points of images, with their conditions. `found` are the files of their folder.
    fn points(
        &mut self,
        images: &Images,
        origin: &Origin<'_>,
        progress: &dyn Progress,
    ) -> Result<Points<ConditionOf<Self>>>;

    /// What makes points of retained images on any thread; `found` are the files of their folder.
    fn maker(&self, found: &ImageFiles, device: &Device) -> Result<MakePoints<ConditionOf<Self>>>;

    /// The pictures of points, with values from −1 to 1.
    fn pictures(&self, points: &Tensor<4>) -> siss::Result<Tensor<4>>;

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

    /// The number of pictures whose latents were read from the cache, and that were encoded.
    fn cached(&self) -> Option<[usize; 2]> {
        None
    }

    /// Writes the model into a folder, with the rest of the original. Returns what was left out.
    fn save(
        &self,
        model: &Self::Model,
        origin: &ModelFolder,
        folder: &Path,
        note: &str,
    ) -> siss::Result<Vec<LeftOut>>;
}

/// Where images come from.
pub struct Origin<'a> {
    /// The files that were found in their folder.
    pub found: &'a ImageFiles,
    pub is_forgotten: bool,
    pub device: &'a Device,
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

/// The kind of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pixels, without a condition.
    Pixels,
    /// Pixels, conditioned on a class.
    Classes,
    /// Latents, conditioned on a text.
    Text,
}

impl Kind {
    /// The kind of the model in a folder, by the configuration of its network.
    pub fn of(origin: &ModelFolder) -> Result<Self> {
        let path = origin.network().join("config.json");
        let text = files::read_text(&path)?;
        // What is wrong with a configuration, the network says when it is read.
        let config: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
        let is_given = |key: &str| config.get(key).is_some_and(|value| !value.is_null());
        match config.get("_class_name").and_then(Value::as_str) {
            Some("UNet2DConditionModel") => Ok(Self::Text),
            _ if is_given("num_class_embeds") || is_given("class_embed_type") => Ok(Self::Classes),
            _ => Ok(Self::Pixels),
        }
    }
}

/// Rejects options that the kind of model has no use for, and pipelines with other parts.
pub fn check<S: Subject>(options: &Options, origin: &ModelFolder) -> Result<()> {
    for (option, is_given) in options.conditions.given() {
        if is_given && !S::OPTIONS.contains(&option) {
            return Err(format!(
                "--{option} is of no use for the model of {}: {}",
                path_text(&options.model),
                match S::OPTIONS {
                    [] => "it has no condition".into(),
                    options => format!("it takes --{}", options.join(", --")),
                }
            )
            .into());
        }
    }
    let (Some(path), Some(index)) = (origin.index_file(), origin.index()?) else {
        return Ok(());
    };
    let mut parts = index.parts.keys();
    match parts.find(|part| !S::PARTS.contains(&part.as_str())) {
        None => Ok(()),
        Some(part) => Err(format!(
            "{}: the pipeline has a `{part}`; only those of a `unet` and a `scheduler`, which work on pixels, and those of Stable Diffusion 1 and 2 \
             are unlearned here",
            path_text(path)
        )
        .into()),
    }
}

/// The values of pictures from −1 for black to 1 for white.
pub fn from_range(images: &Tensor<4>, [black, white]: [f64; 2]) -> Tensor<4> {
    match [black, white] {
        [-1.0, 1.0] => images.clone(),
        _ => (images.clone() - black) * (2.0 / (white - black)) - 1.0,
    }
}
