//! Observers of a run: reports of its steps, logs, and the diagnosis of a run that goes wrong.

mod diagnosis;
mod json_log;
mod report;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Error, Result};

pub(crate) use diagnosis::Diagnosis;
pub use diagnosis::{Finding, Symptom};
pub use json_log::{JsonLog, cut_log};
pub use report::{StepOutcome, StepReport, TermReport, WeightSummary};

/// Receives the report of every step: for progress bars, logs and plots.
pub trait Observer: Send + Debug {
    /// Called after each step, skipped steps included.
    ///
    /// # Errors
    /// Becomes the error of [`step`](crate::SissTrainer::step); the step itself has been taken, and
    /// the other observers have received it.
    fn observe(&mut self, report: &StepReport) -> Result<()>;

    /// Called before a checkpoint is written: the observations must last as long as the checkpoint.
    ///
    /// The default does nothing.
    ///
    /// # Errors
    /// Becomes the error of [`Checkpoints::save`](crate::Checkpoints::save), which then writes no
    /// checkpoint.
    fn persist(&mut self) -> Result<()> {
        Ok(())
    }

    /// Called when a run is resumed at step `next_step`: observations of that step and later ones
    /// must be discarded.
    ///
    /// The default does nothing.
    ///
    /// # Errors
    /// Becomes the error of [`Checkpoints::resume`](crate::Checkpoints::resume), which then resumes
    /// nothing.
    fn rewind(&mut self, _next_step: u64) -> Result<()> {
        Ok(())
    }
}

impl Observer for Box<dyn Observer> {
    fn observe(&mut self, report: &StepReport) -> Result<()> {
        self.as_mut().observe(report)
    }

    fn persist(&mut self) -> Result<()> {
        self.as_mut().persist()
    }

    fn rewind(&mut self, next_step: u64) -> Result<()> {
        self.as_mut().rewind(next_step)
    }
}

/// A shared observer: keep one handle, give the other to the trainer.
impl<O: Observer> Observer for Arc<Mutex<O>> {
    fn observe(&mut self, report: &StepReport) -> Result<()> {
        shared(self)?.observe(report)
    }

    fn persist(&mut self) -> Result<()> {
        shared(self)?.persist()
    }

    fn rewind(&mut self, next_step: u64) -> Result<()> {
        shared(self)?.rewind(next_step)
    }
}

fn shared<O>(observer: &Mutex<O>) -> Result<MutexGuard<'_, O>> {
    let locked = observer.lock();
    locked.map_err(|_| Error::Observer("a shared observer has panicked before".into()))
}
