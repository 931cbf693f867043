//! The models of a case: the one that memorised, and those that never saw what it memorised.

use std::path::Path;

use siss::burn::tensor::Device;
use siss::files::path_text;
use siss::models::{ModelFolder, UNet2d};
use siss::process::SchedulerConfig;
use siss::{Error, Result};

use crate::cases::Case;

/// The models of a case and their scheduler.
#[derive(Debug)]
pub struct Trained {
    pub config: SchedulerConfig,
    /// The model that memorised.
    pub model: UNet2d,
    /// What unlearning should arrive at.
    pub retrained: UNet2d,
    /// The same trained with other seeds, one or more: how far two such models are apart is the
    /// floor of every distance.
    pub again: Vec<UNet2d>,
}

impl Trained {
    /// Loads the models from the folder of the examples' files.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if the models are not there; those of [`ModelFolder::find`],
    /// [`SchedulerConfig::from_file`] and [`UNet2d::load`].
    pub fn load(case: Case, assets: &Path, device: &Device) -> Result<Self> {
        let model = case.model(assets);
        if !model.exists() {
            let folder = path_text(model);
            return Err(Error::InvalidSetting {
                what: format!("--case {}: there is no folder {folder}", case.name()),
                remedy: "train the case's models with the example `pretrain`; examples/README.md \
                         has the commands",
            });
        }
        let folder = ModelFolder::find(model)?;
        let load = |path: &Path| UNet2d::load(ModelFolder::find(path)?.network(), device);
        let (retrained, again) = case.retrained(assets);
        Ok(Self {
            config: SchedulerConfig::from_file(folder.scheduler_file())?,
            model: UNet2d::load(folder.network(), device)?,
            retrained: load(&retrained)?,
            again: again.iter().map(|path| load(path)).collect::<Result<_>>()?,
        })
    }
}
