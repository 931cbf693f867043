//! Data unlearning in diffusion models: a trained model forgets some of its training points and
//! keeps the rest.
//!
//! A diffusion model was trained on a set X. Some points A ⊂ X must be forgotten: a face, a
//! copyrighted picture, a patient's scan. This crate fine-tunes the model until it no longer
//! generates them and its loss on them is close to that of a model that never saw them, while the
//! quality of everything else is kept. It implements SISS (*Data Unlearning in Diffusion Models*,
//! ICLR 2025, arXiv 2503.01034) and its baselines for any [burn] model that denoises: any rank, any
//! condition, any prediction type.
//!
//! # Quick start
//!
//! Three things are needed: the model behind [`Denoiser`], the [`Scheduler`] it was trained with,
//! and the data of both sides. Unset options have defaults that work, listed at
//! [`SissTrainerBuilder`](trainer::SissTrainerBuilder).
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Distribution, Tensor};
//! use siss::{DdpmScheduler, Denoiser, PairSampler, SissTrainer};
//!
//! // Your model: here one layer over points of three numbers.
//! #[derive(Module, Debug)]
//! struct Model {
//!     layer: Linear,
//! }
//!
//! impl Denoiser<2> for Model {
//!     type Condition = ();
//!     fn predict(&self, noisy: Tensor<2>, _timesteps: Tensor<1>, _: &()) -> Tensor<2> {
//!         self.layer.forward(noisy)
//!     }
//! }
//!
//! let device = Device::flex();
//! let model = Model { layer: LinearConfig::new(3, 3).init(&device) };
//! let retain = Tensor::<2>::random([100, 3], Distribution::Default, &device);
//! let forget = Tensor::<2>::zeros([1, 3], &device);
//!
//! let pairs = PairSampler::new(retain, forget, 0)?;
//! let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?)
//!     .learning_rate(5e-5)
//!     .build()?;
//! for step in 0..10 {
//!     let report = trainer.step(pairs.batch(step, 16)?)?;
//!     println!("{report}");
//! }
//! let model = trainer.into_model();
//! # Ok::<(), siss::Error>(())
//! ```
//!
//! # How a step works
//!
//! [`SissTrainer::step`] draws all randomness of the step ([`draws::Draws`]) and lets the objective
//! ([`SissLoss`]) turn batch and draws into two weighted regressions ([`objective::LossTerms`]). It
//! runs the rows that carry weight through the model, measures the two gradients, lets the
//! [`GradientClipper`] weigh them against each other, and passes the combination to a burn
//! optimiser.
//! Each of the four parts is a trait object that you can replace:
//!
//! | trait | decides | built in |
//! |---|---|---|
//! | [`Scheduler`] | signal and noise at a timestep | [`DdpmScheduler`], [`FlowMatching`] |
//! | [`MixtureSampler`] | which rows are drawn from the forgotten side | in [`draws`] |
//! | [`SissLoss`] | noisy points, targets and weights | in [`objective`] |
//! | [`GradientClipper`] | how much each step forgets | in [`clipper`] |
//!
//! [`Method`] names the combinations, most of them published.
//!
//! # The modules
//!
//! The names that every program needs are at the root, the traits whose methods one calls in the
//! [`prelude`].
//!
//! | module | holds |
//! |---|---|
//! | [`process`] | the forward process, beta schedules, what a model predicts |
//! | [`denoiser`] | your model and its condition |
//! | [`data`] | batches, pairs of retained and forgotten points, checks of the data |
//! | [`draws`] | reproducible random numbers |
//! | [`objective`] | the losses, and what an objective of your own needs |
//! | [`answer`] | what a model that never saw a point would answer there |
//! | [`steering`] | forgetting that stops at the loss a retrained model would have |
//! | [`clipper`] | how the two gradients are weighed |
//! | [`kernel`] | the loss alone, for trainers of your own |
//! | [`trainer`] | the builder, its settings, the two halves of a step |
//! | [`observer`] | reports of steps, logs, known ways for a run to go wrong |
//! | [`checkpoint`] | runs that survive being killed |
//! | [`evaluate`] | the loss of single points, before and after; how close two models are at points |
//! | [`sampling`] | drawing from a model |
//! | [`files`], [`backend`] | results that appear as a whole; devices by name |
//!
//! # Promises
//!
//! - The draws of a step follow from (seed, step): the same on every device and for every
//!   micro-batch size.
//! - A run that is killed and resumed from its [`Checkpoints`] is, on the CPU, byte for byte the
//!   run that was never killed.
//! - A step with a number that is not finite changes nothing and says so; ten in a row are an
//!   error.
//! - The library does not panic on input and does not print. An [`Error`] names the value and the
//!   remedy.
//!
//! It does not promise legal sufficiency: unlearning is evidence of forgetting, not a proof of
//! erasure.
//!
//! # Features
//!
//! | feature | brings | default |
//! |---|---|---|
//! | `flex` | burn's pure-Rust CPU backend | yes |
//! | `flex-kernels` | on the CPU, loss and mixture draw in one pass; the crate's own convolution, attention and group normalisation under `models` | yes |
//! | `wgpu` | Vulkan, Metal, DirectX, WebGPU | |
//! | `cuda` | NVIDIA GPUs; burn downloads an LLVM while it builds, so do not use `--all-features` | |
//! | `fused` | loss and mixture draw in one pass on `wgpu` and `cuda` too | |
//! | `images` | folders of pictures, read by content, with an account of what is not read | |
//! | `metrics` | `metrics`: membership, quality, likelihood, closeness and copies, each with its sample size and an interval | |
//! | `models` | networks of diffusers and their folders: UNets with and without conditions, autoencoder, text encoder, DiT, SD3; LoRA files | |
//! | `pytorch` | `models` reads pickled `.bin` weights too; the pickle is parsed, never run | |
//! | `text` | `models` and the tokenizer of their text encoders | |
//! | `report` | pictures, plots and exact intervals of a run | |
//!
//! On a GPU, call [`SissTrainer::self_check`] before a run.
//!
//! The guide *Unlearn your own model*, the table of the methods, the mathematics with equation
//! numbers and the design are in the repository's `docs` folder.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs, missing_debug_implementations)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::print_stdout,
        clippy::print_stderr
    )
)]

pub mod answer;
pub mod backend;
pub mod checkpoint;
pub mod clipper;
pub mod data;
pub mod denoiser;
pub mod draws;
mod error;
pub mod evaluate;
pub mod files;
mod host;
#[cfg(feature = "images")]
pub mod images;
pub mod kernel;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "models")]
pub mod models;
pub mod objective;
pub mod observer;
mod parameters;
mod pieces;
pub mod prelude;
pub mod process;
mod quantile;
#[cfg(feature = "report")]
pub mod report;
pub mod sampling;
#[cfg(any(feature = "metrics", feature = "report"))]
mod statistics;
pub mod steering;
mod text;
pub mod trainer;

pub use burn;
pub use rand;

#[doc(inline)]
pub use checkpoint::Checkpoints;
#[doc(inline)]
pub use clipper::GradientClipper;
#[doc(inline)]
pub use data::{PairSampler, Side, UnlearningBatch};
#[doc(inline)]
pub use denoiser::{Condition, Denoiser, FnDenoiser};
#[doc(inline)]
pub use draws::MixtureSampler;
pub use error::{Error, Result};
#[doc(inline)]
pub use objective::SissLoss;
#[doc(inline)]
pub use observer::{Observer, StepReport};
#[doc(inline)]
pub use process::{DdpmScheduler, FlowMatching, PredictionType, Scheduler};
#[doc(inline)]
pub use steering::Steering;
#[doc(inline)]
pub use trainer::{Method, SissTrainer, TrainerConfig};

/// The examples of the guide and the README are tests.
#[cfg(all(doctest, feature = "models"))]
mod pages {
    #[doc = include_str!("../docs/guide.md")]
    mod guide {}
    #[doc = include_str!("../README.md")]
    mod readme {}
}
