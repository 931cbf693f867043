//! The parts of a report, apart from its tests.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::attack::{Attack, Verdict};
use super::digits;
use crate::error::Result;
use crate::report::ImageGrid;

/// What was asked for, by whom it was received and done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Its number or name where it was received.
    pub id: String,
    /// When it was received, as ISO 8601 has it.
    pub received: String,
    /// When the unlearning was done.
    pub completed: String,
    /// On what grounds, in the words of whoever handles it. Not advice on law.
    #[serde(default)]
    pub legal_basis: Option<String>,
}

/// An item that was to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// A name that gives nothing away, such as `item 1`.
    pub name: String,
    /// SHA-256 of its file, 64 hexadecimal digits.
    pub sha256: String,
}

/// Who tested.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tester {
    /// A person or an organisation.
    pub name: String,
    /// Their relation to the model: its operator, or independent of the operator.
    pub relation: String,
    /// When they tested, as ISO 8601 has it.
    pub tested: String,
}

/// Somebody who might want the item back, and whether a test stands for them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threat {
    /// What they have: samples, weights, the model from before, the data.
    pub attacker: String,
    /// Whether a test of the report stands for them.
    pub is_tested: bool,
}

/// The model before and after.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedModel {
    /// Name or address of the model.
    pub name: String,
    /// Models from which it was made.
    #[serde(default)]
    pub parents: Vec<String>,
    /// Number of parameters.
    pub parameters: u64,
    /// [`Manifest::sha256`](super::Manifest::sha256) of the folder before unlearning, or the
    /// SHA-256 of its file of weights.
    pub before_sha256: String,
    /// The same after unlearning.
    pub after_sha256: String,
    /// Models made from it: fine-tuned, distilled, low-rank changes. `None` if nobody looked.
    #[serde(default)]
    pub descendants: Option<Vec<String>>,
    /// Copies of the old model and of what was made with it. `None` if nobody looked.
    #[serde(default)]
    pub old_copies: Option<Vec<OldCopy>>,
}

/// Something that still holds the item, or held it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldCopy {
    /// What and where it is.
    pub place: String,
    /// What became of it: removed, kept and why.
    pub fate: String,
}

/// The data of the run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedData {
    /// What the data are.
    pub description: String,
    /// [`Manifest::sha256`](super::Manifest::sha256) of the retained data.
    pub retain_manifest_sha256: String,
    /// Number of retained points.
    pub retained: u64,
    /// Number of points that no model saw, to compare with.
    pub controls: u64,
}

/// How the model was unlearned and tested, so that it can be done again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedRun {
    /// The command that made the report.
    pub command: String,
    /// All settings.
    pub configuration: BTreeMap<String, String>,
    /// Seed of the run.
    pub seed: u64,
    /// Versions of the programs, by name.
    pub versions: BTreeMap<String, String>,
    /// Where it ran.
    pub device: String,
    /// Seconds that the tests were announced to take, before they began.
    #[serde(default, serialize_with = "digits::optional")]
    pub announced_seconds: Option<f64>,
    /// Seconds that they took.
    #[serde(default, serialize_with = "digits::optional")]
    pub seconds: Option<f64>,
}

/// The item with the strongest trace: an average hides it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorstCase {
    /// SHA-256 of the item.
    pub sha256: String,
    /// Why it is the worst, with its numbers.
    pub finding: String,
}

/// An attack or a question that the report leaves open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotTested {
    /// The kind of attack, if it is one that every report must mention.
    #[serde(default)]
    pub attack: Option<Attack>,
    /// What was not tested.
    pub what: String,
    /// Why.
    pub why: String,
}

/// An item of an earlier request, tested again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recheck {
    /// The earlier request.
    pub request: String,
    /// SHA-256 of the item.
    pub sha256: String,
    /// What was found now.
    pub verdict: Verdict,
    /// The numbers behind it.
    pub finding: String,
}

/// A chart with one or more lines.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Name and unit of the x axis.
    pub x_label: String,
    /// Name and unit of the y axis.
    pub y_label: String,
    /// Whether the y axis is logarithmic.
    #[serde(default)]
    pub log_y: bool,
    /// The lines, each with its name.
    pub lines: Vec<Line>,
}

/// A line of a chart.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Pairs of x and y.
    #[serde(serialize_with = "digits::points")]
    pub points: Vec<(f64, f64)>,
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// What it shows.
    pub caption: String,
    /// A PNG file in base64.
    pub png: String,
    /// Whether a subject item can be seen in it.
    pub shows_subject: bool,
}

impl Picture {
    /// A grid of pictures.
    ///
    /// # Errors
    /// Those of [`ImageGrid::to_png`].
    pub fn new(grid: &ImageGrid, caption: impl Into<String>, shows_subject: bool) -> Result<Self> {
        Ok(Self {
            caption: caption.into(),
            png: BASE64_STANDARD.encode(grid.to_png()?),
            shows_subject,
        })
    }
}
