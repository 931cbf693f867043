//! How an answer is predicted.

use serde::{Deserialize, Serialize};

use crate::error::{Result, check_positive, check_range};

/// How a [`PredictedAnswer`](super::PredictedAnswer) is fitted.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `patches` | 1, 3, 5, 7, 11 | widths of the patches, along each spatial axis; not used for points of rank 2 | odd, ascending |
/// | `pieces` | true | whether the model's own answers to pieces of a point are used; not for points of rank 2 | |
/// | `retained` | 1,000 | retained points used per group, evenly spaced through the set; time per step is proportional to it | ≥ 1 |
/// | `controls` | 16 | control points used; pieces of one are shown inside the others, so one alone has none | ≥ 1 |
/// | `ridge` | 1e-6 | added to the mean square of each predictor's error | > 0 |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run through the model at a time | ≥ 1 |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PredictedAnswerConfig {
    /// Widths of the patches, odd and ascending.
    pub patches: Vec<usize>,
    /// Whether the model's own answers to pieces of a point are used.
    pub pieces: bool,
    /// Retained points used per group.
    pub retained: usize,
    /// Control points used.
    pub controls: usize,
    /// Added to the mean square of each predictor's error.
    pub ridge: f64,
    /// Key of the noises.
    pub seed: u64,
    /// Rows run through the model at a time.
    pub micro_batch_size: usize,
}

impl Default for PredictedAnswerConfig {
    fn default() -> Self {
        Self {
            patches: vec![1, 3, 5, 7, 11],
            pieces: true,
            retained: 1000,
            controls: 16,
            ridge: 1e-6,
            seed: 0,
            micro_batch_size: 64,
        }
    }
}

impl PredictedAnswerConfig {
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) with the setting's name.
    pub(super) fn check(&self) -> Result<()> {
        check_patches(&self.patches)?;
        for (name, value) in [
            ("retained", self.retained),
            ("controls", self.controls),
            ("micro_batch_size", self.micro_batch_size),
        ] {
            check_range(name, value as f64, value >= 1, "at least 1")?;
        }
        check_positive("ridge", self.ridge)?;
        Ok(())
    }
}

/// Odd and ascending.
pub(super) fn check_patches(patches: &[usize]) -> Result<()> {
    let mut before = 0;
    for &patch in patches {
        let legal = patch % 2 == 1 && patch > before;
        let requirement = "an odd number of elements, above the one before it";
        check_range("a patch width", patch as f64, legal, requirement)?;
        before = patch;
    }
    Ok(())
}
