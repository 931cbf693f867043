//! The contents of a checkpoint: what a trainer needs to resume, and the settings that must agree.

use std::path::Path;

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{FORMAT, Manifest};
use super::store::{NewFile, write_bytes};
use super::tensors::{
    behaviour, check_optimizer, load_model, load_optimizer, model_fingerprint, save_model,
    save_optimizer,
};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::parameters::parameters;
use crate::trainer::SissTrainer;
use crate::trainer::ema::MovingAverage;
use crate::trainer::settings::{Settings, no_json};
use crate::trainer::state::TrainerState;

const MODEL: &str = "model.bpk";
const AVERAGE: &str = "ema.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

/// The numbers of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    trainer: TrainerState,
    settings: Settings,
    /// The program's own state.
    program: Value,
}

/// The files of a checkpoint of the trainer's current state.
///
/// Each is created when it is written.
pub(super) fn save<M: Denoiser<D>, const D: usize>(
    trainer: &SissTrainer<M, D>,
    mut settings: Settings,
    program: Value,
) -> Result<Vec<NewFile<'_>>> {
    add_trainer(&mut settings, trainer, trainer.next_step())?;
    let state = State {
        format: FORMAT,
        trainer: trainer.state(),
        settings,
        program,
    };
    let text = serde_json::to_string_pretty(&state).map_err(|error| no_json("the state", error))?;
    let (model, optimizer) = (trainer.model(), trainer.optimizer());
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
    if let Some(average) = trainer.moving_average() {
        let write = |path: &Path| save_model(average.model(), path);
        files.push((AVERAGE, Box::new(write)));
    }
    Ok(files)
}

/// The settings of a trainer, with its model, optimiser and learning rate at a step.
fn add_trainer<M: Denoiser<D>, const D: usize>(
    settings: &mut Settings,
    trainer: &SissTrainer<M, D>,
    step: u64,
) -> Result<()> {
    settings.add_all(trainer.settings());
    for parameter in parameters(trainer.model()) {
        settings.add(
            format!("parameter {}", parameter.name),
            parameter.to_string(),
        );
    }
    add_rates(settings, &trainer.rates_at(step)?, trainer.model());
    if let Some(device) = trainer.model().devices().first() {
        let steps = behaviour(trainer.optimizer(), device)?;
        settings.add("optimizer (its first three steps)", steps);
    }
    if let Some(teacher) = trainer.teacher() {
        settings.add("teacher", model_fingerprint(teacher)?);
    }
    Ok(())
}

/// Adds the learning rate of all parameters, and of those that have a different one.
fn add_rates<M: Module>(settings: &mut Settings, rates: &ModuleLearningRate, model: &M) {
    settings.add("learning_rate", rates.base());
    for parameter in parameters(model) {
        let rate = rates.lr_from_param(parameter.id, Some(&parameter.name));
        if rate != rates.base() {
            settings.add(format!("learning_rate of {}", parameter.name), rate);
        }
    }
}

/// The contents of a checkpoint, read and checked against a trainer.
pub(super) struct Restored<M> {
    model: M,
    average: Option<MovingAverage<M>>,
    optimizer: ModuleOptimizer,
    state: State,
}

/// Reads a checkpoint for a trainer, without changing the trainer.
pub(super) fn prepare<M: Denoiser<D>, const D: usize>(
    trainer: &SissTrainer<M, D>,
    mut settings: Settings,
    folder: &Path,
    manifest: &Manifest,
) -> Result<Restored<M>> {
    let read = |name| manifest.read(folder, name);
    let state: State = serde_json::from_slice(&read(STATE)?)
        .map_err(|error| unfit(folder, STATE)(error.to_string()))?;
    if (state.format, state.trainer.step) != (FORMAT, manifest.step) {
        return Err(unfit(folder, STATE)(
            "its step differs from that in the manifest".into(),
        ));
    }
    add_trainer(&mut settings, trainer, state.trainer.step)?;
    let differences = state.settings.differences(&settings);
    if !differences.is_empty() {
        return Err(Error::CheckpointDiffers {
            path: folder.into(),
            differences,
        });
    }
    let model = trainer.model().clone();
    let model = load_model(model, read(MODEL)?).map_err(unfit(folder, MODEL))?;
    let optimizer = trainer.optimizer().clone();
    let optimizer =
        load_optimizer(optimizer, &model, read(OPTIMIZER)?).map_err(unfit(folder, OPTIMIZER))?;
    // Read a second time, so that the first copy need not be kept in memory.
    let is_it = check_optimizer(&optimizer, &model, read(OPTIMIZER)?);
    is_it.map_err(unfit(folder, OPTIMIZER))?;
    let average = match trainer.moving_average() {
        None => None,
        Some(average) => {
            let model = load_model(average.model().clone(), read(AVERAGE)?);
            let updates = state.trainer.ema_updates.unwrap_or_default();
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
    /// Makes the trainer and its observers continue from the checkpoint, or leaves the trainer
    /// unchanged.
    ///
    /// Returns the program's own state.
    pub fn apply<const D: usize>(self, trainer: &mut SissTrainer<M, D>) -> Result<Value>
    where
        M: Denoiser<D>,
    {
        let state = self.state;
        trainer.restore(state.trainer, self.model, self.average, self.optimizer)?;
        Ok(state.program)
    }
}

/// The error for an intact file that does not fit the trainer.
fn unfit(folder: &Path, name: &str) -> impl FnOnce(String) -> Error {
    let path = folder.join(name);
    move |message| Error::InvalidFile {
        path,
        message: format!(
            "{message}; build the trainer with the settings the checkpoint was saved with"
        ),
    }
}
