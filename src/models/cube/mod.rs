//! Operations of a network on wgpu and CUDA by kernels of the crate's own, each with its backward
//! pass.
//!
//! Each function here returns `None` where it does not apply: on another device, for another number
//! type, or for a shape that it leaves to burn.

mod attention;
mod bias;
mod convolution;
mod norm;
mod operations;
mod shapes;
mod softmax;

#[cfg(test)]
mod tests;

use burn::backend::{Dispatch, DispatchTensorKind, TensorMetadata};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeDevice;

use self::operations::CubeOperations;
use self::shapes::{AttentionShape, AttentionTile, ConvolutionShape, GroupNormShape, Window};

/// Whether the kernels accept a tensor.
pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    let is_numbers = tensor.dtype() == DType::F32 && tensor.shape().num_elements() > 0;
    is_numbers && device_of(tensor).is_some()
}

/// The device of a tensor that kernels can reach.
fn device_of<const D: usize>(tensor: &Tensor<D>) -> Option<CubeDevice> {
    let kind = match tensor.clone().into_dispatch().kind {
        DispatchTensorKind::Autodiff(inner) => *inner,
        kind => kind,
    };
    match kind {
        DispatchTensorKind::Cube(tensor) => Some(tensor.device()),
        #[allow(
            unreachable_patterns,
            reason = "reached where burn has another backend"
        )]
        _ => None,
    }
}

/// Group normalisation, followed by `SiLU` where `activated`.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, height, width]`
/// - `gain` and `offset`: `[channels]`
pub(crate) fn group_norm(
    input: &Tensor<4>,
    gain: &Tensor<1>,
    offset: &Tensor<1>,
    groups: usize,
    epsilon: f64,
    activated: bool,
) -> Option<Tensor<4>> {
    let [_, channels, height, width] = input.dims();
    let fits = gain.dims() == [channels] && offset.dims() == [channels];
    let divides = groups > 0 && channels.is_multiple_of(groups);
    if !(fits && divides && takes(input) && takes(gain) && takes(offset)) {
        return None;
    }
    let shape = GroupNormShape {
        groups,
        members: channels / groups,
        pixels: height * width,
        epsilon,
        activated,
    };
    let [gain, offset] = [gain, offset].map(|tensor| tensor.clone().into_dispatch());
    let input = input.clone().into_dispatch();
    let output = <Dispatch as CubeOperations>::group_norm(input, gain, offset, shape);
    Some(Tensor::from_dispatch(output))
}

/// Convolution in two dimensions with a single group, and `onto` added to it.
///
/// # Shapes
/// - `input`: `[rows, inputs, height, width]`
/// - `weight`: `[outputs, inputs, kernel height, kernel width]`
/// - `bias`: `[outputs]`
/// - `onto`: the result's, or `[rows, outputs, 1, 1]`
pub(crate) fn convolve(
    input: &Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    onto: Option<&Tensor<4>>,
    options: &ConvOptions<2>,
) -> Option<Tensor<4>> {
    let shape = convolution_shape(input, weight, options)?;
    run(input, weight, bias, onto, shape)
}

/// A linear layer over the channels of channel-major features, and `onto` added to it.
///
/// # Shapes
/// - `input`: `[rows, inputs, positions]`
/// - `weight`: `[inputs, outputs]`
/// - `bias`: `[outputs]`
/// - `onto` and the result: `[rows, outputs, positions]`
pub(crate) fn project(
    input: &Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    onto: Option<&Tensor<3>>,
) -> Option<Tensor<3>> {
    let ([rows, inputs, positions], [kernel_inputs, outputs]) = (input.dims(), weight.dims());
    let products = rows * positions * inputs * outputs;
    if inputs != kernel_inputs || products > MOST_PRODUCTS || !takes(input) {
        return None;
    }
    let shape = ConvolutionShape::linear(rows, inputs, outputs, positions);
    let as_map = |tensor: &Tensor<3>| tensor.clone().unsqueeze_dim::<4>(2);
    let onto = onto.map(as_map);
    let output = run(&as_map(input), weight, bias, onto.as_ref(), shape)?;
    Some(output.squeeze_dim(2))
}

/// Most products of a linear layer that this crate's kernel adds: for more, burn's matrix product,
/// which may use tensor cores, is worth its further launches.
const MOST_PRODUCTS: usize = 1 << 28;

fn run<const W: usize>(
    input: &Tensor<4>,
    weight: &Tensor<W>,
    bias: Option<&Tensor<1>>,
    onto: Option<&Tensor<4>>,
    shape: ConvolutionShape,
) -> Option<Tensor<4>> {
    let output = [shape.rows, shape.outputs, shape.out_height, shape.out_width];
    let maps = [shape.rows, shape.outputs, 1, 1];
    let bias_fits = bias.is_none_or(|bias| takes(bias) && bias.dims() == [shape.outputs]);
    let onto_fits = onto.is_none_or(|onto| takes(onto) && [output, maps].contains(&onto.dims()));
    if !(takes(input) && takes(weight) && bias_fits && onto_fits) {
        return None;
    }
    let bias = bias.cloned();
    let bias =
        bias.unwrap_or_else(|| Tensor::zeros([shape.outputs], (&input.device(), DType::F32)));
    let (input, weight) = (
        input.clone().into_dispatch(),
        weight.clone().into_dispatch(),
    );
    let bias = bias.into_dispatch();
    let output = match onto {
        Some(onto) => {
            let onto = onto.clone().into_dispatch();
            <Dispatch as CubeOperations>::convolution_onto(input, weight, bias, onto, shape)
        }
        None => <Dispatch as CubeOperations>::convolution(input, weight, bias, shape),
    };
    Some(Tensor::from_dispatch(output))
}

fn convolution_shape(
    input: &Tensor<4>,
    weight: &Tensor<4>,
    options: &ConvOptions<2>,
) -> Option<ConvolutionShape> {
    let [rows, inputs, height, width] = input.dims();
    let [outputs, kernel_inputs, tall, wide] = weight.dims();
    if options.groups != 1 || inputs != kernel_inputs {
        return None;
    }
    let ([above, left], [below, right]) = (options.padding_begin(), options.padding_end());
    let ([stride_y, stride_x], [dilation_y, dilation_x]) = (options.stride, options.dilation);
    let positions = |padded: usize, kernel: usize, dilation: usize, stride: usize| {
        let reach = dilation * kernel.checked_sub(1)?;
        Some(padded.checked_sub(reach + 1)? / stride + 1)
    };
    Some(ConvolutionShape {
        rows,
        inputs,
        height,
        width,
        outputs,
        out_height: positions(above + height + below, tall, dilation_y, stride_y)?,
        out_width: positions(left + width + right, wide, dilation_x, stride_x)?,
        window: Window {
            tall,
            wide,
            stride_y,
            stride_x,
            dilation_y,
            dilation_x,
            above,
            left,
            linear: false,
        },
    })
}

/// Scaled dot-product attention over channel-major features, with `heads` heads side by side.
///
/// # Shapes
/// - `query` and the result: `[rows, channels, positions]`
/// - `key` and `value`: `[rows, channels, sources]`
pub(crate) fn attend(
    query: &Tensor<3>,
    key: &Tensor<3>,
    value: &Tensor<3>,
    heads: usize,
) -> Option<Tensor<3>> {
    let [rows, channels, positions] = query.dims();
    let [_, _, sources] = key.dims();
    let fits = key.dims() == [rows, channels, sources] && value.dims() == key.dims();
    let divides = heads > 0 && channels.is_multiple_of(heads);
    if !(fits && divides && takes(query) && takes(key) && takes(value)) {
        return None;
    }
    let client = device_of(query)?.client();
    let hardware = &client.properties().hardware;
    if hardware.max_bindings < ATTENTION_TENSORS {
        return None;
    }
    let shape = AttentionShape {
        heads: rows * heads,
        positions,
        sources,
        tile: AttentionTile::fitting(channels / heads, hardware.max_shared_memory_size)?,
    };
    let [query, key, value] = [query, key, value].map(|tensor| tensor.clone().into_dispatch());
    let output = <Dispatch as CubeOperations>::attention(query, key, value, shape);
    Some(Tensor::from_dispatch(output))
}

/// Tensors that the gradient of attention binds.
const ATTENTION_TENSORS: u32 = 9;

/// `softmax(scale · scores)` over the last axis, for scores that [`takes`] accepts.
///
/// # Shapes
/// - `scores` and the result: `[rows, heads, positions, sources]`
pub(crate) fn softmax(scores: Tensor<4>, scale: f64) -> Tensor<4> {
    let scores = scores.into_dispatch();
    let weights = <Dispatch as CubeOperations>::scaled_softmax(scores, scale as f32);
    Tensor::from_dispatch(weights)
}

/// Adds a number to each channel.
///
/// # Shapes
/// - `input` and the result: `[rows, channels, positions]`
/// - `bias`: `[channels]`
pub(crate) fn shift(input: &Tensor<3>, bias: &Tensor<1>) -> Option<Tensor<3>> {
    let [_, channels, _] = input.dims();
    if !(bias.dims() == [channels] && takes(input) && takes(bias)) {
        return None;
    }
    let [input, bias] = [input.clone().into_dispatch(), bias.clone().into_dispatch()];
    let output = <Dispatch as CubeOperations>::shift(input, bias);
    Some(Tensor::from_dispatch(output))
}
