//! A denoiser of small neighbourhoods, fitted in closed form.

use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::least_squares::solve;
use crate::draws::{Stream, keyed_rng, normal_noise};
use crate::error::{Result, check_range, check_shape};
use crate::host::{read_f32, tensor};
use crate::process::Scales;
use rand::RngExt;

/// Reach of the patches that the features are made from, and of the smaller ones that accompany
/// the means.
const REACH: usize = 2;
const SMALL_REACH: usize = 1;
/// Reach of the boxes whose means tell what is farther away.
const MEANS: [usize; 5] = [1, 2, 3, 5, 7];
/// Retained points that the readout is fitted to at each timestep, and places of each.
const FITTED_POINTS: usize = 400;
const FITTED_PLACES: usize = 50;
/// At least so many fitted places for each feature.
const PLACES_PER_FEATURE: usize = 8;
/// Added to the mean square of each feature, relative to it.
const RIDGE: f64 = 1e-4;
/// Below this a point counts as constant.
const LEAST_DEVIATION: f64 = 1e-6;

/// A denoiser whose estimate at a place is linear in random features of the noisy values around it
/// (Rahimi and Recht 2007), fitted to noisy retained points at each timestep of a grid.
///
/// At low noise a convolutional network does with what it has never seen what it does with small
/// neighbourhoods, and so does this:
///
/// ```text
/// x̂ = Rᵀ h,   h = (u, ū, max(W₁u + b₁, 0), δ max(W₂(u − μ)/δ + b₂, 0), max(W₃v + b₃, 0), 1)
/// ```
///
/// with the patch `u` around the place, mean and deviation `μ` and `δ` of the whole point, the
/// means `ū` of boxes around the place, and `v` of a smaller patch and `ū`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LocalDenoiser {
    /// `[channels, …]`.
    shape: Vec<usize>,
    /// Numbers of random features of each kind.
    random: [usize; 3],
    seed: u64,
    /// By timestep of the grid and channel, a number for each feature.
    readout: Vec<Vec<Vec<f32>>>,
}

/// A place in a grid of timesteps: the timesteps around it, and how far it is from the first to the
/// second.
pub(super) type GridPlace = (usize, usize, f64);

impl LocalDenoiser {
    /// Fits the readout to points of this shape, at each timestep of the scales. `None` for points
    /// without spatial axes, for which there is no neighbourhood.
    pub(super) fn fit(
        points: &[Vec<f32>],
        shape: &[usize],
        features: usize,
        scales: &Scales,
        seed: u64,
        device: &Device,
    ) -> Result<Option<Self>> {
        let places: usize = shape.iter().skip(1).product();
        let elements = shape.iter().product::<usize>().max(1);
        let points: Vec<&[f32]> = points.iter().flat_map(|of| of.chunks(elements)).collect();
        if shape.len() < 2 || features == 0 || points.is_empty() {
            return Ok(None);
        }
        let count = points.len().min(FITTED_POINTS);
        let fitted: Vec<&[f32]> = (0..count)
            .map(|index| points[index * points.len() / count])
            .collect();
        let rows = count * places.min(FITTED_PLACES);
        let features = features.min(rows / PLACES_PER_FEATURE);
        let random = [2 * features / 5, features / 5, 2 * features / 5].map(|count| count.max(1));
        let mut local = Self {
            shape: shape.to_vec(),
            random,
            seed,
            readout: Vec::new(),
        };
        let maps = local.maps(device);
        for index in 0..scales.noise.len() {
            let at = [scales.signal[index], scales.noise[index]];
            let readout = local.fitted(&fitted, at, index as u64, &maps, device)?;
            local.readout.push(readout);
        }
        Ok(Some(local))
    }

    /// Refuses a readout that does not belong to such a denoiser on a grid of timesteps.
    pub(super) fn check(&self, timesteps: usize) -> Result<()> {
        let what = "the readout of the local denoiser";
        let remedy = "give one for every timestep, channel and feature";
        check_shape(what, &[timesteps], &[self.readout.len()], remedy)?;
        let channels = self.shape.first().copied().unwrap_or_default();
        check_shape(
            "the shape of a point",
            &[2],
            &[self.shape.len().min(2)],
            remedy,
        )?;
        for readout in &self.readout {
            check_shape(what, &[channels], &[readout.len()], remedy)?;
            for weights in readout {
                check_shape(what, &[self.features()], &[weights.len()], remedy)?;
                for &weight in weights {
                    let weight = f64::from(weight);
                    check_range("a readout", weight, weight.is_finite(), "a finite number")?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The numbers that decide its answers.
    pub(super) fn numbers(&self) -> impl Iterator<Item = &f32> {
        self.readout.iter().flatten().flatten()
    }

    /// Noisy points denoised, each at its place in the grid.
    pub(super) fn means(
        &self,
        noisy: &[&[f32]],
        at: &[GridPlace],
        device: &Device,
    ) -> Result<Vec<Vec<f32>>> {
        let neighbourhoods = Neighbourhoods::new(&self.shape[1..]);
        let all: Vec<usize> = (0..self.places()).collect();
        let maps = self.maps(device);
        let denoised = noisy.iter().zip(at).map(|(noisy, &(low, high, share))| {
            let mut inputs = Inputs::default();
            inputs.add(&neighbourhoods, noisy, self.shape[0], &all);
            let between = |channel: usize| {
                let ends = self.readout[low][channel]
                    .iter()
                    .zip(&self.readout[high][channel]);
                ends.map(move |(low, high)| low + share as f32 * (high - low))
            };
            let readout: Vec<f32> = (0..self.shape[0]).flat_map(between).collect();
            let readout = tensor(readout, [self.shape[0], self.features()], device);
            let features = inputs.features(&maps, self.means_width(), device);
            // Channel after channel, as points are.
            readout.matmul(features.transpose())
        });
        let denoised: Vec<Tensor<2>> = denoised.collect();
        if denoised.is_empty() {
            return Ok(Vec::new());
        }
        // One read for all rows.
        let denoised = read_f32(Tensor::cat(denoised, 0), "the local denoiser's answers")?;
        let points = denoised.chunks(self.elements());
        Ok(points.map(<[f32]>::to_vec).collect())
    }

    /// Minimises the squared error over some places of noisy points.
    fn fitted(
        &self,
        points: &[&[f32]],
        [signal, sigma]: [f64; 2],
        index: u64,
        maps: &[Map; 3],
        device: &Device,
    ) -> Result<Vec<Vec<f32>>> {
        let (elements, places) = (self.elements(), self.places());
        let stream = Stream::Own("local denoiser");
        let shape = [points.len(), elements];
        let noise = normal_noise(shape, self.seed, index, 0, stream, device);
        let noise = read_f32(noise, "noise")?;
        let neighbourhoods = Neighbourhoods::new(&self.shape[1..]);
        let (mut inputs, mut clean) = (Inputs::default(), Vec::new());
        for (row, (point, noise)) in points.iter().zip(noise.chunks(elements)).enumerate() {
            let noisy: Vec<f32> = (point.iter().zip(noise))
                .map(|(x, e)| (signal * f64::from(*x) + sigma * f64::from(*e)) as f32)
                .collect();
            let mut rng = keyed_rng(self.seed, index, row as u64, stream);
            let chosen: Vec<usize> = match places <= FITTED_PLACES {
                true => (0..places).collect(),
                false => (0..FITTED_PLACES)
                    .map(|_| rng.random_range(0..places))
                    .collect(),
            };
            inputs.add(&neighbourhoods, &noisy, self.shape[0], &chosen);
            for place in chosen {
                clean.extend((0..self.shape[0]).map(|channel| point[channel * places + place]));
            }
        }
        let rows = inputs.rows();
        let features = inputs.features(maps, self.means_width(), device);
        let clean = tensor(clean, [rows, self.shape[0]], device);
        let products = features.clone().transpose().matmul(features.clone());
        let along = clean.transpose().matmul(features);
        let products = read_f32(products, "products of features")?;
        let along = read_f32(along, "products of features")?;
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
        let count = self.features();
        let mut products: Vec<Vec<f64>> = products.chunks(count).map(wide).collect();
        for (index, row) in products.iter_mut().enumerate() {
            // A feature that is 0 everywhere gets no weight.
            row[index] += RIDGE * row[index] + f64::MIN_POSITIVE.max(1e-12 * rows as f64);
        }
        let solved = solve(products, along.chunks(count).map(wide).collect());
        let narrow = |weights: Vec<f64>| weights.into_iter().map(|weight| weight as f32).collect();
        Ok(solved.into_iter().map(narrow).collect())
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn places(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    fn means_width(&self) -> usize {
        self.shape[0].saturating_mul(MEANS.len())
    }

    /// Numbers in the two patches. From a file, shape and numbers may be anything.
    fn patch_widths(&self) -> [usize; 2] {
        let axes = self.shape.len() as u32 - 1;
        let width = |reach: usize| (2 * reach + 1).saturating_pow(axes);
        [REACH, SMALL_REACH].map(|reach| self.shape[0].saturating_mul(width(reach)))
    }

    fn features(&self) -> usize {
        let [patch, _] = self.patch_widths();
        let random = self.random.iter();
        random.fold(
            patch.saturating_add(self.means_width()).saturating_add(1),
            |sum, count| sum.saturating_add(*count),
        )
    }

    /// `W` and `b` of the three kinds, from the seed.
    fn maps(&self, device: &Device) -> [Map; 3] {
        let [patch, small] = self.patch_widths();
        let widths = [patch, patch, small + self.means_width()];
        std::array::from_fn(|kind| {
            let (width, count) = (widths[kind], self.random[kind]);
            let stream = Stream::Own("random features");
            let draw = |shape, part| {
                normal_noise(shape, self.seed, 2 * kind as u64 + part, 0, stream, device)
            };
            let weights: Tensor<2> = draw([width, count], 0);
            let offsets: Tensor<2> = draw([1, count], 1);
            Map {
                // As of He et al. (2015): the features' power is that of the values.
                weights: weights * (2.0 / width as f64).sqrt(),
                offsets,
            }
        })
    }
}

/// Random features `max(Wx + b, 0)`.
struct Map {
    weights: Tensor<2>,
    offsets: Tensor<2>,
}

impl Map {
    fn of(&self, values: Tensor<2>) -> Tensor<2> {
        relu(values.matmul(self.weights.clone()) + self.offsets.clone())
    }
}

/// Which places lie around each place; what lies outside has the number of places.
struct Neighbourhoods {
    places: usize,
    axes: Vec<[usize; 3]>,
    near: Vec<Vec<usize>>,
    nearest: Vec<Vec<usize>>,
}

impl Neighbourhoods {
    fn new(axes: &[usize]) -> Self {
        let places = axes.iter().product();
        let around = |reach| {
            (0..places)
                .map(|place| around(axes, place, reach))
                .collect()
        };
        let axis = |index: usize| {
            let (before, after) = (&axes[..index], &axes[index + 1..]);
            [before.iter().product(), axes[index], after.iter().product()]
        };
        Self {
            places,
            axes: (0..axes.len()).map(axis).collect(),
            near: around(REACH),
            nearest: around(SMALL_REACH),
        }
    }

    /// The mean over a box around each place, of what lies inside.
    fn box_means(&self, values: &[f32], reach: usize) -> Vec<f32> {
        let mut values = values.to_vec();
        for &[before, length, after] in &self.axes {
            let mut means = vec![0.0; values.len()];
            for line in 0..before {
                for place in 0..length {
                    let (first, last) =
                        (place.saturating_sub(reach), (place + reach).min(length - 1));
                    for offset in 0..after {
                        let at = |place: usize| (line * length + place) * after + offset;
                        let sum: f32 = (first..=last).map(|place| values[at(place)]).sum();
                        means[at(place)] = sum / (last + 1 - first) as f32;
                    }
                }
            }
            values = means;
        }
        values
    }
}

/// The places within reach of one along every axis.
fn around(axes: &[usize], place: usize, reach: usize) -> Vec<usize> {
    let (mut found, mut left, mut after) = (vec![0], place, axes.iter().product::<usize>());
    let outside = after;
    for &length in axes {
        after /= length;
        let here = left / after;
        left %= after;
        let moved = |&base: &usize| {
            (0..=2 * reach).map(move |step| {
                let is_inside = here + step >= reach && here + step - reach < length;
                match is_inside && base != outside {
                    true => base + (here + step - reach) * after,
                    false => outside,
                }
            })
        };
        found = found.iter().flat_map(moved).collect();
    }
    found
}

/// What the features of some places are made from, place after place.
#[derive(Default)]
struct Inputs {
    patches: Vec<f32>,
    standard: Vec<f32>,
    wide: Vec<f32>,
    deviations: Vec<f32>,
}

impl Inputs {
    /// Adds places of a point.
    fn add(&mut self, around: &Neighbourhoods, point: &[f32], channels: usize, places: &[usize]) {
        let count = point.len() as f64;
        let mean = point.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let squares = point.iter().map(|&value| (f64::from(value) - mean).powi(2));
        let deviation = (squares.sum::<f64>() / count).sqrt().max(LEAST_DEVIATION);
        let standard: Vec<f32> = (point.iter())
            .map(|&value| ((f64::from(value) - mean) / deviation) as f32)
            .collect();
        let of_channel = |channel: usize, values| {
            let values: &[f32] = values;
            values[channel * around.places..][..around.places].to_vec()
        };
        let means: Vec<Vec<f32>> = (0..channels)
            .flat_map(|channel| {
                let values = of_channel(channel, point);
                MEANS.map(|reach| around.box_means(&values, reach))
            })
            .collect();
        for &place in places {
            for channel in 0..channels {
                let first = channel * around.places;
                let take = |values: &[f32], near: &[usize]| -> Vec<f32> {
                    let value = |&at: &usize| match at < around.places {
                        true => values[first + at],
                        false => 0.0,
                    };
                    near.iter().map(value).collect()
                };
                self.patches.extend(take(point, &around.near[place]));
                self.standard.extend(take(&standard, &around.near[place]));
                self.wide.extend(take(point, &around.nearest[place]));
            }
            self.wide.extend(means.iter().map(|means| means[place]));
            self.deviations.push(deviation as f32);
        }
    }

    fn rows(&self) -> usize {
        self.deviations.len()
    }

    /// `h` of each place.
    fn features(self, maps: &[Map; 3], means: usize, device: &Device) -> Tensor<2> {
        let rows = self.rows();
        let matrix = |values: Vec<f32>| {
            let width = values.len() / rows.max(1);
            tensor(values, [rows, width], device)
        };
        let deviations: Tensor<2> = matrix(self.deviations);
        let (patches, wide) = (matrix(self.patches), matrix(self.wide));
        let standard = matrix(self.standard);
        let width = wide.dims()[1];
        let [of_patches, of_standard, of_wide] = maps;
        let parts = vec![
            patches.clone(),
            wide.clone().narrow(1, width - means, means),
            of_patches.of(patches),
            of_standard.of(standard) * deviations.clone(),
            of_wide.of(wide),
            deviations.ones_like(),
        ];
        Tensor::cat(parts, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn device() -> Device {
        Device::flex()
    }

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let noise = normal_noise([1, count], seed, 0, 0, Stream::Evaluation, &device());
        read_f32::<2>(noise, "numbers").unwrap()
    }

    fn scales() -> Scales {
        Scales {
            signal: vec![0.8, 0.6],
            noise: vec![0.6, 0.8],
        }
    }

    #[test]
    fn neighbours_and_means_end_at_the_edge() {
        // 0 1 2
        // 3 4 5
        assert_eq!(around(&[2, 3], 0, 1), [6, 6, 6, 6, 0, 1, 6, 3, 4]);
        assert_eq!(around(&[2, 3], 5, 1), [1, 2, 6, 4, 5, 6, 6, 6, 6]);
        let line = Neighbourhoods::new(&[3]);
        assert_eq!(line.box_means(&[1.0, 2.0, 6.0], 1), [1.5, 3.0, 4.0]);
        let grid = Neighbourhoods::new(&[2, 3]);
        let means = grid.box_means(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 1);
        assert_eq!(means, [2.0, 2.5, 3.0, 2.0, 2.5, 3.0]);
    }

    /// Of constant points in two channels, the neighbourhood says more than the place alone, whose
    /// best estimate is off by `σ² / (γ² + σ²)`, and interpolation lies between the grid's ends.
    #[test]
    fn constant_points_are_denoised_from_their_neighbourhood() {
        let values = numbers(2 * 600, 1);
        let fill = |value: &f32| vec![*value; 36];
        let points: Vec<f32> = values.iter().flat_map(fill).collect();
        let (seen, unseen) = points.split_at(500 * 72);
        let shape = [2, 6, 6];
        let scales = scales();
        let local = LocalDenoiser::fit(&[seen.to_vec()], &shape, 64, &scales, 3, &device());
        let local = local.unwrap().unwrap();
        local.check(2).unwrap();
        let noise = numbers(unseen.len(), 2);
        for (index, (signal, sigma)) in [(0.8, 0.6), (0.6, 0.8)].into_iter().enumerate() {
            let noisy: Vec<f32> = (unseen.iter().zip(&noise))
                .map(|(x, e)| signal * x + sigma * e)
                .collect();
            let at = vec![(index, index, 0.0); 100];
            let denoised = local
                .means(&noisy.chunks(72).collect::<Vec<_>>(), &at, &device())
                .unwrap()
                .concat();
            let errors = denoised
                .iter()
                .zip(unseen)
                .map(|(found, x)| (found - x).powi(2));
            let error = errors.sum::<f32>() / unseen.len() as f32;
            assert!(error < sigma * sigma / 4.0, "{index}: {error}");
        }
        let noisy = &unseen[..72];
        let [low, middle, high] = [(0, 0, 0.0), (0, 1, 0.25), (1, 1, 0.0)]
            .map(|at| local.means(&[noisy], &[at], &device()).unwrap().concat());
        for ((low, middle), high) in low.iter().zip(&middle).zip(&high) {
            let expected = low + 0.25 * (high - low);
            assert!((middle - expected).abs() < 1e-4, "{middle} {expected}");
        }
    }

    #[test]
    fn points_without_a_neighbourhood_have_no_local_denoiser() {
        let fit = |shape: &[usize], features| {
            LocalDenoiser::fit(&[numbers(64, 1)], shape, features, &scales(), 0, &device())
        };
        assert!(fit(&[4], 64).unwrap().is_none());
        assert!(fit(&[1, 4], 0).unwrap().is_none());
        assert!(fit(&[1, 4], 64).unwrap().is_some());
    }

    #[test]
    fn a_readout_of_another_size_is_refused() {
        let points = [numbers(64, 1)];
        let local = LocalDenoiser::fit(&points, &[1, 4], 64, &scales(), 0, &device());
        let local = local.unwrap().unwrap();
        let text = serde_json::to_string(&local).unwrap();
        assert_eq!(serde_json::from_str::<LocalDenoiser>(&text).unwrap(), local);
        let mut short = local.clone();
        short.readout[1][0].pop();
        let mut infinite = local.clone();
        infinite.readout[0][0][0] = f32::INFINITY;
        let mut flat = local.clone();
        flat.shape = vec![1];
        let [mut wide, mut deep] = [local.clone(), local.clone()];
        wide.random = [usize::MAX; 3];
        deep.shape = vec![usize::MAX; 60];
        let shape = |error: &Error| matches!(error, Error::ShapeMismatch { .. });
        assert!(shape(&local.check(3).unwrap_err()));
        assert!(shape(&short.check(2).unwrap_err()));
        assert!(shape(&flat.check(2).unwrap_err()));
        assert!(shape(&wide.check(2).unwrap_err()));
        assert!(shape(&deep.check(2).unwrap_err()));
        let error = infinite.check(2).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
}
