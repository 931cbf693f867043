//! The ideal denoiser of whole points: the posterior mean of the clean point over the whole data
//! set.

use std::ops::Range;

use burn::tensor::{Bool, Device, Tensor, TensorData};

use crate::data::Points;
use crate::data::distances::squared_distances;
use crate::data::points::load;
use crate::error::{Result, check_shape};
use crate::host::{read_f32, select_rows, squared_norms, to_f32};

/// The posterior mean of the clean point, given a noisy one, over a data set.
pub(super) trait Posterior {
    /// The posterior mean given `m = γ u + σ ε`, for each `ρ = γ/σ`.
    ///
    /// # Shapes
    /// - `rows`: the point `u` of each noise; `noise` and each result: `[rows, elements]`
    fn means(&self, rows: &[usize], noise: &Tensor<2>, ratios: &[f64]) -> Result<Vec<Tensor<2>>>;
}

/// The most retained points that are processed at a time.
const CHUNK: usize = 4096;

/// The most numbers of retained points that are held at a time.
const CHUNK_ELEMENTS: usize = 1 << 24;

/// The points of a set, each flattened.
#[derive(Debug)]
pub(super) struct Flat<'a, const D: usize>(pub(super) &'a dyn Points<D>);

impl<const D: usize> Points<2> for Flat<'_, D> {
    fn dims(&self) -> [usize; 2] {
        let shape = self.0.dims();
        [shape[0], shape[1..].iter().product()]
    }

    fn load(&self, rows: Range<usize>) -> Result<Tensor<2>> {
        let (points, elements) = (self.0.load(rows)?, self.dims()[1]);
        let count = points.dims()[0];
        let mut shape = self.0.dims();
        shape[0] = count;
        let remedy = "return points with the announced shape";
        check_shape("the loaded points", &shape, &points.dims(), remedy)?;
        Ok(points.reshape([count, elements]))
    }
}

/// Flattens each point.
pub(super) fn flat<const D: usize>(points: &Tensor<D>) -> Tensor<2> {
    let elements: usize = points.dims()[1..].iter().product();
    to_f32(points.clone().inner()).reshape([points.dims()[0], elements])
}

/// Points to be reconstructed by the ideal denoiser, and the data set, all flattened.
#[derive(Debug)]
pub(super) struct Ideal<'a> {
    /// `[n, elements]`.
    retained: &'a dyn Points<2>,
    /// `[points, elements]`.
    points: Tensor<2>,
    /// `‖u − x_j‖²`, `[points, n]`; infinite where a point is left out of a posterior.
    squared_distances: Tensor<2>,
}

impl<'a> Ideal<'a> {
    /// # Errors
    /// Those of the retained set.
    pub(super) fn new(retained: &'a dyn Points<2>, points: Tensor<2>) -> Result<Self> {
        let mut parts = Vec::new();
        for chunk in chunks(retained, &points.device()) {
            let (_, chunk) = chunk?;
            let of_point = (0..points.dims()[0]).map(|row| {
                let point = points.clone().narrow(0, row, 1);
                squared_distances(&chunk, &point).unsqueeze_dim(0)
            });
            parts.push(Tensor::cat(of_point.collect(), 0));
        }
        Ok(Self {
            squared_distances: Tensor::cat(parts, 1),
            retained,
            points,
        })
    }

    /// Leaves retained points that equal the point value by value out of its posterior.
    pub(super) fn without_duplicates(mut self) -> Self {
        let is_same = self.squared_distances.clone().equal_elem(0.0);
        self.squared_distances = self.squared_distances.mask_fill(is_same, f32::INFINITY);
        self
    }

    /// Leaves retained points of another group out of a point's posterior.
    pub(super) fn within_groups(mut self, retained: &[u64], points: &[u64]) -> Self {
        let is_other = points
            .iter()
            .flat_map(|point| retained.iter().map(move |other| other != point));
        let shape = [points.len(), retained.len()];
        let is_other = TensorData::new(is_other.collect::<Vec<bool>>(), shape);
        let is_other = Tensor::<2, Bool>::from_data(is_other, &self.points.device());
        self.squared_distances = self.squared_distances.mask_fill(is_other, f32::INFINITY);
        self
    }

    /// The first point whose posterior has no retained points.
    pub(super) fn first_unexplained(&self) -> Result<Option<usize>> {
        let nearest = self.squared_distances.clone().min_dim(1);
        let nearest = read_f32(nearest, "distances to retained points")?;
        Ok(nearest.iter().position(|distance| distance.is_infinite()))
    }

    /// The shape of the points, `[points, elements]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        self.points.dims()
    }

    /// `‖x̂ − u‖²` of each row, mean over elements.
    pub(super) fn errors(&self, rows: &[usize], mean: Tensor<2>) -> Tensor<1> {
        let elements = self.shape()[1] as f64;
        squared_norms(self.deviations(rows, mean)) / elements
    }

    /// `x̂ − u` of each row.
    pub(super) fn deviations(&self, rows: &[usize], mean: Tensor<2>) -> Tensor<2> {
        mean - select_rows(&self.points, rows)
    }

    /// The points on the host.
    pub(super) fn host_points(&self) -> Result<Vec<f32>> {
        read_f32(self.points.clone(), "the points")
    }

    /// `‖u − x_j‖²` on the host, one row of retained points per point; infinite where one is left
    /// out.
    pub(super) fn distances(&self) -> Result<Vec<f32>> {
        read_f32(
            self.squared_distances.clone(),
            "distances to retained points",
        )
    }
}

/// `x̂ = Σ_j p_j x_j` with `p = softmax_j −‖m − γ x_j‖²/2σ²`.
///
/// The exponents are `ρ ⟨x_j, ε⟩ − ρ² ‖u − x_j‖²/2`, up to a number that is the same within a row.
/// Chunks of the data set are joined by their largest exponents, so nothing overflows and no more
/// than one chunk is held. The products of a chunk with the noise serve every `ρ`.
impl Posterior for &Ideal<'_> {
    fn means(&self, rows: &[usize], noise: &Tensor<2>, ratios: &[f64]) -> Result<Vec<Tensor<2>>> {
        let mut joined: Vec<Option<Part>> = ratios.iter().map(|_| None).collect();
        let distances = select_rows(&self.squared_distances, rows);
        for chunk in chunks(self.retained, &noise.device()) {
            let (first, chunk) = chunk?;
            let along_noise = noise.clone().matmul(chunk.clone().transpose());
            let distances = distances.clone().narrow(1, first, chunk.dims()[0]);
            for (joined, &ratio) in joined.iter_mut().zip(ratios) {
                // At γ = 0 a point that is left out must stay infinitely far: infinity times 0 is
                // NaN.
                let scale = (0.5 * ratio * ratio).max(SMALLEST_SCALE);
                let exponents = along_noise.clone() * ratio - distances.clone() * scale;
                let part = Part::new(exponents, chunk.clone());
                *joined = Some(match joined.take() {
                    None => part,
                    Some(joined) => joined.join(part),
                });
            }
        }
        let mean = |joined: Option<Part>| match joined {
            Some(Part { sum, weighted, .. }) => weighted / sum,
            None => noise.clone(),
        };
        Ok(joined.into_iter().map(mean).collect())
    }
}

/// A data set in parts: the number of the first row, and the rows.
pub(super) fn chunks<'a>(
    retained: &'a dyn Points<2>,
    device: &'a Device,
) -> impl Iterator<Item = Result<(usize, Tensor<2>)>> + 'a {
    let [count, elements] = retained.dims();
    let size = (CHUNK_ELEMENTS / elements.max(1)).clamp(1, CHUNK);
    (0..count).step_by(size).map(move |first| {
        let rows = first..count.min(first + size);
        Ok((first, load(retained, rows, device)?))
    })
}

/// All points of a set on the host.
pub(super) fn on_host(points: &dyn Points<2>, device: &Device) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(points.dims().iter().product());
    for chunk in chunks(points, device) {
        values.extend(read_f32(chunk?.1, "the retained points")?);
    }
    Ok(values)
}

/// A chunk's share of a softmax.
struct Part {
    /// The largest exponent, `[rows, 1]`.
    largest: Tensor<2>,
    /// `Σ exp(exponent − largest)`, `[rows, 1]`.
    sum: Tensor<2>,
    /// `Σ exp(exponent − largest) x_j`, `[rows, elements]`.
    weighted: Tensor<2>,
}

/// Too small to matter for a distance, but not for infinity.
const SMALLEST_SCALE: f64 = 1e-30;

/// Stands for an exponent of `−∞`, but allows differences.
const LOWEST: f64 = -1e30;

impl Part {
    fn new(exponents: Tensor<2>, chunk: Tensor<2>) -> Self {
        let largest = exponents.clone().max_dim(1).clamp_min(LOWEST);
        let powers = (exponents - largest.clone()).exp();
        Self {
            sum: powers.clone().sum_dim(1),
            weighted: powers.matmul(chunk),
            largest,
        }
    }

    fn join(self, other: Part) -> Part {
        let largest = self.largest.clone().max_pair(other.largest.clone());
        let own = (self.largest - largest.clone()).exp();
        let others = (other.largest - largest.clone()).exp();
        Part {
            sum: self.sum * own.clone() + other.sum * others.clone(),
            weighted: self.weighted * own + other.weighted * others,
            largest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;

    fn noise(seed: u64, shape: [usize; 2]) -> Tensor<2> {
        normal_noise(shape, seed, 0, 0, Stream::Noise, &Device::flex())
    }

    fn posterior_mean(
        ideal: &Ideal<'_>,
        rows: &[usize],
        noise: Tensor<2>,
        ratio: f64,
    ) -> Tensor<2> {
        // Together with another ratio, which must not matter.
        ideal.means(rows, &noise, &[0.3, ratio]).unwrap().remove(1)
    }

    fn host(tensor: Tensor<2>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    #[test]
    fn the_posterior_of_one_point_is_that_point() {
        let retained = noise(1, [1, 5]);
        let ideal = Ideal::new(&retained, noise(2, [3, 5])).unwrap();
        let mean = posterior_mean(&ideal, &[0, 1, 2, 2], noise(3, [4, 5]), 3.0);
        for row in host(mean).chunks(5) {
            assert_eq!(row, host(retained.clone()));
        }
    }

    /// The posterior mean of a standard Gaussian is linear in the noisy point:
    /// `x̂ = γ m / (γ² + σ²)`.
    #[test]
    fn the_posterior_of_a_gaussian_set_is_linear() {
        let retained = noise(1, [200_000, 1]);
        let points = noise(2, [4, 1]) * 0.7;
        let ideal = Ideal::new(&retained, points.clone()).unwrap();
        for (gamma, sigma) in [(0.8, 0.6), (0.3, 0.954)] {
            let epsilon = noise(3, [4, 1]);
            let noisy = points.clone() * gamma + epsilon.clone() * sigma;
            let mean = host(posterior_mean(
                &ideal,
                &[0, 1, 2, 3],
                epsilon,
                gamma / sigma,
            ));
            for (mean, noisy) in mean.iter().zip(host(noisy)) {
                let expected = gamma * noisy / (gamma * gamma + sigma * sigma);
                assert!((mean - expected).abs() < 0.02, "{mean} {expected}");
            }
        }
    }

    /// More points than a chunk, against the definition in f64.
    #[test]
    fn chunks_join_to_the_definition() {
        let (count, elements) = (2 * CHUNK + 17, 6);
        let retained = noise(1, [count, elements]);
        let (points, epsilon) = (noise(2, [2, elements]), noise(3, [2, elements]));
        let (gamma, sigma) = (0.9f64, (1.0f64 - 0.81).sqrt());
        let ideal = Ideal::new(&retained, points.clone()).unwrap();
        let mean = host(posterior_mean(
            &ideal,
            &[0, 1],
            epsilon.clone(),
            gamma / sigma,
        ));
        let (x, u, e) = (host(retained), host(points), host(epsilon));
        for row in 0..2 {
            let m: Vec<f64> = (0..elements)
                .map(|i| gamma * u[row * elements + i] + sigma * e[row * elements + i])
                .collect();
            let exponents: Vec<f64> = x
                .chunks(elements)
                .map(|x| {
                    let squares = m.iter().zip(x).map(|(m, x)| (m - gamma * x).powi(2));
                    -squares.sum::<f64>() / (2.0 * sigma * sigma)
                })
                .collect();
            let largest = exponents.iter().copied().fold(f64::MIN, f64::max);
            let powers: Vec<f64> = exponents.iter().map(|e| (e - largest).exp()).collect();
            let sum: f64 = powers.iter().sum();
            for i in 0..elements {
                let weighted = powers.iter().zip(x.chunks(elements)).map(|(p, x)| p * x[i]);
                let expected = weighted.sum::<f64>() / sum;
                assert!(
                    (mean[row * elements + i] - expected).abs() < 1e-4,
                    "{row} {i}"
                );
            }
        }
    }

    #[test]
    fn a_point_that_is_left_out_does_not_explain_itself() {
        let retained = noise(1, [50, 4]);
        let own = retained.clone().narrow(0, 7, 1);
        let with = Ideal::new(&retained, own.clone()).unwrap();
        let without = Ideal::new(&retained, own.clone())
            .unwrap()
            .without_duplicates();
        let epsilon = noise(2, [1, 4]);
        // So little noise that the nearest point is certain.
        let mean = |ideal: Ideal<'_>| posterior_mean(&ideal, &[0], epsilon.clone(), 1e3);
        assert_eq!(host(mean(with)), host(own.clone()));
        let nearest = host(mean(without));
        assert!(nearest.iter().all(|value| value.is_finite()));
        assert_ne!(nearest, host(own.clone()));

        // Without signal all others are equally likely.
        let without = Ideal::new(&retained, own.clone())
            .unwrap()
            .without_duplicates();
        let got = host(posterior_mean(&without, &[0], epsilon, 0.0));
        let others = (retained.sum_dim(0) - own) / 49.0;
        for (got, expected) in got.iter().zip(host(others)) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }

    /// The last chunk holds nothing except the point itself.
    #[test]
    fn a_chunk_of_left_out_points_alone_has_no_part() {
        let retained = noise(1, [CHUNK + 1, 4]);
        let own = retained.clone().narrow(0, CHUNK, 1);
        let others = retained.clone().narrow(0, 0, CHUNK);
        let epsilon = noise(2, [1, 4]);
        for ratio in [0.0, 0.5, 30.0] {
            let ideal = Ideal::new(&retained, own.clone())
                .unwrap()
                .without_duplicates();
            let got = host(posterior_mean(&ideal, &[0], epsilon.clone(), ratio));
            let ideal = Ideal::new(&others, own.clone()).unwrap();
            let expected = host(posterior_mean(&ideal, &[0], epsilon.clone(), ratio));
            assert_eq!(got, expected, "{ratio}");
        }
    }
}
