//! New networks, each in the folder of a pipeline.

use std::error::Error;
use std::path::Path;

use serde_json::json;
use siss::burn::tensor::Device;
use siss::models::{DitConfig, UNet2dConfig};
use siss_support::files;
use siss_support::network::three_stages;

use crate::options::{Network, Options, Process};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Steps of the process.
const TIMESTEPS: usize = 1000;
/// Heads of a transformer's attention.
const HEADS: usize = 4;

/// Writes the folder of a pipeline with fresh weights.
pub fn write(options: &Options, shape: [usize; 3], device: &Device, folder: &Path) -> Result<()> {
    device.seed(options.seed);
    match options.network {
        Network::Unet => {
            let network = UNet2dConfig {
                num_class_embeds: options.classes.map(|classes| classes + 1),
                ..three_stages(shape, options.width())
            };
            let network = network.init(device)?;
            network.save(folder.join("unet"))?;
        }
        Network::Dit => {
            let network = dit(options, shape)?.init(device)?;
            network.save(folder.join("transformer"))?;
        }
    }
    let place = folder.join("scheduler");
    files::create_folder(&place)?;
    let text = format!("{:#}\n", scheduler(options.process));
    files::write(&place.join("scheduler_config.json"), text)?;
    Ok(())
}

fn dit(options: &Options, [channels, height, width]: [usize; 3]) -> Result<DitConfig> {
    let Some(classes) = options.classes else {
        return Err("--network dit: it is told classes; give --classes".into());
    };
    if height != width {
        return Err(format!("--network dit: the pictures are {height}x{width}, not square").into());
    }
    Ok(DitConfig {
        num_attention_heads: HEADS,
        attention_head_dim: options.width()[0] / HEADS,
        in_channels: channels,
        num_layers: options.layers,
        patch_size: options.patch,
        sample_size: height,
        num_embeds_ada_norm: classes,
        ..DitConfig::default()
    })
}

/// The file of the scheduler.
fn scheduler(process: Process) -> serde_json::Value {
    match process {
        Process::Steps => json!({
            "_class_name": "DDPMScheduler",
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "clip_sample": true,
            "clip_sample_range": 1.0,
            "num_train_timesteps": TIMESTEPS,
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "variance_type": "fixed_small",
        }),
        Process::Flow => json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": TIMESTEPS,
            "shift": 1.0,
        }),
    }
}
