//! What a model retrained without the forgotten images is predicted to do on them.

use serde::Serialize;
use siss::Result;
use siss::answer::{Combination, PredictedAnswer};
use siss::burn::tensor::Tensor;
use siss::models::UNet2d;
use siss::process::SchedulerConfig;
use siss::report::quantile;
use siss::steering::Levels;

use crate::probe::{ByTimestep, mean};
use crate::progress::Progress;
use crate::target::{predict_answers, predict_losses};
use crate::way::Way;

/// Below this share of the power of the model's errors, the answers say little of it.
const LITTLE: f64 = 0.4;

/// The prediction.
pub struct Predicted {
    pub levels: Levels,
    /// With [`Way::Counterfactual`].
    pub answer: Option<PredictedAnswer<4>>,
}

/// The figures of a prediction.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Mean over the forgotten images of the loss at which forgetting stops.
    pub forget_loss: ByTimestep,
    /// Of the answers, if they are taught.
    pub answers: Option<Explained>,
    /// The loss of each forgotten image at which forgetting stops, at timestep T/4.
    #[serde(skip)]
    pub each: Vec<f64>,
}

/// How well the predicted answers explain the model.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    /// Number of retained images that they are made up of.
    pub retained: usize,
    /// Timesteps of the fit, and the share of the power of the model's error on the control images
    /// that is explained there.
    pub r_squared: Vec<(f64, f64)>,
}

impl Predicted {
    /// Predicts what a way needs; `points`: retained, control and forgotten images.
    pub fn new(
        way: Way,
        model: &UNet2d,
        config: &SchedulerConfig,
        points: [&Tensor<4>; 3],
        progress: &dyn Progress,
    ) -> Result<Self> {
        let losses = predict_losses(model, config, points, progress)?;
        let answer = match way {
            Way::Counterfactual => Some(predict_answers(model, config, points, &losses, progress)?),
            Way::Method(_) | Way::SissToLevel => None,
        };
        if let Some(answer) = &answer {
            explained(answer.combination()).say(progress)?;
        }
        Ok(Self {
            levels: losses.levels,
            answer,
        })
    }

    /// The figures, of the first `measured` forgotten images.
    pub fn figures(&self, timesteps: [usize; 3], measured: usize) -> Result<Figures> {
        let ids = 0..self.levels.values().len().min(measured) as u64;
        let losses = |timestep: usize| {
            let loss = |id| self.levels.level(id, timestep as f64);
            ids.clone().map(loss).collect::<Result<Vec<_>>>()
        };
        let mean_loss = |timestep: usize| Ok((timestep.to_string(), mean(&losses(timestep)?)));
        let answer = self.answer.as_ref();
        Ok(Figures {
            forget_loss: timesteps
                .into_iter()
                .map(mean_loss)
                .collect::<Result<_>>()?,
            answers: answer.map(|answer| explained(answer.combination())),
            each: losses(timesteps[1])?,
        })
    }
}

fn explained(combination: &Combination) -> Explained {
    let timesteps = combination.timesteps().iter().copied();
    let r_squared = combination.r_squared().iter().copied();
    Explained {
        retained: combination.retained(),
        r_squared: timesteps.zip(r_squared).collect(),
    }
}

impl Explained {
    /// The median over the timesteps: at the ends nothing of the error can be predicted.
    fn median(&self) -> Result<f64> {
        let shares: Vec<f64> = self.r_squared.iter().map(|&(_, share)| share).collect();
        quantile(&shares, 0.5)
    }

    fn say(&self, progress: &dyn Progress) -> Result<()> {
        let share = self.median()?;
        progress.say(&format!(
            "answers  {} explain {:.0} % of the model's error on the control images, in the median over the timesteps",
            retained(self.retained),
            100.0 * share,
        ));
        if share < LITTLE {
            progress.say(
                "note: what the model answers is explained badly, so the predicted answers may be wrong: give more retained images \
                 (--retain) and ones that the model has not seen (--control), or take --method siss",
            );
        }
        Ok(())
    }
}

fn retained(count: usize) -> String {
    match count {
        1 => "1 retained image".into(),
        _ => format!("{count} retained images"),
    }
}
