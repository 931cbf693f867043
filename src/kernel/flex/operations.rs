//! The operations as burn sees them: on Flex tensors, and with their backward passes.

use super::norm::{self, GroupNormShape, Statistics};
use super::simd::instructions;
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
}

/// The numbers of a tensor that is contiguous and `f32`.
fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_default()
}

fn tensor(numbers: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
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
