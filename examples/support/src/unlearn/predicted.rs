//! What a model retrained without the forgotten images is predicted to do on them.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Serialize;
use siss::answer::{Answer, Asked, Combination, OtherCondition, PredictedAnswer};
use siss::burn::tensor::Tensor;
use siss::report::quantile;
use siss::steering::{CounterfactualData, Groups, Levels};
use siss::{Condition, Denoiser, Result};

use crate::probe::{ByTimestep, mean};
use crate::process::Process;
use crate::progress::Progress;
use crate::subject::{Points, Subject};
use crate::target::{MOST_CONTROLS, answers_of, losses_of};
use crate::unlearn::data::LEAST_REFERENCES;
use crate::way::Way;

/// Below this share of the power of the model's errors, the answers say little of it.
const LITTLE: f64 = 0.4;

/// The prediction.
pub struct Predicted<C> {
    /// With retained images enough, or with a method that is steered to them.
    pub levels: Option<Levels>,
    /// With [`Way::Counterfactual`].
    pub answer: Option<Taught<C>>,
}

/// The answers that are taught.
#[derive(Debug)]
pub enum Taught<C> {
    /// Predicted from the retained images.
    Predicted(Box<PredictedAnswer<4>>),
    /// The model's own under another condition.
    Other(OtherCondition<C>),
}

impl<C: Condition + Debug> Taught<C> {
    fn inner(&self) -> &dyn Answer<4, C> {
        match self {
            Self::Predicted(answer) => answer.as_ref(),
            Self::Other(answer) => answer,
        }
    }

    fn combination(&self) -> Option<&Combination> {
        match self {
            Self::Predicted(answer) => Some(answer.combination()),
            Self::Other(_) => None,
        }
    }
}

impl<C: Condition + Debug> Answer<4, C> for Taught<C> {
    fn name(&self) -> &'static str {
        self.inner().name()
    }

    fn answers(&mut self, asked: &Asked<'_, 4, C>) -> Result<Tensor<4>> {
        match self {
            Self::Predicted(answer) => answer.answers(asked),
            Self::Other(answer) => answer.answers(asked),
        }
    }

    fn uses_teacher(&self) -> bool {
        self.inner().uses_teacher()
    }

    fn points(&self) -> Option<usize> {
        self.inner().points()
    }

    fn settings(&self) -> String {
        self.inner().settings()
    }
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

impl<C: Condition + Debug> Predicted<C> {
    /// Predicts what a way needs; `points`: retained, control and forgotten images.
    ///
    /// If the model has a condition, and there are too few retained images to predict answers from,
    /// they are the model's own under another condition.
    pub fn new<S: Subject<Model: Denoiser<4, Condition = C>>>(
        way: Way,
        (subject, model): (&S, &S::Model),
        process: &Process,
        points: [&Points<C>; 3],
        progress: &dyn Progress,
    ) -> Result<Self> {
        let [retained, controls, forgotten] = points;
        if way == Way::Counterfactual && retained.count() < LEAST_REFERENCES {
            let (answer, words) = subject.other(forgotten.count())?;
            progress.say(&format!(
                "answers  those of the model under {words}, because answers are predicted from at least {LEAST_REFERENCES} retained images"
            ));
            let answer = Some(Taught::Other(answer));
            return Ok(Self {
                levels: None,
                answer,
            });
        }
        let controls = controls.first(controls.count().min(MOST_CONTROLS));
        let keys = grouped([&retained.keys, &controls.keys, &forgotten.keys]);
        let data = CounterfactualData::new(&retained.points, &controls.points, &forgotten.points)
            .with_conditions(&controls.condition, &forgotten.condition);
        let [of_retained, of_controls, of_forgotten] = &keys;
        let data = match C::IS_EMPTY {
            true => data,
            false => data.with_groups(Groups {
                retained: of_retained,
                controls: of_controls,
                forgotten: of_forgotten,
            }),
        };
        let scheduler = process.scheduler()?;
        let scheduler = scheduler.as_ref();
        let losses = losses_of(model, scheduler, data, &forgotten.points, progress)?;
        let answer = match way {
            Way::Counterfactual => {
                let from = (data, &losses);
                let answer = answers_of(model, scheduler, from, &forgotten.points, progress)?;
                explained(answer.combination()).say(progress)?;
                Some(Taught::Predicted(Box::new(answer)))
            }
            Way::Method(_) | Way::SissToLevel => None,
        };
        Ok(Self {
            levels: Some(losses.levels),
            answer,
        })
    }

    /// The figures, of the first `measured` forgotten images, if losses were predicted.
    pub fn figures(
        &self,
        process: &Process,
        timesteps: [usize; 3],
        measured: usize,
    ) -> Result<Option<Figures>> {
        let Some(levels) = &self.levels else {
            return Ok(None);
        };
        let ids = 0..levels.values().len().min(measured) as u64;
        let losses = |timestep: usize| {
            let loss = |id| levels.level(id, process.time(timestep));
            ids.clone().map(loss).collect::<Result<Vec<_>>>()
        };
        let mean_loss = |timestep: usize| Ok((timestep.to_string(), mean(&losses(timestep)?)));
        let combination = self.answer.as_ref().and_then(Taught::combination);
        Ok(Some(Figures {
            forget_loss: timesteps
                .into_iter()
                .map(mean_loss)
                .collect::<Result<_>>()?,
            answers: combination.map(explained),
            each: losses(timesteps[1])?,
        }))
    }
}

/// Keys by which points explain each other: those of one condition, if enough retained points have
/// it, and all others together. Captions are mostly unique, and few points explain little.
fn grouped(keys: [&[u64]; 3]) -> [Vec<u64>; 3] {
    const OTHERS: u64 = 0;
    let [retained, ..] = keys;
    let mut counts = BTreeMap::new();
    for key in retained {
        *counts.entry(*key).or_insert(0) += 1;
    }
    let is_large = |key: &u64| {
        counts
            .get(key)
            .is_some_and(|&count| count >= LEAST_REFERENCES)
    };
    let group = |key: &u64| if is_large(key) { key + 1 } else { OTHERS };
    let groups = keys.map(|keys| keys.iter().map(group).collect::<Vec<_>>());
    // Nothing would explain the others if no retained point were among them.
    let [of_retained, of_controls, of_forgotten] = &groups;
    let is_needed = [of_controls, of_forgotten]
        .iter()
        .any(|groups| groups.contains(&OTHERS));
    match is_needed && !of_retained.contains(&OTHERS) {
        true => keys.map(|keys| vec![OTHERS; keys.len()]),
        false => groups,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_of_many_retained_points_is_a_group_and_the_rest_is_another() {
        let many = vec![7; LEAST_REFERENCES];
        let retained = [&many[..], &[3, 4, 5]].concat();
        let [of_retained, controls, forgotten] = grouped([&retained, &[7, 4, 9], &[7]]);
        assert_eq!(of_retained[..LEAST_REFERENCES], vec![8; LEAST_REFERENCES]);
        assert_eq!(of_retained[LEAST_REFERENCES..], [0; 3]);
        assert_eq!((&controls[..], &forgotten[..]), (&[8, 0, 0][..], &[8][..]));
        // Without others among the retained points, all explain each other.
        let [of_retained, _, forgotten] = grouped([&many, &[7], &[9]]);
        assert!(of_retained.iter().all(|&group| group == 0));
        assert_eq!(forgotten, [0]);
    }
}
