//! The unlearning objectives.
//!
//! Each consists of two weighted regressions, a retain term and a forget term; they differ in
//! nothing else.

mod answers;
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

use std::fmt::{self, Debug};

use burn::tensor::{Device, Tensor};

pub use self::siss::Siss;
pub use answers::Answers;
pub use bernoulli::Bernoulli;
pub use erase_diff::EraseDiff;
pub use mixture::{ImportanceWeights, MixturePoints, importance_weights, mixture_points};
pub use naive_deletion::NaiveDeletion;
pub use neg_grad::NegGrad;
pub use retrack::{NeighbourTarget, ReTrack};
pub use siss_no_is::SissNoIs;
pub use thinning::{Survivors, survivors};

use crate::data::side::Sides;
use crate::data::{Side, UnlearningBatch};
use crate::denoiser::Condition;
use crate::draws::{Draws, ExtraDraws};
use crate::error::{Error, Result, check_device, check_range, check_shape, check_state};
use crate::process::{PredictionType, Scales, Scheduler, SchedulerExt};

/// The inputs of an objective.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LossInputs<'a, const D: usize, C = ()> {
    /// The retained points `x`, `[batch, …]`.
    pub retain: &'a Tensor<D>,
    /// The forgotten points `a`, `[batch, …]`.
    pub forget: &'a Tensor<D>,
    /// The conditions of the retained points, `batch` rows.
    pub retain_condition: &'a C,
    /// The conditions of the forgotten points, `batch` rows.
    pub forget_condition: &'a C,
    /// Which forgotten point each row holds, `[batch]`.
    pub forget_ids: &'a [u64],
    /// The step's random numbers.
    pub draws: &'a Draws<D>,
    /// The forward process.
    pub scheduler: &'a dyn Scheduler,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// The scales at the timesteps of the draws, checked.
    pub scales: Scales,
    teacher: Option<Teacher<'a, D, C>>,
}

/// A frozen model as a function from `(noisy, timesteps, condition)` to its output.
type Answer<'a, const D: usize, C> = dyn Fn(Tensor<D>, &[f64], &C) -> Result<Tensor<D>> + 'a;

#[derive(Clone, Copy)]
struct Teacher<'a, const D: usize, C>(&'a Answer<'a, D, C>);

impl<const D: usize, C> Debug for Teacher<'_, D, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Teacher")
    }
}

impl<'a, const D: usize, C: Condition> LossInputs<'a, D, C> {
    /// Combines a batch, its draws and the forward process.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::DeviceMismatch`] if points and draws differ in shape or
    /// device; [`Error::TimestepOutOfRange`] or [`Error::NoNoise`] if the draws' timesteps do not
    /// fit the scheduler.
    pub fn new(
        batch: &'a UnlearningBatch<D, C>,
        draws: &'a Draws<D>,
        scheduler: &'a dyn Scheduler,
        prediction_type: PredictionType,
    ) -> Result<Self> {
        let (shape, drawn) = (batch.retain().dims(), draws.noise.dims());
        let remedy = "make the draws for the batch of this step";
        check_shape("the drawn noise", &shape, &drawn, remedy)?;
        let (device, drawn) = (batch.retain().device(), draws.noise.device());
        check_device("the drawn noise values", &device, &drawn)?;
        let scales = scheduler.scales(&draws.timesteps)?;
        Ok(Self {
            retain: batch.retain(),
            forget: batch.forget(),
            retain_condition: batch.condition(Side::Retain),
            forget_condition: batch.condition(Side::Forget),
            forget_ids: batch.forget_ids(),
            draws,
            scheduler,
            prediction_type,
            scales,
            teacher: None,
        })
    }
}

impl<'a, const D: usize, C> LossInputs<'a, D, C> {
    /// Sets the frozen teacher; the trainer does so for an objective that
    /// [`uses_teacher`](SissLoss::uses_teacher).
    pub fn with_teacher(mut self, answer: &'a Answer<'a, D, C>) -> Self {
        self.teacher = Some(Teacher(answer));
        self
    }

    /// The output of the frozen teacher, without gradients.
    ///
    /// The teacher is the model before the run, unless the builder was given another.
    ///
    /// # Shapes
    /// - `noisy` and the result: `[rows, …]`; `timesteps`: `[rows]`; `condition`: `rows` rows
    ///
    /// # Errors
    /// [`Error::MissingPart`] without a teacher; an objective asks for one with
    /// [`uses_teacher`](SissLoss::uses_teacher). [`Error::ShapeMismatch`] if the shape of the
    /// teacher's output is not that of `noisy`.
    pub fn teacher(&self, noisy: Tensor<D>, timesteps: &[f64], condition: &C) -> Result<Tensor<D>> {
        let Some(Teacher(answer)) = self.teacher else {
            return Err(Error::MissingPart {
                owner: "the objective".into(),
                missing: "teacher to ask",
                remedy: "return true from the objective's `uses_teacher`, or give one with `LossInputs::with_teacher`",
            });
        };
        answer(noisy, timesteps, condition)
    }

    /// The noisy points of the mixture at the timesteps of the draws, and the noise that explains
    /// each of them from either side.
    ///
    /// `from_forget` says which side each point is drawn from.
    ///
    /// # Shapes
    /// - `from_forget`: `[batch]`, usually [`Draws::from_forget`]
    ///
    /// # Errors
    /// As [`mixture_points`].
    pub fn mixture(&self, from_forget: &[bool]) -> Result<MixturePoints<D>> {
        let (retain, forget) = (self.retain.clone(), self.forget.clone());
        let noise = self.draws.noise.clone();
        mixture_points(retain, forget, noise, &self.scales, from_forget)
    }

    /// The prediction that the model should make at the timesteps of the draws, for noisy points
    /// explained by `clean` and `noise`.
    pub fn target(&self, clean: &Tensor<D>, noise: Tensor<D>) -> Tensor<D> {
        self.scales.target(self.prediction_type, clean, &noise)
    }

    /// The plain regression at a side's own noisy points `γ·clean + σ ε`, with the same weight for
    /// every row.
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

/// One weighted regression: `(1/B) Σ_i w_i ‖model(noisy_i, t_i) − target_i‖²` over some rows of the
/// batch.
///
/// The sign of a weight says whether the row is learnt (positive, descends) or unlearnt (negative,
/// ascends). Weights should be of order 1, because thinning compares them with a threshold whose
/// default is 1.
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
    /// The largest weight that a row can have, if there is a bound: for the diagnosis of degenerate
    /// weights.
    pub weight_bound: Option<f64>,
    /// The target that belongs to the rows' own points, `[batch, …]`, if `target` is another.
    ///
    /// [`Steering`](crate::Steering) uses it to compute the loss of the point itself.
    pub own_target: Option<Tensor<D>>,
    /// How much stronger a row's target gets while the row's own loss is below that of the target;
    /// see [`with_boost`](Self::with_boost). 0 for never.
    pub boost: f64,
}

impl<const D: usize> LossTerm<D> {
    /// Creates a term of all rows of the batch.
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
            boost: 0.0,
        }
    }

    /// Sets the largest weight that a row can have.
    pub fn with_weight_bound(mut self, bound: f64) -> Self {
        self.weight_bound = bound.is_finite().then_some(bound);
        self
    }

    /// Sets the target that belongs to the rows' own points, `[batch, …]`, if it is not the term's
    /// target.
    ///
    /// [`Steering`](crate::Steering) uses it to compute the loss of the point itself.
    pub fn with_own_target(mut self, own_target: Tensor<D>) -> Self {
        self.own_target = Some(own_target);
        self
    }

    /// Makes a row's target stronger while its own loss `L` is below that of the target, `P`, both
    /// mean squared distances from the row's own target: the difference of the two targets is
    /// multiplied by `√(1 + boost (1 − L/P))`, equation (56a) of `docs/maths.md`. From `L = P` on
    /// the target is as it was given.
    ///
    /// A model that learns only a part of a target comes nearer to its loss so. It takes effect
    /// with an [`own_target`](Self::with_own_target). A step refuses one that is not finite or
    /// below 0.
    pub fn with_boost(mut self, boost: f64) -> Self {
        self.boost = boost;
        self
    }

    /// Restricts the term to the rows of the batch for which `wanted` holds.
    pub fn keep_rows(mut self, wanted: impl Fn(usize) -> bool) -> Self {
        let kept = self
            .rows
            .iter()
            .zip(&self.weights)
            .filter(|&(&row, _)| wanted(row));
        (self.rows, self.weights) = kept.map(|(&row, &weight)| (row, weight)).unzip();
        self
    }

    /// Checks that the term fits a batch of this shape, since objectives can come from outside the
    /// crate.
    pub(crate) fn check(&self, shape: [usize; D]) -> Result<()> {
        let remedy = "an objective's term must cover the batch and weigh rows of it";
        check_shape("a term's noisy points", &shape, &self.noisy.dims(), remedy)?;
        check_shape("a term's targets", &shape, &self.target.dims(), remedy)?;
        if let Some(own) = &self.own_target {
            check_shape("a term's own targets", &shape, &own.dims(), remedy)?;
        }
        check_range(
            "a term's boost",
            self.boost,
            self.boost >= 0.0,
            "at least 0",
        )?;
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

    /// Thins rows of small weight without bias, see [`survivors`].
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

/// The two terms of an objective.
///
/// A side without a term has no gradient.
#[derive(Debug, Clone)]
pub struct LossTerms<const D: usize> {
    /// The term of the points to keep.
    pub retain: Option<LossTerm<D>>,
    /// The term of the points to forget.
    pub forget: Option<LossTerm<D>>,
}

impl<const D: usize> LossTerms<D> {
    pub(crate) fn sides(&self) -> Sides<Option<&LossTerm<D>>> {
        Sides {
            retain: self.retain.as_ref(),
            forget: self.forget.as_ref(),
        }
    }

    /// Copies the terms to another device.
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

    /// Thins both terms with one uniform number.
    ///
    /// The forget side uses its complement: if the survival probabilities of two rows sum to one,
    /// exactly one of them survives.
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
///
/// `C` is the model's condition. An objective that does not use it should be implemented for every
/// `C`: `impl<const D: usize, C> SissLoss<D, C> for MyObjective`.
pub trait SissLoss<const D: usize, C = ()>: Send + Debug {
    /// Name for reports and messages.
    fn name(&self) -> &'static str;

    /// Whether the objective has a term on this side.
    fn has_term(&self, side: Side) -> bool;

    /// Whether the objective draws its noisy points from the mixture, so that `λ` decides which
    /// sides it sees.
    ///
    /// The default is `false`.
    fn uses_mixture(&self) -> bool {
        false
    }

    /// Whether the objective explains forgotten points by retained ones whatever their condition.
    ///
    /// The default is `false`.
    ///
    /// This is wrong for a model with a condition, so the trainer refuses the pairing.
    fn ignores_condition(&self) -> bool {
        false
    }

    /// Whether the objective uses a frozen teacher ([`LossInputs::teacher`]).
    ///
    /// The default is `false`.
    fn uses_teacher(&self) -> bool {
        false
    }

    /// Whether the retain gradient is 0 in the first step, so that no clipper may weigh by it.
    ///
    /// The default is `false`.
    fn retain_gradient_starts_at_zero(&self) -> bool {
        false
    }

    /// The random numbers that the objective needs in addition to those of every step.
    ///
    /// The default is none.
    fn extra_draws(&self) -> ExtraDraws {
        ExtraDraws::none()
    }

    /// Computes the two terms.
    ///
    /// They contain all rows that carry weight; thinning follows later.
    ///
    /// # Errors
    /// Those of the objective; [`Error::DeviceRead`] if weights cannot be brought to the host.
    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>>;

    /// Name and settings, which must be the same when a run is resumed.
    ///
    /// The default is the name alone.
    fn settings(&self) -> String {
        self.name().into()
    }

    /// The state that the objective carries from step to step and cannot recompute, for a
    /// checkpoint.
    ///
    /// The default is empty.
    fn state(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Restores the result of [`state`](SissLoss::state), to the bit.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] for a state that does not fit this objective.
    fn restore(&mut self, state: &[f64]) -> Result<()> {
        check_state(self.name(), state, 0)
    }
}

impl<const D: usize, C> SissLoss<D, C> for Box<dyn SissLoss<D, C>> {
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

    fn uses_teacher(&self) -> bool {
        self.as_ref().uses_teacher()
    }

    fn retain_gradient_starts_at_zero(&self) -> bool {
        self.as_ref().retain_gradient_starts_at_zero()
    }

    fn extra_draws(&self) -> ExtraDraws {
        self.as_ref().extra_draws()
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
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
        pub batch: UnlearningBatch<3>,
        pub draws: Draws<3>,
        pub scheduler: DdpmScheduler,
    }

    impl Case {
        /// Creates four rows of 2 × 3 elements at well separated timesteps, half of them from the
        /// forgotten side.
        pub fn new(forget_prob: f64) -> Self {
            let device = Device::flex();
            let points = |seed| normal_noise([4, 2, 3], seed, 0, 0, Stream::Noise, &device);
            Case {
                batch: UnlearningBatch::new(points(1), points(2))
                    .and_then(|batch| batch.with_forget_ids(vec![0, 1, 2, 3]))
                    .unwrap(),
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
            LossInputs::new(&self.batch, &self.draws, &self.scheduler, prediction_type).unwrap()
        }
    }

    pub fn host(tensor: &Tensor<3>) -> Vec<f32> {
        tensor.to_data().try_to_vec().unwrap()
    }
}
