//! The ideal denoiser of a set of images, patch by patch: how convolutional networks generalise.
//!
//! In Kamb and Ganguli 2024, arXiv 2412.20292, each pixel has its own posterior over the data set,
//! which sees only a patch around the pixel. It is computed on the host, whatever the device: the
//! work is one softmax per pixel over thousands of images, and no intermediate result is worth
//! keeping.

use std::thread;

use burn::tensor::Tensor;

use super::ideal::{Ideal, Posterior};
use crate::error::Result;
use crate::host::{read_f32, tensor};

/// Images on the host, and for each point the retained images, nearest first.
#[derive(Debug)]
pub(super) struct Images<'a> {
    /// `[channels, height, width]`.
    shape: [usize; 3],
    retained: &'a [f32],
    points: Vec<f32>,
    /// For each point, without the images that are left out of its posterior.
    order: Vec<Vec<usize>>,
}

impl<'a> Images<'a> {
    pub(super) fn new(ideal: &Ideal<'_>, retained: &'a [f32], shape: [usize; 3]) -> Result<Self> {
        let distances = ideal.distances()?;
        let count = distances.len() / ideal.shape()[0];
        let order = distances.chunks(count).map(nearest_first).collect();
        Ok(Self {
            shape,
            retained,
            points: ideal.host_points()?,
            order,
        })
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The largest number of retained images in a point's posterior.
    pub(super) fn count(&self) -> usize {
        self.order.iter().map(Vec::len).max().unwrap_or(0)
    }
}

fn nearest_first(distances: &[f32]) -> Vec<usize> {
    let kept = |&index: &usize| distances[index].is_finite();
    let mut order: Vec<usize> = (0..distances.len()).filter(kept).collect();
    order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b]));
    order
}

/// The posterior of each pixel given the patch of `patch × patch` around it, over the `nearest`
/// retained images of a point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local<'a> {
    pub(super) images: &'a Images<'a>,
    pub(super) patch: usize,
    pub(super) nearest: usize,
}

impl Posterior for Local<'_> {
    fn means(&self, rows: &[usize], noise: &Tensor<2>, ratios: &[f64]) -> Result<Vec<Tensor<2>>> {
        let elements = self.images.elements();
        let host = read_f32(noise.clone(), "noise")?;
        let rows: Vec<(usize, &[f32])> = rows.iter().copied().zip(host.chunks(elements)).collect();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let share = rows.len().div_ceil(threads).max(1);
        let means: Vec<Vec<Vec<f32>>> = thread::scope(|scope| {
            let work = |part| move || self.part(part, ratios);
            let running: Vec<_> = (rows.chunks(share).map(work))
                .map(|work| scope.spawn(work))
                .collect();
            running.into_iter().flat_map(join).collect()
        });
        let at = |index: usize| {
            let values: Vec<f32> = means.iter().flat_map(|row| row[index].clone()).collect();
            tensor(values, [rows.len(), elements], &noise.device())
        };
        Ok((0..ratios.len()).map(at).collect())
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl Local<'_> {
    fn part(&self, rows: &[(usize, &[f32])], ratios: &[f64]) -> Vec<Vec<Vec<f32>>> {
        let mean = |&(point, noise): &(usize, &[f32])| self.mean(point, noise, ratios);
        rows.iter().map(mean).collect()
    }

    /// The posterior mean at each ratio `ρ = γ/σ`.
    ///
    /// A pixel's exponent is `−ρ²/2 Σ (u − x_j)² − ρ Σ (u − x_j) ε` over its patch and all
    /// channels, up to a number that is the same for all images. Both sums serve every ratio.
    fn mean(&self, point: usize, noise: &[f32], ratios: &[f64]) -> Vec<Vec<f32>> {
        let Images {
            shape,
            retained,
            points,
            order,
        } = self.images;
        let [channels, height, width] = *shape;
        let (pixels, elements) = (height * width, self.images.elements());
        let clean = &points[point * elements..][..elements];
        let mut posteriors: Vec<PixelPosteriors> = (ratios.iter())
            .map(|&ratio| PixelPosteriors::new(ratio, channels, pixels))
            .collect();
        let mut window = Window::new(self.patch, [height, width]);
        let (mut squares, mut products) = (vec![0.0; pixels], vec![0.0; pixels]);
        for &index in order[point].iter().take(self.nearest) {
            let image = &retained[index * elements..][..elements];
            squares.fill(0.0);
            products.fill(0.0);
            for channel in (0..channels).map(|channel| channel * pixels..(channel + 1) * pixels) {
                let values = clean[channel.clone()].iter().zip(&image[channel.clone()]);
                let sums = squares.iter_mut().zip(&mut products);
                for (((clean, image), noise), (square, product)) in
                    values.zip(&noise[channel]).zip(sums)
                {
                    let difference = clean - image;
                    *square += difference * difference;
                    *product += difference * noise;
                }
            }
            window.sum(&mut squares);
            window.sum(&mut products);
            for posterior in &mut posteriors {
                posterior.add(&squares, &products, image);
            }
        }
        posteriors.into_iter().map(PixelPosteriors::mean).collect()
    }
}

/// Sums over the patch around each pixel; pixels outside the image count as 0.
struct Window {
    radius: usize,
    size: [usize; 2],
    /// Rows separated by as many zeros as a patch reaches beyond its pixel.
    padded: Vec<f32>,
    sums: Vec<f32>,
}

impl Window {
    fn new(patch: usize, size: [usize; 2]) -> Self {
        let [height, width] = size;
        let padding = (patch / 2).min(width - 1);
        let length = height * (width + padding);
        Self {
            radius: patch / 2,
            size,
            padded: vec![0.0; length + 2 * padding],
            sums: vec![0.0; length],
        }
    }

    /// Sums along columns, then along rows, from shifted copies: a running sum would keep the
    /// rounding errors of values that have left it.
    fn sum(&mut self, values: &mut [f32]) {
        let [height, width] = self.size;
        let reach = self.radius.min(height - 1);
        let sums = &mut self.sums[..values.len()];
        sums.copy_from_slice(values);
        for shift in (1..=reach).map(|row| row * width) {
            add(sums, &values[shift..]);
            add(&mut sums[shift..], values);
        }

        let padding = self.radius.min(width - 1);
        let line = width + padding;
        for (row, sums) in sums.chunks(width).enumerate() {
            self.padded[padding + row * line..][..width].copy_from_slice(sums);
        }
        self.sums.fill(0.0);
        for shift in 0..=2 * padding {
            add(&mut self.sums, &self.padded[shift..]);
        }
        for (row, values) in values.chunks_mut(width).enumerate() {
            values.copy_from_slice(&self.sums[row * line..][..width]);
        }
    }
}

/// Adds as many values as both slices have.
fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// The posteriors of all pixels at one ratio, from the images processed so far.
struct PixelPosteriors {
    ratio: f32,
    exponents: Vec<f32>,
    /// The largest exponent of each pixel.
    largest: Vec<f32>,
    /// `Σ exp(exponent − largest)`.
    sum: Vec<f32>,
    /// `Σ exp(exponent − largest) x_j`, channel after channel.
    weighted: Vec<f32>,
}

/// Weights below `e^−25` of the largest do not reach the last digit of a sum of thousands.
const NEGLIGIBLE: f32 = -25.0;

impl PixelPosteriors {
    fn new(ratio: f64, channels: usize, pixels: usize) -> Self {
        Self {
            ratio: ratio as f32,
            exponents: vec![0.0; pixels],
            largest: vec![f32::MIN; pixels],
            sum: vec![0.0; pixels],
            weighted: vec![0.0; channels * pixels],
        }
    }

    fn add(&mut self, squares: &[f32], products: &[f32], image: &[f32]) {
        let pixels = self.sum.len();
        let (ratio, half) = (self.ratio, -0.5 * self.ratio * self.ratio);
        let sums = squares.iter().zip(products);
        for (exponent, (square, product)) in self.exponents.iter_mut().zip(sums) {
            *exponent = half * square - ratio * product;
        }
        for (pixel, &exponent) in self.exponents.iter().enumerate() {
            let above = exponent - self.largest[pixel];
            if above > 0.0 {
                let shrink = (-above).exp();
                self.largest[pixel] = exponent;
                self.sum[pixel] = self.sum[pixel] * shrink + 1.0;
                for place in (pixel..self.weighted.len()).step_by(pixels) {
                    self.weighted[place] = self.weighted[place] * shrink + image[place];
                }
            } else if above > NEGLIGIBLE {
                let weight = above.exp();
                self.sum[pixel] += weight;
                for place in (pixel..self.weighted.len()).step_by(pixels) {
                    self.weighted[place] += weight * image[place];
                }
            }
        }
    }

    fn mean(mut self) -> Vec<f32> {
        for channel in self.weighted.chunks_mut(self.sum.len()) {
            for (value, sum) in channel.iter_mut().zip(&self.sum) {
                *value /= sum;
            }
        }
        self.weighted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;

    const SHAPE: [usize; 3] = [2, 4, 5];
    const ELEMENTS: usize = 40;

    fn random(seed: u64, rows: usize) -> Tensor<2> {
        normal_noise([rows, ELEMENTS], seed, 0, 0, Stream::Noise, &Device::flex())
    }

    fn host(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    /// The posterior means of the rows at the ratio.
    fn means(
        ideal: &Ideal<'_>,
        retained: &Tensor<2>,
        [patch, nearest]: [usize; 2],
        noise: &Tensor<2>,
        ratio: f64,
    ) -> Vec<f32> {
        let retained = host(retained.clone());
        let images = Images::new(ideal, &retained, SHAPE).unwrap();
        let local = Local {
            images: &images,
            patch,
            nearest,
        };
        let rows: Vec<usize> = (0..noise.dims()[0]).collect();
        host(local.means(&rows, noise, &[0.1, ratio]).unwrap().remove(1))
    }

    /// `Σ_j p_j x_j` of one pixel, from `m = u + ε/ρ` in f64.
    fn definition(
        retained: &[f32],
        noisy: &[f64],
        [row, column]: [usize; 2],
        radius: usize,
        ratio: f64,
    ) -> [f64; 2] {
        let [channels, height, width] = SHAPE;
        let place = |c: usize, y: usize, x: usize| c * height * width + y * width + x;
        let exponent = |image: &[f32]| {
            let mut sum = 0.0;
            for channel in 0..channels {
                for y in row.saturating_sub(radius)..(row + radius + 1).min(height) {
                    for x in column.saturating_sub(radius)..(column + radius + 1).min(width) {
                        let at = place(channel, y, x);
                        sum += (noisy[at] - f64::from(image[at])).powi(2);
                    }
                }
            }
            -0.5 * ratio * ratio * sum
        };
        let images = || retained.chunks(ELEMENTS);
        let largest = images().map(exponent).fold(f64::MIN, f64::max);
        let weight = |image: &[f32]| (exponent(image) - largest).exp();
        let total: f64 = images().map(weight).sum();
        [0, 1].map(|channel| {
            let value = |image: &[f32]| f64::from(image[place(channel, row, column)]);
            images()
                .map(|image| weight(image) * value(image))
                .sum::<f64>()
                / total
        })
    }

    #[test]
    fn a_pixel_sees_its_patch_and_nothing_else() {
        let (retained, points, noise) = (random(1, 60), random(2, 3), random(3, 3));
        let ideal = Ideal::new(&retained, points.clone()).unwrap();
        let images = host(retained.clone());
        let mut worst: f64 = 0.0;
        for (patch, ratio) in [(1, 0.7), (3, 0.0), (3, 0.4), (3, 30.0), (5, 1.0), (7, 0.2)] {
            let got = means(&ideal, &retained, [patch, 60], &noise, ratio);
            let scale = 1.0 / ratio.max(1e-30);
            let pairs = host(points.clone()).into_iter().zip(host(noise.clone()));
            let noisy: Vec<f64> = pairs
                .map(|(u, e)| f64::from(u) + scale * f64::from(e))
                .collect();
            for (got, noisy) in got.chunks(ELEMENTS).zip(noisy.chunks(ELEMENTS)) {
                for pixel in 0..20 {
                    // Without signal every image is equally likely.
                    let ratio = if ratio == 0.0 { 1e-40 } else { ratio };
                    let place = [pixel / 5, pixel % 5];
                    let expected = definition(&images, noisy, place, patch / 2, ratio);
                    for (channel, expected) in expected.into_iter().enumerate() {
                        worst = worst.max((f64::from(got[channel * 20 + pixel]) - expected).abs());
                    }
                }
            }
        }
        assert!(worst < 2e-4, "{worst}");
    }

    #[test]
    fn a_patch_that_covers_the_image_is_the_whole_image() {
        let (retained, points, noise) = (random(1, 500), random(2, 4), random(3, 4));
        let ideal = Ideal::new(&retained, points).unwrap();
        let rows = [0, 1, 2, 3];
        for ratio in [0.05, 0.5, 3.0] {
            let whole = (&ideal).means(&rows, &noise, &[ratio]).unwrap().remove(0);
            let patches = means(&ideal, &retained, [9, 500], &noise, ratio);
            for (got, expected) in patches.iter().zip(host(whole)) {
                assert!((got - expected).abs() < 1e-4, "{got} {expected}");
            }
        }
    }

    #[test]
    fn only_the_nearest_are_looked_at_and_never_the_point_itself() {
        let retained = random(1, 50);
        let own = retained.clone().narrow(0, 7, 1);
        let ideal = Ideal::new(&retained, own.clone())
            .unwrap()
            .without_duplicates();
        let noise = random(2, 1);
        let distances = ideal.distances().unwrap();
        let nearest = nearest_first(&distances);
        assert_eq!(nearest.len(), 49);
        assert!(!nearest.contains(&7));
        let got = means(&ideal, &retained, [3, 1], &noise, 1.0);
        let expected = host(retained.narrow(0, nearest[0], 1));
        assert_eq!(got, expected);
    }
}
