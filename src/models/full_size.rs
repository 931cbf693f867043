//! The published networks at full size: names and shapes of all their tensors, without weights.
//!
//! The reference is the `state_dict` of diffusers 0.42 and transformers 5.24 on the meta device:
//! SHA-256 of its sorted lines `name [shape]`.

use std::fmt::Write;

use burn::module::Module;
use burn::tensor::Device;
use sha2::{Digest, Sha256};

use super::folder::expected_shapes;
use super::{
    AutoencoderKlConfig, ClipTextConfig, DitConfig, Sd3TransformerConfig, UNet2dConditionConfig,
};

/// The configuration of runwayml/stable-diffusion-v1-5, as published.
const SD1: &str = r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;

/// That of stabilityai/stable-diffusion-2-1.
const SD2: &str = r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0", "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4, "sample_size": 96,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": true, "upcast_attention": true}"#;

/// That of stabilityai/stable-diffusion-xl-base-1.0.
const SDXL: &str = r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
    "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": false,
    "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_dim": 2048, "cross_attention_norm": null,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1,
    "dual_cross_attention": false, "encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true,
    "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_only_cross_attention": null,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05,
    "norm_num_groups": 32, "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false,
    "out_channels": 4, "projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": false, "resnet_time_scale_shift": "default", "sample_size": 128,
    "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null,
    "time_embedding_type": "positional", "timestep_post_act": null, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
    "use_linear_projection": true}"#;

/// That of the autoencoder of CompVis/stable-diffusion-v1-4.
const VAE: &str = r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.2.2", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
    "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

/// That of facebook/DiT-XL-2-256.
const DIT: &str = r#"{"_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate", "attention_bias": true, "attention_head_dim": 72, "cross_attention_dim": null,
    "dropout": 0.0, "in_channels": 4, "norm_elementwise_affine": false, "norm_num_groups": 32,
    "norm_type": "ada_norm_zero", "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28,
    "num_vector_embeds": null, "only_cross_attention": false, "out_channels": 8, "patch_size": 2, "sample_size": 32,
    "upcast_attention": false, "use_linear_projection": false}"#;

/// That of stabilityai/stable-diffusion-3-medium-diffusers.
const SD3: &str = r#"{"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.29.0.dev0",
    "attention_head_dim": 64, "caption_projection_dim": 1536, "in_channels": 16, "joint_attention_dim": 4096,
    "num_attention_heads": 24, "num_layers": 24, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192, "sample_size": 128}"#;

/// The number of tensors of a network, and the digest of their names and shapes.
fn names_and_shapes<M: Module>(network: &M) -> (usize, String) {
    let shapes = expected_shapes(network);
    let mut lines: Vec<String> = shapes
        .iter()
        .map(|(name, shape)| format!("{name} {shape:?}\n"))
        .collect();
    lines.sort();
    let digest = Sha256::digest(lines.concat().as_bytes());
    let hex = digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    (shapes.len(), hex)
}

#[test]
fn unets_have_the_tensors_of_diffusers() {
    for (config, count, digest) in [
        (
            SD1,
            686,
            "77ebc1df4e20916ac2e4cf489483e15661fccfe020d57eb554ab4671224d5de1",
        ),
        (
            SD2,
            686,
            "e1b6b20265b7d9d1d5860597d83fb88d34c545a8f97990087deb27c14c3a378e",
        ),
        (
            SDXL,
            1680,
            "93a876608bc1ee82195e34e1eb1667784c548cc1af6deaf04d79692e6d36926f",
        ),
    ] {
        let config = UNet2dConditionConfig::from_json(config, "config.json").unwrap();
        let unet = config.init(&Device::flex()).unwrap();
        assert_eq!(names_and_shapes(&unet), (count, digest.into()));
    }
}

#[test]
fn autoencoders_have_the_tensors_of_diffusers() {
    let plain = AutoencoderKlConfig::from_json(VAE, "config.json").unwrap();
    let without = AutoencoderKlConfig {
        latent_channels: 16,
        use_quant_conv: false,
        use_post_quant_conv: false,
        scaling_factor: 1.5305,
        shift_factor: Some(0.0609),
        ..plain.clone()
    };
    for (config, count, digest) in [
        (
            plain,
            248,
            "5a0ba4e758a914142de788cfdc978a9e45274c037ef49e4aeac28723907be7c6",
        ),
        (
            without,
            244,
            "428bb77a3f17f47c86fadf14c7d92d1b9512c2aac0e5320abd2109ad219c1e4f",
        ),
    ] {
        let autoencoder = config.init(&Device::flex()).unwrap();
        assert_eq!(names_and_shapes(&autoencoder), (count, digest.into()));
    }
}

#[test]
fn transformers_have_the_tensors_of_diffusers() {
    let dit = DitConfig::from_json(DIT, "config.json").unwrap();
    let digest = "8c2c5d013d17c5c9243db2fb48d79bea4a84d2351a9b74947f52b9fd5f19a18a";
    let found = names_and_shapes(&dit.init(&Device::flex()).unwrap());
    assert_eq!(found, (538, digest.into()));
    let sd3 = Sd3TransformerConfig::from_json(SD3, "config.json").unwrap();
    let digest = "9bbc5c639757360c7b08ec9ed9b7c2b00a7a068936fcaa67647cd5a21a842c52";
    let found = names_and_shapes(&sd3.init(&Device::flex()).unwrap());
    assert_eq!(found, (683, digest.into()));
}

#[test]
fn text_encoders_have_the_tensors_of_transformers() {
    let config = |projects: bool, size: usize, layers: usize, heads: usize| ClipTextConfig {
        architectures: vec![if projects {
            "CLIPTextModelWithProjection".into()
        } else {
            "CLIPTextModel".into()
        }],
        hidden_size: size,
        intermediate_size: 4 * size,
        projection_dim: size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        ..ClipTextConfig::default()
    };
    for (config, count, digest) in [
        (
            config(false, 768, 12, 12),
            196,
            "2d6bd75085bd03af52a7719c719d4a51a986392b52812388305320cfb0500046",
        ),
        (
            config(false, 1024, 23, 16),
            372,
            "42ac16b3f9ae2999257e196151188497597d171289bb09e9131f49e737ed6f79",
        ),
        (
            config(true, 1280, 32, 20),
            517,
            "02cca0fa2d2af3b0af8f927b0cbb7c74b12486d02e3ff2bb155dc64a58578112",
        ),
    ] {
        let encoder = config.init(&Device::flex()).unwrap();
        assert_eq!(names_and_shapes(&encoder), (count, digest.into()));
    }
}

/// The projections of version 2 are linear layers under the names of version 1's convolutions.
#[test]
fn only_the_shape_tells_linear_projections_from_convolutions() {
    let shape = |config: &str| {
        let config = UNet2dConditionConfig::from_json(config, "config.json").unwrap();
        let shapes = expected_shapes(&config.init(&Device::flex()).unwrap());
        shapes["down_blocks.0.attentions.0.proj_in.weight"].clone()
    };
    assert_eq!(shape(SD1), [320, 320, 1, 1]);
    assert_eq!(shape(SD2), [320, 320]);
}

/// Multiplications of a forward pass over one latent of `size × size`, with 77 tokens: those of
/// each layer's weights at every place of its map, and the two products of each attention.
fn multiplications(config: &str, size: usize) -> f64 {
    const TOKENS: usize = 77;
    let config = UNet2dConditionConfig::from_json(config, "config.json").unwrap();
    let last = config.block_out_channels.len() - 1;
    let shapes = expected_shapes(&config.init(&Device::flex()).unwrap());
    let of_layer = |(name, shape): (&String, &Vec<usize>)| {
        let parts: Vec<&str> = name.split('.').collect();
        let block = || parts[1].parse::<usize>().unwrap();
        let halvings = match (parts[0], *parts.get(2).unwrap_or(&"")) {
            ("down_blocks", "downsamplers") => block() + 1,
            ("down_blocks", _) => block(),
            ("mid_block", _) => last,
            ("up_blocks", "upsamplers") => last - block() - 1,
            ("up_blocks", _) => last - block(),
            _ => 0,
        };
        let map = (size >> halvings).pow(2);
        let places = match name {
            name if name.contains("embedding") || name.contains("time_emb") => 1,
            name if name.contains("attn2.to_k") || name.contains("attn2.to_v") => TOKENS,
            _ => map,
        };
        let products = match name {
            name if name.ends_with("attn1.to_q.weight") => 2 * map * map * shape[0],
            name if name.ends_with("attn2.to_q.weight") => 2 * map * TOKENS * shape[0],
            _ => 0,
        };
        (places * shape.iter().product::<usize>() + products) as f64
    };
    // A vector is a bias, or the gain of a norm.
    let layers = shapes.iter().filter(|(_, shape)| shape.len() > 1);
    layers.map(of_layer).sum()
}

/// docs/performance.md has these numbers.
#[test]
fn a_pass_of_xl_takes_eight_times_that_of_version_1() {
    let (sd1, xl) = (multiplications(SD1, 64), multiplications(SDXL, 128));
    println!("{sd1:.3e}, {xl:.3e}, ratio {:.2}", xl / sd1);
    assert!((sd1 / 0.40e12 - 1.0).abs() < 0.01, "{sd1:e}");
    assert!((xl / 3.38e12 - 1.0).abs() < 0.01, "{xl:e}");
    assert!((xl / sd1 - 8.4).abs() < 0.05, "{}", xl / sd1);
}
