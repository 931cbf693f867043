//! The trainer: draw → terms → two gradients → coefficients → optimise.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::batch::{UnlearningBatch, read_f32};
use crate::builder::{OpaqueOptimizer, SissTrainerBuilder, TrainerConfig};
use crate::clipper::{Coefficients, GradientClipper};
use crate::denoiser::{Denoiser, PredictionType};
use crate::draws::{DrawSource, Draws};
use crate::error::{Error, Result, Side};
use crate::gradients::{GradientNorms, SideGradient, combine, gradient_products, side_gradient};
use crate::learning_rate::LearningRate;
use crate::loss::{LossInputs, LossTerm, LossTerms, SissLoss};
use crate::mixture::MixtureSampler;
use crate::observer::Observer;
use crate::preflight::check_model;
use crate::scheduler::Scheduler;
use crate::step_report::{StepOutcome, StepReport, TermReport, WeightSummary};

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
    pub(crate) optimizer: OpaqueOptimizer,
    pub(crate) learning_rate: LearningRate,
    pub(crate) scheduler: Box<dyn Scheduler>,
    pub(crate) sampler: Box<dyn MixtureSampler>,
    pub(crate) loss: Box<dyn SissLoss<D>>,
    pub(crate) clipper: Box<dyn GradientClipper>,
    pub(crate) observers: Vec<Box<dyn Observer>>,
    pub(crate) config: TrainerConfig,
    pub(crate) step: u64,
    pub(crate) model_is_checked: bool,
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
    /// [`Error::NonFiniteData`] for a batch with NaN or infinities, [`Error::InvalidSetting`] for one on another
    /// device, [`Error::ShapeMismatch`] if the model's output has another shape than its input. In the first step
    /// [`Error::NoTrainableParameters`], [`Error::StochasticModel`], [`Error::BatchDependentModel`] for a model that
    /// cannot be trained so. [`Error::Observer`] after the step. Model and optimiser are as before but for the last.
    pub fn step(&mut self, batch: UnlearningBatch<D, M::Condition>) -> Result<StepReport> {
        let draws = self.draw(&batch)?;
        self.step_with(&batch, &draws)
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
        self.optimise(gradients, batch)
    }

    /// The draws of the next step, a function of the seed and the step's number.
    ///
    /// # Errors
    /// If the mixture sampler breaks its contract.
    pub fn draw(&self, batch: &UnlearningBatch<D, M::Condition>) -> Result<Draws<D>> {
        let source = DrawSource {
            seed: self.config.seed,
            timestep_sampling: self.config.timestep_sampling,
        };
        let (shape, device) = (batch.retain.dims(), batch.retain.device());
        let range = self.scheduler.time_range();
        source.draw(self.step, shape, range, self.sampler.as_ref(), &device)
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
        let (terms, weights) = self.terms(batch, draws)?;
        let retain = self.side(Side::Retain, &terms.retain, batch)?;
        let forget = self.side(Side::Forget, &terms.forget, batch)?;
        let measured = self.measure(&retain, &forget)?;
        let report = self.report(&terms, weights, measured, batch.batch_size())?;
        Ok(StepGradients {
            retain: retain.gradients,
            forget: forget.gradients,
            report,
        })
    }

    /// The objective's terms, thinned over the whole batch.
    fn terms(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        draws: &Draws<D>,
    ) -> Result<(LossTerms<D>, Sides<WeightSummary>)> {
        self.check_device(batch)?;
        let (retain, forget) = (&batch.retain, &batch.forget);
        let kind = self.config.prediction_type;
        let scheduler = self.scheduler.as_ref();
        let inputs = LossInputs::new(retain, forget, &batch.forget_ids, draws, scheduler, kind)?;
        let mut terms = self.loss.terms(&inputs)?;
        for term in terms.retain.iter().chain(&terms.forget) {
            term.check(batch.retain.dims())?;
        }
        if !self.model_is_checked
            && let Some(term) = terms.retain.as_ref().or(terms.forget.as_ref())
        {
            check_model(&self.model, batch, term)?;
            self.model_is_checked = true;
        }
        let weights = Sides {
            retain: terms.retain.as_ref().map(WeightSummary::of),
            forget: terms.forget.as_ref().map(WeightSummary::of),
        };
        terms.thin(self.config.thin_below, draws.thinning_uniform);
        Ok((terms, weights))
    }

    fn side(
        &self,
        side: Side,
        term: &Option<LossTerm<D>>,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<SideGradient> {
        let Some(term) = term else {
            return Ok(SideGradient::default());
        };
        let batch_size = batch.batch_size();
        let micro_batch = self.config.micro_batch_size.unwrap_or(batch_size);
        let condition = batch.condition(side);
        side_gradient(&self.model, term, condition, batch_size, micro_batch)
    }

    /// Brings losses and norms to the host, in one read.
    fn measure(&self, retain: &SideGradient, forget: &SideGradient) -> Result<Measured> {
        let products = gradient_products(&self.model, &retain.gradients, &forget.gradients);
        let has_gradient = products.is_some();
        let losses = retain.losses.iter().chain(&forget.losses).cloned();
        let parts: Vec<Tensor<1>> = losses.chain(products).collect();
        if parts.is_empty() {
            return Ok(Measured::default());
        }
        let mut losses = read_f32(Tensor::cat(parts, 0), "losses and gradient norms")?;
        let products = losses.split_off(losses.len() - if has_gradient { 3 } else { 0 });
        let product = |index: usize| products.get(index).copied().map_or(0.0, f64::from);
        Ok(Measured {
            losses,
            norms: GradientNorms {
                retain: product(0).sqrt(),
                forget: product(1).sqrt(),
                inner_product: product(2),
            },
        })
    }

    fn report(
        &mut self,
        terms: &LossTerms<D>,
        weights: Sides<WeightSummary>,
        Measured { losses, norms }: Measured,
        batch_size: usize,
    ) -> Result<StepReport> {
        let learning_rate = self.learning_rate.at(self.step)?.base();
        let finite = norms.is_finite() && losses.iter().all(|loss| loss.is_finite());
        let coefficients = if finite {
            self.clipper.coefficients(&norms)?
        } else {
            Coefficients {
                retain: 0.0,
                forget: 0.0,
            }
        };
        let combined_norm = norms.combined(coefficients);
        let applied = finite && coefficients.is_finite() && combined_norm.is_finite();
        let (retain_rows, _) = row_counts(terms);
        let (retain_losses, forget_losses) = losses.split_at(retain_rows);
        let term = |term: &Option<LossTerm<D>>, weights: Option<WeightSummary>, losses| {
            Some(TermReport::new(
                term.as_ref()?,
                weights?,
                losses,
                batch_size,
            ))
        };
        Ok(StepReport {
            step: self.step,
            outcome: if applied {
                StepOutcome::Applied
            } else {
                StepOutcome::SkippedNonFinite
            },
            batch_size,
            retain: term(&terms.retain, weights.retain, retain_losses),
            forget: term(&terms.forget, weights.forget, forget_losses),
            norms,
            coefficients,
            combined_norm,
            clip_factor: self.clip_factor(combined_norm),
            learning_rate,
        })
    }

    /// The global clip: `min(1, max_grad_norm / ‖g‖)`.
    fn clip_factor(&self, combined_norm: f64) -> f64 {
        match self.config.max_grad_norm {
            Some(limit) if combined_norm > limit => limit / combined_norm,
            _ => 1.0,
        }
    }

    /// Applies the combined gradient, or leaves everything as it is where a number is not finite.
    fn optimise(
        &mut self,
        gradients: StepGradients,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<StepReport> {
        let report = gradients.report.clone();
        match report.outcome {
            StepOutcome::SkippedNonFinite => batch.check_finite()?,
            StepOutcome::Applied => {
                let combined = gradients.combine(&self.model, report.clip_factor);
                // A clone shares the parameters: should the optimiser panic, the trainer still holds its model.
                let model = self.model.clone();
                let rates = self.learning_rate.at(self.step)?.clone();
                self.model = self.optimizer.0.step(rates, model, combined);
            }
        }
        self.step += 1;
        for observer in &mut self.observers {
            observer.observe(&report)?;
        }
        Ok(report)
    }

    fn check_device(&self, batch: &UnlearningBatch<D, M::Condition>) -> Result<()> {
        let device = batch.retain.device();
        match self.model.devices().first() {
            Some(model) if *model != device => Err(Error::InvalidSetting {
                what: format!("the batch is on {device:?}, the model on {model:?}"),
                remedy: "move the batch to the model's device",
            }),
            _ => Ok(()),
        }
    }

    /// The model as it is now, on its training device. For sampling use [`Module::valid`] of it.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model, plain again: without autodiff.
    pub fn into_model(self) -> M {
        self.model.valid()
    }

    /// Number of the next step: how many have been taken, skipped ones included.
    pub fn next_step(&self) -> u64 {
        self.step
    }

    /// The settings.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// What the model predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.config.prediction_type
    }

    /// The forward process.
    pub fn scheduler(&self) -> &dyn Scheduler {
        self.scheduler.as_ref()
    }
}

/// Something for either side.
struct Sides<T> {
    retain: Option<T>,
    forget: Option<T>,
}

/// What one read brings from the device: losses of the retain rows, then of the forget rows, and the norms.
#[derive(Default)]
struct Measured {
    losses: Vec<f32>,
    norms: GradientNorms,
}

fn row_counts<const D: usize>(terms: &LossTerms<D>) -> (usize, usize) {
    let count = |term: &Option<LossTerm<D>>| term.as_ref().map_or(0, |term| term.rows.len());
    (count(&terms.retain), count(&terms.forget))
}
