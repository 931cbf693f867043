//! The search for retained points that are almost a forgotten one.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::finite::{check_finite, check_finite_values};
use super::points::{Points, check_not_empty, chunks, load};
use super::side::Side;
use crate::error::{Result, check_range, check_shape};
use crate::host::{read_f32, squared_norms, to_f32};

/// Number of retained points from which the typical distance is taken.
const SAMPLED: usize = 32;
/// Most near duplicates that are listed per forgotten point, nearest first.
const NAMED: usize = 16;

/// A retained point that is almost a forgotten one: a copy that was saved again, brightened, or
/// changed in a few pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NearDuplicate {
    /// Index in the forget set.
    pub forget: usize,
    /// Index in the retain set.
    pub retain: usize,
    /// Root of the mean squared difference of the elements of the two points; 0 for identical
    /// points.
    pub distance: f64,
    /// `distance` divided by the typical distance, see [`near_duplicates`].
    pub relative: f64,
}

/// Finds retained points that are near duplicates of forgotten ones: the nearest 16 of each
/// forgotten point.
///
/// The distance between two points is the root of the mean squared difference of their elements.
/// The typical distance of a set is the median, over 32 points spread evenly over the retained set,
/// of the distance to the nearest neighbour that is not identical. Two points closer than `within`
/// times the typical distance are near duplicates; 0.25 is right for images. If the retained set
/// has no two different points, only exact duplicates are found.
///
/// Elements are compared one by one: a copy that was shifted, mirrored, cropped or rotated counts
/// as another point and is not found.
///
/// The retained set may be a tensor, or a [`PointLoader`](crate::data::PointLoader) if it does not
/// fit in memory. It is read once, in chunks, plus 32 single points. The time is that of `k + 32`
/// comparisons with the whole set, the memory that of a few chunks.
///
/// # Shapes
/// - `retain`: `[n, …]`; `forget`: `[k, …]`, on the same device
///
/// # Errors
/// [`Error::Empty`](crate::Error::Empty), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) and
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) for sets that do not fit each other;
/// [`Error::NonFiniteData`](crate::Error::NonFiniteData);
/// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `0 < within ≤ 1`; those of the retained
/// set.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
///
/// let device = Device::flex();
/// let retain = Tensor::<2>::random([50, 20], Distribution::Default, &device);
/// let copy = retain.clone().narrow(0, 7, 1) + 0.01;
/// let found = siss::data::near_duplicates(&retain, &copy, 0.25)?;
/// assert_eq!((found.len(), found[0].forget, found[0].retain), (1, 0, 7));
/// # Ok::<(), siss::Error>(())
/// ```
pub fn near_duplicates<const D: usize>(
    retain: &dyn Points<D>,
    forget: &Tensor<D>,
    within: f64,
) -> Result<Vec<NearDuplicate>> {
    search(retain, forget, within, |_, _| Ok(()))
}

/// Like [`near_duplicates`], but also calls `look` with each chunk of the retained set and the
/// index of its first row.
pub(crate) fn search<const D: usize>(
    retain: &dyn Points<D>,
    forget: &Tensor<D>,
    within: f64,
    mut look: impl FnMut(usize, &Tensor<D>) -> Result<()>,
) -> Result<Vec<NearDuplicate>> {
    let legal = within > 0.0 && within <= 1.0;
    check_range("within", within, legal, "above 0 and at most 1")?;
    check_sets(retain, forget)?;
    let forget = to_f32(forget.clone().inner());
    check_finite(&forget, Side::Forget)?;
    let device = forget.device();
    let mut points = samples(retain, &device)?;
    let sampled = points.len();
    points.extend((0..forget.dims()[0]).map(|row| forget.clone().narrow(0, row, 1)));

    let mut nearest_others = vec![f64::INFINITY; sampled];
    let mut nearest = vec![Vec::new(); forget.dims()[0]];
    for chunk in chunks(retain, &device) {
        let (first, rows) = chunk?;
        look(first, &rows)?;
        let distances = distances(&rows, first, &points)?;
        let (of_samples, of_forgotten) = distances.split_at(sampled);
        for (nearest, distances) in nearest_others.iter_mut().zip(of_samples) {
            let others = distances.iter().copied().filter(|&distance| distance > 0.0);
            *nearest = others.fold(*nearest, f64::min);
        }
        for (nearest, distances) in nearest.iter_mut().zip(of_forgotten) {
            nearest.extend((first..).zip(distances.iter().copied()));
            nearest.sort_by(|a: &(usize, f64), b| a.1.total_cmp(&b.1));
            nearest.truncate(NAMED);
        }
    }
    let typical = median(nearest_others);
    let of_point = |(forget, nearest): (usize, Vec<(usize, f64)>)| {
        let near = nearest
            .into_iter()
            .filter(move |&(_, distance)| distance <= within * typical);
        near.map(move |(retain, distance)| NearDuplicate {
            forget,
            retain,
            distance,
            relative: if distance > 0.0 {
                distance / typical
            } else {
                0.0
            },
        })
    };
    Ok(nearest.into_iter().enumerate().flat_map(of_point).collect())
}

fn check_sets<const D: usize>(retain: &dyn Points<D>, forget: &Tensor<D>) -> Result<()> {
    check_not_empty(retain, "the retain set")?;
    check_not_empty(forget, "the forget set")?;
    let remedy = "bring both sets to the model's input shape";
    let (points, others) = (retain.dims(), forget.dims());
    check_shape("a forgotten point", &points[1..], &others[1..], remedy)
}

/// Retained points, spread evenly over the set, `[1, …]` each.
fn samples<const D: usize>(retain: &dyn Points<D>, device: &Device) -> Result<Vec<Tensor<D>>> {
    let count = retain.dims()[0];
    let sampled = count.min(SAMPLED);
    let rows = (0..sampled).map(|sample| sample * count / sampled);
    rows.map(|row| load(retain, row..row + 1, device)).collect()
}

/// The median of the finite distances; 0 if there are none.
fn median(mut distances: Vec<f64>) -> f64 {
    distances.retain(|distance| distance.is_finite());
    distances.sort_by(f64::total_cmp);
    distances.get(distances.len() / 2).copied().unwrap_or(0.0)
}

/// For each point, the root of the mean squared difference to each of the retained rows; the first
/// row has index `first` in the set.
fn distances<const D: usize>(
    rows: &Tensor<D>,
    first: usize,
    points: &[Tensor<D>],
) -> Result<Vec<Vec<f64>>> {
    let (count, elements) = (rows.dims()[0], rows.dims()[1..].iter().product::<usize>());
    let squares = points
        .iter()
        .map(|point| squared_norms(rows.clone() - point.clone()));
    let squares = read_f32(Tensor::cat(squares.collect(), 0), "distances")?;
    if squares.iter().any(|square| !square.is_finite()) {
        let values = read_f32(rows.clone(), "the data")?;
        check_finite_values(&values, first, count, Side::Retain)?;
    }
    let root = |square: &f32| (f64::from(*square) / elements as f64).sqrt();
    let of_point = |squares: &[f32]| squares.iter().map(root).collect();
    Ok(squares.chunks_exact(count).map(of_point).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PointLoader;
    use crate::data::points::chunk_rows;
    use crate::draws::{Stream, normal_noise};
    use std::cell::RefCell;
    use std::ops::Range;

    fn set(rows: usize) -> Tensor<2> {
        normal_noise([rows, 50], 3, 0, 0, Stream::Evaluation, &Device::flex())
    }

    /// Points of a normal distribution are about √2 apart, nearest neighbours a little less.
    #[test]
    fn copies_are_found_with_their_distance_and_others_are_not() {
        let retain = set(200);
        let noise = normal_noise([1, 50], 4, 0, 0, Stream::Evaluation, &Device::flex());
        let near = retain.clone().narrow(0, 17, 1) + noise.clone() * 0.1;
        let exact = retain.clone().narrow(0, 30, 1);
        let forget = Tensor::cat(vec![noise, near, exact], 0);
        let found = near_duplicates(&retain, &forget, 0.25).unwrap();
        let pairs: Vec<_> = found.iter().map(|d| (d.forget, d.retain)).collect();
        assert_eq!(pairs, [(1, 17), (2, 30)]);
        assert!((found[0].distance - 0.1).abs() < 0.03, "{:?}", found[0]);
        let typical = found[0].distance / found[0].relative;
        assert!((0.8..1.4).contains(&typical), "{typical}");
        assert_eq!((found[1].distance, found[1].relative), (0.0, 0.0));
    }

    /// The typical distance ignores copies of the sampled points; both copies of the forgotten
    /// point are listed.
    #[test]
    fn a_retained_set_full_of_copies_does_not_hide_a_duplicate() {
        let half = set(20);
        let retain = Tensor::cat(vec![half.clone(), half.clone()], 0);
        let forget = half.narrow(0, 3, 1) + 0.02;
        let found = near_duplicates(&retain, &forget, 0.25).unwrap();
        let rows: Vec<_> = found.iter().map(|d| d.retain).collect();
        assert_eq!(rows, [3, 23]);
    }

    #[test]
    fn the_nearest_sixteen_are_named_nearest_first() {
        let apart = set(40);
        let copies: Vec<_> = (1..=20)
            .rev()
            .map(|copy| apart.clone().narrow(0, 0, 1) + 1e-3 * f64::from(copy))
            .collect();
        let others = apart.clone().narrow(0, 1, 39);
        let retain = Tensor::cat([vec![others], copies].concat(), 0);
        let found = near_duplicates(&retain, &apart.narrow(0, 0, 1), 0.25).unwrap();
        let rows: Vec<_> = found.iter().map(|d| d.retain).collect();
        assert_eq!(rows, (43..59).rev().collect::<Vec<_>>());
    }

    /// Three chunks, each with a copy: one pass finds the same pairs as in a single tensor.
    #[test]
    fn a_set_that_is_loaded_in_chunks_is_gone_through_once() {
        let device = Device::flex();
        let chunk = chunk_rows(1024, &device);
        let rows = 2 * chunk + 3;
        let retain: Tensor<2> = normal_noise([rows, 1024], 3, 0, 0, Stream::Evaluation, &device);
        let copies = [2 * chunk + 2, 5, chunk].map(|row| retain.clone().narrow(0, row, 1) + 0.01);
        let forget = Tensor::cat(copies.to_vec(), 0);
        let asked = RefCell::new(vec![0; rows]);
        let loader = PointLoader::new([rows, 1024], |rows: Range<usize>| {
            let mut asked = asked.borrow_mut();
            rows.clone().for_each(|row| asked[row] += 1);
            retain.load(rows)
        });
        let found = near_duplicates(&loader, &forget, 0.25).unwrap();
        assert_eq!(found, near_duplicates(&retain, &forget, 0.25).unwrap());
        let found: Vec<_> = found.iter().map(|pair| pair.retain).collect();
        assert_eq!(found, [2 * chunk + 2, 5, chunk]);
        // The sampled points are read once more.
        let asked = asked.into_inner();
        assert!(asked.iter().all(|&times| times >= 1));
        assert_eq!(asked.iter().sum::<usize>(), rows + SAMPLED);
    }

    #[test]
    fn a_set_of_one_point_has_exact_duplicates_only() {
        let (one, other) = (set(1), set(1) + 1e-3);
        assert_eq!(near_duplicates(&one, &one, 0.5).unwrap().len(), 1);
        assert!(near_duplicates(&one, &other, 0.5).unwrap().is_empty());
    }

    /// Points on a line, 4 apart except for the first tenth. The typical distance is neither that
    /// of the nearest pair nor that of the first points, and nearness is relative to it.
    #[test]
    fn nearness_is_relative_to_the_distance_that_is_typical_of_the_whole_set() {
        let line = |index: i64| {
            if index < 32 {
                1e-3 * index as f64
            } else {
                4.0 * index as f64
            }
        };
        let points: Vec<f32> = (0..320).map(|index| line(index) as f32).collect();
        let device = Device::flex();
        let retain = Tensor::<1>::from_data(points.as_slice(), &device).reshape([320, 1]);
        let forget = Tensor::<2>::from_data([[800.8f32]], &device);
        let found = near_duplicates(&retain, &forget, 0.25).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].retain, found[0].forget), (200, 0));
        assert!((found[0].relative - 0.2).abs() < 1e-4, "{:?}", found[0]);
        assert!((found[0].distance - 0.8).abs() < 1e-4, "{:?}", found[0]);
        assert_eq!(near_duplicates(&retain, &forget, 1.0).unwrap().len(), 2);
    }
}
