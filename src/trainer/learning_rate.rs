//! The learning rate of each step, from burn's schedulers.

use std::fmt;

use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};

use crate::error::{Result, check_range};

/// A burn scheduler and its last rate: asking for the same step again gives the same rate.
#[derive(Clone)]
pub(crate) struct LearningRate {
    scheduler: ModuleLrScheduler,
    steps_taken: u64,
    current: ModuleLearningRate,
}

impl LearningRate {
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless the first rate is finite and at
    /// least 0.
    pub(crate) fn new(mut scheduler: ModuleLrScheduler) -> Result<Self> {
        let current = scheduler.step();
        check_rate(&current)?;
        Ok(Self {
            scheduler,
            steps_taken: 1,
            current,
        })
    }

    /// The rates of optimiser step `step` for each group of parameters; steps must come in order.
    ///
    /// # Errors
    /// Those of [`LearningRate::new`], for the rate of this step.
    pub(crate) fn at(&mut self, step: u64) -> Result<&ModuleLearningRate> {
        while self.steps_taken <= step {
            self.current = self.scheduler.step();
            self.steps_taken += 1;
        }
        check_rate(&self.current)?;
        Ok(&self.current)
    }
}

fn check_rate(rates: &ModuleLearningRate) -> Result<f64> {
    let rate = rates.base();
    check_range(
        "learning_rate",
        rate,
        rate >= 0.0,
        "a finite number from 0 up",
    )
}

impl fmt::Debug for LearningRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "LearningRate({})", self.current.base())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
    use burn::optim::lr_scheduler::step::StepLrSchedulerConfig;

    #[test]
    fn a_scheduler_advances_with_the_step_and_repeats_for_the_same_one() {
        let falling = LinearLrSchedulerConfig::new(1.0, 0.0, 4).init().unwrap();
        let mut rate = LearningRate::new(falling).unwrap();
        let rates = [0, 0, 1, 1, 3, 9].map(|step| rate.at(step).unwrap().base());
        assert_eq!(rates, [1.0, 1.0, 0.75, 0.75, 0.25, 0.0]);
    }

    #[test]
    fn a_rate_that_is_no_rate_is_refused() {
        for bad in [-1e-3, f64::NAN, f64::INFINITY] {
            let error = LearningRate::new(bad.into()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("learning_rate is {bad}")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_later_rate_that_is_no_rate_is_refused_at_its_step() {
        let turning = StepLrSchedulerConfig::new(1.0, 2).with_gamma(-0.5);
        let mut rate = LearningRate::new(turning.init().unwrap()).unwrap();
        assert_eq!(rate.at(1).unwrap().base(), 1.0);
        let error = rate.at(2).err().unwrap().to_string();
        assert!(error.contains("learning_rate is -0.5"), "{error}");
        assert!(LearningRate::new(0.0.into()).is_ok());
    }
}
