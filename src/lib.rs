//! Data unlearning in diffusion models.
#![deny(unsafe_code)]
#![deny(missing_docs, missing_debug_implementations)]

pub mod backend;
mod batch;
mod builder;
mod clipper;
mod denoiser;
mod draws;
mod error;
mod gradients;
pub mod kernel;
mod learning_rate;
pub mod loss;
mod method;
mod mixture;
mod observer;
mod preflight;
pub mod sampling;
pub mod schedule;
mod scheduler;
mod step_report;
mod trainer;

#[cfg(feature = "models")]
pub mod models;
#[cfg(feature = "report")]
pub mod report;

pub use burn;
pub use rand;

pub use batch::{PairSampler, Pairs, UnlearningBatch};
pub use builder::{SissTrainerBuilder, TrainerConfig};
pub use clipper::{
    ClipToNorm, Coefficients, ConstantScale, FractionOfRetain, GradientClipper, RescaleToNorm,
};
pub use denoiser::{Condition, Denoiser, PredictionType};
pub use draws::{DrawSource, Draws, Stream, TimestepSampling, keyed_rng, normal_noise};
pub use error::{Error, Result, Side};
pub use gradients::GradientNorms;
pub use loss::{LossInputs, LossTerm, LossTerms, NaiveDeletion, NegGrad, Siss, SissLoss, SissNoIs};
pub use method::Method;
pub use mixture::{
    CoinFlip, FixedAllocation, ImportanceWeights, MixturePoints, MixtureSampler,
    importance_weights, mixture_points,
};
pub use observer::{Diagnosis, Finding, JsonLines, Observer, Symptom};
pub use scheduler::{
    DdpmScheduler, FlowMatching, Scales, Scheduler, SchedulerConfig, SchedulerExt, TimeRange,
    TimestepSpacing,
};
pub use step_report::{StepOutcome, StepReport, TermReport, WeightSummary};
pub use trainer::{SissTrainer, StepGradients};
