//! The squared sliced Wasserstein distance of two sets of features (MIND).

use nalgebra::DMatrix;
use rand::RngExt;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use super::estimate::{Estimate, mean_and_deviation};
use super::features::{Features, check_comparable};
use crate::draws::{Stream, keyed_rng};
use crate::error::{Result, check_range};

/// The squared sliced Wasserstein distance of two sets of features, times three times their length.
///
/// In each of many random directions `u` the two sets are numbers, whose squared Wasserstein
/// distance is that of their quantile functions; for sets of the same size, of the sorted numbers:
///
/// ```text
/// 3 d · mean_u ∫₀¹ (F⁻¹(q) − G⁻¹(q))² dq
/// ```
///
/// for features of length `d`. On the features of the Inception network it is the Monge inception
/// distance (MIND). Unlike the [Fréchet distance](super::frechet_distance) it compares more than
/// means and covariances, and needs no root of a matrix. If all features of one set are shifted by
/// `μ`, it is `3 d μ²`.
///
/// It is above 0 for two sets from one source, the more so the smaller they are: compare numbers of
/// the same sizes. The interval is normal; its variance is that of the points, to first order, and
/// that of the directions. Where the distance is hardly above that of two sets from one source, it
/// is only a rough guide.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `directions` | 1,000 | random directions | ≥ 2 |
/// | `seed` | 0 | key of the directions | |
///
/// Memory is that of the sets in f64; time is that of as many products as directions, points and
/// features.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use siss::metrics::{Features, SlicedDistance};
///
/// let device = Device::flex();
/// let normal = |mean| Tensor::<2>::random([400, 8], Distribution::Normal(mean, 1.0), &device);
/// let real = Features::of("normal numbers", normal(0.0))?;
/// let generated = Features::of("normal numbers", normal(1.0))?;
/// let found = SlicedDistance::default().compare(&real, &generated)?;
/// assert!(found.low > 0.0); // 24 is expected
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// *MIND: Monge Inception Distance*, arXiv 2605.06797; del Barrio and Loubes 2019, *Central limit
/// theorems for empirical transportation cost in general dimension* (the variance).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlicedDistance {
    /// Random directions.
    pub directions: usize,
    /// Key of the directions.
    pub seed: u64,
}

impl Default for SlicedDistance {
    fn default() -> Self {
        Self {
            directions: 1000,
            seed: 0,
        }
    }
}

impl SlicedDistance {
    /// Compares two sets.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two points in a set, or fewer
    /// than two directions; [`Error::InvalidSetting`](crate::Error::InvalidSetting) and
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for features that were made
    /// differently.
    pub fn compare(&self, real: &Features, generated: &Features) -> Result<Estimate> {
        check_comparable(real, generated)?;
        let count = self.directions;
        check_range("directions", count as f64, count >= 2, "at least 2")?;
        let [of_real, of_generated] = [real, generated].map(|set| set.columns(0, set.len()));
        let factor = 3.0 * real.dimension() as f64;
        let mut costs = Vec::with_capacity(count);
        let mut potentials = [real, generated].map(|set| vec![0.0; set.len()]);
        for number in 0..count {
            let direction = self.direction(number, real.dimension());
            let [of_real, of_generated] =
                [&of_real, &of_generated].map(|set| Sorted::new(&direction, set));
            let plan = transport(&of_real, &of_generated);
            costs.push(factor * plan.cost);
            for (sums, potentials) in potentials.iter_mut().zip(&plan.potentials) {
                for (sum, potential) in sums.iter_mut().zip(potentials) {
                    *sum += factor * potential / count as f64;
                }
            }
        }
        let (value, of_directions) = mean_and_deviation(&costs);
        let of_points = potentials.iter().map(|potentials| {
            let (_, deviation) = mean_and_deviation(potentials);
            deviation.powi(2) / potentials.len() as f64
        });
        let variance = of_directions.powi(2) / count as f64 + of_points.sum::<f64>();
        let sizes = vec![real.len(), generated.len()];
        let made_by = real.made_by();
        let name = format!("sliced distance ({made_by}; {count} directions)");
        Ok(Estimate::normal(name, value, variance.sqrt(), sizes))
    }

    /// A direction of length 1, as a row.
    fn direction(&self, number: usize, dimension: usize) -> DMatrix<f64> {
        let mut rng = keyed_rng(self.seed, 0, number as u64, Stream::Evaluation);
        let numbers = (0..dimension).map(|_| rng.sample::<f64, _>(StandardNormal));
        DMatrix::from_iterator(1, dimension, numbers).normalize()
    }
}

/// The numbers of a set in a direction, ascending.
struct Sorted {
    numbers: Vec<f64>,
    /// Which point each is of.
    points: Vec<usize>,
}

impl Sorted {
    fn new(direction: &DMatrix<f64>, set: &DMatrix<f64>) -> Self {
        let numbers = direction * set;
        let mut points: Vec<usize> = (0..numbers.len()).collect();
        points.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
        Self {
            numbers: points.iter().map(|&point| numbers[point]).collect(),
            points,
        }
    }
}

/// The transport of one set of numbers to another.
struct Plan {
    /// `∫ (F⁻¹ − G⁻¹)²`.
    cost: f64,
    /// Of each set's points: the derivative of the cost by the point's share of its set, up to a
    /// constant.
    potentials: [Vec<f64>; 2],
}

/// Both sets' quantile functions are constant between the multiples of 1/n and of 1/m.
fn transport(one: &Sorted, other: &Sorted) -> Plan {
    let (n, m) = (one.numbers.len(), other.numbers.len());
    let (mut i, mut j, mut done, mut cost) = (0, 0, 0, 0.0);
    // What each number is matched with, in the mean.
    let mut matched = [vec![0.0; n], vec![0.0; m]];
    // In parts of 1/(n m), so that no rounding moves an end.
    while i < n && j < m {
        let end = ((i + 1) * m).min((j + 1) * n);
        let share = (end - done) as f64 / (n * m) as f64;
        let (x, y) = (one.numbers[i], other.numbers[j]);
        cost += share * (x - y).powi(2);
        matched[0][i] += share * n as f64 * y;
        matched[1][j] += share * m as f64 * x;
        i += usize::from(end == (i + 1) * m);
        j += usize::from(end == (j + 1) * n);
        done = end;
    }
    let [of_one, of_other] = matched;
    Plan {
        cost,
        potentials: [potentials(one, &of_one), potentials(other, &of_other)],
    }
}

/// The potential `φ(x) = ∫ 2 (x − T(x)) dx` at each point, from the lowest on, by the trapezoid
/// rule.
fn potentials(set: &Sorted, matched: &[f64]) -> Vec<f64> {
    let mut potentials = vec![0.0; set.points.len()];
    let mut sum = 0.0;
    for at in 1..set.points.len() {
        let [before, here] = [at - 1, at].map(|at| set.numbers[at] - matched[at]);
        sum += (set.numbers[at] - set.numbers[at - 1]) * (before + here);
        potentials[set.points[at]] = sum;
    }
    potentials
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;
    use crate::error::Error;

    fn distance(one: &Features, other: &Features) -> Estimate {
        SlicedDistance::default().compare(one, other).unwrap()
    }

    /// As torch-fidelity tests its own: 64 features of 4,000 points, shifted by μ, within 10 %.
    #[test]
    fn a_shift_of_all_features_has_its_closed_form() {
        let one = normal(1, 4000, 64);
        for shift in [0.5, 2.0] {
            let found = distance(&features(one.clone()), &features(one.clone() + shift));
            let expected = 3.0 * 64.0 * shift * shift;
            assert!(
                (found.value / expected - 1.0).abs() < 0.1,
                "{found} {expected}"
            );
            assert!(found.low < expected && expected < found.high, "{found}");
        }
    }

    #[test]
    fn the_order_of_sets_and_of_points_does_not_matter_and_equal_sets_are_at_zero() {
        let (one, other) = (normal(1, 70, 5), normal(2, 40, 5) * 1.5 + 0.3);
        let turned = other.clone().flip([0]);
        let [one, other, turned] = [one, other, turned].map(features);
        let found = distance(&one, &other);
        for (a, b) in [(&other, &one), (&one, &turned)] {
            let again = distance(a, b);
            assert!(
                (again.value / found.value - 1.0).abs() < 1e-12,
                "{again} {found}"
            );
            assert!(
                (again.low / found.low - 1.0).abs() < 1e-9,
                "{again} {found}"
            );
        }
        assert_eq!(distance(&one, &one).value, 0.0);
        assert_eq!(found.samples, [70, 40]);
    }

    /// Every number of a set that is repeated has the same quantile function.
    #[test]
    fn sets_of_other_sizes_are_compared_by_their_quantiles() {
        let (one, other) = (normal(1, 30, 3), normal(2, 20, 3));
        let found = distance(&features(one.clone()), &features(other.clone()));
        let [one, other] = [one.repeat_dim(0, 2), other.repeat_dim(0, 3)];
        let same_size = distance(&features(one), &features(other));
        assert!(
            (same_size.value / found.value - 1.0).abs() < 1e-9,
            "{same_size} {found}"
        );
    }

    /// One feature, so that the directions are 1 and −1: two normal distributions are
    /// `(μ − ν)² + (σ − τ)²` apart.
    #[test]
    fn intervals_cover_the_distance_of_two_normal_distributions() {
        const RUNS: u64 = 200;
        let truth = 3.0 * (1.0 + 0.25);
        let few = SlicedDistance {
            directions: 2,
            ..SlicedDistance::default()
        };
        let mut covered = 0;
        for run in 0..RUNS {
            let (one, other) = (normal(run, 400, 1), normal(1000 + run, 300, 1) * 1.5 + 1.0);
            let found = few.compare(&features(one), &features(other)).unwrap();
            covered += u64::from(found.low <= truth && truth <= found.high);
        }
        let covered = covered as f64 / RUNS as f64;
        assert!((0.88..=0.99).contains(&covered), "{covered}");
    }

    #[test]
    fn too_few_directions_and_features_made_otherwise_are_refused() {
        let (one, other) = (features(normal(1, 4, 3)), features(normal(2, 4, 3)));
        let few = SlicedDistance {
            directions: 1,
            seed: 0,
        };
        let error = few.compare(&one, &other).unwrap_err();
        assert!(
            matches!(
                error,
                Error::OutOfRange {
                    name: "directions",
                    ..
                }
            ),
            "{error}"
        );
        let other = Features::of("another network", normal(2, 4, 3)).unwrap();
        let error = SlicedDistance::default().compare(&one, &other).unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    }
}
