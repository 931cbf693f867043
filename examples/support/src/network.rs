//! The network of the bundled models.

use siss::models::{DownBlockType, UNet2dConfig, UpBlockType};

/// Three stages with these channels, and attention in the middle one, for pictures of this many
/// channels, height and width.
pub fn three_stages([channels, height, width]: [usize; 3], stages: Vec<usize>) -> UNet2dConfig {
    UNet2dConfig {
        sample_size: Some([height, width]),
        in_channels: channels,
        out_channels: channels,
        layers_per_block: 1,
        block_out_channels: stages,
        norm_num_groups: 8,
        down_block_types: vec![
            DownBlockType::Resnet,
            DownBlockType::Attention,
            DownBlockType::Resnet,
        ],
        up_block_types: vec![
            UpBlockType::Resnet,
            UpBlockType::Attention,
            UpBlockType::Resnet,
        ],
        ..UNet2dConfig::default()
    }
}
