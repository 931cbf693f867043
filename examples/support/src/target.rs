//! The target at which forgetting stops.

use clap::ValueEnum;
use serde::Serialize;
use siss::answer::{PredictedAnswer, PredictedAnswerConfig};
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
    let points = [retained, controls, forgotten];
    Ok(predict_losses(model, config, points, progress)?.levels)
}

/// The same with all that is known of the prediction; `points`: retained, control and forgotten ones.
pub fn predict_losses(
    model: &UNet2d,
    config: &SchedulerConfig,
    [retained, controls, forgotten]: [&Tensor<4>; 3],
    progress: &dyn Progress,
) -> Result<Counterfactual> {
    let controls = few(controls);
    let data = CounterfactualData::new(retained, &controls, forgotten);
    let settings = CounterfactualConfig {
        // With many images, fewer noises per image suffice.
        noises: (256 / forgotten.dims()[0]).clamp(4, 64),
        ..CounterfactualConfig::default()
    };
    let scheduler = DdpmScheduler::from_config(config)?;
    let tell = |share| progress.phase(&format!("predicting the target: {:.0} %", 100.0 * share));
    Counterfactual::fit_with_progress(model, &scheduler, data, settings, tell)
}

/// Predicts the answers that a model retrained without the forgotten images would give at them.
pub fn predict_answers(
    model: &UNet2d,
    config: &SchedulerConfig,
    [retained, controls, forgotten]: [&Tensor<4>; 3],
    losses: &Counterfactual,
    progress: &dyn Progress,
) -> Result<PredictedAnswer<4>> {
    let controls = few(controls);
    let data = CounterfactualData::new(retained, &controls, forgotten);
    let scheduler = DdpmScheduler::from_config(config)?;
    let settings = PredictedAnswerConfig::default();
    let tell = |share| progress.phase(&format!("predicting answers: {:.0} %", 100.0 * share));
    PredictedAnswer::fit_with_progress(model, &scheduler, &data, losses, &settings, tell)
}

fn few(controls: &Tensor<4>) -> Tensor<4> {
    let count = controls.dims()[0].min(MOST_CONTROLS);
    controls.clone().narrow(0, 0, count)
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
