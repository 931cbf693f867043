//! Runs the operations of a network one by one on two devices and compares outputs and gradients.

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Gradients, Tensor};

use super::ops;
use super::trace::{Operation, recorded};
use crate::draws::{Stream, normal_noise};
use crate::error::Result;
use crate::host::{read_f32, to_f32};

/// The operations that networks ran.
#[derive(Debug)]
pub(crate) struct Operations(Vec<Operation>);

impl Operations {
    /// Runs a function and keeps the operations that networks run in it on this thread.
    pub(crate) fn of<T>(run: impl FnOnce() -> T) -> (T, Self) {
        let (result, operations) = recorded(run);
        (result, Self(operations))
    }

    /// The operations whose output or gradients on `device` are off by more than `tolerance`,
    /// with their largest error relative to the reference, worst first.
    ///
    /// Each kind and size runs once, on random inputs with the parameters of the layer that was
    /// recorded first.
    pub(crate) fn off(
        &self,
        device: &Device,
        reference: &Device,
        tolerance: f64,
    ) -> Result<Vec<(String, f64)>> {
        let mut seen = HashSet::new();
        let mut off = Vec::new();
        for operation in &self.0 {
            let name = operation.to_string();
            if !seen.insert(name.clone()) {
                continue;
            }
            let here = answers(operation, device)?;
            let error = largest_error(&here, &answers(operation, reference)?);
            if error.is_nan() || error > tolerance {
                off.push((name, error));
            }
        }
        off.sort_by(|(_, a), (_, b)| b.abs().total_cmp(&a.abs()));
        Ok(off)
    }
}

/// `max ‖a − a*‖ / ‖a*‖` over output and gradients.
fn largest_error(here: &[Vec<f32>], there: &[Vec<f32>]) -> f64 {
    let error = |(here, there): (&Vec<f32>, &Vec<f32>)| {
        let pairs = here.iter().zip(there);
        let difference: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let size: f64 = there.iter().map(|b| f64::from(*b).powi(2)).sum();
        match difference == 0.0 {
            true => 0.0,
            false => (difference / size).sqrt(),
        }
    };
    let errors = here.iter().zip(there).map(error);
    errors.fold(0.0, |worst: f64, error| match error.is_nan() {
        true => f64::NAN,
        false if worst.is_nan() => worst,
        false => worst.max(error),
    })
}

/// The output of an operation for random inputs; the gradients of its inputs and parameters for a
/// random gradient of the output.
fn answers(operation: &Operation, device: &Device) -> Result<Vec<Vec<f32>>> {
    let no_layer = Vec::<Linear>::new();
    match operation {
        Operation::Convolution { layer, input } => {
            answers_of(layer, [*input], device, |layer, [input]| {
                ops::convolve(layer, input)
            })
        }
        Operation::GroupNorm {
            layer,
            input,
            activated,
        } => answers_of(layer, [*input], device, |layer, [input]| match activated {
            true => ops::group_norm_silu(layer, input),
            false => ops::group_norm(layer, input),
        }),
        Operation::Enlargement { input, size } => {
            answers_of(&no_layer, [*input], device, |_, [input]| {
                ops::enlarge(input, *size)
            })
        }
        Operation::Activation { activation, input } => {
            answers_of(&no_layer, [*input], device, |_, [input]| {
                ops::activate(*activation, input)
            })
        }
        Operation::Projection { layer, input } => {
            answers_of(layer, [*input], device, |layer, [input]| {
                ops::project(layer, input)
            })
        }
        Operation::Attention {
            query: [rows, channels, positions],
            sources,
            heads,
        } => {
            let source = [*rows, *channels, *sources];
            let shapes = [[*rows, *channels, *positions], source, source];
            answers_of(&no_layer, shapes, device, |_, inputs| {
                let [query, key, value] = inputs;
                ops::attend(query, key, value, *heads)
            })
        }
    }
}

fn answers_of<M: Module, const D: usize, const N: usize>(
    layer: &M,
    shapes: [[usize; D]; N],
    device: &Device,
    run: impl Fn(&M, [Tensor<D>; N]) -> Tensor<D>,
) -> Result<Vec<Vec<f32>>> {
    let random = |shape, seed| normal_noise::<D>(shape, seed, 0, 0, Stream::Evaluation, device);
    let layer = layer.clone().valid().fork(device).train();
    let mut seed = 0;
    let inputs = shapes.map(|shape| {
        seed += 1;
        random(shape, seed).autodiff().require_grad()
    });
    let output = run(&layer, inputs.clone());
    let gradient = random(output.dims(), 0);
    let gradients = (output.clone() * gradient).sum().backward();
    let mut answers = vec![read(output.inner())?];
    for input in inputs {
        answers.extend(input.grad(&gradients).map(read).transpose()?);
    }
    let mut parameters = ParameterGradients {
        gradients: &gradients,
        found: Vec::new(),
    };
    layer.visit(&mut parameters);
    let parameters: Result<Vec<_>> = parameters.found.into_iter().collect();
    answers.extend(parameters?);
    Ok(answers)
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    read_f32(to_f32(tensor), "the answers of a single operation")
}

struct ParameterGradients<'a> {
    gradients: &'a Gradients,
    found: Vec<Result<Vec<f32>>>,
}

impl ModuleVisitor for ParameterGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found
            .extend(param.val().grad(self.gradients).map(read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoiser::Denoiser;
    use crate::models::{DitConfig, DownBlockType, UNet2dConfig, UpBlockType};
    use burn::tensor::Distribution;

    #[test]
    fn every_operation_of_a_network_is_recorded_and_agrees_with_itself() {
        let device = Device::flex();
        let config = UNet2dConfig {
            sample_size: Some([8; 2]),
            in_channels: 1,
            out_channels: 1,
            layers_per_block: 1,
            block_out_channels: vec![8, 16],
            norm_num_groups: 4,
            attention_head_dim: Some(8),
            down_block_types: vec![DownBlockType::Resnet, DownBlockType::Attention],
            up_block_types: vec![UpBlockType::Attention, UpBlockType::Resnet],
            ..UNet2dConfig::default()
        };
        let network = config.init(&device).unwrap();
        let noisy = Tensor::random([2, 1, 8, 8], Distribution::Default, &device);
        let timesteps = Tensor::from_data([3.0, 5.0], &device);
        let (_, operations) = Operations::of(|| network.predict(noisy, timesteps, &()));
        let names: Vec<String> = operations.0.iter().map(ToString::to_string).collect();
        for part in [
            "3×3 convolution",
            "group norm with",
            "enlargement",
            "linear",
            "attention",
        ] {
            assert!(names.iter().any(|name| name.contains(part)), "{names:?}");
        }
        let off = operations.off(&device, &device, 1e-6).unwrap();
        assert_eq!(off, []);
        // A tolerance that nothing can meet: every operation is named once.
        let off = operations.off(&device, &device, -1.0).unwrap();
        let distinct: HashSet<&String> = names.iter().collect();
        assert_eq!(off.len(), distinct.len());
    }

    #[test]
    fn the_activation_of_a_transformer_is_recorded_and_agrees_with_itself() {
        let device = Device::flex();
        let config = DitConfig {
            num_attention_heads: 2,
            attention_head_dim: 4,
            num_layers: 1,
            sample_size: 4,
            num_embeds_ada_norm: 3,
            ..DitConfig::default()
        };
        let network = config.init(&device).unwrap();
        let noisy = Tensor::random([2, 4, 4, 4], Distribution::Default, &device);
        let timesteps = Tensor::from_data([3.0, 5.0], &device);
        let labels = Tensor::from_data([0, 3], &device);
        let (_, operations) = Operations::of(|| network.predict(noisy, timesteps, &labels));
        assert_eq!(operations.off(&device, &device, 1e-6).unwrap(), []);
        let names = operations.0.iter().map(ToString::to_string);
        assert!(
            names
                .into_iter()
                .any(|name| name == "GELU of 32 channels at 4 positions")
        );
    }

    #[test]
    fn the_largest_error_is_relative_and_nan_is_the_largest() {
        let there = [vec![3.0, 4.0], vec![1.0]];
        assert_eq!(largest_error(&there.clone(), &there), 0.0);
        assert_eq!(largest_error(&[vec![3.0, 4.5], vec![1.0]], &there), 0.1);
        assert!(largest_error(&[vec![f32::NAN, 4.0], vec![9.0]], &there).is_nan());
    }
}
