//! Everything that a trainer needs to go on, and everything that must be as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::manifest::{FORMAT, Manifest, sha256};
use super::store::{NewFile, write_bytes};
use super::tensors::{
    behaviour, check_optimizer, load_model, load_optimizer, save_model, save_optimizer,
};
use crate::builder::{OpaqueOptimizer, TrainerConfig};
use crate::denoiser::Denoiser;
use crate::ema::MovingAverage;
use crate::error::{Error, Result};
use crate::observer::Observer;
use crate::parameters::parameters;
use crate::scheduler::{Scheduler, TimeRange};
use crate::steering::Steering;
use crate::trainer::SissTrainer;

const MODEL: &str = "model.bpk";
const AVERAGE: &str = "ema.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

/// Fields of [`TrainerConfig`] that a resumed run may change: how much memory a step takes, and when a run that goes nowhere is
/// given up. The steps are the same.
const FREE: [&str; 3] = [
    "gradient_checkpointing",
    "max_skipped_steps",
    "micro_batch_size",
];

/// What shapes the run, by name: two runs with the same settings take the same steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    values: BTreeMap<String, Value>,
    /// What fields of the configuration are unless they are set: a version of the crate that does not have a field runs as if it
    /// were that.
    defaults: BTreeMap<String, Value>,
}

impl Settings {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.values.insert(name.into(), value.into());
    }

    pub(super) fn add_all(&mut self, others: &Settings) {
        self.values.extend(others.values.clone());
        self.defaults.extend(others.defaults.clone());
    }

    pub(crate) fn add_config(&mut self, config: &TrainerConfig) -> Result<()> {
        self.values.extend(fields(config)?);
        self.defaults.extend(fields(&TrainerConfig::default())?);
        Ok(())
    }

    /// The forward process by its scales at eleven times, as the device has them: in `f32`, which the last digits of a
    /// platform's mathematics do not reach.
    pub(crate) fn add_process(&mut self, scheduler: &dyn Scheduler) {
        let range = scheduler.time_range();
        let scales = (0..=10_usize).map(|part| {
            let time = match range {
                TimeRange::Discrete { num_timesteps } => {
                    (part * num_timesteps.saturating_sub(1) / 10) as f64
                }
                TimeRange::Continuous { min, max } => min + (max - min) * part as f64 / 10.0,
            };
            let (signal, noise) = (scheduler.signal_scale(time), scheduler.noise_scale(time));
            Value::from(format!("{} {}", signal as f32, noise as f32))
        });
        self.add("scheduler.scales", scales.collect::<Vec<_>>());
        self.add("scheduler.time_range", range.to_string());
    }

    pub(crate) fn add_steering(&mut self, steering: Option<&Steering>) -> Result<()> {
        let Some(steering) = steering else {
            return Ok(());
        };
        let levels = to_json("the levels", steering.levels())?;
        self.add("steering.levels", sha256(levels.to_string().as_bytes()));
        self.add("steering.rule", steering.rule().settings());
        Ok(())
    }

    /// Model, optimiser and learning rate, at the step where the run goes on.
    fn add_trainer<M: Denoiser<D>, const D: usize>(
        &mut self,
        trainer: &SissTrainer<M, D>,
        step: u64,
    ) -> Result<()> {
        self.add_all(&trainer.settings);
        for parameter in parameters(&trainer.model) {
            self.add(
                format!("parameter {}", parameter.name),
                parameter.to_string(),
            );
        }
        self.add_rates(trainer.learning_rate.clone().at(step)?, &trainer.model);
        if let Some(device) = trainer.model.devices().first() {
            let steps = behaviour(&trainer.optimizer.0, device)?;
            self.add("optimizer, three steps of it", steps);
        }
        Ok(())
    }

    /// The rate of all parameters, and of those that have another.
    fn add_rates<M: Module>(&mut self, rates: &ModuleLearningRate, model: &M) {
        self.add("learning_rate", rates.base());
        for parameter in parameters(model) {
            let rate = rates.lr_from_param(parameter.id, Some(&parameter.name));
            if rate != rates.base() {
                self.add(format!("learning_rate of {}", parameter.name), rate);
            }
        }
    }

    /// What is not the same, by name. What one side does not have is there what it is on the other unless set.
    fn differences(&self, now: &Settings) -> Vec<SettingDifference> {
        let names: BTreeSet<_> = self.values.keys().chain(now.values.keys()).collect();
        let effective = |settings: &Settings, other: &Settings, name: &String| {
            let value = settings.values.get(name);
            value.or_else(|| other.defaults.get(name)).cloned()
        };
        let differs = names
            .into_iter()
            .filter(|name| effective(self, now, name) != effective(now, self, name));
        differs
            .map(|name| SettingDifference {
                setting: name.clone(),
                saved: self.values.get(name).cloned(),
                now: now.values.get(name).cloned(),
            })
            .collect()
    }

    /// As it comes back from a file, where numbers may lose their last digit.
    fn as_read(&self) -> Result<Self> {
        let text = to_json("the settings", self)?.to_string();
        serde_json::from_str(&text).map_err(|error| no_json("the settings", error))
    }
}

/// A setting that is not what it was when the checkpoint was written.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingDifference {
    /// Its name: a field of [`TrainerConfig`], a part of the trainer, a parameter of the model, or one of the program's own.
    pub setting: String,
    /// The value in the checkpoint, `None` if it has none.
    pub saved: Option<Value>,
    /// The value now.
    pub now: Option<Value>,
}

impl fmt::Display for SettingDifference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| match value {
            None => "absent".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let (saved, now) = (text(&self.saved), text(&self.now));
        write!(formatter, "{} was {saved} and is {now}", self.setting)
    }
}

/// The numbers of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    step: u64,
    skipped_in_a_row: u64,
    /// Steps that the moving average has followed.
    ema_updates: Option<u64>,
    /// As bits, which JSON carries exactly.
    clipper: Vec<u64>,
    objective: Vec<u64>,
    /// Empty without steering.
    steering: Vec<u64>,
    settings: Settings,
    /// The program's own.
    program: Value,
}

/// The files of a checkpoint of the trainer as it is now. Each comes into being when it is written.
pub(super) fn save<M: Denoiser<D>, const D: usize>(
    trainer: &SissTrainer<M, D>,
    mut settings: Settings,
    program: Value,
) -> Result<Vec<NewFile<'_>>> {
    settings.add_trainer(trainer, trainer.step)?;
    let state = State {
        format: FORMAT,
        step: trainer.step,
        skipped_in_a_row: trainer.skipped_in_a_row,
        ema_updates: trainer.ema.as_ref().map(MovingAverage::updates),
        clipper: bits(&trainer.clipper.state()),
        objective: bits(&trainer.loss.state()),
        steering: bits(
            &trainer
                .steering
                .as_ref()
                .map_or_else(Vec::new, Steering::state),
        ),
        settings,
        program,
    };
    let text = serde_json::to_string_pretty(&state).map_err(|error| no_json("the state", error))?;
    let (model, optimizer) = (&trainer.model, &trainer.optimizer.0);
    let mut files: Vec<NewFile<'_>> = vec![
        (
            STATE,
            Box::new(move |path| write_bytes(path, text.as_bytes())),
        ),
        (MODEL, Box::new(move |path| save_model(model, path))),
        (
            OPTIMIZER,
            Box::new(move |path| save_optimizer(optimizer, model, path)),
        ),
    ];
    if let Some(average) = &trainer.ema {
        let write = |path: &Path| save_model(average.model(), path);
        files.push((AVERAGE, Box::new(write)));
    }
    Ok(files)
}

/// What a checkpoint has for a trainer, read and found to fit.
pub(super) struct Restored<M> {
    model: M,
    average: Option<MovingAverage<M>>,
    optimizer: ModuleOptimizer,
    state: State,
}

/// Reads a checkpoint for a trainer, which it leaves alone.
pub(super) fn prepare<M: Denoiser<D>, const D: usize>(
    trainer: &SissTrainer<M, D>,
    mut settings: Settings,
    folder: &Path,
    manifest: &Manifest,
) -> Result<Restored<M>> {
    let read = |name| manifest.read(folder, name);
    let state: State = serde_json::from_slice(&read(STATE)?)
        .map_err(|error| unfit(folder, STATE)(error.to_string()))?;
    if (state.format, state.step) != (FORMAT, manifest.step) {
        return Err(unfit(folder, STATE)(
            "its step is not the manifest's".into(),
        ));
    }
    settings.add_trainer(trainer, state.step)?;
    let differences = state.settings.differences(&settings.as_read()?);
    if !differences.is_empty() {
        return Err(Error::CheckpointDiffers {
            path: folder.into(),
            differences,
        });
    }
    let model = load_model(trainer.model.clone(), read(MODEL)?).map_err(unfit(folder, MODEL))?;
    let optimizer = trainer.optimizer.0.clone();
    let optimizer =
        load_optimizer(optimizer, &model, read(OPTIMIZER)?).map_err(unfit(folder, OPTIMIZER))?;
    // Read again rather than held meanwhile.
    let is_it = check_optimizer(&optimizer, &model, read(OPTIMIZER)?);
    is_it.map_err(unfit(folder, OPTIMIZER))?;
    let average = match &trainer.ema {
        None => None,
        Some(average) => {
            let model = load_model(average.model().clone(), read(AVERAGE)?);
            let updates = state.ema_updates.unwrap_or_default();
            Some(average.restored(model.map_err(unfit(folder, AVERAGE))?, updates))
        }
    };
    Ok(Restored {
        model,
        average,
        optimizer,
        state,
    })
}

impl<M> Restored<M> {
    /// Makes the trainer and its observers go on from it, or leaves the trainer as it was. Gives back the program's own state.
    pub fn apply<const D: usize>(self, trainer: &mut SissTrainer<M, D>) -> Result<Value>
    where
        M: Denoiser<D>,
    {
        let before = (trainer.clipper.state(), trainer.loss.state());
        let steering = trainer.steering.as_ref().map(Steering::state);
        if let Err(error) = self.restore_parts(trainer) {
            trainer.clipper.restore(&before.0)?;
            trainer.loss.restore(&before.1)?;
            if let (Some(steering), Some(before)) = (&mut trainer.steering, &steering) {
                steering.restore(before)?;
            }
            return Err(error);
        }
        trainer.model = self.model;
        trainer.optimizer = OpaqueOptimizer(self.optimizer);
        trainer.ema = self.average;
        trainer.step = self.state.step;
        trainer.skipped_in_a_row = self.state.skipped_in_a_row;
        Ok(self.state.program)
    }

    /// What can refuse: parts that others wrote. The observers come last, for what they drop is gone.
    fn restore_parts<const D: usize>(&self, trainer: &mut SissTrainer<M, D>) -> Result<()>
    where
        M: Denoiser<D>,
    {
        trainer.clipper.restore(&numbers(&self.state.clipper))?;
        trainer.loss.restore(&numbers(&self.state.objective))?;
        if let Some(steering) = &mut trainer.steering {
            steering.restore(&numbers(&self.state.steering))?;
        }
        rewind(&mut trainer.observers, self.state.step)
    }
}

/// Tells all observers where the run goes on.
pub(super) fn rewind(observers: &mut [Box<dyn Observer>], next_step: u64) -> Result<()> {
    let mut observers = observers.iter_mut();
    observers.try_for_each(|observer| observer.rewind(next_step))
}

fn bits(numbers: &[f64]) -> Vec<u64> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

fn numbers(bits: &[u64]) -> Vec<f64> {
    bits.iter().map(|&bits| f64::from_bits(bits)).collect()
}

/// A whole file that does not fit the trainer.
fn unfit(folder: &Path, name: &str) -> impl FnOnce(String) -> Error {
    let path = folder.join(name);
    move |message| Error::InvalidFile {
        path,
        message: format!("{message}; set up the trainer as it was"),
    }
}

/// The fields of a configuration that must be as they were.
fn fields(config: &TrainerConfig) -> Result<Map<String, Value>> {
    let Value::Object(mut fields) = to_json("the configuration", config)? else {
        return Ok(Map::new());
    };
    fields.retain(|name, _| !FREE.contains(&name.as_str()));
    Ok(fields)
}

pub(super) fn to_json(what: &str, value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| no_json(what, error))
}

fn no_json(what: &str, error: serde_json::Error) -> Error {
    Error::InvalidSetting {
        what: format!("{what} cannot be written as JSON: {error}"),
        remedy: "use numbers, texts, lists, and maps whose keys are texts",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{DdpmScheduler, FlowMatching};

    #[test]
    fn differences_name_the_setting_and_both_values() {
        let mut saved = Settings::default();
        saved.add_config(&TrainerConfig::default()).unwrap();
        saved.add("sampler", "CoinFlip");
        assert!(saved.differences(&saved.as_read().unwrap()).is_empty());
        let mut now = saved.clone();
        now.add("seed", 7);
        now.add("batch", 32);
        now.values.remove("sampler");
        let texts: Vec<_> = saved
            .differences(&now)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            [
                "batch was absent and is 32",
                "sampler was CoinFlip and is absent",
                "seed was 0 and is 7"
            ]
        );
    }

    /// A checkpoint of a version with one field less, and of one with one more.
    #[test]
    fn a_field_that_one_version_does_not_have_is_at_its_default_there() {
        let with = |name: &str, value: i32, default: i32| {
            let mut settings = Settings::default();
            settings.add_config(&TrainerConfig::default()).unwrap();
            settings.add(name, value);
            settings.defaults.insert(name.into(), default.into());
            settings
        };
        let texts = |saved: &Settings, now: &Settings| -> Vec<String> {
            let differences = saved.differences(&now.as_read().unwrap());
            differences.iter().map(ToString::to_string).collect()
        };
        let mut without = Settings::default();
        without.add_config(&TrainerConfig::default()).unwrap();
        let (default, set) = (with("new", 3, 3), with("new", 4, 3));
        assert!(texts(&without, &default).is_empty());
        assert!(texts(&default, &without).is_empty());
        assert_eq!(texts(&without, &set), ["new was absent and is 4"]);
        assert_eq!(texts(&set, &without), ["new was 4 and is absent"]);
        // Both have it: its default is another matter.
        assert!(texts(&with("new", 4, 4), &set).is_empty());
        assert_eq!(texts(&with("new", 4, 4), &default), ["new was 4 and is 3"]);
    }

    #[test]
    fn what_a_resumed_run_may_change_are_fields_of_the_configuration() {
        let all = to_json("", &TrainerConfig::default()).unwrap();
        for name in FREE {
            assert!(all.get(name).is_some(), "{name}");
        }
        let compared = fields(&TrainerConfig::default()).unwrap();
        assert_eq!(compared.len() + FREE.len(), all.as_object().unwrap().len());
    }

    #[test]
    fn processes_are_told_apart() {
        let settings = |scheduler: &dyn Scheduler| {
            let mut settings = Settings::default();
            settings.add_process(scheduler);
            settings
        };
        let linear = settings(&DdpmScheduler::linear(1000).unwrap());
        assert_eq!(linear, settings(&DdpmScheduler::linear(1000).unwrap()));
        for other in [
            settings(&DdpmScheduler::linear(999).unwrap()),
            settings(&FlowMatching::default()),
        ] {
            assert!(!linear.differences(&other).is_empty());
        }
    }

    #[test]
    fn numbers_come_back_to_the_bit() {
        let values = [0.1, -0.0, f64::NAN, f64::INFINITY, 5e-324];
        let back = numbers(&bits(&values));
        assert_eq!(bits(&back), bits(&values));
    }

    /// The same signal, and the noise of another process.
    #[derive(Debug)]
    struct Louder(DdpmScheduler);

    impl Scheduler for Louder {
        fn time_range(&self) -> TimeRange {
            self.0.time_range()
        }

        fn signal_scale(&self, timestep: f64) -> f64 {
            self.0.signal_scale(timestep)
        }

        fn noise_scale(&self, timestep: f64) -> f64 {
            2.0 * self.0.noise_scale(timestep)
        }
    }

    #[test]
    fn processes_are_told_apart_by_their_noise_alone() {
        let linear = DdpmScheduler::linear(1000).unwrap();
        let (mut quiet, mut loud) = (Settings::default(), Settings::default());
        quiet.add_process(&linear);
        loud.add_process(&Louder(linear));
        assert_eq!(quiet.differences(&loud).len(), 1);
    }
}
