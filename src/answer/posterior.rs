//! Ideal denoisers of retained points on the host: of patches of several widths and of whole
//! points.
//!
//! All of them follow from the squared differences between a noisy point and each retained one, so
//! one pass over the retained points serves every width.

#[cfg(feature = "flex-kernels")]
use pulp::Simd;
#[cfg(feature = "flex-kernels")]
use rayon::prelude::*;

#[cfg(feature = "flex-kernels")]
use crate::kernel::simd::{Vectorised, dispatch, instructions};

/// Retained points that are looked at together: their values at a place are neighbours in memory.
const LANES: usize = 16;

/// The values of as many retained points at one place.
type Lanes = [f32; LANES];

/// Retained points on the host.
#[derive(Debug, Clone)]
pub(super) struct References {
    /// `[channels, …]`, or `[elements]` of points of rank 2.
    shape: Vec<usize>,
    count: usize,
    /// Block after block, in each the elements one after another.
    values: Vec<Lanes>,
}

impl References {
    /// `points`: one after another, of this shape.
    pub(super) fn new(points: &[f32], shape: &[usize]) -> Self {
        let elements = shape.iter().product::<usize>().max(1);
        let count = points.len() / elements;
        let mut values = vec![[0.0; LANES]; count.div_ceil(LANES) * elements];
        for (index, point) in points.chunks(elements).enumerate() {
            let block = &mut values[index / LANES * elements..][..elements];
            for (lanes, &value) in block.iter_mut().zip(point) {
                lanes[index % LANES] = value;
            }
        }
        // A point of a set of rank 1 is one number.
        let shape = match shape {
            [] => vec![1],
            shape => shape.to_vec(),
        };
        Self {
            shape,
            count,
            values,
        }
    }

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Places that have a posterior of their own.
    fn places(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// How many retained points are this point, value by value.
    pub(super) fn copies(&self, point: &[f32]) -> usize {
        let blocks = self.values.chunks(self.elements()).enumerate();
        blocks
            .map(|(block, values)| {
                let lanes = 0..self.used_lanes(block);
                lanes.filter(|&lane| is_copy(values, lane, point)).count()
            })
            .sum()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn used_lanes(&self, block: usize) -> usize {
        (self.count - block * LANES).min(LANES)
    }
}

fn is_copy(values: &[Lanes], lane: usize, point: &[f32]) -> bool {
    values
        .iter()
        .zip(point)
        .all(|(values, value)| values[lane] == *value)
}

/// A noisy point `m = γ u + σ ε`.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoisyRow<'a> {
    pub(super) references: &'a References,
    pub(super) noisy: &'a [f32],
    pub(super) clean: &'a [f32],
    /// `γ` and `σ`.
    pub(super) scales: [f64; 2],
    /// By how much the model's output changes with the clean point.
    pub(super) slope: f64,
    /// Whether retained points that are the clean point are left out.
    pub(super) without_copies: bool,
}

/// The errors of the ideal denoisers in the space of the model's output, `slope · (x̂ − u)`: for
/// each row those of each patch width and of whole points. With `flex-kernels` the rows are
/// computed in parallel.
pub(super) fn errors(rows: &[NoisyRow<'_>], patches: &[usize]) -> Vec<Vec<Vec<f32>>> {
    #[cfg(feature = "flex-kernels")]
    let rows = rows.par_iter();
    #[cfg(not(feature = "flex-kernels"))]
    let rows = rows.iter();
    rows.map(|row| row.errors(patches)).collect()
}

impl NoisyRow<'_> {
    fn errors(&self, patches: &[usize]) -> Vec<Vec<f32>> {
        let means = self.means(patches).into_iter();
        means.map(|mean| self.error(mean)).collect()
    }

    /// The error in the space of the model's output of an estimate of the clean point.
    pub(super) fn error(&self, mut estimate: Vec<f32>) -> Vec<f32> {
        for (value, clean) in estimate.iter_mut().zip(self.clean) {
            *value = (f64::from(*value - clean) * self.slope) as f32;
        }
        estimate
    }

    /// The posterior means of each patch width and of whole points.
    pub(super) fn means(&self, patches: &[usize]) -> Vec<Vec<f32>> {
        let mut means = Vec::new();
        let work = Work {
            row: *self,
            patches,
            means: &mut means,
        };
        #[cfg(feature = "flex-kernels")]
        dispatch(instructions(), work);
        #[cfg(not(feature = "flex-kernels"))]
        work.compute();
        means
    }
}

/// The computation of one row, compiled for the vector instructions that the processor has.
struct Work<'a, 'm> {
    row: NoisyRow<'a>,
    patches: &'a [usize],
    means: &'m mut Vec<Vec<f32>>,
}

#[cfg(feature = "flex-kernels")]
impl Vectorised for Work<'_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.compute();
    }
}

/// Squared difference of a retained point that is left out. Sums of it and their multiples are
/// finite.
const FAR: f32 = 1e18;

impl Work<'_, '_> {
    #[inline(always)]
    fn compute(self) {
        let references = self.row.references;
        let (elements, places) = (references.elements(), references.places());
        let [signal, noise] = self.row.scales;
        let precision = 0.5 / (noise * noise);
        let mut squares = vec![[0.0; LANES]; places];
        let mut sums = Sums::new(&references.shape[1..]);
        let posterior = |&patch: &usize| (patch / 2, PlacePosteriors::new(places, elements));
        let mut local: Vec<_> = self.patches.iter().map(posterior).collect();
        let mut whole = WholePosterior::new(elements);
        for (block, values) in references.values.chunks(elements).enumerate() {
            squared_differences(self.row.noisy, values, signal as f32, &mut squares);
            for lane in 0..LANES {
                let is_used = lane < references.used_lanes(block);
                let is_left_out =
                    is_used && self.row.without_copies && is_copy(values, lane, self.row.clean);
                if !is_used || is_left_out {
                    squares.iter_mut().for_each(|square| square[lane] = FAR);
                }
            }
            for (radius, posterior) in &mut local {
                let distances = sums.around(&squares, *radius);
                posterior.add(distances, values, precision as f32);
            }
            whole.add(&squares, values, precision);
        }
        self.means
            .extend(local.into_iter().map(|(_, posterior)| posterior.mean()));
        self.means.push(whole.mean());
    }
}

/// `(m − γ x)²` at each place, summed over channels.
#[inline(always)]
fn squared_differences(noisy: &[f32], values: &[Lanes], signal: f32, squares: &mut [Lanes]) {
    squares.fill([0.0; LANES]);
    let channels = noisy
        .chunks(squares.len())
        .zip(values.chunks(squares.len()));
    for (noisy, values) in channels {
        for ((noisy, values), squares) in noisy.iter().zip(values).zip(squares.iter_mut()) {
            for lane in 0..LANES {
                let difference = noisy - signal * values[lane];
                squares[lane] += difference * difference;
            }
        }
    }
}

/// Sums over the patch around each place; what lies outside the point counts as 0.
struct Sums {
    /// The spatial axes: how many places lie before, along and after each.
    axes: Vec<[usize; 3]>,
    sums: [Vec<Lanes>; 2],
}

impl Sums {
    fn new(axes: &[usize]) -> Self {
        let places = axes.iter().product();
        let axis = |index: usize| {
            let (before, after) = (&axes[..index], &axes[index + 1..]);
            [before.iter().product(), axes[index], after.iter().product()]
        };
        Self {
            axes: (0..axes.len()).map(axis).collect(),
            sums: [vec![[0.0; LANES]; places], vec![[0.0; LANES]; places]],
        }
    }

    /// Along one axis after another.
    #[inline(always)]
    fn around<'a>(&'a mut self, values: &'a [Lanes], radius: usize) -> &'a [Lanes] {
        let (mut is_first, [from, to]) = (true, &mut self.sums);
        if radius == 0 {
            return values;
        }
        for &axis in &self.axes {
            let source: &[Lanes] = if is_first { values } else { from };
            sum_along(source, to, axis, radius);
            std::mem::swap(from, to);
            is_first = false;
        }
        if is_first { values } else { from }
    }
}

/// From the values themselves: a running sum would keep the rounding of what has left it.
#[inline(always)]
fn sum_along(from: &[Lanes], to: &mut [Lanes], [before, length, after]: [usize; 3], radius: usize) {
    for line in 0..before {
        for place in 0..length {
            let first = place.saturating_sub(radius);
            let last = (place + radius).min(length - 1);
            for offset in 0..after {
                let at = |place: usize| (line * length + place) * after + offset;
                let mut sum = from[at(first)];
                for other in first + 1..=last {
                    let values = &from[at(other)];
                    for lane in 0..LANES {
                        sum[lane] += values[lane];
                    }
                }
                to[at(place)] = sum;
            }
        }
    }
}

/// Weights below `e^−25` of the largest do not reach the last digit of a sum of thousands.
const NEGLIGIBLE: f32 = 25.0;

/// A posterior for each place, as far as the retained points have been seen.
struct PlacePosteriors {
    /// The smallest squared distance at each place.
    nearest: Vec<f32>,
    /// `Σ exp(−(distance − nearest)/2σ²)`.
    sum: Vec<f32>,
    /// The same sum of the values, channel after channel.
    weighted: Vec<f32>,
}

impl PlacePosteriors {
    fn new(places: usize, elements: usize) -> Self {
        Self {
            nearest: vec![f32::MAX; places],
            sum: vec![0.0; places],
            weighted: vec![0.0; elements],
        }
    }

    #[inline(always)]
    fn add(&mut self, distances: &[Lanes], values: &[Lanes], precision: f32) {
        let places = self.sum.len();
        for (place, distances) in distances.iter().enumerate() {
            let nearest = reduce(*distances, f32::min);
            let known = self.nearest[place];
            if (nearest - known) * precision > NEGLIGIBLE {
                continue;
            }
            if nearest < known {
                let shrink = exponential((nearest - known) * precision);
                self.nearest[place] = nearest;
                self.sum[place] *= shrink;
                for at in (place..self.weighted.len()).step_by(places) {
                    self.weighted[at] *= shrink;
                }
            }
            let nearest = self.nearest[place];
            let mut weights = [0.0; LANES];
            for lane in 0..LANES {
                weights[lane] = exponential((nearest - distances[lane]) * precision);
            }
            self.sum[place] += reduce(weights, |a, b| a + b);
            for at in (place..self.weighted.len()).step_by(places) {
                self.weighted[at] += dot(&weights, &values[at]);
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

/// The posterior of whole points, as far as the retained points have been seen.
struct WholePosterior {
    nearest: f64,
    sum: f64,
    weighted: Vec<f64>,
}

impl WholePosterior {
    fn new(elements: usize) -> Self {
        Self {
            nearest: f64::MAX,
            sum: 0.0,
            weighted: vec![0.0; elements],
        }
    }

    #[inline(always)]
    fn add(&mut self, squares: &[Lanes], values: &[Lanes], precision: f64) {
        let mut distances = [0.0f64; LANES];
        for squares in squares {
            for lane in 0..LANES {
                distances[lane] += f64::from(squares[lane]);
            }
        }
        let nearest = distances.iter().copied().fold(f64::MAX, f64::min);
        if (nearest - self.nearest) * precision > f64::from(NEGLIGIBLE) {
            return;
        }
        if nearest < self.nearest {
            let shrink = ((nearest - self.nearest) * precision).exp();
            self.nearest = nearest;
            self.sum *= shrink;
            self.weighted.iter_mut().for_each(|value| *value *= shrink);
        }
        let weights = distances.map(|distance| ((self.nearest - distance) * precision).exp());
        self.sum += weights.iter().sum::<f64>();
        let weights = weights.map(|weight| weight as f32);
        for (weighted, values) in self.weighted.iter_mut().zip(values) {
            *weighted += f64::from(dot(&weights, values));
        }
    }

    fn mean(self) -> Vec<f32> {
        let values = self.weighted.into_iter();
        values.map(|value| (value / self.sum) as f32).collect()
    }
}

#[inline(always)]
fn dot(a: &Lanes, b: &Lanes) -> f32 {
    let mut products = [0.0; LANES];
    for lane in 0..LANES {
        products[lane] = a[lane] * b[lane];
    }
    reduce(products, |a, b| a + b)
}

/// By halves, as vector registers do it.
#[inline(always)]
fn reduce(mut lanes: Lanes, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Below this the exponential is not a normal number.
const LOWEST: f32 = -87.0;

/// `1.5 · 2^23`: added to a small number, it leaves the nearest integer in the last bits.
const ROUND: f32 = 12_582_912.0;

/// `e^x` for `x ≤ 0`, to some units of the last place: `2^n · 2^f` with `|f| ≤ ½`, the second
/// factor by its series. Without a branch or a call, so that loops over it are vectorised.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    let scaled = x.max(LOWEST) * std::f32::consts::LOG2_E;
    let rounded = scaled + ROUND;
    let fraction = (scaled - (rounded - ROUND)) * std::f32::consts::LN_2;
    let power = f32::from_bits((rounded.to_bits().wrapping_add(127)) << 23);
    let mut series = 1.0 / 720.0;
    for factor in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * fraction + factor;
    }
    series * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;

    fn random(seed: u64, count: usize) -> Vec<f32> {
        let (stream, device) = (Stream::Noise, Device::flex());
        let values = normal_noise([1, count], seed, 0, 0, stream, &device);
        values.into_data().try_to_vec().unwrap()
    }

    /// Points of a set of rank 1 have no axis of their own.
    #[test]
    fn a_point_may_be_one_number() {
        let references = References::new(&[-1.0, 3.0], &[]);
        let row = NoisyRow {
            references: &references,
            noisy: &[1.5],
            clean: &[2.0],
            scales: [0.5, 1.0],
            slope: 1.0,
            without_copies: false,
        };
        // Both squared differences, (1.5 + 0.5)² and 0, over 2σ².
        let weight = (-2.0f64).exp();
        let mean = (3.0 - weight) / (1.0 + weight);
        let found = f64::from(errors(&[row], &[])[0][0][0]);
        assert!((found - (mean - 2.0)).abs() < 1e-6, "{found}");
    }

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        for step in 0..8700 {
            let x = -0.01 * step as f32;
            let expected = f64::from(x).exp();
            let error = (f64::from(exponential(x)) / expected - 1.0).abs();
            assert!(error < 1e-5, "{x}: {error}");
        }
        assert_eq!(exponential(0.0), 1.0);
        assert!(exponential(f32::MIN) < 1e-37);
    }

    /// One place's posterior mean in f64; a radius that covers all is the whole point.
    fn definition(
        references: &[f32],
        shape: &[usize],
        noisy: &[f32],
        [gamma, sigma]: [f64; 2],
        radius: usize,
        element: usize,
    ) -> f64 {
        let elements: usize = shape.iter().product();
        let places: usize = shape[1..].iter().product();
        let coordinates = |place: usize| -> Vec<usize> {
            let axes = &shape[1..];
            (0..axes.len())
                .map(|axis| place / axes[axis + 1..].iter().product::<usize>() % axes[axis])
                .collect()
        };
        let here = coordinates(element % places);
        let is_near = |other: usize| {
            let pairs = coordinates(other % places).into_iter().zip(&here);
            pairs.map(|(a, &b)| a.abs_diff(b)).all(|far| far <= radius)
        };
        let exponent = |x: &[f32]| {
            let near = (0..elements).filter(|&other| is_near(other));
            let squares = near.map(|at| (f64::from(noisy[at]) - gamma * f64::from(x[at])).powi(2));
            -squares.sum::<f64>() / (2.0 * sigma * sigma)
        };
        let exponents: Vec<f64> = references.chunks(elements).map(exponent).collect();
        let largest = exponents.iter().copied().fold(f64::MIN, f64::max);
        let weights = exponents.iter().map(|exponent| (exponent - largest).exp());
        let values = references.chunks(elements).map(|x| f64::from(x[element]));
        let total: f64 = weights.clone().sum();
        weights.zip(values).map(|(p, x)| p * x).sum::<f64>() / total
    }

    /// Sequences, images and videos of several channels, with a number of points that no block
    /// divides.
    #[test]
    fn means_are_those_of_their_definition_at_every_rank() {
        for shape in [vec![7], vec![2, 9], vec![3, 5, 6], vec![1, 3, 4, 5]] {
            let elements: usize = shape.iter().product();
            let patches: &[usize] = if shape.len() == 1 { &[] } else { &[1, 3, 7] };
            let points = random(1, 53 * elements);
            let references = References::new(&points, &shape);
            let noisy = random(2, elements);
            for scales in [[0.0, 1.0], [0.6, 0.8], [0.95, 0.3], [1.0, 0.02]] {
                let row = NoisyRow {
                    references: &references,
                    noisy: &noisy,
                    clean: &noisy,
                    scales,
                    slope: 1.0,
                    without_copies: false,
                };
                let means = row.means(patches);
                assert_eq!(means.len(), patches.len() + 1);
                let radii = patches.iter().map(|patch| patch / 2).chain([99]);
                for (mean, radius) in means.iter().zip(radii) {
                    for (element, &mean) in mean.iter().enumerate() {
                        let expected = definition(&points, &shape, &noisy, scales, radius, element);
                        let error = (f64::from(mean) - expected).abs();
                        assert!(error < 2e-4, "{shape:?} {scales:?} {radius}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn copies_of_the_clean_point_are_left_out_where_that_is_wanted() {
        let shape = [1, 4];
        let points = random(1, 40 * 4);
        let own = points[7 * 4..8 * 4].to_vec();
        let others = [&points[..7 * 4], &points[8 * 4..]].concat();
        let [all, others] = [&points, &others].map(|points| References::new(points, &shape));
        assert_eq!([all.copies(&own), others.copies(&own)], [1, 0]);
        let means = |references: &References, without_copies: bool| {
            let row = NoisyRow {
                references,
                noisy: &own,
                clean: &own,
                scales: [1.0, 0.1],
                slope: 1.0,
                without_copies,
            };
            row.means(&[3])
        };
        let apart = means(&others, false);
        for (found, expected) in means(&all, true).concat().iter().zip(apart.concat()) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert_ne!(means(&all, false), apart);
    }

    #[test]
    fn rows_come_in_their_order_and_errors_in_the_space_of_the_output() {
        let references = References::new(&random(1, 20 * 6), &[1, 6]);
        let (noisy, clean) = (random(2, 5 * 6), random(3, 5 * 6));
        let rows: Vec<_> = (noisy.chunks(6).zip(clean.chunks(6)))
            .map(|(noisy, clean)| NoisyRow {
                references: &references,
                noisy,
                clean,
                scales: [0.6, 0.8],
                slope: -0.75,
                without_copies: false,
            })
            .collect();
        for (row, errors) in rows.iter().zip(errors(&rows, &[3])) {
            for (errors, means) in errors.iter().zip(row.means(&[3])) {
                for ((error, mean), clean) in errors.iter().zip(means).zip(row.clean) {
                    assert!((error + 0.75 * (mean - clean)).abs() < 1e-6);
                }
            }
        }
    }
}
