//! diffusers' `UNet2DModel`: the denoising network of DDPM.

mod classes;
mod config;

pub use classes::ClassUNet2d;
#[cfg(test)]
pub(super) use config::CELEBAHQ;
pub use config::{
    ClassEmbedType, DownBlockType, ResampleType, TimeScaleShift, UNet2dConfig, UpBlockType,
};

use std::path::Path;

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use super::condition::ClassCondition;
use super::layers::{
    AttentionBlockConfig, DownBlock, FLOW_TIMESTEPS, MidBlock, ResnetBlockConfig, Stage,
    StageAttention, StageEnd, TimeConditioning, TimestepEmbedding, Told, UpBlock,
    network_timesteps, same_convolution, sinusoidal_embedding, up_inputs,
};
use super::settings::unsupported;
use super::{LoadNote, folder, location, ops};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result, check_shape};
use crate::files::path_text;
use crate::process::PredictionType;
use crate::sampling::EulerFlowConfig;

/// The image denoiser of DDPM, diffusers' `UNet2DModel`.
///
/// Its folder is that of a published checkpoint: `config.json` and
/// `diffusion_pytorch_model.safetensors`. Both libraries can read and write it.
///
/// # Shapes
/// Input `[rows, in_channels, height, width]`, output `[rows, out_channels, height, width]`. Height
/// and width are multiples of `2^(stages − 1)`, as in diffusers. Trainer and samplers refuse other
/// inputs with an error; `predict` alone may panic in burn.
///
/// If there are twice as many output channels as input channels, the second half is a variance: it
/// is a part of [`forward`](UNet2d::forward), and `predict` drops it.
///
/// A network with class embeddings is a denoiser with the classes as condition after
/// [`with_classes`](UNet2d::with_classes).
///
/// # Example
/// ```
/// use siss::Denoiser;
/// use siss::burn::tensor::{Device, Tensor};
/// use siss::models::{DownBlockType, UNet2dConfig, UpBlockType};
///
/// let device = Device::flex();
/// let unet = UNet2dConfig {
///     block_out_channels: vec![32, 32],
///     down_block_types: vec![DownBlockType::Resnet; 2],
///     up_block_types: vec![UpBlockType::Resnet; 2],
///     layers_per_block: 1,
///     ..UNet2dConfig::default()
/// }
/// .init(&device)?;
/// let noisy = Tensor::zeros([2, 3, 8, 8], &device);
/// let timesteps = Tensor::from_data([0.0, 999.0], &device);
/// assert_eq!(unet.predict(noisy, timesteps, &()).dims(), [2, 3, 8, 8]);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct UNet2d {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<ClassEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    config: UNet2dConfig,
    #[module(skip)]
    prediction_type: PredictionType,
    #[module(skip)]
    notes: Vec<LoadNote>,
}

/// The embedding of classes, unless they are given as embeddings.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A network has dozens of them, not thousands.
enum ClassEmbedding {
    Labels(Embedding),
    Numbers(TimestepEmbedding),
}

impl UNet2d {
    /// Reads a diffusers folder: the network's own, or one in which
    /// [`ModelFolder::find`](super::ModelFolder::find) finds a network.
    ///
    /// Weights may be stored in any float type; in memory they are `f32`. They may be in one file,
    /// in parts with an index, or in a variant such as `fp16`; the plain file is preferred.
    /// Attention layers may have the names that diffusers used before version 0.12, and all names
    /// may begin with `_orig_mod.` or `module.`.
    ///
    /// If there is no safetensors file of full precision, `diffusion_pytorch_model.bin` is read,
    /// with the feature `pytorch`. This file is a pickle: it is parsed, nothing in it is run, and
    /// an entry that is not a tensor is refused. [`notes`](UNet2d::notes) say what was chosen.
    ///
    /// The scheduler's file says what the network predicts; it is searched for in the same places
    /// as by [`ModelFolder`](super::ModelFolder). Without such a file, or with one that
    /// [`SchedulerConfig`](crate::process::SchedulerConfig) does not support, the network is
    /// assumed to predict the noise, and a note says so. To correct this, use
    /// [`with_prediction_type`](UNet2d::with_prediction_type).
    ///
    /// # Errors
    /// - [`Error::Io`]; the errors of [`UNet2dConfig::from_json`]
    /// - [`Error::UnsupportedConfig`] for a path of flow matching that is not divided into 1,000
    ///   timesteps, or that is shifted dynamically
    /// - [`Error::InvalidFile`] for a scheduler file that cannot be read at all, if there is no
    ///   network, or if the weights are neither safetensors nor, with the feature `pytorch`,
    ///   pickled tensors
    /// - [`Error::WeightMismatch`] with the first tensor that is missing, unexpected, in two parts,
    ///   of the wrong shape, not of a float type, or not finite
    pub fn load(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let location::Network {
            root,
            folder,
            mut notes,
        } = location::network(folder.as_ref())?;
        let prediction_type = prediction_type(&root, &folder, &mut notes)?;
        let config = UNet2dConfig::from_file(folder.join(location::CONFIG))?;
        let unet = config.init(device)?.with_prediction_type(prediction_type);
        let (mut unet, read) = folder::load_weights(unet, &folder)?;
        unet.notes = notes;
        unet.notes.extend(read);
        if config.dropout > 0.0 {
            let probability = config.dropout;
            unet.notes.push(LoadNote::Dropout { probability });
        }
        Ok(unet)
    }

    /// Sets what the network predicts: for one made by [`UNet2dConfig::init`], or read without its
    /// scheduler's file.
    ///
    /// A network of the velocity of flow matching takes the times of the path, from 0 to 1, and
    /// counts them in thousandths, as diffusers' pipelines do.
    pub fn with_prediction_type(self, prediction_type: PredictionType) -> Self {
        Self {
            prediction_type,
            ..self
        }
    }

    /// The decisions made while the network was read, to be shown to the user; empty for a network
    /// that was not read.
    pub fn notes(&self) -> &[LoadNote] {
        &self.notes
    }

    /// Writes a folder that [`load`](UNet2d::load) and diffusers read.
    ///
    /// Each existing file is replaced atomically. Weights are always written as one file of f32.
    /// These files do not say what the network predicts; the scheduler's file does, which
    /// [`save_pipeline`](super::save_pipeline) writes too.
    ///
    /// # Errors
    /// [`Error::Io`]; a file that could not be written is unchanged. [`Error::InvalidFile`] if the
    /// folder holds weights in parts, which diffusers would read instead.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        folder::save(self, &self.config.to_json(), folder.as_ref())
    }

    /// The settings the network was built from.
    pub fn config(&self) -> &UNet2dConfig {
        &self.config
    }

    /// Builds the network of a validated configuration.
    fn build(config: &UNet2dConfig, device: &Device) -> Self {
        let channels = &config.block_out_channels;
        let outermost = channels.first().copied().unwrap_or_default();
        let innermost = channels.last().copied().unwrap_or_default();
        Self {
            conv_in: same_convolution(config.in_channels, outermost, device),
            time_embedding: TimestepEmbedding::new(outermost, config.embedding_size(), device),
            class_embedding: class_embedding(config, device),
            down_blocks: down_blocks(config, device),
            mid_block: config
                .has_mid_block
                .then(|| mid_block(config, innermost, device)),
            up_blocks: up_blocks(config, device),
            conv_norm_out: GroupNormConfig::new(config.norm_num_groups, outermost)
                .with_epsilon(config.norm_eps)
                .init(device),
            conv_out: same_convolution(outermost, config.out_channels, device),
            config: config.clone(),
            prediction_type: PredictionType::Epsilon,
            notes: Vec::new(),
        }
    }

    /// The whole output, which may hold a variance besides the prediction.
    ///
    /// # Shapes
    /// - `noisy`: `[rows, in_channels, height, width]`; `timesteps`: `[rows]`
    /// - `classes`: for a network with class embeddings
    /// - the result: `[rows, out_channels, height, width]`
    pub fn forward(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        classes: Option<&ClassCondition>,
    ) -> Tensor<4> {
        let given = noisy.dtype();
        let noisy = ops::in_type_of(noisy, &self.conv_in.weight);
        let told = Told {
            embedding: self.embed(timesteps, classes, &noisy),
            context: None,
        };
        let sample = if self.config.center_input_sample {
            noisy.mul_scalar(2.0).sub_scalar(1.0)
        } else {
            noisy
        };
        let mut features = ops::convolve(&self.conv_in, sample);
        let mut skips = vec![features.clone()];
        for block in &self.down_blocks {
            features = block.forward(features, &told, &mut skips);
        }
        if let Some(block) = &self.mid_block {
            features = block.forward(features, &told);
        }
        for block in &self.up_blocks {
            features = block.forward(features, &told, &mut skips);
        }
        let output = ops::convolve(
            &self.conv_out,
            ops::group_norm_silu(&self.conv_norm_out, features),
        );
        ops::in_type(output, given)
    }

    /// The prediction alone, without a variance.
    fn prediction(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        classes: Option<&ClassCondition>,
    ) -> Tensor<4> {
        let timesteps = network_timesteps(timesteps, self.prediction_type);
        let output = self.forward(noisy, timesteps, classes);
        let channels = self.config.in_channels;
        match self.config.out_channels == 2 * channels {
            true => output.narrow(1, 0, channels),
            false => output,
        }
    }

    /// The embedding of timestep and class for the residual blocks, after the activation with which
    /// each of them begins.
    fn embed(
        &self,
        timesteps: Tensor<1>,
        classes: Option<&ClassCondition>,
        like: &Tensor<4>,
    ) -> Tensor<2> {
        let sinusoids = self.sinusoids(timesteps, like);
        let time = self.time_embedding.forward(sinusoids);
        let class = classes.and_then(|classes| self.embed_classes(classes, like));
        silu(match class {
            Some(class) => time + class,
            None => time,
        })
    }

    fn sinusoids(&self, numbers: Tensor<1>, like: &Tensor<4>) -> Tensor<2> {
        let channels = self.config.block_out_channels.first();
        let sinusoids = sinusoidal_embedding(
            numbers,
            channels.copied().unwrap_or_default(),
            self.config.flip_sin_to_cos,
            self.config.freq_shift,
        );
        sinusoids.cast(like.dtype())
    }

    /// The class embedding, `[rows, size]`; `None` for classes of another kind than the network's.
    fn embed_classes(&self, classes: &ClassCondition, like: &Tensor<4>) -> Option<Tensor<2>> {
        match (&self.class_embedding, classes) {
            (Some(ClassEmbedding::Labels(table)), ClassCondition::Labels(labels)) => {
                Some(table.weight.val().select(0, labels.clone()))
            }
            (Some(ClassEmbedding::Numbers(layers)), ClassCondition::Numbers(numbers)) => {
                Some(layers.forward(self.sinusoids(numbers.clone(), like)))
            }
            (None, ClassCondition::Embeddings(embeddings)) => {
                Some(ops::in_type(embeddings.clone(), like.dtype()))
            }
            _ => None,
        }
    }

    /// Checks whether the network accepts inputs of this shape.
    fn check_shape(&self, [rows, channels, height, width]: [usize; 4]) -> Result<()> {
        check_shape(
            "the input of the UNet",
            &[rows, self.config.in_channels, height, width],
            &[rows, channels, height, width],
            "give images of the model's channels",
        )?;
        match self.config.sizes_that_work([height, width]) {
            None => Ok(()),
            Some(sizes) => Err(Error::InvalidSetting {
                what: format!("the input of the UNet has {height}x{width} pixels: {sizes}"),
                remedy: "give images of such a size",
            }),
        }
    }
}

/// What the network predicts according to the scheduler's file; if there is no answer, the noise,
/// with a note.
pub(super) fn prediction_type(
    root: &Path,
    folder: &Path,
    notes: &mut Vec<LoadNote>,
) -> Result<PredictionType> {
    let scheduler = location::scheduler(root, folder);
    let stated = match &scheduler {
        Some(file) => location::stated_prediction_type(file)?,
        None => None,
    };
    match (stated, &scheduler) {
        (None, _) => notes.push(LoadNote::NoiseAssumed { scheduler }),
        (Some(PredictionType::FlowVelocity), Some(file)) => check_flow(file)?,
        (Some(_), _) => {}
    }
    Ok(stated.unwrap_or_default())
}

/// Refuses a path of flow matching whose timesteps the networks do not count.
fn check_flow(scheduler: &Path) -> Result<()> {
    let count = EulerFlowConfig::from_file(scheduler)?.num_train_timesteps;
    match count == FLOW_TIMESTEPS {
        true => Ok(()),
        false => Err(unsupported(
            &path_text(scheduler),
            "num_train_timesteps",
            count,
            format!("only networks that count a path in {FLOW_TIMESTEPS} timesteps are read"),
        )),
    }
}

fn class_embedding(config: &UNet2dConfig, device: &Device) -> Option<ClassEmbedding> {
    let size = config.embedding_size();
    match (config.class_embed_type, config.num_class_embeds) {
        (None, Some(classes)) => {
            let table = EmbeddingConfig::new(classes, size).init(device);
            Some(ClassEmbedding::Labels(table))
        }
        (Some(ClassEmbedType::Timestep), _) => {
            let inputs = config.block_out_channels.first();
            let inputs = inputs.copied().unwrap_or_default();
            let layers = TimestepEmbedding::new(inputs, size, device);
            Some(ClassEmbedding::Numbers(layers))
        }
        (Some(ClassEmbedType::Identity), _) | (None, None) => None,
    }
}

fn resnet(config: &UNet2dConfig, channels: usize, scale_factor: f64) -> ResnetBlockConfig {
    ResnetBlockConfig {
        inputs: channels,
        outputs: channels,
        embedding: Some(config.embedding_size()),
        conditioning: match config.resnet_time_scale_shift {
            TimeScaleShift::Default => TimeConditioning::Shift,
            TimeScaleShift::ScaleShift => TimeConditioning::ScaleShift,
        },
        resize: None,
        groups: config.norm_num_groups,
        epsilon: config.norm_eps,
        scale_factor,
    }
}

fn attention(
    config: &UNet2dConfig,
    channels: usize,
    groups: Option<usize>,
    scale_factor: f64,
) -> StageAttention {
    StageAttention::Pixels(AttentionBlockConfig {
        channels,
        head_size: config.attention_head_dim.unwrap_or(channels),
        groups,
        epsilon: config.norm_eps,
        scale_factor,
    })
}

/// A stage with attention, without, or one that changes the size by a residual block.
fn stage(config: &UNet2dConfig, channels: usize, inputs: Vec<usize>, kind: StageKind) -> Stage {
    let groups = Some(config.norm_num_groups);
    let convolution = StageEnd::Convolution {
        symmetric: config.downsample_padding == 1,
    };
    let (attention, end) = match kind {
        StageKind::Plain => (StageAttention::Without, convolution),
        StageKind::Resnet => (StageAttention::Without, StageEnd::Resnet),
        StageKind::Attention(ResampleType::Conv) => {
            (attention(config, channels, groups, 1.0), convolution)
        }
        StageKind::Attention(ResampleType::Resnet) => {
            (attention(config, channels, groups, 1.0), StageEnd::Resnet)
        }
    };
    Stage {
        resnet: resnet(config, channels, 1.0),
        inputs,
        attention,
        end,
    }
}

/// What a stage is made of, in both directions.
enum StageKind {
    Plain,
    Resnet,
    Attention(ResampleType),
}

/// The downward stages, outermost first.
fn down_blocks(config: &UNet2dConfig, device: &Device) -> Vec<DownBlock> {
    let channels = &config.block_out_channels;
    let mut previous = channels.first().copied().unwrap_or_default();
    let block = |(index, (&here, kind)): (usize, (&usize, &DownBlockType))| {
        let mut inputs = vec![here; config.layers_per_block];
        inputs[0] = previous;
        previous = here;
        let kind = match kind {
            DownBlockType::Resnet => StageKind::Plain,
            DownBlockType::Attention => StageKind::Attention(config.downsample_type),
            DownBlockType::ResnetDownsample => StageKind::Resnet,
        };
        let mut stage = stage(config, here, inputs, kind);
        if index + 1 == channels.len() {
            stage.end = StageEnd::Keep;
        }
        stage.down(device)
    };
    let stages = channels.iter().zip(&config.down_block_types);
    stages.enumerate().map(block).collect()
}

fn mid_block(config: &UNet2dConfig, channels: usize, device: &Device) -> MidBlock {
    let scale_factor = config.mid_block_scale_factor;
    // As in diffusers: without groups of its own, attention beside scales and shifts has no
    // normalisation.
    let shared = match config.resnet_time_scale_shift {
        TimeScaleShift::Default => Some(config.norm_num_groups),
        TimeScaleShift::ScaleShift => None,
    };
    let groups = config.attn_norm_num_groups.or(shared);
    let stage = Stage {
        resnet: resnet(config, channels, scale_factor),
        inputs: vec![channels; 2],
        attention: match config.add_attention {
            true => attention(config, channels, groups, scale_factor),
            false => StageAttention::Without,
        },
        end: StageEnd::Keep,
    };
    stage.middle(device)
}

/// The upward stages, innermost first.
///
/// The first residual block of a stage gets the output of the stage before; the last one gets a
/// feature map of the next stage outwards.
fn up_blocks(config: &UNet2dConfig, device: &Device) -> Vec<UpBlock> {
    let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let block = |(index, kind): (usize, &UpBlockType)| {
        let here = channels[index];
        let inputs = up_inputs(&channels, index, config.layers_per_block);
        let kind = match kind {
            UpBlockType::Resnet => StageKind::Plain,
            UpBlockType::Attention => StageKind::Attention(config.upsample_type),
            UpBlockType::ResnetUpsample => StageKind::Resnet,
        };
        let mut stage = stage(config, here, inputs, kind);
        if index + 1 == channels.len() {
            stage.end = StageEnd::Keep;
        }
        stage.up(device)
    };
    config
        .up_block_types
        .iter()
        .enumerate()
        .map(block)
        .collect()
}

impl Denoiser<4> for UNet2d {
    type Condition = ();

    fn check_input(&self, shape: [usize; 4]) -> Result<()> {
        self.check_shape(shape)
    }

    fn check_condition(&self, _: &()) -> Result<()> {
        match self.config.has_classes() {
            false => Ok(()),
            true => Err(Error::MissingPart {
                owner: "the condition of a network with class embeddings".into(),
                missing: "classes",
                remedy: "make the network a denoiser of classes with `UNet2d::with_classes`",
            }),
        }
    }

    fn predict(&self, noisy: Tensor<4>, timesteps: Tensor<1>, _: &()) -> Tensor<4> {
        self.prediction(noisy, timesteps, None)
    }

    fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }
}

#[cfg(test)]
mod tests;
