//! The traits whose methods one calls: `use siss::prelude::*;`.

pub use crate::denoiser::{Condition, Denoiser};
pub use crate::observer::Observer;
pub use crate::process::{Scheduler, SchedulerExt};
pub use crate::sampling::Sampler;
