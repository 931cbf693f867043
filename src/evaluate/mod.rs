//! Measures how well a model knows data: the loss of single points, under which conditions it knows
//! them, how close a model is to another at points, and whether the data are prepared as they were
//! for the model's training.

mod answer_distance;
mod denoised_distance;
mod denoising_loss;
mod embedding_search;
mod model_check;
mod trigger_test;

use burn::module::Module;
use burn::tensor::Device;

use crate::data::Points;
use crate::error::{Result, check_device};

pub use answer_distance::{AnswerComparison, AnswerDistance};
pub use denoised_distance::{DenoisedComparison, DenoisedDistance};
pub use denoising_loss::DenoisingLoss;
pub(crate) use denoising_loss::{parts, residual, row_losses};
pub(crate) use embedding_search::embedding_of;
pub use embedding_search::{EmbeddingSearch, FoundEmbedding};
pub use model_check::{
    KnownMirror, ModelCheck, ModelFinding, ModelReport, Preprocessing, refuse_relearning,
};
pub use trigger_test::{Memory, Trigger, TriggerTest};

/// Noises of a point when two models are compared.
fn compared_noises() -> usize {
    32
}

/// Rows run at a time.
fn micro_batch_size() -> usize {
    64
}

/// The device of two models, or that of the points for models without parameters.
fn device_of_both<const D: usize>(
    model: &impl Module,
    reference: &impl Module,
    points: &dyn Points<D>,
) -> Result<Device> {
    let [of_model, of_reference] = [model.devices(), reference.devices()];
    let device = match of_model.first().or(of_reference.first()) {
        Some(device) => device.clone(),
        None => points.load(0..1)?.device(),
    };
    if let Some(other) = of_reference.first() {
        check_device("parameters of the reference model", &device, other)?;
    }
    Ok(device)
}
