//! Fitting a combination of predictors to a model.

use burn::tensor::Tensor;

use super::combination::{Combination, Unchecked, UsedPoints, predictors};
use super::config::PredictedAnswerConfig;
use super::least_squares::{Fitted, Regression};
use super::posterior::{NoisyRow, References, errors as errors_of_posteriors};
use super::predicted::{PredictedAnswer, digest, load_used};
use crate::denoiser::{Condition, Denoiser, frozen_output};
use crate::draws::{Stream, normal_noise};
use crate::error::{Error, Result, check_device, check_prediction_type, check_shape};
use crate::evaluate::residual;
use crate::host::{evenly, read_f32, select_rows, to_f32};
use crate::parameters::check_parameters;
use crate::pieces::Pieces;
use crate::process::{Scales, Scheduler, SchedulerExt};
use crate::steering::{Counterfactual, CounterfactualData};

impl<const D: usize> PredictedAnswer<D> {
    /// Fits the combination to the model as it is now.
    ///
    /// `prediction` is that of the same model, scheduler and data: the answers have its losses, at
    /// the timesteps of its grid.
    ///
    /// Memory is that of the retained points used, and for each control point that of one error per
    /// patch width. The time is that of the model on the control points at each timestep of the
    /// grid, and of as many posteriors.
    ///
    /// # Errors
    /// Those of [`Counterfactual::fit`]; [`Error::OutOfRange`] for a setting;
    /// [`Error::PredictionTypeDiffers`] and [`Error::InvalidSetting`] for a prediction of another
    /// model, process or set of points; [`Error::UnexplainedPoint`] for a control point that is the
    /// only retained one used of its group.
    pub fn fit<M: Denoiser<D>>(
        model: &M,
        scheduler: &dyn Scheduler,
        data: &CounterfactualData<'_, D, M::Condition>,
        prediction: &Counterfactual,
        config: &PredictedAnswerConfig,
    ) -> Result<Self> {
        Self::fit_with_progress(model, scheduler, data, prediction, config, |_| {})
    }

    /// [`fit`](Self::fit) that tells `progress` the share that is done, from 0 to 1.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit).
    pub fn fit_with_progress<M: Denoiser<D>>(
        model: &M,
        scheduler: &dyn Scheduler,
        data: &CounterfactualData<'_, D, M::Condition>,
        prediction: &Counterfactual,
        config: &PredictedAnswerConfig,
        mut progress: impl FnMut(f64),
    ) -> Result<Self> {
        config.check()?;
        data.check()?;
        check_model(model, scheduler, data, prediction)?;
        let (used, groups) = used_points(data, config.retained);
        let device = data.controls.device();
        let points = load_used(data.retained, &used, &device)?;
        let digest = digest(&points);
        let shape = data.controls.dims();
        let references: Vec<_> = (points.iter())
            .map(|points| References::new(points, &shape[1..]))
            .collect();
        let scales = scheduler.scales(prediction.levels.timesteps())?;
        let controls = Controls::new(data, &references, &used, config)?;
        let pieces = Pieces::of(&shape[1..]);
        let fitting = Fitting {
            scales,
            pieces: pieces.filter(|_| config.pieces && controls.references.len() > 1),
            model: model.valid(),
            timesteps: prediction.levels.timesteps(),
            gains: &prediction.gains,
            controls,
            config,
        };
        let fitted = fitting.fitted(&mut progress)?;
        let combination = Combination::try_from(Unchecked {
            patches: fitting.patches().to_vec(),
            pieces: fitting.pieces.is_some(),
            coefficients: fitted.iter().map(|at| at.coefficients.clone()).collect(),
            r_squared: fitted.iter().map(|at| at.r_squared).collect(),
            levels: prediction.levels.clone(),
            predicted: prediction.predicted.clone(),
            used,
            groups,
            digest,
        })?;
        let pieces = fitting.pieces;
        Ok(Self {
            combination,
            references,
            pieces,
        })
    }
}

fn check_model<const D: usize, M: Denoiser<D>>(
    model: &M,
    scheduler: &dyn Scheduler,
    data: &CounterfactualData<'_, D, M::Condition>,
    prediction: &Counterfactual,
) -> Result<()> {
    let kind = model.prediction_type();
    check_prediction_type(kind, "the scheduler", scheduler.prediction_type())?;
    let levels = &prediction.levels;
    check_prediction_type(kind, "the prediction of losses", levels.prediction_type())?;
    levels.check_origin(scheduler)?;
    let (points, found) = (data.forgotten.dims()[0], levels.values().len());
    let remedy = "predict the losses of the same forgotten points";
    check_shape("the prediction of losses", &[points], &[found], remedy)?;
    if let Some(of_model) = model.devices().first() {
        check_device("points", of_model, &data.controls.device())?;
    }
    model.check_input(data.controls.dims())?;
    check_parameters(model)
}

/// The retained points used of each group that has forgotten or control points, and the group of
/// each forgotten point. Without groups all points are of one.
fn used_points<const D: usize, C>(
    data: &CounterfactualData<'_, D, C>,
    limit: usize,
) -> (Vec<UsedPoints>, Vec<u64>) {
    let retained = data.retained.dims()[0];
    let Some(groups) = data.groups else {
        let rows = evenly((0..retained).collect(), limit);
        return (
            vec![UsedPoints { group: 0, rows }],
            vec![0; data.forgotten.dims()[0]],
        );
    };
    let mut keys = [groups.forgotten, groups.controls].concat();
    keys.sort_unstable();
    keys.dedup();
    let of_group = |group: u64| {
        let members = (0..retained).filter(|&row| groups.retained[row] == group);
        UsedPoints {
            group,
            rows: evenly(members.collect(), limit),
        }
    };
    let used = keys.into_iter().map(of_group).collect();
    (used, groups.forgotten.to_vec())
}

/// The control points on the device and on the host.
struct Controls<'a, const D: usize, C> {
    points: Tensor<D>,
    values: Vec<f32>,
    condition: C,
    references: Vec<&'a References>,
}

impl<'a, const D: usize, C: Condition> Controls<'a, D, C> {
    fn new(
        data: &CounterfactualData<'_, D, C>,
        references: &'a [References],
        used: &[UsedPoints],
        config: &PredictedAnswerConfig,
    ) -> Result<Self> {
        let rows: Vec<usize> = (0..data.controls.dims()[0]).collect();
        let rows = evenly(rows, config.controls);
        let points = to_f32(select_rows(data.controls, &rows).inner());
        let values = read_f32(points.clone(), "the control points")?;
        let group = |row: usize| data.groups.map(|groups| groups.controls[row]);
        let of_row = |&row: &usize| {
            let found = used.iter().position(|used| Some(used.group) == group(row));
            &references[found.unwrap_or(0)]
        };
        let references: Vec<_> = rows.iter().map(of_row).collect();
        let elements = points.dims()[1..].iter().product();
        for ((point, references), &row) in values.chunks(elements).zip(&references).zip(&rows) {
            if references.copies(point) == references.count() {
                return Err(Error::UnexplainedPoint {
                    what: "control",
                    point: row,
                    group: group(row),
                });
            }
        }
        Ok(Self {
            condition: data.control_condition.take_rows(&rows),
            points,
            values,
            references,
        })
    }
}

/// A model and the control points on the grid.
struct Fitting<'a, const D: usize, M: Denoiser<D>> {
    model: M,
    timesteps: &'a [f64],
    scales: Scales,
    controls: Controls<'a, D, M::Condition>,
    pieces: Option<Pieces>,
    /// By timestep, the model's loss on control points over the ideal denoiser's.
    gains: &'a [f64],
    config: &'a PredictedAnswerConfig,
}

impl<const D: usize, M: Denoiser<D>> Fitting<'_, D, M> {
    /// Points of rank 2 have no spatial axis.
    fn patches(&self) -> &[usize] {
        match D {
            0..=2 => &[],
            _ => &self.config.patches,
        }
    }

    /// The coefficients at each timestep.
    fn fitted(&self, progress: &mut dyn FnMut(f64)) -> Result<Vec<Fitted>> {
        let count = self.timesteps.len();
        let at = |index| {
            let fitted = self.fitted_at(index);
            progress((index + 1) as f64 / count as f64);
            fitted
        };
        (0..count).map(at).collect()
    }

    /// The model's error on the control points, regressed on those of the predictors.
    fn fitted_at(&self, index: usize) -> Result<Fitted> {
        let (signal, sigma) = (self.scales.signal[index], self.scales.noise[index]);
        let slope = self.model.prediction_type().slope(signal, sigma);
        let count = predictors(self.patches(), self.pieces_at(index).is_some());
        let mut regression = Regression::new(count);
        let rows: Vec<usize> = (0..self.controls.references.len()).collect();
        for rows in rows.chunks(self.config.micro_batch_size) {
            let [values, of_model, of_pieces] = self.model_errors(rows, index)?;
            let elements = self.controls.values.len() / self.controls.references.len();
            let row = |(&row, noisy): (&usize, _)| NoisyRow {
                references: self.controls.references[row],
                noisy,
                clean: &self.controls.values[row * elements..][..elements],
                scales: [signal, sigma],
                slope,
                without_copies: true,
            };
            let noisy: Vec<_> = rows.iter().zip(values.chunks(elements)).map(row).collect();
            let mut predicted = errors_of_posteriors(&noisy, self.patches());
            for (predicted, of_pieces) in predicted.iter_mut().zip(of_pieces.chunks(elements)) {
                predicted.push(of_pieces.to_vec());
            }
            for (of_model, predicted) in of_model.chunks(elements).zip(&predicted) {
                regression.add(of_model, predicted);
            }
        }
        let mut fitted = regression.fit(self.config.ridge);
        let all = predictors(self.patches(), self.pieces.is_some());
        fitted.coefficients.resize(all, 0.0);
        Ok(fitted)
    }

    /// The pieces, where they take part: elsewhere whole points explain the model.
    fn pieces_at(&self, index: usize) -> Option<&Pieces> {
        let generalises = self.gains.get(index).is_none_or(|&gain| gain <= 1.0);
        self.pieces.as_ref().filter(|_| generalises)
    }

    /// Noisy control points, the model's error there, and that of its answers to pieces.
    fn model_errors(&self, rows: &[usize], index: usize) -> Result<[Vec<f32>; 3]> {
        let clean = select_rows(&self.controls.points, rows);
        let (first, device) = (rows[0] as u64, clean.device());
        // A noise for each timestep: its number takes the place of a step's.
        let (seed, step, stream) = (self.config.seed, index as u64, Stream::Evaluation);
        let noise = normal_noise(clean.dims(), seed, step, first, stream, &device);
        let scales = self.scales.repeat(index, rows.len());
        let condition = self.controls.condition.take_rows(rows);
        let timestep = self.timesteps[index];
        let residual = residual(&self.model, timestep, &scales, &clean, &noise, &condition)?;
        let noisy = scales.noisy(&clean, &noise);
        let of_pieces = match self.of_pieces(rows, index, (&noisy, &clean))? {
            Some(answers) => {
                let target = scales.target(self.model.prediction_type(), &clean, &noise);
                read_f32(answers - target, "the model's errors")?
            }
            None => Vec::new(),
        };
        let noisy = read_f32(noisy, "the noisy control points")?;
        let residual = read_f32(residual, "the model's errors")?;
        match residual.iter().all(|value| value.is_finite()) {
            true => Ok([noisy, residual, of_pieces]),
            false => Err(Error::InvalidSetting {
                what: format!(
                    "at timestep {timestep} the model's output on the control points is not finite"
                ),
                remedy: "give a model whose output is finite",
            }),
        }
    }

    /// The model's answers to pieces of some control points inside other control points.
    fn of_pieces(
        &self,
        rows: &[usize],
        index: usize,
        (noisy, clean): (&Tensor<D>, &Tensor<D>),
    ) -> Result<Option<Tensor<D>>> {
        let Some(pieces) = self.pieces_at(index) else {
            return Ok(None);
        };
        let controls = &self.controls;
        let count = controls.references.len();
        // Never the point itself.
        let around = |row: usize, piece: usize| (rows[row] + 1 + piece % (count - 1)) % count;
        let signal = vec![self.scales.signal[index]; rows.len()];
        let others = (&controls.points, around);
        let answers = pieces.answers((noisy, clean), &signal, others, |shown, surrounding| {
            let timesteps = vec![self.timesteps[index]; surrounding.len()];
            let condition = controls.condition.take_rows(surrounding);
            let at_a_time = self.config.micro_batch_size;
            frozen_output(&self.model, shown, &timesteps, &condition, at_a_time)
        })?;
        Ok(Some(answers))
    }
}
