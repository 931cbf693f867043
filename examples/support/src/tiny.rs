//! Tiny pipelines of every layout that `unlearn` takes, with random weights, for tests: pictures of
//! 8 × 8, latents of 4 × 4, a tokenizer of single letters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use siss::burn::tensor::Device;
use siss::models::{
    AdditionEmbedType, AutoencoderKlConfig, ClipTextConfig, ConditionDownBlockType,
    ConditionUpBlockType, DitConfig, DownBlockType, PerStage, Sd3TransformerConfig, Size,
    UNet2dConditionConfig, UNet2dConfig, UpBlockType,
};

/// The scheduler of the pipelines whose process has steps.
pub const SCHEDULER: &str = r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1, "prediction_type": "epsilon"}"#;

/// Writes a file, and creates its folder.
pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A picture of 8 × 8 in colour, another for each number.
pub fn picture(number: u32) -> RgbImage {
    RgbImage::from_fn(8, 8, |x, y| {
        let value = |factor: u32| ((number * 37 + x * factor + y * 11) % 256) as u8;
        Rgb([value(7), value(13), value(29)])
    })
}

/// Writes pictures into a folder, in files named by their numbers.
pub fn pictures(folder: &Path, numbers: impl IntoIterator<Item = u32>) {
    fs::create_dir_all(folder).unwrap();
    for number in numbers {
        let file = folder.join(format!("{number:03}.png"));
        picture(number).save(file).unwrap();
    }
}

/// A network without a condition.
pub fn plain_model(folder: &Path) {
    let config = UNet2dConfig {
        block_out_channels: vec![4, 8],
        down_block_types: vec![DownBlockType::Resnet, DownBlockType::Attention],
        up_block_types: vec![UpBlockType::Attention, UpBlockType::Resnet],
        layers_per_block: 1,
        norm_num_groups: 2,
        attention_head_dim: None,
        sample_size: Some([8, 8]),
        ..UNet2dConfig::default()
    };
    let unet = config.init(&Device::flex()).unwrap();
    unet.save(folder.join("unet")).unwrap();
    let text =
        r#"{"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "clip_sample": true}"#;
    write(&folder.join("scheduler/scheduler_config.json"), text);
}

/// A network with three classes and one for none.
pub fn class_model(folder: &Path) {
    let config = UNet2dConfig {
        sample_size: Some([8, 8]),
        num_class_embeds: Some(4),
        block_out_channels: vec![8, 8],
        down_block_types: vec![DownBlockType::Resnet; 2],
        up_block_types: vec![UpBlockType::Resnet; 2],
        layers_per_block: 1,
        norm_num_groups: 4,
        attention_head_dim: None,
        ..UNet2dConfig::default()
    };
    let unet = config.init(&Device::flex()).unwrap();
    unet.save(folder.join("unet")).unwrap();
    write(&folder.join("scheduler/scheduler_config.json"), SCHEDULER);
}

/// A transformer with three classes, and one for none: of latents of 4 × 4 with a learned variance,
/// or of pixels.
pub fn transformer_model(folder: &Path, is_latent: bool) {
    let channels = if is_latent { 4 } else { 3 };
    let config = DitConfig {
        num_attention_heads: 2,
        attention_head_dim: 4,
        num_layers: 2,
        in_channels: channels,
        out_channels: is_latent.then_some(2 * channels),
        sample_size: if is_latent { 4 } else { 8 },
        num_embeds_ada_norm: 3,
        ..DitConfig::default()
    };
    let network = config.init(&Device::flex()).unwrap();
    network.save(folder.join("transformer")).unwrap();
    write(&folder.join("scheduler/scheduler_config.json"), SCHEDULER);
    if is_latent {
        autoencoder(&folder.join("vae"), None);
        let index = r#"{"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"], "id2label": {"0": "a hat"}}"#;
        write(&folder.join("model_index.json"), index);
    }
}

/// An autoencoder that makes latents of 4 × 4 of pictures of 8 × 8.
fn autoencoder(folder: &Path, shift_factor: Option<f64>) {
    let config = AutoencoderKlConfig {
        block_out_channels: vec![8, 8],
        down_block_types: vec!["DownEncoderBlock2D".into(); 2],
        up_block_types: vec!["UpDecoderBlock2D".into(); 2],
        layers_per_block: 1,
        norm_num_groups: 4,
        shift_factor,
        ..AutoencoderKlConfig::default()
    };
    let network = config.init(&Device::flex()).unwrap();
    network.save(folder).unwrap();
}

/// Tokens of letters: inside of a word, and at its end.
const LETTERS: usize = 2 * 26;

/// A text encoder of the letters, a start and an end, with 8 features, with or without projection.
fn text_encoder(folder: &Path, has_projection: bool) {
    let mut config = ClipTextConfig {
        vocab_size: LETTERS + 2,
        hidden_size: 8,
        intermediate_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 6,
        eos_token_id: LETTERS + 1,
        ..ClipTextConfig::default()
    };
    if has_projection {
        config.architectures = vec!["CLIPTextModelWithProjection".into()];
    }
    let network = config.init(&Device::flex()).unwrap();
    network.save(folder).unwrap();
}

/// A tokenizer of single letters.
fn tokenizer(folder: &Path) {
    let letters = ('a'..='z').flat_map(|letter| [letter.to_string(), format!("{letter}</w>")]);
    let tokens = letters.chain(["<|startoftext|>".into(), "<|endoftext|>".into()]);
    let vocabulary: BTreeMap<String, usize> = tokens.zip(0..).collect();
    write(
        &folder.join("vocab.json"),
        &serde_json::to_string(&vocabulary).unwrap(),
    );
    write(&folder.join("merges.txt"), "#version: 0.2\n");
    let settings = r#"{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}"#;
    write(&folder.join("tokenizer_config.json"), settings);
}

fn text_unet() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        sample_size: Some(Size::Square(4)),
        block_out_channels: vec![8, 8],
        down_block_types: vec![
            ConditionDownBlockType::Attention,
            ConditionDownBlockType::Resnet,
        ],
        up_block_types: vec![
            ConditionUpBlockType::Resnet,
            ConditionUpBlockType::Attention,
        ],
        layers_per_block: 1,
        norm_num_groups: 4,
        attention_head_dim: PerStage::Same(2),
        cross_attention_dim: 8,
        ..UNet2dConditionConfig::default()
    }
}

/// A pipeline of Stable Diffusion's parts: latents of 4 × 4 for pictures of 8 × 8.
pub fn text_model(folder: &Path) {
    let unet = text_unet().init(&Device::flex()).unwrap();
    unet.save(folder.join("unet")).unwrap();
    autoencoder(&folder.join("vae"), None);
    text_encoder(&folder.join("text_encoder"), false);
    tokenizer(&folder.join("tokenizer"));
    write(&folder.join("scheduler/scheduler_config.json"), SCHEDULER);
    write(&folder.join("model_index.json"), &index(""));
}

/// The same of Stable Diffusion XL's parts.
pub fn xl_model(folder: &Path) {
    text_model(folder);
    let unet = UNet2dConditionConfig {
        cross_attention_dim: 16,
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(4),
        projection_class_embeddings_input_dim: Some(6 * 4 + 6),
        ..text_unet()
    };
    let unet = unet.init(&Device::flex()).unwrap();
    unet.save(folder.join("unet")).unwrap();
    text_encoder(&folder.join("text_encoder_2"), true);
    tokenizer(&folder.join("tokenizer_2"));
    write(&folder.join("model_index.json"), &index(XL_PARTS));
}

/// The parts of Stable Diffusion 3, with the scheduler of flow matching.
pub fn flow_model(folder: &Path) {
    let config = Sd3TransformerConfig {
        sample_size: 4,
        in_channels: 4,
        out_channels: 4,
        num_layers: 2,
        attention_head_dim: 4,
        num_attention_heads: 2,
        joint_attention_dim: 24,
        caption_projection_dim: 8,
        pooled_projection_dim: 12,
        pos_embed_max_size: 4,
        ..Sd3TransformerConfig::default()
    };
    let network = config.init(&Device::flex()).unwrap();
    network.save(folder.join("transformer")).unwrap();
    autoencoder(&folder.join("vae"), Some(0.0609));
    for (encoder, of_tokens) in [
        ("text_encoder", "tokenizer"),
        ("text_encoder_2", "tokenizer_2"),
    ] {
        text_encoder(&folder.join(encoder), true);
        tokenizer(&folder.join(of_tokens));
    }
    write(
        &folder.join("scheduler/scheduler_config.json"),
        FLOW_SCHEDULER,
    );
    write(&folder.join("model_index.json"), FLOW_INDEX);
}

/// The scheduler of [`flow_model`].
pub const FLOW_SCHEDULER: &str = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}"#;
/// The index of [`flow_model`].
pub const FLOW_INDEX: &str = r#"{"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "text_encoder_3": [null, null],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"], "tokenizer_3": [null, null],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}"#;

/// The further entries of the index of [`xl_model`].
pub const XL_PARTS: &str = r#", "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"], "image_encoder": [null, null]"#;

/// The index of a pipeline of Stable Diffusion, with further entries.
pub fn index(more: &str) -> String {
    format!(
        r#"{{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [null, null], "requires_safety_checker": false{more}}}"#
    )
}
