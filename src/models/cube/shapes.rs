//! The shapes and settings of the operations on the GPU.

use ::burn::tensor::Shape;

/// Sizes and settings of a group normalisation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNormShape {
    pub(super) groups: usize,
    /// Channels of a group.
    pub(super) members: usize,
    /// Height times width.
    pub(super) pixels: usize,
    pub(super) epsilon: f64,
    /// Whether `SiLU` follows.
    pub(super) activated: bool,
}

/// The part of a convolution that the compiled kernel depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Window {
    pub(super) tall: usize,
    pub(super) wide: usize,
    pub(super) stride_y: usize,
    pub(super) stride_x: usize,
    pub(super) dilation_y: usize,
    pub(super) dilation_x: usize,
    /// Rows of zeros above the image.
    pub(super) above: usize,
    /// Columns of zeros to its left.
    pub(super) left: usize,
    /// Whether the weight is a linear layer's, `[inputs, outputs]`, under a window of 1×1.
    pub(super) linear: bool,
}

impl Window {
    pub(super) fn taps(&self) -> usize {
        self.tall * self.wide
    }
}

/// Sizes and settings of a convolution with a single group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvolutionShape {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) outputs: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
    pub(super) window: Window,
}

impl ConvolutionShape {
    /// A linear layer over the channels of `[rows, inputs, positions]`.
    pub(super) fn linear(rows: usize, inputs: usize, outputs: usize, positions: usize) -> Self {
        Self {
            rows,
            inputs,
            height: 1,
            width: positions,
            outputs,
            out_height: 1,
            out_width: positions,
            window: Window {
                tall: 1,
                wide: 1,
                stride_y: 1,
                stride_x: 1,
                dilation_y: 1,
                dilation_x: 1,
                above: 0,
                left: 0,
                linear: true,
            },
        }
    }

    /// The shape of the weight.
    pub(super) fn weight(&self) -> Shape {
        let Window { tall, wide, .. } = self.window;
        match self.window.linear {
            true => Shape::from([self.inputs, self.outputs]),
            false => Shape::from([self.outputs, self.inputs, tall, wide]),
        }
    }

    /// Pixels of all input maps of one channel.
    pub(super) fn input_positions(&self) -> usize {
        self.rows * self.height * self.width
    }

    /// Pixels of all output maps of one channel.
    pub(super) fn positions(&self) -> usize {
        self.rows * self.out_height * self.out_width
    }

    /// Numbers that one output is summed from.
    pub(super) fn patch(&self) -> usize {
        self.inputs * self.window.taps()
    }
}
