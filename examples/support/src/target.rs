//! The target at which forgetting stops.

use clap::ValueEnum;
use serde::Serialize;
use siss::burn::tensor::Tensor;
use siss::models::UNet2d;
use siss::process::SchedulerConfig;
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, Levels};
use siss::{DdpmScheduler, Error, Method, Result};

use crate::progress::Progress;
use crate::recipe::Recipe;

/// Where forgetting stops.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// At the loss that a model retrained without the forgotten images is predicted to have on
    /// them.
    #[default]
    Retrained,
    /// Nowhere.
    None,
}

/// Most control images that are used.
const MOST_CONTROLS: usize = 200;

/// Predicts the losses that a model retrained without the forgotten images would have on them.
pub fn predict(
    model: &UNet2d,
    config: &SchedulerConfig,
    retained: &Tensor<4>,
    controls: &Tensor<4>,
    forgotten: &Tensor<4>,
    progress: &dyn Progress,
) -> Result<Levels> {
    let count = controls.dims()[0].min(MOST_CONTROLS);
    let controls = controls.clone().narrow(0, 0, count);
    let data = CounterfactualData::new(retained, &controls, forgotten);
    let settings = CounterfactualConfig {
        // With many images, fewer noises per image suffice.
        noises: (256 / forgotten.dims()[0]).clamp(4, 64),
        ..CounterfactualConfig::default()
    };
    let scheduler = DdpmScheduler::from_config(config)?;
    let tell = |share| progress.phase(&format!("predicting the target: {:.0} %", 100.0 * share));
    let fit = Counterfactual::fit_with_progress(model, &scheduler, data, settings, tell)?;
    Ok(fit.levels)
}

/// Parses a method on the command line. The tables' `siss-to-level` is rejected, because it is set
/// by two options.
pub fn parse_method(text: &str) -> Result<Method> {
    if text == Recipe::SissToLevel.name() {
        return Err(Error::InvalidSetting {
            what: format!("{text} is siss with a target"),
            remedy: "use --method siss --target retrained",
        });
    }
    text.parse()
}
