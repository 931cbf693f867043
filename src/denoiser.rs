//! The user's model: a burn module behind one method, of any rank and with any condition.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

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
    /// - `timesteps`: `[rows]`, as the scheduler counts them (`0, …, T − 1`, or continuous time)
    /// - `condition`: `rows` rows
    fn predict(
        &self,
        noisy: Tensor<D>,
        timesteps: Tensor<1>,
        condition: &Self::Condition,
    ) -> Tensor<D>;
}

/// What a prediction is conditioned on, one entry a row.
///
/// The trainer runs parts of a batch, so it must be able to take some of the rows.
pub trait Condition: Clone + Send {
    /// The rows with these indices, in this order. Called with indices below the number that
    /// [`check_rows`](Condition::check_rows) accepted.
    fn select(&self, rows: &[usize]) -> Self;

    /// Whether there is one entry for each of `rows` rows; `()` fits any number.
    ///
    /// # Errors
    /// The number of entries that there are instead.
    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize>;
}

impl Condition for () {
    fn select(&self, _rows: &[usize]) -> Self {}

    fn check_rows(&self, _rows: usize) -> std::result::Result<(), usize> {
        Ok(())
    }
}

impl<const D: usize> Condition for Tensor<D> {
    fn select(&self, rows: &[usize]) -> Self {
        let index = row_index(rows, &self.device());
        Tensor::select(self.clone(), 0, index)
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        check_count(self.dims()[0], rows)
    }
}

impl<const D: usize> Condition for Tensor<D, Int> {
    fn select(&self, rows: &[usize]) -> Self {
        let index = row_index(rows, &self.device());
        Tensor::select(self.clone(), 0, index)
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        check_count(self.dims()[0], rows)
    }
}

impl<A: Condition, B: Condition> Condition for (A, B) {
    fn select(&self, rows: &[usize]) -> Self {
        (self.0.select(rows), self.1.select(rows))
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        self.0.check_rows(rows)?;
        self.1.check_rows(rows)
    }
}

fn check_count(found: usize, rows: usize) -> std::result::Result<(), usize> {
    if found == rows { Ok(()) } else { Err(found) }
}

/// Row numbers as an index tensor, for `Tensor::select` along dimension 0.
pub(crate) fn row_index(rows: &[usize], device: &burn::tensor::Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
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
    /// What the model should have said at a noisy point made of `clean` and `noise`.
    ///
    /// # Shapes
    /// - `clean`, `noise` and the result: `[batch, …]`; `signal_scale`, `noise_scale`: `[batch, 1, …]`
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
}
