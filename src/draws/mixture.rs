//! Samplers that decide which side of the mixture each row is drawn from.

use std::fmt::Debug;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use crate::error::{Result, check_probability};

/// Chooses which rows of a batch draw their noisy point from the forgotten point.
///
/// In each step every row must be chosen with probability `λ`, whatever the joint distribution of
/// the rows: this keeps the estimators unbiased.
pub trait MixtureSampler: Send + Debug {
    /// `λ`, the probability with which a row is drawn from the forgotten point.
    fn forget_prob(&self) -> f64;

    /// For each of `batch_size` rows, whether it is drawn from the forgotten point.
    fn choose_forget(&self, batch_size: usize, rng: &mut dyn Rng) -> Vec<bool>;

    /// Name and settings as text. A resumed run must have the same.
    fn settings(&self) -> String;
}

impl MixtureSampler for Box<dyn MixtureSampler> {
    fn forget_prob(&self) -> f64 {
        self.as_ref().forget_prob()
    }

    fn choose_forget(&self, batch_size: usize, rng: &mut dyn Rng) -> Vec<bool> {
        self.as_ref().choose_forget(batch_size, rng)
    }

    fn settings(&self) -> String {
        self.as_ref().settings()
    }
}

/// An independent coin flip for each row, as in the paper and its code.
#[doc(alias = "lambda")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoinFlip {
    forget_prob: f64,
}

impl CoinFlip {
    /// Creates coins that choose the forgotten side with probability `forget_prob` (`λ`).
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `0 ≤ λ ≤ 1`.
    pub fn new(forget_prob: f64) -> Result<Self> {
        check_probability("forget_prob", forget_prob)?;
        Ok(Self { forget_prob })
    }
}

impl MixtureSampler for CoinFlip {
    fn forget_prob(&self) -> f64 {
        self.forget_prob
    }

    fn choose_forget(&self, batch_size: usize, rng: &mut dyn Rng) -> Vec<bool> {
        (0..batch_size)
            .map(|_| rng.random::<f64>() < self.forget_prob)
            .collect()
    }

    fn settings(&self) -> String {
        format!("CoinFlip, forget_prob {}", self.forget_prob)
    }
}

/// Exactly `λ·B` of the rows, at random places.
///
/// If `λ·B` is not a whole number, it is rounded up with a probability equal to its fraction,
/// otherwise down. This has less variance than coin flips, and the sizes of the two sides hardly
/// change.
#[doc(alias = "lambda")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FixedAllocation {
    forget_prob: f64,
}

impl FixedAllocation {
    /// Allocates a share `forget_prob` (`λ`) of each batch to the forgotten side.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `0 ≤ λ ≤ 1`.
    pub fn new(forget_prob: f64) -> Result<Self> {
        check_probability("forget_prob", forget_prob)?;
        Ok(Self { forget_prob })
    }
}

impl MixtureSampler for FixedAllocation {
    fn forget_prob(&self) -> f64 {
        self.forget_prob
    }

    fn choose_forget(&self, batch_size: usize, rng: &mut dyn Rng) -> Vec<bool> {
        let expected = self.forget_prob * batch_size as f64;
        let rounded_up = rng.random::<f64>() < expected.fract();
        let count = expected.floor() as usize + usize::from(rounded_up);
        let mut chosen: Vec<bool> = (0..batch_size).map(|row| row < count).collect();
        chosen.shuffle(rng);
        chosen
    }

    fn settings(&self) -> String {
        format!("FixedAllocation, forget_prob {}", self.forget_prob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, keyed_rng};

    #[test]
    fn fixed_allocation_takes_lambda_b_rows_and_rounds_fairly() {
        let half = FixedAllocation::new(0.5).unwrap();
        let third = FixedAllocation::new(0.3).unwrap();
        let mut total = 0;
        let mut first_row = 0;
        let steps = 10_000;
        for step in 0..steps {
            let mut rng = keyed_rng(1, step, 0, Stream::Mixture);
            assert_eq!(
                half.choose_forget(8, &mut rng)
                    .iter()
                    .filter(|&&from| from)
                    .count(),
                4
            );
            let chosen = third.choose_forget(8, &mut rng);
            let count = chosen.iter().filter(|&&from| from).count();
            assert!(count == 2 || count == 3);
            total += count;
            first_row += usize::from(chosen[0]);
        }
        // 2.4 rows per step, each row with probability 0.3.
        assert!((total as f64 / steps as f64 - 2.4).abs() < 4.0 * 0.49 / 100.0);
        assert!((first_row as f64 / steps as f64 - 0.3).abs() < 4.0 * 0.4583 / 100.0);
    }

    #[test]
    fn coins_fall_with_probability_lambda_and_the_ends_are_sure() {
        let mut rng = keyed_rng(1, 0, 0, Stream::Mixture);
        let count = |lambda: f64, rng: &mut dyn Rng| {
            CoinFlip::new(lambda)
                .unwrap()
                .choose_forget(20_000, rng)
                .iter()
                .filter(|&&from| from)
                .count()
        };
        assert!((count(0.2, &mut rng) as f64 / 20_000.0 - 0.2).abs() < 4.0 * 0.4 / 141.4);
        assert_eq!(count(0.0, &mut rng), 0);
        assert_eq!(count(1.0, &mut rng), 20_000);
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(CoinFlip::new(bad).is_err() && FixedAllocation::new(bad).is_err());
        }
    }
}
