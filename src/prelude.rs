//! The traits whose methods user code calls: `use siss::prelude::*;`.

pub use crate::denoiser::{Condition, Denoiser};
pub use crate::observer::Observer;
pub use crate::process::{Scheduler, SchedulerExt};
pub use crate::sampling::Sampler;
