//! The plain settings of a trainer.

use serde::{Deserialize, Serialize};

use crate::draws::TimestepSampling;

/// The plain settings of a trainer.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `seed` | 0 | key of all draws | |
/// | `timestep_sampling` | low discrepancy | how timesteps are drawn | |
/// | `forget_within` | none | timesteps at which forget rows count; `None` for all | one or more |
/// | `thin_below` | 1 | rows with a smaller weight are thinned without bias; 0 is exact | ≥ 0 |
/// | `micro_batch_size` | the whole batch | rows run at a time; changes memory, not results | ≥ 1 |
/// | `max_grad_norm` | 1 | global clip of the combined gradient; `None` for none | > 0 |
/// | `ema_decay` | none | decay of a moving average of the weights | 0 to below 1 |
/// | `master_weights` | false | parameters in bf16 or f16 are updated in f32 | |
/// | `gradient_checkpointing` | false | less memory for more time | |
/// | `max_skipped_steps` | 10 | the run ends after so many non-finite steps in a row | ≥ 1 |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Key of all draws of the run.
    pub seed: u64,
    /// How timesteps are drawn.
    pub timestep_sampling: TimestepSampling,
    /// The timesteps at which forget rows count, from the first up to, but not including, the
    /// second; `None` for all.
    pub forget_within: Option<[f64; 2]>,
    /// `τ` of unbiased thinning, see [`survivors`](crate::objective::survivors).
    pub thin_below: f64,
    /// Rows run through the model at a time, or `None` for a whole term.
    pub micro_batch_size: Option<usize>,
    /// Global clip of the combined gradient.
    pub max_grad_norm: Option<f64>,
    /// Decay of a moving average of the weights, `None` for no average.
    pub ema_decay: Option<f64>,
    /// Whether the optimiser updates a copy in f32 of parameters in bf16 or f16.
    pub master_weights: bool,
    /// Whether cheap operations are recomputed in the backward pass instead of stored.
    pub gradient_checkpointing: bool,
    /// How many steps in a row without a finite loss and gradient end the run with an error.
    pub max_skipped_steps: u64,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            timestep_sampling: TimestepSampling::LowDiscrepancy,
            forget_within: None,
            thin_below: 1.0,
            micro_batch_size: None,
            max_grad_norm: Some(1.0),
            ema_decay: None,
            master_weights: false,
            gradient_checkpointing: false,
            max_skipped_steps: 10,
        }
    }
}
