//! The state that a trainer carries from step to step, for checkpoints.

use burn::optim::ModuleOptimizer;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use serde::{Deserialize, Serialize};

use super::SissTrainer;
use super::ema::MovingAverage;
use super::optimizer::OpaqueOptimizer;
use super::settings::Settings;
use crate::denoiser::Denoiser;
use crate::error::Result;
use crate::files::json::exact;
use crate::observer::Diagnosis;
use crate::steering::Steering;

/// Everything that changes from step to step, except the weights, their average and the optimiser.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainerState {
    /// Number of the next step.
    pub(crate) step: u64,
    skipped_in_a_row: u64,
    /// Steps that the moving average has followed.
    pub(crate) ema_updates: Option<u64>,
    #[serde(with = "exact")]
    clipper: Vec<f64>,
    #[serde(with = "exact")]
    objective: Vec<f64>,
    /// Empty without steering.
    #[serde(with = "exact")]
    steering: Vec<f64>,
    diagnosis: Diagnosis,
}

impl<M: Denoiser<D>, const D: usize> SissTrainer<M, D> {
    pub(crate) fn state(&self) -> TrainerState {
        let steering = self.steering.as_ref();
        TrainerState {
            step: self.step,
            skipped_in_a_row: self.skipped_in_a_row,
            ema_updates: self.ema.as_ref().map(MovingAverage::updates),
            clipper: self.clipper.state(),
            objective: self.loss.state(),
            steering: steering.map_or_else(Vec::new, Steering::state),
            diagnosis: self.diagnosis.clone(),
        }
    }

    /// Resumes from a state, or leaves the trainer unchanged.
    ///
    /// # Errors
    /// The error of an objective, clipper, steering or observer that refuses its part.
    pub(crate) fn restore(
        &mut self,
        state: TrainerState,
        model: M,
        average: Option<MovingAverage<M>>,
        optimizer: ModuleOptimizer,
    ) -> Result<()> {
        let before = self.state();
        // The observers come last, because what they drop is lost.
        let restored = self.restore_parts(&state);
        if let Err(error) = restored.and_then(|()| self.rewind_observers(state.step)) {
            self.restore_parts(&before)?;
            return Err(error);
        }
        self.model = model;
        self.ema = average;
        self.optimizer = OpaqueOptimizer::new(optimizer);
        self.step = state.step;
        self.skipped_in_a_row = state.skipped_in_a_row;
        self.diagnosis = state.diagnosis;
        Ok(())
    }

    /// Restores objective, clipper and steering, which may be of the user's own types.
    fn restore_parts(&mut self, state: &TrainerState) -> Result<()> {
        self.clipper.restore(&state.clipper)?;
        self.loss.restore(&state.objective)?;
        match &mut self.steering {
            Some(steering) => steering.restore(&state.steering),
            None => Ok(()),
        }
    }

    /// Tells all observers at which step the run continues.
    pub(crate) fn rewind_observers(&mut self, next_step: u64) -> Result<()> {
        let mut observers = self.observers.iter_mut();
        observers.try_for_each(|observer| observer.rewind(next_step))
    }

    /// Asks all observers to make their observations as durable as the checkpoint.
    pub(crate) fn persist_observers(&mut self) -> Result<()> {
        let mut observers = self.observers.iter_mut();
        observers.try_for_each(|observer| observer.persist())
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn rates_at(&self, step: u64) -> Result<ModuleLearningRate> {
        Ok(self.learning_rate.clone().at(step)?.clone())
    }

    pub(crate) fn optimizer(&self) -> &ModuleOptimizer {
        &self.optimizer.burns
    }

    pub(crate) fn moving_average(&self) -> Option<&MovingAverage<M>> {
        self.ema.as_ref()
    }

    pub(crate) fn teacher(&self) -> Option<&M> {
        self.teacher.as_ref()
    }
}
