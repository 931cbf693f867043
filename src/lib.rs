//! Data unlearning in diffusion models.
#![deny(unsafe_code)]
#![deny(missing_docs, missing_debug_implementations)]

mod denoiser;
mod error;
pub mod schedule;
mod scheduler;

#[cfg(feature = "models")]
pub mod models;
#[cfg(feature = "report")]
pub mod report;

pub use burn;

pub use denoiser::{Condition, Denoiser, PredictionType};
pub use error::{Error, Result, Side};
pub use scheduler::{
    DdpmScheduler, FlowMatching, Scales, Scheduler, SchedulerConfig, SchedulerExt, TimeRange,
    TimestepSpacing,
};
