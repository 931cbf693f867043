//! Search for the retained points nearest to each forgotten one.

use std::collections::HashMap;

use burn::tensor::Tensor;

use crate::data::Side;
use crate::data::distances::squared_distances;
use crate::data::finite::check_finite;
use crate::error::{Error, Result, check_device, check_range, check_shape};
use crate::host::{read_f32, select_rows, to_f32};

/// The nearest retained points by the id of the forgotten point; an id is searched for when it
/// first occurs.
#[derive(Debug, Clone)]
pub(super) struct Neighbours<const D: usize> {
    retain: Option<Tensor<D>>,
    count: usize,
    groups: Option<NeighbourGroups>,
    known: HashMap<u64, Known<D>>,
}

/// Group keys, which decide who may be a neighbour: by row of the retained set, and by id of the
/// forgotten point.
#[derive(Debug, Clone)]
struct NeighbourGroups {
    retained: Vec<u64>,
    forgotten: Vec<u64>,
    /// Number of retained points in the smallest group that has a forgotten point.
    smallest: usize,
}

#[derive(Debug, Clone)]
struct Known<const D: usize> {
    /// `[1, …]`.
    point: Tensor<D>,
    /// Nearest first, `[count, …]`.
    neighbours: Tensor<D>,
    /// `‖a − r‖²` of each neighbour, in f64, because the exponents of the posterior are differences
    /// of large multiples of it.
    squared_distances: Vec<f64>,
}

/// The neighbours of the rows of a batch, by rank.
#[derive(Debug)]
pub(super) struct BatchNeighbours<const D: usize> {
    /// The points that the rows' ids first occurred with, `[batch, …]`.
    pub(super) own: Tensor<D>,
    /// `[batch, …]` for each rank, nearest first.
    pub(super) points: Vec<Tensor<D>>,
    /// `‖a − r‖²` for each rank and row.
    pub(super) squared_distances: Vec<Vec<f64>>,
}

impl<const D: usize> Neighbours<D> {
    /// Neighbours that are searched for among `retain`, at most `count` per point.
    pub(super) fn among(retain: Tensor<D>, count: usize) -> Result<Self> {
        if retain.dims().contains(&0) {
            return Err(Error::Empty {
                what: "the set of retained points to search for neighbours",
                remedy: "give the data without the forgotten points",
            });
        }
        Ok(Self {
            count: count.min(retain.dims()[0]),
            retain: Some(to_f32(retain.inner())),
            groups: None,
            known: HashMap::new(),
        })
    }

    /// Given neighbours; point `i` has id `i`.
    pub(super) fn given(points: Tensor<D>, neighbours: Vec<Tensor<D>>) -> Result<Self> {
        let first = neighbours.first().map(Tensor::dims);
        let Some(first) = first.filter(|shape| !shape.contains(&0)) else {
            return Err(Error::Empty {
                what: "the list of neighbours",
                remedy: "give at least one neighbour for each forgotten point",
            });
        };
        let (count, mut shape) = (first[0], points.dims());
        let remedy = "give the same number of neighbours for each forgotten point";
        let what = "the list of neighbours";
        check_shape(what, &shape[..1], &[neighbours.len()], remedy)?;
        shape[0] = count;
        let mut found = Self {
            retain: None,
            groups: None,
            count,
            known: HashMap::new(),
        };
        for (row, neighbours) in neighbours.into_iter().enumerate() {
            check_shape("a point's neighbours", &shape, &neighbours.dims(), remedy)?;
            check_device("neighbours", &points.device(), &neighbours.device())?;
            let point = to_f32(points.clone().inner().narrow(0, row, 1));
            found.remember(row as u64, point, to_f32(neighbours.inner()))?;
        }
        Ok(found)
    }

    /// Sets the number of neighbours; must be called before the first search.
    pub(super) fn with_count(mut self, count: usize) -> Result<Self> {
        let most = match (&self.retain, self.known.is_empty()) {
            (Some(retain), true) => match &self.groups {
                Some(groups) => groups.smallest,
                None => retain.dims()[0],
            },
            _ => 0,
        };
        let legal = (1..=most).contains(&count);
        let requirement = "from 1 to the number of retained points, of a point's group if there are groups, set before the first step";
        check_range("neighbour_count", count as f64, legal, requirement)?;
        self.count = count;
        Ok(self)
    }

    /// Restricts neighbours to the point's own group; must be called before the first search.
    ///
    /// The number of neighbours is at most the number of points in the smallest group.
    pub(super) fn within_groups(mut self, retained: Vec<u64>, forgotten: Vec<u64>) -> Result<Self> {
        let points = match &self.retain {
            Some(retain) if self.known.is_empty() => retain.dims()[0],
            _ => {
                return Err(Error::InvalidSetting {
                    what: "groups were given after neighbours were known".into(),
                    remedy: "give groups before the first step, to a ReTrack that searches for its neighbours",
                });
            }
        };
        let remedy = "give a key for every retained point";
        let what = "the groups of the retained points";
        check_shape(what, &[points], &[retained.len()], remedy)?;
        let mut smallest = points;
        for (point, own) in forgotten.iter().enumerate() {
            let found = retained.iter().filter(|&key| key == own).count();
            if found == 0 {
                return Err(Error::UnexplainedPoint {
                    what: "forgotten",
                    point,
                    group: Some(*own),
                });
            }
            smallest = smallest.min(found);
        }
        self.count = self.count.min(smallest);
        self.groups = Some(NeighbourGroups {
            retained,
            forgotten,
            smallest,
        });
        Ok(self)
    }

    /// Whether neighbours are searched for among all retained points.
    pub(super) fn are_of_any_group(&self) -> bool {
        self.retain.is_some() && self.groups.is_none()
    }

    /// The number of neighbours per point.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The neighbours of the rows of a batch; searches for those of new ids first.
    ///
    /// # Errors
    /// [`Error::UnknownPoint`] for an id without neighbours or group;
    /// [`Error::ForgottenPointRetained`], [`Error::NonFiniteData`].
    pub(super) fn of_batch(
        &mut self,
        forget: &Tensor<D>,
        ids: &[u64],
    ) -> Result<BatchNeighbours<D>> {
        if ids.iter().any(|id| !self.known.contains_key(id)) {
            check_finite(forget, Side::Forget)?;
        }
        for (row, id) in ids.iter().enumerate() {
            if !self.known.contains_key(id) {
                // A copy: a view would keep the whole batch.
                self.search(*id, select_rows(forget, &[row]))?;
            }
        }
        // Each distinct point of the batch once, and which of them each row holds.
        let (mut met, mut distinct) = (HashMap::new(), Vec::new());
        let mut places = Vec::with_capacity(ids.len());
        for id in ids {
            places.push(*met.entry(id).or_insert_with(|| {
                distinct.push(&self.known[id]);
                distinct.len() - 1
            }));
        }
        if distinct.is_empty() {
            return Err(Error::Empty {
                what: "the batch",
                remedy: "give at least one forgotten point",
            });
        }
        let points = distinct.iter().map(|known| known.point.clone()).collect();
        let neighbours = distinct.iter().map(|known| known.neighbours.clone());
        let neighbours = Tensor::cat(neighbours.collect(), 0);
        let of_rank = |rank| {
            let rows: Vec<usize> = places
                .iter()
                .map(|place| place * self.count + rank)
                .collect();
            select_rows(&neighbours, &rows)
        };
        let distances = |rank: usize| {
            let distance = |place: &usize| distinct[*place].squared_distances[rank];
            places.iter().map(distance).collect()
        };
        Ok(BatchNeighbours {
            own: select_rows(&Tensor::cat(points, 0), &places),
            points: (0..self.count).map(of_rank).collect(),
            squared_distances: (0..self.count).map(distances).collect(),
        })
    }

    /// Searches for the neighbours of one more point, `[1, …]`.
    fn search(&mut self, id: u64, point: Tensor<D>) -> Result<()> {
        let retain = self.retain.as_ref().ok_or(Error::UnknownPoint {
            id,
            missing: "list of neighbours",
            known: self.known.len(),
            remedy: "give neighbours for every forgotten point, or number the ids from 0 in the order of the points",
        })?;
        let (shape, remedy) = (
            retain.dims(),
            "search among points of the model's input shape",
        );
        check_shape("a forgotten point", &shape[1..], &point.dims()[1..], remedy)?;
        check_device("forgotten points", &retain.device(), &point.device())?;
        let candidates = self.candidates(id, shape[0])?;
        let nearest = nearest(retain, &point, candidates, self.count)?;
        if !nearest.iter().all(|(distance, _)| distance.is_finite()) {
            check_finite(retain, Side::Retain)?;
        }
        if let Some(&(_, retained)) = nearest.iter().find(|(distance, _)| *distance == 0.0) {
            return Err(Error::ForgottenPointRetained {
                forget: id as usize,
                retain: retained,
            });
        }
        let rows: Vec<usize> = nearest.into_iter().map(|(_, row)| row).collect();
        let neighbours = select_rows(retain, &rows);
        self.remember(id, point, neighbours)
    }

    /// The retained points that may be neighbours of a forgotten one: those of its group.
    fn candidates(&self, id: u64, retained: usize) -> Result<Vec<usize>> {
        let Some(groups) = &self.groups else {
            return Ok((0..retained).collect());
        };
        let own = usize::try_from(id).ok();
        let own = own.and_then(|id| groups.forgotten.get(id));
        let own = own.ok_or(Error::UnknownPoint {
            id,
            missing: "group",
            known: groups.forgotten.len(),
            remedy: "give the group of each forgotten point, in the order of their ids",
        })?;
        let is_member = |&row: &usize| groups.retained[row] == *own;
        Ok((0..retained).filter(is_member).collect())
    }

    fn remember(&mut self, id: u64, point: Tensor<D>, neighbours: Tensor<D>) -> Result<()> {
        let squared_distances = exact_squared_distances(&point, &neighbours)?;
        let known = Known {
            point,
            neighbours,
            squared_distances,
        };
        self.known.insert(id, known);
        Ok(())
    }
}

/// The `count` candidate rows of `retain` nearest to a point, as squared distance and row, nearest
/// first.
fn nearest<const D: usize>(
    retain: &Tensor<D>,
    point: &Tensor<D>,
    candidates: Vec<usize>,
    count: usize,
) -> Result<Vec<(f32, usize)>> {
    let squares = squared_distances(retain, point);
    let squares = read_f32(squares, "distances to retained points")?;
    let candidates = candidates.into_iter().map(|row| (squares[row], row));
    let mut found: Vec<(f32, usize)> = candidates.collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.truncate(count);
    Ok(found)
}

/// `‖point − neighbour‖²` in f64, for one point and its neighbours.
fn exact_squared_distances<const D: usize>(
    point: &Tensor<D>,
    neighbours: &Tensor<D>,
) -> Result<Vec<f64>> {
    let point = read_f32(point.clone(), "a forgotten point")?;
    let neighbours = read_f32(neighbours.clone(), "neighbours")?;
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let distance = |neighbour: &[f32]| point.iter().zip(neighbour).map(square).sum();
    Ok(neighbours.chunks(point.len()).map(distance).collect())
}
