//! The user's model: a burn module with one method, of any rank and with any condition.

mod condition;
mod frozen;
mod function;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::error::Result;
use crate::process::PredictionType;

pub use condition::Condition;
#[cfg(feature = "models")]
pub(crate) use condition::as_rows;
pub(crate) use frozen::frozen_output;
pub use function::FnDenoiser;

/// A denoising network of rank `D` (audio 3, images 4, video 5).
///
/// # Example
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::{Device, Tensor};
/// use siss::Denoiser;
///
/// #[derive(Module, Debug)]
/// struct Model {
///     linear: Linear,
/// }
///
/// impl Denoiser<2> for Model {
///     type Condition = ();
///     fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
///         self.linear.forward(Tensor::cat(vec![noisy, timesteps.unsqueeze_dim(1)], 1))
///     }
/// }
///
/// let device = Device::flex();
/// let model = Model { linear: LinearConfig::new(4, 3).init(&device) };
/// let noisy = Tensor::zeros([5, 3], &device);
/// let prediction = model.predict(noisy, Tensor::zeros([5], &device), &());
/// assert_eq!(prediction.dims(), [5, 3]);
/// ```
pub trait Denoiser<const D: usize>: Module {
    /// The condition of the prediction: `()` for none, a tensor, a tuple, or a type of your own.
    type Condition: Condition;

    /// The model's output for a batch of noisy points.
    ///
    /// Must not mix rows: a row's output may depend only on that row's input.
    ///
    /// # Shapes
    /// - `noisy` and the result: `[rows, …]`
    /// - all inputs are f32
    /// - `timesteps`: `[rows]`, as the scheduler counts them (`0, …, T − 1`, or continuous time)
    /// - `condition`: `rows` rows
    fn predict(
        &self,
        noisy: Tensor<D>,
        timesteps: Tensor<1>,
        condition: &Self::Condition,
    ) -> Tensor<D>;

    /// What the model's output is; the noise by default.
    ///
    /// Only the model says this: trainer, samplers, steering and [`evaluate`](crate::evaluate) ask
    /// the model, and refuse a scheduler whose configuration says otherwise.
    ///
    /// If a model predicts something else and does not say so, it learns the wrong thing, and no
    /// number shows it.
    fn prediction_type(&self) -> PredictionType {
        PredictionType::Epsilon
    }

    /// Checks whether the model accepts inputs of this shape, `[rows, …]`; accepts everything by
    /// default.
    ///
    /// Implement it to refuse, for example, a wrong number of channels with an error instead of a
    /// panic in [`predict`](Denoiser::predict).
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch), or another error that says what the
    /// model accepts.
    fn check_input(&self, shape: [usize; D]) -> Result<()> {
        let _ = shape;
        Ok(())
    }

    /// Checks whether the model accepts a condition; accepts everything by default. The number of
    /// rows is checked apart ([`Condition::check_rows`]).
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch), or another error that says what the
    /// model accepts.
    fn check_condition(&self, condition: &Self::Condition) -> Result<()> {
        let _ = condition;
        Ok(())
    }
}
