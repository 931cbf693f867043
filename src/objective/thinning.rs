//! Unbiased thinning: rows with small weights are run only in some of the steps.

/// A row below this share of the largest weight makes no difference in `f32`.
const NEGLIGIBLE: f64 = 1e-6;

/// The rows that are run, and their new weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Survivors {
    /// Positions in the list of weights, increasing.
    pub positions: Vec<usize>,
    /// Signed weight of each row.
    pub weights: Vec<f64>,
}

/// Thins a list of signed weights without changing its expectation.
///
/// A row with `|w| < τ` survives with probability `|w|/τ` and then has weight `τ` (with its sign);
/// heavier rows are unchanged. Survivors are chosen by systematic resampling, with one uniform
/// number for all rows: row `i` survives if the running sum of the survival probabilities, shifted
/// by `uniform`, passes a whole number. The number of survivors is within one of its expectation.
///
/// `τ = 0` is exact: all rows stay, except those lighter than 1e-6 of the heaviest. A weight that
/// is not finite survives unchanged, and the check of the step finds it.
///
/// - `thin_below`: `τ ≥ 0`; `uniform`: in `[0, 1]`
///
/// # Example
/// ```
/// let kept = siss::objective::survivors(&[2.0, -0.25, 0.0, -0.25], 1.0, 0.6);
/// assert_eq!((kept.positions, kept.weights), (vec![0, 3], vec![2.0, -1.0]));
/// ```
pub fn survivors(weights: &[f64], thin_below: f64, uniform: f64) -> Survivors {
    let heaviest = weights
        .iter()
        .fold(0.0, |max: f64, weight| max.max(weight.abs()));
    let mut kept = Survivors {
        positions: Vec::new(),
        weights: Vec::new(),
    };
    let mut running = uniform;
    for (position, &weight) in weights.iter().enumerate() {
        let size = weight.abs();
        let survives_as = if size < thin_below {
            let before = running.floor();
            running += size / thin_below;
            (running.floor() > before).then_some(thin_below.copysign(weight))
        } else if size == 0.0 || size < NEGLIGIBLE * heaviest {
            None
        } else {
            Some(weight)
        };
        if let Some(weight) = survives_as {
            kept.positions.push(position);
            kept.weights.push(weight);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, keyed_rng};
    use crate::objective::importance_weights;
    use proptest::prelude::*;
    use rand::RngExt;

    proptest! {
        #[test]
        fn the_number_of_survivors_is_within_one_of_its_expectation(
            weights in prop::collection::vec(-3.0..3.0f64, 1..40), threshold in 0.01..4.0f64, uniform in 0.0..1.0f64,
        ) {
            let kept = survivors(&weights, threshold, uniform);
            let expected: f64 = weights.iter().map(|weight| (weight.abs() / threshold).min(1.0)).sum();
            prop_assert!((kept.positions.len() as f64 - expected).abs() <= 1.0 + 1e-9);
            for (&position, &weight) in kept.positions.iter().zip(&kept.weights) {
                prop_assert!(weight.abs() >= threshold && weight.signum() == weights[position].signum());
            }
        }
    }

    #[test]
    fn each_rows_expected_weight_is_its_weight() {
        let weights = [0.0, 0.05, -0.3, 0.9, -1.0, 1.7, 0.5];
        for threshold in [0.5, 1.0, 2.0] {
            let mut sums = [0.0; 7];
            let draws = 20_000;
            for draw in 0..draws {
                let uniform = keyed_rng(3, draw, 0, Stream::Thinning).random();
                let kept = survivors(&weights, threshold, uniform);
                for (&position, weight) in kept.positions.iter().zip(kept.weights) {
                    sums[position] += weight;
                }
            }
            for (sum, weight) in sums.iter().zip(weights) {
                let probability = (f64::abs(weight) / threshold).min(1.0);
                let error = threshold * (probability * (1.0 - probability) / draws as f64).sqrt();
                assert!(
                    (sum / draws as f64 - weight).abs() <= 4.0 * error + 1e-12,
                    "{threshold} {weight}"
                );
            }
        }
    }

    #[test]
    fn zero_is_exact_and_leaves_out_what_does_not_count() {
        let kept = survivors(&[1.0, 0.0, -1e-3, 1e-9], 0.0, 0.5);
        assert_eq!(
            (kept.positions, kept.weights),
            (vec![0, 2], vec![1.0, -1e-3])
        );
        // Negligible is relative to the heaviest row: a term that has only small weights is kept.
        assert_eq!(survivors(&[1e-9, -2e-9], 0.0, 0.5).positions, [0, 1]);
        // The heaviest row may have either sign.
        assert_eq!(survivors(&[-1.0, 1e-9], 0.0, 0.5).positions, [0]);
        assert!(survivors(&[], 0.0, 0.5).positions.is_empty());
    }

    /// At `τ = 1/λ` with λ = ½ each row has exactly one term: SISS becomes the Bernoulli objective.
    #[test]
    fn complementary_uniforms_give_each_row_to_one_term() {
        for draw in 0..2_000 {
            let mut rng = keyed_rng(5, draw, 0, Stream::Thinning);
            let weights: Vec<_> = (0..16)
                .map(|_| importance_weights(rng.random_range(-8.0..8.0), 0.5))
                .collect();
            let uniform: f64 = rng.random();
            let retain: Vec<f64> = weights.iter().map(|weight| weight.retain).collect();
            let forget: Vec<f64> = weights.iter().map(|weight| -weight.forget).collect();
            let mut rows = survivors(&retain, 2.0, uniform).positions;
            rows.extend(survivors(&forget, 2.0, 1.0 - uniform).positions);
            rows.sort_unstable();
            assert_eq!(rows, (0..16).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_weight_that_is_no_number_is_kept_for_the_check() {
        assert_eq!(survivors(&[f64::NAN, 0.5], 1.0, 0.9).positions, [0, 1]);
    }
}
