//! What a model that never saw a forgotten point would answer at noisy versions of it.

mod combination;
mod config;
mod fit;
mod least_squares;
mod other_condition;
mod posterior;
mod predicted;
mod surrogate;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};

use burn::tensor::Tensor;

use crate::error::Result;
use crate::process::{PredictionType, Scales, Scheduler};

pub use combination::Combination;
pub use config::PredictedAnswerConfig;
pub use other_condition::OtherCondition;
pub use predicted::PredictedAnswer;
pub use surrogate::Surrogate;

/// What a model that never saw a forgotten point would answer at a noisy version of it: the target
/// of [`Answers`](crate::objective::Answers).
///
/// # Example
/// An answer of your own, for models that know nothing of any point:
/// ```
/// use burn::tensor::Tensor;
/// use siss::answer::{Answer, Asked};
/// use siss::objective::Answers;
///
/// #[derive(Debug)]
/// struct Nothing;
///
/// impl<const D: usize, C> Answer<D, C> for Nothing {
///     fn name(&self) -> &'static str {
///         "nothing"
///     }
///
///     fn answers(&mut self, asked: &Asked<'_, D, C>) -> siss::Result<Tensor<D>> {
///         Ok(asked.noisy.zeros_like())
///     }
/// }
///
/// let objective = Answers::<4>::new(Nothing);
/// ```
pub trait Answer<const D: usize, C = ()>: Send + Debug {
    /// Name for reports and messages.
    fn name(&self) -> &'static str;

    /// The output that the model should have at the noisy points, in the space of what it predicts.
    ///
    /// # Shapes
    /// - the result: `[rows, …]`, as [`Asked::noisy`]
    ///
    /// # Errors
    /// The answer's own.
    fn answers(&mut self, asked: &Asked<'_, D, C>) -> Result<Tensor<D>>;

    /// Whether it asks the frozen teacher ([`Asked::teacher`]). Not unless implemented.
    fn uses_teacher(&self) -> bool {
        false
    }

    /// Number of forgotten points that it answers for, which share the forget term
    /// ([`Answers::clipper`](crate::objective::Answers::clipper)). Not known unless implemented.
    fn points(&self) -> Option<usize> {
        None
    }

    /// Name and settings, which must be the same when a run is resumed. The name alone unless
    /// implemented.
    fn settings(&self) -> String {
        self.name().into()
    }
}

/// Noisy forgotten points `m = γ a + σ ε`, for which an [`Answer`] is wanted.
#[non_exhaustive]
pub struct Asked<'a, const D: usize, C = ()> {
    /// The forgotten points `a`, `[rows, …]`.
    pub clean: Tensor<D>,
    /// The noise `ε`, `[rows, …]`.
    pub noise: Tensor<D>,
    /// The noisy points `m`, `[rows, …]`.
    pub noisy: Tensor<D>,
    /// The timestep of each row.
    pub timesteps: Vec<f64>,
    /// `γ` and `σ` of each row.
    pub scales: Scales,
    /// Which forgotten point each row holds.
    pub ids: &'a [u64],
    /// The condition of the forgotten points, `rows` rows.
    pub condition: C,
    /// The retained points that the batch pairs them with, `[rows, …]`.
    pub retained: Tensor<D>,
    /// The condition of these retained points, `rows` rows.
    pub retain_condition: C,
    /// The forward process.
    pub scheduler: &'a dyn Scheduler,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    pub(crate) frozen: &'a Frozen<'a, D, C>,
}

/// The frozen model: noisy points, timesteps and condition to its output.
pub(crate) type Frozen<'a, const D: usize, C> =
    dyn Fn(Tensor<D>, &[f64], &C) -> Result<Tensor<D>> + 'a;

impl<const D: usize, C> Asked<'_, D, C> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.timesteps.len()
    }

    /// The output where a noisy point is explained by `clean` and `noise`, `[rows, …]` each.
    pub fn target(&self, clean: &Tensor<D>, noise: &Tensor<D>) -> Tensor<D> {
        self.scales.target(self.prediction_type, clean, noise)
    }

    /// The output that explains the noisy points by the forgotten ones: what is to be forgotten.
    pub fn own_target(&self) -> Tensor<D> {
        self.target(&self.clean, &self.noise)
    }

    /// The output of the model before the run, outside of any gradient, as
    /// [`LossInputs::teacher`](crate::objective::LossInputs::teacher).
    ///
    /// # Shapes
    /// - `noisy` and the result: `[rows, …]`; `timesteps`: `[rows]`; `condition`: `rows` rows
    ///
    /// # Errors
    /// Those of [`LossInputs::teacher`](crate::objective::LossInputs::teacher).
    pub fn teacher(&self, noisy: Tensor<D>, timesteps: &[f64], condition: &C) -> Result<Tensor<D>> {
        (self.frozen)(noisy, timesteps, condition)
    }
}

impl<const D: usize, C> Debug for Asked<'_, D, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Asked")
            .field("timesteps", &self.timesteps)
            .field("ids", &self.ids)
            .finish_non_exhaustive()
    }
}
