//! The shapes and settings of the operations on the GPU.

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
