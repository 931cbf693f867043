//! A point in pieces: what a model answers where it sees only a part of the point.

use std::ops::Range;

use burn::tensor::{Device, Tensor};

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
pub(super) struct Pieces {
    /// `[channels, …]`.
    shape: Vec<usize>,
    pieces: Vec<Vec<Range<usize>>>,
}

impl Pieces {
    /// For points of this shape, `[channels, …]`; `None` without an axis that can be divided.
    pub(super) fn of(shape: &[usize]) -> Option<Self> {
        let axes = shape.get(1..)?;
        axes.iter().any(|&length| length >= SHORTEST).then(|| {
            let mut pieces = vec![Vec::new()];
            for &length in axes {
                let with = |piece: &Vec<Range<usize>>| {
                    let longer = |part| [piece.clone(), vec![part]].concat();
                    parts(length).into_iter().map(longer).collect::<Vec<_>>()
                };
                pieces = pieces.iter().flat_map(with).collect();
            }
            Self {
                shape: shape.to_vec(),
                pieces,
            }
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Each piece of each noisy point `m = γ a + σ ε` inside other points `b`:
    /// `m + (1 − M) γ (b − a)`, piece after piece.
    ///
    /// # Shapes
    /// - `noisy`, `clean`, `others`: `[rows, …]`; the result: `[pieces · rows, …]`
    pub(super) fn shown<const D: usize>(
        &self,
        (noisy, clean): (&Tensor<D>, &Tensor<D>),
        signal: &[f64],
        others: impl Fn(usize) -> Tensor<D>,
    ) -> Tensor<D> {
        let device = noisy.device();
        let signal = column::<D>(signal, &device);
        let shown = self.pieces.iter().enumerate().map(|(index, piece)| {
            let outside = self.over_places(|place| f32::from(!contains(piece, place)), &device);
            noisy.clone() + (others(index) - clean.clone()) * signal.clone() * outside
        });
        Tensor::cat(shown.collect(), 0)
    }

    /// The answers to what was [`shown`](Self::shown), put together.
    ///
    /// # Shapes
    /// - `answers`: `[pieces · rows, …]`; the result: `[rows, …]`
    pub(super) fn joined<const D: usize>(&self, answers: Tensor<D>) -> Tensor<D> {
        let (rows, device) = (answers.dims()[0] / self.count(), answers.device());
        let sum =
            |place: &[usize]| -> f32 { self.pieces.iter().map(|p| self.weight(p, place)).sum() };
        let parts = self.pieces.iter().enumerate().map(|(index, piece)| {
            let share = |place: &[usize]| self.weight(piece, place) / sum(place);
            let answers = answers.clone().narrow(0, index * rows, rows);
            answers * self.over_places(share, &device)
        });
        parts.reduce(|sum, part| sum + part).unwrap_or(answers)
    }

    /// How far a place is from the border between the piece and what surrounds it; 0 outside.
    fn weight(&self, piece: &[Range<usize>], place: &[usize]) -> f32 {
        if !contains(piece, place) {
            return 0.0;
        }
        let axes = piece.iter().zip(place).zip(&self.shape[1..]);
        let distances = axes.flat_map(|((part, &at), &length)| {
            let before = (part.start > 0).then(|| at - part.start);
            let after = (part.end < length).then(|| part.end - 1 - at);
            before.into_iter().chain(after)
        });
        let longest = self.shape[1..].iter().max().copied().unwrap_or(1);
        0.5 + distances.min().unwrap_or(longest) as f32
    }

    /// `[1, 1, …]`.
    fn over_places<const D: usize>(
        &self,
        value: impl Fn(&[usize]) -> f32,
        device: &Device,
    ) -> Tensor<D> {
        let axes = &self.shape[1..];
        let places: usize = axes.iter().product();
        let mut place = vec![0; axes.len()];
        let mut values = Vec::with_capacity(places);
        for index in 0..places {
            let mut left = index;
            for (at, &length) in place.iter_mut().zip(axes).rev() {
                *at = left % length;
                left /= length;
            }
            values.push(value(&place));
        }
        let mut shape = [1; D];
        shape[D - axes.len()..].copy_from_slice(axes);
        tensor(values, shape, device)
    }
}

/// Rows of other points that pieces are shown in: for each piece, another order of them.
///
/// # Shapes
/// - `others`: `[rows, …]`
pub(super) fn turned<const D: usize>(others: &Tensor<D>, by: usize) -> Tensor<D> {
    select_rows(others, &order(others.dims()[0], by))
}

/// The rows from this one on, and those before it.
pub(super) fn order(rows: usize, by: usize) -> Vec<usize> {
    (0..rows).map(|row| (row + by) % rows).collect()
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

fn contains(piece: &[Range<usize>], place: &[usize]) -> bool {
    piece.iter().zip(place).all(|(part, at)| part.contains(at))
}
