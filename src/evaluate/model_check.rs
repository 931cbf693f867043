//! What a model makes of data that it is said to have been trained on, looked at before the first step.

use std::fmt;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::row_losses;
use crate::data::Side;
use crate::data::finite::check_finite;
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_device, check_prediction_type, check_range};
use crate::host::{read_f32, select_rows, squared_norms, to_f32};
use crate::process::{PredictionType, Scales, Scheduler, SchedulerExt};

/// Looks whether a model knows its training data as they are given to it.
///
/// A model that was trained on pixels from 0 to 1 and is given pixels from −1 to 1 runs, unlearns and is ruined by it. Nothing of the data
/// shows that, but the model does: under another preprocessing it knows them better.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `range` | −1 to 1 | the values of black and white as the data are given; `None` where they have none, as latents: then no other preprocessing is tried | ascending, finite |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run at a time | ≥ 1 |
///
/// # How preprocessings are compared
/// Losses at the same timestep cannot be: of smaller values less can be known, and the noise is easier to tell. They are compared
/// at the same ratio `γ² s²/σ²` of signal to noise, with the variance `s²` of the data as preprocessed, in the space of
/// the noise. There the mean over the logarithm of the ratio is, up to a number that all have in common, the negative
/// log-likelihood that the model gives to the data (Kong et al. 2023, *Information-Theoretic Diffusion*), so the preprocessing of the
/// training has the lowest. A denoiser that knows mean and variance of the data alone has the loss
/// `γ² s²/(γ² s² + σ²)`, the same for all.
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
    /// The values of black and white as the data are given.
    pub range: Option<[f64; 2]>,
    /// Key of the noises.
    pub seed: u64,
    /// Rows run at a time.
    pub micro_batch_size: usize,
}

impl Default for ModelCheck {
    fn default() -> Self {
        Self {
            range: Some([-1.0, 1.0]),
            seed: 0,
            micro_batch_size: 64,
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelReport {
    /// The model's loss on the data as they are given, in the space of the noise, mean over elements and ratios.
    pub loss: f64,
    /// That of a denoiser that knows mean and variance of the data alone.
    pub trivial_loss: f64,
    /// The loss under other common preprocessings.
    pub others: Vec<(Preprocessing, f64)>,
    /// What is wrong, if something seems to be.
    pub finding: Option<ModelFinding>,
}

/// Values as a model may have been trained on them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// The values of black and white.
    pub range: [f64; 2],
    /// Whether black is white and white is black.
    pub is_inverted: bool,
    /// Whether the order of the channels is turned round, BGR for RGB.
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

/// A forgotten point whose mirror image the model knows as well. Losses are means over noises and ratios of signal to noise, in the space of
/// the noise.
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

/// What of a model does not go with its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelFinding {
    /// The model knows the data clearly better under another preprocessing: it was trained with that. Unlearning would ruin it.
    OtherPreprocessing {
        /// That of the data as they are given.
        given: Preprocessing,
        /// The better one.
        better: Preprocessing,
        /// The loss as given.
        loss: f64,
        /// The loss under the better one.
        better_loss: f64,
    },
    /// The model can tell noise, but knows less of the data than their mean and variance: it was trained on others, or on these
    /// as they looked otherwise, or not for long.
    KnowsLittle {
        /// Its loss.
        loss: f64,
        /// That of mean and variance alone.
        trivial_loss: f64,
    },
    /// The model cannot tell noise where there is hardly anything else: it has hardly been trained.
    Untrained {
        /// Its loss.
        loss: f64,
        /// That of mean and variance alone.
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

/// Points that are looked at, at most.
const POINTS: usize = 16;
/// Logarithms of the ratio of signal to noise at which losses are compared.
const LOG_RATIOS: [f64; 6] = [-4.0, -2.5, -1.0, 0.5, 2.0, 3.5];
/// How far from it the ratio of a timestep may be.
const SLACK: f64 = 0.3;
/// Fewest of the ratios that a process must have.
const FEWEST_RATIOS: usize = 3;
/// Values that models are trained on, the common ones and rarer ones.
const COMMON_RANGES: [[f64; 2]; 2] = [[-1.0, 1.0], [0.0, 1.0]];
const RARE_RANGES: [[f64; 2]; 1] = [[-0.5, 0.5]];
/// Share of the loss by which another preprocessing must be better, and by how many standard errors.
const CLEARLY: f64 = 0.1;
const STANDARD_ERRORS: f64 = 3.0;
/// Share of a loss below which a model learns anew.
const RELEARNT: f64 = 0.5;
/// Controls that are looked at, at most, and noises of each forgotten point and its mirror image.
const CONTROLS: usize = 32;
const NOISES: usize = 4;
/// Share of the controls' loss below which a point is known.
const KNOWN: f64 = 0.5;
/// The loss of a mirror image that is known as well is at most this many times the point's.
const ALIKE: f64 = 2.0;
/// Share of the variance below which the mean squared difference to the mirror image makes a point symmetric.
const SYMMETRIC: f64 = 0.05;
/// A model whose loss is above this where there is hardly a signal cannot tell noise; one that was not trained has 1.
const TELLS_NOISE: f64 = 0.5;

impl ModelCheck {
    /// Looks at the model as it is now, on data that it was trained on: 16 points of them, spread over the set. `None` where nothing can
    /// be said: the process has too few timesteps, or all values are the same.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `condition`: `n` rows
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::ShapeMismatch`], [`Error::NonFiniteData`]; [`Error::PredictionTypeDiffers`]
    /// for a scheduler whose configuration says otherwise than the model; [`Error::InvalidSetting`] for a range that is none;
    /// [`Error::DeviceMismatch`]; [`Error::OutOfRange`] for a micro-batch of none, or if the model's loss is no number.
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
        let chosen = spread(count, POINTS);
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
        let others: Vec<Preprocessing> = match given {
            Some(given) => others(given, centre, variance, D >= 3 && points.dims()[1] == 3),
            None => Vec::new(),
        };
        let width = |range: [f64; 2]| range[1] - range[0];
        // The factor by which a preprocessing stretches the data.
        let stretch = |other: &Preprocessing| {
            given.map_or(1.0, |given| width(other.range) / width(given.range))
        };
        let grids: Vec<Vec<Option<f64>>> = std::iter::once(1.0)
            .chain(others.iter().map(stretch))
            .map(|stretch| looker.timesteps(variance * stretch * stretch))
            .collect();
        let usable: Vec<usize> = (0..LOG_RATIOS.len())
            .filter(|&index| grids.iter().all(|grid| grid[index].is_some()))
            .collect();
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
        check_range(
            "the model's loss on its training data",
            loss,
            true,
            "a finite number",
        )?;
        let mut compared = Vec::new();
        let mut finding = None;
        let mut tells_noise = as_given.noisiest() < TELLS_NOISE;
        let mut best = f64::INFINITY;
        for (other, grid) in others.iter().zip(&grids[1..]) {
            let Some(given) = given else { continue };
            let changed = losses(&other.of(points.clone(), given.range), grid)?;
            let better_loss = changed.mean();
            tells_noise |= changed.noisiest() < TELLS_NOISE;
            if better_loss < trivial_loss.min(best) && changed.is_clearly_below(&as_given) {
                best = better_loss;
                finding = Some(ModelFinding::OtherPreprocessing {
                    given,
                    better: *other,
                    loss,
                    better_loss,
                });
            }
            compared.push((*other, better_loss));
        }
        let finding = match finding {
            None if !tells_noise => Some(ModelFinding::Untrained { loss, trivial_loss }),
            None if loss > trivial_loss => Some(ModelFinding::KnowsLittle { loss, trivial_loss }),
            finding => finding,
        };
        Ok(Some(ModelReport {
            loss,
            trivial_loss,
            others: compared,
            finding,
        }))
    }

    /// The forgotten points whose mirror image the model knows about as well: it was trained on both, with random flips, and draws both.
    /// What is forgotten of such a point alone is drawn on as its mirror image.
    ///
    /// A point is *known* whose loss is below half the median of the controls'; mirrored are points along their last dimension.
    /// Symmetric ones are not named. At most 16 forgotten points are looked at, spread over the set.
    ///
    /// # Shapes
    /// - `forgotten`: `[k, …, width]`; `controls`: `[c, …, width]`, like the others and not memorised; each condition: as many rows
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn known_mirrors<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        (forgotten, condition): (&Tensor<D>, &M::Condition),
        (controls, control_condition): (&Tensor<D>, &M::Condition),
    ) -> Result<Vec<KnownMirror>> {
        self.check(model, scheduler, forgotten)?;
        self.check(model, scheduler, controls)?;
        let chosen = spread(forgotten.dims()[0], POINTS);
        let points = to_f32(select_rows(forgotten, &chosen).inner());
        check_finite(&points, Side::Forget)?;
        let mirrors = points.clone().flip([D - 1]);
        let control_rows = spread(controls.dims()[0], CONTROLS);
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

        // Each under several noises; the mirror image under the mirror image of each.
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
        let size = self.micro_batch_size;
        check_range("micro_batch_size", size as f64, size >= 1, "at least 1")?;
        if let Some(range) = self.range {
            crate::data::check::check_width(range)?;
        }
        if let Some(device) = model.devices().first() {
            check_device("points", device, &points.device())?;
        }
        model.check_input(points.dims())
    }
}

/// Refuses to go on where a loss on points that are not forgotten fell by half while unlearning: a model that was trained has nothing
/// left to learn of its data, so it is learning others, or the same as they look otherwise, and forgetting what it was.
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

impl Preprocessing {
    /// Data of a range under this preprocessing.
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

/// The other common preprocessings: of data with this mean and variance.
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

/// Losses of some points at some timesteps, in the space of the noise.
struct Losses {
    /// By timestep, from the noisiest, and point.
    values: Vec<Vec<f64>>,
}

impl Losses {
    fn mean(&self) -> f64 {
        mean(self.values.iter().flatten().copied())
    }

    fn noisiest(&self) -> f64 {
        self.values
            .first()
            .map_or(f64::INFINITY, |losses| mean(losses.iter().copied()))
    }

    /// Mean over the timesteps of each point.
    fn of_points(&self) -> Vec<f64> {
        let points = self.values.first().map_or(0, Vec::len);
        let of_point = |point: usize| mean(self.values.iter().map(|losses| losses[point]));
        (0..points).map(of_point).collect()
    }

    /// Whether these are below others by a good share, and by more than chance.
    fn is_clearly_below(&self, others: &Self) -> bool {
        let (own, others) = (self.of_points(), others.of_points());
        let gains: Vec<f64> = others
            .iter()
            .zip(&own)
            .map(|(other, own)| other - own)
            .collect();
        let gain = mean(gains.iter().copied());
        let square = mean(gains.iter().map(|one| (one - gain).powi(2)));
        let standard_error = (square / gains.len() as f64).sqrt();
        gain > CLEARLY * mean(others.iter().copied()) && gain > STANDARD_ERRORS * standard_error
    }
}

/// A model and its process, looked at.
struct Looker<'a, M> {
    model: M,
    scheduler: &'a dyn Scheduler,
    check: &'a ModelCheck,
}

impl<M> Looker<'_, M> {
    /// The timestep of each of the ratios, for data of a variance; none where the process has no such ratio.
    fn timesteps(&self, variance: f64) -> Vec<Option<f64>> {
        let range = self.scheduler.time_range();
        let log_ratio = |timestep| (self.scheduler.snr(timestep) * variance).ln();
        let timestep = |wanted: f64| {
            // The ratio falls with time.
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..50 {
                let middle = 0.5 * (low + high);
                match log_ratio(range.at(middle)) > wanted {
                    true => low = middle,
                    false => high = middle,
                }
            }
            let ends = [low, high].map(|share| range.at(share));
            let off = |timestep: &f64| (log_ratio(*timestep) - wanted).abs();
            let nearest = ends.into_iter().min_by(|a, b| off(a).total_cmp(&off(b)));
            nearest.filter(|timestep| off(timestep) < SLACK)
        };
        LOG_RATIOS.map(timestep).to_vec()
    }

    fn losses<const D: usize>(
        &self,
        points: &Tensor<D>,
        condition: &M::Condition,
        timesteps: &[f64],
    ) -> Result<Losses>
    where
        M: Denoiser<D>,
    {
        let noise = self.noise(points.dims(), &points.device());
        self.losses_under(points, &noise, condition, timesteps)
    }

    fn losses_under<const D: usize>(
        &self,
        points: &Tensor<D>,
        noise: &Tensor<D>,
        condition: &M::Condition,
        timesteps: &[f64],
    ) -> Result<Losses>
    where
        M: Denoiser<D>,
    {
        let values = timesteps
            .iter()
            .map(|&timestep| self.losses_at(points, noise, condition, timestep));
        Ok(Losses {
            values: values.collect::<Result<_>>()?,
        })
    }

    fn noise<const D: usize>(&self, shape: [usize; D], device: &burn::tensor::Device) -> Tensor<D> {
        normal_noise(shape, self.check.seed, 0, 0, Stream::Evaluation, device)
    }

    /// The loss of each row at a timestep, mean over elements.
    fn losses_at<const D: usize>(
        &self,
        points: &Tensor<D>,
        noise: &Tensor<D>,
        condition: &M::Condition,
        timestep: f64,
    ) -> Result<Vec<f64>>
    where
        M: Denoiser<D>,
    {
        let count = points.dims()[0];
        let kind = self.model.prediction_type();
        let mut losses = Vec::with_capacity(count);
        for first in (0..count).step_by(self.check.micro_batch_size) {
            let rows = self.check.micro_batch_size.min(count - first);
            let indices: Vec<usize> = (first..first + rows).collect();
            let part = |all: &Tensor<D>| all.clone().narrow(0, first, rows);
            let (clean, noise) = (part(points), part(noise));
            let scales = self.scheduler.scales(&vec![timestep; rows])?;
            let condition = condition.take_rows(&indices);
            let of_rows = row_losses(&self.model, timestep, &scales, &clean, &noise, &condition)?;
            // What one unit of noise, with the clean point that makes up for it, does to the output.
            let unit = unit_of_noise(kind, &scales);
            let of_rows = read_f32(of_rows, "the model's losses")?;
            let in_noise = |loss: f32| f64::from(loss) / (unit * unit);
            losses.extend(of_rows.into_iter().map(in_noise));
        }
        Ok(losses)
    }
}

/// By how much the output changes where the noise that explains a noisy point is by 1 larger, and the clean point
/// by `σ/γ` smaller.
fn unit_of_noise(kind: PredictionType, scales: &Scales) -> f64 {
    let (gamma, sigma) = (scales.signal[0], scales.noise[0]);
    match kind {
        PredictionType::Epsilon => 1.0,
        PredictionType::Sample => sigma / gamma,
        PredictionType::Velocity => gamma + sigma * sigma / gamma,
        PredictionType::FlowVelocity => 1.0 + sigma / gamma,
    }
}

/// Numbers of rows, at most `most`, spread evenly.
fn spread(count: usize, most: usize) -> Vec<usize> {
    let chosen = count.min(most);
    (0..chosen).map(|index| index * count / chosen).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}

/// Mean and variance of all elements.
fn moments<const D: usize>(points: &Tensor<D>) -> Result<(f64, f64)> {
    let values = read_f32(points.clone(), "the data")?;
    let values = || values.iter().copied().map(f64::from);
    let centre = mean(values());
    Ok((centre, mean(values().map(|value| (value - centre).powi(2)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::column;
    use crate::process::DdpmScheduler;
    use burn::module::{Module, Param};
    use burn::tensor::{Device, Distribution};

    /// The ideal denoiser of some points: what a model that has memorised them says.
    #[derive(Module, Debug)]
    struct Memory {
        points: Param<Tensor<4>>,
        #[module(skip)]
        kind: PredictionType,
    }

    impl Memory {
        fn of(points: &Tensor<4>) -> Self {
            let (points, kind) = (Param::from_tensor(points.clone()), PredictionType::Epsilon);
            Self { points, kind }
        }
    }

    impl Denoiser<4> for Memory {
        type Condition = ();

        fn predict(&self, noisy: Tensor<4>, timesteps: Tensor<1>, _: &()) -> Tensor<4> {
            let times: Vec<f64> = timesteps.into_data().iter().collect();
            let scales = scheduler().scales(&times).unwrap();
            let (gamma, sigma) = (scales.signal[0], scales.noise[0]);
            let points: Tensor<2> = self.points.val().inner().flatten(1, 3);
            let rows: Tensor<2> = noisy.clone().flatten(1, 3);
            let products = rows.matmul(points.clone().transpose()) * gamma;
            let norms = squared_norms(points.clone()).unsqueeze_dim::<2>(0) * (gamma * gamma / 2.0);
            let weights =
                burn::tensor::activation::softmax((products - norms) / (sigma * sigma), 1);
            let clean = weights.matmul(points).reshape(noisy.dims());
            let noise = (noisy - clean.clone() * gamma) / sigma;
            scales.target(self.kind, &clean, &noise)
        }

        fn prediction_type(&self) -> PredictionType {
            self.kind
        }
    }

    /// Says nothing.
    #[derive(Module, Debug)]
    struct Silent {
        factor: Param<Tensor<1>>,
    }

    impl Denoiser<4> for Silent {
        type Condition = ();

        fn predict(&self, noisy: Tensor<4>, _: Tensor<1>, _: &()) -> Tensor<4> {
            noisy * 0.0
        }
    }

    fn scheduler() -> DdpmScheduler {
        DdpmScheduler::linear(1000).unwrap()
    }

    /// Pictures of three channels of different brightness, from −1 to 1: steps from dark to light, at another place in each.
    fn pictures(count: usize, seed: u64) -> Tensor<4> {
        let device = Device::flex();
        let noise: Tensor<4> = normal_noise([count, 3, 6, 6], seed, 0, 0, Stream::Noise, &device);
        let brightness: Tensor<4> = column::<4>(&[0.5, -0.3, -0.9], &device).reshape([1, 3, 1, 1]);
        (noise * 0.4 + brightness).clamp(-1.0, 1.0)
    }

    fn check(range: [f64; 2]) -> ModelCheck {
        ModelCheck {
            range: Some(range),
            ..ModelCheck::default()
        }
    }

    fn report(
        model: &impl Denoiser<4, Condition = ()>,
        points: &Tensor<4>,
        range: [f64; 2],
    ) -> ModelReport {
        check(range)
            .run(model, &scheduler(), points, &())
            .unwrap()
            .unwrap()
    }

    fn better(report: &ModelReport) -> Preprocessing {
        match report.finding {
            Some(ModelFinding::OtherPreprocessing { better, .. }) => better,
            _ => panic!("{report:?}"),
        }
    }

    #[test]
    fn a_model_knows_its_data_under_the_preprocessing_of_its_training_alone() {
        let data = pictures(40, 1);
        let ranges = [[-1.0, 1.0], [0.0, 1.0], [-0.5, 0.5], [-2.3, 1.8]];
        let given = |range| Preprocessing {
            range,
            is_inverted: false,
            are_channels_reversed: false,
        };
        for trained in ranges {
            let model = Memory::of(&given(trained).of(data.clone(), [-1.0, 1.0]));
            let report = report(
                &model,
                &given(trained).of(data.clone(), [-1.0, 1.0]),
                trained,
            );
            assert_eq!(report.finding, None, "{report:?}");
            assert!(report.loss < 0.5 * report.trivial_loss, "{report:?}");
        }
        for trained in &ranges[..3] {
            let model = Memory::of(&given(*trained).of(data.clone(), [-1.0, 1.0]));
            for other in ranges.iter().filter(|range| *range != trained) {
                let report = report(&model, &given(*other).of(data.clone(), [-1.0, 1.0]), *other);
                assert_eq!(better(&report), given(*trained), "{report:?}");
                let text = report.finding.unwrap().to_string();
                let range = format!("values from {} to {}", trained[0], trained[1]);
                assert!(text.contains(&range), "{text}");
            }
        }
    }

    #[test]
    fn inverted_values_and_reversed_channels_are_recognised() {
        let data = pictures(40, 1);
        for (is_inverted, are_channels_reversed) in [(true, false), (false, true)] {
            let trained = Preprocessing {
                range: [-1.0, 1.0],
                is_inverted,
                are_channels_reversed,
            };
            let model = Memory::of(&trained.of(data.clone(), [-1.0, 1.0]));
            assert_eq!(better(&report(&model, &data, [-1.0, 1.0])), trained);
        }
        // Mean 0 and variance 1.
        let (centre, variance) = moments(&data).unwrap();
        let model = Memory::of(&((data.clone() - centre) / variance.sqrt()));
        let found = better(&report(&model, &data, [-1.0, 1.0])).range;
        let expected = [-1.0, 1.0].map(|end| (end - centre) / variance.sqrt());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 0.2, "{found} {expected}");
        }
    }

    #[test]
    fn what_was_not_trained_is_told_from_what_was_trained_on_something_else() {
        let data = pictures(40, 1);
        let silent = Silent {
            factor: Param::from_tensor(Tensor::zeros([1], &Device::flex())),
        };
        let found = report(&silent, &data, [-1.0, 1.0]);
        assert!(
            matches!(found.finding, Some(ModelFinding::Untrained { .. })),
            "{found:?}"
        );
        assert!((found.loss - 1.0).abs() < 0.1, "{found:?}");
        let chance = Distribution::Uniform(-1.0, 1.0);
        let others = Tensor::<4>::random([40, 3, 6, 6], chance, &Device::flex());
        let found = report(&Memory::of(&others), &data, [-1.0, 1.0]);
        assert!(
            matches!(found.finding, Some(ModelFinding::KnowsLittle { .. })),
            "{found:?}"
        );
    }

    #[test]
    fn the_losses_are_those_of_the_noise_for_every_kind_of_prediction() {
        let data = pictures(40, 1);
        let losses = [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
            PredictionType::FlowVelocity,
        ]
        .map(|kind| {
            let check = ModelCheck {
                micro_batch_size: 5,
                ..ModelCheck::default()
            };
            // Others than those it has memorised, so that there is a loss.
            let model = Memory {
                kind,
                ..Memory::of(&pictures(40, 2))
            };
            check
                .run(&model, &scheduler(), &data, &())
                .unwrap()
                .unwrap()
                .loss
        });
        assert!(losses[0] > 0.1);
        for loss in losses {
            assert!((loss / losses[0] - 1.0).abs() < 1e-3, "{losses:?}");
        }
    }

    #[test]
    fn a_scheduler_of_a_model_that_predicts_something_else_is_refused() {
        let data = pictures(4, 1);
        let config = crate::process::SchedulerConfig {
            prediction_type: PredictionType::Sample,
            ..Default::default()
        };
        let other = DdpmScheduler::from_config(&config).unwrap();
        let error = ModelCheck::default().run(&Memory::of(&data), &other, &data, &());
        assert!(
            matches!(error, Err(Error::PredictionTypeDiffers { .. })),
            "{error:?}"
        );
    }

    #[test]
    fn where_nothing_can_be_said_nothing_is() {
        let data = pictures(4, 1);
        let model = Memory::of(&data);
        let same = data.zeros_like();
        assert_eq!(
            ModelCheck::default()
                .run(&model, &scheduler(), &same, &())
                .unwrap(),
            None
        );
        let few = DdpmScheduler::linear(2).unwrap();
        assert_eq!(
            ModelCheck::default()
                .run(
                    &Silent {
                        factor: Param::from_tensor(Tensor::zeros([1], &Device::flex())),
                    },
                    &few,
                    &data,
                    &()
                )
                .unwrap(),
            None
        );
        let none = check([1.0, 1.0]).run(&model, &scheduler(), &data, &());
        assert!(
            none.unwrap_err()
                .to_string()
                .contains("the range of the data")
        );
        let none = ModelCheck::default().run(&model, &scheduler(), &(data / 0.0), &());
        assert!(matches!(none.unwrap_err(), Error::NonFiniteData { .. }));
    }

    /// A model that has memorised a point and its mirror image, one that has memorised the point alone, and a symmetric point.
    #[test]
    fn a_mirror_image_that_is_known_as_well_is_told() {
        let (retained, controls) = (pictures(60, 1), pictures(32, 2));
        let (point, symmetric) = (pictures(1, 3), pictures(1, 4));
        let symmetric = (symmetric.clone() + symmetric.flip([3])) / 2.0;
        let forgotten = Tensor::cat(vec![symmetric.clone(), point.clone()], 0);
        let known = |memory: Vec<Tensor<4>>| {
            let model = Memory::of(&Tensor::cat([vec![retained.clone()], memory].concat(), 0));
            let (forget, control) = ((&forgotten, &()), (&controls, &()));
            let known = ModelCheck::default().known_mirrors(&model, &scheduler(), forget, control);
            known
                .unwrap()
                .iter()
                .map(|known| known.forget)
                .collect::<Vec<_>>()
        };
        let mirror = point.clone().flip([3]);
        assert_eq!(known(vec![point.clone(), symmetric.clone(), mirror]), [1]);
        assert_eq!(known(vec![point, symmetric]), [0; 0]);
        assert_eq!(known(vec![]), [0; 0]);
    }

    #[test]
    fn a_loss_that_falls_by_half_is_refused_and_others_are_not() {
        assert!(refuse_relearning(&[0.1, 0.02], &[0.12, 0.0101]).is_ok());
        let error = refuse_relearning(&[0.1, 0.02], &[0.12, 0.0099]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("from 0.0200 to 0.0099") && error.contains("range"),
            "{error}"
        );
    }
}
