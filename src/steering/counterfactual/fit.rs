//! Fitting a [`CounterfactualLoss`] to a model and its data.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::form::{Forms, IdealForm};
use super::groups::{Groups, members};
use super::ideal::{Flat, Ideal, chunks};
use super::linear::LinearDenoisers;
use super::probe::{LossMoments, PROBES, Probe, Progress, same_patches};
use super::{CounterfactualLoss, check_timesteps};
use crate::data::finite::{check_finite, check_finite_values};
use crate::data::points::check_not_empty;
use crate::data::{Points, Side};
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, check_device, check_prediction_type, check_range, check_shape};
use crate::host::{read_f32, to_f32};
use crate::parameters::check_parameters;
use crate::process::{Scheduler, SchedulerExt};

/// How a [`CounterfactualLoss`] is fitted.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `timesteps` | 16 of the scheduler's range, evenly in the logarithm of signal over noise | where losses are compared | ascending, 2 or more |
/// | `noises` | 64 | noises over which a forgotten point's ideal error is averaged | ≥ 1 |
/// | `control_noises` | 1 | noises for each control point | ≥ 1 |
/// | `seed` | 0 | key of the noises | |
/// | `micro_batch_size` | 64 | rows run at a time | ≥ 1 |
/// | `form` | `Whole` | which ideal denoiser the prediction starts from | |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CounterfactualConfig {
    /// Timesteps of the grid, ascending; `None` for 16 of the scheduler's range.
    pub timesteps: Option<Vec<f64>>,
    /// Noises over which a forgotten point's ideal error is averaged.
    pub noises: usize,
    /// Noises for each control point.
    pub control_noises: usize,
    /// Key of the noises.
    pub seed: u64,
    /// Rows run at a time.
    pub micro_batch_size: usize,
    /// Which ideal denoiser the prediction starts from.
    pub form: IdealForm,
}

impl Default for CounterfactualConfig {
    fn default() -> Self {
        Self {
            timesteps: None,
            noises: 64,
            control_noises: 1,
            seed: 0,
            micro_batch_size: 64,
            form: IdealForm::Whole,
        }
    }
}

/// What the prediction is made from.
#[derive(Debug, Clone, Copy)]
pub struct CounterfactualData<'a, const D: usize, C = ()> {
    /// The data without the forgotten points, `[n, …]`: a tensor, or a [`PointLoader`](crate::data::PointLoader) for data that do not fit
    /// the memory.
    pub retained: &'a dyn Points<D>,
    /// Points of the same kind that the model has never seen, `[c, …]`. For want of such points, retained ones: each is left
    /// out of its own ideal denoiser, but the model has seen it, so the prediction comes out too low by what it remembers of it.
    pub controls: &'a Tensor<D>,
    /// What the model is conditioned on at the control points, `c` rows.
    pub control_condition: &'a C,
    /// The points to be forgotten, `[k, …]`; point `i` has id `i`.
    pub forgotten: &'a Tensor<D>,
    /// What the model is conditioned on at the forgotten points, `k` rows.
    pub forgotten_condition: &'a C,
    /// Which points may explain each other: needed for a model with a condition.
    pub groups: Option<Groups<'a>>,
}

impl CounterfactualLoss {
    /// Predicts from the model as it is now. `progress` is told the share that is done.
    ///
    /// The retained data are gone through in chunks, a few times: memory is that of a few chunks, of the reconstructions of a
    /// thousand rows at most, and of one number for each pair of a retained point with a control or a forgotten point. Patches hold
    /// the retained data on the host.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::ShapeMismatch`], [`Error::OutOfRange`] and [`Error::TimestepOutOfRange`] for what does not fit;
    /// [`Error::PredictionTypeDiffers`] for a scheduler whose configuration says otherwise than the model;
    /// [`Error::NonFiniteData`] for data with NaN or infinities; [`Error::ForgottenPointRetained`];
    /// [`Error::NonFiniteParameter`] for a model with NaN or infinities;
    /// [`Error::InvalidSetting`] for a model with a condition and no [`Groups`], if the model's loss on the control points is no
    /// positive number, or if model and data are on different devices; those of the retained set.
    pub fn fit<const D: usize, M: Denoiser<D>>(
        model: &M,
        scheduler: &dyn Scheduler,
        data: CounterfactualData<'_, D, M::Condition>,
        config: &CounterfactualConfig,
        mut progress: impl FnMut(f64),
    ) -> Result<Self> {
        check_data(&data)?;
        check_config(config)?;
        config.form.check(D)?;
        let prediction_type = model.prediction_type();
        check_prediction_type(
            prediction_type,
            "the scheduler",
            scheduler.prediction_type(),
        )?;
        let timesteps = match &config.timesteps {
            Some(timesteps) => timesteps.clone(),
            None => default_timesteps(scheduler),
        };
        check_timesteps(&timesteps)?;
        let scales = scheduler.scales(&timesteps)?;
        let device = data.controls.device();
        if let Some(of_model) = model.devices().first() {
            check_device("points", of_model, &device)?;
        }
        model.check_input(data.controls.dims())?;
        check_parameters(model)?;
        let retained = Flat(data.retained);
        let host = match config.form {
            IdealForm::Whole => Vec::new(),
            IdealForm::Patches { .. } => on_host(&retained, &device)?,
        };
        let [forgotten, controls] = ideals(&retained, &data)?;
        let shape = &data.controls.dims()[1..];
        let forgotten = Forms::new(forgotten, &config.form, &host, shape)?;
        let controls = Forms::new(controls, &config.form, &host, shape)?;
        let probe = Probe {
            model: model.valid(),
            timesteps: &timesteps,
            scales: &scales,
            data,
            config,
        };
        let (noises, control_noises) = (config.noises, config.control_noises);
        let [points, probes] = [&forgotten, &controls].map(|forms| forms.ideal.shape()[0]);
        let mut progress = Progress {
            tell: &mut progress,
            done: 0,
            total: 2 * points * noises
                + 2 * probes * control_noises
                + config.form.sizes().len() * probes.min(PROBES),
        };
        let progress = &mut progress;
        let patches = probe.choose_patches(&controls, progress)?;
        let same = same_patches(&patches, timesteps.len());
        let control_errors = probe.ideal_errors(&controls, &same, control_noises, progress)?;
        let data = &probe.data;
        let condition = data.control_condition;
        let control_losses =
            probe.model_losses(data.controls, condition, control_noises, progress)?;
        let cut_error = probe.cut_error(&controls, &same)?;
        let errors = probe.ideal_errors(&forgotten, &same, noises, progress)?;
        let condition = data.forgotten_condition;
        let own = probe.model_losses(data.forgotten, condition, noises, progress)?;
        let caps = Caps::new(&probe, &retained, &control_losses)?;

        let gain = |index: usize, members: &[usize]| {
            let losses = control_losses[index]
                .iter()
                .map(|loss| loss.mean)
                .collect::<Vec<_>>();
            let ideal = &control_errors[index];
            gain(
                mean_of(&losses, members),
                mean_of(ideal, members),
                timesteps[index],
            )
        };
        let everyone: Vec<usize> = (0..probes).collect();
        let grid = 0..timesteps.len();
        let gains: Result<Vec<f64>> = grid.clone().map(|index| gain(index, &everyone)).collect();
        let predict = |point: usize, index: usize| {
            let gain = gain(index, caps.members(point))?;
            let level = (errors[index][point] * gain).min(caps.at(point, index));
            check_range("a predicted loss", level, level > 0.0, "a positive number")
        };
        let over_grid = |at: &dyn Fn(usize) -> Result<f64>| grid.clone().map(at).collect();
        let predicted: Result<Vec<Vec<f64>>> = (0..points)
            .map(|point| over_grid(&|index| predict(point, index)))
            .collect();
        let predicted = predicted?;
        let steered_to = |point: usize, index: usize| {
            let level = predicted[point][index].max(own[index][point].at_rest());
            let requirement = "a positive number: the model's loss must be finite";
            check_range("a level", level, level > 0.0, requirement)
        };
        let levels: Result<Vec<Vec<f64>>> = (0..points)
            .map(|point| over_grid(&|index| steered_to(point, index)))
            .collect();
        let own_losses = |point: usize| grid.clone().map(|index| own[index][point].mean).collect();
        Ok(Self {
            levels: levels?,
            own_losses: (0..points).map(own_losses).collect(),
            predicted,
            gains: gains?,
            signal_scales: scales.signal.clone(),
            noise_scales: scales.noise.clone(),
            timesteps: timesteps.clone(),
            prediction_type: Some(prediction_type),
            patches,
            cut_error,
        })
    }
}

/// The ideal denoisers of the forgotten and of the control points.
fn ideals<'a, const D: usize, C>(
    retained: &'a Flat<'_, D>,
    data: &CounterfactualData<'_, D, C>,
) -> Result<[Ideal<'a>; 2]> {
    let mut forgotten = Ideal::new(retained, flat(data.forgotten))?;
    if let Some((forget, retain)) = forgotten.first_duplicate()? {
        return Err(Error::ForgottenPointRetained { forget, retain });
    }
    let mut controls = Ideal::new(retained, flat(data.controls))?.without_duplicates();
    if let Some(groups) = &data.groups {
        forgotten = forgotten.within_groups(groups.retained, groups.forgotten);
        controls = controls.within_groups(groups.retained, groups.controls);
    }
    for (what, ideal) in [("forgotten", &forgotten), ("control", &controls)] {
        if let Some(point) = ideal.first_unexplained()? {
            return Err(Error::InvalidSetting {
                what: format!(
                    "{what} point {point} has no retained point that may explain it but itself"
                ),
                remedy: "give more retained points, of its group where there are groups",
            });
        }
    }
    Ok([forgotten, controls])
}

/// The most that a point may be predicted to cost: the loss of the best linear denoiser of the retained data, times what the
/// model's is above that on control points. Nearest neighbours say nothing of a point that is far from all data.
struct Caps {
    /// By timestep and point.
    caps: Vec<Vec<f64>>,
    /// By point, the control points that stand for it.
    members: Vec<Vec<usize>>,
}

impl Caps {
    fn new<const D: usize, M: Denoiser<D>>(
        probe: &Probe<'_, D, M>,
        retained: &Flat<'_, D>,
        control_losses: &[Vec<LossMoments>],
    ) -> Result<Self> {
        let data = &probe.data;
        let device = data.controls.device();
        let elements = retained.dims()[1];
        let points = read_f32(flat(data.forgotten), "the forgotten points")?;
        let controls = read_f32(flat(data.controls), "the control points")?;
        let control = |index: usize| &controls[index * elements..][..elements];
        let groups = data.groups.as_ref();
        let wanted = groups.map_or(&[][..], |groups| groups.forgotten);
        let keys = groups.map(|groups| groups.retained);
        let denoisers = LinearDenoisers::of(retained, keys, wanted, &device)?;
        let ratios = probe.scales.ratios();
        let (mut caps, mut all_members) = (vec![Vec::new(); ratios.len()], Vec::new());
        for (index, point) in points.chunks(elements).enumerate() {
            let group = groups.map(|groups| groups.forgotten[index]);
            let of_group = group.and_then(|group| denoisers.of_group.get(&group));
            let linear = of_group.unwrap_or(&denoisers.all);
            let keys = groups.map(|groups| groups.controls);
            let members = members(keys, group, data.controls.dims()[0]);
            for (at, &ratio) in ratios.iter().enumerate() {
                let errors = members
                    .iter()
                    .map(|&member| linear.error(control(member), ratio));
                let error = errors.sum::<f64>();
                let loss = members
                    .iter()
                    .map(|&member| control_losses[at][member].mean);
                let above = loss.sum::<f64>() / error;
                let scale = above.max(probe.squared_slope(at));
                caps[at].push(linear.error(point, ratio) * scale);
            }
            all_members.push(members);
        }
        Ok(Self {
            caps,
            members: all_members,
        })
    }

    fn members(&self, point: usize) -> &[usize] {
        &self.members[point]
    }

    fn at(&self, point: usize, index: usize) -> f64 {
        self.caps[index][point]
    }
}

/// All points of a set on the host.
fn on_host<const D: usize>(points: &Flat<'_, D>, device: &Device) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(points.dims().iter().product());
    for chunk in chunks(points, device) {
        values.extend(read_f32(chunk?.1, "the retained points")?);
    }
    Ok(values)
}

/// All elements of a point in one dimension.
fn flat<const D: usize>(points: &Tensor<D>) -> Tensor<2> {
    let elements: usize = points.dims()[1..].iter().product();
    to_f32(points.clone().inner()).reshape([points.dims()[0], elements])
}

fn mean_of(values: &[f64], members: &[usize]) -> f64 {
    members.iter().map(|&member| values[member]).sum::<f64>() / members.len() as f64
}

/// Timesteps of the default grid, at most.
const GRID: usize = 16;

/// Beyond these logarithms of signal over noise there is nothing to see of the one or of the other.
const LOG_RATIOS: [f64; 2] = [-7.0, 7.0];

/// Timesteps between the ends of the range, evenly in the logarithm of signal over noise, in which losses change evenly.
fn default_timesteps(scheduler: &dyn Scheduler) -> Vec<f64> {
    let range = scheduler.time_range();
    let log_ratio = |share: f64| {
        let timestep = range.at(share);
        let ratio = scheduler.signal_scale(timestep) / scheduler.noise_scale(timestep);
        ratio.ln().clamp(LOG_RATIOS[0], LOG_RATIOS[1])
    };
    let (clean, noisy) = (log_ratio(0.0), log_ratio(1.0));
    let inner = (1..GRID - 1).map(|index| {
        let wanted = clean + (noisy - clean) * index as f64 / (GRID - 1) as f64;
        range.at(first_share(|share| log_ratio(share) <= wanted))
    });
    let mut timesteps: Vec<f64> = inner.chain([range.at(0.0), range.at(1.0)]).collect();
    timesteps.sort_by(f64::total_cmp);
    timesteps.dedup();
    timesteps
}

/// The smallest share from 0 to 1 at which a condition holds that holds from there on.
fn first_share(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

fn check_config(config: &CounterfactualConfig) -> Result<()> {
    for (name, value) in [
        ("noises", config.noises),
        ("control_noises", config.control_noises),
        ("micro_batch_size", config.micro_batch_size),
    ] {
        check_range(name, value as f64, value >= 1, "at least 1")?;
    }
    Ok(())
}

fn check_data<const D: usize, C: Condition>(data: &CounterfactualData<'_, D, C>) -> Result<()> {
    check_not_empty(data.retained, "the retained set")?;
    let shape = data.retained.dims();
    for (what, points, side) in [
        ("the control set", data.controls, Side::Retain),
        ("the forget set", data.forgotten, Side::Forget),
    ] {
        check_not_empty(points, what)?;
        let remedy = "bring all points to the model's input shape";
        check_shape(what, &shape[1..], &points.dims()[1..], remedy)?;
        check_device("points", &data.controls.device(), &points.device())?;
        check_finite(points, side)?;
    }
    check_finite_points(data.retained, &data.controls.device())?;
    let counts = [shape[0], data.controls.dims()[0], data.forgotten.dims()[0]];
    for (what, condition, rows) in [
        ("the control condition", data.control_condition, counts[1]),
        (
            "the condition of the forgotten points",
            data.forgotten_condition,
            counts[2],
        ),
    ] {
        let found = condition.check_rows(rows).err().unwrap_or(rows);
        check_shape(
            what,
            &[rows],
            &[found],
            "give one condition for every point",
        )?;
    }
    match &data.groups {
        Some(groups) => groups.check(counts),
        None if C::IS_EMPTY => Ok(()),
        None => Err(Error::InvalidSetting {
            what:
                "the model has a condition, and it is not said which points may explain each other"
                    .into(),
            remedy: "give `CounterfactualData::groups`: a key for each point, as its class",
        }),
    }
}

/// # Errors
/// [`Error::NonFiniteData`], and those of the set.
fn check_finite_points<const D: usize>(points: &dyn Points<D>, device: &Device) -> Result<()> {
    for chunk in chunks(&Flat(points), device) {
        let (first, chunk) = chunk?;
        let rows = chunk.dims()[0];
        let values = read_f32(chunk, "the retained points")?;
        check_finite_values(&values, first, rows, Side::Retain)?;
    }
    Ok(())
}

/// How much better than the ideal denoiser the model is.
fn gain(loss: f64, ideal: f64, timestep: f64) -> Result<f64> {
    let gain = loss / ideal;
    if gain.is_finite() && gain > 0.0 {
        return Ok(gain);
    }
    Err(Error::InvalidSetting {
        what: format!(
            "at timestep {timestep} the ideal denoiser's error on the control points is {ideal}, and the model's loss {loss}"
        ),
        remedy: "give control points that differ from the retained ones, and a model whose output is finite",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use crate::process::{DdpmScheduler, FlowMatching, PredictionType, Scales, TimeRange};
    use burn::module::{Module, Param};
    use burn::tensor::Int;

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    /// Predicts noise as the posterior mean of standard Gaussian data would, times a factor on the error it leaves.
    #[derive(Module, Debug)]
    struct Gaussian {
        excess: Param<Tensor<1>>,
    }

    impl Denoiser<2> for Gaussian {
        type Condition = ();

        fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
            // With unit variance in every direction, E[ε | m] = σ m.
            let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
            let sigma = scheduler().noise_scale(t[0].into());
            noisy * sigma + self.excess.val().inner().reshape([1, 1])
        }
    }

    fn scheduler() -> DdpmScheduler {
        DdpmScheduler::linear(1000).unwrap()
    }

    fn points(seed: u64, rows: usize) -> Tensor<2> {
        normal_noise([rows, 1], seed, 0, 0, Stream::Noise, &Device::flex())
    }

    /// The points with a second element that is the same for all: no two sets have a point in common.
    fn beside(points: Tensor<2>, value: f64) -> Tensor<2> {
        let second = points.zeros_like() + value;
        Tensor::cat(vec![points, second], 1)
    }

    fn fit(excess: f32, forgotten: &Tensor<2>) -> CounterfactualLoss {
        let model = Gaussian {
            excess: Param::from_tensor(Tensor::from_data([excess], &Device::flex())),
        };
        let data = CounterfactualData {
            retained: &beside(points(1, 20_000), 0.0),
            controls: &beside(points(2, 4_000), 1e-3),
            control_condition: &(),
            forgotten,
            forgotten_condition: &(),
            groups: None,
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![300.0, 600.0]),
            noises: 2_000,
            ..CounterfactualConfig::default()
        };
        CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {}).unwrap()
    }

    /// One dimension, many points: everything is known. The ideal denoiser says `x̂ = γ m`, so its error on `a` is
    /// `E (γ(γ a + σ ε) − a)² = σ⁴ a² + γ² σ²`, on the data `σ²`; the network's loss on the data is `γ²` in noise. In the second
    /// element, which is 0, the ideal denoiser has no error, and the network that of `σ² ε` for `ε`, `γ⁴`.
    #[test]
    fn the_prediction_for_gaussian_data_is_the_closed_form() {
        let a = 1.7f64;
        let forgotten = Tensor::<2>::from_data([[a as f32, 1e-3]], &Device::flex());
        for excess in [0.0f64, 0.5] {
            let predicted = fit(excess as f32, &forgotten);
            for t in [300.0, 600.0] {
                let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
                let network = (gamma.powi(2) + gamma.powi(4)) / 2.0 + excess * excess;
                let ideal = sigma.powi(4) * a * a + gamma * gamma * sigma * sigma;
                let expected = ideal * network / (sigma * sigma);
                let index = predicted
                    .timesteps()
                    .iter()
                    .position(|&at| at == t)
                    .unwrap();
                let level = predicted.predicted()[0][index];
                assert!(
                    (level / expected - 1.0).abs() < 0.06,
                    "{t}: {level} {expected}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_predicted_from_is_refused() {
        let (retained, forgotten) = (points(1, 50), points(3, 2));
        let model = Gaussian {
            excess: Param::from_tensor(Tensor::from_data([0.0], &Device::flex())),
        };
        let predict = |controls: &Tensor<2>, config: &CounterfactualConfig| {
            let data = CounterfactualData {
                retained: &retained,
                controls,
                control_condition: &(),
                forgotten: &forgotten,
                forgotten_condition: &(),
                groups: None,
            };
            CounterfactualLoss::fit(&model, &scheduler(), data, config, |_| {})
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![0.0, 1.0]),
            ..CounterfactualConfig::default()
        };
        let own = retained.clone().narrow(0, 5, 3);
        assert!(predict(&own, &config).is_ok());
        let others = points(2, 3);
        let data = CounterfactualData {
            retained: &retained,
            controls: &others,
            control_condition: &(),
            forgotten: &retained.clone().narrow(0, 9, 1),
            forgotten_condition: &(),
            groups: None,
        };
        let error =
            CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {}).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ForgottenPointRetained {
                    forget: 0,
                    retain: 9
                }
            ),
            "{error}"
        );
        assert!(predict(&(own.clone() / 0.0), &config).is_err());
        let none = CounterfactualConfig {
            noises: 0,
            ..config
        };
        let error = predict(&own, &none).unwrap_err().to_string();
        assert!(error.contains("noises is 0"), "{error}");
    }

    /// The ideal denoiser of patches of three pixels, as a model.
    #[derive(Module, Debug)]
    struct Patches {
        retained: Param<Tensor<4>>,
        #[module(skip)]
        kind: PredictionType,
    }

    impl Denoiser<4> for Patches {
        type Condition = ();

        fn predict(&self, noisy: Tensor<4>, timesteps: Tensor<1>, _: &()) -> Tensor<4> {
            let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
            let scales = scheduler().scales(&[t[0].into()]).unwrap();
            let (shape, retained) = (noisy.dims(), flat(&self.retained.val()));
            let host = retained.to_data().try_to_vec().unwrap();
            // At the point `m/γ` without noise.
            let points = flat(&noisy) / scales.signal[0];
            let ideal = Ideal::new(&retained, points.clone()).unwrap();
            let form = IdealForm::patches();
            let forms = Forms::new(ideal, &form, &host, &shape[1..]).unwrap();
            let rows: Vec<usize> = (0..shape[0]).collect();
            let noise = points.zeros_like();
            let means = forms.posterior(Some(3));
            let mean = means
                .means(&rows, &noise, &scales.ratios())
                .unwrap()
                .remove(0);
            let clean = mean.reshape(shape);
            let noise = (noisy - clean.clone() * scales.signal[0]) / scales.noise[0];
            let scales = Scales {
                signal: vec![scales.signal[0]; shape[0]],
                noise: vec![scales.noise[0]; shape[0]],
            };
            scales.target(self.kind, &clean, &noise)
        }

        fn prediction_type(&self) -> PredictionType {
            self.kind
        }
    }

    fn images(seed: u64, rows: usize) -> Tensor<4> {
        let shape = [rows, 1, 6, 6];
        normal_noise(shape, seed, 0, 0, Stream::Noise, &Device::flex())
    }

    /// Fits to the model of patches of three pixels, which chooses from patches of these sizes.
    fn fit_patches(
        kind: PredictionType,
        sizes: Vec<usize>,
        nearest: usize,
    ) -> Result<CounterfactualLoss> {
        let retained = images(1, 300);
        let model = Patches {
            retained: Param::from_tensor(retained.clone()),
            kind,
        };
        let data = CounterfactualData {
            retained: &retained,
            controls: &images(2, 40),
            control_condition: &(),
            forgotten: &images(3, 2),
            forgotten_condition: &(),
            groups: None,
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![200.0, 400.0, 600.0]),
            form: IdealForm::Patches { sizes, nearest },
            ..CounterfactualConfig::default()
        };
        CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {})
    }

    /// A model that is the ideal denoiser of patches of a size: that size is found, and nothing is gained over it but the size
    /// of an error of the output that belongs to one of the clean point.
    #[test]
    fn the_patch_is_that_of_the_model_whatever_it_predicts() {
        let scale = |kind, t| {
            let (gamma, sigma) = (scheduler().signal_scale(t), scheduler().noise_scale(t));
            match kind {
                PredictionType::Epsilon => gamma / sigma,
                PredictionType::Sample => 1.0,
                PredictionType::Velocity => 1.0 / sigma,
                PredictionType::FlowVelocity => (gamma + sigma) / sigma,
            }
        };
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
            PredictionType::FlowVelocity,
        ] {
            let predicted = fit_patches(kind, vec![1, 5, 3, 9], 300).unwrap();
            assert_eq!(predicted.patches(), [3, 3, 3], "{kind:?}");
            for (gain, &t) in predicted.gains().iter().zip(predicted.timesteps()) {
                let expected = f64::powi(scale(kind, t), 2);
                assert!((gain / expected - 1.0).abs() < 1e-3, "{kind:?} {gain}");
            }
        }
    }

    #[test]
    fn patches_are_saved_and_their_cut_is_measured() {
        let fit = |sizes, nearest| fit_patches(PredictionType::Sample, sizes, nearest);
        let predicted = fit(vec![3], 300).unwrap();
        assert_eq!(predicted.cut_error(), 0.0);
        let text = serde_json::to_string(&predicted).unwrap();
        let read: CounterfactualLoss = serde_json::from_str(&text).unwrap();
        assert_eq!(read.patches(), predicted.patches());

        let cut = fit(vec![3], 100).unwrap();
        assert!(cut.cut_error() > 0.01, "{}", cut.cut_error());
        for (sizes, nearest, expected) in [
            (vec![], 10, "the number of patch sizes is 0"),
            (vec![3, 4], 10, "a patch size is 4"),
            (vec![3], 0, "nearest is 0"),
        ] {
            let error = fit(sizes, nearest).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(IdealForm::patches().check(3).is_err());
    }

    /// Against the errors over the nearest images and over all, where the cut raises the one and lowers the other.
    #[test]
    fn the_cut_error_is_the_largest_change_over_the_grid_in_either_direction() {
        let (retained, controls) = (images(1, 300), images(2, 8));
        let flattened = flat(&retained);
        let host = flattened.to_data().try_to_vec().unwrap();
        let forms = |nearest| {
            let ideal = Ideal::new(&flattened, flat(&controls)).unwrap();
            let sizes = vec![3, 9];
            let form = IdealForm::Patches { sizes, nearest };
            Forms::new(ideal, &form, &host, &[1, 6, 6]).unwrap()
        };
        let timesteps = [200.0, 400.0];
        let probe = Probe {
            model: Patches {
                retained: Param::from_tensor(retained.clone()),
                kind: PredictionType::Sample,
            },
            timesteps: &timesteps,
            scales: &scheduler().scales(&timesteps).unwrap(),
            data: CounterfactualData {
                retained: &retained,
                controls: &controls,
                control_condition: &(),
                forgotten: &controls,
                forgotten_condition: &(),
                groups: None,
            },
            config: &CounterfactualConfig::default(),
        };
        let parts = same_patches(&[3, 9], 2);
        let errors = |nearest| {
            let mut progress = Progress {
                tell: &mut |_| {},
                done: 0,
                total: 1,
            };
            let errors = probe.ideal_errors(&forms(nearest), &parts, 1, &mut progress);
            errors.unwrap()
        };
        let (cut, uncut) = (errors(20), errors(300));
        let change = |index: usize| (mean(&uncut[index]) / mean(&cut[index])).ln();
        let changes = [0, 1].map(change);
        assert!(-changes[0] > changes[1] && changes[1] > 0.0, "{changes:?}");
        let got = probe.cut_error(&forms(20), &parts).unwrap();
        assert!((got / -changes[0] - 1.0).abs() < 1e-4, "{got} {changes:?}");
    }

    /// Says what it is told, and a share of what it sees.
    #[derive(Module, Debug)]
    struct Told {
        #[module(skip)]
        share: f64,
        #[module(skip)]
        kind: PredictionType,
    }

    fn told(share: f64, kind: PredictionType) -> Told {
        Told { share, kind }
    }

    impl Denoiser<2> for Told {
        type Condition = Tensor<2>;

        fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, told: &Tensor<2>) -> Tensor<2> {
            noisy * self.share + told.clone()
        }

        fn prediction_type(&self) -> PredictionType {
            self.kind
        }
    }

    #[test]
    fn a_fit_does_not_depend_on_the_micro_batch_and_its_progress_ends_at_one() {
        let fit = |micro_batch_size| {
            let mut shares = Vec::new();
            let data = CounterfactualData {
                retained: &points(1, 50),
                controls: &points(2, 10),
                control_condition: &points(4, 10),
                forgotten: &points(3, 2),
                forgotten_condition: &points(5, 2),
                groups: Some(same_group(50, 10, 2)),
            };
            let config = CounterfactualConfig {
                noises: 8,
                control_noises: 2,
                micro_batch_size,
                ..CounterfactualConfig::default()
            };
            let model = told(0.5, PredictionType::Epsilon);
            let progress = |share| shares.push(share);
            let fitted = CounterfactualLoss::fit(&model, &scheduler(), data, &config, progress);
            assert!(
                shares.windows(2).all(|pair| pair[0] < pair[1]),
                "{shares:?}"
            );
            assert_eq!(shares.last(), Some(&1.0));
            fitted.unwrap()
        };
        let [whole, parts] = [64, 3].map(fit);
        let pairs = whole.levels().iter().zip(parts.levels());
        for (whole, parts) in pairs.flat_map(|(whole, parts)| whole.iter().zip(parts)) {
            assert!((whole / parts - 1.0).abs() < 1e-5, "{whole} {parts}");
        }
    }

    /// One group of so many retained, control and forgotten points.
    fn same_group(retained: usize, controls: usize, forgotten: usize) -> Groups<'static> {
        static KEYS: [u64; 64] = [7; 64];
        Groups {
            retained: &KEYS[..retained],
            controls: &KEYS[..controls],
            forgotten: &KEYS[..forgotten],
        }
    }

    #[test]
    fn a_condition_without_a_control_point_is_refused() {
        let data = CounterfactualData {
            retained: &points(1, 50),
            controls: &points(2, 10),
            control_condition: &points(4, 11),
            forgotten: &points(3, 2),
            forgotten_condition: &points(5, 2),
            groups: Some(same_group(50, 10, 2)),
        };
        let (model, config) = (
            told(0.5, PredictionType::Epsilon),
            CounterfactualConfig::default(),
        );
        let error = CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("the control condition"), "{error}");
    }

    /// With the control points as the forgotten ones, and as many noises, the levels' mean is the model's loss on them.
    #[test]
    fn levels_are_scaled_to_the_models_loss_on_the_control_points() {
        let controls = beside(points(2, 10), 1e-3);
        let data = CounterfactualData {
            retained: &beside(points(1, 50), 0.0),
            controls: &controls,
            control_condition: &(controls.clone() + 0.0625),
            forgotten: &controls,
            forgotten_condition: &(controls.clone() + 0.0625),
            groups: Some(same_group(50, 10, 10)),
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![300.0, 600.0]),
            noises: 4,
            control_noises: 4,
            ..CounterfactualConfig::default()
        };
        let model = told(0.0, PredictionType::Sample);
        let fitted = CounterfactualLoss::fit(&model, &scheduler(), data, &config, |_| {}).unwrap();
        for index in 0..2 {
            let of_points = fitted.predicted().iter();
            let levels: Vec<f64> = of_points.map(|levels| levels[index]).collect();
            // Wrong by 1/16 in each element: little enough that no level is capped.
            assert!((256.0 * mean(&levels) - 1.0).abs() < 1e-5, "{levels:?}");
        }
    }

    /// The exact denoiser of classes `N(μ_c, s²)` in each element; the condition is the class.
    #[derive(Module, Debug)]
    struct Classes {
        means: Param<Tensor<2>>,
    }

    const SPREAD: f64 = 0.3;
    const ELEMENTS: usize = 64;

    impl Classes {
        fn new() -> Self {
            let means = Tensor::from_data([[0.0], [0.8]], &Device::flex());
            Self {
                means: Param::from_tensor(means),
            }
        }

        /// What the model loses on a point of the class, which it never saw: `ρ² E‖x̂ − x‖²/d`.
        fn loss(t: f64) -> f64 {
            let ratio = scheduler().signal_scale(t) / scheduler().noise_scale(t);
            let variance = SPREAD * SPREAD;
            ratio * ratio * variance / (1.0 + ratio * ratio * variance)
        }
    }

    impl Denoiser<2> for Classes {
        type Condition = Tensor<1, Int>;

        fn predict(
            &self,
            noisy: Tensor<2>,
            timesteps: Tensor<1>,
            class: &Self::Condition,
        ) -> Tensor<2> {
            let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
            let (gamma, sigma) = (
                scheduler().signal_scale(t[0].into()),
                scheduler().noise_scale(t[0].into()),
            );
            let mean = self.means.val().inner().select(0, class.clone());
            let variance = SPREAD * SPREAD;
            let slope = gamma * variance / (gamma * gamma * variance + sigma * sigma);
            let clean = mean.clone() + (noisy.clone() - mean * gamma) * slope;
            (noisy - clean * gamma) / sigma
        }
    }

    fn class_points(seed: u64, classes: &[u64]) -> Tensor<2> {
        let device = Device::flex();
        let shape = [classes.len(), ELEMENTS];
        let noise = normal_noise(shape, seed, 0, 0, Stream::Noise, &device);
        let means: Vec<f64> = classes.iter().map(|&class| 0.8 * class as f64).collect();
        noise * SPREAD + crate::host::column(&means, &device)
    }

    fn condition(classes: &[u64]) -> Tensor<1, Int> {
        let classes: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
        Tensor::from_data(classes.as_slice(), &Device::flex())
    }

    /// A typical point of a class that is 2 % of the data. Over all data it was predicted to cost 6 times as much.
    #[test]
    fn a_point_of_a_rare_class_is_predicted_from_its_class() {
        let retained: Vec<u64> = (0..4000).map(|index| u64::from(index % 50 == 0)).collect();
        let controls: Vec<u64> = (0..200).map(|index| u64::from(index % 50 == 0)).collect();
        let forgotten = [1, 1, 1, 0];
        let config = CounterfactualConfig {
            timesteps: Some(vec![250.0, 400.0, 600.0, 800.0, 900.0]),
            control_noises: 4,
            ..CounterfactualConfig::default()
        };
        let fit = |groups: Option<Groups<'_>>| {
            let data = CounterfactualData {
                retained: &class_points(1, &retained),
                controls: &class_points(2, &controls),
                control_condition: &condition(&controls),
                forgotten: &class_points(3, &forgotten),
                forgotten_condition: &condition(&forgotten),
                groups,
            };
            CounterfactualLoss::fit(&Classes::new(), &scheduler(), data, &config, |_| {})
        };
        let groups = Groups {
            retained: &retained,
            controls: &controls,
            forgotten: &forgotten,
        };
        let predicted = fit(Some(groups)).unwrap();
        for (index, &t) in predicted.timesteps().iter().enumerate() {
            let rare: Vec<f64> = (0..3)
                .map(|point| predicted.predicted()[point][index])
                .collect();
            for level in [mean(&rare), predicted.predicted()[3][index]] {
                let ratio = level / Classes::loss(t);
                assert!((0.7..1.4).contains(&ratio), "t {t}: {ratio}");
            }
        }
        let error = fit(None).unwrap_err().to_string();
        assert!(error.contains("groups"), "{error}");
        let unknown = Groups {
            forgotten: &[1, 1, 1, 5],
            ..groups
        };
        let error = fit(Some(unknown)).unwrap_err().to_string();
        assert!(error.contains("forgotten point 3 is of group 5"), "{error}");
        let short = Groups {
            controls: &controls[1..],
            ..groups
        };
        let error = fit(Some(short)).unwrap_err().to_string();
        assert!(
            error.contains("the groups of the control points"),
            "{error}"
        );
    }

    /// Data without classes: the same denoiser with one class.
    #[test]
    fn a_point_far_from_all_data_is_not_predicted_to_cost_what_no_model_would_lose() {
        let zeros = |count: usize| vec![0u64; count];
        let all = zeros(3000);
        let groups = Groups {
            retained: &all,
            controls: &all[..100],
            forgotten: &all[..2],
        };
        // Three times the contrast, and once.
        let forgotten = class_points(3, &zeros(2));
        let forgotten = forgotten * crate::host::column(&[3.0, 1.0], &Device::flex());
        let data = CounterfactualData {
            retained: &class_points(1, &all),
            controls: &class_points(2, &all[..100]),
            control_condition: &condition(&all[..100]),
            forgotten: &forgotten,
            forgotten_condition: &condition(&all[..2]),
            groups: Some(groups),
        };
        let config = CounterfactualConfig {
            timesteps: Some(vec![5.0, 25.0, 50.0, 100.0, 250.0]),
            ..CounterfactualConfig::default()
        };
        let fitted =
            CounterfactualLoss::fit(&Classes::new(), &scheduler(), data, &config, |_| {}).unwrap();
        // The best denoiser of these data is the linear one, which the model is: its own loss is that of a model that never saw
        // the point.
        for point in 0..2 {
            let pairs = fitted.predicted()[point]
                .iter()
                .zip(&fitted.own_losses()[point]);
            for ((predicted, actual), t) in pairs.zip(fitted.timesteps()) {
                let ratio = predicted / actual;
                assert!((0.7..1.3).contains(&ratio), "point {point}, t {t}: {ratio}");
            }
        }
    }

    /// EDM's time is σ itself, from 0.002 to 80.
    #[derive(Debug)]
    struct Edm;

    impl Scheduler for Edm {
        fn time_range(&self) -> TimeRange {
            TimeRange::Continuous {
                min: 0.002,
                max: 80.0,
            }
        }

        fn signal_scale(&self, _: f64) -> f64 {
            1.0
        }

        fn noise_scale(&self, timestep: f64) -> f64 {
            timestep
        }
    }

    #[test]
    fn the_grid_is_even_in_the_logarithm_of_signal_over_noise() {
        let grid = default_timesteps(&Edm);
        assert_eq!((grid[0], grid[15]), (0.002, 80.0));
        // Both ends, but for what lies beyond the clamp.
        let step = (80.0f64 / 0.002).ln().min(6.3 + 4.4) / 15.0;
        for pair in grid.windows(2) {
            let ratio = (pair[1] / pair[0]).ln();
            assert!((ratio / step - 1.0).abs() < 0.05, "{grid:?}");
        }
        let linear = default_timesteps(&scheduler());
        assert_eq!((linear.len(), linear[0], linear[15]), (16, 0.0, 999.0));
        assert!(
            linear.windows(2).all(|pair| pair[1] - pair[0] < 130.0),
            "{linear:?}"
        );
        // Without signal at the end.
        let grid = default_timesteps(&FlowMatching::default());
        assert_eq!((grid.len(), grid.last()), (16, Some(&1.0)));
        assert!(grid.windows(2).all(|pair| pair[0] < pair[1]), "{grid:?}");
    }

    #[test]
    fn a_process_of_few_timesteps_has_each_once_in_its_grid() {
        let few = DdpmScheduler::linear(4).unwrap();
        assert_eq!(default_timesteps(&few), [0.0, 1.0, 2.0, 3.0]);
    }
}
