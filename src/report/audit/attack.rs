//! The tests of a report and their numbers.

use serde::{Deserialize, Serialize};

use super::digits;
use crate::error::Result;
use crate::statistics::binomial_interval;

/// What a test tries, in the terms of NIST AI 100-2 where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Attack {
    /// Telling whether the item was in the training data.
    MembershipInference,
    /// Getting the item out of the model.
    DataReconstruction,
    /// Comparing with a model that never saw the item.
    ClosenessToRetrained,
    /// Fine-tuning until the model knows the item again.
    Relearning,
    /// Using the model from before together with the one from after.
    PairAttack,
}

impl Attack {
    /// All kinds. Each is tested in a report, or listed as not tested.
    pub const ALL: [Self; 5] = [
        Self::MembershipInference,
        Self::DataReconstruction,
        Self::ClosenessToRetrained,
        Self::Relearning,
        Self::PairAttack,
    ];

    /// The name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Attack::MembershipInference => "membership inference",
            Attack::DataReconstruction => "data reconstruction",
            Attack::ClosenessToRetrained => "closeness to a retrained model",
            Attack::Relearning => "relearning",
            Attack::PairAttack => "the pair of old and new model",
        }
    }
}

/// What a test found. None of them says that the item is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The test finds the item.
    Trace,
    /// The item stands out in the other direction: the model avoids it.
    Overdone,
    /// The test finds nothing.
    NoTrace,
    /// The sample is too small, or the test does not fit.
    Undecided,
}

impl Verdict {
    /// The verdict in words.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Trace => "Trace found",
            Verdict::Overdone => "Stands out: forgotten too hard",
            Verdict::NoTrace => "No trace found",
            Verdict::Undecided => "Undecided",
        }
    }
}

/// A test with its numbers and its verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditTest {
    /// What it tries.
    pub attack: Attack,
    /// What is measured, with every choice that changes the number.
    pub signal: String,
    /// The question that it answers, in plain words.
    pub question: String,
    /// How to read its numbers.
    pub reading: String,
    /// The timesteps at which the model is asked, if it is asked at some.
    #[serde(default)]
    pub timesteps: Vec<u64>,
    /// Whether they were fixed before any score was seen.
    pub fixed_in_advance: bool,
    /// Number of subject items tested.
    pub targets: usize,
    /// Number of points that no model saw, to compare with; 0 without.
    pub controls: usize,
    /// The numbers; the first is the one in the summary.
    pub figures: Vec<Figure>,
    /// What was found.
    pub verdict: Verdict,
    /// Why, with the numbers.
    pub explanation: String,
}

/// One quantity, of several models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// Of the model before unlearning.
    #[serde(default)]
    pub before: Option<Measured>,
    /// Of the model after unlearning.
    pub after: Measured,
    /// Of a model that never saw the item.
    #[serde(default)]
    pub retrained: Option<Measured>,
    /// Of another such model: how far two retrained models are apart, the noise floor.
    #[serde(default)]
    pub floor: Option<Measured>,
}

impl Figure {
    /// A quantity of the unlearned model.
    pub fn new(name: impl Into<String>, unit: Unit, after: Measured) -> Self {
        Self {
            name: name.into(),
            unit,
            before: None,
            after,
            retrained: None,
            floor: None,
        }
    }

    /// The same of the model before.
    pub fn before(mut self, measured: Measured) -> Self {
        self.before = Some(measured);
        self
    }

    /// The same of a retrained model.
    pub fn retrained(mut self, measured: Option<Measured>) -> Self {
        self.retrained = measured;
        self
    }

    /// The same of another retrained model.
    pub fn floor(mut self, measured: Option<Measured>) -> Self {
        self.floor = measured;
        self
    }

    /// All numbers, with the name of each model's field.
    pub(super) fn numbers(&self) -> impl Iterator<Item = (&'static str, &Measured)> {
        let others = [
            ("before", &self.before),
            ("retrained", &self.retrained),
            ("floor", &self.floor),
        ];
        let others = others
            .into_iter()
            .filter_map(|(name, it)| Some((name, it.as_ref()?)));
        std::iter::once(("after", &self.after)).chain(others)
    }
}

/// The unit of a quantity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share from 0 to 1, shown in percent.
    Share,
    /// Any other, by name; empty for a plain number.
    Named(String),
}

impl Unit {
    /// A unit by name.
    pub fn named(name: impl Into<String>) -> Self {
        Self::Named(name.into())
    }
}

/// A measured number with its sample size and how certain it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The number.
    #[serde(serialize_with = "digits::number")]
    pub value: f64,
    /// The ends of its 95 % interval.
    #[serde(default, serialize_with = "digits::interval")]
    pub interval: Option<[f64; 2]>,
    /// Sizes of the samples it comes from: points, generated samples or runs.
    pub samples: Vec<usize>,
    /// The p-value of a test, if the number is its statistic.
    #[serde(default, serialize_with = "digits::optional")]
    pub p_value: Option<f64>,
    /// What a reader must know of this number, such as why it has no interval.
    #[serde(default)]
    pub note: Option<String>,
}

impl Measured {
    /// A number with its 95 % interval.
    pub fn new(value: f64, interval: [f64; 2], samples: impl Into<Vec<usize>>) -> Self {
        Self {
            value,
            interval: Some(interval),
            samples: samples.into(),
            p_value: None,
            note: None,
        }
    }

    /// A number without an interval, and why it has none.
    pub fn noted(value: f64, samples: impl Into<Vec<usize>>, note: impl Into<String>) -> Self {
        Self {
            value,
            interval: None,
            samples: samples.into(),
            p_value: None,
            note: Some(note.into()),
        }
    }

    /// A share of trials, with the exact interval of Clopper and Pearson.
    ///
    /// # Errors
    /// Those of [`binomial_interval`](super::super::binomial_interval).
    pub fn share(successes: usize, trials: usize) -> Result<Self> {
        let (low, high) = binomial_interval(successes as u64, trials as u64, 0.95)?;
        let value = successes as f64 / trials as f64;
        Ok(Self::new(value, [low, high], [trials]))
    }

    /// The same with a note.
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

#[cfg(feature = "metrics")]
impl From<&crate::metrics::Estimate> for Measured {
    fn from(estimate: &crate::metrics::Estimate) -> Self {
        let interval = [estimate.low, estimate.high];
        Self::new(estimate.value, interval, estimate.samples.clone())
    }
}
