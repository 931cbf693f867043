//! The embedding that turns a timestep into the vector that the residual blocks receive.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::models::ops;
use crate::process::PredictionType;

/// The longest period of the sinusoids, divided by 2π.
const MAX_PERIOD: f32 = 10_000.0;

/// A network's timestep at the noisy end of the path of flow matching.
pub(crate) const FLOW_TIMESTEPS: usize = 1000;

/// The timesteps of a network whose times are those of the path of flow matching, from 0 to 1: it
/// is trained and run with thousandths, as in diffusers' pipelines. Other timesteps stay.
pub(crate) fn network_timesteps(timesteps: Tensor<1>, predicted: PredictionType) -> Tensor<1> {
    match predicted {
        PredictionType::FlowVelocity => timesteps.mul_scalar(FLOW_TIMESTEPS as f64),
        _ => timesteps,
    }
}

/// diffusers' `get_timestep_embedding`: sines and cosines of geometrically spaced frequencies.
///
/// Always computed in `f32`, because half precision cannot tell neighbouring timesteps apart.
///
/// # Shapes
/// - `timesteps`: `[rows]`
/// - the result: `[rows, size]`; sines first, or cosines first if `cosines_first`
pub(crate) fn sinusoidal_embedding(
    timesteps: Tensor<1>,
    size: usize,
    cosines_first: bool,
    frequency_shift: usize,
) -> Tensor<2> {
    let (rows, half) = (timesteps.dims()[0], size / 2);
    let device = timesteps.device();
    let frequencies = Tensor::<1>::from_data(frequencies(half, frequency_shift), &device);
    let angles = timesteps.cast(DType::F32).unsqueeze_dim::<2>(1) * frequencies.unsqueeze::<2>();
    let (sines, cosines) = (angles.clone().sin(), angles.cos());
    let mut parts = if cosines_first {
        vec![cosines, sines]
    } else {
        vec![sines, cosines]
    };
    if size % 2 == 1 {
        parts.push(Tensor::zeros([rows, 1], (&device, DType::F32)));
    }
    Tensor::cat(parts, 1)
}

/// `exp(−ln(10000) · i / (half − shift))`, with the same rounding as PyTorch.
fn frequencies(half: usize, shift: usize) -> TensorData {
    let divisor = half as f32 - shift as f32;
    let frequencies = (0..half)
        .map(|index| (-MAX_PERIOD.ln() * index as f32 / divisor).exp())
        .collect();
    TensorData::new::<f32, _>(frequencies, [half])
}

/// Two linear layers with `SiLU` between them.
#[derive(Module, Debug)]
pub(crate) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Fresh layers from `inputs` sinusoids to `outputs` features.
    pub(crate) fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            linear_1: LinearConfig::new(inputs, outputs).init(device),
            linear_2: LinearConfig::new(outputs, outputs).init(device),
        }
    }

    /// # Shapes
    /// - `sinusoids`: `[rows, inputs]`
    /// - the result: `[rows, outputs]`
    pub(crate) fn forward(&self, sinusoids: Tensor<2>) -> Tensor<2> {
        let sinusoids = ops::in_type_of(sinusoids, &self.linear_1.weight);
        let hidden = silu(ops::linear(&self.linear_1, sinusoids));
        ops::linear(&self.linear_2, hidden)
    }
}

/// Checks that a network does along the path of flow matching what it does at its own timesteps.
#[cfg(test)]
pub(crate) fn assert_path_is_counted_in_thousandths<M: crate::Denoiser<4>>(
    with: impl Fn(PredictionType) -> M,
    noisy: &Tensor<4>,
    condition: &M::Condition,
) {
    let predict = |predicted, timestep: f32| -> Vec<f32> {
        let timesteps = Tensor::full([noisy.dims()[0]], timestep, &noisy.device());
        let output = with(predicted).predict(noisy.clone(), timesteps, condition);
        output.into_data().try_to_vec().unwrap()
    };
    let flow = predict(PredictionType::FlowVelocity, 0.25);
    assert_eq!(flow, predict(PredictionType::Velocity, 250.0));
    assert_ne!(flow, predict(PredictionType::Velocity, 0.25));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embed(size: usize, cosines_first: bool, shift: usize) -> Vec<f32> {
        let timesteps = Tensor::from_data([2.0f32], &Device::flex());
        let embedding = sinusoidal_embedding(timesteps, size, cosines_first, shift);
        embedding.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn sines_then_cosines_or_the_other_way_round() {
        let (first, second) = (2.0f32, 0.02f32);
        let expected = [first.sin(), second.sin(), first.cos(), second.cos()];
        let flipped = [first.cos(), second.cos(), first.sin(), second.sin()];
        for (got, expected) in [(embed(4, false, 0), expected), (embed(4, true, 0), flipped)] {
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-6, "{got} {expected}");
            }
        }
    }

    #[test]
    fn the_shift_ends_the_frequencies_at_the_longest_period() {
        assert!((embed(4, false, 1)[1] - 2e-4f32.sin()).abs() < 1e-9);
    }

    #[test]
    fn an_odd_size_is_padded_with_a_zero() {
        let embedding = embed(5, false, 0);
        assert_eq!(embedding.len(), 5);
        assert_eq!(embedding[4], 0.0);
    }
}
