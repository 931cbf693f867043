//! Fitting a [`Counterfactual`] to a model and its data.

use burn::tensor::Tensor;
use serde::Serialize;

use super::caps::Caps;
use super::config::CounterfactualConfig;
use super::data::CounterfactualData;
use super::form::{Forms, IdealForm};
use super::gain::{Gain, mean};
use super::grid::default_timesteps;
use super::ideal::{Flat, Ideal, flat, on_host};
use super::in_pieces::InPieces;
use super::probe::{LossMoments, PROBES, Probe, Progress, same_patches};
use crate::data::common::refuse_common_points;
use crate::denoiser::Denoiser;
use crate::error::{Error, Result, check_device, check_prediction_type, check_range};
use crate::parameters::check_parameters;
use crate::process::{Scheduler, SchedulerExt};
use crate::steering::levels::{Levels, Origin, check_timesteps};

/// Fewest squares that tell how far control points differ: noises times elements.
const FEWEST_SQUARES: usize = 64;

/// The loss `b_a(t)` that a model which never saw a point `a` would have on it, predicted without
/// training one, for each forgotten point and timestep.
///
/// `L*` is the error of the *ideal denoiser of the retained data*, the posterior mean `Σ_j p_j x_j`
/// with `p = softmax_j −‖m − γ x_j‖²/2σ²`: the most that the other points tell about this one. How
/// well a network does is measured on control points `H` that it never saw. Losses are means over
/// elements and noises, in the space of the model's output, and errors of the clean point; `s` is
/// the factor between the two, so any prediction type works, and so does `γ = 0`.
///
/// **Much noise**, where the model does worse than the ideal denoiser. What it loses more is the
/// same for every point: `b_a = s² L*_a + L_θ(H) − s² L*_H`.
///
/// **Little noise**, where it does better, because it generalises. How hard a point is, the model
/// says itself where it sees a piece of it inside a control point, and does not recognise what it
/// memorised: `b_a` is the mean square of its error in pieces, times the ratio of loss to such an
/// error on control points.
///
/// A model that knows a point well knows something of its pieces too, so the loss of such a point
/// is at least that of a line in the logarithms of loss and `L*`, fitted to the control points with
/// a slope between 0 and 1. Below the lowest twentieth of their errors the line is constant,
/// because a near duplicate among the retained points tells the network little; above six tenths
/// of them it is proportional. With fewer than 20 control points, or too few elements and noises to
/// tell them apart, it is proportional throughout. The line alone predicts points of rank 2, which
/// have no pieces.
///
/// The predicted loss of a point is at most the loss of the best *linear* denoiser of the retained
/// data, and in addition what the model loses more than that denoiser on the control points.
/// Forgetting is steered to the larger of the prediction and the model's own loss before the run
/// ([`levels`](Self::levels)): a request to forget a point never makes the model know it better.
///
/// # Limits
/// The control points must be like the retained ones, and unseen. For 64 images that a model of
/// digits never saw, the prediction was off by 4 to 6 % on average from `t = 600` of 1,000 on, and
/// below by a tenth (`t = 25`) to a quarter (250 and 400), most for images in negative. The loss of
/// a point that was memorised is harder to predict. See the repository's `docs/results.md`.
///
/// # Example
/// ```
/// # use burn::module::Module;
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{DdpmScheduler, Denoiser, SissTrainer};
/// # #[derive(Module, Debug)]
/// # struct Model { linear: Linear }
/// # impl Denoiser<2> for Model {
/// #     type Condition = ();
/// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> { self.linear.forward(noisy) }
/// # }
/// # let device = Device::flex();
/// # let model = Model { linear: LinearConfig::new(3, 3).init(&device) };
/// # let random = |rows: usize| Tensor::<2>::random([rows, 3], Distribution::Default, &device);
/// # let (retained, controls, forgotten) = (random(100), random(20), Tensor::zeros([1, 3], &device));
/// use siss::Steering;
/// use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData};
///
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let data = CounterfactualData::new(&retained, &controls, &forgotten);
/// let fit = Counterfactual::fit(&model, &scheduler, data, CounterfactualConfig::default())?;
/// assert!(fit.levels.level(0, 250.0)? > 0.0);
///
/// let trainer = SissTrainer::builder(model, scheduler)
///     .steering(Steering::new(fit.levels))
///     .build()?;
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Counterfactual {
    /// The losses to which forgetting is steered: the larger of the prediction and the model's own
    /// loss before the run.
    pub levels: Levels,
    /// The predicted losses `b`, by forgotten point and timestep of the levels' grid.
    pub predicted: Vec<Vec<f64>>,
    /// `L_θ(H) / (s² L*_H)` on all control points `H`, by timestep: below 1 where the network knows
    /// more than the ideal denoiser. Infinite where a noisy point is noise alone and the model
    /// predicts the noise.
    pub gains: Vec<f64>,
    /// Patch sizes of the ideal denoiser, in pixels, by timestep; empty for whole points.
    pub patches: Vec<usize>,
    /// How much the ideal denoiser's error on control points depends on the cut to the nearest
    /// retained images: the largest absolute logarithm of the change over the grid, or 0 if all
    /// images are used.
    pub cut_error: f64,
}

impl From<Counterfactual> for Levels {
    fn from(fit: Counterfactual) -> Self {
        fit.levels
    }
}

impl Counterfactual {
    /// Predicts from the current weights of the model.
    ///
    /// Pieces take `3ⁿ` forward passes with `n` spatial axes, of up to 32 control points and an
    /// eighth of the forgotten points' noises, at the timesteps where they are used.
    ///
    /// The retained data are read in chunks, a few times. Memory holds a few chunks, the
    /// reconstructions of at most a thousand rows, and one number for each pair of a retained point
    /// with a control or a forgotten point. Patches keep the retained data on the host.
    ///
    /// # Errors
    /// - [`Error::Empty`], [`Error::ShapeMismatch`], [`Error::OutOfRange`] and
    ///   [`Error::TimestepOutOfRange`] for data or settings that do not fit
    /// - [`Error::PredictionTypeDiffers`] if the scheduler's configuration names another prediction
    ///   type than the model's
    /// - [`Error::NonFiniteData`] for data with NaN or infinities
    /// - [`Error::NonFiniteParameter`] for a model with NaN or infinities
    /// - [`Error::ForgottenPointRetained`]
    /// - [`Error::MissingPart`] for a model with a condition and no [`Groups`](super::Groups);
    ///   [`Error::UnexplainedPoint`]
    /// - [`Error::InvalidSetting`] if the gain on the control points is not a positive number, or
    ///   for patches of points that are not of rank 4
    /// - [`Error::DeviceMismatch`] if model and data are on different devices
    /// - the errors of the retained set
    pub fn fit<const D: usize, M: Denoiser<D>>(
        model: &M,
        scheduler: &dyn Scheduler,
        data: CounterfactualData<'_, D, M::Condition>,
        config: CounterfactualConfig,
    ) -> Result<Self> {
        Self::fit_with_progress(model, scheduler, data, config, |_| {})
    }

    /// Like [`fit`](Self::fit), and tells `progress` the completed share, from 0 to 1.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit).
    pub fn fit_with_progress<const D: usize, M: Denoiser<D>>(
        model: &M,
        scheduler: &dyn Scheduler,
        data: CounterfactualData<'_, D, M::Condition>,
        config: CounterfactualConfig,
        mut progress: impl FnMut(f64),
    ) -> Result<Self> {
        data.check()?;
        config.check(D)?;
        let kind = model.prediction_type();
        check_prediction_type(kind, "the scheduler", scheduler.prediction_type())?;
        let timesteps = match &config.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => default_timesteps(scheduler),
        };
        check_timesteps(&timesteps)?;
        let scales = scheduler.scales(&timesteps)?;
        check_model(model, data.controls)?;
        refuse_common_points(data.retained, data.forgotten)?;
        let retained = Flat(data.retained);
        let host = match config.form {
            IdealForm::Whole => Vec::new(),
            IdealForm::Patches { .. } => on_host(&retained, &data.controls.device())?,
        };
        let shape = &data.controls.dims()[1..];
        let forms = |ideal| Forms::new(ideal, &config.form, &host, shape);
        let [forgotten, controls] = ideals(&retained, &data)?;
        let (forgotten, controls) = (forms(forgotten)?, forms(controls)?);
        let probe = Probe {
            model: model.valid(),
            timesteps: &timesteps,
            scales: &scales,
            data,
            config: &config,
        };
        let in_pieces = InPieces::new(&probe);
        let rows = in_pieces.as_ref().map_or(0, InPieces::rows);
        let progress = &mut Progress {
            tell: &mut progress,
            timesteps: timesteps.len(),
            done: 0,
            total: timesteps.len() * (Measured::rows(&probe, &forgotten, &controls) + rows),
        };
        let measured = Measured::new(&probe, &forgotten, &controls, progress)?;
        let caps = Caps::new(&probe, &retained, &measured.control_losses)?;
        let prediction = Prediction {
            timesteps: &timesteps,
            measured: &measured,
            caps: &caps,
            squares: config.control_noises * shape.iter().product::<usize>(),
            squared_slopes: (0..timesteps.len())
                .map(|index| probe.squared_slope(index))
                .collect(),
        };
        let gains = prediction.gains()?;
        let from_pieces = match in_pieces {
            Some(in_pieces) => in_pieces.over_grid(&gains, progress)?,
            None => vec![None; timesteps.len()],
        };
        let predicted = prediction.losses(&from_pieces)?;
        let levels = Levels::new(timesteps.clone(), prediction.levels(&predicted)?)?
            .with_own_losses(prediction.own_losses())?
            .with_origin(Origin::new(kind, &scales))?;
        Ok(Self {
            levels,
            gains,
            predicted,
            patches: measured.patches,
            cut_error: measured.cut_error,
        })
    }

    /// The timesteps of the grid at which a point is steered to the model's own loss.
    ///
    /// The prediction is no higher there, so there is nothing of the point to forget.
    pub fn kept_timesteps(&self, forget_id: u64) -> Vec<f64> {
        let Ok(point) = usize::try_from(forget_id) else {
            return Vec::new();
        };
        let levels = self.levels.values().get(point).into_iter().flatten();
        let predicted = self.predicted.get(point).into_iter().flatten();
        let pairs = self.levels.timesteps().iter().zip(levels.zip(predicted));
        let kept = pairs.filter(|(_, (level, predicted))| level > predicted);
        kept.map(|(&timestep, _)| timestep).collect()
    }
}

fn check_model<const D: usize>(model: &impl Denoiser<D>, points: &Tensor<D>) -> Result<()> {
    if let Some(of_model) = model.devices().first() {
        check_device("points", of_model, &points.device())?;
    }
    model.check_input(points.dims())?;
    check_parameters(model)
}

/// The ideal denoisers of the forgotten and of the control points.
fn ideals<'a, const D: usize, C>(
    retained: &'a Flat<'_, D>,
    data: &CounterfactualData<'_, D, C>,
) -> Result<[Ideal<'a>; 2]> {
    let mut forgotten = Ideal::new(retained, flat(data.forgotten))?;
    let mut controls = Ideal::new(retained, flat(data.controls))?.without_duplicates();
    if let Some(groups) = &data.groups {
        forgotten = forgotten.within_groups(groups.retained, groups.forgotten);
        controls = controls.within_groups(groups.retained, groups.controls);
    }
    let keys = data.groups.as_ref();
    for (what, ideal, keys) in [
        ("forgotten", &forgotten, keys.map(|keys| keys.forgotten)),
        ("control", &controls, keys.map(|keys| keys.controls)),
    ] {
        if let Some(point) = ideal.first_unexplained()? {
            return Err(Error::UnexplainedPoint {
                what,
                point,
                group: keys.map(|keys| keys[point]),
            });
        }
    }
    Ok([forgotten, controls])
}

/// Errors of the ideal denoisers and losses of the model, by timestep and point.
struct Measured {
    patches: Vec<usize>,
    cut_error: f64,
    /// `L*_H` and `L_θ(H)`.
    control_errors: Vec<Vec<f64>>,
    control_losses: Vec<Vec<LossMoments>>,
    /// `L*_a` and the model's own losses on the forgotten points.
    errors: Vec<Vec<f64>>,
    own: Vec<Vec<LossMoments>>,
}

impl Measured {
    /// How many rows are measured at every timestep.
    fn rows<const D: usize, M: Denoiser<D>>(
        probe: &Probe<'_, D, M>,
        forgotten: &Forms<'_>,
        controls: &Forms<'_>,
    ) -> usize {
        let config = probe.config;
        let [points, probes] = [forgotten, controls].map(|forms| forms.ideal.shape()[0]);
        2 * points * config.noises
            + 2 * probes * config.control_noises
            + config.form.sizes().len() * probes.min(PROBES)
    }

    fn new<const D: usize, M: Denoiser<D>>(
        probe: &Probe<'_, D, M>,
        forgotten: &Forms<'_>,
        controls: &Forms<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        let (data, config) = (&probe.data, probe.config);
        let patches = probe.choose_patches(controls, progress)?;
        let same = same_patches(&patches, probe.timesteps.len());
        let noises = config.control_noises;
        Ok(Self {
            control_errors: probe.ideal_errors(controls, &same, noises, progress)?,
            control_losses: probe.model_losses(
                data.controls,
                data.control_condition,
                noises,
                progress,
            )?,
            cut_error: probe.cut_error(controls, &same)?,
            errors: probe.ideal_errors(forgotten, &same, config.noises, progress)?,
            own: probe.model_losses(
                data.forgotten,
                data.forgotten_condition,
                config.noises,
                progress,
            )?,
            patches,
        })
    }
}

/// The measurements, and the prediction that follows from them.
struct Prediction<'a> {
    timesteps: &'a [f64],
    measured: &'a Measured,
    caps: &'a Caps,
    /// How many make up the loss of a control point.
    squares: usize,
    /// A loss in the space of the output, divided by that of the clean point, by timestep.
    squared_slopes: Vec<f64>,
}

impl Prediction<'_> {
    fn points(&self) -> usize {
        self.measured.errors[0].len()
    }

    /// Collects one number per forgotten point and timestep.
    fn over_grid(&self, at: impl Fn(usize, usize) -> Result<f64>) -> Result<Vec<Vec<f64>>> {
        let of_point = |point| {
            (0..self.timesteps.len())
                .map(|index| at(point, index))
                .collect()
        };
        (0..self.points()).map(of_point).collect()
    }

    /// `b` of each forgotten point, from the control points that represent it, and by timestep from
    /// pieces of the points, where there are such losses.
    fn losses(&self, from_pieces: &[Option<Vec<f64>>]) -> Result<Vec<Vec<f64>>> {
        self.over_grid(|point, index| {
            let controls = self.of_controls(index, self.caps.members(point))?;
            let gain = self.gain(index, &controls)?;
            let from_ideal = gain.loss(self.measured.errors[index][point]);
            let loss = match (gain, &from_pieces[index]) {
                (Gain::Line(_), Some(losses)) => {
                    let own = self.measured.own[index][point].mean;
                    of_both(losses[point], from_ideal, own)
                }
                _ => from_ideal,
            };
            let loss = loss.min(self.caps.at(point, index));
            check_range("a predicted loss", loss, loss > 0.0, "a positive number")
        })
    }

    /// The larger of the predicted loss and the model's own.
    fn levels(&self, predicted: &[Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        self.over_grid(|point, index| {
            let own = &self.measured.own[index][point];
            let level = predicted[point][index].max(own.at_rest());
            let requirement = "a positive number: the model's loss must be finite";
            check_range("a level", level, level > 0.0, requirement)
        })
    }

    fn own_losses(&self) -> Vec<Vec<f64>> {
        let of_point = |point: usize| {
            let own = self.measured.own.iter();
            own.map(|of_timestep| of_timestep[point].mean).collect()
        };
        (0..self.points()).map(of_point).collect()
    }

    /// The ratio over all control points, by timestep.
    fn gains(&self) -> Result<Vec<f64>> {
        let everyone: Vec<usize> = (0..self.measured.control_losses[0].len()).collect();
        let at = |(index, squared_slope): (usize, &f64)| {
            let (errors, losses) = self.of_controls(index, &everyone)?;
            Ok(mean(&losses) / (squared_slope * mean(&errors)))
        };
        self.squared_slopes.iter().enumerate().map(at).collect()
    }

    fn gain(&self, index: usize, (errors, losses): &(Vec<f64>, Vec<f64>)) -> Result<Gain> {
        let fits_line = self.squares >= FEWEST_SQUARES;
        Gain::new((errors, losses), self.squared_slopes[index], fits_line)
    }

    /// The ideal denoiser's errors and the model's losses on some control points.
    fn of_controls(&self, index: usize, members: &[usize]) -> Result<(Vec<f64>, Vec<f64>)> {
        let (errors, losses) = (
            &self.measured.control_errors[index],
            &self.measured.control_losses[index],
        );
        let pairs = members.iter();
        let (errors, losses): (Vec<_>, Vec<_>) = pairs
            .map(|&member| (errors[member], losses[member].mean))
            .unzip();
        let (ideal, loss) = (mean(&errors), mean(&losses));
        let gain = loss / ideal;
        if gain.is_finite() && gain > 0.0 {
            return Ok((errors, losses));
        }
        Err(Error::InvalidSetting {
            what: format!(
                "at timestep {} the ideal denoiser's error on the control points is {ideal}, and the model's loss {loss}",
                self.timesteps[index]
            ),
            remedy: "give control points that differ from the retained ones, and a model whose output is finite",
        })
    }
}

/// A loss predicted from pieces of a point and from the ideal denoiser. A model that knows the
/// point well knows something of its pieces too, so these say too little, but not too much.
fn of_both(from_pieces: f64, from_ideal: f64, own: f64) -> f64 {
    let unknown = (own / from_pieces).min(1.0);
    // NaN is not higher than anything, and stays NaN.
    let highest = if from_pieces >= from_ideal {
        from_pieces
    } else {
        from_ideal
    };
    (unknown * from_pieces.ln() + (1.0 - unknown) * highest.ln()).exp()
}

#[cfg(test)]
mod tests {
    use super::of_both;

    #[test]
    fn the_better_a_point_is_known_the_less_its_pieces_count() {
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
        // Known no better than others, or worse.
        assert!(close(of_both(0.2, 0.8, 0.2), 0.2) && close(of_both(0.2, 0.8, 5.0), 0.2));
        assert!(close(of_both(0.2, 0.8, 0.1), 0.4), "half way in logarithms");
        assert!(close(of_both(0.2, 0.8, 0.0), 0.8));
        assert!(
            close(of_both(0.2, 0.1, 0.0), 0.2),
            "never below that of pieces"
        );
        assert!(of_both(f64::NAN, 0.1, 0.1).is_nan() && of_both(0.1, f64::NAN, 0.05).is_nan());
    }
}
