//! The operations as burn sees them: on Flex tensors, and with their backward passes.

use super::attention::{self, AttentionShape};
use super::attention_gradient;
use super::convolution::{self, ConvolutionShape};
use super::norm::{self, GroupNormShape, Statistics};
use super::simd::instructions;
use super::weight_gradient::{bias_gradient, weight_gradient};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Shape, TensorData};

/// Operations that Flex has of its own here. Every tensor is `f32`.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait FastOperations: Backend {
    /// Group normalisation, with or without `SiLU`.
    fn normalise_groups(
        input: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self>;

    /// Convolution in two dimensions.
    fn convolve(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self>;

    /// Attention, heads one after another.
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;
}

/// The numbers of a tensor that is contiguous and `f32`.
pub(super) fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_default()
}

pub(super) fn tensor(numbers: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new::<f32, Shape>(numbers, shape.into()))
}

impl FastOperations for Flex {
    fn normalise_groups(
        input: FlexTensor,
        gain: FlexTensor,
        offset: FlexTensor,
        shape: GroupNormShape,
    ) -> FlexTensor {
        normalise(
            &input.to_contiguous(),
            &gain.to_contiguous(),
            &offset.to_contiguous(),
            shape,
        )
        .0
    }

    fn convolve(
        input: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: ConvolutionShape,
    ) -> FlexTensor {
        convolve(
            &input.to_contiguous(),
            &weight.to_contiguous(),
            &bias.to_contiguous(),
            &shape,
        )
    }

    fn attend(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        shape: AttentionShape,
    ) -> FlexTensor {
        attend(
            &query.to_contiguous(),
            &key.to_contiguous(),
            &value.to_contiguous(),
            &shape,
        )
        .0
    }
}

fn normalise(
    input: &FlexTensor,
    gain: &FlexTensor,
    offset: &FlexTensor,
    shape: GroupNormShape,
) -> (FlexTensor, Vec<Statistics>) {
    let (output, statistics) = norm::forward(
        instructions(),
        shape,
        numbers(input),
        numbers(gain),
        numbers(offset),
    );
    (tensor(output, input.shape()), statistics)
}

fn convolve(
    input: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    shape: &ConvolutionShape,
) -> FlexTensor {
    let (x, w, b) = (numbers(input), numbers(weight), numbers(bias));
    let output = convolution::forward(instructions(), shape, x, w, b);
    let [height, width] = shape.output();
    tensor(output, [input.shape()[0], shape.outputs, height, width])
}

fn attend(
    query: &FlexTensor,
    key: &FlexTensor,
    value: &FlexTensor,
    shape: &AttentionShape,
) -> (FlexTensor, Vec<f32>) {
    let inputs = attention::Inputs {
        query: numbers(query),
        key: numbers(key),
        value: numbers(value),
    };
    let (output, logs) = attention::forward(instructions(), shape, inputs);
    (tensor(output, query.shape()), logs)
}

impl<C: CheckpointStrategy> FastOperations for Autodiff<Flex, C> {
    fn normalise_groups(
        input: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self> {
        let nodes = [input.node(), gain.node(), offset.node()];
        let [input, gain, offset] =
            [input, gain, offset].map(|t| t.into_primitive().to_contiguous());
        let (output, statistics) = normalise(&input, &gain, &offset, shape);
        match NormaliseGroups
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => {
                prepared.finish((input, gain, offset, statistics, shape), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn convolve(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self> {
        let nodes = [input.node(), weight.node(), bias.node()];
        let [input, weight, bias] =
            [input, weight, bias].map(|t| t.into_primitive().to_contiguous());
        let output = convolve(&input, &weight, &bias, &shape);
        match Convolve.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((input, weight, shape), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let nodes = [query.node(), key.node(), value.node()];
        let [query, key, value] = [query, key, value].map(|t| t.into_primitive().to_contiguous());
        let (output, logs) = attend(&query, &key, &value, &shape);
        match Attend.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(([query, key, value, output.clone()], logs, shape), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

#[derive(Debug)]
struct NormaliseGroups;

impl Backward<Flex, 3> for NormaliseGroups {
    type State = (
        FlexTensor,
        FlexTensor,
        FlexTensor,
        Vec<Statistics>,
        GroupNormShape,
    );

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (input, gain, offset, statistics, shape) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let found = norm::backward(
            instructions(),
            shape,
            numbers(&input),
            numbers(&gain),
            numbers(&offset),
            &statistics,
            numbers(&gradient),
        );
        let channels = [found.gain.len()];
        let gradients = [
            tensor(found.input, input.shape()),
            tensor(found.gain, channels),
            tensor(found.offset, channels),
        ];
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Convolve;

impl Backward<Flex, 3> for Convolve {
    type State = (FlexTensor, FlexTensor, ConvolutionShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (input, weight, shape) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let g = numbers(&gradient);
        let [for_input, for_weight, for_bias] = ops.parents;
        if let Some(parent) = for_input {
            let found = convolution::input_gradient(instructions(), &shape, numbers(&weight), g);
            grads.register::<Flex>(parent.id, tensor(found, input.shape()));
        }
        if let Some(parent) = for_weight {
            let found = weight_gradient(instructions(), &shape, numbers(&input), g);
            grads.register::<Flex>(parent.id, tensor(found, weight.shape()));
        }
        if let Some(parent) = for_bias {
            let found = bias_gradient(instructions(), &shape, g);
            grads.register::<Flex>(parent.id, tensor(found, [shape.outputs]));
        }
    }
}

#[derive(Debug)]
struct Attend;

impl Backward<Flex, 3> for Attend {
    type State = ([FlexTensor; 4], Vec<f32>, AttentionShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([query, key, value, output], logs, shape) = ops.state;
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let inputs = attention::Inputs {
            query: numbers(&query),
            key: numbers(&key),
            value: numbers(&value),
        };
        let outputs = attention_gradient::Outputs {
            output: numbers(&output),
            logs: &logs,
            gradient: numbers(&gradient),
        };
        let found = attention_gradient::backward(instructions(), &shape, inputs, outputs);
        let inputs = [query, key, value];
        for ((parent, found), input) in ops.parents.into_iter().zip(found).zip(inputs) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, tensor(found, input.shape()));
            }
        }
    }
}
