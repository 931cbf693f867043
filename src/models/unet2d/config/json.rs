//! The `config.json` of diffusers: every key is either used or refused.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{NO_FILE, UNet2dConfig};
use crate::error::{Error, Result};
use crate::files::invalid;
use crate::files::json::python_object;
use crate::files::refusals::Refusals;
use crate::models::settings::{DIFFUSERS_VERSION, OF_AVERAGES, of_another_network};

/// `Err` with the reason why a value is refused.
type Refusal = std::result::Result<(), String>;

impl UNet2dConfig {
    pub(super) fn from_text(text: &str, file: &str) -> Result<Self> {
        let object = python_object(text).map_err(|error| {
            let message = format!("not a diffusers model configuration: {error}");
            invalid(file.as_ref(), message)
        })?;
        Self::from_object(&object, file)
    }

    fn from_object(object: &Map<String, Value>, file: &str) -> Result<Self> {
        let mut config = Self::default();
        let mut refusals = Refusals::of(file);
        for (key, value) in object {
            match config.read_key(key, value) {
                Some(Ok(())) => {}
                Some(Err(remedy)) => refusals.add(key, value, remedy),
                None => refusals.add_unknown(key, value),
            }
        }
        refusals.into_result()?;
        config.validate(file)?;
        Ok(config)
    }

    /// Uses the value of one key, or says which values are supported. `None` for an unknown key.
    fn read_key(&mut self, key: &str, value: &Value) -> Option<Refusal> {
        Some(match key {
            "_class_name" => only(value, &["UNet2DModel"]),
            "_diffusers_version" | "_name_or_path" => Ok(()),
            "sample_size" => read_size(value).map(|size| self.sample_size = size),
            "in_channels" => read(value, &mut self.in_channels),
            "out_channels" => read(value, &mut self.out_channels),
            "center_input_sample" => read(value, &mut self.center_input_sample),
            "time_embedding_type" => only(value, &["positional"]),
            "time_embedding_dim" => read(value, &mut self.time_embedding_dim),
            "freq_shift" => read(value, &mut self.freq_shift),
            "flip_sin_to_cos" => read(value, &mut self.flip_sin_to_cos),
            "down_block_types" => {
                read(value, &mut self.down_block_types).map_err(of_another_network)
            }
            "mid_block_type" => match value {
                Value::Null => {
                    self.has_mid_block = false;
                    Ok(())
                }
                _ => only(value, &["UNetMidBlock2D"]),
            },
            "up_block_types" => read(value, &mut self.up_block_types).map_err(of_another_network),
            "block_out_channels" => read(value, &mut self.block_out_channels),
            "layers_per_block" => read(value, &mut self.layers_per_block),
            "mid_block_scale_factor" => read(value, &mut self.mid_block_scale_factor),
            "add_attention" => read(value, &mut self.add_attention),
            "downsample_padding" => read(value, &mut self.downsample_padding),
            "downsample_type" => read(value, &mut self.downsample_type).map_err(of_another_network),
            "upsample_type" => read(value, &mut self.upsample_type).map_err(of_another_network),
            "dropout" => read(value, &mut self.dropout),
            "act_fn" => only(value, &["silu", "swish"]),
            "attention_head_dim" => read(value, &mut self.attention_head_dim),
            "norm_num_groups" => read(value, &mut self.norm_num_groups),
            "attn_norm_num_groups" => read(value, &mut self.attn_norm_num_groups),
            "norm_eps" => read(value, &mut self.norm_eps),
            "resnet_time_scale_shift" => {
                read(value, &mut self.resnet_time_scale_shift).map_err(of_another_network)
            }
            "class_embed_type" => {
                read(value, &mut self.class_embed_type).map_err(of_another_network)
            }
            "num_class_embeds" => read(value, &mut self.num_class_embeds),
            "num_train_timesteps" => read(value, &mut self.num_train_timesteps),
            of_average if OF_AVERAGES.contains(&of_average) => Ok(()),
            _ => return None,
        })
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
            "class_embed_type": config.class_embed_type,
            "down_block_types": config.down_block_types,
            "downsample_padding": config.downsample_padding,
            "downsample_type": config.downsample_type,
            "dropout": config.dropout,
            "flip_sin_to_cos": config.flip_sin_to_cos,
            "freq_shift": config.freq_shift,
            "in_channels": config.in_channels,
            "layers_per_block": config.layers_per_block,
            "mid_block_scale_factor": config.mid_block_scale_factor,
            "mid_block_type": config.has_mid_block.then_some("UNetMidBlock2D"),
            "norm_eps": config.norm_eps,
            "norm_num_groups": config.norm_num_groups,
            "num_class_embeds": config.num_class_embeds,
            "num_train_timesteps": config.num_train_timesteps,
            "out_channels": config.out_channels,
            "resnet_time_scale_shift": config.resnet_time_scale_shift,
            "sample_size": write_size(config.sample_size),
            "time_embedding_dim": config.time_embedding_dim,
            "time_embedding_type": "positional",
            "up_block_types": config.up_block_types,
            "upsample_type": config.upsample_type,
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

fn read<T: DeserializeOwned>(value: &Value, place: &mut T) -> Refusal {
    *place = parsed(value)?;
    Ok(())
}

fn parsed<T: DeserializeOwned>(value: &Value) -> std::result::Result<T, String> {
    T::deserialize(value).map_err(|error| format!("the value cannot be read: {error}"))
}

/// Accepts only the implemented values of a key.
fn only(value: &Value, supported: &[&str]) -> Refusal {
    match value.as_str() {
        Some(text) if supported.contains(&text) => Ok(()),
        _ => {
            let reason = format!("only {} is implemented", supported.join(" or "));
            Err(of_another_network(reason))
        }
    }
}

/// A side length, height and width, or null.
fn read_size(value: &Value) -> std::result::Result<Option<[usize; 2]>, String> {
    match value {
        Value::Number(_) => parsed(value).map(|side| Some([side, side])),
        _ => parsed(value),
    }
}

fn write_size(size: Option<[usize; 2]>) -> Value {
    match size {
        Some([height, width]) if height == width => json!(height),
        size => json!(size),
    }
}
