//! The layers of the feature networks, with their weights as they are when a network only predicts.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::module::{avg_pool2d, conv2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};

use super::weights::Loader;
use crate::error::Result;

/// A convolution without bias, with the batch normalisation that follows it in its weights:
/// `w' = w g / √(v + ε)` and `b' = b − m g / √(v + ε)`.
#[derive(Debug, Clone)]
pub(super) struct Convolution {
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: [usize; 2],
    padding: [usize; 2],
}

/// The shape of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: [usize; 2],
    pub(super) stride: usize,
    pub(super) padding: [usize; 2],
}

impl Shape {
    /// A square kernel with the padding that keeps the size at stride 1.
    pub(super) fn square(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self {
            inputs,
            outputs,
            kernel: [kernel; 2],
            stride: 1,
            padding: [kernel / 2; 2],
        }
    }

    /// A kernel of any shape with the padding that keeps the size.
    pub(super) fn oblong(inputs: usize, outputs: usize, kernel: [usize; 2]) -> Self {
        Self {
            kernel,
            padding: kernel.map(|size| size / 2),
            ..Self::square(inputs, outputs, 1)
        }
    }

    pub(super) fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    pub(super) fn without_padding(self) -> Self {
        Self {
            padding: [0, 0],
            ..self
        }
    }
}

impl Convolution {
    /// The convolution `{layer}.weight` with the normalisation `{norm}.*`.
    pub(super) fn load(
        loader: &mut Loader<'_, '_>,
        layer: &str,
        norm: &str,
        shape: Shape,
        epsilon: f32,
    ) -> Result<Self> {
        let Shape {
            inputs,
            outputs,
            kernel: [tall, wide],
            stride,
            padding,
        } = shape;
        let weight = loader.tensor(&format!("{layer}.weight"), [outputs, inputs, tall, wide])?;
        let mut of_norm = |part: &str| loader.values(&format!("{norm}.{part}"), &[outputs]);
        let (gain, offset) = (of_norm("weight")?, of_norm("bias")?);
        let (mean, variance) = (of_norm("running_mean")?, of_norm("running_var")?);
        let gain = gain
            .iter()
            .zip(variance)
            .map(|(gain, it)| gain / (it + epsilon).sqrt());
        let gain: Vec<f32> = gain.collect();
        let bias = offset.iter().zip(mean.iter().zip(&gain));
        let bias = bias
            .map(|(offset, (mean, gain))| offset - mean * gain)
            .collect();
        let gain = loader.vector(gain).reshape([outputs, 1, 1, 1]);
        Ok(Self {
            weight: weight * gain,
            bias: loader.vector(bias),
            stride: [stride; 2],
            padding,
        })
    }

    pub(super) fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new(self.stride, self.padding, [1, 1], 1);
        conv2d(input, self.weight.clone(), Some(self.bias.clone()), options)
    }

    pub(super) fn forward_relu(&self, input: Tensor<4>) -> Tensor<4> {
        relu(self.forward(input))
    }
}

/// A linear layer.
#[derive(Debug, Clone)]
pub(super) struct Affine {
    /// `[inputs, outputs]`.
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl Affine {
    /// The layer `{name}.weight`, `{name}.bias`.
    pub(super) fn load(
        loader: &mut Loader<'_, '_>,
        name: &str,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Self> {
        let weight = loader.tensor(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = loader.tensor(&format!("{name}.bias"), [outputs])?;
        Ok(Self::new(weight, bias))
    }

    /// From a weight `[outputs, inputs]`.
    pub(super) fn new(weight: Tensor<2>, bias: Tensor<1>) -> Self {
        Self {
            weight: weight.transpose(),
            bias,
        }
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub(super) fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        self.without_bias(input) + self.bias.clone().unsqueeze()
    }

    pub(super) fn without_bias(&self, input: Tensor<2>) -> Tensor<2> {
        input.matmul(self.weight.clone())
    }

    /// `[rows, places, inputs]` to `[rows, places, outputs]`.
    pub(super) fn forward_places(&self, input: Tensor<3>) -> Tensor<3> {
        let [rows, places, inputs] = input.dims();
        let output = self.forward(input.reshape([rows * places, inputs]));
        let outputs = output.dims()[1];
        output.reshape([rows, places, outputs])
    }
}

/// The largest of 3×3.
pub(super) fn max_pool(input: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let options = MaxPoolOptions::new([3, 3]);
    max_pool2d(
        input,
        options.with_stride([stride; 2]).with_padding([padding; 2]),
    )
}

/// The mean of 3×3 around each place, of the places that exist.
pub(super) fn mean_around(input: Tensor<4>) -> Tensor<4> {
    let options = AvgPoolOptions::new([3, 3])
        .with_stride([1, 1])
        .with_padding([1, 1]);
    avg_pool2d(input, options.with_count_include_pad(false))
}

/// The mean of squares of a size, side by side.
pub(super) fn mean_squares(input: Tensor<4>, size: usize) -> Tensor<4> {
    avg_pool2d(input, AvgPoolOptions::new([size; 2]).with_stride([size; 2]))
}

/// The mean over places: `[rows, channels, height, width]` to `[rows, channels]`.
pub(super) fn mean_places(input: Tensor<4>) -> Tensor<2> {
    let [rows, channels, height, width] = input.dims();
    let places = input.reshape([rows, channels, height * width]);
    places.mean_dim(2).reshape([rows, channels])
}

/// Subtracts a mean from each channel of pictures in `[0, 255]` and divides by a deviation, both in
/// units of 255.
pub(super) fn standardise(pictures: Tensor<4>, mean: [f32; 3], deviation: [f32; 3]) -> Tensor<4> {
    let device = pictures.device();
    let channels = |values: [f32; 3]| {
        crate::host::tensor(
            values.map(|value| value * 255.0).to_vec(),
            [1, 3, 1, 1],
            &device,
        )
    };
    (pictures - channels(mean)) / channels(deviation)
}
