//! The ideal denoiser of a data set: the posterior mean of the clean point, over the whole set and of whole points.

use burn::tensor::Tensor;

use crate::distances::squared_distances;
use crate::error::Result;
use crate::host::{read_f32, select_rows, squared_norms};

/// The posterior mean of the clean point, given a noisy one, over a data set.
pub(super) trait Posterior {
    /// At `m = γ u + σ ε` for each `ρ = γ/σ`.
    ///
    /// # Shapes
    /// - `rows`: the point `u` of each noise; `noise` and each result: `[rows, elements]`
    fn means(&self, rows: &[usize], noise: &Tensor<2>, ratios: &[f64]) -> Result<Vec<Tensor<2>>>;
}

/// Retained points that are looked at together.
const CHUNK: usize = 4096;

/// Points whose ideal reconstruction is asked for, and the data set, all flattened.
#[derive(Debug)]
pub(super) struct Ideal<'a> {
    /// `[n, elements]`.
    retained: &'a Tensor<2>,
    /// `[points, elements]`.
    points: Tensor<2>,
    /// `‖u − x_j‖²`, `[points, n]`; infinite where a point is left out of its own posterior.
    squared_distances: Tensor<2>,
}

impl<'a> Ideal<'a> {
    pub(super) fn new(retained: &'a Tensor<2>, points: Tensor<2>) -> Self {
        let rows = (0..points.dims()[0]).map(|row| {
            let point = points.clone().narrow(0, row, 1);
            squared_distances(retained, &point).unsqueeze_dim(0)
        });
        Self {
            squared_distances: Tensor::cat(rows.collect(), 0),
            retained,
            points,
        }
    }

    /// Leaves retained points that are the point itself, value by value, out of its posterior.
    pub(super) fn without_duplicates(mut self) -> Self {
        let is_same = self.squared_distances.clone().equal_elem(0.0);
        self.squared_distances = self.squared_distances.mask_fill(is_same, f32::INFINITY);
        self
    }

    /// `[points, elements]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        self.points.dims()
    }

    /// The first point that is a retained one, value by value, and which.
    pub(super) fn first_duplicate(&self) -> Result<Option<(usize, usize)>> {
        let (nearest, at) = self.squared_distances.clone().min_dim_with_indices(1);
        let nearest = read_f32(nearest, "distances to retained points")?;
        let point = nearest.iter().position(|&distance| distance == 0.0);
        let at: Vec<i64> = at.into_data().iter::<i64>().collect();
        Ok(point.map(|point| (point, at[point] as usize)))
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

    #[cfg(test)]
    pub(super) fn retained(&self) -> &Tensor<2> {
        self.retained
    }

    /// The points on the host.
    pub(super) fn host_points(&self) -> Result<Vec<f32>> {
        read_f32(self.points.clone(), "the points")
    }

    /// `‖u − x_j‖²` on the host, a line of retained points for each point; infinite where one is left out.
    pub(super) fn distances(&self) -> Result<Vec<f32>> {
        read_f32(
            self.squared_distances.clone(),
            "distances to retained points",
        )
    }

    /// `x̂ = Σ_j p_j x_j` with `p = softmax_j −‖m − γ x_j‖²/2σ²`.
    ///
    /// The exponents are `ρ ⟨x_j, ε⟩ − ρ² ‖u − x_j‖²/2`, up to a number that a row has in common. Chunks of the data set are
    /// joined by their largest exponents, so nothing overflows and no more than a chunk is held.
    fn posterior_mean(&self, rows: &[usize], noise: Tensor<2>, ratio: f64) -> Tensor<2> {
        let mut joined: Option<Part> = None;
        // At γ = 0 a point that is left out must stay infinitely far: infinity times 0 is no number.
        let scale = (0.5 * ratio * ratio).max(SMALLEST_SCALE);
        let distances = select_rows(&self.squared_distances, rows);
        let count = self.retained.dims()[0];
        for first in (0..count).step_by(CHUNK) {
            let size = CHUNK.min(count - first);
            let chunk = self.retained.clone().narrow(0, first, size);
            let along_noise = noise.clone().matmul(chunk.clone().transpose());
            let exponents = along_noise * ratio - distances.clone().narrow(1, first, size) * scale;
            let part = Part::new(exponents, chunk);
            joined = Some(match joined {
                None => part,
                Some(joined) => joined.join(part),
            });
        }
        match joined {
            Some(Part { sum, weighted, .. }) => weighted / sum,
            None => noise,
        }
    }
}

impl Posterior for &Ideal<'_> {
    fn means(&self, rows: &[usize], noise: &Tensor<2>, ratios: &[f64]) -> Result<Vec<Tensor<2>>> {
        let mean = |&ratio: &f64| self.posterior_mean(rows, noise.clone(), ratio);
        Ok(ratios.iter().map(mean).collect())
    }
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

/// Too small to matter to a distance, but not to infinity.
const SMALLEST_SCALE: f64 = 1e-30;

/// Stands for an exponent of `−∞`, of which differences can be taken.
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

    fn host(tensor: Tensor<2>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    #[test]
    fn the_posterior_of_one_point_is_that_point() {
        let retained = noise(1, [1, 5]);
        let ideal = Ideal::new(&retained, noise(2, [3, 5]));
        let mean = ideal.posterior_mean(&[0, 1, 2, 2], noise(3, [4, 5]), 3.0);
        for row in host(mean).chunks(5) {
            assert_eq!(row, host(retained.clone()));
        }
    }

    /// The posterior mean of a standard Gaussian is linear in the noisy point: `x̂ = γ m / (γ² + σ²)`.
    #[test]
    fn the_posterior_of_a_gaussian_set_is_linear() {
        let retained = noise(1, [200_000, 1]);
        let points = noise(2, [4, 1]) * 0.7;
        let ideal = Ideal::new(&retained, points.clone());
        for (gamma, sigma) in [(0.8, 0.6), (0.3, 0.954)] {
            let epsilon = noise(3, [4, 1]);
            let noisy = points.clone() * gamma + epsilon.clone() * sigma;
            let mean = host(ideal.posterior_mean(&[0, 1, 2, 3], epsilon, gamma / sigma));
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
        let ideal = Ideal::new(&retained, points.clone());
        let mean = host(ideal.posterior_mean(&[0, 1], epsilon.clone(), gamma / sigma));
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
        let with = Ideal::new(&retained, own.clone());
        let without = Ideal::new(&retained, own.clone()).without_duplicates();
        let epsilon = noise(2, [1, 4]);
        // So little noise that the nearest point is certain.
        let mean = |ideal: Ideal<'_>| ideal.posterior_mean(&[0], epsilon.clone(), 1e3);
        assert_eq!(host(mean(with)), host(own.clone()));
        let nearest = host(mean(without));
        assert!(nearest.iter().all(|value| value.is_finite()));
        assert_ne!(nearest, host(own.clone()));

        // Without signal all others are equally likely.
        let without = Ideal::new(&retained, own.clone()).without_duplicates();
        let got = host(without.posterior_mean(&[0], epsilon, 0.0));
        let others = (retained.sum_dim(0) - own) / 49.0;
        for (got, expected) in got.iter().zip(host(others)) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }

    /// The last chunk holds nothing but the point itself.
    #[test]
    fn a_chunk_of_left_out_points_alone_has_no_part() {
        let retained = noise(1, [CHUNK + 1, 4]);
        let own = retained.clone().narrow(0, CHUNK, 1);
        let others = retained.clone().narrow(0, 0, CHUNK);
        let epsilon = noise(2, [1, 4]);
        for ratio in [0.0, 0.5, 30.0] {
            let ideal = Ideal::new(&retained, own.clone()).without_duplicates();
            let got = host(ideal.posterior_mean(&[0], epsilon.clone(), ratio));
            let ideal = Ideal::new(&others, own.clone());
            let expected = host(ideal.posterior_mean(&[0], epsilon.clone(), ratio));
            assert_eq!(got, expected, "{ratio}");
        }
    }
}
