//! The command line of `audit`.

use std::path::{Path, PathBuf};

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use siss::backend::DeviceSpec;
use siss::files::path_text;
use siss::report::audit::{AuditedModel, Manifest, OldCopy};

use crate::audit::facts::old_model;
use crate::audit::today::today;
use crate::digits::ASSETS;
use crate::files::{as_optional_text, as_text, as_texts};
use crate::options::at_least_one;
use crate::subject::Conditions;

/// Tests a model before and after unlearning, and writes a report that a person can read:
/// report.html, and the same as report.json.
///
/// Without options the bundled model forgets its T-shirt first, in two or three minutes on two CPU
/// cores, and is tested in as many.
#[derive(Parser, Debug)]
#[command(name = "audit", version, args_conflicts_with_subcommands = true)]
pub struct Command {
    #[command(subcommand)]
    pub task: Option<Task>,

    #[command(flatten)]
    pub options: Options,
}

/// What else there is to do.
#[derive(Subcommand, Debug)]
pub enum Task {
    /// Verifies a log of requests and lists them, and the items that a new run tests again.
    Log(LogOptions),
    /// Lists what in some folders still holds an item; removes only what --remove names.
    Purge(PurgeOptions),
}

/// Options of `audit log`.
#[derive(Args, Debug)]
pub struct LogOptions {
    /// The log, a file of JSON Lines.
    pub file: PathBuf,

    /// SHA-256 of its last entry, as it was noted elsewhere.
    #[arg(long, value_name = "SHA-256")]
    pub head: Option<String>,
}

/// Options of `audit purge`.
#[derive(Args, Debug)]
pub struct PurgeOptions {
    /// Folders to look through, such as the output folder of a run.
    #[arg(required = true)]
    pub folders: Vec<PathBuf>,

    /// The item, a file or a folder: copies of it are found under any name.
    #[arg(long, value_name = "PATH")]
    pub item: Vec<PathBuf>,

    /// The model from before, a file or a folder: copies of its weights are found under any name.
    #[arg(long, value_name = "PATH")]
    pub old_model: Vec<PathBuf>,

    /// A file of the list to remove; may be given several times. Nothing else is removed.
    #[arg(long, value_name = "FILE")]
    pub remove: Vec<PathBuf>,
}

/// Options of an audit.
#[derive(Args, Debug, Clone, Serialize)]
pub struct Options {
    /// The model before unlearning, a diffusers folder [default: the bundled one, which memorised a
    /// T-shirt].
    #[arg(long, value_name = "DIR", requires_all = ["unlearned", "forget", "retain", "control"])]
    #[serde(serialize_with = "as_optional_text")]
    pub before: Option<PathBuf>,

    /// The model after unlearning [default: the model before unlearns first].
    #[arg(long, value_name = "DIR", group = "unlearned")]
    #[serde(serialize_with = "as_optional_text")]
    pub after: Option<PathBuf>,

    /// A model that was trained without the items.
    #[arg(long, value_name = "DIR", requires = "before")]
    #[serde(serialize_with = "as_optional_text")]
    pub retrained: Option<PathBuf>,

    /// Another one, trained with another seed: how far apart the two are is the floor of every
    /// distance. Given several times, the items' losses are compared with those of all.
    #[arg(long, value_name = "DIR", requires = "retrained")]
    #[serde(serialize_with = "as_texts", skip_serializing_if = "Vec::is_empty")]
    pub another: Vec<PathBuf>,

    #[command(flatten)]
    #[serde(flatten)]
    pub told: Told,

    /// Images to be forgotten: a folder, or one image.
    #[arg(long, value_name = "DIR", requires = "before")]
    #[serde(serialize_with = "as_optional_text")]
    pub forget: Option<PathBuf>,

    /// Images that are kept: a folder.
    #[arg(long, value_name = "DIR", requires = "before")]
    #[serde(serialize_with = "as_optional_text")]
    pub retain: Option<PathBuf>,

    /// Images like them that no model saw: a folder.
    #[arg(long, value_name = "DIR", requires = "before")]
    #[serde(serialize_with = "as_optional_text")]
    pub control: Option<PathBuf>,

    /// Folder for the report.
    #[arg(long, value_name = "DIR", default_value = "target/audit")]
    #[serde(serialize_with = "as_text")]
    pub out: PathBuf,

    #[command(flatten)]
    pub record: RecordOptions,

    /// A log of requests to append to; it is verified first.
    #[arg(long, value_name = "FILE")]
    #[serde(serialize_with = "as_optional_text")]
    pub log: Option<PathBuf>,

    /// Images of earlier requests, recognised by their SHA-256 in the log: they are tested again.
    #[arg(long, value_name = "DIR", requires = "log")]
    #[serde(serialize_with = "as_optional_text")]
    pub earlier: Option<PathBuf>,

    /// Generated images per model.
    #[arg(long, default_value_t = 512, default_value_if("quick", "true", "8"))]
    pub samples: usize,

    /// Images that no model saw to compare with, at most.
    #[arg(long, default_value_t = 200, default_value_if("quick", "true", "20"))]
    pub controls: usize,

    /// Noises per image.
    #[arg(long, default_value_t = 16, default_value_if("quick", "true", "2"))]
    pub noises: usize,

    /// Most steps of the attempt to teach the items again.
    #[arg(long, default_value_t = 60, default_value_if("quick", "true", "2"))]
    pub relearning_steps: u64,

    /// Steps of the unlearning, if the model unlearns first.
    #[arg(long, default_value_t = 100, default_value_if("quick", "true", "2"))]
    pub steps: usize,

    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Shows that everything runs, in seconds; the numbers mean nothing then.
    #[arg(long)]
    pub quick: bool,

    /// Where to compute: flex (CPU), wgpu or cuda:INDEX, as far as compiled in.
    #[arg(long, default_value_t)]
    pub device: DeviceSpec,

    /// Folder of the bundled models and data.
    #[arg(long, value_name = "DIR", default_value = ASSETS, hide = true)]
    #[serde(skip)]
    pub assets: PathBuf,
}

/// What the models are told of images, and the parts that a folder lacks.
#[derive(Args, Debug, Clone, Default, Serialize)]
pub struct Told {
    /// The class of the images to be forgotten, instead of those of their folders.
    #[arg(long, value_name = "N", requires = "before")]
    pub label: Option<usize>,

    /// The class that stands for none in models that were trained for guidance.
    #[arg(long, value_name = "N", requires = "before")]
    pub null_label: Option<usize>,

    /// A file of captions in the format of metadata.jsonl, with names relative to its own folder.
    #[arg(long, value_name = "FILE", requires = "before")]
    #[serde(serialize_with = "as_optional_text")]
    pub prompts: Option<PathBuf>,

    /// Scale of classifier-free guidance for generated and denoised images [default: as `unlearn`].
    #[arg(long, value_name = "S", requires = "before")]
    pub guidance: Option<f64>,

    /// Folder that keeps the latents of images, so that a later run need not encode them.
    #[arg(long, value_name = "DIR", requires = "before")]
    #[serde(skip)]
    pub cache: Option<PathBuf>,

    /// What single files of Stable Diffusion lack, as for `unlearn`.
    #[arg(long, value_name = "DIR", requires = "before")]
    #[serde(serialize_with = "as_optional_text")]
    pub config: Option<PathBuf>,

    /// A LoRA that belongs to the model before.
    #[arg(long, value_name = "FILE", requires_all = ["before", "unlearned_lora"], conflicts_with = "retrained")]
    #[serde(serialize_with = "as_optional_text")]
    pub lora: Option<PathBuf>,

    /// The LoRA after unlearning, instead of --after: it belongs to the same model.
    #[arg(long, value_name = "FILE", group = "unlearned", requires = "lora")]
    #[serde(serialize_with = "as_optional_text")]
    pub unlearned_lora: Option<PathBuf>,
}

impl Told {
    /// The options of this command for conditions.
    pub const NAMES: [&'static str; 6] = [
        "label",
        "null-label",
        "prompts",
        "guidance",
        "cache",
        "lora",
    ];

    /// As the models are read.
    pub fn conditions(&self) -> Conditions {
        Conditions {
            label: self.label,
            null_label: self.null_label,
            prompts: self.prompts.clone(),
            guidance: self.guidance,
            cache: self.cache.clone(),
            lora: self.lora.clone(),
            ..Conditions::default()
        }
    }
}

/// What only a person knows.
#[derive(Args, Debug, Clone, Serialize)]
pub struct RecordOptions {
    /// The request's number or name.
    #[arg(long, value_name = "ID", default_value = "example")]
    pub request: String,

    /// When the request was received [default: today].
    #[arg(long, value_name = "DATE", default_value_t = today(), hide_default_value = true)]
    pub received: String,

    /// When the unlearning was done [default: today].
    #[arg(long, value_name = "DATE", default_value_t = today(), hide_default_value = true)]
    pub completed: String,

    /// Who tests.
    #[arg(long, value_name = "NAME", default_value = "a tester who is not named")]
    pub tester: String,

    /// Their relation to the model.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "relation to the model not stated"
    )]
    pub relation: String,

    /// The legal basis of the request, in the words of whoever handles it.
    #[arg(long, value_name = "TEXT", value_parser = words())]
    pub legal_basis: Option<String>,

    /// A model from which the tested one was made; may be given several times.
    #[arg(long = "parent", value_name = "NAME", value_parser = words())]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<String>,

    /// A model made from the tested one, such as a LoRA; may be given several times.
    #[arg(long = "descendant", value_name = "NAME", value_parser = words())]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub descendants: Vec<String>,

    /// States that somebody looked for models made from the tested one, and found none.
    #[arg(long, conflicts_with = "descendants")]
    pub no_descendants: bool,

    /// A copy of the model from before or of what was made with it, and what became of it; may be
    /// given several times.
    #[arg(long = "old-copy", num_args = 2, value_names = ["PLACE", "FATE"], value_parser = words())]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub old_copies: Vec<String>,

    /// Puts pictures into the report in which the items can be recognised.
    #[arg(long)]
    pub show_forgotten: bool,
}

impl RecordOptions {
    /// The model that a report is about, with what was stated of it: its name, the number of its
    /// parameters, and where the network before and that after are.
    pub fn model(
        &self,
        name: String,
        parameters: usize,
        [before, after]: [&Path; 2],
    ) -> siss::Result<AuditedModel> {
        let descendants = match (self.no_descendants, self.descendants.is_empty()) {
            (false, true) => None,
            _ => Some(self.descendants.clone()),
        };
        // The parser takes places and fates in pairs.
        let stated = self.old_copies.chunks_exact(2).map(|pair| OldCopy {
            place: pair[0].clone(),
            fate: pair[1].clone(),
        });
        let read = old_model(path_text(before));
        Ok(AuditedModel {
            name,
            parents: self.parents.clone(),
            parameters: parameters as u64,
            before_sha256: Manifest::of(before)?.sha256(),
            after_sha256: Manifest::of(after)?.sha256(),
            descendants,
            old_copies: Some(std::iter::once(read).chain(stated).collect()),
        })
    }
}

/// Texts that are not empty.
fn words() -> NonEmptyStringValueParser {
    NonEmptyStringValueParser::new()
}

impl Options {
    /// Checks what the parser does not.
    ///
    /// # Errors
    /// A message with the option.
    pub fn check(&self) -> Result<(), String> {
        at_least_one(&[
            ("noises", Some(self.noises)),
            ("relearning-steps", Some(self.relearning_steps as usize)),
            ("steps", Some(self.steps)),
        ])?;
        for (option, count) in [("samples", self.samples), ("controls", self.controls)] {
            if count < 2 {
                return Err(format!(
                    "--{option} is {count}; an interval needs at least 2"
                ));
            }
        }
        self.told.conditions().check()?;
        let models = [&self.before, &self.after, &self.retrained];
        let mut models = models.into_iter().flatten().chain(&self.another);
        if self.told.config.is_some() && !models.any(|path| path.is_file()) {
            return Err("--config is for single files, and none of the models is one".into());
        }
        let twins: Vec<_> = self.retrained.iter().chain(&self.another).collect();
        let is_again = |&(place, path): &(usize, &&PathBuf)| twins[..place].contains(path);
        if let Some((_, path)) = twins.iter().enumerate().find(is_again) {
            return Err(format!(
                "--another {}: it is given twice; the spread of retrained models needs different ones",
                path_text(path)
            ));
        }
        if self.after.is_some() && self.before.is_none() && !self.assets.exists() {
            return Err(
                "--after without --before: there is no bundled model; give --before".into(),
            );
        }
        Ok(())
    }
}
