//! The best linear denoiser of a data set, element by element.
//!
//! A model that generalises does no worse than this denoiser on a single point, apart from a factor
//! by which it is worse on every point.

use std::collections::HashMap;

use burn::tensor::Device;

use super::ideal::chunks;
use crate::data::Points;
use crate::error::Result;
use crate::host::read_f32;

/// Mean and variance of each element of a data set.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Linear {
    /// `E ‖x̂ − u‖²`, mean over elements, of `x̂ = μ + γv/(γ²v + σ²) (m − γμ)` at `m = γ u + σ ε`,
    /// with `ρ = γ/σ`: `((u − μ)² + ρ²v²) / (1 + ρ²v)²` in each element.
    pub(super) fn error(&self, point: &[f32], ratio: f64) -> f64 {
        let square = ratio * ratio;
        let moments = self.mean.iter().zip(&self.variance);
        let errors = moments.zip(point).map(|((mean, &variance), &value)| {
            let deviation = f64::from(value) - mean;
            (deviation * deviation + square * variance * variance)
                / (1.0 + square * variance).powi(2)
        });
        errors.sum::<f64>() / point.len() as f64
    }
}

/// The linear denoisers of a whole set and of some of its groups.
#[derive(Debug)]
pub(super) struct LinearDenoisers {
    all: Linear,
    of_group: HashMap<u64, Linear>,
}

impl LinearDenoisers {
    /// `groups` are the groups of the retained points, if any; those in `wanted` get a denoiser of
    /// their own.
    ///
    /// # Errors
    /// Those of the retained set.
    pub(super) fn new(
        retained: &dyn Points<2>,
        groups: Option<&[u64]>,
        wanted: &[u64],
        device: &Device,
    ) -> Result<Self> {
        let elements = retained.dims()[1];
        let mut all = Sums::new(elements);
        let mut of_group: HashMap<u64, Sums> = HashMap::new();
        if groups.is_some() {
            of_group.extend(wanted.iter().map(|&key| (key, Sums::new(elements))));
        }
        for chunk in chunks(retained, device) {
            let (first, chunk) = chunk?;
            let values = read_f32(chunk, "the retained points")?;
            for (row, point) in (first..).zip(values.chunks(elements)) {
                all.add(point);
                let group = groups.and_then(|groups| of_group.get_mut(&groups[row]));
                if let Some(sums) = group {
                    sums.add(point);
                }
            }
        }
        let of_group = of_group.into_iter();
        Ok(Self {
            all: all.moments(),
            of_group: of_group.map(|(key, sums)| (key, sums.moments())).collect(),
        })
    }

    /// The denoiser of a group, or that of the whole set if there is no group.
    pub(super) fn of(&self, group: Option<u64>) -> &Linear {
        let of_group = group.and_then(|group| self.of_group.get(&group));
        of_group.unwrap_or(&self.all)
    }
}

/// Running mean and squared deviation of each element (Welford 1962).
#[derive(Debug)]
struct Sums {
    count: f64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Sums {
    fn new(elements: usize) -> Self {
        Self {
            count: 0.0,
            mean: vec![0.0; elements],
            squares: vec![0.0; elements],
        }
    }

    fn add(&mut self, point: &[f32]) {
        self.count += 1.0;
        let sums = self.mean.iter_mut().zip(&mut self.squares);
        for ((mean, squares), &value) in sums.zip(point) {
            let before = f64::from(value) - *mean;
            *mean += before / self.count;
            *squares += before * (f64::from(value) - *mean);
        }
    }

    fn moments(self) -> Linear {
        let count = self.count.max(1.0);
        Linear {
            mean: self.mean,
            variance: self.squares.into_iter().map(|sum| sum / count).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Tensor;

    /// Compared with the mean over noises, in f64.
    #[test]
    fn the_error_is_that_of_the_linear_denoiser_over_noises() {
        let linear = Linear {
            mean: vec![0.5, -1.0],
            variance: vec![0.04, 2.0],
        };
        let point = [2.0f32, -0.5];
        let device = Device::flex();
        let noise: Tensor<2> = normal_noise([50_000, 2], 1, 0, 0, Stream::Noise, &device);
        let noise: Vec<f64> = noise.into_data().iter().collect();
        for (gamma, sigma) in [(0.995f64, 0.1f64), (0.6, 0.8), (0.0, 1.0)] {
            let mut sum = 0.0;
            for noise in noise.chunks(2) {
                for i in 0..2 {
                    let (mean, variance) = (linear.mean[i], linear.variance[i]);
                    let noisy = gamma * f64::from(point[i]) + sigma * noise[i];
                    let slope = gamma * variance / (gamma * gamma * variance + sigma * sigma);
                    let denoised = mean + slope * (noisy - gamma * mean);
                    sum += (denoised - f64::from(point[i])).powi(2) / 2.0;
                }
            }
            let (got, expected) = (linear.error(&point, gamma / sigma), sum / 50_000.0);
            assert!((got / expected - 1.0).abs() < 0.02, "{got} {expected}");
        }
    }

    #[test]
    fn moments_are_those_of_the_set_and_of_its_groups() {
        let set =
            Tensor::<2>::from_data([[1e4, 0.0], [1e4 + 2.0, 1.0], [5.0, 7.0]], &Device::flex());
        let denoisers = |groups: Option<&[u64]>| {
            LinearDenoisers::new(&set, groups, &[4], &Device::flex()).unwrap()
        };
        let first = Linear {
            mean: vec![1e4 + 1.0, 0.5],
            variance: vec![1.0, 0.25],
        };
        assert_eq!(denoisers(Some(&[4, 4, 9])).of_group[&4], first);
        assert!(denoisers(None).of_group.is_empty());
        assert!((denoisers(None).all.mean[1] - 8.0 / 3.0).abs() < 1e-12);
    }
}
