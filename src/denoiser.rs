//! The user's model: a burn module behind one method, of any rank and with any condition.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::host::row_index;

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
/// let prediction = model.predict(Tensor::zeros([5, 3], &device), Tensor::zeros([5], &device), &());
/// assert_eq!(prediction.dims(), [5, 3]);
/// ```
pub trait Denoiser<const D: usize>: Module {
    /// What the prediction is conditioned on: `()` for nothing, a tensor, a tuple, a type of your own.
    type Condition: Condition;

    /// The model's output for a batch of noisy points.
    ///
    /// Must not mix rows: a row's output may depend on its own input alone.
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

    /// Whether the model takes inputs of this shape, `[rows, …]`: the place to refuse a wrong number of channels with an
    /// error instead of a panic in [`predict`](Denoiser::predict). Accepts everything unless implemented.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch), or another that says what the model takes.
    fn check_input(&self, shape: [usize; D]) -> Result<()> {
        let _ = shape;
        Ok(())
    }
}

/// What a prediction is conditioned on, one entry a row.
///
/// The trainer runs parts of a batch, so it must be able to take some of the rows.
pub trait Condition: Clone + Send {
    /// Whether it says nothing of a point, as `()`. What looks at points of one class alone asks for it.
    const IS_EMPTY: bool = false;

    /// The rows with these indices, in this order; an index may come twice. Called with indices below the number that
    /// [`check_rows`](Condition::check_rows) accepted.
    fn select(&self, rows: &[usize]) -> Self;

    /// Whether there is one entry for each of `rows` rows; `()` fits any number.
    ///
    /// # Errors
    /// The number of entries that there are instead.
    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize>;

    /// The same on another device, for [`SissTrainer::self_check`](crate::SissTrainer::self_check).
    fn to_device(self, device: &Device) -> Self;
}

impl Condition for () {
    const IS_EMPTY: bool = true;

    fn select(&self, _rows: &[usize]) -> Self {}

    fn check_rows(&self, _rows: usize) -> std::result::Result<(), usize> {
        Ok(())
    }

    fn to_device(self, _device: &Device) -> Self {}
}

impl<const D: usize> Condition for Tensor<D> {
    fn select(&self, rows: &[usize]) -> Self {
        Tensor::select(self.clone(), 0, row_index(rows, &self.device()))
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        check_count(self.dims()[0], rows)
    }

    fn to_device(self, device: &Device) -> Self {
        Tensor::to_device(self, device)
    }
}

impl<const D: usize> Condition for Tensor<D, Int> {
    fn select(&self, rows: &[usize]) -> Self {
        Tensor::select(self.clone(), 0, row_index(rows, &self.device()))
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        check_count(self.dims()[0], rows)
    }

    fn to_device(self, device: &Device) -> Self {
        Tensor::to_device(self, device)
    }
}

impl<A: Condition, B: Condition> Condition for (A, B) {
    const IS_EMPTY: bool = A::IS_EMPTY && B::IS_EMPTY;

    fn select(&self, rows: &[usize]) -> Self {
        (self.0.select(rows), self.1.select(rows))
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        self.0.check_rows(rows)?;
        self.1.check_rows(rows)
    }

    fn to_device(self, device: &Device) -> Self {
        (self.0.to_device(device), self.1.to_device(device))
    }
}

fn check_count(found: usize, rows: usize) -> std::result::Result<(), usize> {
    if found == rows { Ok(()) } else { Err(found) }
}

/// What a model predicts. All kinds are affine in (clean point, noise), so every objective works with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PredictionType {
    /// The noise `ε`.
    #[default]
    Epsilon,
    /// The clean point `x_0`.
    Sample,
    /// `v = γ ε − σ x_0` (Salimans and Ho 2022).
    Velocity,
    /// The velocity of the straight path of flow matching, `ε − x_0`.
    FlowVelocity,
}

impl PredictionType {
    /// By how much the output changes where the clean point that explains a given noisy one does: targets are linear in clean point
    /// and noise, and the noise that explains the same noisy point changes by `−ρ = −γ/σ`.
    pub(crate) fn slope(self, signal_scale: f64, noise_scale: f64) -> f64 {
        let ratio = signal_scale / noise_scale;
        match self {
            PredictionType::Epsilon => -ratio,
            PredictionType::Sample => 1.0,
            PredictionType::Velocity => -(signal_scale * ratio + noise_scale),
            PredictionType::FlowVelocity => -(ratio + 1.0),
        }
    }

    /// What the model should have said at a noisy point made of `clean` and `noise`.
    ///
    /// # Shapes
    /// - `clean`, `noise` and the result: `[batch, …]`; `signal_scale`, `noise_scale`: `[batch, 1, …]`
    ///
    /// # Panics
    /// As burn's arithmetic, for shapes that do not fit each other.
    pub fn target<const D: usize>(
        self,
        clean: Tensor<D>,
        noise: Tensor<D>,
        signal_scale: Tensor<D>,
        noise_scale: Tensor<D>,
    ) -> Tensor<D> {
        match self {
            PredictionType::Epsilon => noise,
            PredictionType::Sample => clean,
            PredictionType::Velocity => noise * signal_scale - clean * noise_scale,
            PredictionType::FlowVelocity => noise - clean,
        }
    }

    /// The clean point and the noise that a model output `y` stands for at a noisy point `m = γ x_0 + σ ε`: the inverse of
    /// [`target`](PredictionType::target).
    ///
    /// | kind | `x_0` | `ε` |
    /// |---|---|---|
    /// | `Epsilon` | `(m − σ y) / γ` | `y` |
    /// | `Sample` | `y` | `(m − γ y) / σ` |
    /// | `Velocity` | `(γ m − σ y) / (γ² + σ²)` | `(σ m + γ y) / (γ² + σ²)` |
    /// | `FlowVelocity` | `(m − σ y) / (γ + σ)` | `(m + γ y) / (γ + σ)` |
    ///
    /// Without signal (`γ = 0`) a predicted noise says nothing about the clean point, and without noise (`σ = 0`) a
    /// predicted sample says nothing about the noise: that part is then not finite.
    ///
    /// # Shapes
    /// - `noisy`, `model_output` and the results: `[batch, …]`; `signal_scale`, `noise_scale`: `[batch, 1, …]`
    ///
    /// # Panics
    /// As burn's arithmetic, for shapes that do not fit each other.
    ///
    /// # Example
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use siss::PredictionType;
    ///
    /// let device = Device::flex();
    /// let one = |value: f32| Tensor::<2>::from_data([[value]], &device);
    /// let (clean, noise, gamma, sigma) = (one(2.0), one(3.0), one(0.8), one(0.6));
    /// let noisy = clean.clone() * gamma.clone() + noise.clone() * sigma.clone();
    /// let velocity = PredictionType::Velocity.target(clean, noise, gamma.clone(), sigma.clone());
    /// let (clean, noise) = PredictionType::Velocity.clean_and_noise(noisy, velocity, gamma, sigma);
    /// assert!((clean.into_scalar::<f32>() - 2.0).abs() < 1e-6);
    /// assert!((noise.into_scalar::<f32>() - 3.0).abs() < 1e-6);
    /// ```
    pub fn clean_and_noise<const D: usize>(
        self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        signal_scale: Tensor<D>,
        noise_scale: Tensor<D>,
    ) -> (Tensor<D>, Tensor<D>) {
        let (gamma, sigma) = (signal_scale, noise_scale);
        match self {
            PredictionType::Epsilon => {
                let clean = (noisy - model_output.clone() * sigma) / gamma;
                (clean, model_output)
            }
            PredictionType::Sample => {
                let noise = (noisy - model_output.clone() * gamma) / sigma;
                (model_output, noise)
            }
            PredictionType::Velocity => {
                let size = gamma.clone().square() + sigma.clone().square();
                let clean = noisy.clone() * gamma.clone() - model_output.clone() * sigma.clone();
                let noise = noisy * sigma + model_output * gamma;
                (clean / size.clone(), noise / size)
            }
            PredictionType::FlowVelocity => {
                let sum = gamma.clone() + sigma.clone();
                let clean = noisy.clone() - model_output.clone() * sigma;
                let noise = noisy + model_output * gamma;
                (clean / sum.clone(), noise / sum)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn conditions_select_rows_in_order() {
        let device = Device::flex();
        let prompt = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let class = Tensor::<1, Int>::from_data([7, 8, 9], &device);
        let condition = ((), (prompt, class));
        assert_eq!(condition.check_rows(3), Ok(()));
        assert_eq!(condition.check_rows(2), Err(3));
        let uneven = (
            Tensor::<1>::zeros([3], &device),
            Tensor::<1>::zeros([4], &device),
        );
        assert_eq!(uneven.check_rows(3), Err(4));
        let ((), (prompt, class)) = condition.select(&[2, 0]);
        assert_eq!(
            prompt.into_data().try_to_vec::<f32>().unwrap(),
            [5.0, 6.0, 1.0, 2.0]
        );
        assert_eq!(class.into_data().iter::<i64>().collect::<Vec<_>>(), [9, 7]);
    }

    #[test]
    fn targets_follow_their_definition() {
        let device = Device::flex();
        let one = |value: f32| Tensor::<1>::from_data([value], &device);
        let target = |kind: PredictionType| {
            kind.target(one(2.0), one(3.0), one(0.8), one(0.6))
                .into_scalar::<f32>()
        };
        assert_eq!(target(PredictionType::Epsilon), 3.0);
        assert_eq!(target(PredictionType::Sample), 2.0);
        assert!((target(PredictionType::Velocity) - (0.8 * 3.0 - 0.6 * 2.0)).abs() < 1e-6);
        assert_eq!(target(PredictionType::FlowVelocity), 1.0);
    }

    /// At scales whose squares add up to 1 and at others, for one row each.
    #[test]
    fn an_output_stands_for_the_clean_point_and_the_noise_of_its_target() {
        let device = Device::flex();
        let column = |values: [f32; 3]| Tensor::<1>::from_data(values, &device).reshape([3, 1]);
        let (gamma, sigma) = (column([0.8, 0.3, 1.0]), column([0.6, 0.7, 2.0]));
        let clean = Tensor::<2>::from_data([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.5]], &device);
        let noise = Tensor::<2>::from_data([[3.0, 0.25], [-1.0, 1.0], [0.0, -2.0]], &device);
        let noisy = clean.clone() * gamma.clone() + noise.clone() * sigma.clone();
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
            PredictionType::FlowVelocity,
        ] {
            let output = kind.target(clean.clone(), noise.clone(), gamma.clone(), sigma.clone());
            let (found_clean, found_noise) =
                kind.clean_and_noise(noisy.clone(), output, gamma.clone(), sigma.clone());
            for (found, expected) in [(found_clean, &clean), (found_noise, &noise)] {
                let worst = (found - expected.clone()).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5, "{kind:?}: {worst}");
            }
        }
    }
}
