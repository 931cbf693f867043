//! How well a score tells members from non-members.

use serde::{Deserialize, Serialize};

use super::estimate::{Estimate, check_finite_numbers, normal_quantile};
use crate::error::{Error, Result, check_range};

/// The receiver operating characteristic of a score that is high for members.
///
/// One rule finds every operating point: of all thresholds whose false positive rate is at most
/// `x`, the one with the most true positives. A score counts as a member's from the threshold on.
///
/// # Example
/// ```
/// use siss::metrics::Roc;
///
/// let controls: Vec<f64> = (0..100).map(f64::from).collect();
/// let roc = Roc::new(&[98.5, 99.5, 50.0, 10.0], &controls)?;
/// let point = roc.at_false_positive_rate(0.01)?;
/// assert_eq!((point.true_positives.value, point.false_positives.value), (0.5, 0.01));
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Roc {
    /// Sorted, highest first.
    members: Vec<f64>,
    /// Sorted, highest first.
    controls: Vec<f64>,
}

/// A threshold with the rates of both kinds of positives, each with its exact interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OperatingPoint {
    /// The lowest score that counts as a member's; infinite if no score does.
    pub threshold: f64,
    /// Share of members from the threshold on.
    pub true_positives: Estimate,
    /// Share of non-members from the threshold on.
    pub false_positives: Estimate,
}

impl Roc {
    /// From the scores of members and of controls that are no members.
    ///
    /// # Errors
    /// [`Error::Empty`] without members or controls; [`Error::NonFiniteNumber`].
    pub fn new(members: &[f64], controls: &[f64]) -> Result<Self> {
        Ok(Self {
            members: sorted("the members' scores", members)?,
            controls: sorted("the controls' scores", controls)?,
        })
    }

    /// The area under the curve: the probability that a member scores higher than a control, where
    /// ties count by half.
    ///
    /// The interval is that of Newcombe (method 5): the areas `θ` whose distance from the estimate
    /// is at most 1.96 standard errors at `θ`, by the formula of Hanley and McNeil with
    /// the mean of the two sample sizes. It stays within `[0, 1]`, and has a width even if the
    /// samples do not overlap.
    ///
    /// # Reference
    /// Newcombe 2006, *Confidence intervals for an effect size measure based on the Mann–Whitney
    /// statistic. Part 2*.
    pub fn area(&self) -> Estimate {
        let [members, controls] = [&self.members, &self.controls].map(|it| it.len() as f64);
        let wins: f64 = self.members.iter().map(|&score| self.wins(score)).sum();
        let area = wins / (members * controls);
        let half = (members + controls) / 2.0 - 1.0;
        let variance = |theta: f64| {
            let pairs = (1.0 - theta) / (2.0 - theta) + theta / (1.0 + theta);
            theta * (1.0 - theta) * (1.0 + half * pairs) / (members * controls)
        };
        let is_covered =
            |theta: f64| (theta - area).powi(2) <= normal_quantile().powi(2) * variance(theta);
        let ends = (
            boundary(area, 0.0, is_covered),
            boundary(area, 1.0, is_covered),
        );
        let samples = vec![self.members.len(), self.controls.len()];
        Estimate::within("area under the ROC curve", area, ends, samples)
    }

    /// Controls that a score beats; ties count by half.
    fn wins(&self, score: f64) -> f64 {
        let above = self.controls.partition_point(|&control| control > score);
        let not_below = self.controls.partition_point(|&control| control >= score);
        (self.controls.len() - not_below) as f64 + 0.5 * (not_below - above) as f64
    }

    /// The most true positives of a threshold whose false positive rate is at most `rate`, with
    /// exact intervals for both rates.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `rate` is above 1, or below `1 / n` for `n` controls: so small a
    /// rate cannot be told from 0 with so few controls.
    pub fn at_false_positive_rate(&self, rate: f64) -> Result<OperatingPoint> {
        let count = self.controls.len();
        // The product is rounded: 0.07 · 100 is above 7 by a rounding error, 0.29 · 100 below 29.
        let allowed = (rate * count as f64 * (1.0 + 1e-12)).floor();
        let requirement = "at least 1 / n for n controls, and at most 1";
        let legal = allowed >= 1.0 && rate <= 1.0;
        check_range("the false positive rate", rate, legal, requirement)?;
        let beaten = self.controls.get(allowed as usize);
        let counted = |score: &f64| beaten.is_none_or(|beaten| score > beaten);
        let found = self.members.partition_point(counted);
        let threshold = found
            .checked_sub(1)
            .map_or(f64::INFINITY, |last| self.members[last]);
        let wrong = self
            .controls
            .partition_point(|&control| control >= threshold);
        Ok(OperatingPoint {
            threshold,
            true_positives: Estimate::share(
                format!("true positive rate at a false positive rate of at most {rate}"),
                found,
                self.members.len(),
            )?,
            false_positives: Estimate::share("false positive rate", wrong, count)?,
        })
    }
}

/// The last point from `inside` towards `outside` at which a condition holds.
fn boundary(inside: f64, outside: f64, holds: impl Fn(f64) -> bool) -> f64 {
    if holds(outside) && inside != outside {
        return outside;
    }
    let (mut inside, mut outside) = (inside, outside);
    // Beyond 64 halvings the two are neighbouring numbers.
    for _ in 0..64 {
        let middle = 0.5 * (inside + outside);
        match holds(middle) {
            true => inside = middle,
            false => outside = middle,
        }
    }
    inside
}

/// Checks scores and sorts them, highest first.
fn sorted(what: &'static str, scores: &[f64]) -> Result<Vec<f64>> {
    if scores.is_empty() {
        let remedy = "give at least one score of each kind";
        return Err(Error::Empty { what, remedy });
    }
    check_finite_numbers(what, scores)?;
    let mut scores = scores.to_vec();
    scores.sort_by(|a, b| b.total_cmp(a));
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, keyed_rng};
    use proptest::prelude::*;
    use rand::RngExt;
    use rand_distr::StandardNormal;
    use statrs::distribution::{ContinuousCDF, Normal};

    #[test]
    fn equal_scores_tell_nothing_and_separate_scores_everything() {
        let same = Roc::new(&[1.0; 20], &[1.0; 30]).unwrap();
        assert_eq!(same.area().value, 0.5);
        let point = same.at_false_positive_rate(0.5).unwrap();
        assert_eq!(
            (point.threshold, point.true_positives.value),
            (f64::INFINITY, 0.0)
        );
        let point = same.at_false_positive_rate(1.0).unwrap();
        assert_eq!(
            (point.true_positives.value, point.false_positives.value),
            (1.0, 1.0)
        );
        let apart = Roc::new(&[2.0; 20], &[1.0; 30]).unwrap().area();
        assert_eq!((apart.value, apart.high), (1.0, 1.0));
        assert!(0.8 < apart.low && apart.low < 0.99, "{apart}");
    }

    #[test]
    fn rates_that_the_controls_cannot_show_are_refused() {
        let controls: Vec<f64> = (0..100).map(f64::from).collect();
        let roc = Roc::new(&[1.0], &controls).unwrap();
        for rate in [0.009, 0.0, -1.0, 1.1, f64::NAN] {
            let error = roc.at_false_positive_rate(rate);
            assert!(matches!(error, Err(Error::OutOfRange { .. })), "{rate}");
        }
        // Both are whole numbers of controls, and one of the products is rounded down.
        for (rate, threshold) in [(0.07, 93.0), (0.29, 71.0)] {
            let all = Roc::new(&controls, &controls).unwrap();
            let point = all.at_false_positive_rate(rate).unwrap();
            assert_eq!(
                (point.threshold, point.false_positives.value),
                (threshold, rate)
            );
        }
        assert!(matches!(Roc::new(&[], &[1.0]), Err(Error::Empty { .. })));
        let error = Roc::new(&[f64::NAN], &[1.0]);
        assert!(matches!(error, Err(Error::NonFiniteNumber { .. })));
    }

    /// Normal scores that are a standard deviation apart have the area `Φ(1 / √2)`.
    #[test]
    fn intervals_of_the_area_cover_it() {
        const RUNS: u64 = 400;
        let truth = Normal::standard().cdf(0.5_f64.sqrt());
        let covers = |run: &u64| {
            let mut rng = keyed_rng(5, 0, *run, Stream::Evaluation);
            let mut draw = |count, mean: f64| -> Vec<f64> {
                let numbers = (0..count).map(|_| rng.sample::<f64, _>(StandardNormal) + mean);
                numbers.collect()
            };
            let area = Roc::new(&draw(15, 1.0), &draw(40, 0.0)).unwrap().area();
            area.low <= truth && truth <= area.high
        };
        let covered = (0..RUNS).filter(covers).count() as f64 / RUNS as f64;
        // Five standard errors of a coverage of 95 %.
        let error = (0.95 * 0.05 / RUNS as f64).sqrt();
        assert!(covered > 0.95 - 5.0 * error, "{covered}");
    }

    proptest! {
        #[test]
        fn points_keep_their_rate_and_beat_every_other_threshold(
            members in prop::collection::vec(0_u8..20, 1..30),
            controls in prop::collection::vec(0_u8..20, 1..30), rate in 0.01_f64..=1.0,
        ) {
            let float = |scores: &[u8]| scores.iter().map(|&it| f64::from(it)).collect::<Vec<_>>();
            let (members, controls) = (float(&members), float(&controls));
            prop_assume!(rate * controls.len() as f64 >= 1.0);
            let roc = Roc::new(&members, &controls).unwrap();
            let point = roc.at_false_positive_rate(rate).unwrap();
            let share = |scores: &[f64], threshold: f64| {
                let from = scores.iter().filter(|&&score| score >= threshold).count();
                from as f64 / scores.len() as f64
            };
            prop_assert!(point.false_positives.value <= rate);
            prop_assert_eq!(point.true_positives.value, share(&members, point.threshold));
            for threshold in 0..21 {
                let threshold = f64::from(threshold);
                if share(&controls, threshold) <= rate {
                    prop_assert!(share(&members, threshold) <= point.true_positives.value);
                }
            }
        }
    }
}
