//! ReTrack: forgotten points are redirected to the retained points around them.

use burn::tensor::Tensor;

use super::neighbours::{BatchNeighbours, Neighbours};
use super::{LossInputs, LossTerm, LossTerms, SissLoss};
use crate::data::Side;
use crate::draws::{ExtraDraws, Stream};
use crate::error::{Error, Result};
use crate::host::{column, read_f32, sum_elements};
use crate::process::{Scales, SchedulerExt};

/// Retained points are learnt as usual; at a noisy forgotten point the model is taught the noise
/// with which the nearest retained points explain it, each weighted by its posterior probability.
///
/// The forget term is a regression to a bounded target: it descends, with weight 1, and converges
/// to the ideal denoiser of those neighbours.
///
/// ```text
/// a_t    = γ a + σ ε
/// p_j    = softmax_j(−‖a_t − γ r_j‖² / 2σ²)
/// target = (a_t − γ Σ_j p_j r_j) / σ
/// ```
///
/// The published loss has one regression per neighbour, weighted by `p_j`; a single regression to
/// the mean target has the same gradient. As published, the timesteps and the noise of the two
/// terms are independent.
///
/// The neighbours are exact: Euclidean distance, in the space of the batch. They are searched for
/// when a forgotten point first occurs, and kept under its id
/// ([`UnlearningBatch::with_forget_ids`](crate::UnlearningBatch::with_forget_ids)).
///
/// # Reference
/// *ReTrack* (arXiv 2509.13007), with 10 neighbours.
#[derive(Debug, Clone)]
pub struct ReTrack<const D: usize> {
    neighbours: Neighbours<D>,
}

/// Number of neighbours in the published runs.
const PUBLISHED_NEIGHBOURS: usize = 10;

impl<const D: usize> ReTrack<D> {
    /// Creates an objective that searches `retain` for the 10 nearest points of each forgotten
    /// point, or for all if there are fewer.
    ///
    /// # Shapes
    /// - `retain`: `[n, …]`, the data without the forgotten points; shared, not copied
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty).
    pub fn new(retain: Tensor<D>) -> Result<Self> {
        Ok(Self {
            neighbours: Neighbours::among(retain, PUBLISHED_NEIGHBOURS)?,
        })
    }

    /// Sets the number of neighbours.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) if it is not from 1 to the number of
    /// retained points, or if neighbours are known already.
    pub fn with_neighbour_count(self, count: usize) -> Result<Self> {
        Ok(Self {
            neighbours: self.neighbours.with_count(count)?,
        })
    }

    /// Restricts the neighbours of a point to its group: for a model with a condition, one key per
    /// class or prompt.
    ///
    /// A model with a condition is refused without groups, because it would be taught a picture of
    /// another class. Each point has at most as many neighbours as the smallest group of a
    /// forgotten point has retained points.
    ///
    /// # Shapes
    /// - `retained`: `[n]`, in the order of the retained points; `forgotten`: `[k]`, by the ids of
    ///   the forgotten points
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch);
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) if neighbours are known already;
    /// [`Error::UnexplainedPoint`](crate::Error::UnexplainedPoint) if the group of a forgotten
    /// point has no retained points. In a step, [`Error::UnknownPoint`](crate::Error::UnknownPoint)
    /// for a point without a group.
    pub fn with_groups(self, retained: Vec<u64>, forgotten: Vec<u64>) -> Result<Self> {
        Ok(Self {
            neighbours: self.neighbours.within_groups(retained, forgotten)?,
        })
    }

    /// Creates an objective with given neighbours, for data too large for a tensor: point `i` has
    /// id `i`.
    ///
    /// # Shapes
    /// - `points`: `[k, …]`, the forgotten points; `neighbours`: `[count, …]` for each of them
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty),
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch), or
    /// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) for tensors on different devices.
    pub fn from_neighbours(points: Tensor<D>, neighbours: Vec<Tensor<D>>) -> Result<Self> {
        Ok(Self {
            neighbours: Neighbours::given(points, neighbours)?,
        })
    }

    /// The targets that the neighbours give for the noisy forgotten points.
    ///
    /// # Errors
    /// [`Error::MissingPart`](crate::Error::MissingPart) for draws without those of the forget
    /// term; [`Error::PointChanged`](crate::Error::PointChanged) for a row that has the id of
    /// another point; [`Error::ForgottenPointRetained`](crate::Error::ForgottenPointRetained).
    pub fn explain<C>(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<NeighbourTarget<D>> {
        let (timesteps, noise) = own_draws(inputs)?;
        let scales = inputs.scheduler.scales(timesteps)?;
        let neighbours = self.neighbours.of_batch(inputs.forget, inputs.forget_ids)?;
        let ratios = scales.ratios();
        let weights = posterior(inputs, noise, &neighbours, &ratios)?;
        let device = inputs.forget.device();
        let weighted = neighbours
            .points
            .into_iter()
            .enumerate()
            .map(|(rank, point)| {
                let of_rank: Vec<f64> = weights.iter().map(|row| row[rank]).collect();
                point * column(&of_rank, &device)
            });
        let zero = inputs.forget.zeros_like();
        let clean = weighted.fold(zero, |sum, more| sum + more);
        let shift = (inputs.forget.clone() - clean.clone()) * column(&ratios, &device);
        Ok(NeighbourTarget {
            noise: noise.clone() + shift,
            clean,
            weights,
            scales,
        })
    }
}

/// The targets that neighbours give for noisy points: the ideal denoiser of those neighbours.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NeighbourTarget<const D: usize> {
    /// The posterior probabilities `p_j` of each row's neighbours, nearest first; each row sums
    /// to 1.
    pub weights: Vec<Vec<f64>>,
    /// The mean neighbour `Σ_j p_j r_j`, `[batch, …]`.
    pub clean: Tensor<D>,
    /// The noise that together with the mean neighbour explains the noisy point,
    /// `(a_t − γ Σ_j p_j r_j)/σ`, `[batch, …]`.
    pub noise: Tensor<D>,
    /// The scales at the forget term's timesteps.
    pub scales: Scales,
}

/// `p_j = softmax_j −‖a_t − γ r_j‖²/2σ²` of each row, without the common `−‖ε‖²/2`: with `ρ = γ/σ`
/// the exponent is `−ρ ⟨a − r_j, ε⟩ − ρ² ‖a − r_j‖²/2`.
///
/// One read from the device brings the exponents and the values for the check that each row is the
/// point that its id first occurred with.
fn posterior<const D: usize, C>(
    inputs: &LossInputs<'_, D, C>,
    noise: &Tensor<D>,
    neighbours: &BatchNeighbours<D>,
    ratios: &[f64],
) -> Result<Vec<Vec<f64>>> {
    let difference = (neighbours.own.clone() - inputs.forget.clone()).abs();
    let mut parts = vec![sum_elements(difference)];
    for point in &neighbours.points {
        parts.push(sum_elements(
            (inputs.forget.clone() - point.clone()) * noise.clone(),
        ));
    }
    let read = read_f32(
        Tensor::cat(parts, 0),
        "the exponents of the neighbours' posterior",
    )?;
    let rows = ratios.len();
    let (differences, along_noise) = read.split_at(rows);
    check_same(differences, inputs.forget_ids)?;
    let exponent = |row: usize, rank: usize| {
        let (ratio, along) = (ratios[row], f64::from(along_noise[rank * rows + row]));
        -ratio * along - 0.5 * ratio * ratio * neighbours.squared_distances[rank][row]
    };
    let ranks = neighbours.points.len();
    let of_row = |row| softmax((0..ranks).map(|rank| exponent(row, rank)).collect());
    Ok((0..rows).map(of_row).collect())
}

/// Refuses rows that differ from the point that their id first occurred with.
fn check_same(differences: &[f32], ids: &[u64]) -> Result<()> {
    match differences.iter().position(|&difference| difference > 0.0) {
        None => Ok(()),
        Some(row) => Err(Error::PointChanged { row, id: ids[row] }),
    }
}

fn softmax(exponents: Vec<f64>) -> Vec<f64> {
    let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = exponents
        .iter()
        .map(|exponent| (exponent - largest).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

impl<const D: usize, C> SissLoss<D, C> for ReTrack<D> {
    fn name(&self) -> &'static str {
        "ReTrack"
    }

    fn has_term(&self, _side: Side) -> bool {
        true
    }

    fn ignores_condition(&self) -> bool {
        self.neighbours.are_of_any_group()
    }

    fn settings(&self) -> String {
        format!("ReTrack, {} neighbours", self.neighbours.count())
    }

    fn extra_draws(&self) -> ExtraDraws {
        ExtraDraws::none()
            .timesteps(Stream::ForgetTimesteps)
            .normal(Stream::ForgetNoise)
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        let explained = self.explain(inputs)?;
        Ok(LossTerms {
            retain: Some(inputs.plain_term(Side::Retain, 1.0)),
            forget: Some(regression(inputs, explained)?),
        })
    }
}

/// The regression of the forgotten points to the targets of their neighbours.
fn regression<const D: usize, C>(
    inputs: &LossInputs<'_, D, C>,
    explained: NeighbourTarget<D>,
) -> Result<LossTerm<D>> {
    let (timesteps, noise) = own_draws(inputs)?;
    let (scales, kind) = (&explained.scales, inputs.prediction_type);
    let noisy = scales.noisy(inputs.forget, noise);
    let target = scales.target(kind, &explained.clean, &explained.noise);
    let weights = vec![1.0; timesteps.len()];
    let term = LossTerm::new(noisy, timesteps.to_vec(), target, weights);
    Ok(term.with_own_target(scales.target(kind, inputs.forget, noise)))
}

/// Timesteps and noise of the forget term.
fn own_draws<'a, const D: usize, C>(
    inputs: &LossInputs<'a, D, C>,
) -> Result<(&'a [f64], &'a Tensor<D>)> {
    let timesteps = inputs.draws.timesteps_of(Stream::ForgetTimesteps)?;
    Ok((timesteps, inputs.draws.numbers_of(Stream::ForgetNoise)?))
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::{Case, host};
    use super::*;
    use crate::draws::normal_noise;
    use crate::process::{PredictionType, Scheduler};
    use burn::tensor::Device;

    const TIMESTEPS: [f64; 4] = [700.0, 20.0, 400.0, 990.0];

    /// A case with separate draws for the forget term, and six retained points nearby.
    fn case() -> (Case, Tensor<3>) {
        let mut case = Case::new(0.5);
        let points = |seed, rows| {
            let device = Device::flex();
            normal_noise([rows, 2, 3], seed, 0, 0, Stream::Noise, &device)
        };
        case.draws = case
            .draws
            .with_timesteps(Stream::ForgetTimesteps, TIMESTEPS.to_vec())
            .and_then(|draws| draws.with_numbers(Stream::ForgetNoise, points(4, 4)))
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
        LossInputs::new(&case.batch, &case.draws, &case.scheduler, kind).unwrap()
    }

    /// The published loss in f64: one regression per nearest point, weighted by its posterior. Its
    /// gradient is `2 Σ_j p_j (ŷ − y_j)`, so the single target must be `Σ_j p_j y_j`.
    #[test]
    fn the_one_target_is_the_mean_of_the_published_ones_in_every_prediction_type() {
        let (case, retain) = case();
        let (a, epsilon) = (
            host(case.batch.forget()),
            host(case.draws.numbers_of(Stream::ForgetNoise).unwrap()),
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
        let mut others = inputs(&case, PredictionType::Epsilon);
        let elsewhere = case.batch.forget.clone() + 1.0;
        others.forget = &elsewhere;
        assert!(loss.terms(&others).is_err());
        let again = loss
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap()
            .forget
            .unwrap();
        assert_eq!(host(&first.target), host(&again.target));
    }

    #[test]
    fn an_id_that_stands_for_two_points_is_refused() {
        let (mut case, retain) = case();
        case.batch.forget_ids = vec![0; 4];
        let error = ReTrack::new(retain)
            .unwrap()
            .terms(&case.inputs(PredictionType::Epsilon))
            .unwrap_err();
        assert!(error.to_string().contains("id 0 in row 1"), "{error}");
    }

    #[test]
    fn a_forgotten_point_among_the_retained_ones_is_refused() {
        let (case, retain) = case();
        let both = Tensor::cat(vec![retain, case.batch.forget.clone().narrow(0, 2, 1)], 0);
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
        assert!(error.to_string().contains("with_timesteps"), "{error}");
        let mut searched = ReTrack::new(retain.clone()).unwrap();
        searched
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap();
        assert!(searched.with_neighbour_count(3).is_err());
        let mut given =
            ReTrack::from_neighbours(case.batch.forget.clone().narrow(0, 0, 1), vec![retain])
                .unwrap();
        let error = given
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap_err();
        assert!(
            error.to_string().contains("id 1 has no list of neighbours"),
            "{error}"
        );
    }

    #[test]
    fn ten_neighbours_are_taken_unless_told_otherwise_and_the_settings_say_so() {
        let retain = Tensor::<3>::zeros([12, 2, 3], &Device::flex());
        let loss = ReTrack::new(retain).unwrap();
        assert_eq!(SissLoss::<3>::settings(&loss), "ReTrack, 10 neighbours");
        let loss = loss.with_neighbour_count(3).unwrap();
        assert_eq!(SissLoss::<3>::settings(&loss), "ReTrack, 3 neighbours");
    }

    /// The nearest retained points belong to another group.
    #[test]
    fn neighbours_are_of_the_points_group() {
        let (case, retain) = case();
        let groups = vec![4, 9, 4, 9, 9, 9];
        let loss = ReTrack::new(retain.clone()).unwrap();
        let mut loss = loss.with_groups(groups, vec![4, 9, 4, 4]).unwrap();
        assert_eq!(SissLoss::<3>::settings(&loss), "ReTrack, 2 neighbours");
        assert!(!SissLoss::<3>::ignores_condition(&loss));
        assert!(loss.clone().with_neighbour_count(3).is_err());
        let found = loss
            .neighbours
            .of_batch(case.batch.forget(), &[0, 1, 2, 3])
            .unwrap();
        for (row, members) in [
            (0, vec![0, 2]),
            (2, vec![0, 2]),
            (3, vec![0, 2]),
            (1, vec![1, 3, 4, 5]),
        ] {
            for point in &found.points {
                let neighbour = host(&point.clone().narrow(0, row, 1));
                let is_it =
                    |&member: &usize| host(&retain.clone().narrow(0, member, 1)) == neighbour;
                assert!(members.iter().any(is_it), "row {row}");
            }
        }
        let new = || ReTrack::new(retain.clone()).unwrap();
        assert!(SissLoss::<3>::ignores_condition(&new()));
        let error = new().with_groups(vec![4; 6], vec![4, 5]).unwrap_err();
        assert!(
            error.to_string().contains("forgotten point 1 of group 5"),
            "{error}"
        );
        let error = new().with_groups(vec![4; 5], vec![4]).unwrap_err();
        assert!(error.to_string().contains("[5]"), "{error}");
        let mut one = new().with_groups(vec![4; 6], vec![4]).unwrap();
        let error = one
            .terms(&inputs(&case, PredictionType::Epsilon))
            .unwrap_err();
        assert!(error.to_string().contains("id 1 has no group"), "{error}");
    }

    #[test]
    fn points_that_are_not_finite_are_refused_with_their_row() {
        fn spoilt(points: &Tensor<3>, row: usize) -> Tensor<3> {
            let rows = [
                points.clone().narrow(0, 0, row),
                points.clone().narrow(0, row, 1) / 0.0,
            ];
            Tensor::cat(rows.to_vec(), 0)
        }
        let (mut case, retain) = case();
        let refused = |case: &Case, retain: Tensor<3>| {
            let mut loss = ReTrack::new(retain).unwrap();
            let error = loss
                .terms(&inputs(case, PredictionType::Epsilon))
                .unwrap_err();
            let Error::NonFiniteData { side, row, .. } = error else {
                panic!("{error}")
            };
            (side, row)
        };
        assert_eq!(refused(&case, spoilt(&retain, 5)), (Side::Retain, 5));
        case.batch.forget = spoilt(case.batch.forget(), 3);
        assert_eq!(refused(&case, retain), (Side::Forget, 3));
    }
}
