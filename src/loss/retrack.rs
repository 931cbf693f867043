//! ReTrack: forgotten points are led to what is left around them.

use std::collections::HashMap;

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use super::{LossInputs, LossTerm, LossTerms, SissLoss};
use crate::batch::check_finite;
use crate::draws::ExtraDraws;
use crate::error::{Error, Result, Side, check_device, check_range, check_shape};
use crate::host::{column, read_f32, select_rows, sum_elements, to_f32};
use crate::scheduler::{Scales, SchedulerExt};

/// Retained points are learnt as ever; at a noisy forgotten point the model is taught the noise that the forgotten point's
/// nearest retained points explain it with, each by its posterior probability. A regression to a bounded target: it
/// descends, with weight 1, and comes to rest where the ideal denoiser of those neighbours is.
///
/// $$ a_t = γ a + σ ε, \quad p_j = \operatorname{softmax}_j −\frac{‖a_t − γ r_j‖²}{2σ²}, \quad \text{target } (a_t − γ Σ_j p_j r_j)/σ $$
///
/// The published loss has one regression for each neighbour, weighed by `p_j`; one regression to the mean target
/// has the same gradient. Timesteps and noise of the two terms are independent, as published.
///
/// The neighbours are exact: Euclidean distance, in the space of the batch. They are searched for when a forgotten point is
/// first met and kept under its id ([`UnlearningBatch::with_forget_ids`](crate::UnlearningBatch::with_forget_ids)).
///
/// # Reference
/// *ReTrack* (arXiv 2509.13007), with 10 neighbours.
#[derive(Debug, Clone)]
pub struct ReTrack<const D: usize> {
    retain: Option<Tensor<D>>,
    neighbour_count: usize,
    slots: HashMap<u64, usize>,
    /// The points with a slot, `[slots, …]`.
    points: Option<Tensor<D>>,
    /// Their neighbours, nearest first, `[slots · neighbour_count, …]`.
    neighbours: Option<Tensor<D>>,
}

/// Neighbours of the published runs.
const PUBLISHED_NEIGHBOURS: usize = 10;

impl<const D: usize> ReTrack<D> {
    /// Searches among `retain` for the 10 nearest points of each forgotten point, or all where there are fewer.
    ///
    /// # Shapes
    /// - `retain`: `[n, …]`, the data without the forgotten points; shared, not copied
    ///
    /// # Errors
    /// [`Error::Empty`].
    pub fn new(retain: Tensor<D>) -> Result<Self> {
        if retain.dims().contains(&0) {
            return Err(Error::Empty {
                what: "the set of retained points to search for neighbours",
                remedy: "give the data without the forgotten points",
            });
        }
        Ok(Self {
            neighbour_count: PUBLISHED_NEIGHBOURS.min(retain.dims()[0]),
            retain: Some(to_f32(retain.inner())),
            slots: HashMap::new(),
            points: None,
            neighbours: None,
        })
    }

    /// Sets the number of neighbours.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless it is from 1 to the number of retained points, or once neighbours are known.
    pub fn with_neighbour_count(mut self, count: usize) -> Result<Self> {
        let most = match (&self.retain, self.slots.is_empty()) {
            (Some(retain), true) => retain.dims()[0],
            _ => 0,
        };
        let legal = (1..=most).contains(&count);
        let requirement = "from 1 to the number of retained points, set before the first step";
        check_range("neighbour_count", count as f64, legal, requirement)?;
        self.neighbour_count = count;
        Ok(self)
    }

    /// Takes neighbours found elsewhere, for data too large for a tensor: point `i` has id `i`.
    ///
    /// # Shapes
    /// - `points`: `[k, …]`, the forgotten points; `neighbours`: for each of them `[count, …]`
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::ShapeMismatch`], or [`Error::InvalidSetting`] for tensors on different devices.
    pub fn from_neighbours(points: Tensor<D>, neighbours: Vec<Tensor<D>>) -> Result<Self> {
        let Some(first) = neighbours
            .first()
            .filter(|first| !first.dims().contains(&0))
        else {
            return Err(Error::Empty {
                what: "the list of neighbours",
                remedy: "give at least one neighbour for each forgotten point",
            });
        };
        let (count, mut shape) = (first.dims()[0], points.dims());
        let remedy = "give the same number of neighbours for each forgotten point";
        check_shape(
            "the list of neighbours",
            &shape[..1],
            &[neighbours.len()],
            remedy,
        )?;
        shape[0] = count;
        for neighbours in &neighbours {
            check_shape("a point's neighbours", &shape, &neighbours.dims(), remedy)?;
            check_device("neighbours", &points.device(), &neighbours.device())?;
        }
        Ok(Self {
            retain: None,
            neighbour_count: count,
            slots: (0..neighbours.len())
                .map(|slot| (slot as u64, slot))
                .collect(),
            points: Some(to_f32(points.inner())),
            neighbours: Some(to_f32(Tensor::cat(neighbours, 0).inner())),
        })
    }

    /// The slot of each row's point, after a search for those that are new.
    fn slots_of(&mut self, forget: &Tensor<D>, ids: &[u64]) -> Result<Vec<usize>> {
        let mut slots = Vec::with_capacity(ids.len());
        for (row, &id) in ids.iter().enumerate() {
            let slot = match self.slots.get(&id) {
                Some(&slot) => slot,
                None => {
                    check_finite(forget, Side::Forget)?;
                    self.add(id, forget.clone().narrow(0, row, 1))?
                }
            };
            slots.push(slot);
        }
        Ok(slots)
    }

    /// Searches for the neighbours of one more point, `[1, …]`.
    fn add(&mut self, id: u64, point: Tensor<D>) -> Result<usize> {
        let retain = self.retain.as_ref().ok_or_else(|| Error::InvalidSetting {
            what: format!("the forgotten point of id {id} has no neighbours"),
            remedy: "give neighbours for every forgotten point, or ids that count the points",
        })?;
        let shape = retain.dims();
        let remedy = "search among points of the model's input shape";
        check_shape("a forgotten point", &shape[1..], &point.dims()[1..], remedy)?;
        check_device("forgotten points", &retain.device(), &point.device())?;
        let nearest = nearest(retain, &point, self.neighbour_count)?;
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
        let found = select_rows(retain, &rows);
        let slot = self.slots.len();
        self.points = Some(append(self.points.take(), point));
        self.neighbours = Some(append(self.neighbours.take(), found));
        self.slots.insert(id, slot);
        Ok(slot)
    }

    /// The neighbours of each row, by rank: `[batch, …]` each, nearest first.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if a row's point is not the one that its id was first met with.
    fn neighbours_of(
        &self,
        forget: &Tensor<D>,
        ids: &[u64],
        slots: &[usize],
    ) -> Result<Vec<Tensor<D>>> {
        let (Some(points), Some(neighbours)) = (&self.points, &self.neighbours) else {
            return Ok(Vec::new());
        };
        let difference = sum_elements((select_rows(points, slots) - forget.clone()).abs());
        let difference = read_f32(difference, "the forgotten points")?;
        if let Some(row) = difference.iter().position(|&difference| difference > 0.0) {
            return Err(Error::InvalidSetting {
                what: format!(
                    "row {row} has id {} and is another point than that id's first",
                    ids[row]
                ),
                remedy: "give each forgotten point an id of its own by `UnlearningBatch::with_forget_ids`",
            });
        }
        let of_rank = |rank| {
            let rows: Vec<usize> = slots
                .iter()
                .map(|slot| slot * self.neighbour_count + rank)
                .collect();
            select_rows(neighbours, &rows)
        };
        Ok((0..self.neighbour_count).map(of_rank).collect())
    }
}

fn append<const D: usize>(all: Option<Tensor<D>>, more: Tensor<D>) -> Tensor<D> {
    match all {
        Some(all) => Tensor::cat(vec![all, more], 0),
        None => more,
    }
}

/// Elements of the retain set that are compared at a time.
const CHUNK_ELEMENTS: usize = 1 << 24;

/// The `count` nearest rows of `retain` to one point: squared distance and row, nearest first.
fn nearest<const D: usize>(
    retain: &Tensor<D>,
    point: &Tensor<D>,
    count: usize,
) -> Result<Vec<(f32, usize)>> {
    let rows = retain.dims()[0];
    let elements: usize = retain.dims()[1..].iter().product();
    let chunk = (CHUNK_ELEMENTS / elements).max(1);
    let mut found = Vec::with_capacity(rows);
    for first in (0..rows).step_by(chunk) {
        let part = retain.clone().narrow(0, first, chunk.min(rows - first));
        let difference = part - point.clone();
        let squares = sum_elements(difference.clone() * difference);
        let squares = read_f32(squares, "distances to retained points")?;
        found.extend(squares.into_iter().zip(first..));
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.truncate(count);
    Ok(found)
}

/// What the neighbours of points make of noisy ones.
#[derive(Debug, Clone)]
pub struct NeighbourTarget<const D: usize> {
    /// The posterior probabilities `p_j`, `[batch, neighbours]`; each row sums to 1.
    pub weights: Tensor<2>,
    /// The mean neighbour `Σ_j p_j r_j`, `[batch, …]`.
    pub clean: Tensor<D>,
    /// The noise that explains the noisy point together with it, `(a_t − γ Σ_j p_j r_j)/σ`, `[batch, …]`.
    pub noise: Tensor<D>,
}

/// The ideal denoiser of a few neighbours at `a_t = γ a + σ ε`.
///
/// With `u_j = (γ/σ)(a − r_j)` it is `p = softmax_j −⟨u_j, ε + u_j/2⟩`, from which the common `‖ε‖²/2` is left out:
/// no difference of huge squares.
///
/// # Shapes
/// - `clean` (`a`), `noise` (`ε`): `[batch, …]`; `neighbours`: one tensor `[batch, …]` for each rank
/// - `scales`: `batch` rows
///
/// # Errors
/// [`Error::Empty`] without a neighbour, [`Error::ShapeMismatch`].
///
/// # Reference
/// ReTrack (arXiv 2509.13007).
pub fn neighbour_target<const D: usize>(
    clean: &Tensor<D>,
    noise: &Tensor<D>,
    neighbours: &[Tensor<D>],
    scales: &Scales,
) -> Result<NeighbourTarget<D>> {
    check_neighbours(clean, noise, neighbours, scales)?;
    let device = clean.device();
    let ratios: Vec<f64> = scales
        .signal
        .iter()
        .zip(&scales.noise)
        .map(|(signal, noise)| signal / noise)
        .collect();
    let ratio: Tensor<D> = column(&ratios, &device);
    let logits = neighbours.iter().map(|neighbour| {
        let shift = (clean.clone() - neighbour.clone()) * ratio.clone();
        -sum_elements((noise.clone() + shift.clone() * 0.5) * shift).unsqueeze_dim::<2>(1)
    });
    let weights = softmax(Tensor::cat(logits.collect(), 1), 1);
    let weighted = neighbours.iter().enumerate().map(|(rank, neighbour)| {
        let mut shape = [1; D];
        shape[0] = clean.dims()[0];
        neighbour.clone() * weights.clone().narrow(1, rank, 1).reshape(shape)
    });
    let mean = weighted
        .reduce(|sum, more| sum + more)
        .unwrap_or_else(|| clean.clone());
    Ok(NeighbourTarget {
        noise: noise.clone() + (clean.clone() - mean.clone()) * ratio,
        clean: mean,
        weights,
    })
}

fn check_neighbours<const D: usize>(
    clean: &Tensor<D>,
    noise: &Tensor<D>,
    neighbours: &[Tensor<D>],
    scales: &Scales,
) -> Result<()> {
    if neighbours.is_empty() {
        return Err(Error::Empty {
            what: "the list of neighbours",
            remedy: "give at least one neighbour for each point",
        });
    }
    let (shape, remedy) = (clean.dims(), "give one for every point");
    check_shape("the noise", &shape, &noise.dims(), remedy)?;
    check_shape("the scales", &shape[..1], &[scales.signal.len()], remedy)?;
    for neighbour in neighbours {
        check_shape(
            "the neighbours of a rank",
            &shape,
            &neighbour.dims(),
            remedy,
        )?;
    }
    Ok(())
}

impl<const D: usize> SissLoss<D> for ReTrack<D> {
    fn name(&self) -> &'static str {
        "ReTrack"
    }

    fn has_term(&self, _side: Side) -> bool {
        true
    }

    fn extra_draws(&self) -> ExtraDraws {
        ExtraDraws {
            forget: true,
            ..ExtraDraws::default()
        }
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D>) -> Result<LossTerms<D>> {
        let (timesteps, noise) = inputs.draws.forget_draws()?;
        let scales = inputs.scheduler.scales(timesteps)?;
        let slots = self.slots_of(inputs.forget, inputs.forget_ids)?;
        let neighbours = self.neighbours_of(inputs.forget, inputs.forget_ids, &slots)?;
        let explained = neighbour_target(inputs.forget, noise, &neighbours, &scales)?;
        Ok(LossTerms {
            retain: Some(inputs.plain_term(Side::Retain, 1.0)),
            forget: Some(regression(inputs, explained, &scales)?),
        })
    }
}

/// The regression of the forgotten points to what their neighbours make of them.
fn regression<const D: usize>(
    inputs: &LossInputs<'_, D>,
    explained: NeighbourTarget<D>,
    scales: &Scales,
) -> Result<LossTerm<D>> {
    let (timesteps, noise) = inputs.draws.forget_draws()?;
    let device = inputs.forget.device();
    let signal = scales.signal_tensor(&device);
    let noise_scale = scales.noise_tensor(&device);
    let noisy = inputs.forget.clone() * signal.clone() + noise.clone() * noise_scale.clone();
    let target =
        inputs
            .prediction_type
            .target(explained.clean, explained.noise, signal, noise_scale);
    let weights = vec![1.0; timesteps.len()];
    Ok(LossTerm::new(noisy, timesteps.to_vec(), target, weights))
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::{Case, host};
    use super::*;
    use crate::denoiser::PredictionType;
    use crate::draws::{Stream, normal_noise};
    use crate::scheduler::Scheduler;
    use burn::tensor::Device;

    const TIMESTEPS: [f64; 4] = [700.0, 20.0, 400.0, 990.0];

    /// Forget draws of their own, and six retained points in the neighbourhood.
    fn case() -> (Case, Tensor<3>) {
        let mut case = Case::new(0.5);
        let points = |seed, rows| {
            let device = Device::flex();
            normal_noise([rows, 2, 3], seed, 0, 0, Stream::Noise, &device)
        };
        case.draws = case
            .draws
            .with_forget_draws(TIMESTEPS.to_vec(), points(4, 4))
            .unwrap();
        (case, points(5, 6) * 0.3)
    }

    fn row(values: &[f32], index: usize) -> Vec<f64> {
        let row = &values[index * 6..index * 6 + 6];
        row.iter().map(|&value| value.into()).collect()
    }

    fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
    }

    fn inputs(case: &Case, kind: PredictionType) -> LossInputs<'_, 3> {
        let (retain, forget, draws) = (&case.retain, &case.forget, &case.draws);
        LossInputs::new(retain, forget, &[0, 1, 2, 3], draws, &case.scheduler, kind).unwrap()
    }

    /// The published loss in f64: a regression for each of the nearest points, weighed by its posterior. Its gradient is
    /// `2 Σ_j p_j (ŷ − y_j)`, so the one target must be `Σ_j p_j y_j`.
    #[test]
    fn the_one_target_is_the_mean_of_the_published_ones_in_every_prediction_type() {
        let (case, retain) = case();
        let (a, epsilon) = (
            host(&case.forget),
            host(case.draws.forget_draws().unwrap().1),
        );
        let r = host(&retain);
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
            PredictionType::FlowVelocity,
        ] {
            let mut loss = ReTrack::new(retain.clone())
                .unwrap()
                .with_neighbour_count(3)
                .unwrap();
            let forget = loss.terms(&inputs(&case, kind)).unwrap().forget.unwrap();
            let (noisy, target) = (host(&forget.noisy), host(&forget.target));
            for (index, &t) in TIMESTEPS.iter().enumerate() {
                let (gamma, sigma) = (
                    case.scheduler.signal_scale(t),
                    case.scheduler.noise_scale(t),
                );
                let point = row(&a, index);
                let m: Vec<f64> = point
                    .iter()
                    .zip(row(&epsilon, index))
                    .map(|(a, e)| gamma * a + sigma * e)
                    .collect();
                let mut neighbours: Vec<Vec<f64>> = (0..6).map(|j| row(&r, j)).collect();
                neighbours.sort_by(|x, y| {
                    squared_distance(&point, x).total_cmp(&squared_distance(&point, y))
                });
                neighbours.truncate(3);
                let exponents: Vec<f64> = neighbours
                    .iter()
                    .map(|r| {
                        let centre: Vec<f64> = r.iter().map(|r| gamma * r).collect();
                        -squared_distance(&m, &centre) / (2.0 * sigma * sigma)
                    })
                    .collect();
                let largest = exponents.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = exponents.iter().map(|e| (e - largest).exp()).sum();
                for element in 0..6 {
                    let expected: f64 = neighbours
                        .iter()
                        .zip(&exponents)
                        .map(|(r, e)| {
                            let clean = r[element];
                            let noise = (m[element] - gamma * clean) / sigma;
                            let target = match kind {
                                PredictionType::Epsilon => noise,
                                PredictionType::Sample => clean,
                                PredictionType::Velocity => gamma * noise - sigma * clean,
                                PredictionType::FlowVelocity => noise - clean,
                            };
                            (e - largest).exp() / sum * target
                        })
                        .sum();
                    let got = f64::from(target[index * 6 + element]);
                    assert!(
                        (got - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                        "{kind:?} {t}: {got} {expected}"
                    );
                    assert!((f64::from(noisy[index * 6 + element]) - m[element]).abs() < 1e-5);
                }
            }
            assert_eq!(
                (forget.weights, forget.timesteps),
                (vec![1.0; 4], TIMESTEPS.to_vec())
            );
        }
    }

    #[test]
    fn neighbours_are_searched_once_for_each_id() {
        let (case, retain) = case();
        let mut loss = ReTrack::new(retain).unwrap();
        let first = loss
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap()
            .forget
            .unwrap();
        loss.retain = None;
        let again = loss
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap()
            .forget
            .unwrap();
        assert_eq!(host(&first.target), host(&again.target));
    }

    #[test]
    fn an_id_that_stands_for_two_points_is_refused() {
        let (case, retain) = case();
        let error = ReTrack::new(retain)
            .unwrap()
            .terms(&case.inputs(PredictionType::Epsilon))
            .unwrap_err();
        assert!(error.to_string().contains("row 1 has id 0"), "{error}");
    }

    #[test]
    fn a_forgotten_point_among_the_retained_ones_is_refused() {
        let (case, retain) = case();
        let both = Tensor::cat(vec![retain, case.forget.clone().narrow(0, 2, 1)], 0);
        let error = ReTrack::new(both)
            .unwrap()
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::ForgottenPointRetained {
                    forget: 2,
                    retain: 6
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn settings_and_draws_that_do_not_fit_are_refused() {
        let (case, retain) = case();
        for bad in [0, 7] {
            let error = ReTrack::new(retain.clone())
                .unwrap()
                .with_neighbour_count(bad)
                .unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains(&format!("neighbour_count is {bad}")),
                "{error}"
            );
        }
        let plain = Case::new(0.5);
        let error = ReTrack::new(retain.clone())
            .unwrap()
            .terms(&inputs(&plain, PredictionType::Epsilon))
            .unwrap_err();
        assert!(error.to_string().contains("with_forget_draws"), "{error}");
        let mut given =
            ReTrack::from_neighbours(case.forget.clone().narrow(0, 0, 1), vec![retain]).unwrap();
        let error = given
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap_err();
        assert!(
            error.to_string().contains("id 1 has no neighbours"),
            "{error}"
        );
    }
}
