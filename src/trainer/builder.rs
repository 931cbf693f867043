//! Setting up a trainer: defaults, and the refusal of settings that contradict each other.

use std::fmt;

use burn::module::{ParamGroup, ParamGroupError};
use burn::optim::ModuleOptimizer;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::tensor::{Device, Tensor};

use super::SissTrainer;
use super::config::TrainerConfig;
use super::ema::{MovingAverage, check_decay};
use super::frozen::{checkpoint_gradients, freeze_outside};
use super::learning_rate::LearningRate;
use super::master::MasterWeights;
use super::method::Method;
use super::offloaded::Offloaded;
use super::optimizer::{FusedAdamW, OpaqueOptimizer};
use super::replicas::{Reduce, Replicas, SumOnFirst};
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
/// Defaults: SISS with `λ = ½` in fixed allocation,
/// [`FractionOfRetain`](crate::clipper::FractionOfRetain) 10 %, AdamW with the paper's settings
/// (`β` 0.95 and 0.999, `ε` 1e-8, weight decay 1e-6) at 5e-5, and those of [`TrainerConfig`].
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
    replicas: Vec<Device>,
    reduce: Box<dyn Reduce>,
    ema_device: Option<Device>,
    optimizer_state_device: Option<Device>,
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
            replicas: Vec::new(),
            reduce: Box::new(SumOnFirst),
            ema_device: None,
            optimizer_state_device: None,
            config: TrainerConfig::default(),
        }
    }

    /// Objective and clipper of a published method; [`loss`](Self::loss) and
    /// [`clipper`](Self::clipper) override them.
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// The whole retain set, `[n, …]`, for a method that searches it for points
    /// ([`Method::ReTrack`]).
    ///
    /// The tensor is shared, not copied.
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

    /// How the two gradients are weighted.
    pub fn clipper(mut self, clipper: impl GradientClipper + 'static) -> Self {
        self.clipper = Some(Box::new(clipper));
        self
    }

    /// Stops forgetting at a level for each point and timestep, such as the loss that a retrained
    /// model would have ([`Counterfactual`](crate::steering::Counterfactual)).
    ///
    /// It works with every method that has a forget term.
    ///
    /// For methods whose clipper is [`FractionOfRetain`](crate::clipper::FractionOfRetain) 10 %,
    /// the default rises to 30 %, a share that shrinks as the levels are reached. A clipper that
    /// you set is not changed.
    pub fn steering(mut self, steering: Steering) -> Self {
        self.steering = Some(steering);
        self
    }

    /// The frozen model that an objective queries
    /// ([`LossInputs::teacher`](crate::objective::LossInputs::teacher)), instead of the model
    /// before the run.
    ///
    /// Objectives without a teacher ignore it.
    pub fn teacher(mut self, teacher: M) -> Self {
        self.teacher = Some(teacher);
        self
    }

    /// Runs part of each step's rows on further devices, each of which holds a copy of the model.
    ///
    /// The step is that of one device up to the order of additions: draws, weights and thinning
    /// are those of the whole batch. Norms, clipper and optimiser run on the model's device. In
    /// each step the parameters go to every device, and the gradients of both sides come back.
    ///
    /// The batch stays on the model's device. A run may be resumed with other devices.
    ///
    /// # Example
    /// ```
    /// # use burn::nn::{Linear, LinearConfig};
    /// # use burn::tensor::{Device, Tensor};
    /// # use siss::{DdpmScheduler, FnDenoiser, SissTrainer, UnlearningBatch};
    /// # let device = Device::flex();
    /// # let layer = LinearConfig::new(3, 3).init(&device);
    /// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy));
    /// # let points = |value: f64| Tensor::<2>::full([4, 3], value, &device);
    /// // The model is on the first device: here two halves of the CPU; elsewhere two GPUs.
    /// let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?)
    ///     .replicas([Device::flex()])
    ///     .build()?;
    /// trainer.step(UnlearningBatch::new(points(0.1), points(0.9))?)?;
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn replicas(mut self, devices: impl IntoIterator<Item = Device>) -> Self {
        self.replicas = devices.into_iter().collect();
        self
    }

    /// How the gradients of several devices are added: [`SumOnFirst`](super::SumOnFirst) by
    /// default.
    pub fn reduce(mut self, reduce: impl Reduce + 'static) -> Self {
        self.reduce = Box::new(reduce);
        self
    }

    /// Any burn optimiser: `AdamWConfig::new().init()`, `SgdConfig::new().init()`, …
    ///
    /// Leave its own gradient clipping off: burn clips each tensor separately, while
    /// [`max_grad_norm`](Self::max_grad_norm) clips the whole gradient.
    pub fn optimizer(mut self, optimizer: ModuleOptimizer) -> Self {
        self.optimizer = Some(optimizer);
        self
    }

    /// A number for a constant learning rate, or any of burn's schedulers (`….init()?`), also with
    /// separate rates for groups of parameters.
    pub fn learning_rate(mut self, learning_rate: impl Into<ModuleLrScheduler>) -> Self {
        self.learning_rate = learning_rate.into();
        self
    }

    /// Adds an observer; observers are called after each step, in the order they were added.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Replaces all plain settings.
    pub fn config(mut self, config: TrainerConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the key of all draws of the run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// How timesteps are drawn.
    pub fn timestep_sampling(mut self, timestep_sampling: TimestepSampling) -> Self {
        self.config.timestep_sampling = timestep_sampling;
        self
    }

    /// Forgets only at the timesteps from `low` up to, but not including, `high`, while retained
    /// points are learnt at all timesteps that are drawn.
    ///
    /// A [`Window`](TimestepSampling::Window) would leave the other timesteps untrained.
    pub fn forget_within(mut self, low: f64, high: f64) -> Self {
        self.config.forget_within = Some([low, high]);
        self
    }

    /// Sets `τ`: rows with a smaller weight are thinned without bias, see
    /// [`survivors`](crate::objective::survivors). 0 is exact.
    ///
    /// It applies to every objective: with `τ = 2`, an objective whose weights are all 1 runs half
    /// its rows, each with weight 2. A `τ` above `1/λ` and `1/(1−λ)` only adds variance.
    pub fn thin_below(mut self, thin_below: f64) -> Self {
        self.config.thin_below = thin_below;
        self
    }

    /// Sets how many rows run through the model at a time. It changes only memory.
    pub fn micro_batch_size(mut self, micro_batch_size: usize) -> Self {
        self.config.micro_batch_size = Some(micro_batch_size);
        self
    }

    /// Global clip of the combined gradient, `None` for no clip.
    pub fn max_grad_norm(mut self, max_grad_norm: Option<f64>) -> Self {
        self.config.max_grad_norm = max_grad_norm;
        self
    }

    /// Keeps a moving average of the weights in addition to the weights, see
    /// [`SissTrainer::ema_model`].
    ///
    /// `decay` is an upper limit: at the `k`-th step the decay is at most `(1 + k) / (10 + k)`, so
    /// that the average of a short run does not include much of the original model.
    pub fn ema(mut self, decay: f64) -> Self {
        self.config.ema_decay = Some(decay);
        self
    }

    /// Keeps the [moving average](Self::ema) on another device, in most cases the host's
    /// (`Device::flex()`).
    ///
    /// It saves 4 bytes per parameter on the model's device, and every step copies the parameters.
    /// [`SissTrainer::ema_model`] is on that device. A run may be resumed with another.
    pub fn ema_device(mut self, device: Device) -> Self {
        self.ema_device = Some(device);
        self
    }

    /// Keeps the optimiser's state on another device between the steps, in most cases the host's
    /// (`Device::flex()`).
    ///
    /// It saves 8 bytes per trained parameter on the model's device, or 12 with
    /// [`master_weights`](Self::master_weights), except for those of the largest parameter, and
    /// every step copies them there and back. The update runs on the model's device, and the run
    /// is the same to the bit. It may be resumed with another device, or without.
    ///
    /// An [`optimizer`](Self::optimizer) of your own is made so by
    /// [`Offloaded`](super::Offloaded), and refused here.
    ///
    /// # Example
    /// ```
    /// # use burn::nn::{Linear, LinearConfig};
    /// # use burn::tensor::{Device, Tensor};
    /// # use siss::{DdpmScheduler, FnDenoiser, SissTrainer, UnlearningBatch};
    /// # let device = Device::flex();
    /// # let layer = LinearConfig::new(3, 3).init(&device);
    /// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy));
    /// # let points = |value: f64| Tensor::<2>::full([4, 3], value, &device);
    /// let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?)
    ///     .optimizer_state_device(Device::flex())
    ///     .build()?;
    /// trainer.step(UnlearningBatch::new(points(0.1), points(0.9))?)?;
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn optimizer_state_device(mut self, device: Device) -> Self {
        self.optimizer_state_device = Some(device);
        self
    }

    /// Updates a copy in f32 of the parameters that are in bf16 or f16, and rounds it to them.
    ///
    /// Otherwise a step of less than a part in five hundred of a number in bf16 is lost, and the
    /// optimiser's state has the parameters' precision. It costs 8 bytes per such parameter: 4 for
    /// the copy, 4 for two moments in f32 in place of 16 bits. Parameters of other types are
    /// trained as without it.
    ///
    /// The copy belongs to the optimiser's state: it is in checkpoints, and on
    /// [`optimizer_state_device`](Self::optimizer_state_device). An
    /// [`optimizer`](Self::optimizer) of your own is made so by
    /// [`MasterWeights`](super::MasterWeights), and refused here.
    pub fn master_weights(mut self, enabled: bool) -> Self {
        self.config.master_weights = enabled;
        self
    }

    /// Recomputes cheap operations in the backward pass instead of storing their results: less
    /// memory for more time.
    ///
    /// burn still stores the results of convolutions and matrix products.
    pub fn gradient_checkpointing(mut self, enabled: bool) -> Self {
        self.config.gradient_checkpointing = enabled;
        self
    }

    /// Sets how many non-finite steps in a row end the run with [`Error::TooManySkippedSteps`].
    ///
    /// Such a step changes nothing, and after this many the run will not recover by itself.
    pub fn max_skipped_steps(mut self, steps: u64) -> Self {
        self.config.max_skipped_steps = steps;
        self
    }

    /// Trains only the parameters of a group.
    ///
    /// Paths are the names of the model's fields joined by dots. A group matches a part of a path,
    /// as `ParamGroup::from_predicate("attentions")`, a whole path, or an id. For a regular
    /// expression: [`train_only_matching`](Self::train_only_matching).
    pub fn train_only(mut self, group: ParamGroup) -> Self {
        self.trainable = Some(group);
        self
    }

    /// Trains only the parameters whose path a regular expression matches, anywhere in the path
    /// unless anchored.
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
    /// - [`Error::OutOfRange`] for a setting outside its range
    /// - [`Error::IncompatibleClipper`] for a clipper that needs a gradient which the objective
    ///   does not have
    /// - [`Error::TimestepOutOfRange`] for timesteps that the scheduler does not have
    /// - [`Error::PredictionTypeDiffers`] for a scheduler, levels or a teacher of another
    ///   prediction type than the model's
    /// - [`Error::InvalidSetting`] for a group without a trainable parameter, a `λ` that leaves
    ///   out a side, steering without a forget term, levels of another process or for other
    ///   timesteps, a clipper that weighs by a retain gradient which the objective starts without,
    ///   and a place or a precision for the state of an optimiser that was made already
    /// - [`Error::MissingPart`] for a method without its retained points or groups
    pub fn build(mut self) -> Result<SissTrainer<M, D>> {
        check_config(&self.config)?;
        self.check_process()?;
        let optimizer = self.take_optimizer()?;
        let parts = self.take_parts()?;
        self.check_parts(&parts)?;
        let settings = self.settings(&parts)?;

        let teacher = parts.loss.uses_teacher().then(|| {
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
        let (ema, average_on) = (self.config.ema_decay, self.ema_device);
        let (devices, reduce) = (self.replicas, self.reduce);
        let replicas = (!devices.is_empty()).then_some(Replicas { devices, reduce });
        Ok(SissTrainer {
            settings,
            ema: ema.map(|decay| MovingAverage::new(&model, decay, average_on)),
            model,
            teacher,
            frozen,
            optimizer: OpaqueOptimizer::new(optimizer),
            learning_rate: LearningRate::new(self.learning_rate)?,
            scheduler: self.scheduler,
            sampler: parts.sampler,
            loss: parts.loss,
            clipper: parts.clipper,
            replicas,
            steering: self.steering,
            diagnosis: Diagnosis::default(),
            observers: self.observers,
            config: self.config,
            step: 0,
            skipped_in_a_row: 0,
            model_is_checked: false,
        })
    }

    /// Whether the process fits the model, and the timesteps fit the process.
    fn check_process(&self) -> Result<()> {
        let (predicted, stated) = (
            self.model.prediction_type(),
            self.scheduler.prediction_type(),
        );
        check_prediction_type(predicted, "the scheduler", stated)?;
        let range = self.scheduler.time_range();
        self.config.timestep_sampling.check(range)?;
        match self.config.forget_within {
            Some([low, high]) => TimestepSampling::Window { low, high }.check(range),
            None => Ok(()),
        }
    }

    /// The optimiser that was set, or else the default with its state in the place and precision
    /// that were set.
    fn take_optimizer(&mut self) -> Result<ModuleOptimizer> {
        let (in_f32, device) = (
            self.config.master_weights,
            self.optimizer_state_device.take(),
        );
        if let Some(optimizer) = self.optimizer.take() {
            check_own_optimizer(in_f32, device.as_ref())?;
            return Ok(optimizer);
        }
        let adam = default_optimizer();
        Ok(match (in_f32, device) {
            (false, None) => adam.into(),
            (true, None) => MasterWeights::new(adam).into(),
            (false, Some(device)) => Offloaded::new(adam, device).into(),
            (true, Some(device)) => Offloaded::new(MasterWeights::new(adam), device).into(),
        })
    }

    /// The parts that were set, or else the method's.
    fn take_parts(&mut self) -> Result<Parts<D, M::Condition>> {
        let clipper = self.clipper.take().unwrap_or_else(|| match &self.steering {
            Some(_) => self.method.steered_clipper(),
            None => self.method.clipper(),
        });
        Ok(Parts {
            sampler: match self.sampler.take() {
                Some(sampler) => sampler,
                None => Box::new(FixedAllocation::new(0.5)?),
            },
            loss: match self.loss.take() {
                Some(loss) => loss,
                None => self.method.loss(self.retained.as_ref())?,
            },
            clipper,
        })
    }

    fn check_parts(&self, parts: &Parts<D, M::Condition>) -> Result<()> {
        let (loss, clipper) = (parts.loss.as_ref(), parts.clipper.as_ref());
        check_clipper(loss, clipper)?;
        let taught = self.teacher.as_ref().map(Denoiser::prediction_type);
        check_prediction_type(self.model.prediction_type(), "the teacher", taught)?;
        if loss.ignores_condition() && !M::Condition::IS_EMPTY {
            return Err(Error::MissingPart {
                owner: loss.name().into(),
                missing: "groups of points; a model with a condition needs them, because points of another class or prompt are not neighbours",
                remedy: "say which points belong together with `ReTrack::with_groups`, or give neighbours with `ReTrack::from_neighbours`",
            });
        }
        if loss.uses_mixture() {
            check_mixture(parts.sampler.as_ref(), loss, clipper)?;
        }
        let Some(steering) = &self.steering else {
            return Ok(());
        };
        check_steering(steering, loss, self.model.prediction_type())?;
        let (levels, sampling) = (steering.levels(), self.config.timestep_sampling);
        levels.check_process(self.scheduler.as_ref(), sampling)
    }

    /// What shapes the run, as far as the builder knows it.
    fn settings(&self, parts: &Parts<D, M::Condition>) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.add_config(&self.config)?;
        settings.add_process(self.scheduler.as_ref());
        settings.add_prediction_type(self.model.prediction_type())?;
        settings.add("sampler", parts.sampler.settings());
        settings.add("objective", parts.loss.settings());
        settings.add("clipper", parts.clipper.settings());
        settings.add_steering(self.steering.as_ref())?;
        Ok(settings)
    }
}

/// The replaceable parts of a step.
struct Parts<const D: usize, C> {
    sampler: Box<dyn MixtureSampler>,
    loss: Box<dyn SissLoss<D, C>>,
    clipper: Box<dyn GradientClipper>,
}

/// AdamW with the paper's settings; all are set, because burn's own defaults differ from PyTorch's.
fn default_optimizer() -> FusedAdamW {
    FusedAdamW::new([0.95, 0.999], 1e-8, 1e-6)
}

/// Refuses what an optimiser of the user's own would have to be made with: burn's `ModuleOptimizer`
/// shows none of the optimisers in it.
fn check_own_optimizer(in_f32: bool, device: Option<&Device>) -> Result<()> {
    if let Some(device) = device {
        return Err(Error::InvalidSetting {
            what: format!(
                "optimizer_state_device is {device:?}, but the optimiser is one of your own, whose state the trainer cannot move"
            ),
            remedy: "give `Offloaded::new(optimizer, device).into()` as the optimiser, and no optimizer_state_device",
        });
    }
    if in_f32 {
        return Err(Error::InvalidSetting {
            what: "master_weights is true, but the optimiser is one of your own, which the trainer cannot give a copy of the parameters".into(),
            remedy: "give `MasterWeights::new(optimizer).into()` as the optimiser, and leave master_weights false",
        });
    }
    Ok(())
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

/// Refuses `λ = 0`, and `λ = 1` with a clipper that needs the retain gradient: one side is never
/// drawn.
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
    if clipper.needs(Side::Retain) && loss.retain_gradient_starts_at_zero() {
        return Err(Error::InvalidSetting {
            what: format!(
                "{} weighs by the retain gradient, which in {} is 0 at first",
                clipper.name(),
                loss.name()
            ),
            remedy: "use the objective's own clipper, or RescaleToNorm, ClipToNorm or ConstantScale (constant:0.05)",
        });
    }
    Ok(())
}
