//! The target at which forgetting stops.

use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;
use siss::answer::{PredictedAnswer, PredictedAnswerConfig};
use siss::burn::tensor::Tensor;
use siss::models::UNet2d;
use siss::process::SchedulerConfig;
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData};
use siss::{DdpmScheduler, Denoiser, Result, Scheduler};

use crate::progress::{Progress, duration};

/// Where forgetting stops.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Where a model retrained without the forgotten images is predicted to be: at its loss on
    /// them, or at its answers.
    #[default]
    Retrained,
    /// Nowhere.
    None,
}

/// Most retained images that answers are predicted from, and most control images that are used.
pub const REFERENCES: usize = 1000;
pub const MOST_CONTROLS: usize = 200;
/// Pixels and images run through the model at a time. Not `--micro-batch`: a resumed run may change
/// that, and has to find the same predictions.
const PIXELS_AT_A_TIME: usize = 1 << 16;
const MOST_AT_A_TIME: usize = 64;

/// Predicts the losses that a model retrained without the forgotten images would have on them;
/// `points`: retained, control and forgotten ones.
pub fn predict_losses(
    model: &UNet2d,
    config: &SchedulerConfig,
    [retained, controls, forgotten]: [&Tensor<4>; 3],
    progress: &dyn Progress,
) -> Result<Counterfactual> {
    let controls = few(controls);
    let data = CounterfactualData::new(retained, &controls, forgotten);
    let scheduler = DdpmScheduler::from_config(config)?;
    losses_of(model, &scheduler, data, forgotten, progress)
}

/// The same for a model of any condition; `forgotten`: the forgotten points of `data`.
pub fn losses_of<M: Denoiser<4>>(
    model: &M,
    scheduler: &dyn Scheduler,
    data: CounterfactualData<'_, 4, M::Condition>,
    forgotten: &Tensor<4>,
    progress: &dyn Progress,
) -> Result<Counterfactual> {
    let settings = CounterfactualConfig {
        // With many images, fewer noises per image suffice.
        noises: (256 / forgotten.dims()[0]).clamp(4, 64),
        micro_batch_size: at_a_time(forgotten),
        ..CounterfactualConfig::default()
    };
    let tell = shares("predicting losses", progress);
    Counterfactual::fit_with_progress(model, scheduler, data, settings, tell)
}

/// Predicts the answers that a model retrained without the forgotten images would give at them;
/// `points` as above.
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
    answers_of(model, &scheduler, (data, losses), forgotten, progress)
}

/// The same for a model of any condition; `forgotten`: the forgotten points of the data.
pub fn answers_of<M: Denoiser<4>>(
    model: &M,
    scheduler: &dyn Scheduler,
    (data, losses): (CounterfactualData<'_, 4, M::Condition>, &Counterfactual),
    forgotten: &Tensor<4>,
    progress: &dyn Progress,
) -> Result<PredictedAnswer<4>> {
    let settings = PredictedAnswerConfig {
        retained: REFERENCES,
        micro_batch_size: at_a_time(forgotten),
        ..PredictedAnswerConfig::default()
    };
    let tell = shares("predicting answers", progress);
    PredictedAnswer::fit_with_progress(model, scheduler, &data, losses, &settings, tell)
}

fn few(controls: &Tensor<4>) -> Tensor<4> {
    let count = controls.dims()[0].min(MOST_CONTROLS);
    controls.clone().narrow(0, 0, count)
}

fn at_a_time(images: &Tensor<4>) -> usize {
    let [_, _, height, width] = images.dims();
    (PIXELS_AT_A_TIME / (height * width)).clamp(1, MOST_AT_A_TIME)
}

/// Tells the share that is done, and how long the rest will take.
fn shares(what: &str, progress: &dyn Progress) -> impl FnMut(f64) {
    let began = Instant::now();
    move |share| {
        let left = began.elapsed().as_secs_f64() * (1.0 / share - 1.0);
        let left = match left.is_finite() {
            true => format!(", about {} left", duration(left)),
            false => String::new(),
        };
        progress.phase(&format!("{what}: {:.0} %{left}", 100.0 * share));
    }
}
