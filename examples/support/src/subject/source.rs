//! Where the parts of a model are: in the folder of a pipeline, or in a single file and in a folder
//! with what that lacks.

use std::error::Error;
use std::path::{Path, PathBuf};

use siss::burn::tensor::Device;
use siss::files::path_text;
use siss::models::{
    AutoencoderKl, AutoencoderKlConfig, ClipTextConfig, ClipTextEncoder, LeftOut, ModelFolder,
    SingleFile, UNet2dCondition, UNet2dConditionConfig, save_pipeline,
};
use siss::process::SchedulerConfig;

use super::Named;
use crate::files;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CONFIG: &str = "config.json";

/// The places of a model's parts.
#[derive(Debug)]
pub struct Source {
    folder: ModelFolder,
    file: Option<(SingleFile, PathBuf)>,
}

impl From<ModelFolder> for Source {
    fn from(folder: ModelFolder) -> Self {
        Self { folder, file: None }
    }
}

impl Source {
    /// Finds the model of the command line.
    pub fn find(named: &Named<'_>) -> Result<Self> {
        let Named { option, path, .. } = *named;
        let find = |option: &str, path: &Path| {
            ModelFolder::find(path).map_err(|error| format!("--{option}: {error}"))
        };
        match (path.is_file(), named.config) {
            (false, None) => Ok(find(option, path)?.into()),
            (false, Some(_)) => Err(format!(
                "--config is for a single file as --{option}, and {} is not one",
                path_text(path)
            )
            .into()),
            (true, None) => Err(no_config(option, path).into()),
            (true, Some(config)) => Ok(Self {
                folder: find("config", config)?,
                file: Some((SingleFile::open(path)?, path.into())),
            }),
        }
    }

    /// The folder of the pipeline; for a single file, the one that has what it lacks.
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// The single file, if the model is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(_, path)| path.as_path())
    }

    /// The file or the folder of the network.
    pub fn network(&self) -> &Path {
        self.file().unwrap_or(self.folder.network())
    }

    /// The network of Stable Diffusion 1, 2 or XL.
    pub fn unet(&self, device: &Device) -> siss::Result<UNet2dCondition> {
        let network = self.folder.network();
        let Some((file, _)) = &self.file else {
            return UNet2dCondition::load(network, device);
        };
        let config = UNet2dConditionConfig::from_file(network.join(CONFIG))?;
        let scheduler = SchedulerConfig::from_file(self.folder.scheduler_file())?;
        let unet = file.unet_with(&config, device)?;
        Ok(unet.with_prediction_type(scheduler.prediction_type))
    }

    /// The autoencoder.
    pub fn autoencoder(&self, device: &Device) -> siss::Result<AutoencoderKl> {
        let root = self.folder.pipeline();
        let Some((file, _)) = &self.file else {
            return AutoencoderKl::load(root, device);
        };
        let config = AutoencoderKlConfig::from_file(root.join("vae").join(CONFIG))?;
        file.autoencoder_with(&config, device)
    }

    /// The text encoder of a place in the pipeline, counted from 0: that of the folder for a single
    /// file without it.
    pub fn text_encoder(
        &self,
        place: usize,
        name: &str,
        device: &Device,
    ) -> siss::Result<ClipTextEncoder> {
        let folder = self.folder.pipeline().join(name);
        let config = || ClipTextConfig::from_file(folder.join(CONFIG));
        match (&self.file, place) {
            (Some((file, _)), 0) if file.has_text_encoder() => {
                file.text_encoder_with(&config()?, device)
            }
            (Some((file, _)), 1) if file.has_text_encoder_2() => {
                file.text_encoder_2_with(&config()?, device)
            }
            _ => ClipTextEncoder::load(folder, device),
        }
    }

    /// Writes the network as it came: into the folder of a pipeline with everything else, or into a
    /// single file of the same name.
    pub fn save_unet(
        &self,
        unet: &UNet2dCondition,
        folder: &Path,
        note: &str,
    ) -> siss::Result<Vec<LeftOut>> {
        let Some((file, path)) = &self.file else {
            return save_pipeline(unet, &self.folder, folder, note);
        };
        files::create_folder(folder)?;
        file.save_with(unet, folder.join(path.file_name().unwrap_or_default()))?;
        Ok(Vec::new())
    }
}

fn no_config(option: &str, model: &Path) -> String {
    format!(
        "--{option} {} is a single file, which has no scheduler, no tokenizer and no settings: give --config DIR, a folder of the same version \
         of Stable Diffusion in the diffusers layout. It needs no weights (`hf download OWNER/NAME --include \"*.json\" \"*.txt\" --local-dir \
         DIR`), except those of a text encoder that the file lacks",
        path_text(model)
    )
}
