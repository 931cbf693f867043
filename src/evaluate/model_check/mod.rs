//! A check before the first step: whether a model knows the data that it is said to have been
//! trained on.

mod looker;
#[cfg(test)]
mod tests;

use std::fmt;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use self::looker::{LOG_RATIOS, Looker, Losses, mean, moments, sigmoid, spread};
use crate::data::Side;
use crate::data::finite::check_finite;
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, check_device, check_prediction_type, check_range};
use crate::host::{read_f32, select_rows, squared_norms, to_f32};
use crate::process::Scheduler;

/// Checks whether a model knows its training data in the form in which they are given to it.
///
/// A model that was trained on pixels from 0 to 1 still runs and unlearns on pixels from −1 to 1,
/// but is ruined by it. Nothing in the data shows the error, but the model does: under another
/// preprocessing it knows the data better.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `range` | −1 to 1 | the values of black and white | ascending, finite |
/// | `points` | 16 | points that are examined at most, and half the control points | ≥ 1 |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run at a time | ≥ 1 |
///
/// `range` describes the data as they are given. It is `None` for data without black and white,
/// such as latents; then no other preprocessing is tried.
///
/// The model is run six times on each of `points`, and six times more for each of up to seven other
/// preprocessings. Large pictures need fewer of them, because a loss is a mean over all elements.
///
/// # How preprocessings are compared
/// Losses at the same timestep are not comparable: smaller values reveal less, and their noise is
/// easier to recognise. Losses are compared at the same ratio `γ² s²/σ²` of signal to noise, with
/// the variance `s²` of the preprocessed data, in the space of the noise. There the mean over the
/// logarithm of the ratio is, up to a number that all preprocessings share, the negative
/// log-likelihood that the model gives to the data (Kong et al. 2023, *Information-Theoretic
/// Diffusion*). So the preprocessing of the training has the lowest mean. A denoiser that knows
/// only the mean and variance of the data has the loss `γ² s²/(γ² s² + σ²)` under every
/// preprocessing.
///
/// # Example
/// ```
/// # use burn::module::Module;
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{DdpmScheduler, Denoiser};
/// # use siss::evaluate::{ModelCheck, ModelFinding};
/// # #[derive(Module, Debug)]
/// # struct Model { linear: Linear }
/// # impl Denoiser<2> for Model {
/// #     type Condition = ();
/// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> { self.linear.forward(noisy) * 0.0 }
/// # }
/// # let device = Device::flex();
/// # let model = Model { linear: LinearConfig::new(3, 3).init(&device) };
/// # let training_data = Tensor::<2>::random([20, 3], Distribution::Uniform(-1.0, 1.0), &device);
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let report = ModelCheck::default().run(&model, &scheduler, &training_data, &())?;
/// // This one says 0 to everything.
/// let finding = report.and_then(|report| report.finding);
/// assert!(matches!(finding, Some(ModelFinding::Untrained { .. })));
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelCheck {
    /// The values of black and white in the data as they are given; `None` for data without them.
    pub range: Option<[f64; 2]>,
    /// The most points that are examined, and half the most control points.
    pub points: usize,
    /// Key of the noises.
    pub seed: u64,
    /// Rows run at a time.
    pub micro_batch_size: usize,
}

impl Default for ModelCheck {
    fn default() -> Self {
        Self {
            range: Some([-1.0, 1.0]),
            points: 16,
            seed: 0,
            micro_batch_size: 64,
        }
    }
}

/// The measured losses, and what they show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelReport {
    /// The model's loss on the data as they are given, in the space of the noise, mean over
    /// elements and ratios.
    pub loss: f64,
    /// The loss of a denoiser that knows only the mean and variance of the data.
    pub trivial_loss: f64,
    /// The loss under other common preprocessings.
    pub others: Vec<(Preprocessing, f64)>,
    /// The problem, if there seems to be one.
    pub finding: Option<ModelFinding>,
}

/// A preprocessing under which a model may have been trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// The values of black and white.
    pub range: [f64; 2],
    /// Whether black and white are exchanged.
    pub is_inverted: bool,
    /// Whether the order of the channels is reversed, BGR for RGB.
    pub are_channels_reversed: bool,
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, most] = self.range;
        write!(formatter, "values from {least} to {most}")?;
        if self.is_inverted {
            formatter.write_str(", black and white exchanged")?;
        }
        if self.are_channels_reversed {
            formatter.write_str(", channels in reversed order (BGR for RGB)")?;
        }
        Ok(())
    }
}

/// A forgotten point whose mirror image the model knows about as well.
///
/// Losses are means over noises and ratios of signal to noise, in the space of the noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KnownMirror {
    /// Index in the forget set.
    pub forget: usize,
    /// The loss of the point.
    pub loss: f64,
    /// The loss of its mirror image.
    pub mirror_loss: f64,
    /// The median of the controls' losses.
    pub control_loss: f64,
}

impl KnownMirror {
    fn is_known(&self) -> bool {
        let known = KNOWN * self.control_loss;
        self.loss < known && self.mirror_loss < known && self.mirror_loss < ALIKE * self.loss
    }
}

/// A way in which a model does not match its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelFinding {
    /// The model knows the data clearly better under another preprocessing, so it was trained with
    /// that one. Unlearning would ruin it.
    OtherPreprocessing {
        /// The preprocessing of the data as they are given.
        given: Preprocessing,
        /// The better preprocessing.
        better: Preprocessing,
        /// The loss as given.
        loss: f64,
        /// The loss under the better preprocessing.
        better_loss: f64,
    },
    /// The model recognises noise, but knows less about the data than their mean and variance. It
    /// was trained on other data, on differently prepared data, or not for long.
    KnowsLittle {
        /// The model's loss.
        loss: f64,
        /// The loss of a denoiser that knows only mean and variance.
        trivial_loss: f64,
    },
    /// The model does not recognise noise even where there is hardly anything else: it is hardly
    /// trained.
    Untrained {
        /// The model's loss.
        loss: f64,
        /// The loss of a denoiser that knows only mean and variance.
        trivial_loss: f64,
    },
}

impl fmt::Display for ModelFinding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelFinding::OtherPreprocessing {
                given,
                better,
                loss,
                better_loss,
            } => write!(
                formatter,
                "the model was trained on data in another form: its loss on the data as given ({given}) is {loss:.4}, but {better_loss:.4} on the \
                 same data with {better}"
            ),
            ModelFinding::KnowsLittle { loss, trivial_loss } => write!(
                formatter,
                "the model's loss on its training data is {loss:.4}, above the {trivial_loss:.4} of a denoiser that knows only mean and variance: it was hardly trained, or not on data like these; check their size, crop, colours and range"
            ),
            ModelFinding::Untrained { loss, trivial_loss } => write!(
                formatter,
                "the model is hardly trained: its loss on its training data is {loss:.4}, and that of a denoiser that knows only mean and variance is {trivial_loss:.4}"
            ),
        }
    }
}

/// The smallest number of these ratios that a process must have.
const FEWEST_RATIOS: usize = 3;
/// Ranges of values that models are trained on: common ones and rarer ones.
const COMMON_RANGES: [[f64; 2]; 2] = [[-1.0, 1.0], [0.0, 1.0]];
const RARE_RANGES: [[f64; 2]; 1] = [[-0.5, 0.5]];
/// The share of a loss below which a model is learning the data anew.
const RELEARNT: f64 = 0.5;
/// The noises per forgotten point and mirror image.
const NOISES: usize = 4;
/// The share of the controls' loss below which a point counts as known.
const KNOWN: f64 = 0.5;
/// The mirror image counts as known equally well up to this multiple of the point's loss.
const ALIKE: f64 = 2.0;
/// The share of the variance below which the mean squared difference to the mirror image makes a
/// point symmetric.
const SYMMETRIC: f64 = 0.05;
/// A model with a higher loss where there is hardly a signal does not recognise noise; an untrained
/// one has 1.
const TELLS_NOISE: f64 = 0.5;

impl ModelCheck {
    /// Checks the current model on some points of its training data, spread over the set.
    ///
    /// The result is `None` if nothing can be said: the process has too few timesteps, or all
    /// values are the same.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `condition`: `n` rows
    ///
    /// # Errors
    /// - [`Error::Empty`], [`Error::ShapeMismatch`], [`Error::NonFiniteData`],
    ///   [`Error::DeviceMismatch`]
    /// - [`Error::PredictionTypeDiffers`] if the scheduler's configuration names another prediction
    ///   type than the model's
    /// - [`Error::InvalidSetting`] for an invalid range
    /// - [`Error::OutOfRange`] if `points` or `micro_batch_size` is 0, or for a loss of the model
    ///   that is not finite
    pub fn run<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        points: &Tensor<D>,
        condition: &M::Condition,
    ) -> Result<Option<ModelReport>> {
        self.check(model, scheduler, points)?;
        let count = points.dims()[0];
        condition.check_rows("the condition", count)?;
        let chosen = spread(count, self.points);
        let points = to_f32(select_rows(points, &chosen).inner());
        check_finite(&points, Side::Retain)?;
        let condition = condition.take_rows(&chosen);
        let looker = Looker {
            model: model.valid(),
            scheduler,
            check: self,
        };

        let (centre, variance) = moments(&points)?;
        let given = self.range.map(|range| Preprocessing {
            range,
            is_inverted: false,
            are_channels_reversed: false,
        });
        let has_colours = D >= 3 && points.dims()[1] == 3;
        let others = given.map_or_else(Vec::new, |given| {
            others(given, centre, variance, has_colours)
        });
        let (grids, usable) = grids(&looker, given, &others, variance);
        let trivial_loss = mean(usable.iter().map(|&index| sigmoid(LOG_RATIOS[index])));
        if usable.len() < FEWEST_RATIOS {
            return Ok(None);
        }
        let losses = |points: &Tensor<D>, grid: &[Option<f64>]| {
            let timesteps: Vec<f64> = usable.iter().filter_map(|&index| grid[index]).collect();
            looker.losses(points, &condition, &timesteps)
        };
        let as_given = losses(&points, &grids[0])?;
        let loss = as_given.mean();
        let what = "the model's loss on its training data";
        check_range(what, loss, true, "a finite number")?;
        let mut changed = Vec::with_capacity(others.len());
        for (other, grid) in others.iter().zip(&grids[1..]) {
            let points = other.of(points.clone(), self.range.unwrap_or(other.range));
            changed.push(losses(&points, grid)?);
        }
        Ok(Some(ModelReport {
            loss,
            trivial_loss,
            others: others
                .iter()
                .copied()
                .zip(changed.iter().map(Losses::mean))
                .collect(),
            finding: finding(given, &as_given, &others, &changed, trivial_loss),
        }))
    }

    /// The forgotten points whose mirror image the model knows about as well.
    ///
    /// Such a model was trained on both, with random flips, and generates both. If only the point
    /// is forgotten, the model still generates its mirror image.
    ///
    /// A point is *known* if its loss is below half the median of the controls'. Points are
    /// mirrored along their last dimension, and symmetric ones are left out. The points that are
    /// examined are spread over the set.
    ///
    /// # Shapes
    /// - `forgotten`: `[k, …, width]`
    /// - `controls`: `[c, …, width]`, like the forgotten points but not memorised
    /// - each condition: as many rows as its points
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn known_mirrors<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        (forgotten, condition): (&Tensor<D>, &M::Condition),
        (controls, control_condition): (&Tensor<D>, &M::Condition),
    ) -> Result<Vec<KnownMirror>> {
        self.check(model, scheduler, forgotten)?;
        self.check(model, scheduler, controls)?;
        let chosen = spread(forgotten.dims()[0], self.points);
        let points = to_f32(select_rows(forgotten, &chosen).inner());
        check_finite(&points, Side::Forget)?;
        let mirrors = points.clone().flip([D - 1]);
        let control_rows = spread(controls.dims()[0], self.points.saturating_mul(2));
        let controls = to_f32(select_rows(controls, &control_rows).inner());
        check_finite(&controls, Side::Retain)?;
        let looker = Looker {
            model: model.valid(),
            scheduler,
            check: self,
        };
        let (_, variance) = moments(&controls)?;
        let timesteps: Vec<f64> = looker.timesteps(variance).into_iter().flatten().collect();
        if timesteps.len() < FEWEST_RATIOS {
            return Ok(Vec::new());
        }
        let elements: usize = points.dims()[1..].iter().product();
        let differences = squared_norms(points.clone() - mirrors.clone()) / elements as f64;
        let differences = read_f32(differences, "the difference of points and mirror images")?;
        let control_condition = control_condition.take_rows(&control_rows);
        let mut usual = looker
            .losses(&controls, &control_condition, &timesteps)?
            .of_points();
        usual.sort_by(f64::total_cmp);
        let usual = usual[usual.len() / 2];

        // Each point under several noises; its mirror image under their mirror images.
        let rows: Vec<usize> = (0..NOISES).flat_map(|_| 0..chosen.len()).collect();
        let condition = condition.take_rows(&chosen).take_rows(&rows);
        let mut shape = points.dims();
        shape[0] = rows.len();
        let noise = looker.noise(shape, &points.device());
        let mirrored_noise = noise.clone().flip([D - 1]);
        let losses = |points: &Tensor<D>, noise: &Tensor<D>| -> Result<Vec<f64>> {
            let points = select_rows(points, &rows);
            let losses = looker
                .losses_under(&points, noise, &condition, &timesteps)?
                .of_points();
            let of_point = |point| mean(losses.iter().skip(point).step_by(chosen.len()).copied());
            Ok((0..chosen.len()).map(of_point).collect())
        };
        let (own, mirrored) = (losses(&points, &noise)?, losses(&mirrors, &mirrored_noise)?);
        let known = chosen.iter().enumerate().map(|(index, &forget)| {
            let known = KnownMirror {
                forget,
                loss: own[index],
                mirror_loss: mirrored[index],
                control_loss: usual,
            };
            let is_symmetric = f64::from(differences[index]) < SYMMETRIC * variance;
            (!is_symmetric && known.is_known()).then_some(known)
        });
        Ok(known.flatten().collect())
    }

    fn check<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        points: &Tensor<D>,
    ) -> Result<()> {
        let (kind, stated) = (model.prediction_type(), scheduler.prediction_type());
        check_prediction_type(kind, "the scheduler", stated)?;
        if points.dims().contains(&0) {
            return Err(Error::Empty {
                what: "the data to check the model on",
                remedy: "give at least one point",
            });
        }
        let sizes = [
            ("points", self.points),
            ("micro_batch_size", self.micro_batch_size),
        ];
        for (name, size) in sizes {
            check_range(name, size as f64, size >= 1, "at least 1")?;
        }
        if let Some(range) = self.range {
            crate::data::check::check_width(range)?;
        }
        if let Some(device) = model.devices().first() {
            check_device("points", device, &points.device())?;
        }
        model.check_input(points.dims())
    }
}

/// Refuses to continue if a loss on points that are not forgotten fell by half during unlearning.
///
/// A trained model has nothing left to learn about its own data. So it is learning other data, or
/// the same data in another form, and forgetting what it knew.
///
/// # Shapes
/// - `before`, `now`: the losses at the same timesteps, in any order
///
/// # Errors
/// [`Error::Relearning`] with the largest fall.
pub fn refuse_relearning(before: &[f64], now: &[f64]) -> Result<()> {
    let falls = before.iter().zip(now).map(|(before, now)| (*before, *now));
    let largest = falls.min_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
    match largest {
        Some((before, now)) if now < RELEARNT * before => Err(Error::Relearning { before, now }),
        _ => Ok(()),
    }
}

/// For the given preprocessing and each other one, the timesteps at the ratios of signal to noise
/// that it has; and which ratios all of them have.
fn grids<M>(
    looker: &Looker<'_, M>,
    given: Option<Preprocessing>,
    others: &[Preprocessing],
    variance: f64,
) -> (Vec<Vec<Option<f64>>>, Vec<usize>) {
    let width = |range: [f64; 2]| range[1] - range[0];
    // The factor by which a preprocessing stretches the data.
    let stretch =
        |other: &Preprocessing| given.map_or(1.0, |given| width(other.range) / width(given.range));
    let grids: Vec<Vec<Option<f64>>> = std::iter::once(1.0)
        .chain(others.iter().map(stretch))
        .map(|stretch| looker.timesteps(variance * stretch * stretch))
        .collect();
    let usable = (0..LOG_RATIOS.len())
        .filter(|&index| grids.iter().all(|grid| grid[index].is_some()))
        .collect();
    (grids, usable)
}

/// What the losses under the given preprocessing and under the others say.
fn finding(
    given: Option<Preprocessing>,
    as_given: &Losses,
    others: &[Preprocessing],
    changed: &[Losses],
    trivial_loss: f64,
) -> Option<ModelFinding> {
    let (loss, mut best, mut found) = (as_given.mean(), f64::INFINITY, None);
    for (other, changed) in others.iter().zip(changed) {
        let better_loss = changed.mean();
        if better_loss < trivial_loss.min(best) && changed.is_clearly_below(as_given) {
            best = better_loss;
            found = given.map(|given| ModelFinding::OtherPreprocessing {
                given,
                better: *other,
                loss,
                better_loss,
            });
        }
    }
    let tells_noise = |losses: &Losses| losses.noisiest() < TELLS_NOISE;
    match found {
        None if !tells_noise(as_given) && !changed.iter().any(tells_noise) => {
            Some(ModelFinding::Untrained { loss, trivial_loss })
        }
        None if loss > trivial_loss => Some(ModelFinding::KnowsLittle { loss, trivial_loss }),
        found => found,
    }
}

impl Preprocessing {
    /// Converts data of a given range to this preprocessing.
    fn of<const D: usize>(&self, points: Tensor<D>, [least, most]: [f64; 2]) -> Tensor<D> {
        let [low, high] = self.range;
        // As a share of the range, from 0 for black to 1 for white.
        let mut share = (points - least) / (most - least);
        if self.is_inverted {
            share = share.neg() + 1.0;
        }
        if self.are_channels_reversed {
            share = share.flip([1_usize]);
        }
        share * (high - low) + low
    }
}

/// The other common preprocessings of data with this mean and variance.
fn others(
    given: Preprocessing,
    centre: f64,
    variance: f64,
    has_colours: bool,
) -> Vec<Preprocessing> {
    let plain = |range| Preprocessing { range, ..given };
    let is_new = |range: &[f64; 2]| *range != given.range;
    let changed = [(true, false), (false, true)];
    let in_common_ranges = std::iter::once(given.range)
        .chain(COMMON_RANGES.into_iter().filter(is_new))
        .flat_map(|range| {
            let changed = changed.map(|(is_inverted, are_channels_reversed)| Preprocessing {
                range,
                is_inverted,
                are_channels_reversed,
            });
            std::iter::once(plain(range)).chain(changed)
        })
        .filter(|other| has_colours || !other.are_channels_reversed);
    // A mean of 0 and a variance of 1.
    let standard = given.range.map(|value| (value - centre) / variance.sqrt());
    in_common_ranges
        .chain(RARE_RANGES.into_iter().filter(is_new).map(plain))
        .chain(std::iter::once(plain(standard)))
        .filter(|&other| other != given)
        .collect()
}
