//! Whether an unlearned model is closer to a retrained one or to the original one.

use nalgebra::{Cholesky, DMatrix, DVector};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use super::estimate::{Estimate, mean_and_deviation};
use super::features::{Features, check_comparable};
use crate::error::{Error, Result, check_positive, check_range};

/// Whether samples of the unlearned model are closer to those of a retrained model than to those of
/// the original model.
///
/// A test of equality with one retrained model also rejects a second retrained model. So three sets
/// are compared: with a divergence `D`, the difference is `D(unlearned, retrained) −
/// D(unlearned, original)`, below 0 if the unlearned model is on the retrained model's side.
///
/// `D` is the hockey-stick divergence `sup_h E_q h − γ E_p h` over indicators `h`, in both
/// directions, mean of the two. Its witness is `h = [r > γ]` with the density ratio
/// `r = dq/dp`, a ridge regression in the space of a Gaussian kernel:
///
/// ```text
/// r(z) = 1 + (k̄_q(z) − k̄_p(z) − k_p(z) (K_pp + m λ I)⁻¹ (k̄_q − k̄_p)(x)) / λ
/// ```
///
/// with `m` points `x` of `p` and means `k̄`. The witness is made from one half of each set and the
/// divergence measured on the other half, and the other way round. So each mean is one of
/// independent numbers, and the p-value is that of a normal test. (The paper's own two-sample test
/// permutes; how it calibrates the relative test is not published in its code.)
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `order` | 1 | `γ`; 1 is the total variation | > 0 |
/// | `ridge` | 0.1 | `λ` | > 0 |
/// | `bandwidth` | `None` | deviation of the kernel; `None` is the median distance of the pooled points | > 0 |
///
/// Memory and time are those of matrices of half the sets' sizes; a few thousand points are enough.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use siss::metrics::{Features, RelativeTest};
///
/// let device = Device::flex();
/// let samples = |mean| {
///     let normal = Tensor::<2>::random([200, 3], Distribution::Normal(mean, 1.0), &device);
///     Features::of("pixels", normal)
/// };
/// let (unlearned, retrained, original) = (samples(0.1)?, samples(0.0)?, samples(1.5)?);
/// let found = RelativeTest::default().compare(&unlearned, &retrained, &original)?;
/// assert!(found.difference.value < 0.0 && found.p_value < 0.05, "{found:?}");
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Ribero, Schrab and Gretton 2026, *Regularized f-Divergence Kernel Tests*, arXiv 2601.19755; Chen
/// et al. 2024, *(De)-regularized Maximum Mean Discrepancy Gradient Flow*, arXiv 2409.14980 (the
/// ratio).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelativeTest {
    /// Order of the hockey-stick divergence.
    pub order: f64,
    /// Ridge of the density ratio.
    pub ridge: f64,
    /// Deviation of the kernel.
    pub bandwidth: Option<f64>,
}

impl Default for RelativeTest {
    fn default() -> Self {
        Self {
            order: 1.0,
            ridge: 0.1,
            bandwidth: None,
        }
    }
}

/// What the relative test found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RelativeCloseness {
    /// Divergence of the unlearned from the retrained model, a lower bound.
    pub to_retrained: Estimate,
    /// Divergence of the unlearned from the original model, a lower bound.
    pub to_original: Estimate,
    /// The first minus the second.
    pub difference: Estimate,
    /// Probability of so low a difference if the unlearned model is as close to the original as to
    /// the retrained one: a small value shows that it is closer to the retrained one.
    pub p_value: f64,
}

impl RelativeTest {
    /// Compares samples of the three models by features of them.
    ///
    /// Points must be independent and in no order: even and odd rows are the halves.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a setting outside its range, or fewer than eight points in a set;
    /// [`Error::InvalidSetting`] and [`Error::ShapeMismatch`] for features that were made
    /// differently.
    pub fn compare(
        &self,
        unlearned: &Features,
        retrained: &Features,
        original: &Features,
    ) -> Result<RelativeCloseness> {
        check_positive("order", self.order)?;
        check_positive("ridge", self.ridge)?;
        for other in [retrained, original] {
            check_comparable(unlearned, other)?;
        }
        let sets = [unlearned, retrained, original];
        for set in sets {
            let (name, count) = ("the number of samples", set.len());
            check_range(name, count as f64, count >= 8, "at least 8")?;
        }
        let bandwidth = match self.bandwidth {
            Some(bandwidth) => check_positive("bandwidth", bandwidth)?,
            None => median_distance(sets)?,
        };
        let halves = sets.map(|set| [0, 1].map(|half| columns(set, half)));
        let mut contributions = Contributions::default();
        for half in [0, 1] {
            let [own, retrained, original] =
                halves.each_ref().map(|set| (&set[1 - half], &set[half]));
            let near = self.divergence(own, retrained, bandwidth)?;
            let far = self.divergence(own, original, bandwidth)?;
            contributions.add(near, far);
        }
        Ok(contributions.closeness(self.order))
    }

    /// What each held-out point contributes to the divergence of two sets, of which each is given
    /// as the points for the witness and those held out. The divergence is the sum of both means.
    fn divergence(
        &self,
        (fit_p, p): (&DMatrix<f64>, &DMatrix<f64>),
        (fit_q, q): (&DMatrix<f64>, &DMatrix<f64>),
        bandwidth: f64,
    ) -> Result<[Vec<f64>; 2]> {
        let forward = Ratio::new(fit_p, fit_q, self.ridge, bandwidth)?;
        let backward = Ratio::new(fit_q, fit_p, self.ridge, bandwidth)?;
        let contributions = |points: &DMatrix<f64>, signs: [f64; 2]| {
            let pairs = forward.at(points).into_iter().zip(backward.at(points));
            let inside = |ratio: f64| f64::from(u8::from(ratio > self.order));
            let of_pair =
                |(there, back)| 0.5 * (signs[0] * inside(there) + signs[1] * inside(back));
            pairs.map(of_pair).collect()
        };
        // q/p: E_q h − γ E_p h; p/q: E_p h − γ E_q h.
        Ok([
            contributions(p, [-self.order, 1.0]),
            contributions(q, [1.0, -self.order]),
        ])
    }
}

/// What held-out points contribute, from both halves.
#[derive(Debug, Default)]
struct Contributions {
    own_near: Vec<f64>,
    own_far: Vec<f64>,
    retrained: Vec<f64>,
    original: Vec<f64>,
}

impl Contributions {
    fn add(&mut self, near: [Vec<f64>; 2], far: [Vec<f64>; 2]) {
        let ([own_near, retrained], [own_far, original]) = (near, far);
        self.own_near.extend(own_near);
        self.own_far.extend(own_far);
        self.retrained.extend(retrained);
        self.original.extend(original);
    }

    fn closeness(&self, order: f64) -> RelativeCloseness {
        let shared = self.own_near.iter().zip(&self.own_far);
        let shared: Vec<f64> = shared.map(|(near, far)| near - far).collect();
        let estimate = |name: &str, lists: &[&[f64]], signs: &[f64]| {
            let (mut value, mut variance) = (0.0, 0.0);
            for (list, sign) in lists.iter().zip(signs) {
                let (mean, deviation) = mean_and_deviation(list);
                value += sign * mean;
                variance += deviation.powi(2) / list.len() as f64;
            }
            let name = format!("{name}, hockey-stick divergence of order {order}");
            let samples = lists.iter().map(|list| list.len()).collect();
            (
                Estimate::normal(name, value, variance.sqrt(), samples),
                variance.sqrt(),
            )
        };
        let near: [&[f64]; 2] = [&self.own_near, &self.retrained];
        let far: [&[f64]; 2] = [&self.own_far, &self.original];
        let all: [&[f64]; 3] = [&shared, &self.retrained, &self.original];
        let (difference, error) = estimate("difference", &all, &[1.0, 1.0, -1.0]);
        // Without any spread, a difference of 0 says nothing.
        let p_value = match difference.value == 0.0 {
            true => 0.5,
            false => Normal::standard().cdf(difference.value / error),
        };
        RelativeCloseness {
            to_retrained: estimate("to the retrained model", &near, &[1.0, 1.0]).0,
            to_original: estimate("to the original model", &far, &[1.0, 1.0]).0,
            difference,
            p_value,
        }
    }
}

/// The ratio of the density of `q` to that of `p`.
struct Ratio<'a> {
    p: &'a DMatrix<f64>,
    q: &'a DMatrix<f64>,
    /// `(K_pp + m λ I)⁻¹ (k̄_q − k̄_p)(x)`.
    weights: DVector<f64>,
    ridge: f64,
    bandwidth: f64,
}

impl<'a> Ratio<'a> {
    fn new(p: &'a DMatrix<f64>, q: &'a DMatrix<f64>, ridge: f64, bandwidth: f64) -> Result<Self> {
        let mut own = kernels(p, p, bandwidth);
        let difference = kernels(p, q, bandwidth).column_mean() - own.column_mean();
        for index in 0..own.nrows() {
            own[(index, index)] += ridge * own.nrows() as f64;
        }
        let Some(factor) = Cholesky::new(own) else {
            return Err(Error::InvalidSetting {
                what: "the kernel matrix of the samples is singular".into(),
                remedy: "use a larger ridge",
            });
        };
        let weights = factor.solve(&difference);
        Ok(Self {
            p,
            q,
            weights,
            ridge,
            bandwidth,
        })
    }

    fn at(&self, points: &DMatrix<f64>) -> Vec<f64> {
        let own = kernels(points, self.p, self.bandwidth);
        let other = kernels(points, self.q, self.bandwidth);
        let difference = other.column_mean() - own.column_mean() - own * &self.weights;
        difference
            .iter()
            .map(|value| 1.0 + value / self.ridge)
            .collect()
    }
}

/// `exp(−‖a − b‖² / 2 s²)` for the columns of two matrices.
fn kernels(a: &DMatrix<f64>, b: &DMatrix<f64>, bandwidth: f64) -> DMatrix<f64> {
    squared_distances(a, b).map(|square| (-0.5 * square / (bandwidth * bandwidth)).exp())
}

fn squared_distances(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    let norms = |points: &DMatrix<f64>| -> Vec<f64> {
        points
            .column_iter()
            .map(|column| column.norm_squared())
            .collect()
    };
    let (of_a, of_b) = (norms(a), norms(b));
    let mut distances = a.transpose() * b;
    for (column, mut values) in distances.column_iter_mut().enumerate() {
        for (value, norm) in values.iter_mut().zip(&of_a) {
            *value = (norm + of_b[column] - 2.0 * *value).max(0.0);
        }
    }
    distances
}

/// Every other point of a set as columns.
fn columns(set: &Features, half: usize) -> DMatrix<f64> {
    let rows: Vec<usize> = (half..set.len()).step_by(2).collect();
    let values = rows.iter().flat_map(|&row| set.row(row));
    let values = values.map(|&value| f64::from(value));
    DMatrix::from_iterator(set.dimension(), rows.len(), values)
}

/// The median distance between points of different places in the pooled sets, over at most 500
/// points.
fn median_distance(sets: [&Features; 3]) -> Result<f64> {
    const POINTS: usize = 500;
    let total: usize = sets.iter().map(|set| set.len()).sum();
    let rows = sets
        .iter()
        .flat_map(|set| (0..set.len()).map(|row| set.row(row)));
    let rows: Vec<_> = rows.step_by(total.div_ceil(POINTS)).collect();
    let values = rows
        .iter()
        .flat_map(|row| row.iter().map(|&value| f64::from(value)));
    let points = DMatrix::from_iterator(sets[0].dimension(), rows.len(), values);
    let distances = squared_distances(&points, &points);
    let mut above: Vec<f64> = (0..rows.len())
        .flat_map(|column| (0..column).map(move |row| (row, column)))
        .map(|place| distances[place].sqrt())
        .collect();
    above.sort_by(f64::total_cmp);
    let median = above[above.len() / 2];
    let requirement = "above 0: half of the samples are the same";
    check_range("the median distance", median, median > 0.0, requirement)
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;

    fn compare(unlearned: Features, retrained: Features, original: Features) -> RelativeCloseness {
        RelativeTest::default()
            .compare(&unlearned, &retrained, &original)
            .unwrap()
    }

    /// The total variation of two normal distributions of deviation 1 that are `δ` apart is
    /// `2 Φ(δ/2) − 1`; a witness from finite data reaches a little less.
    #[test]
    fn the_divergence_is_close_to_the_total_variation() {
        let (one, same) = (features(normal(1, 600, 1)), features(normal(2, 600, 1)));
        let other = features(normal(3, 600, 1) + 1.5);
        let found = compare(one, same, other);
        let truth = 2.0 * Normal::standard().cdf(0.75) - 1.0;
        assert!(
            found.to_original.low < truth && found.to_original.high > truth - 0.05,
            "{found:?}"
        );
        assert!(found.to_retrained.value.abs() < 0.08, "{found:?}");
        assert!(found.p_value < 1e-6);
    }

    /// The unlearned model in the middle: p-values are uniform, and not below 5 % too often.
    #[test]
    fn a_model_in_the_middle_is_rarely_called_closer() {
        const RUNS: u64 = 200;
        let rejected = (0..RUNS).filter(|run| {
            let draw = |part: u64, mean: f64| features(normal(10 * run + part, 60, 2) + mean);
            let found = compare(draw(1, 0.0), draw(2, -0.5), draw(3, 0.5));
            found.p_value < 0.05
        });
        let share = rejected.count() as f64 / RUNS as f64;
        // Four standard errors above the level.
        assert!(
            share < 0.05 + 4.0 * (0.05 * 0.95 / RUNS as f64).sqrt(),
            "{share}"
        );
    }

    #[test]
    fn the_sides_can_be_exchanged_and_equal_sets_say_nothing() {
        let sets = || [1, 2].map(|seed| features(normal(seed, 100, 2) + seed as f64));
        let own = || features(normal(3, 100, 2) + 1.2);
        let [near, far] = sets();
        let there = compare(own(), near.clone(), far.clone());
        let back = compare(own(), far, near);
        assert!((there.difference.value + back.difference.value).abs() < 1e-12);
        assert!((there.p_value + back.p_value - 1.0).abs() < 1e-9);
        let same = features(normal(4, 100, 2));
        assert_eq!(compare(own(), same.clone(), same).p_value, 0.5);
    }

    #[test]
    fn settings_and_sets_that_say_nothing_are_refused() {
        let set = features(normal(1, 20, 2));
        let refused = |test: RelativeTest, set: &Features| test.compare(set, set, set).unwrap_err();
        let zero = RelativeTest {
            ridge: 0.0,
            ..RelativeTest::default()
        };
        assert!(matches!(
            refused(zero, &set),
            Error::OutOfRange { name: "ridge", .. }
        ));
        let few = features(normal(1, 7, 2));
        assert!(matches!(
            refused(RelativeTest::default(), &few),
            Error::OutOfRange { .. }
        ));
        let same = features(normal(1, 1, 2).repeat_dim(0, 20));
        let error = refused(RelativeTest::default(), &same);
        assert!(error.to_string().contains("median distance"), "{error}");
    }
}
