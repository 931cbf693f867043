//! The objectives. Each is two weighted regressions, a retain and a forget term; nothing else differs between them.

mod bernoulli;
mod erase_diff;
pub(crate) mod mixture;
mod naive_deletion;
mod neg_grad;
mod neighbours;
mod retrack;
mod siss;
mod siss_no_is;
mod thinning;

use std::fmt::Debug;

use burn::tensor::{Device, Tensor};

pub use self::siss::Siss;
pub use bernoulli::Bernoulli;
pub use erase_diff::EraseDiff;
pub use mixture::{ImportanceWeights, MixturePoints, importance_weights, mixture_points};
pub use naive_deletion::NaiveDeletion;
pub use neg_grad::NegGrad;
pub use retrack::{NeighbourTarget, ReTrack};
pub use siss_no_is::SissNoIs;
pub use thinning::{Survivors, survivors};

use crate::data::Side;
use crate::draws::{Draws, ExtraDraws};
use crate::error::{Result, check_device, check_range, check_shape, check_state};
use crate::process::{PredictionType, Scales, Scheduler, SchedulerExt};

/// Everything an objective may look at. No condition: an objective says which rows, the trainer finds their conditions.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LossInputs<'a, const D: usize> {
    /// The retained points `x`, `[batch, …]`.
    pub retain: &'a Tensor<D>,
    /// The forgotten points `a`, `[batch, …]`.
    pub forget: &'a Tensor<D>,
    /// Which forgotten point each row holds, `[batch]`.
    pub forget_ids: &'a [u64],
    /// The step's random numbers.
    pub draws: &'a Draws<D>,
    /// The forward process.
    pub scheduler: &'a dyn Scheduler,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// The scales at the draws' timesteps, checked.
    pub scales: Scales,
}

impl<'a, const D: usize> LossInputs<'a, D> {
    /// Brings together a batch, its draws and the process.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) or [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if points
    /// and draws differ in shape or device; [`Error::TimestepOutOfRange`](crate::Error::TimestepOutOfRange) or
    /// [`Error::NoNoise`](crate::Error::NoNoise) if the draws' timesteps do not fit the scheduler.
    pub fn new(
        retain: &'a Tensor<D>,
        forget: &'a Tensor<D>,
        forget_ids: &'a [u64],
        draws: &'a Draws<D>,
        scheduler: &'a dyn Scheduler,
        prediction_type: PredictionType,
    ) -> Result<Self> {
        let shape = retain.dims();
        let remedy = "draw for the batch that the step is given";
        check_shape("the forget batch", &shape, &forget.dims(), remedy)?;
        check_shape("the drawn noise", &shape, &draws.noise.dims(), remedy)?;
        let what = "the list of ids of the forgotten points";
        check_shape(
            what,
            &shape[..1],
            &[forget_ids.len()],
            "give one id for every row",
        )?;
        check_device("forgotten points", &retain.device(), &forget.device())?;
        check_device(
            "the drawn noise values",
            &retain.device(),
            &draws.noise.device(),
        )?;
        let scales = scheduler.scales(&draws.timesteps)?;
        Ok(Self {
            retain,
            forget,
            forget_ids,
            draws,
            scheduler,
            prediction_type,
            scales,
        })
    }

    /// What the model should predict where a noisy point is explained by `clean` and `noise`, at the draws' timesteps.
    pub fn target(&self, clean: &Tensor<D>, noise: Tensor<D>) -> Tensor<D> {
        self.scales.target(self.prediction_type, clean, &noise)
    }

    /// The plain regression at a side's own noisy points `γ·clean + σ ε`, every row with the same weight.
    pub fn plain_term(&self, side: Side, weight: f64) -> LossTerm<D> {
        let clean = match side {
            Side::Retain => self.retain,
            Side::Forget => self.forget,
        };
        let noisy = self.scales.noisy(clean, &self.draws.noise);
        let target = self.target(clean, self.draws.noise.clone());
        let weights = vec![weight; self.draws.batch_size()];
        LossTerm::new(noisy, self.draws.timesteps.clone(), target, weights)
    }
}

/// One weighted regression: `(1/B) Σ_i w_i ‖model(noisy_i, t_i) − target_i‖²` over some rows of the batch.
///
/// The sign of a weight says whether the row is learnt (positive, descends) or unlearnt (negative, ascends). Weights are
/// to be of order 1: thinning compares them with a threshold whose default is 1.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LossTerm<const D: usize> {
    /// The rows of the batch that take part, in increasing order.
    pub rows: Vec<usize>,
    /// The model's input for every row of the batch, `[batch, …]`.
    pub noisy: Tensor<D>,
    /// The timestep of every row of the batch, `[batch]`.
    pub timesteps: Vec<f64>,
    /// The regression target for every row of the batch, `[batch, …]`.
    pub target: Tensor<D>,
    /// Signed weight of each row in `rows`.
    pub weights: Vec<f64>,
    /// The largest weight that a row can have, where there is a bound: for the diagnosis of degenerate weights.
    pub weight_bound: Option<f64>,
    /// What the rows' own points explain the noisy ones with, `[batch, …]`, where that is not the target: for
    /// [`Steering`](crate::Steering), which looks at the loss of the point itself.
    pub own_target: Option<Tensor<D>>,
}

impl<const D: usize> LossTerm<D> {
    /// A term of all rows of the batch.
    ///
    /// # Shapes
    /// - `noisy`, `target`: `[batch, …]`; `timesteps`, `weights`: `[batch]`
    pub fn new(
        noisy: Tensor<D>,
        timesteps: Vec<f64>,
        target: Tensor<D>,
        weights: Vec<f64>,
    ) -> Self {
        Self {
            rows: (0..weights.len()).collect(),
            noisy,
            timesteps,
            target,
            weights,
            weight_bound: None,
            own_target: None,
        }
    }

    /// States the largest weight that a row can have.
    pub fn with_weight_bound(mut self, bound: f64) -> Self {
        self.weight_bound = bound.is_finite().then_some(bound);
        self
    }

    /// Leaves the term to the rows for which `wanted` holds.
    pub(crate) fn keep_rows(mut self, wanted: impl Fn(usize) -> bool) -> Self {
        let kept = self
            .rows
            .iter()
            .zip(&self.weights)
            .filter(|&(&row, _)| wanted(row));
        (self.rows, self.weights) = kept.map(|(&row, &weight)| (row, weight)).unzip();
        self
    }

    /// Checks that the term fits a batch of this shape: objectives can come from outside the crate.
    pub(crate) fn check(&self, shape: [usize; D]) -> Result<()> {
        let remedy = "an objective's term must cover the batch and weigh rows of it";
        check_shape("a term's noisy points", &shape, &self.noisy.dims(), remedy)?;
        check_shape("a term's targets", &shape, &self.target.dims(), remedy)?;
        if let Some(own) = &self.own_target {
            check_shape("a term's own targets", &shape, &own.dims(), remedy)?;
        }
        check_shape(
            "a term's timesteps",
            &shape[..1],
            &[self.timesteps.len()],
            remedy,
        )?;
        check_shape(
            "a term's weights",
            &[self.rows.len()],
            &[self.weights.len()],
            remedy,
        )?;
        for &row in &self.rows {
            check_range(
                "a term's row",
                row as f64,
                row < shape[0],
                "a row of the batch",
            )?;
        }
        Ok(())
    }

    /// Thins the light rows without bias, see [`survivors`].
    pub(crate) fn thin(&mut self, thin_below: f64, uniform: f64) {
        let kept = survivors(&self.weights, thin_below, uniform);
        self.rows = kept
            .positions
            .iter()
            .map(|&position| self.rows[position])
            .collect();
        self.weights = kept.weights;
    }
}

/// The two terms of an objective. A side without a term has no gradient.
#[derive(Debug, Clone)]
pub struct LossTerms<const D: usize> {
    /// What is to be kept.
    pub retain: Option<LossTerm<D>>,
    /// What is to be forgotten.
    pub forget: Option<LossTerm<D>>,
}

impl<const D: usize> LossTerms<D> {
    /// The same terms on another device.
    pub(crate) fn to_device(&self, device: &Device) -> Self {
        let moved = |term: &LossTerm<D>| LossTerm {
            noisy: term.noisy.clone().to_device(device),
            target: term.target.clone().to_device(device),
            own_target: term.own_target.clone().map(|own| own.to_device(device)),
            ..term.clone()
        };
        Self {
            retain: self.retain.as_ref().map(moved),
            forget: self.forget.as_ref().map(moved),
        }
    }

    /// Thins both terms with one uniform number. The forget side uses its complement, so that of two survival
    /// probabilities that sum to one, exactly one row survives.
    pub(crate) fn thin(&mut self, thin_below: f64, uniform: f64) {
        if let Some(term) = &mut self.retain {
            term.thin(thin_below, uniform);
        }
        if let Some(term) = &mut self.forget {
            term.thin(thin_below, 1.0 - uniform);
        }
    }
}

/// An unlearning objective: turns a batch and its draws into two weighted regressions.
pub trait SissLoss<const D: usize>: Send + Debug {
    /// Name for reports and messages.
    fn name(&self) -> &'static str;

    /// Whether the objective has a term on this side.
    fn has_term(&self, side: Side) -> bool;

    /// Whether the objective draws its noisy points from the mixture, so that `λ` decides which sides it sees. Not unless
    /// implemented.
    fn uses_mixture(&self) -> bool {
        false
    }

    /// Whether the objective explains a forgotten point by retained ones whatever their condition: wrong for a model that has one, and
    /// refused. Not unless implemented.
    fn ignores_condition(&self) -> bool {
        false
    }

    /// The random numbers that the objective needs beside those of every step. None unless implemented.
    fn extra_draws(&self) -> ExtraDraws {
        ExtraDraws::default()
    }

    /// The two terms. All rows that carry weight are in them: thinning comes after.
    ///
    /// # Errors
    /// Those of the objective; [`Error::DeviceRead`](crate::Error::DeviceRead) if weights cannot be brought to the host.
    fn terms(&mut self, inputs: &LossInputs<'_, D>) -> Result<LossTerms<D>>;

    /// Name and settings, which must be the same when a run is resumed. The name alone unless implemented.
    fn settings(&self) -> String {
        self.name().into()
    }

    /// What the objective remembers from step to step and cannot compute again, for a checkpoint. Nothing unless implemented.
    fn state(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Takes back what [`state`](SissLoss::state) gave, to the bit.
    ///
    /// # Errors
    /// [`Error::StateMismatch`](crate::Error::StateMismatch) for a state that is not this objective's.
    fn restore(&mut self, state: &[f64]) -> Result<()> {
        check_state(self.name(), state, 0)
    }
}

impl<const D: usize> SissLoss<D> for Box<dyn SissLoss<D>> {
    fn name(&self) -> &'static str {
        self.as_ref().name()
    }

    fn has_term(&self, side: Side) -> bool {
        self.as_ref().has_term(side)
    }

    fn uses_mixture(&self) -> bool {
        self.as_ref().uses_mixture()
    }

    fn ignores_condition(&self) -> bool {
        self.as_ref().ignores_condition()
    }

    fn extra_draws(&self) -> ExtraDraws {
        self.as_ref().extra_draws()
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D>) -> Result<LossTerms<D>> {
        self.as_mut().terms(inputs)
    }

    fn settings(&self) -> String {
        self.as_ref().settings()
    }

    fn state(&self) -> Vec<f64> {
        self.as_ref().state()
    }

    fn restore(&mut self, state: &[f64]) -> Result<()> {
        self.as_mut().restore(state)
    }
}

#[cfg(test)]
pub(crate) mod test_inputs {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use crate::process::DdpmScheduler;
    use burn::tensor::Device;

    pub struct Case {
        pub retain: Tensor<3>,
        pub forget: Tensor<3>,
        pub draws: Draws<3>,
        pub scheduler: DdpmScheduler,
    }

    impl Case {
        /// Four rows of 2 × 3 elements at well separated timesteps, half of them from the forgotten side.
        pub fn new(forget_prob: f64) -> Self {
            let device = Device::flex();
            let points = |seed| normal_noise([4, 2, 3], seed, 0, 0, Stream::Noise, &device);
            Case {
                retain: points(1),
                forget: points(2),
                draws: Draws::new(
                    vec![5.0, 300.0, 700.0, 990.0],
                    points(3),
                    vec![false, true, false, true],
                    forget_prob,
                )
                .unwrap(),
                scheduler: DdpmScheduler::linear(1000).unwrap(),
            }
        }

        pub fn inputs(&self, prediction_type: PredictionType) -> LossInputs<'_, 3> {
            LossInputs::new(
                &self.retain,
                &self.forget,
                &[0; 4],
                &self.draws,
                &self.scheduler,
                prediction_type,
            )
            .unwrap()
        }
    }

    pub fn host(tensor: &Tensor<3>) -> Vec<f32> {
        tensor.to_data().try_to_vec().unwrap()
    }
}
