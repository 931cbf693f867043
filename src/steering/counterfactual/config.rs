//! The settings of a prediction.

use serde::{Deserialize, Serialize};

use super::form::IdealForm;
use crate::error::{Result, check_range};

/// Settings of the fit of a [`Counterfactual`](crate::steering::Counterfactual).
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `timesteps` | 16, evenly in log(signal / noise) | where losses are compared | ascending, ≥ 2 |
/// | `noises` | 64 | noises over which a forgotten point's ideal error is averaged | ≥ 1 |
/// | `control_noises` | 1 | noises for each control point | ≥ 1 |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run at a time | ≥ 1 |
/// | `form` | `Whole` | which ideal denoiser the prediction starts from | |
/// | `pieces` | true | whether the model's own answers to pieces of a point are used where there is little noise; not for points of rank 2 | |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CounterfactualConfig {
    /// Timesteps of the grid, ascending; `None` for 16 from the scheduler's range, evenly in the
    /// logarithm of the ratio of signal to noise.
    pub timesteps: Option<Vec<f64>>,
    /// Noises over which a forgotten point's ideal error is averaged.
    pub noises: usize,
    /// Noises for each control point.
    pub control_noises: usize,
    /// Key of the noises.
    pub seed: u64,
    /// Rows run at a time.
    pub micro_batch_size: usize,
    /// Which ideal denoiser the prediction starts from.
    pub form: IdealForm,
    /// Whether the model's own answers to pieces of a point are used where there is little noise.
    pub pieces: bool,
}

impl Default for CounterfactualConfig {
    fn default() -> Self {
        Self {
            timesteps: None,
            noises: 64,
            control_noises: 1,
            seed: 0,
            micro_batch_size: 64,
            form: IdealForm::Whole,
            pieces: true,
        }
    }
}

impl CounterfactualConfig {
    /// Checks that the settings are in range and that the form suits points of this rank.
    pub(super) fn check(&self, rank: usize) -> Result<()> {
        for (name, value) in [
            ("noises", self.noises),
            ("control_noises", self.control_noises),
            ("micro_batch_size", self.micro_batch_size),
        ] {
            check_range(name, value as f64, value >= 1, "at least 1")?;
        }
        self.form.check(rank)
    }
}
