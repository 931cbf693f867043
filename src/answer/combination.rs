//! Which predictors make up a predicted answer, and how much of each.

use serde::{Deserialize, Serialize};

use super::config::check_patches;
use crate::error::{Error, Result, check_range, check_shape};
use crate::files::sha256;
use crate::steering::Levels;

/// The combination of predictors that a [`PredictedAnswer`](super::PredictedAnswer) consists
/// of, without the retained points: what is saved of a fit. Reading it back refuses what is not
/// one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Combination {
    patches: Vec<usize>,
    pieces: bool,
    coefficients: Vec<Vec<f64>>,
    r_squared: Vec<f64>,
    levels: Levels,
    predicted: Vec<Vec<f64>>,
    used: Vec<UsedPoints>,
    groups: Vec<u64>,
    digest: String,
}

/// What the answer at a forgotten point is to be made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Aim {
    /// The predicted loss of a model that never saw the point.
    pub(super) loss: f64,
    /// The model's own loss before the run over that, below 1: how much of its own error is kept.
    pub(super) own: f64,
}

/// The retained points of a group that explain its forgotten points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsedPoints {
    pub(super) group: u64,
    pub(super) rows: Vec<usize>,
}

/// A combination as it comes from a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unchecked {
    /// Widths of the patches; none for points of rank 2.
    pub(super) patches: Vec<usize>,
    /// Whether the model's own answers to pieces take part.
    pub(super) pieces: bool,
    /// By timestep of the grid: of each patch width, of whole points, of pieces.
    pub(super) coefficients: Vec<Vec<f64>>,
    pub(super) r_squared: Vec<f64>,
    /// With the model's own losses and the process that they hold for.
    pub(super) levels: Levels,
    /// The losses that the answers are to have, by forgotten point and timestep of the grid.
    pub(super) predicted: Vec<Vec<f64>>,
    pub(super) used: Vec<UsedPoints>,
    /// The group of each forgotten point.
    pub(super) groups: Vec<u64>,
    /// Of the retained points used.
    pub(super) digest: String,
}

impl TryFrom<Unchecked> for Combination {
    type Error = Error;

    fn try_from(unchecked: Unchecked) -> Result<Self> {
        unchecked.check()?;
        let Unchecked {
            patches,
            pieces,
            coefficients,
            r_squared,
            levels,
            predicted,
            used,
            groups,
            digest,
        } = unchecked;
        Ok(Self {
            patches,
            pieces,
            coefficients,
            r_squared,
            levels,
            predicted,
            used,
            groups,
            digest,
        })
    }
}

impl Unchecked {
    fn check(&self) -> Result<()> {
        check_patches(&self.patches)?;
        let (timesteps, points) = (self.levels.timesteps().len(), self.levels.values().len());
        let remedy = "give one for every timestep of the levels' grid";
        for (what, count) in [
            ("the coefficients", self.coefficients.len()),
            ("R²", self.r_squared.len()),
        ] {
            check_shape(what, &[timesteps], &[count], remedy)?;
        }
        for coefficients in &self.coefficients {
            let (wanted, count) = (predictors(&self.patches, self.pieces), coefficients.len());
            let remedy = "give one for every patch width, for whole points and for pieces";
            check_shape(
                "the coefficients of a timestep",
                &[wanted],
                &[count],
                remedy,
            )?;
            for &coefficient in coefficients {
                check_range("a coefficient", coefficient, true, "a finite number")?;
            }
        }
        let remedy = "give one for every point that has levels";
        for (what, count) in [
            ("the predicted losses", self.predicted.len()),
            ("the model's own losses", self.levels.own_losses().len()),
            ("the groups of the forgotten points", self.groups.len()),
        ] {
            check_shape(what, &[points], &[count], remedy)?;
        }
        Levels::new(self.levels.timesteps().to_vec(), self.predicted.clone())?;
        let is_known = |group: &u64| {
            let mut of_group = self.used.iter().filter(|used| used.group == *group);
            of_group.any(|used| !used.rows.is_empty())
        };
        match self.groups.iter().position(|group| !is_known(group)) {
            None => Ok(()),
            Some(point) => Err(Error::UnexplainedPoint {
                what: "forgotten",
                point,
                group: Some(self.groups[point]),
            }),
        }
    }
}

impl Combination {
    /// The timesteps at which it was fitted, ascending. Between them coefficients are linear in the
    /// timestep, beyond the ends constant.
    pub fn timesteps(&self) -> &[f64] {
        self.levels.timesteps()
    }

    /// Widths of the patches, in elements along each spatial axis; none for points of rank 2.
    pub fn patches(&self) -> &[usize] {
        &self.patches
    }

    /// By timestep, the coefficient of each patch width, then that of whole points, then that of
    /// pieces, if they take part.
    pub fn coefficients(&self) -> &[Vec<f64>] {
        &self.coefficients
    }

    /// By timestep, the share of the power of the model's error on the control points that the
    /// combination explains, at most 1.
    pub fn r_squared(&self) -> &[f64] {
        &self.r_squared
    }

    /// Number of retained points used, of all groups together.
    pub fn retained(&self) -> usize {
        self.used.iter().map(|used| used.rows.len()).sum()
    }

    /// What forgetting was predicted to stop at, and the model's own losses.
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    pub(super) fn used(&self) -> &[UsedPoints] {
        &self.used
    }

    /// Whether the model's own answers to pieces of a point take part.
    pub fn uses_pieces(&self) -> bool {
        self.pieces
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// Of all that decides the answers; the same where the last digit of a number is lost in a
    /// file.
    pub(super) fn fingerprint(&self) -> String {
        let tables = [&self.coefficients, &self.predicted];
        let own = self.levels.own_losses().iter().flatten();
        let numbers = tables.into_iter().flatten().flatten().chain(own);
        let numbers = numbers
            .chain(self.timesteps())
            .map(|number| format!("{number:.9e} "));
        let text: String = numbers.collect();
        let (patches, pieces) = (&self.patches, self.pieces);
        let (used, groups) = (&self.used, &self.groups);
        sha256(format!("{text}{patches:?}{pieces}{used:?}{groups:?}{}", self.digest).as_bytes())
    }

    /// The place in [`used`](Self::used) of a forgotten point's group.
    pub(super) fn group(&self, point: usize) -> usize {
        let group = self.groups[point];
        let mut used = self.used.iter();
        used.position(|used| used.group == group).unwrap_or(0)
    }

    /// Number of forgotten points.
    pub(super) fn points(&self) -> usize {
        self.groups.len()
    }

    /// What the answer is to be made of; `None` where the model answers no better before the run.
    pub(super) fn aim(&self, point: usize, timestep: f64) -> Option<Aim> {
        let (low, high, share) = self.place(timestep);
        let between = |losses: &[f64]| {
            let log = |at: usize| losses[at].max(f64::MIN_POSITIVE).ln();
            (log(low) * (1.0 - share) + log(high) * share).exp()
        };
        let loss = between(&self.predicted[point]);
        let own = between(&self.levels.own_losses()[point]);
        (own < loss).then_some(Aim {
            loss,
            own: own / loss,
        })
    }

    /// The coefficients at a timestep.
    pub(super) fn at(&self, timestep: f64) -> Vec<f64> {
        let (low, high, share) = self.place(timestep);
        let pairs = self.coefficients[low].iter().zip(&self.coefficients[high]);
        pairs
            .map(|(low, high)| low * (1.0 - share) + high * share)
            .collect()
    }

    /// Whether the model's answers to pieces of a point count at a timestep.
    pub(super) fn shows_pieces(&self, timestep: f64) -> bool {
        let last = self.at(timestep).pop();
        self.pieces && last.is_some_and(|of_pieces| of_pieces != 0.0)
    }

    /// The timesteps of the grid around this one, and how far it is from the first to the second.
    fn place(&self, timestep: f64) -> (usize, usize, f64) {
        let grid = self.timesteps();
        let above = grid.partition_point(|&t| t < timestep);
        let (low, high) = (above.saturating_sub(1), above.min(grid.len() - 1));
        let width = grid[high] - grid[low];
        let share = match width > 0.0 {
            true => ((timestep - grid[low]) / width).clamp(0.0, 1.0),
            false => 0.0,
        };
        (low, high, share)
    }
}

/// How many predictors there are: one for each patch width, whole points, and pieces.
pub(super) fn predictors(patches: &[usize], pieces: bool) -> usize {
    patches.len() + 1 + usize::from(pieces)
}
