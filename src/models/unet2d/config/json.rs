//! The `config.json` of diffusers: every key is either taken over or refused.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{NO_FILE, UNet2dConfig, unsupported};
use crate::error::{Error, Result};
use crate::files::invalid;

/// The version of diffusers whose layout is written.
const DIFFUSERS_VERSION: &str = "0.42.1";

impl UNet2dConfig {
    pub(super) fn from_text(text: &str, file: &str) -> Result<Self> {
        let object = serde_json::from_str(text).map_err(|error| {
            let message = format!("not a diffusers model configuration: {error}");
            invalid(file.as_ref(), message)
        })?;
        Self::from_object(&object, file)
    }

    fn from_object(object: &Map<String, Value>, file: &str) -> Result<Self> {
        let mut config = Self::default();
        for (key, value) in object {
            config
                .read_key(key, value)
                .map_err(|remedy| unsupported(file, key, value, remedy))?;
        }
        config.validate(file)?;
        Ok(config)
    }

    /// Takes over the value of one key, or says what would be supported instead.
    fn read_key(&mut self, key: &str, value: &Value) -> std::result::Result<(), String> {
        match key {
            "_class_name" => only(value, &["UNet2DModel"])?,
            "_diffusers_version" | "_name_or_path" => {}
            "sample_size" => self.sample_size = read_size(value)?,
            "in_channels" => self.in_channels = read(value)?,
            "out_channels" => self.out_channels = read(value)?,
            "center_input_sample" => self.center_input_sample = read(value)?,
            "time_embedding_type" => only(value, &["positional"])?,
            "time_embedding_dim" => self.time_embedding_dim = read(value)?,
            "freq_shift" => self.freq_shift = read(value)?,
            "flip_sin_to_cos" => self.flip_sin_to_cos = read(value)?,
            "down_block_types" => self.down_block_types = read(value)?,
            "mid_block_type" => only(value, &["UNetMidBlock2D"])?,
            "up_block_types" => self.up_block_types = read(value)?,
            "block_out_channels" => self.block_out_channels = read(value)?,
            "layers_per_block" => self.layers_per_block = read(value)?,
            "mid_block_scale_factor" => self.mid_block_scale_factor = read(value)?,
            "add_attention" => self.add_attention = read(value)?,
            "downsample_padding" => self.downsample_padding = read(value)?,
            "downsample_type" | "upsample_type" => only(value, &["conv"])?,
            "dropout" if value.as_f64() == Some(0.0) => {}
            "dropout" => {
                return Err(
                    "set it to 0: both gradients of an unlearning step must see the same network"
                        .into(),
                );
            }
            "act_fn" => only(value, &["silu", "swish"])?,
            "attention_head_dim" => self.attention_head_dim = read(value)?,
            "norm_num_groups" => self.norm_num_groups = read(value)?,
            "attn_norm_num_groups" => self.attn_norm_num_groups = read(value)?,
            "norm_eps" => self.norm_eps = read(value)?,
            "resnet_time_scale_shift" => only(value, &["default"])?,
            "class_embed_type" | "num_class_embeds" if value.is_null() => {}
            "class_embed_type" | "num_class_embeds" => {
                return Err("class conditioning is not implemented: set it to null".into());
            }
            "num_train_timesteps" => self.num_train_timesteps = read(value)?,
            _ => {
                return Err(
                    "the key is unknown: remove it if it does not change the computation".into(),
                );
            }
        }
        Ok(())
    }
}

impl From<UNet2dConfig> for Map<String, Value> {
    fn from(config: UNet2dConfig) -> Self {
        let object = json!({
            "_class_name": "UNet2DModel",
            "_diffusers_version": DIFFUSERS_VERSION,
            "act_fn": "silu",
            "add_attention": config.add_attention,
            "attention_head_dim": config.attention_head_dim,
            "attn_norm_num_groups": config.attn_norm_num_groups,
            "block_out_channels": config.block_out_channels,
            "center_input_sample": config.center_input_sample,
            "class_embed_type": null,
            "down_block_types": config.down_block_types,
            "downsample_padding": config.downsample_padding,
            "downsample_type": "conv",
            "dropout": 0.0,
            "flip_sin_to_cos": config.flip_sin_to_cos,
            "freq_shift": config.freq_shift,
            "in_channels": config.in_channels,
            "layers_per_block": config.layers_per_block,
            "mid_block_scale_factor": config.mid_block_scale_factor,
            "mid_block_type": "UNetMidBlock2D",
            "norm_eps": config.norm_eps,
            "norm_num_groups": config.norm_num_groups,
            "num_class_embeds": null,
            "num_train_timesteps": config.num_train_timesteps,
            "out_channels": config.out_channels,
            "resnet_time_scale_shift": "default",
            "sample_size": write_size(config.sample_size),
            "time_embedding_dim": config.time_embedding_dim,
            "time_embedding_type": "positional",
            "up_block_types": config.up_block_types,
            "upsample_type": "conv",
        });
        match object {
            Value::Object(object) => object,
            _ => Map::new(),
        }
    }
}

impl TryFrom<Map<String, Value>> for UNet2dConfig {
    type Error = Error;

    fn try_from(object: Map<String, Value>) -> Result<Self> {
        Self::from_object(&object, NO_FILE)
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> std::result::Result<T, String> {
    T::deserialize(value).map_err(|error| format!("the value cannot be read: {error}"))
}

/// Accepts a key whose computation is implemented in one form only.
fn only(value: &Value, supported: &[&str]) -> std::result::Result<(), String> {
    match value.as_str() {
        Some(text) if supported.contains(&text) => Ok(()),
        _ => Err(format!("only {} is implemented", supported.join(" or "))),
    }
}

/// A side length, height and width, or null.
fn read_size(value: &Value) -> std::result::Result<Option<[usize; 2]>, String> {
    match value {
        Value::Number(_) => read(value).map(|side| Some([side, side])),
        _ => read(value),
    }
}

fn write_size(size: Option<[usize; 2]>) -> Value {
    match size {
        Some([height, width]) if height == width => json!(height),
        size => json!(size),
    }
}
