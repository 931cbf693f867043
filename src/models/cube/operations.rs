//! The operations as burn calls them: kernels on the GPU, and their backward passes.

use ::burn::backend::TensorMetadata;
use ::burn::backend::autodiff::NodeId;
use ::burn::backend::autodiff::checkpoint::base::Checkpointer;
use ::burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use ::burn::backend::autodiff::checkpoint::state::BackwardStates;
use ::burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use ::burn::backend::autodiff::grads::Gradients;
use ::burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use ::burn::backend::ops::FloatTensorOps;
use ::burn::backend::tensor::FloatTensor;
use ::burn::backend::{Autodiff, Backend, backend_extension};
use ::burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use std::marker::PhantomData;

use super::shapes::{AttentionShape, ConvolutionShape, GroupNormShape};
use super::{attention, bias, convolution, norm, softmax};
use crate::kernel::cube::sums::sum_positions_and_rows;
use crate::kernel::fused::burn;

/// The kernels. Every tensor is `f32` and not empty.
#[backend_extension(Cube, Fusion)]
pub(crate) trait Kernels: Backend {
    /// The normalised input; mean and inverse deviation of each row and group.
    #[fusion(meta = |input, _gain, _offset, shape| {
        let rows = input.shape.num_elements() / (shape.groups * shape.members * shape.pixels);
        let mut statistics = input.clone();
        statistics.shape = Shape::from([2 * rows * shape.groups]);
        (input.clone(), statistics)
    })]
    fn normalise(
        input: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of input, gain and offset.
    #[fusion(meta = |input, gain, offset, _statistics, _gradient, _shape| {
        (input.clone(), gain.clone(), offset.clone())
    })]
    fn normalise_gradient(
        input: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(dtype = input, shape = Shape::from([shape.rows, shape.outputs, shape.out_height, shape.out_width]))]
    fn convolve_forward(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self>;

    /// Convolution, and `onto` added to it.
    #[fusion(dtype = input, shape = Shape::from([shape.rows, shape.outputs, shape.out_height, shape.out_width]))]
    fn convolve_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = weight, shape = Shape::from([shape.rows, shape.inputs, shape.height, shape.width]))]
    fn convolve_input_gradient(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self>;

    /// The gradients of weight and bias.
    #[fusion(meta = |input, _gradient, shape| {
        let (mut weight, mut bias) = (input.clone(), input.clone());
        weight.shape = shape.weight();
        bias.shape = Shape::from([shape.outputs]);
        (weight, bias)
    })]
    fn convolve_weight_gradient(
        input: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The output of attention, and the logarithm of each query's sum.
    #[fusion(meta = |query, _key, _value, shape| {
        let mut logs = query.clone();
        logs.shape = shape.logs();
        (query.clone(), logs)
    })]
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The gradients of query, key and value.
    #[fusion(meta = |query, key, value, _output, _logs, _gradient, _shape| {
        (query.clone(), key.clone(), value.clone())
    })]
    fn attend_gradient(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        output: FloatTensor<Self>,
        logs: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// `softmax(scale · scores)` over the last axis.
    #[fusion(dtype = scores, shape = scores)]
    fn softmax_forward(scores: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;

    #[fusion(dtype = weights, shape = weights)]
    fn softmax_gradient(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Adds a number to each channel of `[rows, channels, positions]`.
    #[fusion(dtype = input, shape = input)]
    fn shift_forward(input: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The sum over rows and positions of `[rows, channels, positions]`.
    #[fusion(dtype = gradient, shape = Shape::from([gradient[1]]))]
    fn shift_gradient(gradient: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Kernels for CubeBackend {
    fn normalise(
        input: CubeTensor,
        gain: CubeTensor,
        offset: CubeTensor,
        shape: GroupNormShape,
    ) -> (CubeTensor, CubeTensor) {
        norm::forward(input, gain, offset, shape)
    }

    fn normalise_gradient(
        input: CubeTensor,
        gain: CubeTensor,
        offset: CubeTensor,
        statistics: CubeTensor,
        gradient: CubeTensor,
        shape: GroupNormShape,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        norm::backward([input, gain, offset], statistics, gradient, shape)
    }

    fn convolve_forward(
        input: CubeTensor,
        weight: CubeTensor,
        bias: CubeTensor,
        shape: ConvolutionShape,
    ) -> CubeTensor {
        convolution::forward(input, weight, bias, None, shape)
    }

    fn convolve_onto(
        input: CubeTensor,
        weight: CubeTensor,
        bias: CubeTensor,
        onto: CubeTensor,
        shape: ConvolutionShape,
    ) -> CubeTensor {
        convolution::forward(input, weight, bias, Some(onto), shape)
    }

    fn convolve_input_gradient(
        weight: CubeTensor,
        gradient: CubeTensor,
        shape: ConvolutionShape,
    ) -> CubeTensor {
        convolution::input_gradient(weight, gradient, shape)
    }

    fn convolve_weight_gradient(
        input: CubeTensor,
        gradient: CubeTensor,
        shape: ConvolutionShape,
    ) -> (CubeTensor, CubeTensor) {
        let (weight, bias) = convolution::weight_gradient(input, gradient, shape);
        (Self::float_reshape(weight, shape.weight()), bias)
    }

    fn attend(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        shape: AttentionShape,
    ) -> (CubeTensor, CubeTensor) {
        attention::forward([query, key, value], shape)
    }

    fn attend_gradient(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        output: CubeTensor,
        logs: CubeTensor,
        gradient: CubeTensor,
        shape: AttentionShape,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        attention::backward([query, key, value], output, logs, gradient, shape)
    }

    fn softmax_forward(scores: CubeTensor, scale: f32) -> CubeTensor {
        softmax::forward(scores, scale)
    }

    fn softmax_gradient(weights: CubeTensor, gradient: CubeTensor, scale: f32) -> CubeTensor {
        softmax::backward(weights, gradient, scale)
    }

    fn shift_forward(input: CubeTensor, bias: CubeTensor) -> CubeTensor {
        bias::add(input, bias)
    }

    fn shift_gradient(gradient: CubeTensor) -> CubeTensor {
        sum_positions_and_rows(gradient)
    }
}

/// The operations with their derivatives. Every tensor is `f32` and not empty.
#[backend_extension(Cube, Fusion, Autodiff)]
pub(crate) trait CubeOperations: Backend {
    /// Group normalisation, with or without `SiLU`.
    #[fusion(dtype = input, shape = input)]
    fn group_norm(
        input: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self>;

    /// Convolution in two dimensions.
    #[fusion(dtype = input, shape = Shape::from([shape.rows, shape.outputs, shape.out_height, shape.out_width]))]
    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self>;

    /// Convolution, and `onto` added to it: a number for each output map, or for each output pixel.
    #[fusion(dtype = input, shape = Shape::from([shape.rows, shape.outputs, shape.out_height, shape.out_width]))]
    fn convolution_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self>;

    /// Scaled dot-product attention.
    #[fusion(dtype = query, shape = query)]
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;

    /// `softmax(scale · scores)` over the last axis.
    #[fusion(dtype = scores, shape = scores)]
    fn scaled_softmax(scores: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;

    /// Adds a number to each channel of `[rows, channels, positions]`.
    #[fusion(dtype = input, shape = input)]
    fn shift(input: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl CubeOperations for CubeBackend {
    fn group_norm(
        input: CubeTensor,
        gain: CubeTensor,
        offset: CubeTensor,
        shape: GroupNormShape,
    ) -> CubeTensor {
        Self::normalise(input, gain, offset, shape).0
    }

    fn convolution(
        input: CubeTensor,
        weight: CubeTensor,
        bias: CubeTensor,
        shape: ConvolutionShape,
    ) -> CubeTensor {
        Self::convolve_forward(input, weight, bias, shape)
    }

    fn convolution_onto(
        input: CubeTensor,
        weight: CubeTensor,
        bias: CubeTensor,
        onto: CubeTensor,
        shape: ConvolutionShape,
    ) -> CubeTensor {
        Self::convolve_onto(input, weight, bias, onto, shape)
    }

    fn attention(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        shape: AttentionShape,
    ) -> CubeTensor {
        Self::attend(query, key, value, shape).0
    }

    fn scaled_softmax(scores: CubeTensor, scale: f32) -> CubeTensor {
        Self::softmax_forward(scores, scale)
    }

    fn shift(input: CubeTensor, bias: CubeTensor) -> CubeTensor {
        Self::shift_forward(input, bias)
    }
}

/// Inputs are kept as checkpoints instead of in an operation's state: under gradient checkpointing,
/// inputs that come from cheap operations are recomputed in the backward pass.
impl<B: Kernels, C: CheckpointStrategy> CubeOperations for Autodiff<B, C> {
    fn group_norm(
        input: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        offset: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self> {
        let inputs = [input, gain, offset];
        let [x, scale, move_by] = inputs.each_ref().map(|input| input.primitive().clone());
        let (output, statistics) = B::normalise(x, scale, move_by, shape);
        let again = NormaliseAgain::<B> {
            inputs: inputs.each_ref().map(|input| input.id()),
            shape,
            backend: PhantomData,
        };
        let prepared = Normalise
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

    fn convolution(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self> {
        let inputs = [input, weight, bias];
        let [x, w, b] = inputs.each_ref().map(|input| input.primitive().clone());
        let output = B::convolve_forward(x, w, b, shape);
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

    fn convolution_onto(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        shape: ConvolutionShape,
    ) -> FloatTensor<Self> {
        let inputs = [input, weight, bias, onto];
        let [x, w, b, o] = inputs.each_ref().map(|input| input.primitive().clone());
        let size = o.shape();
        let output = B::convolve_onto(x, w, b, o, shape);
        let nodes = inputs.each_ref().map(|input| input.node());
        match ConvolveOnto.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let [input, weight, ..] = &inputs;
                let kept = [input, weight].map(|input| prepared.checkpoint(input));
                prepared.finish((kept, shape, size), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let inputs = [query, key, value];
        let [q, k, v] = inputs.each_ref().map(|input| input.primitive().clone());
        let (output, logs) = B::attend(q, k, v, shape);
        let nodes = inputs.each_ref().map(|input| input.node());
        match Attend.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let kept = inputs.each_ref().map(|input| prepared.checkpoint(input));
                prepared.finish((kept, output.clone(), logs, shape), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn scaled_softmax(scores: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        let weights = B::softmax_forward(scores.primitive().clone(), scale);
        let prepared = Softmax.prepare::<C>([scores.node()]).compute_bound();
        match prepared.stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((weights.clone(), scale), weights),
            OpsKind::UnTracked(prepared) => prepared.finish(weights),
        }
    }

    fn shift(input: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = B::shift_forward(input.primitive().clone(), bias.primitive().clone());
        let prepared = Shift
            .prepare::<C>([input.node(), bias.node()])
            .compute_bound();
        match prepared.stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

/// Recomputes the forward pass of a group normalisation.
#[derive(Debug)]
struct NormaliseAgain<B> {
    inputs: [NodeId; 3],
    shape: GroupNormShape,
    backend: PhantomData<B>,
}

impl<B: Kernels> RetroForward for NormaliseAgain<B> {
    fn forward(&self, states: &mut BackwardStates, node: NodeId) {
        let inputs = self.inputs.map(|input| states.get_state(&input));
        let [input, gain, offset]: [FloatTensor<B>; 3] = inputs;
        states.save(node, B::normalise(input, gain, offset, self.shape).0);
    }
}

#[derive(Debug)]
struct Normalise;

impl<B: Kernels> Backward<B, 3> for Normalise {
    type State = ([NodeId; 3], FloatTensor<B>, GroupNormShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (inputs, statistics, shape) = ops.state;
        let [input, gain, offset]: [FloatTensor<B>; 3] =
            inputs.map(|input| kept.retrieve_node_output(input));
        let gradient = grads.consume::<B>(&ops.node);
        let (input, gain, offset) =
            B::normalise_gradient(input, gain, offset, statistics, gradient, shape);
        for (parent, gradient) in ops.parents.into_iter().zip([input, gain, offset]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Convolve;

impl<B: Kernels> Backward<B, 3> for Convolve {
    type State = ([NodeId; 2], ConvolutionShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (inputs, shape) = ops.state;
        let gradient = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
        register_gradients::<B>(parents, inputs, gradient, shape, grads, kept);
    }
}

#[derive(Debug)]
struct ConvolveOnto;

impl<B: Kernels> Backward<B, 4> for ConvolveOnto {
    type State = ([NodeId; 2], ConvolutionShape, Shape);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (inputs, shape, size) = ops.state;
        let gradient = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
        let [input, weight, bias, onto] = parents;
        if let Some(onto) = onto {
            let maps = shape.rows * shape.outputs;
            let gradient = match size.num_elements() == maps {
                true => {
                    let flat = Shape::from([1, maps, shape.out_height * shape.out_width]);
                    B::shift_gradient(B::float_reshape(gradient.clone(), flat))
                }
                false => gradient.clone(),
            };
            grads.register::<B>(onto, B::float_reshape(gradient, size));
        }
        register_gradients::<B>([input, weight, bias], inputs, gradient, shape, grads, kept);
    }
}

/// Registers the gradients of a convolution's input, weight and bias.
fn register_gradients<B: Kernels>(
    parents: [Option<NodeId>; 3],
    inputs: [NodeId; 2],
    gradient: FloatTensor<B>,
    shape: ConvolutionShape,
    grads: &mut Gradients,
    kept: &mut Checkpointer,
) {
    let [input, weight]: [FloatTensor<B>; 2] = inputs.map(|input| kept.retrieve_node_output(input));
    let [for_input, for_weight, for_bias] = parents;
    if let Some(parent) = for_input {
        let found = B::convolve_input_gradient(weight, gradient.clone(), shape);
        grads.register::<B>(parent, found);
    }
    if for_weight.is_none() && for_bias.is_none() {
        return;
    }
    let (weight, bias) = B::convolve_weight_gradient(input, gradient, shape);
    if let Some(parent) = for_weight {
        grads.register::<B>(parent, weight);
    }
    if let Some(parent) = for_bias {
        grads.register::<B>(parent, bias);
    }
}

#[derive(Debug)]
struct Attend;

impl<B: Kernels> Backward<B, 3> for Attend {
    type State = ([NodeId; 3], FloatTensor<B>, FloatTensor<B>, AttentionShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, kept: &mut Checkpointer) {
        let (inputs, output, logs, shape) = ops.state;
        let [query, key, value]: [FloatTensor<B>; 3] =
            inputs.map(|input| kept.retrieve_node_output(input));
        let gradient = grads.consume::<B>(&ops.node);
        let (query, key, value) =
            B::attend_gradient(query, key, value, output, logs, gradient, shape);
        for (parent, gradient) in ops.parents.into_iter().zip([query, key, value]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Softmax;

impl<B: Kernels> Backward<B, 1> for Softmax {
    type State = (FloatTensor<B>, f32);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _kept: &mut Checkpointer) {
        let (weights, scale) = ops.state;
        let gradient = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let found = B::softmax_gradient(weights, gradient, scale);
            grads.register::<B>(parent.id, found);
        }
    }
}

#[derive(Debug)]
struct Shift;

impl<B: Kernels> Backward<B, 2> for Shift {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _kept: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let [for_input, for_bias] = ops.parents;
        if let Some(parent) = for_bias {
            grads.register::<B>(parent.id, B::shift_gradient(gradient.clone()));
        }
        if let Some(parent) = for_input {
            grads.register::<B>(parent.id, gradient);
        }
    }
}
