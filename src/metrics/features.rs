//! Feature vectors of a set, and their moments.

use burn::tensor::Tensor;
use nalgebra::{DMatrix, DVector};

use super::estimate::check_samples;
use crate::error::{Error, Result, check_range, check_shape};
use crate::host::{read_f32, to_f32};

/// The feature vectors of a set of points, on the host, with a text that says how they were made.
///
/// That text names everything that changes a metric: network, layer, resize. Metrics repeat it next
/// to their number, and refuse two sets that were made differently.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::metrics::Features;
///
/// let mut features = Features::new("inception-v3-compat, 2048, tensorflow1");
/// for _ in 0..3 {
///     features.push(Tensor::<2>::ones([16, 2048], &Device::flex()))?;
/// }
/// assert_eq!((features.len(), features.dimension()), (48, 2048));
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    made_by: String,
    dimension: usize,
    values: Vec<f32>,
}

impl Features {
    /// An empty set of features that are made in this way.
    pub fn new(made_by: impl Into<String>) -> Self {
        Self {
            made_by: made_by.into(),
            dimension: 0,
            values: Vec::new(),
        }
    }

    /// The features of one batch.
    ///
    /// # Errors
    /// Those of [`push`](Features::push).
    pub fn of(made_by: impl Into<String>, batch: Tensor<2>) -> Result<Self> {
        let mut features = Self::new(made_by);
        features.push(batch)?;
        Ok(features)
    }

    /// Adds the features of a batch, `[rows, dimension]`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for another dimension than before, [`Error::NonFinitePoint`],
    /// [`Error::DeviceRead`].
    pub fn push(&mut self, batch: Tensor<2>) -> Result<()> {
        let [rows, dimension] = batch.dims();
        if rows == 0 {
            return Ok(());
        }
        if !self.is_empty() {
            let remedy = "use the same network and layer for the whole set";
            check_shape("a feature vector", &[self.dimension], &[dimension], remedy)?;
        }
        let (name, requirement) = ("the dimension of the features", "at least 1");
        check_range(name, dimension as f64, dimension > 0, requirement)?;
        let values = read_f32(to_f32(batch), "the features")?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let (point, value) = (self.len() + index / dimension, values[index]);
            return Err(Error::NonFinitePoint { point, value });
        }
        self.dimension = dimension;
        self.values.extend(values);
        Ok(())
    }

    /// The number of points.
    pub fn len(&self) -> usize {
        self.values.len() / self.dimension.max(1)
    }

    /// Whether there are no points.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The length of a feature vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// How the features were made.
    pub fn made_by(&self) -> &str {
        &self.made_by
    }

    /// The feature vector of a point.
    ///
    /// # Panics
    /// If there is no such point, as indexing does.
    pub fn row(&self, point: usize) -> &[f32] {
        &self.values[point * self.dimension..][..self.dimension]
    }

    /// Some consecutive points as the columns of a matrix in f64.
    pub(super) fn columns(&self, first: usize, count: usize) -> DMatrix<f64> {
        let values = &self.values[first * self.dimension..][..count * self.dimension];
        let values = values.iter().map(|&value| f64::from(value));
        DMatrix::from_iterator(self.dimension, count, values)
    }

    /// The set in parts of a bounded number of points: the first point, and the columns.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, DMatrix<f64>)> + '_ {
        let count = self.len();
        (0..count)
            .step_by(PART)
            .map(move |first| (first, self.columns(first, PART.min(count - first))))
    }
}

/// Points whose features are held in f64 at a time.
const PART: usize = 512;

/// Checks that two sets can be compared and have at least two points each.
pub(super) fn check_comparable(one: &Features, other: &Features) -> Result<()> {
    check_samples(one.len())?;
    check_samples(other.len())?;
    check_made_alike(one, other)
}

/// Checks that two sets were made in the same way.
pub(super) fn check_made_alike(one: &Features, other: &Features) -> Result<()> {
    if one.made_by != other.made_by {
        return Err(Error::InvalidSetting {
            what: format!(
                "features made by `{}` are compared with features made by `{}`",
                one.made_by, other.made_by
            ),
            remedy: "make both sets with the same network, layer and resize",
        });
    }
    let remedy = "use the same network and layer for both sets";
    check_shape(
        "a feature vector",
        &[one.dimension],
        &[other.dimension],
        remedy,
    )
}

/// Number, mean and covariance of feature vectors, in f64.
///
/// Batches are added by the update of Chan, Golub and LeVeque, so memory is that of one covariance
/// and nothing cancels.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    count: usize,
    mean: DVector<f64>,
    /// `Σ (x − mean)(x − mean)ᵀ`.
    scatter: DMatrix<f64>,
}

impl Moments {
    /// Moments of no vector of this length.
    pub fn new(dimension: usize) -> Self {
        Self {
            count: 0,
            mean: DVector::zeros(dimension),
            scatter: DMatrix::zeros(dimension, dimension),
        }
    }

    /// The moments of a set.
    pub fn of(features: &Features) -> Self {
        let mut moments = Self::new(features.dimension);
        for (_, columns) in features.parts() {
            moments.add(columns);
        }
        moments
    }

    /// Adds the features of a batch, `[rows, dimension]`, for a set that is not kept.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::NonFinitePoint`], [`Error::DeviceRead`].
    pub fn push(&mut self, batch: Tensor<2>) -> Result<()> {
        let remedy = "use the same network and layer for the whole set";
        check_shape(
            "a feature vector",
            &[self.mean.len()],
            &batch.dims()[1..],
            remedy,
        )?;
        let batch = Features::of("", batch)?;
        for (_, columns) in batch.parts() {
            self.add(columns);
        }
        Ok(())
    }

    fn add(&mut self, mut columns: DMatrix<f64>) {
        let (before, added) = (self.count as f64, columns.ncols() as f64);
        let mean = columns.column_mean();
        for mut column in columns.column_iter_mut() {
            column -= &mean;
        }
        let shift = mean - &self.mean;
        let share = added / (before + added);
        self.scatter.gemm(1.0, &columns, &columns.transpose(), 1.0);
        self.scatter.ger(before * share, &shift, &shift, 1.0);
        self.mean.axpy(share, &shift, 1.0);
        self.count += columns.ncols();
    }

    /// The number of vectors.
    pub fn count(&self) -> usize {
        self.count
    }

    pub(super) fn mean(&self) -> &DVector<f64> {
        &self.mean
    }

    /// The covariance with the divisor `n − 1`, symmetric to the last digit.
    pub(super) fn covariance(&self) -> DMatrix<f64> {
        let divisor = 2.0 * (self.count as f64 - 1.0);
        (&self.scatter + self.scatter.transpose()) / divisor
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;

    /// Normal features.
    pub(in crate::metrics) fn normal(seed: u64, rows: usize, dimension: usize) -> Tensor<2> {
        let (stream, device) = (Stream::Evaluation, Device::flex());
        normal_noise([rows, dimension], seed, 0, 0, stream, &device)
    }

    pub(in crate::metrics) fn features(batch: Tensor<2>) -> Features {
        Features::of("numbers", batch).unwrap()
    }

    /// A mean that is large against the deviation, and more points than are added at a time.
    #[test]
    fn moments_are_those_of_the_whole_set_in_any_batches() {
        let batch = normal(1, PART + 9, 3) + 1e3;
        let whole = features(batch.clone());
        let mut pushed = Moments::new(3);
        for (first, rows) in [(0, 1), (1, 500), (501, PART + 9 - 501)] {
            pushed.push(batch.clone().narrow(0, first, rows)).unwrap();
        }
        let count = whole.len() as f64;
        let mean = |axis: usize| {
            let values = (0..whole.len()).map(|row| f64::from(whole.row(row)[axis]));
            values.sum::<f64>() / count
        };
        for moments in [Moments::of(&whole), pushed] {
            assert_eq!(moments.count(), whole.len());
            for (i, j) in [(0, 0), (0, 1), (2, 1)] {
                let products = (0..whole.len()).map(|row| {
                    let of = |axis: usize| f64::from(whole.row(row)[axis]) - mean(axis);
                    of(i) * of(j)
                });
                let expected = products.sum::<f64>() / (count - 1.0);
                assert!((moments.covariance()[(i, j)] - expected).abs() < 1e-9);
            }
            assert!((moments.mean()[2] - mean(2)).abs() < 1e-9);
        }
    }

    #[test]
    fn sets_that_were_made_differently_are_not_compared() {
        let batch = normal(1, 4, 3);
        let one = features(batch.clone());
        let other = Features::of("other numbers", batch.clone()).unwrap();
        let error = check_comparable(&one, &other).unwrap_err();
        assert!(error.to_string().contains("`other numbers`"), "{error}");
        let error = check_comparable(&one, &features(normal(1, 4, 2))).unwrap_err();
        assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
        let error = check_comparable(&one, &features(normal(1, 1, 3))).unwrap_err();
        assert!(
            matches!(error, Error::OutOfRange { value: 1.0, .. }),
            "{error}"
        );
        let error = Features::of("numbers", batch * f64::NAN).unwrap_err();
        assert!(matches!(error, Error::NonFinitePoint { .. }), "{error}");
    }
}
