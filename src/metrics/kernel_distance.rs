//! The squared maximum mean discrepancy of two sets of features (KID).

use nalgebra::DMatrix;

use super::estimate::{Estimate, mean_and_deviation};
use super::features::{Features, check_comparable};
use crate::error::Result;

/// The squared maximum mean discrepancy of two sets, with the kernel `(⟨x, y⟩ / d + 1)³` for
/// features of length `d`.
///
/// On the features of the Inception network it is the KID. It is unbiased: its mean is 0 for sets
/// from one source, whatever their size, and it can be below 0. All pairs of points are used; the
/// published mean over a hundred subsets of a thousand points estimates the same number with more
/// spread. The interval is normal, with the variance of the first-order term of the U-statistic; for
/// sets from one source that term vanishes and the interval is only a rough guide.
///
/// Memory is that of one block of pairs; time grows with the square of the number of points.
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two points in a set;
/// [`Error::InvalidSetting`](crate::Error::InvalidSetting) and
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for features that were made differently.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use siss::metrics::{Features, kernel_distance};
///
/// let device = Device::flex();
/// let normal = |mean| Tensor::<2>::random([200, 8], Distribution::Normal(mean, 1.0), &device);
/// let real = Features::of("normal numbers", normal(0.0))?;
/// let generated = Features::of("normal numbers", normal(1.0))?;
/// assert!(kernel_distance(&real, &generated)?.low > 0.0);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Bińkowski et al. 2018, *Demystifying MMD GANs*, Section 4; Gretton et al. 2012, *A Kernel
/// Two-Sample Test*, Eq. 3.
pub fn kernel_distance(real: &Features, generated: &Features) -> Result<Estimate> {
    check_comparable(real, generated)?;
    let [(of_real, across_real), (of_generated, across_generated)] =
        [(real, generated), (generated, real)].map(|(set, other)| {
            // A point's kernel with itself is left out.
            let own = kernel_sums(set, set).into_iter().zip(own_kernels(set));
            let pairs = (set.len() - 1) as f64;
            let own: Vec<f64> = own.map(|(sum, itself)| (sum - itself) / pairs).collect();
            let count = other.len() as f64;
            let across: Vec<f64> = kernel_sums(set, other)
                .iter()
                .map(|sum| sum / count)
                .collect();
            (own, across)
        });
    let variance = |own: &[f64], across: &[f64]| {
        let terms: Vec<f64> = own
            .iter()
            .zip(across)
            .map(|(own, across)| own - across)
            .collect();
        4.0 * mean_and_deviation(&terms).1.powi(2) / terms.len() as f64
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let value = mean(&of_real) + mean(&of_generated) - 2.0 * mean(&across_real);
    let error = variance(&of_real, &across_real) + variance(&of_generated, &across_generated);
    let name = format!("kernel distance ({})", real.made_by());
    let samples = vec![real.len(), generated.len()];
    Ok(Estimate::normal(name, value, error.sqrt(), samples))
}

/// `Σ_y k(x, y)` for each point `x` of a set.
fn kernel_sums(set: &Features, other: &Features) -> Vec<f64> {
    let mut sums = vec![0.0; set.len()];
    for (first, columns) in set.parts() {
        let rows = columns.transpose();
        for (_, others) in other.parts() {
            let kernels: DMatrix<f64> = (&rows * others).map(|it| kernel(it, set.dimension()));
            for (sum, row) in sums[first..].iter_mut().zip(kernels.row_iter()) {
                *sum += row.sum();
            }
        }
    }
    sums
}

/// `k(x, x)` of each point.
fn own_kernels(set: &Features) -> Vec<f64> {
    let squares = (0..set.len()).map(|point| {
        let row = set.row(point).iter();
        row.map(|&value| f64::from(value).powi(2)).sum()
    });
    squares
        .map(|square| kernel(square, set.dimension()))
        .collect()
}

fn kernel(product: f64, dimension: usize) -> f64 {
    (product / dimension as f64 + 1.0).powi(3)
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;

    /// Written out, with sets of different sizes that need more than one block.
    #[test]
    fn the_estimate_is_the_unbiased_one() {
        let (one, other) = (features(normal(1, 520, 3)), features(normal(2, 7, 3) + 0.5));
        let kernel = |x: &[f32], y: &[f32]| {
            let product: f64 = x
                .iter()
                .zip(y)
                .map(|(&x, &y)| f64::from(x) * f64::from(y))
                .sum();
            (product / 3.0 + 1.0).powi(3)
        };
        let mean = |a: &Features, b: &Features, distinct: bool| {
            let (mut sum, mut pairs) = (0.0, 0.0);
            for i in 0..a.len() {
                for j in (0..b.len()).filter(|&j| !distinct || i != j) {
                    sum += kernel(a.row(i), b.row(j));
                    pairs += 1.0;
                }
            }
            sum / pairs
        };
        let expected =
            mean(&one, &one, true) + mean(&other, &other, true) - 2.0 * mean(&one, &other, false);
        let found = kernel_distance(&one, &other).unwrap();
        assert!(
            (found.value - expected).abs() < 1e-9 * expected.abs(),
            "{found} {expected}"
        );
        assert_eq!(found.samples, [520, 7]);
    }

    /// `E k(x, y)` of standard normal numbers is `1 + 3 / d`, and that of shifted ones follows from
    /// the moments: with mean `m` per feature, `⟨x, y⟩ / d` has mean 0, so only its square counts.
    #[test]
    fn intervals_cover_and_the_mean_of_equal_sources_is_zero() {
        const RUNS: u64 = 200;
        let d = 4.0;
        // With x standard and y shifted by 1: p = ⟨·, ·⟩ / d.
        // xx: E p² = 1/d. xy: E p² = 2/d. yy: p has mean 1 and variance 1/d + 2/d; E p³ follows from
        // p = 1 + (s + t) / d + ⟨u, v⟩ / d with E of the cubes below.
        let xx = 1.0 + 3.0 / d;
        let xy = 1.0 + 3.0 * 2.0 / d;
        let variance = 3.0 / d;
        let third = 6.0 / (d * d);
        let (second, cube) = (1.0 + variance, 1.0 + 3.0 * variance + third);
        let yy = 1.0 + 3.0 + 3.0 * second + cube;
        let truth = xx + yy - 2.0 * xy;
        let (mut covered, mut null) = (0, Vec::new());
        for run in 0..RUNS {
            let (one, other) = (normal(20 + run, 60, 4), normal(7000 + run, 80, 4));
            let shifted = features(other.clone() + 1.0);
            let (one, other) = (features(one), features(other));
            let found = kernel_distance(&one, &shifted).unwrap();
            covered += u64::from(found.low <= truth && truth <= found.high);
            null.push(kernel_distance(&one, &other).unwrap().value);
        }
        let covered = covered as f64 / RUNS as f64;
        assert!((0.87..=0.995).contains(&covered), "{covered}");
        let (mean, deviation) = mean_and_deviation(&null);
        assert!(
            mean.abs() < 4.0 * deviation / (RUNS as f64).sqrt(),
            "{mean} {deviation}"
        );
        assert!(null.iter().any(|value| *value < 0.0));
    }
}
