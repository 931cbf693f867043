//! Forgetting that stops: each forget row's weight depends on how far its loss is from a level.

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::counterfactual::CounterfactualLoss;
use crate::error::{Result, check_shape};
use crate::host::{to_f32, vector};

/// What becomes of a forget row's weight, given the row's loss and the level that it should have.
pub trait SteeringRule: Send + Debug {
    /// Name for reports and messages.
    fn name(&self) -> &'static str;

    /// The factor of each row's weight, between −1 and 1: 1 forgets as without a level, −1 learns as fast.
    ///
    /// # Shapes
    /// - `losses`, `levels` (positive), both means over elements, and the result: `[rows]`
    fn factors(&self, losses: Tensor<1>, levels: Tensor<1>) -> Tensor<1>;

    /// Name and settings, which must be the same when a run is resumed. What `Debug` writes unless implemented.
    fn settings(&self) -> String {
        format!("{self:?}")
    }
}

/// `clip((b − L)/b, −1, 1)`: forgets below the level, learns above it, and does nothing at it. On a term that ascends it is
/// the gradient of `½ (b − L)²/b`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proportional;

impl SteeringRule for Proportional {
    fn name(&self) -> &'static str {
        "Proportional"
    }

    fn factors(&self, losses: Tensor<1>, levels: Tensor<1>) -> Tensor<1> {
        ((levels.clone() - losses) / levels).clamp(-1.0, 1.0)
    }
}

/// 1 below the level and 0 above it: forgets until the level is reached. What overshoots in a step stays there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardStop;

impl SteeringRule for HardStop {
    fn name(&self) -> &'static str {
        "HardStop"
    }

    fn factors(&self, losses: Tensor<1>, levels: Tensor<1>) -> Tensor<1> {
        to_f32(losses.lower(levels).float())
    }
}

/// A level for each forgotten point and timestep, and what to do about it. For
/// [`SissTrainerBuilder::steering`](crate::SissTrainerBuilder::steering).
///
/// The loss of a forget row is known between its forward and its backward pass, so steering costs no further run of the model.
/// It works with every objective that has a forget term. A term that leads forgotten points to another target (EraseDiff,
/// ReTrack) is weakened and switched off, never turned round.
///
/// With [`Proportional`] the forget gradient vanishes at the level, and a clipper that holds it at a share of the retain gradient would
/// blow it up again: use one with a ceiling, as [`Method::SissToLevel`](crate::Method::SissToLevel) does.
#[derive(Debug)]
pub struct Steering {
    levels: CounterfactualLoss,
    rule: Box<dyn SteeringRule>,
}

impl Steering {
    /// Steers to the levels by [`Proportional`].
    pub fn to(levels: CounterfactualLoss) -> Self {
        Self::by(levels, Proportional)
    }

    /// Steers by a rule of choice.
    pub fn by(levels: CounterfactualLoss, rule: impl SteeringRule + 'static) -> Self {
        Self {
            levels,
            rule: Box::new(rule),
        }
    }

    /// The levels.
    pub fn levels(&self) -> &CounterfactualLoss {
        &self.levels
    }

    /// Forgotten points that have levels.
    pub(crate) fn num_points(&self) -> usize {
        self.levels.levels().len()
    }

    /// The rule.
    pub fn rule(&self) -> &dyn SteeringRule {
        self.rule.as_ref()
    }

    /// The factors of rows with these points, timesteps and losses (means over elements, on the device).
    pub(crate) fn factors(
        &self,
        forget_ids: impl Iterator<Item = u64>,
        timesteps: &[f64],
        losses: Tensor<1>,
    ) -> Result<Tensor<1>> {
        let levels: Result<Vec<f64>> = forget_ids
            .zip(timesteps)
            .map(|(id, &timestep)| self.levels.level(id, timestep))
            .collect();
        // A level that rounds to 0 would be divided by.
        let smallest = f64::from(f32::MIN_POSITIVE);
        let levels = levels?.into_iter().map(|level| level.max(smallest));
        let levels = vector(levels, &losses.device());
        let rows = losses.dims();
        let factors = self.rule.factors(losses, levels);
        let remedy = "a steering rule must give one factor for every loss";
        check_shape("the factors of steering", &rows, &factors.dims(), remedy)?;
        Ok(to_f32(factors))
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
        rule.factors(losses, levels)
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
        let levels = CounterfactualLoss::from_levels(vec![0.0, 100.0], levels).unwrap();
        let steering = Steering::to(levels);
        let losses = Tensor::<1>::from_data([0.1, 0.1, 0.1], &Device::flex());
        let ids = [0, 0, 1].into_iter();
        let factors = steering.factors(ids, &[0.0, 100.0, 0.0], losses).unwrap();
        let factors: Vec<f32> = factors.into_data().try_to_vec().unwrap();
        for (got, expected) in factors.iter().zip([0.0, 0.5, 0.9]) {
            assert!((got - expected).abs() < 1e-6, "{factors:?}");
        }
        let losses = Tensor::<1>::from_data([0.1], &Device::flex());
        let error = steering
            .factors([2].into_iter(), &[0.0], losses)
            .unwrap_err();
        assert!(error.to_string().contains("id 2"), "{error}");
    }

    /// At a loss of 0 the rule would divide 0 by 0.
    #[test]
    fn a_level_that_rounds_to_zero_is_not_divided_by() {
        let levels = CounterfactualLoss::from_levels(vec![0.0, 1.0], vec![vec![1e-60; 2]]).unwrap();
        let losses = Tensor::<1>::from_data([0.0, 0.1], &Device::flex());
        let ids = [0, 0].into_iter();
        let factors = Steering::to(levels)
            .factors(ids, &[0.0; 2], losses)
            .unwrap();
        assert_eq!(
            factors.into_data().try_to_vec::<f32>().unwrap(),
            [1.0, -1.0]
        );
    }
}
