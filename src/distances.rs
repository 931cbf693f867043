//! Distances of a point from a set.

use burn::tensor::Tensor;

use crate::host::squared_norms;

/// Elements of differences that are held at a time: few enough to stay in a cache.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// `‖point − x_j‖²`, from differences, so that near duplicates keep their digits.
///
/// # Shapes
/// - `set`: `[n, …]`, not empty; `point`: `[1, …]`; the result: `[n]`
pub(crate) fn squared_distances<const D: usize>(set: &Tensor<D>, point: &Tensor<D>) -> Tensor<1> {
    let parts = chunks(set).map(|(_, part)| squared_norms(part - point.clone()));
    Tensor::cat(parts.collect(), 0)
}

/// A set in parts of a few rows: the number of the first, and the rows.
pub(crate) fn chunks<const D: usize>(
    set: &Tensor<D>,
) -> impl Iterator<Item = (usize, Tensor<D>)> + '_ {
    let count = set.dims()[0];
    let elements: usize = set.dims()[1..].iter().product();
    let chunk = (CHUNK_ELEMENTS / elements.max(1)).max(1);
    (0..count).step_by(chunk).map(move |first| {
        let rows = chunk.min(count - first);
        (first, set.clone().narrow(0, first, rows))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;

    /// More rows than a chunk holds, and points that differ in their last digits.
    #[test]
    fn chunks_join_and_near_duplicates_keep_their_digits() {
        let device = Device::flex();
        let rows = 2 * CHUNK_ELEMENTS / 1024 + 3;
        let set: Tensor<2> = normal_noise([rows, 1024], 1, 0, 0, Stream::Noise, &device);
        let point = set.clone().narrow(0, 5, 1) + 1e-3;
        let got: Vec<f64> = squared_distances(&set, &point).into_data().iter().collect();
        let values: Vec<f64> = set.into_data().iter().collect();
        let point: Vec<f64> = point.into_data().iter().collect();
        for (row, got) in values.chunks(1024).zip(&got) {
            let squares = row.iter().zip(&point).map(|(x, a)| (x - a).powi(2));
            let expected: f64 = squares.sum();
            assert!((got / expected - 1.0).abs() < 1e-5, "{got} {expected}");
        }
        assert_eq!(got.len(), rows);
    }
}
