//! Measures how well a model knows data: the loss of single points, and whether the data are
//! prepared as they were for the model's training.

mod answer_distance;
mod denoising_loss;
mod model_check;

pub use answer_distance::{AnswerComparison, AnswerDistance};
pub use denoising_loss::DenoisingLoss;
pub(crate) use denoising_loss::{parts, residual, row_losses};
pub use model_check::{
    KnownMirror, ModelCheck, ModelFinding, ModelReport, Preprocessing, refuse_relearning,
};
