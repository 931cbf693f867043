//! Which operations a network runs, recorded so that each can be checked by itself.

use std::cell::RefCell;
use std::fmt;

use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, Linear};

use super::ops::Activation;

thread_local! {
    /// The operations of this thread's networks since the recording began.
    static RECORDED: RefCell<Option<Vec<Operation>>> = const { RefCell::new(None) };
}

/// An operation with its layer and the shape of its input.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Convolution {
        layer: Conv2d,
        input: [usize; 4],
    },
    GroupNorm {
        layer: GroupNorm,
        input: [usize; 4],
        activated: bool,
    },
    Enlargement {
        input: [usize; 4],
        size: [usize; 2],
    },
    Activation {
        activation: Activation,
        input: [usize; 3],
    },
    Projection {
        layer: Linear,
        input: [usize; 3],
    },
    Attention {
        query: [usize; 3],
        sources: usize,
        heads: usize,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Convolution { layer, input } => {
                let [outputs, inputs, tall, wide] = layer.weight.dims();
                let [_, _, height, width] = input;
                let stride = layer.stride[0];
                write!(
                    formatter,
                    "{tall}×{wide} convolution of {height}×{width}, {inputs} to {outputs} \
                     channels, stride {stride}"
                )
            }
            Operation::GroupNorm {
                layer,
                input: [_, channels, height, width],
                activated,
            } => {
                let (groups, silu) = (layer.num_groups, if *activated { " with SiLU" } else { "" });
                write!(
                    formatter,
                    "group norm{silu} of {height}×{width}, {channels} channels in {groups} groups"
                )
            }
            Operation::Enlargement {
                input: [_, channels, height, width],
                size: [tall, wide],
            } => write!(
                formatter,
                "enlargement of {height}×{width} to {tall}×{wide}, {channels} channels"
            ),
            Operation::Activation {
                activation,
                input: [_, channels, positions],
            } => {
                let name = match activation {
                    Activation::Geglu => "GEGLU",
                    Activation::GeluTanh => "GELU",
                };
                write!(
                    formatter,
                    "{name} of {channels} channels at {positions} positions"
                )
            }
            Operation::Projection { layer, input } => {
                let [inputs, outputs] = layer.weight.dims();
                let positions = input[2];
                write!(
                    formatter,
                    "linear layer from {inputs} to {outputs} at {positions} positions"
                )
            }
            Operation::Attention {
                query: [_, channels, positions],
                sources,
                heads,
            } => write!(
                formatter,
                "attention of {positions} positions to {sources}, {channels} channels in {heads} \
                 heads"
            ),
        }
    }
}

/// Notes an operation, if a recording is going on.
pub(crate) fn record(operation: impl FnOnce() -> Operation) {
    RECORDED.with_borrow_mut(|recorded| {
        if let Some(recorded) = recorded {
            recorded.push(operation());
        }
    });
}

/// Runs a function and returns the operations that networks ran in it on this thread.
pub(crate) fn recorded<T>(run: impl FnOnce() -> T) -> (T, Vec<Operation>) {
    RECORDED.set(Some(Vec::new()));
    let result = run();
    (result, RECORDED.take().unwrap_or_default())
}
