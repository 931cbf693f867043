//! Runs one micro-batch before a run, to learn what it takes.

use super::{SissTrainer, preflight};
use crate::data::{Side, UnlearningBatch};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::objective::{LossTerm, LossTerms};

/// The rows of a step, and how many of them [`SissTrainer::rehearse`] ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rehearsal {
    /// Rows that ran through the model at once.
    pub rows: usize,
    /// Rows of their side in the whole step.
    pub of_side: usize,
    /// Rows of both sides in the whole step.
    pub of_step: usize,
    /// Rows that the trainer's first step runs forward besides, to check the model.
    pub of_check: usize,
}

impl<M: Denoiser<D>, const D: usize> SissTrainer<M, D> {
    /// Runs the first micro-batch of the next step's larger side forward and backward, with at most
    /// `rows` rows, and discards its gradient.
    ///
    /// Nothing is trained, and the next step is unchanged. Measure memory and time around the call
    /// to learn what `rows` as [`micro_batch_size`](super::SissTrainerBuilder::micro_batch_size)
    /// takes. A step also holds the optimiser's state and the gradient of the other side.
    ///
    /// # Errors
    /// Those of [`step_with`](SissTrainer::step_with), except the errors of the optimiser and those
    /// after the step.
    ///
    /// # Example
    /// ```
    /// # use burn::nn::{Linear, LinearConfig};
    /// # use burn::tensor::{Device, Tensor};
    /// # use siss::{DdpmScheduler, FnDenoiser, SissTrainer, UnlearningBatch};
    /// # let device = Device::flex();
    /// # let layer = LinearConfig::new(3, 3).init(&device);
    /// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy));
    /// # let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?).build()?;
    /// # let points = |value: f64| Tensor::<2>::full([8, 3], value, &device);
    /// let batch = UnlearningBatch::new(points(0.1), points(0.9))?;
    /// let rehearsal = trainer.rehearse(&batch, 2)?;
    /// assert_eq!(rehearsal.rows, 2);
    /// assert_eq!(trainer.next_step(), 0);
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn rehearse(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        rows: usize,
    ) -> Result<Rehearsal> {
        let mut terms = self.next_terms(batch)?;
        let count = |term: &Option<LossTerm<D>>| term.as_ref().map_or(0, |term| term.rows.len());
        let [retain, forget] = [count(&terms.retain), count(&terms.forget)];
        let (side, term) = match retain >= forget {
            true => (Side::Retain, &mut terms.retain),
            false => (Side::Forget, &mut terms.forget),
        };
        let of_side = retain.max(forget);
        let run = rows.min(of_side);
        if let Some(term) = term {
            term.rows.truncate(run);
            term.weights.truncate(run);
        }
        self.side_at_a_time(&self.model, side, term, batch, run.max(1))?;
        let synced = batch.retain.device().sync();
        synced.map_err(|error| Error::DeviceRead {
            what: "a rehearsed micro-batch",
            message: error.to_string(),
        })?;
        Ok(Rehearsal {
            rows: run,
            of_side,
            of_step: retain + forget,
            of_check: preflight::ROWS,
        })
    }

    /// The thinned terms of the next step, which stays unchanged.
    pub(crate) fn next_terms(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<LossTerms<D>> {
        self.check_batch(batch)?;
        let draws = self.draw(batch)?;
        let state = self.loss.state();
        let terms = self.terms(batch, &draws);
        self.loss.restore(&state)?;
        let mut terms = terms?;
        terms.thin(self.config.thin_below, draws.thinning_uniform);
        Ok(terms)
    }
}
