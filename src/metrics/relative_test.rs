//! Whether an unlearned model is closer to a retrained one or to the original one.

use nalgebra::{Cholesky, DMatrix, DVector};
use serde::{Deserialize, Serialize};
use statrs::distribution::ContinuousCDF;

use super::estimate::{CONFIDENCE, Estimate, mean_and_deviation, student};
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
/// divergence measured on the other half, and the other way round. The spread of the whole
/// estimate, witness included, is that of the jackknife over ten groups of points; intervals and
/// p-value are Student's with nine degrees of freedom. (The paper's own two-sample test permutes;
/// how it calibrates the relative test is not published in its code.)
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `order` | 1 | `γ`; 1 is the total variation | > 0 |
/// | `ridge` | 0.1 | `λ` | > 0 |
/// | `bandwidth` | `None` | deviation of the kernel; `None` is the median distance of the pooled points | > 0 |
///
/// Memory is that of matrices of half the sets' sizes, time that of 44 solutions of their
/// equations; a thousand points are enough.
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
    /// [`Error::OutOfRange`] for a setting outside its range, or fewer than 40 points in a set;
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
            check_range(name, count as f64, count >= 40, "at least 40")?;
        }
        let bandwidth = match self.bandwidth {
            Some(bandwidth) => check_positive("bandwidth", bandwidth)?,
            None => median_distance(sets)?,
        };
        let whole = self.divergences(sets, bandwidth, None)?;
        let parts = (0..GROUPS).map(|group| self.divergences(sets, bandwidth, Some(group)));
        let parts: Vec<Divergences> = parts.collect::<Result<_>>()?;
        let samples = sets.map(Features::len).to_vec();
        self.closeness(&whole, &parts, samples)
    }

    /// The divergences of the unlearned from the two other models, without one group of points.
    fn divergences(
        &self,
        sets: [&Features; 3],
        bandwidth: f64,
        left_out: Option<usize>,
    ) -> Result<Divergences> {
        let halves = sets.map(|set| [0, 1].map(|half| columns(set, half, left_out)));
        let mut found = Divergences::default();
        for half in [0, 1] {
            let [own, retrained, original] =
                halves.each_ref().map(|set| (&set[1 - half], &set[half]));
            found.to_retrained += 0.5 * self.divergence(own, retrained, bandwidth)?;
            found.to_original += 0.5 * self.divergence(own, original, bandwidth)?;
        }
        Ok(found)
    }

    /// The estimates and the test, by the jackknife over groups.
    fn closeness(
        &self,
        whole: &Divergences,
        parts: &[Divergences],
        samples: Vec<usize>,
    ) -> Result<RelativeCloseness> {
        let (groups, student) = (parts.len() as f64, student(parts.len() as f64 - 1.0)?);
        let quantile = student.inverse_cdf(0.5 + CONFIDENCE / 2.0);
        let error = |of: fn(&Divergences) -> f64| {
            let values: Vec<f64> = parts.iter().map(of).collect();
            mean_and_deviation(&values).1 * (groups - 1.0) / groups.sqrt()
        };
        let estimate = |name: &str, of: fn(&Divergences) -> f64| {
            let name = format!("{name}, hockey-stick divergence of order {}", self.order);
            let (value, half) = (of(whole), quantile * error(of));
            Estimate::within(name, value, (value - half, value + half), samples.clone())
        };
        let (value, spread) = (whole.difference(), error(Divergences::difference));
        let p_value = match spread > 0.0 {
            true => student.cdf(value / spread),
            // Without any spread only the sign is known; a difference of 0 says nothing.
            false => 0.5 * (1.0 + f64::from(value > 0.0) - f64::from(value < 0.0)),
        };
        Ok(RelativeCloseness {
            to_retrained: estimate("to the retrained model", |it| it.to_retrained),
            to_original: estimate("to the original model", |it| it.to_original),
            difference: estimate("difference", Divergences::difference),
            p_value,
        })
    }

    /// The divergence of two sets, of which each is given as the points for the witness and those
    /// held out.
    fn divergence(
        &self,
        (fit_p, p): (&DMatrix<f64>, &DMatrix<f64>),
        (fit_q, q): (&DMatrix<f64>, &DMatrix<f64>),
        bandwidth: f64,
    ) -> Result<f64> {
        let forward = Ratio::new(fit_p, fit_q, self.ridge, bandwidth)?;
        let backward = Ratio::new(fit_q, fit_p, self.ridge, bandwidth)?;
        // q/p: E_q h − γ E_p h; p/q: E_p h − γ E_q h.
        let there = self.share(&forward, q) - self.order * self.share(&forward, p);
        let back = self.share(&backward, p) - self.order * self.share(&backward, q);
        Ok(0.5 * (there + back))
    }

    /// The share of points with a ratio above the order.
    fn share(&self, ratio: &Ratio<'_>, points: &DMatrix<f64>) -> f64 {
        let ratios = ratio.at(points);
        let above = ratios.iter().filter(|&&ratio| ratio > self.order).count();
        above as f64 / ratios.len() as f64
    }
}

/// Groups of the jackknife.
const GROUPS: usize = 10;

/// Divergences of the unlearned model.
#[derive(Debug, Clone, Copy, Default)]
struct Divergences {
    to_retrained: f64,
    to_original: f64,
}

impl Divergences {
    fn difference(&self) -> f64 {
        self.to_retrained - self.to_original
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

/// Every other point of a set as columns, without a group of them.
fn columns(set: &Features, half: usize, left_out: Option<usize>) -> DMatrix<f64> {
    let rows = (half..set.len()).step_by(2);
    let rows: Vec<usize> = rows
        .filter(|row| left_out != Some(row / 2 % GROUPS))
        .collect();
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
    use statrs::distribution::Normal;

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
        assert!(found.p_value < 1e-3);
    }

    /// The unlearned model in the middle: p-values are uniform, and not below 5 % too often.
    #[test]
    fn a_model_in_the_middle_is_rarely_called_closer() {
        const RUNS: u64 = 100;
        let p_value = |run: u64| {
            let draw = |part: u64, mean: f64| features(normal(10 * run + part, 60, 2) + mean);
            compare(draw(1, 0.0), draw(2, -0.5), draw(3, 0.5)).p_value
        };
        let mut p_values: Vec<f64> = (0..RUNS).map(p_value).collect();
        p_values.sort_by(f64::total_cmp);
        let share_below =
            |level: f64| p_values.partition_point(|p| *p < level) as f64 / RUNS as f64;
        // Four standard errors.
        for level in [0.05, 0.25, 0.5, 0.75, 0.95] {
            let (share, error) = (
                share_below(level),
                (level * (1.0 - level) / RUNS as f64).sqrt(),
            );
            assert!((share - level).abs() < 4.0 * error, "{level}: {share}");
        }
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
        let set = features(normal(1, 50, 2));
        let refused = |test: RelativeTest, set: &Features| test.compare(set, set, set).unwrap_err();
        let zero = RelativeTest {
            ridge: 0.0,
            ..RelativeTest::default()
        };
        assert!(matches!(
            refused(zero, &set),
            Error::OutOfRange { name: "ridge", .. }
        ));
        let few = features(normal(1, 39, 2));
        assert!(matches!(
            refused(RelativeTest::default(), &few),
            Error::OutOfRange { .. }
        ));
        let same = features(normal(1, 1, 2).repeat_dim(0, 50));
        let error = refused(RelativeTest::default(), &same);
        assert!(error.to_string().contains("median distance"), "{error}");
    }
}
