//! The trainer. Each step draws, computes the terms, two gradients and their coefficients, and
//! optimises.

mod adversary;
mod builder;
pub(crate) mod config;
pub(crate) mod ema;
mod frozen;
pub(crate) mod gradients;
mod learning_rate;
mod master;
mod method;
mod offloaded;
pub(crate) mod optimizer;
mod preflight;
mod rehearsal;
mod replicas;
mod self_check;
pub(crate) mod settings;
pub(crate) mod state;
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
mod together;

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use self::ema::MovingAverage;
use self::frozen::thaw;
use self::gradients::{Measured, SideGradient, SideInputs, combine, measure, side_gradient};
use self::learning_rate::LearningRate;
use self::optimizer::OpaqueOptimizer;
use self::preflight::check_model;
use self::replicas::Replicas;
use self::settings::Settings;
use crate::clipper::{Coefficients, GradientClipper};
use crate::data::side::Sides;
use crate::data::{Side, UnlearningBatch};
use crate::denoiser::{Denoiser, frozen_output};
use crate::draws::{DrawSource, Draws, MixtureSampler};
use crate::error::{Error, Result, check_device};
use crate::objective::{LossInputs, LossTerm, LossTerms, SissLoss};
use crate::observer::{
    Diagnosis, Finding, Observer, StepOutcome, StepReport, TermReport, WeightSummary,
};
use crate::parameters::{non_finite_parameter, without_gradient};
use crate::process::Scheduler;
use crate::steering::Steering;

pub use adversary::Adversary;
pub use builder::SissTrainerBuilder;
pub use config::TrainerConfig;
pub use master::MasterWeights;
pub use method::Method;
pub use offloaded::Offloaded;
pub use optimizer::FusedAdamW;
pub use rehearsal::Rehearsal;
pub use replicas::{AllReduce, Reduce, SumOnFirst};
pub use self_check::SelfCheck;

/// Fine-tunes a model until it has forgotten the points in the forget set.
///
/// Made by [`SissTrainer::builder`]. Generic only over the model and its rank; objective, mixture,
/// clipper and scheduler can be chosen at run time.
///
/// # Example
/// ```
/// # use burn::module::Module;
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{DdpmScheduler, Denoiser, SissTrainer, UnlearningBatch};
/// # #[derive(Module, Debug)]
/// # struct Model { linear: Linear }
/// # impl Denoiser<2> for Model {
/// #     type Condition = ();
/// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> { self.linear.forward(noisy) }
/// # }
/// # let device = Device::flex();
/// # let model = Model { linear: LinearConfig::new(3, 3).init(&device) };
/// let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?)
///     .learning_rate(5e-5)
///     .build()?;
/// for _ in 0..2 {
///     let retain = Tensor::random([8, 3], Distribution::Default, &device);
///     let forget = Tensor::zeros([8, 3], &device);
///     let report = trainer.step(UnlearningBatch::new(retain, forget)?)?;
///     println!("{report}");
/// }
/// let model = trainer.into_model();
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct SissTrainer<M: Denoiser<D>, const D: usize> {
    model: M,
    /// The frozen model that an objective queries: the model before the run, unless the builder set
    /// another.
    teacher: Option<M>,
    /// Parameters frozen by the builder; they become trainable again in the returned model.
    frozen: Vec<ParamId>,
    ema: Option<MovingAverage<M>>,
    /// Further devices that run part of each term's rows.
    replicas: Option<Replicas>,
    optimizer: OpaqueOptimizer,
    learning_rate: LearningRate,
    scheduler: Box<dyn Scheduler>,
    sampler: Box<dyn MixtureSampler>,
    loss: Box<dyn SissLoss<D, M::Condition>>,
    clipper: Box<dyn GradientClipper>,
    steering: Option<Steering>,
    diagnosis: Diagnosis,
    observers: Vec<Box<dyn Observer>>,
    config: TrainerConfig,
    step: u64,
    skipped_in_a_row: u64,
    model_is_checked: bool,
    /// The settings that shaped the run when the trainer was built; a checkpoint must agree with
    /// them.
    settings: Settings,
}

/// The two gradients of a step and their coefficients, before the model is changed.
#[derive(Debug)]
pub struct StepGradients {
    /// Gradient of the retain term; empty without one.
    pub retain: GradientsParams,
    /// Gradient of the forget term, its sign included; empty without one.
    pub forget: GradientsParams,
    /// Norms, coefficients, losses and weights. Its outcome is
    /// [`Pending`](crate::observer::StepOutcome::Pending) until [`SissTrainer::apply`].
    pub report: StepReport,
    is_finite: bool,
}

impl StepGradients {
    /// Whether all losses, norms and coefficients are finite. If not,
    /// [`apply`](SissTrainer::apply) skips the step.
    pub fn is_finite(&self) -> bool {
        self.is_finite
    }

    /// `scale · (c_r g_r + c_f g_f)`; `scale = 1` is the gradient before the global clip.
    pub fn combine<M: Module>(self, model: &M, scale: f64) -> GradientsParams {
        let Coefficients { retain, forget } = self.report.coefficients;
        combine(
            model,
            (scale * retain, self.retain),
            (scale * forget, self.forget),
        )
    }
}

impl<M: Denoiser<D>, const D: usize> SissTrainer<M, D> {
    /// Sets up a trainer of `model` under `scheduler`; all other settings have working defaults.
    pub fn builder(model: M, scheduler: impl Scheduler + 'static) -> SissTrainerBuilder<M, D> {
        SissTrainerBuilder::new(model, Box::new(scheduler))
    }

    /// Takes one optimiser step on a batch; the size of a micro-batch does not change the result.
    ///
    /// # Errors
    /// - The batch: [`Error::NonFiniteData`]; [`Error::DeviceMismatch`] on another device than the
    ///   model; [`Error::MissingPart`] without ids, if several points are steered;
    ///   [`Error::UnknownPoint`] for an id without a level; any error of the model's
    ///   [`check_input`](Denoiser::check_input), and those of the objective.
    /// - The model: [`Error::ShapeMismatch`] if its output has another shape than its input; in the
    ///   first step [`Error::NoTrainableParameters`], [`Error::SharedParameter`],
    ///   [`Error::StochasticModel`], [`Error::BatchDependentModel`] and
    ///   [`Error::NonFiniteParameter`].
    /// - The optimiser: [`Error::NonFiniteParameter`] if it would make a parameter NaN.
    /// - After the step: [`Error::TooManySkippedSteps`] and [`Error::Observer`].
    ///
    /// [`Error`] says what is unchanged after an error.
    pub fn step(&mut self, batch: UnlearningBatch<D, M::Condition>) -> Result<StepReport> {
        let draws = self.draw(&batch)?;
        self.step_with(&batch, &draws)
    }

    /// Takes one optimiser step with draws made elsewhere; the step uses no other randomness.
    ///
    /// # Errors
    /// Those of [`step`](SissTrainer::step), and those of draws that do not fit the batch or the
    /// scheduler.
    pub fn step_with(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        draws: &Draws<D>,
    ) -> Result<StepReport> {
        let gradients = self.gradients(batch, draws)?;
        self.apply(gradients)
    }

    /// The draws of the next step: a function of the seed and the step's number.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::OutOfRange`] if the mixture sampler breaks its
    /// contract.
    pub fn draw(&self, batch: &UnlearningBatch<D, M::Condition>) -> Result<Draws<D>> {
        let source = DrawSource {
            seed: self.config.seed,
            timestep_sampling: self.config.timestep_sampling,
        };
        source.draw(
            self.step,
            batch.retain.dims(),
            self.scheduler.time_range(),
            self.sampler.as_ref(),
            &self.loss.extra_draws(),
            &batch.retain.device(),
        )
    }

    /// Computes the two gradients of a step and their coefficients, without changing the model.
    ///
    /// An objective, a clipper or steering with a state of its own may update that state.
    ///
    /// # Errors
    /// Those of [`step_with`](SissTrainer::step_with), except the errors of the optimiser and those
    /// after the step.
    pub fn gradients(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        draws: &Draws<D>,
    ) -> Result<StepGradients> {
        self.check_batch(batch)?;
        let mut terms = self.terms(batch, draws)?;
        self.check_model(batch, &terms)?;
        let weights = terms.sides().map(|term| term.map(WeightSummary::of));
        terms.thin(self.config.thin_below, draws.thinning_uniform);

        let sides = self.sides(&terms, batch)?;
        let mut measured = measure(&self.model, &sides)?;
        measured.weigh(&terms, batch.batch_size());
        let coefficients = self.coefficients(&measured)?;
        let combined_norm = measured.norms.combined(coefficients.unwrap_or_default());
        let is_finite = coefficients.is_some() && combined_norm.is_finite();
        if !is_finite {
            batch.check_finite()?;
        }
        self.remember_losses(&terms, batch, &measured);
        let thinned = terms.sides();
        let term = |side, factors| {
            let (term, weights) = (thinned.get(side).as_ref()?, (*weights.get(side))?);
            let losses = measured.losses.get(side);
            Some(TermReport::of(term, weights, losses, factors))
        };
        let report = StepReport {
            step: self.step,
            outcome: StepOutcome::Pending,
            batch_size: batch.batch_size(),
            retain: term(Side::Retain, &[]),
            forget: term(Side::Forget, &measured.factors),
            norms: measured.norms,
            coefficients: coefficients.unwrap_or_default(),
            combined_norm,
            clip_factor: self.clip_factor(combined_norm),
            learning_rate: self.learning_rate.at(self.step)?.base(),
            without_gradient: self.without_gradient(&sides),
        };
        Ok(StepGradients {
            retain: sides.retain.gradients,
            forget: sides.forget.gradients,
            report,
            is_finite,
        })
    }

    /// Applies the combined gradient and tells the observers.
    ///
    /// If a number was not finite, everything is left unchanged instead.
    ///
    /// # Errors
    /// - [`Error::NonFiniteParameter`] if the optimiser would make a parameter NaN
    /// - after the step: [`Error::Observer`] and [`Error::TooManySkippedSteps`]
    pub fn apply(&mut self, gradients: StepGradients) -> Result<StepReport> {
        let mut report = gradients.report.clone();
        if gradients.is_finite {
            let combined = gradients.combine(&self.model, report.clip_factor);
            self.optimise(combined)?;
            report.outcome = StepOutcome::Applied;
            self.skipped_in_a_row = 0;
        } else {
            report.outcome = StepOutcome::SkippedNonFinite;
            self.skipped_in_a_row += 1;
        }
        self.step += 1;
        self.diagnosis.look_at(&report);
        self.tell_observers(&report)?;
        if self.skipped_in_a_row >= self.config.max_skipped_steps {
            return Err(Error::TooManySkippedSteps {
                steps: self.skipped_in_a_row,
                evidence: report.not_finite(),
            });
        }
        Ok(report)
    }

    /// Shows the step to every observer, and returns the first failure.
    fn tell_observers(&mut self, report: &StepReport) -> Result<()> {
        let observers = self.observers.iter_mut();
        let observed = observers.map(|observer| observer.observe(report));
        observed.fold(Ok(()), Result::and)
    }

    /// Takes the optimiser's step, unless it would make a parameter NaN or infinite.
    fn optimise(&mut self, combined: GradientsParams) -> Result<()> {
        let rates = self.learning_rate.at(self.step)?.clone();
        // A clone shares the parameters: if the optimiser panics or diverges, the trainer still
        // holds its model.
        let model = self.optimizer.step(rates, self.model.clone(), combined);
        if let Some(parameter) = non_finite_parameter(&model)? {
            return Err(Error::NonFiniteParameter {
                parameter,
                cause: "became NaN or infinite in the optimiser, whose step was not taken",
                remedy: "build a new trainer from this model, because the optimiser's state is no longer usable: with a lower learning rate, with parameters in f32, or for those in f16 with `master_weights` or a larger epsilon",
            });
        }
        self.model = model;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.model);
        }
        Ok(())
    }

    fn terms(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        draws: &Draws<D>,
    ) -> Result<LossTerms<D>> {
        let (scheduler, kind) = (self.scheduler.as_ref(), self.model.prediction_type());
        let mut inputs = LossInputs::new(batch, draws, scheduler, kind)?;
        let rows = self.config.micro_batch_size.unwrap_or(batch.batch_size());
        let teacher = self.teacher.as_ref();
        let ask = teacher.map(|teacher| {
            move |noisy: Tensor<D>, timesteps: &[f64], condition: &M::Condition| {
                frozen_output(teacher, noisy, timesteps, condition, rows)
            }
        });
        if let Some(ask) = &ask {
            inputs = inputs.with_teacher(ask);
        }
        let mut terms = self.loss.terms(&inputs)?;
        for term in terms.retain.iter().chain(&terms.forget) {
            term.check(batch.retain.dims())?;
        }
        if let Some([low, high]) = self.config.forget_within {
            terms.forget = terms.forget.map(|term| {
                let timesteps = term.timesteps.clone();
                term.keep_rows(|row| (low..high).contains(&timesteps[row]))
            });
        }
        Ok(terms)
    }

    /// The gradients of both sides.
    fn sides(
        &self,
        terms: &LossTerms<D>,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<Sides<SideGradient>> {
        if let Some(replicas) = &self.replicas {
            let rows = self.config.micro_batch_size.unwrap_or(batch.batch_size());
            let steering = self.steering.as_ref();
            return replicas.sides(&self.model, terms, batch, steering, rows);
        }
        Ok(Sides {
            retain: self.side(&self.model, Side::Retain, &terms.retain, batch)?,
            forget: self.side(&self.model, Side::Forget, &terms.forget, batch)?,
        })
    }

    /// The gradient of one side, computed by the trainer's model or a copy of it on another device.
    fn side(
        &self,
        model: &M,
        side: Side,
        term: &Option<LossTerm<D>>,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<SideGradient> {
        let rows = self.config.micro_batch_size.unwrap_or(batch.batch_size());
        self.side_at_a_time(model, side, term, batch, rows)
    }

    /// The same with a given number of rows at a time.
    fn side_at_a_time(
        &self,
        model: &M,
        side: Side,
        term: &Option<LossTerm<D>>,
        batch: &UnlearningBatch<D, M::Condition>,
        rows: usize,
    ) -> Result<SideGradient> {
        let Some(term) = term else {
            return Ok(SideGradient::default());
        };
        let steering = self.steering.as_ref().filter(|_| side == Side::Forget);
        let inputs = SideInputs {
            term,
            condition: batch.condition(side),
            batch_size: batch.batch_size(),
            steering: steering.map(|steering| (steering, batch.forget_ids())),
        };
        side_gradient(model, &inputs, rows)
    }

    /// The trained parameters that get no gradient in the run's first step.
    fn without_gradient(&self, sides: &Sides<SideGradient>) -> Vec<String> {
        let Sides { retain, forget } = sides.as_ref().map(|side| &side.gradients);
        if self.step > 0 || (retain.is_empty() && forget.is_empty()) {
            return Vec::new();
        }
        without_gradient(&self.model, retain, forget)
    }

    /// Updates the running means of steering with the losses of a steered step.
    fn remember_losses(
        &mut self,
        terms: &LossTerms<D>,
        batch: &UnlearningBatch<D, M::Condition>,
        measured: &Measured,
    ) {
        if let (Some(steering), Some(term)) = (&mut self.steering, &terms.forget) {
            let (ids, timesteps) = (batch.forget_ids(), &term.timesteps);
            steering.remember(&term.rows, ids, timesteps, &measured.ratios);
        }
    }

    /// The clipper's coefficients, or `None` if a number is not finite.
    fn coefficients(&mut self, measured: &Measured) -> Result<Option<Coefficients>> {
        if !measured.is_finite() {
            return Ok(None);
        }
        let coefficients = self.clipper.coefficients(&measured.norms)?;
        Ok(coefficients.is_finite().then_some(coefficients))
    }

    /// The global clip: `min(1, max_grad_norm / ‖g‖)`.
    fn clip_factor(&self, combined_norm: f64) -> f64 {
        match self.config.max_grad_norm {
            Some(limit) if combined_norm > limit => limit / combined_norm,
            _ => 1.0,
        }
    }

    fn check_batch(&self, batch: &UnlearningBatch<D, M::Condition>) -> Result<()> {
        if let Some(device) = self.model.devices().first() {
            check_device("the batch's points", device, &batch.retain.device())?;
        }
        let points = self.steering.as_ref().map_or(0, Steering::num_points);
        if points > 1 && !batch.has_forget_ids {
            return Err(Error::MissingPart {
                owner: "the batch".into(),
                missing: "ids to say which of several points its rows are to be steered for",
                remedy: "give the ids of the forgotten points with `UnlearningBatch::with_forget_ids`",
            });
        }
        self.model.check_input(batch.retain.dims())?;
        self.model.check_condition(&batch.retain_condition)?;
        self.model.check_condition(&batch.forget_condition)
    }

    /// Checks once that the model can be trained by two separate gradients.
    fn check_model(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        terms: &LossTerms<D>,
    ) -> Result<()> {
        if let (false, Some(term)) = (
            self.model_is_checked,
            terms.retain.as_ref().or(terms.forget.as_ref()),
        ) {
            check_model(&self.model, batch, term)?;
            self.model_is_checked = true;
        }
        Ok(())
    }

    /// The current model, on its training device. For sampling, use its [`Module::valid`].
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The trained model, plain again: without autodiff.
    pub fn into_model(self) -> M {
        thaw(self.model, &self.frozen).valid()
    }

    /// The moving average of the weights, plain and in f32, if the builder asked for one. It is on
    /// the device of [`ema_device`](SissTrainerBuilder::ema_device), if that was set.
    pub fn ema_model(&self) -> Option<M> {
        let average = self.ema.as_ref()?.model().clone();
        Some(thaw(average, &self.frozen))
    }

    /// The known problems that the run has shown so far, in the order they were found.
    pub fn findings(&self) -> &[Finding] {
        self.diagnosis.findings()
    }

    /// The problems found since the last call.
    ///
    /// Call it after each step, to learn of a problem while it can still be corrected.
    pub fn new_findings(&mut self) -> &[Finding] {
        self.diagnosis.news()
    }

    /// Number of the next step, which is the number of steps taken, skipped ones included.
    pub fn next_step(&self) -> u64 {
        self.step
    }

    /// The settings.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// The forward process.
    pub fn scheduler(&self) -> &dyn Scheduler {
        self.scheduler.as_ref()
    }
}
