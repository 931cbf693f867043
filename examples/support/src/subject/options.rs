//! The model that a command line names, and the options for its conditions.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::files::as_optional_text;
use crate::options::number;

/// A model as a command line names it.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The option that names it.
    pub option: &'static str,
    pub path: &'a Path,
    /// What a single file lacks.
    pub config: Option<&'a Path>,
    /// The values of black and white in its training.
    pub range: [f64; 2],
    pub conditions: &'a Conditions,
    /// The options for conditions that the program has.
    pub takes: &'static [&'static str],
}

/// The options for models with a condition.
#[derive(Args, Debug, Clone, Default, Serialize)]
pub struct Conditions {
    /// The class of the images to forget, instead of those of their folders.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<usize>,

    /// The class that stands for none in a model that was trained for guidance.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_label: Option<usize>,

    /// The class under which the model answers for one that never saw the images, if there are too
    /// few retained images to predict that [default: --null-label, or the retained images' own].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour_label: Option<usize>,

    /// A file of captions in the format of metadata.jsonl, with names relative to its own folder:
    /// {"file_name": "a.png", "text": "a hat"}. It goes before captions beside the images.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "as_optional_text")]
    pub prompts: Option<PathBuf>,

    /// The prompt under which the model answers for one that never saw the images, if there are too
    /// few retained images to predict that [default: the empty one].
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour_prompt: Option<String>,

    /// Scale of classifier-free guidance for generated and denoised images [default: 7.5 for Stable
    /// Diffusion, 7 for its version 3, 4 for DiT, 1 for other models with classes].
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,

    /// Probability with which a row of a step has no prompt or class, as in training for guidance.
    #[arg(long, value_name = "P", default_value_t = 0.0, alias = "drop-prompt")]
    pub drop_condition: f64,

    /// Before every N-th step, searches for embeddings under which the model still knows the
    /// images, and forgets them under these too.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<u64>,

    /// Folder that keeps the latents of images, so that a later run need not encode them.
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub cache: Option<PathBuf>,

    /// A LoRA of the model: only its factors are trained, and only it is written.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "as_optional_text")]
    pub lora: Option<PathBuf>,

    /// Trains only a new LoRA of this rank for the model's attention, and writes only it.
    #[arg(long, value_name = "R", conflicts_with = "lora")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<usize>,
}

impl Conditions {
    /// Their names.
    pub const NAMES: [&'static str; 11] = [
        "label",
        "null-label",
        "neighbour-label",
        "prompts",
        "neighbour-prompt",
        "guidance",
        "drop-condition",
        "adversarial",
        "cache",
        "lora",
        "lora-rank",
    ];

    /// Each option, and whether it was given.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let given = [
            self.label.is_some(),
            self.null_label.is_some(),
            self.neighbour_label.is_some(),
            self.prompts.is_some(),
            self.neighbour_prompt.is_some(),
            self.guidance.is_some(),
            self.drop_condition != 0.0,
            self.adversarial.is_some(),
            self.cache.is_some(),
            self.lora.is_some(),
            self.lora_rank.is_some(),
        ];
        Self::NAMES.into_iter().zip(given)
    }

    /// Rejects values that no model takes.
    pub fn check(&self) -> Result<(), String> {
        if let Some(scale) = self.guidance {
            number("guidance", scale, scale.is_finite(), "a finite number")?;
        }
        let probability = self.drop_condition;
        let is_legal = (0.0..=1.0).contains(&probability);
        number(
            "drop-condition",
            probability,
            is_legal,
            "a number from 0 to 1",
        )
    }
}
