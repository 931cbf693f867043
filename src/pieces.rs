//! A point in pieces: what a model answers where it sees only a part of the point.

use std::ops::Range;

use burn::tensor::{Device, Tensor};

use crate::error::Result;
use crate::host::{column, select_rows, tensor};

/// Pieces along an axis that is divided.
const ALONG: usize = 3;
/// The shortest axis that is divided.
const SHORTEST: usize = 4;

/// Overlapping pieces that cover a point: of each spatial axis the first half, the middle half and
/// the last half.
///
/// A model that is shown one piece inside another point, at the same noise, does not recognise the
/// point that it memorised, and answers there as it does to what it has never seen. Where pieces
/// overlap, an answer weighs as much as its place is far from the piece's border.
#[derive(Debug, Clone)]
pub(crate) struct Pieces {
    /// The spatial axes.
    axes: Vec<usize>,
    /// Of each piece, the share of its answer at each place; 0 outside the piece alone.
    shares: Vec<Vec<f32>>,
}

impl Pieces {
    /// For points of this shape, `[channels, …]`; `None` without an axis that can be divided.
    pub(crate) fn of(shape: &[usize]) -> Option<Self> {
        let axes = shape.get(1..)?;
        if axes.iter().all(|&length| length < SHORTEST) {
            return None;
        }
        let mut pieces = vec![Vec::new()];
        for &length in axes {
            let with = |piece: &Vec<Range<usize>>| {
                let longer = |part| [piece.clone(), vec![part]].concat();
                parts(length).into_iter().map(longer).collect::<Vec<_>>()
            };
            pieces = pieces.iter().flat_map(with).collect();
        }
        let weights = pieces.iter().map(|piece| weights(piece, axes));
        let weights: Vec<Vec<f32>> = weights.collect();
        let sum = |place: usize| -> f32 { weights.iter().map(|weights| weights[place]).sum() };
        let sums: Vec<f32> = (0..axes.iter().product()).map(sum).collect();
        let shares = |weights: &Vec<f32>| {
            let pairs = weights.iter().zip(&sums);
            pairs.map(|(weight, sum)| weight / sum).collect()
        };
        Some(Self {
            axes: axes.to_vec(),
            shares: weights.iter().map(shares).collect(),
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.shares.len()
    }

    /// A model's answers to pieces of noisy points inside other points, put together.
    ///
    /// `around` names the other point, by its row, that a row's piece is shown in. `ask` gets all
    /// that is shown, piece after piece, and the row of the other point of each.
    ///
    /// # Shapes
    /// - `noisy`, `clean`, the result: `[rows, …]`; `others`: `[count, …]`
    /// - what is shown, and the result of `ask`: `[pieces · rows, …]`
    pub(crate) fn answers<const D: usize>(
        &self,
        (noisy, clean): (&Tensor<D>, &Tensor<D>),
        signal: &[f64],
        (others, around): (&Tensor<D>, impl Fn(usize, usize) -> usize),
        ask: impl FnOnce(Tensor<D>, &[usize]) -> Result<Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let rows = noisy.dims()[0];
        let around = |piece| (0..rows).map(|row| around(row, piece)).collect::<Vec<_>>();
        let shown = self.shown((noisy, clean), signal, |piece| {
            select_rows(others, &around(piece))
        });
        let all: Vec<usize> = (0..self.count()).flat_map(around).collect();
        Ok(self.joined(ask(shown, &all)?))
    }

    /// Each piece of each noisy point `m = γ a + σ ε` inside other points `b`:
    /// `m + (1 − M) γ (b − a)`, piece after piece.
    ///
    /// # Shapes
    /// - `noisy`, `clean`, `others`: `[rows, …]`; the result: `[pieces · rows, …]`
    fn shown<const D: usize>(
        &self,
        (noisy, clean): (&Tensor<D>, &Tensor<D>),
        signal: &[f64],
        others: impl Fn(usize) -> Tensor<D>,
    ) -> Tensor<D> {
        let device = noisy.device();
        let signal = column::<D>(signal, &device);
        let shown = self.shares.iter().enumerate().map(|(piece, shares)| {
            let outside = shares.iter().map(|&share| f32::from(share == 0.0));
            let outside = self.over_places(outside.collect(), &device);
            noisy.clone() + (others(piece) - clean.clone()) * signal.clone() * outside
        });
        Tensor::cat(shown.collect(), 0)
    }

    /// The answers to what was [`shown`](Self::shown), put together.
    ///
    /// # Shapes
    /// - `answers`: `[pieces · rows, …]`; the result: `[rows, …]`
    fn joined<const D: usize>(&self, answers: Tensor<D>) -> Tensor<D> {
        let (rows, device) = (answers.dims()[0] / self.count(), answers.device());
        let parts = self.shares.iter().enumerate().map(|(piece, shares)| {
            let answers = answers.clone().narrow(0, piece * rows, rows);
            answers * self.over_places(shares.clone(), &device)
        });
        parts.reduce(|sum, part| sum + part).unwrap_or(answers)
    }

    /// A number for each place as `[1, 1, …]`.
    fn over_places<const D: usize>(&self, values: Vec<f32>, device: &Device) -> Tensor<D> {
        let mut shape = [1; D];
        shape[D - self.axes.len()..].copy_from_slice(&self.axes);
        tensor(values, shape, device)
    }
}

/// How far each place is from the border between the piece and what surrounds it; 0 outside.
fn weights(piece: &[Range<usize>], axes: &[usize]) -> Vec<f32> {
    let longest = axes.iter().max().copied().unwrap_or(1);
    let mut place = vec![0; axes.len()];
    let weight = |index: usize| {
        let mut left = index;
        for (at, &length) in place.iter_mut().zip(axes).rev() {
            *at = left % length;
            left /= length;
        }
        if !piece.iter().zip(&place).all(|(part, at)| part.contains(at)) {
            return 0.0;
        }
        let along = piece.iter().zip(&place).zip(axes);
        let distances = along.flat_map(|((part, &at), &length)| {
            let before = (part.start > 0).then(|| at - part.start);
            let after = (part.end < length).then(|| part.end - 1 - at);
            before.into_iter().chain(after)
        });
        0.5 + distances.min().unwrap_or(longest) as f32
    };
    (0..axes.iter().product()).map(weight).collect()
}

/// The first, the middle and the last half of an axis, or all of a short one.
fn parts(length: usize) -> Vec<Range<usize>> {
    let (count, width) = match length < SHORTEST {
        true => (1, length),
        false => (ALONG, length.div_ceil(2)),
    };
    let starts = (0..count).map(|part| part * (length - width) / (ALONG - 1));
    starts.map(|start| start..start + width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use crate::host::read_f32;
    use crate::process::{DdpmScheduler, SchedulerExt};

    fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
        normal_noise(shape, seed, 0, 0, Stream::Noise, &Device::flex())
    }

    fn host<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        read_f32(tensor.clone(), "a tensor").unwrap()
    }

    /// Every place of a point is covered, and answers that agree are put together unchanged.
    #[test]
    fn pieces_cover_a_point_and_are_shown_at_its_noise_inside_the_others() {
        for shape in [vec![2, 9, 7], vec![1, 4, 1], vec![3, 12], vec![1, 5, 3, 4]] {
            let pieces = Pieces::of(&shape).unwrap();
            let long = shape[1..].iter().filter(|&&length| length >= 4).count();
            assert_eq!(pieces.count(), 3_usize.pow(long as u32), "{shape:?}");
            match shape.len() {
                2 => check_pieces(&pieces, [5, shape[0], shape[1]]),
                3 => check_pieces(&pieces, [5, shape[0], shape[1], shape[2]]),
                _ => check_pieces(&pieces, [5, shape[0], shape[1], shape[2], shape[3]]),
            }
        }
        for shape in [vec![6], vec![3, 3, 2], vec![]] {
            assert!(Pieces::of(&shape).is_none(), "{shape:?}");
        }
    }

    fn check_pieces<const D: usize>(pieces: &Pieces, shape: [usize; D]) {
        let (clean, others, noise) = (random(1, shape), random(2, shape), random(3, shape));
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let scales = scheduler.scales(&[300.0; 5]).unwrap();
        let noisy = scales.noisy(&clean, &noise);
        let shown = pieces.shown((&noisy, &clean), &scales.signal, |_| others.clone());
        let surrounding = scales.noisy(&others, &noise);
        let [own, around, of_pieces] = [&noisy, &surrounding, &shown].map(host);
        let elements = own.len();
        let mut covered = vec![false; elements];
        for shown in of_pieces.chunks(elements) {
            let mut inside = 0;
            for (index, &value) in shown.iter().enumerate() {
                let is_own = (value - own[index]).abs() < 1e-5;
                assert!(is_own || (value - around[index]).abs() < 1e-5);
                covered[index] |= is_own;
                inside += usize::from(is_own);
            }
            assert!(inside < elements, "a piece is a part");
        }
        assert!(covered.into_iter().all(|covered| covered));
        // Inside a piece its answers are those of the point, and outside they do not count.
        let wrong = shown.clone() - noisy.clone().repeat_dim(0, pieces.count());
        let joined = host(&pieces.joined(shown + wrong * 1e3));
        for (joined, own) in joined.into_iter().zip(own) {
            assert!((joined - own).abs() < 1e-4, "{joined} {own}");
        }
    }

    #[test]
    fn each_piece_is_answered_inside_the_point_that_is_named() {
        let (clean, others) = (random(1, [2, 1, 8]), random(2, [5, 1, 8]));
        let pieces = Pieces::of(&[1, 8]).unwrap();
        let around = |row: usize, piece: usize| (3 * row + piece) % 5;
        let ask = |shown: Tensor<3>, named: &[usize]| {
            assert_eq!(named, [0, 3, 1, 4, 2, 0]);
            // Without noise: the first and the last half, each inside the other point's.
            let [shown, clean, others] = [&shown, &clean, &others].map(host);
            let part = |of: &[f32], row: usize, at: usize| of[row * 8 + at..][..4].to_vec();
            for row in 0..2 {
                assert_eq!(part(&shown, row, 0), part(&clean, row, 0));
                assert_eq!(part(&shown, 4 + row, 4), part(&clean, row, 4));
                for (shown_row, at) in [(row, 4), (4 + row, 0)] {
                    let pairs = part(&shown, shown_row, at);
                    let pairs = pairs.into_iter().zip(part(&others, named[shown_row], at));
                    for (shown, other) in pairs {
                        assert!((shown - other).abs() < 1e-6, "{shown_row}: {shown} {other}");
                    }
                }
            }
            Ok(Tensor::zeros([6, 1, 8], &Device::flex()))
        };
        let points = (&clean, &clean);
        let answers = pieces.answers(points, &[1.0; 2], (&others, around), ask);
        assert_eq!(answers.unwrap().dims(), [2, 1, 8]);
    }
}
