//! The trainer: draw → terms → two gradients → coefficients → optimise.

mod builder;
pub(crate) mod config;
pub(crate) mod ema;
mod frozen;
mod gradients;
mod learning_rate;
mod method;
pub(crate) mod optimizer;
mod preflight;
mod self_check;
pub(crate) mod settings;

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;

use self::ema::MovingAverage;
use self::frozen::thaw;
use self::gradients::{Measured, SideGradient, SideInputs, combine, measure, side_gradient};
use self::learning_rate::LearningRate;
use self::optimizer::OpaqueOptimizer;
use self::preflight::check_model;
use self::settings::Settings;
use crate::clipper::{Coefficients, GradientClipper};
use crate::data::{Side, UnlearningBatch};
use crate::denoiser::Denoiser;
use crate::draws::{Block, DrawSource, DrawnAhead, Draws, MixtureSampler, Numbers};
use crate::error::{Error, Result, check_device};
use crate::objective::{LossInputs, LossTerm, LossTerms, SissLoss};
use crate::observer::{Observer, StepOutcome, StepReport, TermReport, WeightSummary};
use crate::parameters::{non_finite_parameter, without_gradient};
use crate::process::Scheduler;
use crate::steering::Steering;

pub use builder::SissTrainerBuilder;
pub use config::TrainerConfig;
pub use method::Method;
pub use self_check::SelfCheck;

/// Fine-tunes a model until it has forgotten what it must forget.
///
/// Made by [`SissTrainer::builder`]. Generic over the model and its rank only; objective, mixture, clipper and
/// scheduler can be chosen while the program runs.
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
    pub(crate) model: M,
    /// Parameters frozen by the builder, to be given back as they were.
    pub(crate) frozen: Vec<ParamId>,
    pub(crate) ema: Option<MovingAverage<M>>,
    pub(crate) optimizer: OpaqueOptimizer,
    pub(crate) learning_rate: LearningRate,
    pub(crate) scheduler: Box<dyn Scheduler>,
    pub(crate) sampler: Box<dyn MixtureSampler>,
    pub(crate) loss: Box<dyn SissLoss<D>>,
    pub(crate) clipper: Box<dyn GradientClipper>,
    pub(crate) steering: Option<Steering>,
    pub(crate) observers: Vec<Box<dyn Observer>>,
    pub(crate) config: TrainerConfig,
    pub(crate) step: u64,
    pub(crate) skipped_in_a_row: u64,
    pub(crate) model_is_checked: bool,
    /// On a device that works while the host does something else.
    pub(crate) drawn_ahead: Option<DrawnAhead<D>>,
    /// As the parts were when the trainer was built: what a checkpoint must agree with.
    pub(crate) settings: Settings,
}

/// The two gradients of a step and how they are to be combined, before the model is changed.
#[derive(Debug)]
pub struct StepGradients {
    /// Gradient of the retain term; empty without one.
    pub retain: GradientsParams,
    /// Gradient of the forget term, its sign included; empty without one.
    pub forget: GradientsParams,
    /// Norms, coefficients, losses and weights.
    pub report: StepReport,
}

impl StepGradients {
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
    /// A trainer of `model` under `scheduler`; the builder's settings have defaults that work.
    pub fn builder(model: M, scheduler: impl Scheduler + 'static) -> SissTrainerBuilder<M, D> {
        SissTrainerBuilder::new(model, Box::new(scheduler))
    }

    /// One optimiser step on a batch, whatever the size of a micro-batch.
    ///
    /// # Errors
    /// [`Error::NonFiniteData`](crate::Error::NonFiniteData) for a batch with NaN or infinities, [`Error::InvalidSetting`](crate::Error::InvalidSetting) for one on another
    /// device, [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if the model's output has another shape than its input, and what the model's
    /// [`check_input`](Denoiser::check_input) refuses. In the first step [`Error::NoTrainableParameters`](crate::Error::NoTrainableParameters),
    /// [`Error::StochasticModel`](crate::Error::StochasticModel), [`Error::BatchDependentModel`](crate::Error::BatchDependentModel) for a model that cannot be trained so;
    /// [`Error::NonFiniteParameter`](crate::Error::NonFiniteParameter) for one with NaN, and in any step if the optimiser would make it so. After the step
    /// [`Error::TooManySkippedSteps`](crate::Error::TooManySkippedSteps) and [`Error::Observer`](crate::Error::Observer). The model is as before but for the last.
    pub fn step(&mut self, batch: UnlearningBatch<D, M::Condition>) -> Result<StepReport> {
        let mut drawn_ahead = self.drawn_ahead.take();
        let draws = self.draw_from(&batch, &mut |block| match &mut drawn_ahead {
            Some(ahead) => ahead.take(block),
            None => block.draw(),
        });
        self.drawn_ahead = drawn_ahead;
        self.step_with(&batch, &draws?)
    }

    /// One optimiser step with draws made elsewhere: no other randomness enters it.
    ///
    /// # Errors
    /// As [`step`](SissTrainer::step), and those of draws that do not fit the batch or the scheduler.
    pub fn step_with(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        draws: &Draws<D>,
    ) -> Result<StepReport> {
        let gradients = self.gradients(batch, draws)?;
        self.apply(gradients, batch)
    }

    /// The draws of the next step, a function of the seed and the step's number.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) or [`Error::OutOfRange`](crate::Error::OutOfRange) if the mixture sampler breaks its contract.
    pub fn draw(&self, batch: &UnlearningBatch<D, M::Condition>) -> Result<Draws<D>> {
        self.draw_from(batch, &mut |block| block.draw())
    }

    fn draw_from(
        &self,
        batch: &UnlearningBatch<D, M::Condition>,
        draw: &mut dyn FnMut(Block<D>) -> Vec<f32>,
    ) -> Result<Draws<D>> {
        let source = DrawSource {
            seed: self.config.seed,
            timestep_sampling: self.config.timestep_sampling,
        };
        let numbers = Numbers {
            shape: batch.retain.dims(),
            device: &batch.retain.device(),
            draw,
        };
        let range = self.scheduler.time_range();
        let (sampler, extra) = (self.sampler.as_ref(), self.loss.extra_draws());
        source.draw_with(self.step, range, sampler, extra, numbers)
    }

    /// The two gradients of a step and their coefficients; the model is not changed. An objective or clipper with
    /// a state of its own may change that.
    ///
    /// # Errors
    /// As [`step_with`](SissTrainer::step_with).
    pub fn gradients(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        draws: &Draws<D>,
    ) -> Result<StepGradients> {
        self.check_batch(batch)?;
        let mut terms = self.terms(batch, draws)?;
        self.check_model(batch, &terms)?;
        let weights = [&terms.retain, &terms.forget].map(WeightSummary::of);
        terms.thin(self.config.thin_below, draws.thinning_uniform);

        let retain = self.side(&self.model, Side::Retain, &terms.retain, batch)?;
        let forget = self.side(&self.model, Side::Forget, &terms.forget, batch)?;
        let mut measured = measure(&self.model, &retain, &forget)?;
        measured.weigh(&terms, batch.batch_size());
        let coefficients = self.coefficients(&measured)?;
        if let (Some(steering), Some(term)) = (&mut self.steering, &terms.forget) {
            steering.remember(
                &term.rows,
                batch.forget_ids(),
                &term.timesteps,
                &measured.ratios,
            );
        }
        let combined_norm = measured.norms.combined(coefficients.unwrap_or_default());
        let is_applied = coefficients.is_some() && combined_norm.is_finite();
        let without_gradient = self.without_gradient(&retain, &forget);
        let report = StepReport {
            step: self.step,
            outcome: StepOutcome::of(is_applied),
            batch_size: batch.batch_size(),
            retain: TermReport::of(&terms.retain, weights[0], &measured.retain_losses, &[]),
            forget: TermReport::of(
                &terms.forget,
                weights[1],
                &measured.forget_losses,
                &measured.factors,
            ),
            norms: measured.norms,
            coefficients: coefficients.unwrap_or_default(),
            combined_norm,
            clip_factor: self.clip_factor(combined_norm),
            learning_rate: self.learning_rate.at(self.step)?.base(),
            without_gradient,
        };
        Ok(StepGradients {
            retain: retain.gradients,
            forget: forget.gradients,
            report,
        })
    }

    /// Applies the combined gradient, or leaves everything as it is where a number was not finite, and tells the
    /// observers.
    ///
    /// # Errors
    /// [`Error::NonFiniteData`](crate::Error::NonFiniteData) if the batch is to blame for a number that is not finite;
    /// [`Error::NonFiniteParameter`](crate::Error::NonFiniteParameter) if the optimiser would make a parameter NaN. After the
    /// step: [`Error::Observer`](crate::Error::Observer); [`Error::TooManySkippedSteps`](crate::Error::TooManySkippedSteps).
    pub fn apply(
        &mut self,
        gradients: StepGradients,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<StepReport> {
        let report = gradients.report.clone();
        match report.outcome {
            StepOutcome::SkippedNonFinite => {
                batch.check_finite()?;
                self.skipped_in_a_row += 1;
            }
            StepOutcome::Applied => {
                let combined = gradients.combine(&self.model, report.clip_factor);
                self.optimise(combined)?;
                self.skipped_in_a_row = 0;
            }
        }
        self.step += 1;
        let observed = self
            .observers
            .iter_mut()
            .map(|observer| observer.observe(&report));
        // Every observer sees the step; the first failure is returned.
        observed.fold(Ok(()), Result::and)?;
        if self.skipped_in_a_row >= self.config.max_skipped_steps {
            return Err(Error::TooManySkippedSteps {
                steps: self.skipped_in_a_row,
                evidence: report.not_finite(),
            });
        }
        Ok(report)
    }

    /// Takes the optimiser's step, unless it makes a parameter NaN or infinite.
    fn optimise(&mut self, combined: GradientsParams) -> Result<()> {
        let rates = self.learning_rate.at(self.step)?.clone();
        // A clone shares the parameters: should the optimiser panic or go astray, the trainer still holds its model.
        let model = self.optimizer.0.step(rates, self.model.clone(), combined);
        if let Some(parameter) = non_finite_parameter(&model)? {
            return Err(Error::NonFiniteParameter {
                parameter,
                cause: "became NaN or infinite in the optimiser, whose step was not taken",
                remedy: "build a new trainer from this model, for the optimiser's state is spoilt: with a lower learning rate, with parameters in f32, or with a larger epsilon for those in f16",
            });
        }
        self.model = model;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.model);
        }
        Ok(())
    }

    pub(crate) fn terms(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        draws: &Draws<D>,
    ) -> Result<LossTerms<D>> {
        let (retain, forget) = (&batch.retain, &batch.forget);
        let (scheduler, kind) = (self.scheduler.as_ref(), self.model.prediction_type());
        let inputs = LossInputs::new(retain, forget, &batch.forget_ids, draws, scheduler, kind)?;
        let mut terms = self.loss.terms(&inputs)?;
        for term in terms.retain.iter().chain(&terms.forget) {
            term.check(retain.dims())?;
        }
        if let Some([low, high]) = self.config.forget_within {
            terms.forget = terms.forget.map(|term| {
                let timesteps = term.timesteps.clone();
                term.keep_rows(|row| (low..high).contains(&timesteps[row]))
            });
        }
        Ok(terms)
    }

    /// The gradient of one side, by the trainer's model or a copy of it on another device.
    pub(crate) fn side(
        &self,
        model: &M,
        side: Side,
        term: &Option<LossTerm<D>>,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<SideGradient> {
        let Some(term) = term else {
            return Ok(SideGradient::default());
        };
        let batch_size = batch.batch_size();
        let micro_batch = self.config.micro_batch_size.unwrap_or(batch_size);
        let steering = self.steering.as_ref().filter(|_| side == Side::Forget);
        let inputs = SideInputs {
            term,
            condition: batch.condition(side),
            batch_size,
            steering: steering.map(|steering| (steering, batch.forget_ids())),
        };
        side_gradient(model, &inputs, micro_batch)
    }

    /// The trained parameters that the run's first step does not reach.
    fn without_gradient(&self, retain: &SideGradient, forget: &SideGradient) -> Vec<String> {
        let (retain, forget) = (&retain.gradients, &forget.gradients);
        if self.step > 0 || (retain.is_empty() && forget.is_empty()) {
            return Vec::new();
        }
        without_gradient(&self.model, retain, forget)
    }

    /// The clipper's coefficients, or `None` where a number is not finite.
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

    pub(crate) fn check_batch(&self, batch: &UnlearningBatch<D, M::Condition>) -> Result<()> {
        if let Some(device) = self.model.devices().first() {
            check_device("the batch's points", device, &batch.retain.device())?;
        }
        let points = self.steering.as_ref().map_or(0, Steering::num_points);
        if points > 1 && !batch.has_forget_ids {
            return Err(Error::InvalidSetting {
                what: format!(
                    "the batch does not say which of {points} points its rows are to be steered for"
                ),
                remedy: "give the ids of the forgotten points by `UnlearningBatch::with_forget_ids`",
            });
        }
        self.model.check_input(batch.retain.dims())
    }

    /// Checks, once, that the model can be trained by two separate gradients.
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

    /// The model as it is now, on its training device. For sampling use [`Module::valid`] of it.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model, plain again: without autodiff.
    pub fn into_model(self) -> M {
        thaw(self.model, &self.frozen).valid()
    }

    /// The moving average of the weights, plain and in f32, where the builder was asked for one.
    pub fn ema_model(&self) -> Option<M> {
        let average = self.ema.as_ref()?.model().clone();
        Some(thaw(average, &self.frozen))
    }

    /// Number of the next step: how many have been taken, skipped ones included.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoiser::FnDenoiser;
    use crate::host::read_f32;
    use crate::process::DdpmScheduler;
    use crate::trainer::Method;
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, Tensor};

    /// A GPU's trainer draws ahead. So does this one, on the CPU, with a method that draws all that can be drawn.
    #[test]
    fn numbers_drawn_ahead_change_no_step() {
        let device = Device::flex();
        let layer = LinearConfig::new(3, 3).init(&device);
        let run = |ahead: bool| {
            let model = FnDenoiser::new(layer.clone(), |layer, noisy: Tensor<2>, _, _: &()| {
                layer.forward(noisy)
            });
            let scheduler = DdpmScheduler::linear(1000).unwrap();
            let builder = SissTrainer::builder(model, scheduler).method(Method::EraseDiff);
            let mut trainer = builder.build().unwrap();
            assert!(trainer.drawn_ahead.is_none(), "the CPU draws ahead");
            trainer.drawn_ahead = ahead.then(DrawnAhead::default);
            for rows in [4, 4, 2, 4] {
                let points = |value: f64| Tensor::<2>::full([rows, 3], value, &device);
                let batch = UnlearningBatch::new(points(0.1), points(0.9)).unwrap();
                trainer.step(batch).unwrap();
            }
            let weight = trainer.into_model().into_inner().weight.val();
            read_f32(weight, "the weight").unwrap()
        };
        assert_eq!(run(true), run(false));
        assert_ne!(run(true), read_f32(layer.weight.val(), "").unwrap());
    }
}
