//! The stages of a denoising UNet: downward, middle, upward.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::resnet::Resize;
use super::{
    AttentionBlock, AttentionBlockConfig, Downsampler, ResnetBlock, ResnetBlockConfig,
    Transformer2d, TransformerConfig, Upsampler,
};

/// What a network is told besides the features.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// The timestep embedding, after its activation: `[rows, embedding]`.
    pub(crate) embedding: Tensor<2>,
    /// The context of a text-conditional network: `[rows, context, tokens]`.
    pub(crate) context: Option<Tensor<3>>,
}

/// Attention over a feature map.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A network has dozens of them, not thousands.
enum SpatialAttention {
    Pixels(AttentionBlock),
    Context(Transformer2d),
}

impl SpatialAttention {
    fn forward(&self, features: Tensor<4>, told: &Told) -> Tensor<4> {
        match (self, &told.context) {
            (Self::Pixels(attention), _) => attention.forward(features),
            (Self::Context(transformer), Some(context)) => transformer.forward(features, context),
            // Nothing to attend to: networks with such stages always have a context.
            (Self::Context(_), None) => features,
        }
    }
}

/// Which attention follows each residual block of a stage.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StageAttention {
    /// None.
    Without,
    /// Among the pixels.
    Pixels(AttentionBlockConfig),
    /// Among the pixels, and to a context.
    Context(TransformerConfig),
}

impl StageAttention {
    fn init(&self, count: usize, device: &Device) -> Vec<SpatialAttention> {
        let attention = |_| match self {
            Self::Without => None,
            Self::Pixels(config) => Some(SpatialAttention::Pixels(config.init(device))),
            Self::Context(config) => Some(SpatialAttention::Context(config.init(device))),
        };
        (0..count).filter_map(attention).collect()
    }
}

/// The change of size at the end of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StageEnd {
    /// None: the innermost stage on the way down, the outermost on the way up.
    Keep,
    /// A convolution; on the way down it pads all sides if `symmetric`, otherwise only right and
    /// bottom.
    Convolution {
        /// Padding of the downward convolution.
        symmetric: bool,
    },
    /// A residual block.
    Resnet,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A network has dozens of them, not thousands.
enum Reduction {
    Convolution(Downsampler),
    Resnet(ResnetBlock),
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A network has dozens of them, not thousands.
enum Enlargement {
    Convolution(Upsampler),
    Resnet(ResnetBlock),
}

/// The shape of one stage.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// The residual blocks: the settings that they have in common.
    pub(crate) resnet: ResnetBlockConfig,
    /// Input channels of each residual block; the output channels are those of `resnet`.
    pub(crate) inputs: Vec<usize>,
    /// What follows each residual block.
    pub(crate) attention: StageAttention,
    /// How the stage ends.
    pub(crate) end: StageEnd,
}

impl Stage {
    fn resnets(&self, device: &Device) -> Vec<ResnetBlock> {
        let block = |&inputs: &usize| {
            let config = ResnetBlockConfig {
                inputs,
                ..self.resnet
            };
            config.init(device)
        };
        self.inputs.iter().map(block).collect()
    }

    fn resizing(&self, resize: Resize, device: &Device) -> ResnetBlock {
        let config = ResnetBlockConfig {
            inputs: self.resnet.outputs,
            resize: Some(resize),
            ..self.resnet
        };
        config.init(device)
    }

    /// A fresh stage on the way down.
    pub(crate) fn down(&self, device: &Device) -> DownBlock {
        let channels = self.resnet.outputs;
        DownBlock {
            resnets: self.resnets(device),
            attentions: self.attention.init(self.inputs.len(), device),
            downsamplers: match self.end {
                StageEnd::Keep => vec![],
                StageEnd::Convolution { symmetric } => {
                    let layer = Downsampler::new(channels, symmetric, device);
                    vec![Reduction::Convolution(layer)]
                }
                StageEnd::Resnet => vec![Reduction::Resnet(self.resizing(Resize::Halve, device))],
            },
        }
    }

    /// A fresh middle stage: residual blocks with attention between them.
    pub(crate) fn middle(&self, device: &Device) -> MidBlock {
        MidBlock {
            resnets: self.resnets(device),
            attentions: self
                .attention
                .init(self.inputs.len().saturating_sub(1), device),
        }
    }

    /// A fresh stage on the way up.
    pub(crate) fn up(&self, device: &Device) -> UpBlock {
        UpBlock {
            resnets: self.resnets(device),
            attentions: self.attention.init(self.inputs.len(), device),
            upsamplers: match self.end {
                StageEnd::Keep => vec![],
                StageEnd::Convolution { .. } => {
                    let layer = Upsampler::new(self.resnet.outputs, device);
                    vec![Enlargement::Convolution(layer)]
                }
                StageEnd::Resnet => {
                    vec![Enlargement::Resnet(self.resizing(Resize::Double, device))]
                }
            },
        }
    }
}

/// Residual blocks with or without attention, then a halving of the size, except in the innermost
/// stage.
#[derive(Module, Debug)]
pub(crate) struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialAttention>,
    downsamplers: Vec<Reduction>,
}

/// Two residual blocks, with or without attention between them.
#[derive(Module, Debug)]
pub(crate) struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialAttention>,
}

/// Residual blocks that receive the features of the downward path, then a doubling of the size,
/// except in the outermost stage.
#[derive(Module, Debug)]
pub(crate) struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialAttention>,
    upsamplers: Vec<Enlargement>,
}

impl DownBlock {
    /// Runs the stage, and appends every feature map that the upward path needs to `skips`.
    ///
    /// # Shapes
    /// - `features`: `[rows, channels, height, width]`
    pub(crate) fn forward(
        &self,
        mut features: Tensor<4>,
        told: &Told,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            features = resnet.forward(features, Some(&told.embedding));
            if let Some(attention) = self.attentions.get(index) {
                features = attention.forward(features, told);
            }
            skips.push(features.clone());
        }
        for downsampler in &self.downsamplers {
            features = match downsampler {
                Reduction::Convolution(layer) => layer.forward(features),
                Reduction::Resnet(block) => block.forward(features, Some(&told.embedding)),
            };
            skips.push(features.clone());
        }
        features
    }
}

impl MidBlock {
    /// # Shapes
    /// - `features` and the result: `[rows, channels, height, width]`
    pub(crate) fn forward(&self, mut features: Tensor<4>, told: &Told) -> Tensor<4> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            features = resnet.forward(features, Some(&told.embedding));
            if let Some(attention) = self.attentions.get(index) {
                features = attention.forward(features, told);
            }
        }
        features
    }
}

impl UpBlock {
    /// Runs the stage, and takes the last feature maps off `skips`, one per residual block.
    ///
    /// # Shapes
    /// - `features`: `[rows, channels, height, width]`
    pub(crate) fn forward(
        &self,
        mut features: Tensor<4>,
        told: &Told,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (index, resnet) in self.resnets.iter().enumerate() {
            let parts = std::iter::once(features).chain(skips.pop()).collect();
            features = resnet.forward(Tensor::cat(parts, 1), Some(&told.embedding));
            if let Some(attention) = self.attentions.get(index) {
                features = attention.forward(features, told);
            }
        }
        for upsampler in &self.upsamplers {
            features = match upsampler {
                Enlargement::Convolution(layer) => {
                    let size = enlarged_size(&features, skips.last());
                    layer.forward(features, size)
                }
                Enlargement::Resnet(block) => block.forward(features, Some(&told.embedding)),
            };
        }
        features
    }
}

/// The size of the feature map to be joined next, which is twice the current size if sizes are
/// even.
fn enlarged_size(features: &Tensor<4>, next: Option<&Tensor<4>>) -> [usize; 2] {
    let [_, _, height, width] = features.dims();
    next.map_or([2 * height, 2 * width], |skip| {
        let [_, _, height, width] = skip.dims();
        [height, width]
    })
}

/// Input channels of the residual blocks of the upward stage `index`, of `channels` innermost
/// first: the first block gets the stage before, the last one a feature map of the next stage.
pub(crate) fn up_inputs(channels: &[usize], index: usize, layers_per_block: usize) -> Vec<usize> {
    let here = channels[index];
    let before = channels[index.saturating_sub(1)];
    let outside = channels.get(index + 1).copied().unwrap_or(here);
    let mut inputs = vec![2 * here; layers_per_block + 1];
    inputs[0] = before + here;
    inputs[layers_per_block] = here + outside;
    inputs
}
