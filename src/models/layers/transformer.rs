//! Attention with a context, and the transformer blocks of text-conditional networks.
//!
//! Features are channel-major here, `[rows, channels, positions]`: so a feature map needs no copy.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{
    Dropout, DropoutConfig, GroupNorm, GroupNormConfig, LayerNorm, LayerNormConfig, Linear,
    LinearConfig,
};
use burn::tensor::{Device, Tensor};

use crate::models::ops::{self, Activation};

/// `ε` of the layer normalisations of diffusers' transformer blocks.
const LAYER_NORM_EPSILON: f64 = 1e-5;
/// `ε` of the group normalisation with which diffusers' `Transformer2DModel` begins.
const GROUP_NORM_EPSILON: f64 = 1e-6;
/// Hidden features per feature.
const EXPANSION: usize = 4;

/// diffusers' `Attention` without normalisation or residual connection.
#[derive(Module, Debug)]
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    #[module(skip)]
    heads: usize,
}

/// The sizes of an [`Attention`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionConfig {
    /// Features of queries and output.
    pub(crate) channels: usize,
    /// Features of the context.
    pub(crate) context: usize,
    /// Number of heads, which divides `channels`.
    pub(crate) heads: usize,
    /// Whether queries, keys and values have a bias.
    pub(crate) bias: bool,
}

impl AttentionConfig {
    pub(crate) fn init(&self, device: &Device) -> Attention {
        let channels = self.channels;
        let linear = |inputs| {
            LinearConfig::new(inputs, channels)
                .with_bias(self.bias)
                .init(device)
        };
        Attention {
            to_q: linear(channels),
            to_k: linear(self.context),
            to_v: linear(self.context),
            to_out: vec![LinearConfig::new(channels, channels).init(device)],
            heads: self.heads,
        }
    }
}

impl Attention {
    /// # Shapes
    /// - `features` and the result: `[rows, channels, positions]`
    /// - `context`: `[rows, context, tokens]`
    pub(crate) fn forward(&self, features: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let query = ops::project(&self.to_q, features);
        let key = ops::project(&self.to_k, context.clone());
        let value = ops::project(&self.to_v, context);
        let attended = ops::attend(query, key, value, self.heads);
        self.to_out
            .iter()
            .fold(attended, |features, layer| ops::project(layer, features))
    }
}

/// diffusers' `FeedForward`: `net.0.proj`, a dropout that is not applied, and `net.2`.
#[derive(Module, Debug)]
pub(crate) struct FeedForward {
    net: Vec<FeedForwardLayer>,
    #[module(skip)]
    activation: Activation,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A network has dozens of them, not thousands.
enum FeedForwardLayer {
    Activated(Activated),
    Dropout(Dropout),
    Output(Linear),
}

#[derive(Module, Debug)]
struct Activated {
    proj: Linear,
}

impl FeedForward {
    pub(crate) fn new(channels: usize, activation: Activation, device: &Device) -> Self {
        let hidden = EXPANSION * channels;
        let projected = match activation {
            Activation::Geglu => 2 * hidden,
            Activation::GeluTanh => hidden,
        };
        let proj = LinearConfig::new(channels, projected).init(device);
        Self {
            net: vec![
                FeedForwardLayer::Activated(Activated { proj }),
                FeedForwardLayer::Dropout(DropoutConfig::new(0.0).init()),
                FeedForwardLayer::Output(LinearConfig::new(hidden, channels).init(device)),
            ],
            activation,
        }
    }

    /// # Shapes
    /// - `features` and the result: `[rows, channels, positions]`
    pub(crate) fn forward(&self, features: Tensor<3>) -> Tensor<3> {
        self.net
            .iter()
            .fold(features, |features, layer| match layer {
                FeedForwardLayer::Activated(Activated { proj }) => {
                    ops::activate(self.activation, ops::project(proj, features))
                }
                FeedForwardLayer::Dropout(_) => features,
                FeedForwardLayer::Output(linear) => ops::project(linear, features),
            })
    }
}

/// diffusers' `BasicTransformerBlock`: attention among the pixels, attention to the context, and a
/// feed-forward layer, each with a residual connection.
#[derive(Module, Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(config: &TransformerConfig, device: &Device) -> Self {
        let channels = config.channels;
        let norm = || {
            LayerNormConfig::new(channels)
                .with_epsilon(LAYER_NORM_EPSILON)
                .init(device)
        };
        let attention = |context| {
            let config = AttentionConfig {
                channels,
                context,
                heads: config.heads,
                bias: false,
            };
            config.init(device)
        };
        Self {
            norm1: norm(),
            attn1: attention(channels),
            norm2: norm(),
            attn2: attention(config.context),
            norm3: norm(),
            ff: FeedForward::new(channels, Activation::Geglu, device),
        }
    }

    fn forward(&self, features: Tensor<3>, context: &Tensor<3>) -> Tensor<3> {
        let normed = ops::layer_norm(&self.norm1, LAYER_NORM_EPSILON, features.clone());
        let features = self.attn1.forward(normed.clone(), normed) + features;
        let normed = ops::layer_norm(&self.norm2, LAYER_NORM_EPSILON, features.clone());
        let features = self.attn2.forward(normed, context.clone()) + features;
        let normed = ops::layer_norm(&self.norm3, LAYER_NORM_EPSILON, features.clone());
        self.ff.forward(normed) + features
    }
}

/// The sizes and settings of a [`Transformer2d`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransformerConfig {
    /// Channels of the feature map.
    pub(crate) channels: usize,
    /// Features of the context.
    pub(crate) context: usize,
    /// Number of heads, which divides `channels`.
    pub(crate) heads: usize,
    /// Number of transformer blocks.
    pub(crate) layers: usize,
    /// Groups of the normalisation.
    pub(crate) groups: usize,
    /// Whether the projections are linear layers instead of 1 × 1 convolutions; the same function,
    /// but another shape of the weights.
    pub(crate) linear: bool,
}

/// diffusers' `Transformer2DModel` over the pixels of a feature map.
#[derive(Module, Debug)]
pub(crate) struct Transformer2d {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A network has dozens of them, not thousands.
enum Projection {
    Convolution(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(config: &TransformerConfig, device: &Device) -> Self {
        let channels = config.channels;
        match config.linear {
            true => Self::Linear(LinearConfig::new(channels, channels).init(device)),
            false => Self::Convolution(Conv2dConfig::new([channels; 2], [1, 1]).init(device)),
        }
    }

    fn forward(&self, features: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Convolution(convolution) => ops::convolve(convolution, features),
            Self::Linear(linear) => {
                let shape = features.dims();
                ops::project(linear, features.flatten(2, 3)).reshape(shape)
            }
        }
    }
}

impl TransformerConfig {
    pub(crate) fn init(&self, device: &Device) -> Transformer2d {
        let block = |_| TransformerBlock::new(self, device);
        Transformer2d {
            norm: GroupNormConfig::new(self.groups, self.channels)
                .with_epsilon(GROUP_NORM_EPSILON)
                .init(device),
            proj_in: Projection::new(self, device),
            transformer_blocks: (0..self.layers).map(block).collect(),
            proj_out: Projection::new(self, device),
        }
    }
}

impl Transformer2d {
    /// # Shapes
    /// - `input` and the result: `[rows, channels, height, width]`
    /// - `context`: `[rows, context, tokens]`
    pub(crate) fn forward(&self, input: Tensor<4>, context: &Tensor<3>) -> Tensor<4> {
        let shape = input.dims();
        let features = self
            .proj_in
            .forward(ops::group_norm(&self.norm, input.clone()));
        let features = self
            .transformer_blocks
            .iter()
            .fold(features.flatten(2, 3), |features, block| {
                block.forward(features, context)
            });
        self.proj_out.forward(features.reshape(shape)) + input
    }
}
