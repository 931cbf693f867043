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

/// Units across a tile of attention, and down.
pub(super) const ACROSS: usize = 8;

/// Units of a cube of attention.
pub(super) const UNITS: usize = ACROSS * ACROSS;

/// The part of attention that the compiled kernels depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct AttentionTile {
    /// Channels of a head.
    pub(super) size: usize,
    /// Queries, or sources, of a tile.
    pub(super) places: usize,
}

impl AttentionTile {
    /// Shared memory in bytes that a cube takes at most, also where there is more: the rest is for
    /// other cubes, and every device then runs the tiles that are tested.
    const MOST_MEMORY: usize = 1 << 15;

    /// The larger of two tiles that fits into shared memory of so many bytes.
    pub(super) fn fitting(size: usize, memory: usize) -> Option<Self> {
        let memory = memory.min(Self::MOST_MEMORY);
        let mut tiles = [32, 16].map(|places| Self { size, places }).into_iter();
        tiles.find(|tile| tile.memory() <= memory)
    }

    /// Bytes of shared memory that the backward pass takes, which takes more.
    fn memory(&self) -> usize {
        (4 * self.numbers() + 2 * self.weights() + UNITS) * size_of::<f32>()
    }

    /// Channels, and zeros that make them a multiple of the units across.
    pub(super) fn padded(&self) -> usize {
        self.size.next_multiple_of(ACROSS)
    }

    /// Numbers between two channels: one more than a tile's, so that neighbouring channels lie in
    /// different banks of shared memory.
    pub(super) fn stride(&self) -> usize {
        self.places + 1
    }

    /// Numbers of a tile of queries, keys or values.
    pub(super) fn numbers(&self) -> usize {
        self.padded() * self.stride()
    }

    /// Numbers of a tile of weights.
    pub(super) fn weights(&self) -> usize {
        self.places * self.stride()
    }

    /// Own places of a unit.
    pub(super) fn side(&self) -> usize {
        self.places / ACROSS
    }

    /// Channels of a unit.
    pub(super) fn channels(&self) -> usize {
        self.padded() / ACROSS
    }

    /// Units that share a place.
    pub(super) fn parts(&self) -> usize {
        UNITS / self.places
    }
}

/// Sizes of attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    /// Rows times heads.
    pub(super) heads: usize,
    /// Queries.
    pub(super) positions: usize,
    /// Keys and values.
    pub(super) sources: usize,
    pub(super) tile: AttentionTile,
}

impl AttentionShape {
    /// What scores are multiplied by.
    pub(super) fn scale(&self) -> f32 {
        (self.tile.size as f64).sqrt().recip() as f32
    }

    /// The shape of the sums of each query, as logarithms.
    pub(super) fn logs(&self) -> Shape {
        Shape::from([self.heads * self.positions])
    }

    pub(super) fn query_tiles(&self) -> usize {
        self.positions.div_ceil(self.tile.places)
    }

    pub(super) fn source_tiles(&self) -> usize {
        self.sources.div_ceil(self.tile.places)
    }
}
