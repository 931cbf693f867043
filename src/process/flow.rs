//! The straight path of flow matching.

use super::Scheduler;
use super::time::TimeRange;
use crate::error::{Result, check_range};

/// The straight path of flow matching (rectified flow): `γ_t = 1 − t`, `σ_t = t`, `t ∈ [min, 1]`.
///
/// The clean end `t = 0` has no noise; `min_time` (default 1e-3) excludes it. Its sampler is
/// [`EulerFlowSampler`](crate::sampling::EulerFlowSampler).
///
/// # Reference
/// Lipman et al. 2023, *Flow Matching for Generative Modeling*, with optimal-transport paths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowMatching {
    min_time: f64,
}

impl FlowMatching {
    /// The path from `min_time` to 1.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `0 < min_time < 1`.
    pub fn new(min_time: f64) -> Result<Self> {
        let legal = min_time > 0.0 && min_time < 1.0;
        check_range("min_time", min_time, legal, "above 0 and below 1")?;
        Ok(Self { min_time })
    }
}

/// Moves a share of the path to the noisy end, `s u / (1 + (s − 1) u)`: Esser et al. 2024, Eq. 23.
pub(crate) fn shifted(share: f64, shift: f64) -> f64 {
    shift * share / (1.0 + (shift - 1.0) * share)
}

impl Default for FlowMatching {
    fn default() -> Self {
        Self { min_time: 1e-3 }
    }
}

impl Scheduler for FlowMatching {
    fn time_range(&self) -> TimeRange {
        TimeRange::Continuous {
            min: self.min_time,
            max: 1.0,
        }
    }

    fn signal_scale(&self, timestep: f64) -> f64 {
        1.0 - timestep
    }

    fn noise_scale(&self, timestep: f64) -> f64 {
        timestep
    }
}
