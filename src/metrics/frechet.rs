//! The Fréchet distance of two sets of features (FID).

use nalgebra::{DMatrix, DVector, Dyn, SymmetricEigen};

use super::estimate::{Estimate, check_samples, mean_and_deviation};
use super::features::{Features, Moments, check_comparable};
use crate::error::{Result, check_shape};

/// The Fréchet distance between normal distributions with the moments of two sets:
///
/// ```text
/// ‖μ − ν‖² + tr Σ + tr Τ − 2 tr (Σ^½ Τ Σ^½)^½
/// ```
///
/// On the features of the Inception network it is the FID. In f64, by two decompositions of
/// symmetric matrices: with fewer points than features the covariances have no inverse, and the
/// distance is finite all the same.
///
/// The interval is that of the central limit theorem for this distance, from the derivative with
/// respect to both moments. It does not contain the bias: the distance of finite samples is too
/// large, by much if there are fewer points than features. So compare sets of equal size, and
/// expect more than 0 for two sets from one source. With more points than features of length 2048
/// it takes minutes, because the decompositions grow with the cube of the smaller number; `real`
/// decides which that is.
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two points in a set;
/// [`Error::InvalidSetting`](crate::Error::InvalidSetting) and
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for features that were made differently.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use siss::metrics::{Features, frechet_distance};
///
/// let device = Device::flex();
/// let normal = |mean| Tensor::<2>::random([500, 4], Distribution::Normal(mean, 1.0), &device);
/// let real = Features::of("normal numbers", normal(0.0))?;
/// let generated = Features::of("normal numbers", normal(1.0))?;
/// let distance = frechet_distance(&real, &generated)?; // 4, and a bias
/// assert!((distance.value - 4.0).abs() < 1.5, "{distance}");
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Heusel et al. 2017, *GANs Trained by a Two Time-Scale Update Rule*, Eq. 6; Rippl, Munk and Sturm
/// 2016, *Limit laws of the empirical Wasserstein distance: Gaussian distributions* (the interval).
pub fn frechet_distance(real: &Features, generated: &Features) -> Result<Estimate> {
    check_comparable(real, generated)?;
    let (of_real, of_generated) = (Moments::of(real), Moments::of(generated));
    let coupling = Coupling::new(Axes::of(real, &of_real), &of_generated);
    let shift = of_real.mean() - of_generated.mean();
    let sides = [
        (real, of_real.mean(), coupling.of_first(), shift.clone()),
        (generated, of_generated.mean(), coupling.of_second(), -shift),
    ];
    let variances = sides.map(|(set, mean, transport, shift)| {
        let slopes = influences(set, mean, &transport, &shift);
        mean_and_deviation(&slopes).1.powi(2) / set.len() as f64
    });
    let name = format!("Fréchet distance ({})", real.made_by());
    let value = coupling.distance(&of_real, &of_generated);
    let error = (variances[0] + variances[1]).sqrt();
    let samples = vec![real.len(), generated.len()];
    Ok(Estimate::normal(name, value, error, samples))
}

/// [`frechet_distance`] from moments alone, for sets whose features are not kept.
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for fewer than two points in a set;
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for features of different lengths.
pub fn frechet_distance_of_moments(real: &Moments, generated: &Moments) -> Result<f64> {
    check_samples(real.count())?;
    check_samples(generated.count())?;
    let remedy = "use the same network and layer for both sets";
    let (one, other) = (real.mean().len(), generated.mean().len());
    check_shape("a feature vector", &[one], &[other], remedy)?;
    let axes = Axes::of_covariance(real.covariance());
    Ok(Coupling::new(axes, generated).distance(real, generated))
}

/// The axes `V` of a covariance `Σ = V L Vᵀ` on its range.
struct Axes {
    /// `V L^½`.
    root: DMatrix<f64>,
    /// `L`, above 0.
    values: DVector<f64>,
}

impl Axes {
    /// The axes of a set with these moments.
    fn of(set: &Features, moments: &Moments) -> Self {
        match set.len() <= set.dimension() {
            true => Self::of_few(set, moments.mean()),
            false => Self::of_covariance(moments.covariance()),
        }
    }

    fn of_covariance(covariance: DMatrix<f64>) -> Self {
        let eigen = SymmetricEigen::new(covariance);
        let (values, mut root) = in_range(&eigen);
        for (mut column, value) in root.column_iter_mut().zip(values.iter()) {
            column *= value.sqrt();
        }
        Self { root, values }
    }

    /// Those of no more points than features, from the products of the points: with the centred
    /// points `Y = V L^½ Uᵀ`, which have `Σ = Y Yᵀ`, the small matrix `Yᵀ Y` is `U L Uᵀ`.
    fn of_few(set: &Features, mean: &DVector<f64>) -> Self {
        let mut centred = set.columns(0, set.len());
        let scale = ((set.len() - 1) as f64).sqrt().recip();
        for mut column in centred.column_iter_mut() {
            column -= mean;
            column *= scale;
        }
        let (values, vectors) = in_range(&SymmetricEigen::new(centred.transpose() * &centred));
        Self {
            root: centred * vectors,
            values,
        }
    }
}

/// The eigenvalues above 0, and their vectors.
fn in_range(eigen: &SymmetricEigen<f64, Dyn>) -> (DVector<f64>, DMatrix<f64>) {
    let least = smallest(&eigen.eigenvalues);
    let axes: Vec<usize> = (0..eigen.eigenvalues.len())
        .filter(|&axis| eigen.eigenvalues[axis] > least)
        .collect();
    let values = axes.iter().map(|&axis| eigen.eigenvalues[axis]);
    let values = DVector::from_iterator(axes.len(), values);
    (values, eigen.eigenvectors.select_columns(&axes))
}

/// How the best transport couples two normal distributions.
///
/// With `S = V L^½` of the first covariance, the eigenvalues `D` and eigenvectors `W` of `Sᵀ Τ S`
/// are those of `Σ^½ Τ Σ^½`.
struct Coupling {
    /// The axes of the first covariance.
    axes: Axes,
    /// `D`, not below 0.
    products: DVector<f64>,
    /// `W`.
    vectors: DMatrix<f64>,
}

impl Coupling {
    fn new(axes: Axes, second: &Moments) -> Self {
        let root = &axes.root;
        let product = root.transpose() * (second.covariance() * root);
        let product = (&product + product.transpose()) / 2.0;
        // nalgebra decomposes no empty matrix, and constant features have one.
        let (products, vectors) = match axes.values.is_empty() {
            true => (DVector::zeros(0), product),
            false => {
                let eigen = SymmetricEigen::new(product);
                (eigen.eigenvalues, eigen.eigenvectors)
            }
        };
        Self {
            axes,
            products: products.map(|value| value.max(0.0)),
            vectors,
        }
    }

    fn distance(&self, first: &Moments, second: &Moments) -> f64 {
        let shift = (first.mean() - second.mean()).norm_squared();
        let traces = first.covariance().trace() + second.covariance().trace();
        let shared: f64 = self.products.iter().map(|value| value.sqrt()).sum();
        shift + traces - 2.0 * shared
    }

    /// `D^¼ Wᵀ L^−½ Vᵀ`: the squared norm of what it makes of a vector is the quadratic form of the
    /// map from the first distribution to the second.
    fn of_first(&self) -> DMatrix<f64> {
        let mut scaled = self.axes.root.transpose();
        for (mut row, value) in scaled.row_iter_mut().zip(self.axes.values.iter()) {
            row /= *value;
        }
        self.rotated(scaled, |value| value.sqrt().sqrt())
    }

    /// `D^−¼ Wᵀ L^½ Vᵀ` on the range of `D`, for the map back.
    fn of_second(&self) -> DMatrix<f64> {
        let least = smallest(&self.products);
        self.rotated(self.axes.root.transpose(), |value| match value > least {
            true => value.sqrt().sqrt().recip(),
            false => 0.0,
        })
    }

    fn rotated(&self, rows: DMatrix<f64>, power: impl Fn(f64) -> f64) -> DMatrix<f64> {
        let mut rotated = self.vectors.transpose() * rows;
        for (mut row, &value) in rotated.row_iter_mut().zip(self.products.iter()) {
            row *= power(value);
        }
        rotated
    }
}

/// Below this, an eigenvalue is a rounding error.
fn smallest(values: &DVector<f64>) -> f64 {
    let largest = values.iter().copied().fold(0.0, f64::max);
    largest * values.len() as f64 * f64::EPSILON
}

/// The derivative of the distance with respect to the weight of each point, up to a constant:
/// `2 ⟨μ − ν, x − μ⟩ + ‖x − μ‖² − ⟨x − μ, T (x − μ)⟩` with the transport map `T`.
fn influences(
    set: &Features,
    mean: &DVector<f64>,
    transport: &DMatrix<f64>,
    shift: &DVector<f64>,
) -> Vec<f64> {
    let mut influences = Vec::with_capacity(set.len());
    for (_, mut columns) in set.parts() {
        for mut column in columns.column_iter_mut() {
            column -= mean;
        }
        let moved = transport * &columns;
        influences.extend(
            columns
                .column_iter()
                .zip(moved.column_iter())
                .map(|(column, moved)| {
                    2.0 * shift.dot(&column) + column.norm_squared() - moved.norm_squared()
                }),
        );
    }
    influences
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;
    use crate::error::Error;
    use burn::tensor::Tensor;

    fn distance(one: Tensor<2>, other: Tensor<2>) -> Estimate {
        frechet_distance(&features(one), &features(other)).unwrap()
    }

    /// On one axis the distance is `(μ − ν)² + (s − t)²`.
    #[test]
    fn one_feature_has_a_closed_form() {
        let one = normal(1, 40, 1);
        let found = distance(one.clone(), one.clone() * 3.0 + 2.0);
        let values: Vec<f64> = one.into_data().iter().collect();
        let (mean, deviation) = mean_and_deviation(&values);
        let expected = (2.0 * mean + 2.0).powi(2) + (2.0 * deviation).powi(2);
        assert!((found.value - expected).abs() < 1e-5, "{found} {expected}");
    }

    /// The weight-free test of pytorch-fid: means 0 and 1 with the same covariance.
    #[test]
    fn a_shift_of_every_feature_counts_each_of_them_once() {
        for (rows, dimension) in [(200, 48), (20, 48), (4, 4), (2, 64)] {
            let one = normal(2, rows, dimension);
            let found = distance(one.clone(), one + 1.0);
            let error = (found.value / dimension as f64 - 1.0).abs();
            assert!(error < 1e-5, "{rows} × {dimension}: {found}");
            assert!(found.low.is_finite() && found.low <= found.high);
        }
    }

    #[test]
    fn a_set_has_no_distance_from_itself_and_the_distance_is_symmetric() {
        for rows in [10, 300] {
            let (one, other) = (normal(3, rows, 24), normal(4, rows, 24) * 1.5);
            assert!(distance(one.clone(), one.clone()).value.abs() < 1e-5);
            let (there, back) = (distance(one.clone(), other.clone()), distance(other, one));
            assert!((there.value - back.value).abs() < 1e-6 * there.value);
            assert!(
                (there.high - back.high).abs() < 1e-4 * there.high,
                "{there} {back}"
            );
        }
    }

    #[test]
    fn constant_features_are_no_trouble() {
        let one = normal(5, 30, 3) * 0.0;
        let found = distance(one.clone(), one + 2.0);
        assert!((found.value - 12.0).abs() < 1e-9, "{found}");
    }

    /// Few points are decomposed by their products, moments by their covariance.
    #[test]
    fn moments_give_the_same_distance_and_single_points_none() {
        for dimension in [5, 50, 90] {
            let [one, other] =
                [(6, 50), (7, 60)].map(|(seed, rows)| features(normal(seed, rows, dimension)));
            let expected = frechet_distance(&one, &other).unwrap().value;
            let moments = [&one, &other].map(Moments::of);
            let found = frechet_distance_of_moments(&moments[0], &moments[1]).unwrap();
            assert!(
                (found - expected).abs() < 1e-9 * expected,
                "{found} {expected}"
            );
        }
        let [several, single] = [50, 1].map(|rows| Moments::of(&features(normal(8, rows, 5))));
        let error = frechet_distance_of_moments(&several, &single).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }

    /// Normal distributions that differ in mean and covariance: `4 · 0.8² + 4 · (2 − 1)²`.
    #[test]
    fn intervals_cover_the_distance_of_the_distributions() {
        const RUNS: u64 = 200;
        let truth = 4.0 * 0.64 + 4.0;
        let covers = |run: &u64| {
            let (one, other) = (normal(10 + run, 400, 4), normal(9000 + run, 400, 4));
            let found = distance(one * 2.0 + 0.8, other);
            found.low <= truth && truth <= found.high
        };
        let covered = (0..RUNS).filter(covers).count() as f64 / RUNS as f64;
        // The bias, four times the variance of a deviation, costs a little.
        assert!((0.88..=0.995).contains(&covered), "{covered}");
    }
}
