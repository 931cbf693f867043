//! Forgetting that stops: each forget row's weight depends on how far its loss is from a level.

mod counterfactual;
mod levels;

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::error::{Result, check_shape, check_state};
use crate::host::{to_f32, vector};

pub use self::counterfactual::{
    Counterfactual, CounterfactualConfig, CounterfactualData, Groups, IdealForm,
};
pub use self::levels::Levels;

/// Says how a forget row's weight changes, given the row's loss and the level it should reach.
pub trait SteeringRule: Send + Sync + Debug {
    /// Name for reports and messages.
    fn name(&self) -> &'static str;

    /// The factor of each row's weight, between −1 and 1: 1 forgets as without a level, −1 learns
    /// at the same rate.
    ///
    /// A row's loss is its loss under one noise. `mean_ratios` is the running mean of the ratio of
    /// the point's loss to its level, over earlier steps near the row's timestep. For a point
    /// without such steps it is the row's own ratio.
    ///
    /// # Shapes
    /// - `losses`, `levels` (positive), both means over elements, `mean_ratios`, and the result:
    ///   `[rows]`
    fn factors(&self, losses: Tensor<1>, levels: Tensor<1>, mean_ratios: Tensor<1>) -> Tensor<1>;

    /// Name and settings as text. A resumed run must have the same.
    fn settings(&self) -> String;
}

/// `clip((b − L)/b, −1, 1)`: forgets below the level, learns above it, and does nothing at it.
///
/// On a term that ascends, it is the gradient of `½ (b − L)²/b`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proportional;

impl SteeringRule for Proportional {
    fn name(&self) -> &'static str {
        "Proportional"
    }

    fn settings(&self) -> String {
        self.name().into()
    }

    fn factors(&self, losses: Tensor<1>, levels: Tensor<1>, _: Tensor<1>) -> Tensor<1> {
        ((levels.clone() - losses) / levels).clamp(-1.0, 1.0)
    }
}

/// 1 while the point's mean loss is below the level and 0 from there on: forgets at full weight
/// until the level is reached, and never learns.
///
/// The mean decides, not the single row: otherwise the rows whose noise happens to give a low loss
/// would push the point's loss up without end. The mean lags by about ten rows of the point near a
/// timestep, and a loss that overshoots in the meantime is not corrected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardStop;

impl SteeringRule for HardStop {
    fn name(&self) -> &'static str {
        "HardStop"
    }

    fn settings(&self) -> String {
        self.name().into()
    }

    fn factors(&self, _: Tensor<1>, _: Tensor<1>, mean_ratios: Tensor<1>) -> Tensor<1> {
        to_f32(mean_ratios.lower_elem(1.0).float())
    }
}

/// A level for each forgotten point and timestep, and a rule for the distance to it.
///
/// It is set with [`SissTrainerBuilder::steering`](crate::trainer::SissTrainerBuilder::steering).
///
/// The loss of a forget row is known between its forward and its backward pass, so steering needs
/// no further run of the model. It works with every objective that has a forget term. A term that
/// leads forgotten points to another target (EraseDiff, ReTrack) is weakened and switched off, but
/// never reversed.
///
/// With [`Proportional`] the forget gradient vanishes at the level. A clipper that scales it to a
/// norm must take this into account: see
/// [`GradientNorms::steering`](crate::clipper::GradientNorms::steering).
///
/// # Example
/// ```
/// use siss::steering::{HardStop, Levels, Steering};
///
/// let levels = Levels::new(vec![0.0, 999.0], vec![vec![0.5, 0.02]])?;
/// let steering = Steering::new(levels).with_rule(HardStop);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct Steering {
    levels: Levels,
    rule: Box<dyn SteeringRule>,
    /// The running mean of the ratio of loss to level, by point and timestep of the grid; negative
    /// where there is none yet.
    mean_ratios: Vec<Vec<f64>>,
}

/// The result of steering some rows, on the device.
#[derive(Debug)]
pub(crate) struct Steered {
    /// The factor of each row's weight.
    pub(crate) factors: Tensor<1>,
    /// The ratio of each row's loss to its level.
    pub(crate) ratios: Tensor<1>,
}

/// The weight of a row's ratio in the running mean of its point.
const MEAN_RATE: f64 = 0.1;

impl Steering {
    /// Steers by [`Proportional`] to [`Levels`] or to those of a [`Counterfactual`].
    pub fn new(levels: impl Into<Levels>) -> Self {
        let levels = levels.into();
        Self {
            mean_ratios: levels.initial_ratios(),
            levels,
            rule: Box::new(Proportional),
        }
    }

    /// Steers by another rule.
    pub fn with_rule(self, rule: impl SteeringRule + 'static) -> Self {
        Self {
            rule: Box::new(rule),
            ..self
        }
    }

    /// The levels.
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    /// The number of forgotten points that have levels.
    pub(crate) fn num_points(&self) -> usize {
        self.levels.values().len()
    }

    /// The rule.
    pub fn rule(&self) -> &dyn SteeringRule {
        self.rule.as_ref()
    }

    /// The factors of rows with these points, timesteps, weights and losses (means over elements,
    /// on the device).
    ///
    /// A row that descends to another target is never turned into an ascent from it.
    pub(crate) fn steer(
        &self,
        forget_ids: impl Iterator<Item = u64> + Clone,
        timesteps: &[f64],
        weights: &[f64],
        losses: Tensor<1>,
    ) -> Result<Steered> {
        let rows = || forget_ids.clone().zip(timesteps.iter().copied());
        let levels: Result<Vec<f64>> = rows().map(|(id, t)| self.levels.level(id, t)).collect();
        // A level that rounds to 0 would be a divisor.
        let smallest = f64::from(f32::MIN_POSITIVE);
        let levels = levels?.into_iter().map(|level| level.max(smallest));
        let levels = vector(levels, &losses.device());
        let known = |(id, timestep): (u64, f64)| {
            let place = self.place(id, timestep);
            place.map_or(-1.0, |(point, at)| self.mean_ratios[point][at])
        };
        let shape = losses.dims();
        let ratios = losses.clone() / levels.clone();
        let mean_ratios = vector(rows().map(known), &losses.device());
        let is_unknown = mean_ratios.clone().lower_elem(0.0);
        let mean_ratios = mean_ratios.mask_where(is_unknown, to_f32(ratios.clone()));
        let factors = self.rule.factors(losses, levels, mean_ratios);
        let remedy = "a steering rule must give one factor for every loss";
        check_shape("the factors of steering", &shape, &factors.dims(), remedy)?;
        let lowest = |&weight: &f64| if weight > 0.0 { 0.0 } else { -1.0 };
        let lowest = vector(weights.iter().map(lowest), &factors.device());
        Ok(Steered {
            factors: to_f32(factors).max_pair(lowest),
            ratios: to_f32(ratios),
        })
    }

    /// Updates the running means with the ratios of a step's rows.
    ///
    /// `ids` and `timesteps` are those of the whole batch.
    pub(crate) fn remember(
        &mut self,
        rows: &[usize],
        ids: &[u64],
        timesteps: &[f64],
        ratios: &[f32],
    ) {
        for (&row, &ratio) in rows.iter().zip(ratios) {
            let ratio = f64::from(ratio);
            let place = self.place(ids[row], timesteps[row]);
            let Some((point, at)) = place.filter(|_| ratio.is_finite()) else {
                continue;
            };
            let mean = &mut self.mean_ratios[point][at];
            *mean = if *mean < 0.0 {
                ratio
            } else {
                *mean + MEAN_RATE * (ratio - *mean)
            };
        }
    }

    /// The point's number, and the number of the grid timestep nearest to `timestep`.
    fn place(&self, id: u64, timestep: f64) -> Option<(usize, usize)> {
        let point = usize::try_from(id).ok()?;
        let grid = self.levels.timesteps();
        let above = grid.partition_point(|&t| t < timestep).min(grid.len() - 1);
        let below = above.saturating_sub(1);
        let is_nearer_below = timestep - grid[below] < grid[above] - timestep;
        let at = if is_nearer_below { below } else { above };
        (point < self.mean_ratios.len()).then_some((point, at))
    }

    /// The running means for a checkpoint, point after point.
    pub(crate) fn state(&self) -> Vec<f64> {
        self.mean_ratios.concat()
    }

    /// Restores the result of [`state`](Steering::state).
    pub(crate) fn restore(&mut self, state: &[f64]) -> Result<()> {
        let grid = self.levels.timesteps().len();
        check_state("steering", state, grid * self.mean_ratios.len())?;
        self.mean_ratios = state.chunks(grid).map(<[f64]>::to_vec).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn factors(rule: &dyn SteeringRule, losses: &[f32]) -> Vec<f32> {
        let device = Device::flex();
        let losses = Tensor::<1>::from_data(losses, &device);
        let levels = losses.zeros_like() + 0.5;
        let mean_ratios = losses.clone() / levels.clone();
        rule.factors(losses, levels, mean_ratios)
            .into_data()
            .try_to_vec()
            .unwrap()
    }

    #[test]
    fn rules_follow_their_definition() {
        let losses = [0.0, 0.25, 0.5, 0.75, 1.0, 9.0];
        assert_eq!(
            factors(&Proportional, &losses),
            [1.0, 0.5, 0.0, -0.5, -1.0, -1.0]
        );
        assert_eq!(factors(&HardStop, &losses), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn each_row_has_the_level_of_its_point_and_timestep() {
        let levels = vec![vec![0.1, 0.2], vec![1.0, 2.0]];
        let levels = Levels::new(vec![0.0, 100.0], levels).unwrap();
        let steering = Steering::new(levels);
        let losses = Tensor::<1>::from_data([0.1, 0.1, 0.1], &Device::flex());
        let ids = [0, 0, 1].into_iter();
        let steered = steering
            .steer(ids, &[0.0, 100.0, 0.0], &[-1.0; 3], losses)
            .unwrap();
        let factors: Vec<f32> = steered.factors.into_data().try_to_vec().unwrap();
        for (got, expected) in factors.iter().zip([0.0, 0.5, 0.9]) {
            assert!((got - expected).abs() < 1e-6, "{factors:?}");
        }
        let losses = Tensor::<1>::from_data([0.1], &Device::flex());
        let error = steering
            .steer([2].into_iter(), &[0.0], &[-1.0], losses)
            .unwrap_err();
        assert!(error.to_string().contains("id 2"), "{error}");
    }

    /// A term that leads to another target is weakened and switched off, but never reversed.
    #[test]
    fn a_row_that_descends_is_never_turned_into_an_ascent() {
        let levels = Levels::new(vec![0.0, 1.0], vec![vec![1.0; 2]]).unwrap();
        let losses = Tensor::<1>::from_data([0.25, 3.0, 3.0], &Device::flex());
        let ids = [0; 3].into_iter();
        let steering = Steering::new(levels);
        let steered = steering.steer(ids, &[0.0; 3], &[1.0, 1.0, -1.0], losses);
        let factors = steered.unwrap().factors.into_data();
        assert_eq!(factors.try_to_vec::<f32>().unwrap(), [0.75, 0.0, -1.0]);
    }

    /// At a loss of 0 the rule would divide 0 by 0.
    #[test]
    fn a_level_that_rounds_to_zero_is_not_divided_by() {
        let levels = Levels::new(vec![0.0, 1.0], vec![vec![1e-60; 2]]).unwrap();
        let losses = Tensor::<1>::from_data([0.0, 0.1], &Device::flex());
        let ids = [0, 0].into_iter();
        let steered = Steering::new(levels)
            .steer(ids, &[0.0; 2], &[-1.0; 2], losses)
            .unwrap();
        assert_eq!(
            steered.factors.into_data().try_to_vec::<f32>().unwrap(),
            [1.0, -1.0]
        );
    }

    /// The mean is that of the point near the timestep, and survives a checkpoint.
    #[test]
    fn hard_stop_asks_the_mean_of_the_point_near_the_timestep() {
        let levels = || Levels::new(vec![0.0, 100.0], vec![vec![1.0; 2]; 2]);
        let mut steering = Steering::new(levels().unwrap()).with_rule(HardStop);
        let factors = |steering: &Steering| -> Vec<f32> {
            let losses = Tensor::<1>::from_data([0.1, 0.1, 0.1, 9.0], &Device::flex());
            let ids = [0, 0, 1, 1].into_iter();
            let steered = steering.steer(ids, &[10.0, 90.0, 10.0, 90.0], &[-1.0; 4], losses);
            steered.unwrap().factors.into_data().try_to_vec().unwrap()
        };
        // A point without earlier steps is judged by its rows.
        assert_eq!(factors(&steering), [1.0, 1.0, 1.0, 0.0]);
        // Point 0 is above its level at the clean timestep, and once, by chance, far below it.
        for ratio in [3.0, 3.0, 0.1, f32::NAN] {
            steering.remember(&[1], &[1, 0], &[90.0, 20.0], &[ratio]);
        }
        assert_eq!(factors(&steering), [0.0, 1.0, 1.0, 0.0]);
        let mut again = Steering::new(levels().unwrap()).with_rule(HardStop);
        again.restore(&steering.state()).unwrap();
        assert_eq!(factors(&again), factors(&steering));
        assert!(
            again
                .restore(&[1.0])
                .unwrap_err()
                .to_string()
                .contains("length 1, but 4 is needed")
        );
    }
}
