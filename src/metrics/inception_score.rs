//! The inception score.

use serde::{Deserialize, Serialize};

use super::estimate::{Estimate, check_samples, mean_and_deviation};
use super::features::Features;
use crate::error::{Result, check_range};

/// The inception score of samples: how sure a classifier is of each, and how evenly it spreads them
/// over the classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InceptionScore {
    /// Mean of the scores of the splits, with Student's interval over the splits.
    pub mean: Estimate,
    /// Standard deviation of the scores of the splits, with the divisor `n − 1`.
    pub deviation: f64,
    /// The score of each split.
    pub splits: Vec<f64>,
}

/// The inception score `exp mean KL(p(y|x) ‖ p(y))` of each split of the samples, from the logits of
/// a classifier.
///
/// The samples are divided in their order into splits of `⌈n / splits⌉`, of which the last may be
/// short; shuffle samples that are sorted. A score is between 1 and the number of classes, and it
/// is biased: compare splits of equal size.
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two samples or splits, or splits
/// that are too many to hold a sample each.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::metrics::{Features, inception_score};
///
/// // Sure of each sample, and each of the two classes as often.
/// let logits = Tensor::<2>::from_data([[90.0, 0.0], [0.0, 90.0]], &Device::flex());
/// let logits = Features::of("logits", logits.repeat_dim(0, 10))?;
/// assert!((inception_score(&logits, 5)?.mean.value - 2.0).abs() < 1e-9);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Salimans et al. 2016, *Improved Techniques for Training GANs*, Section 4.
pub fn inception_score(logits: &Features, splits: usize) -> Result<InceptionScore> {
    let count = logits.len();
    check_samples(count)?;
    let size = count.div_ceil(splits.max(1));
    let legal = splits >= 2 && count.div_ceil(size) >= 2 && splits <= count;
    let requirement = "from 2 to the number of samples";
    check_range("splits", splits as f64, legal, requirement)?;
    let scores = (0..count).step_by(size).map(|first| {
        let rows = first..count.min(first + size);
        score(rows.map(|row| probabilities(logits.row(row))).collect())
    });
    let splits: Vec<f64> = scores.collect();
    let name = format!("inception score ({})", logits.made_by());
    let mut mean = Estimate::mean(name, &splits)?;
    mean.samples = vec![count];
    let deviation = mean_and_deviation(&splits).1;
    Ok(InceptionScore {
        mean,
        deviation,
        splits,
    })
}

/// `exp mean_x Σ_y p(y|x) (ln p(y|x) − ln p(y))`.
fn score(rows: Vec<Vec<f64>>) -> f64 {
    let count = rows.len() as f64;
    let mean = |class: usize| rows.iter().map(|row| row[class]).sum::<f64>() / count;
    let marginal: Vec<f64> = (0..rows[0].len()).map(mean).collect();
    let divergence = |row: &Vec<f64>| -> f64 {
        let pairs = row.iter().zip(&marginal).filter(|(p, _)| **p > 0.0);
        pairs.map(|(p, q)| p * (p.ln() - q.ln())).sum()
    };
    (rows.iter().map(divergence).sum::<f64>() / count).exp()
}

/// The softmax of logits.
fn probabilities(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits
        .iter()
        .map(|&it| (f64::from(it) - f64::from(largest)).exp());
    let powers: Vec<f64> = powers.collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;
    use crate::error::Error;
    use burn::tensor::{Device, Tensor};

    #[test]
    fn a_classifier_that_knows_nothing_gives_one_and_a_perfect_one_the_classes() {
        let nothing = features(normal(1, 40, 10) * 0.0);
        let found = inception_score(&nothing, 4).unwrap();
        assert!((found.mean.value - 1.0).abs() < 1e-12 && found.deviation < 1e-12);
        let perfect = Tensor::<2>::eye(10, &Device::flex()) * 1e3;
        let found = inception_score(&features(perfect.repeat_dim(0, 4)), 4).unwrap();
        assert!((found.mean.value - 10.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn splits_are_those_of_torch_chunk() {
        let logits = features(normal(2, 10, 3));
        let found = inception_score(&logits, 4).unwrap();
        // ⌈10 / 4⌉ = 3: three splits of 3 and one of 1, which has the score 1.
        assert_eq!(found.splits.len(), 4);
        assert!((found.splits[3] - 1.0).abs() < 1e-12);
        for splits in [0, 1, 11] {
            let error = inception_score(&logits, splits).unwrap_err();
            assert!(
                matches!(error, Error::OutOfRange { name: "splits", .. }),
                "{error}"
            );
        }
    }
}
