//! Distances between a point and a set.

use burn::tensor::Tensor;

use super::points::chunk_rows;
use crate::host::squared_norms;

/// `‖point − x_j‖²`, computed from differences, so that near duplicates keep their digits.
///
/// # Shapes
/// - `set`: `[n, …]`, not empty; `point`: `[1, …]`; the result: `[n]`
pub(crate) fn squared_distances<const D: usize>(set: &Tensor<D>, point: &Tensor<D>) -> Tensor<1> {
    let (count, elements) = (set.dims()[0], set.dims()[1..].iter().product());
    // Only the differences of one chunk are held at a time.
    let chunk = chunk_rows(elements, &set.device());
    let parts = (0..count).step_by(chunk).map(|first| {
        let rows = set.clone().narrow(0, first, chunk.min(count - first));
        squared_norms(rows - point.clone())
    });
    Tensor::cat(parts.collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;

    /// More rows than fit in a chunk, and points that differ in their last digits.
    #[test]
    fn chunks_join_and_near_duplicates_keep_their_digits() {
        let device = Device::flex();
        let rows = 2 * chunk_rows(1024, &device) + 3;
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
