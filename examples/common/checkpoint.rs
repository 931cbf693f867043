//! The folder of a diffusers model, as it was found and as it is written.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use siss::models::{ModelFolder, UNet2d};

/// Where the parts of a model are in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In `unet` and `scheduler`.
    Pipeline,
    /// All at the folder's root.
    Flat,
}

impl Layout {
    /// The layout of a folder with a model in it. A network at the root comes before one in `unet`, as in `UNet2d::load`.
    pub fn of(checkpoint: &Path) -> Self {
        match checkpoint.join("config.json").exists() {
            true => Layout::Flat,
            false => Layout::Pipeline,
        }
    }

    fn network(self, folder: &Path) -> PathBuf {
        match self {
            Layout::Pipeline => folder.join("unet"),
            Layout::Flat => folder.into(),
        }
    }

    fn scheduler(self, folder: &Path) -> PathBuf {
        match self {
            Layout::Pipeline => folder.join("scheduler"),
            Layout::Flat => folder.into(),
        }
    }
}

/// Writes the model as the folder of a diffusers pipeline: that of `origin`, or `DDPMPipeline` where it names none.
pub fn save_model(
    model: &UNet2d,
    origin: &ModelFolder,
    folder: &Path,
    layout: Layout,
) -> Result<(), Box<dyn Error>> {
    model.save(layout.network(folder))?;
    let scheduler = layout.scheduler(folder);
    fs::create_dir_all(&scheduler)?;
    fs::copy(
        origin.scheduler_file(),
        scheduler.join("scheduler_config.json"),
    )?;
    let text = match origin.index_file() {
        Some(index) => fs::read_to_string(index)?,
        None => format!("{:#}\n", ddpm_pipeline()),
    };
    fs::write(folder.join("model_index.json"), text)?;
    Ok(())
}

fn ddpm_pipeline() -> serde_json::Value {
    serde_json::json!({
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    })
}
