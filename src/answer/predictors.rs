//! The errors of all predictors at noisy rows.

use burn::tensor::Device;

use super::local::{GridPlace, LocalDenoiser};
use super::posterior::{NoisyRow, errors as errors_of_posteriors};
use crate::error::Result;

/// What a predicted answer is made up of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Predictors<'a> {
    /// Widths of the patches; whole points come after them.
    pub(super) patches: &'a [usize],
    /// Comes last.
    pub(super) local: Option<&'a LocalDenoiser>,
}

impl Predictors<'_> {
    pub(super) fn count(&self) -> usize {
        self.patches.len() + 1 + usize::from(self.local.is_some())
    }

    /// For each row, the error of each predictor in the space of the model's output; `at` are the
    /// rows' places in the grid of timesteps.
    pub(super) fn errors(
        &self,
        rows: &[NoisyRow<'_>],
        at: &[GridPlace],
        device: &Device,
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let mut errors = errors_of_posteriors(rows, self.patches);
        if let Some(local) = self.local {
            let noisy: Vec<&[f32]> = rows.iter().map(|row| row.noisy).collect();
            let means = local.means(&noisy, at, device)?;
            for ((errors, mean), row) in errors.iter_mut().zip(means).zip(rows) {
                errors.push(row.error(mean));
            }
        }
        Ok(errors)
    }
}
