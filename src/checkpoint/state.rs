//! Everything that a trainer needs to go on, and everything that must be as it was.

use std::path::Path;

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{FORMAT, Manifest};
use super::store::{NewFile, write_bytes};
use super::tensors::{
    behaviour, check_optimizer, load_model, load_optimizer, save_model, save_optimizer,
};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::observer::Observer;
use crate::parameters::parameters;
use crate::steering::Steering;
use crate::trainer::SissTrainer;
use crate::trainer::ema::MovingAverage;
use crate::trainer::optimizer::OpaqueOptimizer;
use crate::trainer::settings::{Settings, no_json};

const MODEL: &str = "model.bpk";
const AVERAGE: &str = "ema.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

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
    add_trainer(&mut settings, trainer, trainer.step)?;
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

/// The settings of a trainer, with its model, optimiser and learning rate at the step where the run resumes.
fn add_trainer<M: Denoiser<D>, const D: usize>(
    settings: &mut Settings,
    trainer: &SissTrainer<M, D>,
    step: u64,
) -> Result<()> {
    settings.add_all(&trainer.settings);
    for parameter in parameters(&trainer.model) {
        settings.add(
            format!("parameter {}", parameter.name),
            parameter.to_string(),
        );
    }
    let rates = trainer.learning_rate.clone().at(step)?.clone();
    add_rates(settings, &rates, &trainer.model);
    if let Some(device) = trainer.model.devices().first() {
        let steps = behaviour(&trainer.optimizer.0, device)?;
        settings.add("optimizer (its first three steps)", steps);
    }
    Ok(())
}

/// The rate of all parameters, and of those that have another.
fn add_rates<M: Module>(settings: &mut Settings, rates: &ModuleLearningRate, model: &M) {
    settings.add("learning_rate", rates.base());
    for parameter in parameters(model) {
        let rate = rates.lr_from_param(parameter.id, Some(&parameter.name));
        if rate != rates.base() {
            settings.add(format!("learning_rate of {}", parameter.name), rate);
        }
    }
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
    add_trainer(&mut settings, trainer, state.step)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_to_the_bit() {
        let values = [0.1, -0.0, f64::NAN, f64::INFINITY, 5e-324];
        let back = numbers(&bits(&values));
        assert_eq!(bits(&back), bits(&values));
    }
}
