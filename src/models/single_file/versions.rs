//! The published configurations, which single files do not hold.

use crate::models::{
    AdditionEmbedType, ClipActivation, ClipTextConfig, ConditionDownBlockType,
    ConditionUpBlockType, PerStage, Size, UNet2dConditionConfig,
};

/// A weight that only XL has, and the features that it takes.
pub(super) const OF_XL: (&str, usize) = ("label_emb.0.0.weight", 2816);

/// What the published text encoders have in common.
fn encoder_config(size: usize, heads: usize, activation: ClipActivation) -> ClipTextConfig {
    ClipTextConfig {
        hidden_size: size,
        intermediate_size: 4 * size,
        projection_dim: size,
        num_attention_heads: heads,
        hidden_act: activation,
        eos_token_id: 2,
        ..ClipTextConfig::default()
    }
}

pub(super) fn encoder_of_version_1() -> ClipTextConfig {
    encoder_config(768, 12, ClipActivation::QuickGelu)
}

pub(super) fn encoder_of_version_2() -> ClipTextConfig {
    ClipTextConfig {
        projection_dim: 512,
        num_hidden_layers: 23,
        ..encoder_config(1024, 16, ClipActivation::Gelu)
    }
}

pub(super) fn second_encoder_of_xl() -> ClipTextConfig {
    ClipTextConfig {
        architectures: vec!["CLIPTextModelWithProjection".into()],
        num_hidden_layers: 32,
        ..encoder_config(1280, 20, ClipActivation::Gelu)
    }
}

pub(super) fn version_1() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        sample_size: Some(Size::Square(64)),
        cross_attention_dim: 768,
        ..UNet2dConditionConfig::default()
    }
}

pub(super) fn version_2() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        sample_size: Some(Size::Square(96)),
        cross_attention_dim: 1024,
        attention_head_dim: PerStage::Each(vec![5, 10, 20, 20]),
        use_linear_projection: true,
        upcast_attention: Some(true),
        ..UNet2dConditionConfig::default()
    }
}

pub(super) fn xl() -> UNet2dConditionConfig {
    use ConditionDownBlockType as Down;
    use ConditionUpBlockType as Up;
    UNet2dConditionConfig {
        sample_size: Some(Size::Square(128)),
        block_out_channels: vec![320, 640, 1280],
        down_block_types: vec![Down::Resnet, Down::Attention, Down::Attention],
        up_block_types: vec![Up::Attention, Up::Attention, Up::Resnet],
        cross_attention_dim: 2048,
        attention_head_dim: PerStage::Each(vec![5, 10, 20]),
        transformer_layers_per_block: PerStage::Each(vec![1, 2, 10]),
        use_linear_projection: true,
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(256),
        projection_class_embeddings_input_dim: Some(OF_XL.1),
        ..UNet2dConditionConfig::default()
    }
}
