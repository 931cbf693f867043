//! Conditions that are dropped at random, as in training for classifier-free guidance.

use rand::RngExt;

use super::side::Side;
use crate::denoiser::Condition;
use crate::draws::{Stream, keyed_rng};
use crate::error::{Result, check_probability};

/// What takes the place of a condition, and how often.
#[derive(Debug, Clone)]
pub(super) struct Dropping<C> {
    probability: f64,
    /// One row.
    none: C,
}

impl<C: Condition> Dropping<C> {
    /// # Errors
    /// Those of [`PairSampler::dropping`](crate::PairSampler::dropping); `like`: a row of the
    /// conditions that are dropped.
    pub(super) fn new(probability: f64, none: C, like: C) -> Result<Self> {
        check_probability("the probability of dropping a condition", probability)?;
        none.check_rows("the condition that stands for none", 1)?;
        like.extended_by(none.clone())?;
        Ok(Self { probability, none })
    }

    /// The `count` conditions of a side, except those that are dropped in this step.
    pub(super) fn apply(
        &self,
        own: C,
        count: usize,
        side: Side,
        [seed, step]: [u64; 2],
    ) -> Result<C> {
        let stream = match side {
            Side::Retain => Stream::Own("dropped retain conditions"),
            Side::Forget => Stream::Own("dropped forget conditions"),
        };
        let is_dropped = |row: usize| {
            let mut rng = keyed_rng(seed, step, row as u64, stream);
            rng.random::<f64>() < self.probability
        };
        // The row after those of the batch stands for none.
        let chosen = (0..count).map(|row| if is_dropped(row) { count } else { row });
        let chosen: Vec<usize> = chosen.collect();
        let none = self.none.clone();
        Ok(own.extended_by(none)?.take_rows(&chosen))
    }

    /// Passes what determines the conditions that are dropped to `update`.
    pub(super) fn digest(&self, update: &mut dyn FnMut(&[u8])) -> Result<()> {
        update(&self.probability.to_le_bytes());
        self.none.digest(update)
    }
}
