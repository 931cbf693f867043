//! The operations as burn calls them: on Flex tensors, with their backward passes.

use super::activation;
use super::attention::{self, AttentionShape};
use super::attention_gradient;
use super::convolution::{self, ConvolutionShape};
use super::norm::{self, GroupNormShape, Statistics};
use super::weight_gradient::{bias_gradient, weight_gradient};
use crate::kernel::flex::{numbers, tensor};
use crate::kernel::simd::instructions;
use crate::models::ops::Activation;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};

/// Operations that this crate adds to the Flex backend. Every tensor is `f32`.
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

    /// The activation of a feed-forward layer, `[rows, channels, positions]`.
    fn activate(input: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// Attention, one head after another.
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;
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

    fn activate(input: FlexTensor, activation: Activation) -> FlexTensor {
        activate(&input.to_contiguous(), activation)
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

fn activate(input: &FlexTensor, activation: Activation) -> FlexTensor {
    let mut shape = input.shape();
    let output = activation::forward(instructions(), activation, shape[0], numbers(input));
    if activation == Activation::Geglu {
        shape[1] /= 2;
    }
    tensor(output, shape)
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

/// Inputs are kept as checkpoints instead of in an operation's state: under gradient checkpointing,
/// inputs that come from cheap operations, group normalisation among them, are recomputed in the
/// backward pass.
impl<C: CheckpointStrategy> FastOperations for Autodiff<Flex, C> {
    fn normalise_groups(
        input: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self> {
        let inputs = [input, gain, offset];
        let [x, scale, shift] = contiguous::<C>(&inputs);
        let (output, statistics) = normalise(&x, &scale, &shift, shape);
        let again = NormaliseAgain {
            inputs: inputs.each_ref().map(|input| input.id()),
            shape,
        };
        let prepared = NormaliseGroups
            .prepare::<C>(inputs.each_ref().map(|input| input.node()))
            .memory_bound()
            .retro_forward(again)
            .parents(&inputs);
        match prepared.stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = inputs.each_ref().map(|input| prepared.checkpoint(input));
                prepared.finish((kept, statistics, shape), output)
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
        let inputs = [input, weight, bias];
        let [x, w, b] = contiguous::<C>(&inputs);
        let output = convolve(&x, &w, &b, &shape);
        let nodes = inputs.each_ref().map(|input| input.node());
        match Convolve.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let [input, weight, _] = &inputs;
                let kept = [input, weight].map(|input| prepared.checkpoint(input));
                prepared.finish((kept, shape), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn activate(input: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let output = activate(&input.primitive().to_contiguous(), activation);
        let again = ActivateAgain {
            input: input.id(),
            activation,
        };
        let prepared = Activate
            .prepare::<C>([input.node()])
            .memory_bound()
            .retro_forward(again)
            .parents([&input]);
        match prepared.stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = prepared.checkpoint(&input);
                prepared.finish((kept, activation), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let inputs = [query, key, value];
        let [q, k, v] = contiguous::<C>(&inputs);
        let (output, logs) = attend(&q, &k, &v, &shape);
        let nodes = inputs.each_ref().map(|input| input.node());
        match Attend.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = inputs.each_ref().map(|input| prepared.checkpoint(input));
                prepared.finish((kept, output.clone(), logs, shape), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

fn contiguous<C: CheckpointStrategy>(
    tensors: &[FloatTensor<Autodiff<Flex, C>>; 3],
) -> [FlexTensor; 3] {
    tensors
        .each_ref()
        .map(|tensor| tensor.primitive().to_contiguous())
}

/// An input of an operation in its backward pass, kept or recomputed.
fn retrieve(checkpointer: &mut Checkpointer, node: NodeId) -> FlexTensor {
    let kept: FlexTensor = checkpointer.retrieve_node_output(node);
    kept.to_contiguous()
}

/// Recomputes the forward pass of a group normalisation.
#[derive(Debug)]
struct NormaliseAgain {
    inputs: [NodeId; 3],
    shape: GroupNormShape,
}

impl RetroForward for NormaliseAgain {
    fn forward(&self, states: &mut BackwardStates, node: NodeId) {
        let [input, gain, offset] = self
            .inputs
            .map(|input| states.get_state::<FlexTensor>(&input).to_contiguous());
        let (output, _) = normalise(&input, &gain, &offset, self.shape);
        states.save(node, output);
    }
}

#[derive(Debug)]
struct NormaliseGroups;

impl Backward<Flex, 3> for NormaliseGroups {
    type State = ([NodeId; 3], Vec<Statistics>, GroupNormShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (inputs, statistics, shape) = ops.state;
        let [input, gain, offset] = inputs.map(|input| retrieve(kept, input));
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
    type State = ([NodeId; 2], ConvolutionShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (inputs, shape) = ops.state;
        let [input, weight] = inputs.map(|input| retrieve(kept, input));
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

/// Recomputes the forward pass of an activation.
#[derive(Debug)]
struct ActivateAgain {
    input: NodeId,
    activation: Activation,
}

impl RetroForward for ActivateAgain {
    fn forward(&self, states: &mut BackwardStates, node: NodeId) {
        let input = states.get_state::<FlexTensor>(&self.input).to_contiguous();
        states.save(node, activate(&input, self.activation));
    }
}

#[derive(Debug)]
struct Activate;

impl Backward<Flex, 1> for Activate {
    type State = (NodeId, Activation);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (input, activation) = ops.state;
        let input = retrieve(kept, input);
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [parent] = ops.parents;
        let Some(parent) = parent else {
            return;
        };
        let (rows, shape) = (input.shape()[0], input.shape());
        let (x, g) = (numbers(&input), numbers(&gradient));
        let found = activation::backward(instructions(), activation, rows, x, g);
        grads.register::<Flex>(parent.id, tensor(found, shape));
    }
}

#[derive(Debug)]
struct Attend;

impl Backward<Flex, 3> for Attend {
    type State = ([NodeId; 3], FlexTensor, Vec<f32>, AttentionShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (inputs, output, logs, shape) = ops.state;
        let [query, key, value] = inputs.map(|input| retrieve(kept, input));
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
