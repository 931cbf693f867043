//! The loss that a model would have on a point it had never seen, predicted without training one.

mod fit;
mod form;
mod groups;
mod ideal;
mod linear;
mod local;
mod probe;

use serde::{Deserialize, Serialize};

use crate::draws::TimestepSampling;
use crate::error::{Error, Result, check_range, check_shape};
use crate::process::{PredictionType, Scheduler, SchedulerExt};

pub use fit::{CounterfactualConfig, CounterfactualData};
pub use form::IdealForm;
pub use groups::Groups;

/// The loss `b_a(t)` that a model which never saw a point `a` would have on it, for each forgotten point and timestep.
///
/// $$ b_a(t) = L^*_a(t) \, \frac{L_θ(H, t)}{L^*_H(t)} $$
///
/// `L*` is the error of the *ideal denoiser of the retained data*, the posterior mean `Σ_j p_j x_j` with
/// `p = softmax_j −‖m − γ x_j‖²/2σ²`: what could be known of a point from the others. A network does better than that, for it
/// generalises; how much better is measured where it can be, on control points `H` that it never saw. The same gain
/// is taken to hold on `a`.
///
/// Losses are means over elements and noises, in the space of the model's output. The gain is a ratio of errors of the clean
/// point on one side and of the output on the other, which the forgotten point's own error cancels: any prediction type and
/// `γ = 0` will do.
///
/// A point is not predicted to cost more than the best *linear* denoiser of the retained data makes it cost, times what the model
/// is worse than that one on the control points. And forgetting is steered to the larger of the prediction and the model's own
/// loss before the run ([`level`](CounterfactualLoss::level)): a request to forget a point never makes the model know it better.
///
/// # Limits
/// The control points must be like the retained ones, and unseen. The prediction is best at the noise that decides recall:
/// on 64 images that a model of digits never saw it was off by 9 to 22 % on average from `t = 400` to 800 of 1,000, by half to three
/// quarters below 250 and at 900, and by a factor of 5 at worst. See the repository's `docs/results.md`.
///
/// # Example
/// ```
/// # use burn::module::Module;
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{DdpmScheduler, Denoiser};
/// # use siss::steering::{CounterfactualConfig, CounterfactualData, CounterfactualLoss};
/// # #[derive(Module, Debug)]
/// # struct Model { linear: Linear }
/// # impl Denoiser<2> for Model {
/// #     type Condition = ();
/// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> { self.linear.forward(noisy) }
/// # }
/// # let device = Device::flex();
/// # let model = Model { linear: LinearConfig::new(3, 3).init(&device) };
/// # let random = |rows: usize| Tensor::<2>::random([rows, 3], Distribution::Default, &device);
/// let data = CounterfactualData {
///     retained: &random(100),
///     controls: &random(20),
///     control_condition: &(),
///     forgotten: &Tensor::zeros([1, 3], &device),
///     forgotten_condition: &(),
///     groups: None, // needed where the model has a condition
/// };
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let config = CounterfactualConfig::default();
/// let predicted = CounterfactualLoss::fit(&model, &scheduler, data, &config, |_| {})?;
/// assert!(predicted.level(0, 250.0)? > 0.0);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct CounterfactualLoss {
    timesteps: Vec<f64>,
    /// `L_θ(H) / L*_H` by timestep; none where the levels are known otherwise.
    gains: Vec<f64>,
    /// What is steered to, by forgotten point and timestep.
    levels: Vec<Vec<f64>>,
    /// `b` in the same places, and the model's own losses; none where the levels are known otherwise.
    predicted: Vec<Vec<f64>>,
    own_losses: Vec<Vec<f64>>,
    /// `γ` and `σ` at the timesteps; none where the levels are known otherwise.
    signal_scales: Vec<f64>,
    noise_scales: Vec<f64>,
    /// In whose space the levels are, where that is known.
    prediction_type: Option<PredictionType>,
    /// The patch by timestep, none for whole points.
    patches: Vec<usize>,
    cut_error: f64,
}

/// The same as it comes from a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    timesteps: Vec<f64>,
    gains: Vec<f64>,
    levels: Vec<Vec<f64>>,
    #[serde(default)]
    predicted: Vec<Vec<f64>>,
    #[serde(default)]
    own_losses: Vec<Vec<f64>>,
    #[serde(default)]
    signal_scales: Vec<f64>,
    #[serde(default)]
    noise_scales: Vec<f64>,
    prediction_type: Option<PredictionType>,
    #[serde(default)]
    patches: Vec<usize>,
    #[serde(default)]
    cut_error: f64,
}

impl TryFrom<Unchecked> for CounterfactualLoss {
    type Error = Error;

    fn try_from(unchecked: Unchecked) -> Result<Self> {
        let Unchecked {
            timesteps,
            gains,
            levels,
            predicted,
            own_losses,
            signal_scales,
            noise_scales,
            prediction_type,
            patches,
            cut_error,
        } = unchecked;
        for (what, count) in [
            ("the gains", gains.len()),
            ("the patches", patches.len()),
            ("the signal scales", signal_scales.len()),
            ("the noise scales", noise_scales.len()),
        ] {
            if count > 0 {
                let remedy = "give one at every timestep, or none";
                check_shape(what, &[timesteps.len()], &[count], remedy)?;
            }
        }
        let remedy = "give the scales of signal and noise, or neither";
        let (signal, noise) = (signal_scales.len(), noise_scales.len());
        check_shape("the noise scales", &[signal], &[noise], remedy)?;
        for (what, of_points) in [
            ("the predicted losses", &predicted),
            ("the model's own losses", &own_losses),
        ] {
            if of_points.is_empty() {
                continue;
            }
            let remedy = "give them for every point that has levels, or for none";
            check_shape(what, &[levels.len()], &[of_points.len()], remedy)?;
            check_levels(what, of_points, timesteps.len())?;
        }
        let checked = Self::from_levels(timesteps, levels)?;
        Ok(Self {
            gains,
            predicted,
            own_losses,
            signal_scales,
            noise_scales,
            prediction_type,
            patches,
            cut_error,
            ..checked
        })
    }
}

fn check_levels(what: &'static str, levels: &[Vec<f64>], timesteps: usize) -> Result<()> {
    for of_point in levels {
        let remedy = "give a level at every timestep";
        check_shape(what, &[timesteps], &[of_point.len()], remedy)?;
        for &level in of_point {
            check_range("a level", level, level > 0.0, "a positive number")?;
        }
    }
    Ok(())
}

impl CounterfactualLoss {
    /// Levels that are known otherwise: for tests, for the losses of a retrained model, for a level set by hand.
    ///
    /// # Shapes
    /// - `timesteps`: ascending; `levels`: for each forgotten point a level at each timestep, positive
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::ShapeMismatch`].
    pub fn from_levels(timesteps: Vec<f64>, levels: Vec<Vec<f64>>) -> Result<Self> {
        check_timesteps(&timesteps)?;
        check_levels("a point's levels", &levels, timesteps.len())?;
        Ok(Self {
            gains: Vec::new(),
            timesteps,
            levels,
            predicted: Vec::new(),
            own_losses: Vec::new(),
            signal_scales: Vec::new(),
            noise_scales: Vec::new(),
            prediction_type: None,
            patches: Vec::new(),
            cut_error: 0.0,
        })
    }

    /// What the loss of a forgotten point is steered to at a timestep, mean over elements: the predicted loss, or the model's own
    /// before the run where that is higher. Linear in the logarithm between the timesteps of the grid, constant beyond its ends.
    ///
    /// # Errors
    /// [`Error::UnknownPoint`] for an id without a prediction.
    pub fn level(&self, forget_id: u64, timestep: f64) -> Result<f64> {
        let found = usize::try_from(forget_id)
            .ok()
            .and_then(|id| self.levels.get(id));
        let levels = found.ok_or_else(|| Error::UnknownPoint {
            id: forget_id,
            missing: "level",
            known: self.levels.len(),
            remedy: "fit the prediction to every forgotten point, in the order of their ids",
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

    /// `L_θ(H) / L*_H` at each timestep of the grid: below 1 where the network knows more than the ideal denoiser. None for
    /// levels that are known otherwise.
    pub fn gains(&self) -> &[f64] {
        &self.gains
    }

    /// The size of the patch that the ideal denoiser saw at each timestep of the grid, in pixels; none for whole points.
    pub fn patches(&self) -> &[usize] {
        &self.patches
    }

    /// What it does to the ideal denoiser's error on control points that only the nearest retained images are looked at: the largest
    /// absolute logarithm over the grid. 0 where all are.
    pub fn cut_error(&self) -> f64 {
        self.cut_error
    }

    /// In the space of which prediction type the levels are; `None` for levels that are known otherwise.
    pub fn prediction_type(&self) -> Option<PredictionType> {
        self.prediction_type
    }

    /// What each forgotten point is steered to at the timesteps of the grid.
    pub fn levels(&self) -> &[Vec<f64>] {
        &self.levels
    }

    /// The predicted losses `b` of each forgotten point at the timesteps of the grid; none for levels that are known otherwise.
    pub fn predicted(&self) -> &[Vec<f64>] {
        &self.predicted
    }

    /// The model's own losses on each forgotten point before the run, at the timesteps of the grid; none for levels that are known
    /// otherwise.
    pub fn own_losses(&self) -> &[Vec<f64>] {
        &self.own_losses
    }

    /// The timesteps of the grid at which a point is steered to the model's own loss, for it was predicted to be no higher:
    /// nothing of the point is to be forgotten there.
    pub fn kept_timesteps(&self, forget_id: u64) -> Vec<f64> {
        let of_point = |curves: &'_ [Vec<f64>]| {
            let id = usize::try_from(forget_id).ok()?;
            curves.get(id).cloned()
        };
        let (levels, predicted) = (of_point(&self.levels), of_point(&self.predicted));
        let (Some(levels), Some(predicted)) = (levels, predicted) else {
            return Vec::new();
        };
        let pairs = self.timesteps.iter().zip(levels.iter().zip(&predicted));
        let kept = pairs.filter(|(_, (level, predicted))| level > predicted);
        kept.map(|(&timestep, _)| timestep).collect()
    }

    /// The model's own losses over the levels, by point and timestep; −1 where they are not known.
    pub(crate) fn initial_ratios(&self) -> Vec<Vec<f64>> {
        let of_point = |(point, levels): (usize, &Vec<f64>)| {
            let own = self.own_losses.get(point);
            let ratio = |(at, level): (usize, &f64)| own.map_or(-1.0, |own| own[at] / level);
            levels.iter().enumerate().map(ratio).collect()
        };
        self.levels.iter().enumerate().map(of_point).collect()
    }

    /// Whether the levels are those of this process, and reach over the timesteps that are drawn of it.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`], [`Error::TimestepOutOfRange`].
    pub(crate) fn check_process(
        &self,
        scheduler: &dyn Scheduler,
        sampling: TimestepSampling,
    ) -> Result<()> {
        if !self.signal_scales.is_empty() {
            let found = scheduler.scales(&self.timesteps)?;
            let known = self.signal_scales.iter().chain(&self.noise_scales);
            let found = found.signal.iter().chain(&found.noise);
            let differs = |(known, found): (&f64, &f64)| (known - found).abs() > SAME_SCALE;
            if known.zip(found).any(differs) {
                return Err(Error::InvalidSetting {
                    what: "the levels were predicted for another process: signal and noise at their timesteps differ from the trainer's".into(),
                    remedy: "predict them with the scheduler that the trainer gets",
                });
            }
        }
        let [low, high] = sampling.ends(scheduler.time_range());
        let (first, last) = (self.timesteps[0], self.timesteps[self.timesteps.len() - 1]);
        let outside = (first - low).max(0.0) + (high - last).max(0.0);
        let width = (high - low).max(f64::MIN_POSITIVE);
        if outside > MOST_OUTSIDE * width {
            return Err(Error::InvalidSetting {
                what: format!(
                    "the levels are for timesteps from {first} to {last}, and steps draw from {low} to {high}"
                ),
                remedy: "predict them on a grid that reaches over the timesteps that are drawn; beyond its ends a level is a guess",
            });
        }
        Ok(())
    }
}

/// Difference of scales of signal and noise, which are about 1, that is rounding.
const SAME_SCALE: f64 = 1e-6;

/// Share of the drawn timesteps that may lie beyond the ends of the grid.
const MOST_OUTSIDE: f64 = 0.05;

fn check_timesteps(timesteps: &[f64]) -> Result<()> {
    let remedy = "two or more timesteps";
    check_range(
        "the number of timesteps",
        timesteps.len() as f64,
        timesteps.len() >= 2,
        remedy,
    )?;
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

    #[test]
    fn levels_lie_on_a_line_in_the_logarithm_and_are_constant_beyond() {
        let levels =
            CounterfactualLoss::from_levels(vec![10.0, 20.0], vec![vec![1.0, 100.0]]).unwrap();
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
        let text = serde_json::to_string(&levels).unwrap();
        assert_eq!(
            serde_json::from_str::<CounterfactualLoss>(&text).unwrap(),
            levels
        );
        for bad in [
            r#"{"timesteps":[],"gains":[],"levels":[[]]}"#,
            r#"{"timesteps":[0,100],"gains":[],"levels":[[0.1]]}"#,
            r#"{"timesteps":[0,100],"gains":[1],"levels":[[0.1,0.2]]}"#,
            r#"{"timesteps":[100,0],"gains":[],"levels":[[0.1,0.2]]}"#,
            r#"{"timesteps":[0,100],"gains":[],"levels":[[0.1,-0.2]]}"#,
        ] {
            assert!(
                serde_json::from_str::<CounterfactualLoss>(bad).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn levels_that_are_none_are_refused() {
        let from = CounterfactualLoss::from_levels;
        assert!(from(vec![1.0], vec![]).is_err());
        assert!(
            from(vec![2.0, 1.0], vec![])
                .unwrap_err()
                .to_string()
                .contains("is 1;")
        );
        assert!(from(vec![1.0, 2.0], vec![vec![1.0]]).is_err());
        assert!(
            from(vec![1.0, 2.0], vec![vec![1.0, 0.0]])
                .unwrap_err()
                .to_string()
                .contains("a level is 0")
        );
    }

    #[test]
    fn a_timestep_is_once_in_the_grid() {
        assert!(CounterfactualLoss::from_levels(vec![1.0, 1.0], vec![]).is_err());
    }
}
