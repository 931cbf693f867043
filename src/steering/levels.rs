//! The loss at which forgetting stops, for each forgotten point and timestep.

use serde::{Deserialize, Serialize};

use crate::draws::TimestepSampling;
use crate::error::{Error, Result, check_range, check_shape};
use crate::process::{PredictionType, Scales, Scheduler, SchedulerExt};

/// The loss to which each forgotten point is steered, by timestep.
///
/// Losses are means over elements, in the space of the model's output. Between the timesteps of the
/// grid, the logarithm of a level is linear; beyond the ends it is constant.
///
/// [`Counterfactual::fit`](super::Counterfactual::fit) predicts levels; [`new`](Levels::new) takes
/// levels known from another source. Levels can be saved; reading refuses a file that is not a
/// valid table of levels.
///
/// # Example
/// ```
/// use siss::steering::Levels;
///
/// let levels = Levels::new(vec![0.0, 999.0], vec![vec![0.5, 0.02]])?;
/// assert_eq!(levels.level(0, 999.0)?, 0.02);
/// let text = serde_json::to_string(&levels).unwrap();
/// assert_eq!(serde_json::from_str::<Levels>(&text).unwrap(), levels);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Levels {
    timesteps: Vec<f64>,
    /// By forgotten point and timestep.
    levels: Vec<Vec<f64>>,
    /// The model's own losses before the run, at the same points and timesteps; empty if unknown.
    own_losses: Vec<Vec<f64>>,
    origin: Option<Origin>,
}

/// The process that levels were predicted for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Origin {
    prediction_type: PredictionType,
    /// `γ` and `σ` at the timesteps of the grid.
    signal_scales: Vec<f64>,
    noise_scales: Vec<f64>,
}

impl Origin {
    pub(super) fn new(prediction_type: PredictionType, scales: &Scales) -> Self {
        Self {
            prediction_type,
            signal_scales: scales.signal.clone(),
            noise_scales: scales.noise.clone(),
        }
    }

    fn check(&self, timesteps: usize) -> Result<()> {
        for (what, scales) in [
            ("the signal scales", &self.signal_scales),
            ("the noise scales", &self.noise_scales),
        ] {
            let remedy = "give one at every timestep";
            check_shape(what, &[timesteps], &[scales.len()], remedy)?;
        }
        Ok(())
    }

    /// Whether these are the scales of the process at the timesteps, up to rounding.
    fn is_of(&self, scales: &Scales) -> bool {
        let known = self.signal_scales.iter().chain(&self.noise_scales);
        let found = scales.signal.iter().chain(&scales.noise);
        known
            .zip(found)
            .all(|(known, found)| (known - found).abs() <= SAME_SCALE)
    }
}

/// Levels as read from a file, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    timesteps: Vec<f64>,
    levels: Vec<Vec<f64>>,
    #[serde(default)]
    own_losses: Vec<Vec<f64>>,
    origin: Option<Origin>,
}

impl TryFrom<Unchecked> for Levels {
    type Error = Error;

    fn try_from(unchecked: Unchecked) -> Result<Self> {
        let mut levels = Self::new(unchecked.timesteps, unchecked.levels)?;
        if !unchecked.own_losses.is_empty() {
            levels = levels.with_own_losses(unchecked.own_losses)?;
        }
        match unchecked.origin {
            Some(origin) => levels.with_origin(origin),
            None => Ok(levels),
        }
    }
}

impl Levels {
    /// Levels known from another source: the losses of a retrained model, or values of your choice.
    ///
    /// # Shapes
    /// - `timesteps`: two or more, ascending
    /// - `levels`: for each forgotten point, in the order of their ids, a positive level per
    ///   timestep
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::ShapeMismatch`].
    pub fn new(timesteps: Vec<f64>, levels: Vec<Vec<f64>>) -> Result<Self> {
        check_timesteps(&timesteps)?;
        for of_point in &levels {
            let remedy = "give a level at every timestep";
            check_shape(
                "a point's levels",
                &[timesteps.len()],
                &[of_point.len()],
                remedy,
            )?;
            for &level in of_point {
                check_range("a level", level, level > 0.0, "a positive number")?;
            }
        }
        Ok(Self {
            timesteps,
            levels,
            own_losses: Vec::new(),
            origin: None,
        })
    }

    /// Adds the model's own losses before the run, from which
    /// [`SteeringRule`](super::SteeringRule)s start.
    pub(super) fn with_own_losses(self, own_losses: Vec<Vec<f64>>) -> Result<Self> {
        let (points, timesteps) = (self.levels.len(), self.timesteps.len());
        let what = "the model's own losses";
        let remedy = "give them for every point that has levels, or for none";
        check_shape(what, &[points], &[own_losses.len()], remedy)?;
        for of_point in &own_losses {
            let remedy = "give one at every timestep";
            check_shape(what, &[timesteps], &[of_point.len()], remedy)?;
            for &loss in of_point {
                check_range("the model's own loss", loss, loss >= 0.0, "0 or more")?;
            }
        }
        Ok(Self { own_losses, ..self })
    }

    /// Adds the process that the levels were predicted for.
    pub(super) fn with_origin(self, origin: Origin) -> Result<Self> {
        origin.check(self.timesteps.len())?;
        Ok(Self {
            origin: Some(origin),
            ..self
        })
    }

    /// The loss to which a forgotten point is steered at a timestep, mean over elements.
    ///
    /// # Errors
    /// [`Error::UnknownPoint`] for an id without levels.
    pub fn level(&self, forget_id: u64, timestep: f64) -> Result<f64> {
        let found = usize::try_from(forget_id)
            .ok()
            .and_then(|id| self.levels.get(id));
        let levels = found.ok_or(Error::UnknownPoint {
            id: forget_id,
            missing: "level",
            known: self.levels.len(),
            remedy: "give levels for every forgotten point, in the order of their ids",
        })?;
        let above = self.timesteps.partition_point(|&t| t < timestep);
        let (low, high) = (above.saturating_sub(1), above.min(levels.len() - 1));
        let (from, to) = (self.timesteps[low], self.timesteps[high]);
        let share = if to > from {
            (timestep - from) / (to - from)
        } else {
            0.0
        };
        let share = share.clamp(0.0, 1.0);
        Ok((levels[low].ln() * (1.0 - share) + levels[high].ln() * share).exp())
    }

    /// The timesteps of the grid, ascending.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The levels of each forgotten point at the timesteps of the grid.
    pub fn values(&self) -> &[Vec<f64>] {
        &self.levels
    }

    /// The model's own losses on each forgotten point before the run, at the timesteps of the grid.
    ///
    /// Empty for levels made by [`new`](Levels::new).
    pub fn own_losses(&self) -> &[Vec<f64>] {
        &self.own_losses
    }

    /// The prediction type in whose space the levels are; `None` for levels made by
    /// [`new`](Levels::new).
    pub fn prediction_type(&self) -> Option<PredictionType> {
        self.origin.as_ref().map(|origin| origin.prediction_type)
    }

    /// The ratio of the model's own losses to the levels, by point and timestep; −1 where they are
    /// unknown.
    pub(super) fn initial_ratios(&self) -> Vec<Vec<f64>> {
        let of_point = |(point, levels): (usize, &Vec<f64>)| {
            let own = self.own_losses.get(point);
            let ratio = |(at, level): (usize, &f64)| own.map_or(-1.0, |own| own[at] / level);
            levels.iter().enumerate().map(ratio).collect()
        };
        self.levels.iter().enumerate().map(of_point).collect()
    }

    /// Checks that the levels belong to this process and cover the timesteps that are drawn.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`], [`Error::TimestepOutOfRange`].
    pub(crate) fn check_process(
        &self,
        scheduler: &dyn Scheduler,
        sampling: TimestepSampling,
    ) -> Result<()> {
        self.check_origin(scheduler)?;
        let [low, high] = sampling.ends(scheduler.time_range());
        let (first, last) = (self.timesteps[0], self.timesteps[self.timesteps.len() - 1]);
        let outside = (first - low).max(0.0) + (high - last).max(0.0);
        let width = (high - low).max(f64::MIN_POSITIVE);
        if outside > MOST_OUTSIDE * width {
            return Err(Error::InvalidSetting {
                what: format!(
                    "the levels are for timesteps from {first} to {last}, but steps draw from {low} to {high}"
                ),
                remedy: "predict them on a grid that covers all timesteps drawn; beyond its ends a level is a guess",
            });
        }
        Ok(())
    }

    /// Whether the levels are those of this process, as far as that is known.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`], [`Error::TimestepOutOfRange`].
    pub(crate) fn check_origin(&self, scheduler: &dyn Scheduler) -> Result<()> {
        if let Some(origin) = &self.origin
            && !origin.is_of(&scheduler.scales(&self.timesteps)?)
        {
            return Err(Error::InvalidSetting {
                what: "the levels were predicted for another process: signal and noise at their timesteps differ from the trainer's".into(),
                remedy: "predict them with the scheduler that the trainer gets",
            });
        }
        Ok(())
    }
}

/// Difference up to which two scales of signal or noise, which are about 1, count as equal.
const SAME_SCALE: f64 = 1e-6;

/// Share of the drawn timesteps that may lie beyond the ends of the grid.
const MOST_OUTSIDE: f64 = 0.05;

/// Refuses a grid of fewer than two timesteps, or one that does not ascend.
pub(super) fn check_timesteps(timesteps: &[f64]) -> Result<()> {
    let count = timesteps.len();
    let remedy = "two or more timesteps";
    check_range("the number of timesteps", count as f64, count >= 2, remedy)?;
    for pair in timesteps.windows(2) {
        let requirement = "above the timestep before it";
        check_range(
            "a timestep of the grid",
            pair[1],
            pair[0] < pair[1],
            requirement,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> serde_json::Result<Levels> {
        serde_json::from_str(text)
    }

    #[test]
    fn levels_lie_on_a_line_in_the_logarithm_and_are_constant_beyond() {
        let levels = Levels::new(vec![10.0, 20.0], vec![vec![1.0, 100.0]]).unwrap();
        let at = |t| levels.level(0, t).unwrap();
        for (t, expected) in [
            (0.0, 1.0),
            (10.0, 1.0),
            (15.0, 10.0),
            (20.0, 100.0),
            (900.0, 100.0),
        ] {
            assert!((at(t) / expected - 1.0).abs() < 1e-12, "{t}: {}", at(t));
        }
    }

    #[test]
    fn a_file_holds_all_that_the_levels_know_and_nothing_else_is_read() {
        let scales = Scales {
            signal: vec![1.0, 0.5],
            noise: vec![0.0, 0.75],
        };
        let bare = Levels::new(vec![0.0, 100.0], vec![vec![0.5, 0.25]]).unwrap();
        let known = bare
            .clone()
            .with_own_losses(vec![vec![0.0, 0.125]])
            .unwrap()
            .with_origin(Origin::new(PredictionType::Sample, &scales))
            .unwrap();
        for levels in [bare, known] {
            assert_eq!(
                read(&serde_json::to_string(&levels).unwrap()).unwrap(),
                levels
            );
        }
        let grid = r#""timesteps":[0,100],"levels":[[0.1,0.2]]"#;
        assert!(read(&format!("{{{grid}}}")).is_ok());
        for bad in [
            r#"{"timesteps":[],"levels":[[]]}"#.to_string(),
            r#"{"timesteps":[0,100],"levels":[[0.1]]}"#.to_string(),
            r#"{"timesteps":[100,0],"levels":[[0.1,0.2]]}"#.to_string(),
            r#"{"timesteps":[0,100],"levels":[[0.1,-0.2]]}"#.to_string(),
            format!(r#"{{{grid},"own_losses":[[1,2],[1,2]]}}"#),
            format!(r#"{{{grid},"own_losses":[[1]]}}"#),
            format!(r#"{{{grid},"own_losses":[[1,-1]]}}"#),
            format!(r#"{{{grid},"origin":{{"prediction_type":"epsilon"}}}}"#),
            format!(
                r#"{{{grid},"origin":{{"prediction_type":"epsilon","signal_scales":[1],"noise_scales":[1,1]}}}}"#
            ),
            format!(r#"{{{grid},"gains":[1,1]}}"#),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn invalid_levels_are_refused() {
        let error = |timesteps: &[f64], levels: &[f64]| {
            let levels = Levels::new(timesteps.to_vec(), vec![levels.to_vec()]);
            levels.unwrap_err().to_string()
        };
        assert!(error(&[1.0], &[1.0]).contains("the number of timesteps is 1"));
        assert!(error(&[2.0, 1.0], &[1.0, 1.0]).contains("is 1;"));
        assert!(error(&[1.0, 1.0], &[1.0, 1.0]).contains("a timestep of the grid is 1"));
        assert!(error(&[1.0, 2.0], &[1.0]).contains("a point's levels"));
        assert!(error(&[1.0, 2.0], &[1.0, 0.0]).contains("a level is 0"));
    }
}
