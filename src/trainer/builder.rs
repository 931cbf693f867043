//! Setting up a trainer: defaults, and the refusal of settings that contradict each other.

use std::fmt;

use burn::module::{ParamGroup, ParamGroupError};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::Tensor;

use super::SissTrainer;
use super::config::TrainerConfig;
use super::ema::{MovingAverage, check_decay};
use super::frozen::{checkpoint_gradients, freeze_outside};
use super::learning_rate::LearningRate;
use super::method::Method;
use super::optimizer::OpaqueOptimizer;
use super::settings::Settings;
use crate::clipper::GradientClipper;
use crate::data::Side;
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{FixedAllocation, MixtureSampler, TimestepSampling};
use crate::error::{Error, Result, check_positive, check_prediction_type, check_range};
use crate::objective::SissLoss;
use crate::observer::{Diagnosis, Observer};
use crate::process::{PredictionType, Scheduler};
use crate::steering::Steering;

/// Collects a trainer's settings. Made by [`SissTrainer::builder`].
///
/// Unset, they are: SISS with `λ = ½` in fixed allocation, [`FractionOfRetain`](crate::clipper::FractionOfRetain) 10 %,
/// AdamW (`β` 0.95 and 0.999, `ε` 1e-8, weight decay 1e-6, the paper's) at 5e-5, and those of [`TrainerConfig`].
pub struct SissTrainerBuilder<M: Denoiser<D>, const D: usize> {
    model: M,
    scheduler: Box<dyn Scheduler>,
    method: Method,
    loss: Option<Box<dyn SissLoss<D, M::Condition>>>,
    sampler: Option<Box<dyn MixtureSampler>>,
    clipper: Option<Box<dyn GradientClipper>>,
    teacher: Option<M>,
    optimizer: Option<ModuleOptimizer>,
    learning_rate: ModuleLrScheduler,
    steering: Option<Steering>,
    observers: Vec<Box<dyn Observer>>,
    retained: Option<Tensor<D>>,
    trainable: Option<ParamGroup>,
    config: TrainerConfig,
}

impl<M: Denoiser<D>, const D: usize> fmt::Debug for SissTrainerBuilder<M, D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SissTrainerBuilder")
            .field("method", &self.method)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<M: Denoiser<D>, const D: usize> SissTrainerBuilder<M, D> {
    pub(crate) fn new(model: M, scheduler: Box<dyn Scheduler>) -> Self {
        Self {
            model,
            scheduler,
            method: Method::default(),
            loss: None,
            sampler: None,
            clipper: None,
            teacher: None,
            optimizer: None,
            learning_rate: 5e-5.into(),
            steering: None,
            observers: Vec::new(),
            retained: None,
            trainable: None,
            config: TrainerConfig::default(),
        }
    }

    /// Objective and clipper of a published method; [`loss`](Self::loss) and [`clipper`](Self::clipper) override it.
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// The whole retain set, `[n, …]`, for a method that looks for points in it ([`Method::ReTrack`]). Shared, not copied.
    pub fn retained_points(mut self, retained: Tensor<D>) -> Self {
        self.retained = Some(retained);
        self
    }

    /// The objective.
    pub fn loss(mut self, loss: impl SissLoss<D, M::Condition> + 'static) -> Self {
        self.loss = Some(Box::new(loss));
        self
    }

    /// How rows are allocated to the two sides of the mixture, and `λ`.
    pub fn sampler(mut self, sampler: impl MixtureSampler + 'static) -> Self {
        self.sampler = Some(Box::new(sampler));
        self
    }

    /// How the two gradients are weighed.
    pub fn clipper(mut self, clipper: impl GradientClipper + 'static) -> Self {
        self.clipper = Some(Box::new(clipper));
        self
    }

    /// Forgetting that stops at a level for each point and timestep, such as the loss that a retrained model would have
    /// ([`Counterfactual`](crate::steering::Counterfactual)): for every method with a forget term.
    ///
    /// Unless another clipper is set, a method whose clipper is [`FractionOfRetain`](crate::clipper::FractionOfRetain) 10 % takes
    /// 30 %, a share that shrinks as the levels are reached.
    pub fn steering(mut self, steering: Steering) -> Self {
        self.steering = Some(steering);
        self
    }

    /// The frozen model that an objective asks ([`LossInputs::teacher`](crate::objective::LossInputs::teacher)),
    /// in place of the model before the run. Ignored by objectives without a teacher.
    pub fn teacher(mut self, teacher: M) -> Self {
        self.teacher = Some(teacher);
        self
    }

    /// Any burn optimiser: `AdamWConfig::new().init()`, `SgdConfig::new().init()`, … Leave its own gradient
    /// clipping off: burn clips each tensor by itself, [`max_grad_norm`](Self::max_grad_norm) the whole gradient.
    pub fn optimizer(mut self, optimizer: ModuleOptimizer) -> Self {
        self.optimizer = Some(optimizer);
        self
    }

    /// A number for the same learning rate in every step, or any of burn's schedulers (`….init()?`), also with
    /// rates of their own for groups of parameters.
    pub fn learning_rate(mut self, learning_rate: impl Into<ModuleLrScheduler>) -> Self {
        self.learning_rate = learning_rate.into();
        self
    }

    /// Called after each step, in the order they were added.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Replaces all plain settings.
    pub fn config(mut self, config: TrainerConfig) -> Self {
        self.config = config;
        self
    }

    /// Key of all draws of the run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// How timesteps are drawn.
    pub fn timestep_sampling(mut self, timestep_sampling: TimestepSampling) -> Self {
        self.config.timestep_sampling = timestep_sampling;
        self
    }

    /// Forgets at the timesteps from `low` up to, but not including, `high` alone, while the retained points are learnt at all that are
    /// drawn: a [`Window`](TimestepSampling::Window) would leave the others to themselves.
    pub fn forget_within(mut self, low: f64, high: f64) -> Self {
        self.config.forget_within = Some([low, high]);
        self
    }

    /// `τ`: rows that weigh less are thinned without bias, see [`survivors`](crate::objective::survivors). 0 is exact.
    ///
    /// It applies to every objective: at `τ = 2` one whose weights are all 1 runs half its rows, each with weight 2. A `τ`
    /// above `1/λ` and `1/(1−λ)` only adds variance.
    pub fn thin_below(mut self, thin_below: f64) -> Self {
        self.config.thin_below = thin_below;
        self
    }

    /// Rows run through the model at a time. Changes memory and nothing else.
    pub fn micro_batch_size(mut self, micro_batch_size: usize) -> Self {
        self.config.micro_batch_size = Some(micro_batch_size);
        self
    }

    /// Global clip of the combined gradient, `None` for no clip.
    pub fn max_grad_norm(mut self, max_grad_norm: Option<f64>) -> Self {
        self.config.max_grad_norm = max_grad_norm;
        self
    }

    /// Keeps a moving average of the weights beside the weights themselves, see [`SissTrainer::ema_model`].
    ///
    /// `decay` is the largest: at the `k`-th step it is at most `(1 + k) / (10 + k)`, so that a short run is not an average over the model before.
    pub fn ema(mut self, decay: f64) -> Self {
        self.config.ema_decay = Some(decay);
        self
    }

    /// Computes cheap operations again in the backward pass instead of storing their results: less memory for more time.
    /// burn stores convolutions and matrix products all the same.
    pub fn gradient_checkpointing(mut self, enabled: bool) -> Self {
        self.config.gradient_checkpointing = enabled;
        self
    }

    /// A step that is not finite changes nothing; this many in a row are an error
    /// ([`Error::TooManySkippedSteps`]), for the run will not recover by itself.
    pub fn max_skipped_steps(mut self, steps: u64) -> Self {
        self.config.max_skipped_steps = steps;
        self
    }

    /// Trains the parameters of a group alone. Paths are the names of the model's fields joined by dots, and a group
    /// matches them by a piece, as `ParamGroup::from_predicate("attentions")`, by the whole, or by id.
    /// For a regular expression: [`train_only_matching`](Self::train_only_matching).
    pub fn train_only(mut self, group: ParamGroup) -> Self {
        self.trainable = Some(group);
        self
    }

    /// Trains the parameters alone whose path a regular expression matches, anywhere in it unless anchored.
    ///
    /// ```
    /// # use burn::module::Module;
    /// # use burn::nn::{Linear, LinearConfig};
    /// # use burn::tensor::{Device, Tensor};
    /// # use siss::{DdpmScheduler, Denoiser, SissTrainer};
    /// # #[derive(Module, Debug)]
    /// # struct Model { encoder: Linear, decoder: Linear }
    /// # impl Denoiser<2> for Model {
    /// #     type Condition = ();
    /// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
    /// #         self.decoder.forward(self.encoder.forward(noisy))
    /// #     }
    /// # }
    /// fn trainer(model: Model) -> siss::Result<SissTrainer<Model, 2>> {
    ///     SissTrainer::builder(model, DdpmScheduler::linear(1000)?)
    ///         .train_only_matching(r"^decoder\.")?
    ///         .build()
    /// }
    /// # let layer = LinearConfig::new(3, 3).init(&Device::flex());
    /// # assert!(trainer(Model { encoder: layer.clone(), decoder: LinearConfig::new(3, 3).init(&Device::flex()) }).is_ok());
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidPattern`].
    pub fn train_only_matching(self, pattern: &str) -> Result<Self> {
        let invalid = |ParamGroupError::InvalidPatternError(reason)| Error::InvalidPattern {
            pattern: pattern.into(),
            reason,
        };
        Ok(self.train_only(ParamGroup::from_regex(pattern).map_err(invalid)?))
    }

    /// Checks the settings and switches the model to training.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range; [`Error::IncompatibleClipper`] a clipper that needs a
    /// gradient which the objective does not have; [`Error::TimestepOutOfRange`] timesteps that the scheduler does not have;
    /// [`Error::PredictionTypeDiffers`] a scheduler, or levels, of a model that predicts something else;
    /// [`Error::InvalidSetting`] a group without a trainable parameter; [`Error::MissingPart`] a method without its
    /// retained points or groups.
    pub fn build(self) -> Result<SissTrainer<M, D>> {
        check_config(&self.config)?;
        let prediction_type = self.model.prediction_type();
        let stated = self.scheduler.prediction_type();
        check_prediction_type(prediction_type, "the scheduler", stated)?;
        let time_range = self.scheduler.time_range();
        self.config.timestep_sampling.check(time_range)?;
        if let Some([low, high]) = self.config.forget_within {
            TimestepSampling::Window { low, high }.check(time_range)?;
        }
        let sampler = match self.sampler {
            Some(sampler) => sampler,
            None => Box::new(FixedAllocation::new(0.5)?),
        };
        let loss = match self.loss {
            Some(loss) => loss,
            None => self.method.loss(self.retained.as_ref())?,
        };
        let clipper = self.clipper.unwrap_or_else(|| match &self.steering {
            Some(_) => self.method.steered_clipper(),
            None => self.method.clipper(),
        });
        check_clipper(loss.as_ref(), clipper.as_ref())?;
        if loss.ignores_condition() && !M::Condition::IS_EMPTY {
            return Err(Error::MissingPart {
                owner: loss.name().into(),
                missing: "groups of points, which a model with a condition needs: a point of another class or prompt explains nothing",
                remedy: "say which points belong together with `ReTrack::with_groups`, or give neighbours with `ReTrack::from_neighbours`",
            });
        }
        if loss.uses_mixture() {
            check_mixture(sampler.as_ref(), loss.as_ref(), clipper.as_ref())?;
        }
        if let Some(steering) = &self.steering {
            check_steering(steering, loss.as_ref(), prediction_type)?;
            let sampling = self.config.timestep_sampling;
            steering
                .levels()
                .check_process(self.scheduler.as_ref(), sampling)?;
        }
        let teacher = loss.uses_teacher().then(|| {
            let teacher = self.teacher.unwrap_or_else(|| self.model.clone());
            teacher.valid()
        });
        let (mut model, mut frozen) = (self.model.train(), Vec::new());
        if let Some(group) = &self.trainable {
            (model, frozen) = freeze_outside(model, group)?;
        }
        if self.config.gradient_checkpointing {
            model = checkpoint_gradients(model);
        }
        let ema = self.config.ema_decay;
        let mut settings = Settings::default();
        settings.add_config(&self.config)?;
        settings.add_process(self.scheduler.as_ref());
        settings.add_prediction_type(prediction_type)?;
        settings.add("sampler", sampler.settings());
        settings.add("objective", loss.settings());
        settings.add("clipper", clipper.settings());
        settings.add_steering(self.steering.as_ref())?;
        Ok(SissTrainer {
            settings,
            ema: ema.map(|decay| MovingAverage::new(&model, decay)),
            model,
            teacher,
            frozen,
            optimizer: OpaqueOptimizer(self.optimizer.unwrap_or_else(default_optimizer)),
            learning_rate: LearningRate::new(self.learning_rate)?,
            scheduler: self.scheduler,
            sampler,
            loss,
            clipper,
            steering: self.steering,
            diagnosis: Diagnosis::default(),
            observers: self.observers,
            config: self.config,
            step: 0,
            skipped_in_a_row: 0,
            model_is_checked: false,
        })
    }
}

/// AdamW as the paper runs it; every number set, for burn's own defaults differ from PyTorch's.
fn default_optimizer() -> ModuleOptimizer {
    AdamWConfig::new()
        .with_beta_1(0.95)
        .with_beta_2(0.999)
        .with_epsilon(1e-8)
        .with_weight_decay(1e-6)
        .init()
}

fn check_config(config: &TrainerConfig) -> Result<()> {
    let thin_below = config.thin_below;
    check_range(
        "thin_below",
        thin_below,
        thin_below >= 0.0,
        "a finite number from 0 up",
    )?;
    if let Some(limit) = config.max_grad_norm {
        check_positive("max_grad_norm", limit)?;
    }
    if let Some(decay) = config.ema_decay {
        check_decay(decay)?;
    }
    if let Some(rows) = config.micro_batch_size {
        check_range("micro_batch_size", rows as f64, rows >= 1, "at least 1")?;
    }
    let skipped = config.max_skipped_steps;
    check_range(
        "max_skipped_steps",
        skipped as f64,
        skipped >= 1,
        "at least 1",
    )?;
    Ok(())
}

fn check_steering<const D: usize, C>(
    steering: &Steering,
    loss: &dyn SissLoss<D, C>,
    prediction_type: PredictionType,
) -> Result<()> {
    if !loss.has_term(Side::Forget) {
        return Err(Error::InvalidSetting {
            what: format!("{} has no forget term to steer", loss.name()),
            remedy: "remove the steering, or use an objective that forgets",
        });
    }
    let stated = steering.levels().prediction_type();
    check_prediction_type(prediction_type, "the table of levels", stated)
}

/// At the ends of `λ` one side of a mixture is never drawn from.
fn check_mixture<const D: usize, C>(
    sampler: &dyn MixtureSampler,
    loss: &dyn SissLoss<D, C>,
    clipper: &dyn GradientClipper,
) -> Result<()> {
    let forget_prob = sampler.forget_prob();
    let name = loss.name();
    if forget_prob == 0.0 {
        return Err(Error::InvalidSetting {
            what: format!(
                "λ is 0, so {name} never draws from a forgotten point and forgets almost nothing"
            ),
            remedy: "use a λ above 0, such as ½; to train on retained points alone, use NaiveDeletion",
        });
    }
    if forget_prob == 1.0 && clipper.needs(Side::Retain) {
        return Err(Error::InvalidSetting {
            what: format!(
                "λ is 1, so {name} never draws from a retained point and has almost no retain gradient, on which {} depends",
                clipper.name()
            ),
            remedy: "use a λ below 1, such as ½, or RescaleToNorm, ClipToNorm or ConstantScale",
        });
    }
    Ok(())
}

fn check_clipper<const D: usize, C>(
    loss: &dyn SissLoss<D, C>,
    clipper: &dyn GradientClipper,
) -> Result<()> {
    for (side, remedy) in [
        (Side::Retain, "RescaleToNorm, ClipToNorm or ConstantScale"),
        (
            Side::Forget,
            "FractionOfRetain, or another that works without",
        ),
    ] {
        if clipper.needs(side) && !loss.has_term(side) {
            return Err(Error::IncompatibleClipper {
                clipper: clipper.name().into(),
                loss: loss.name().into(),
                missing: side,
                remedy,
            });
        }
    }
    Ok(())
}
