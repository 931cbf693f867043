//! The loss that a model would have on a point it had never seen, predicted without training one.

mod fit;
mod form;
mod ideal;
mod local;
mod probe;

use serde::{Deserialize, Serialize};

use crate::denoiser::PredictionType;
use crate::error::{Error, Result, check_range, check_shape};

pub use fit::{CounterfactualConfig, CounterfactualData};
pub use form::IdealForm;

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
/// # use siss::{CounterfactualConfig, CounterfactualData, CounterfactualLoss, DdpmScheduler, Denoiser};
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
    /// `b` by forgotten point and timestep.
    levels: Vec<Vec<f64>>,
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
            prediction_type,
            patches,
            cut_error,
        } = unchecked;
        for (what, count) in [("the gains", gains.len()), ("the patches", patches.len())] {
            if count > 0 {
                let remedy = "give one at every timestep, or none";
                check_shape(what, &[timesteps.len()], &[count], remedy)?;
            }
        }
        let checked = Self::from_levels(timesteps, levels)?;
        Ok(Self {
            gains,
            prediction_type,
            patches,
            cut_error,
            ..checked
        })
    }
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
            gains: Vec::new(),
            timesteps,
            levels,
            prediction_type: None,
            patches: Vec::new(),
            cut_error: 0.0,
        })
    }

    /// The predicted loss of a forgotten point at a timestep, mean over elements: linear in the logarithm between
    /// the timesteps of the grid, constant beyond its ends.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for an id without a prediction.
    pub fn level(&self, forget_id: u64, timestep: f64) -> Result<f64> {
        let found = usize::try_from(forget_id)
            .ok()
            .and_then(|id| self.levels.get(id));
        let levels = found.ok_or_else(|| Error::InvalidSetting {
            what: format!(
                "the forgotten point of id {forget_id} has no predicted loss, only ids below {} have",
                self.levels.len()
            ),
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

    /// The predicted losses of each forgotten point at the timesteps of the grid.
    pub fn levels(&self) -> &[Vec<f64>] {
        &self.levels
    }
}

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
