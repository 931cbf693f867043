//! The predicted answer of a model that never saw the point.

use burn::tensor::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::combination::{Aim, Combination, UsedPoints};
use super::posterior::{NoisyRow, References, errors as errors_of_posteriors};
use super::surrogate::rows_of;
use super::{Answer, Asked};
use crate::data::Points;
use crate::data::points::load;
use crate::denoiser::Condition;
use crate::error::{Error, Result, check_prediction_type, check_shape};
use crate::host::{read_f32, select_rows, tensor};
use crate::pieces::Pieces;

/// The answer that a model retrained without a forgotten point would give, predicted from the
/// retained data without training one.
///
/// An ideal denoiser of the retained data gives the posterior mean `x̂` of the clean point at a
/// noisy one `m`, which differs from the forgotten point `a` by an error `e` in the space of the
/// model's output. There is one for whole points and one for each width of patches around each
/// place, which is how convolutional networks generalise (Kamb and Ganguli 2024, arXiv 2412.20292).
/// To these come the frozen model's own answers to pieces of the point: it is shown each half of
/// the point along each axis, the middle one too, inside a retained point of the batch, where it
/// does not recognise what it memorised and answers as to what it has never seen.
/// On control points that the model never saw, its own error is regressed on theirs at each
/// timestep of a grid, which gives coefficients `c_p(t)`. The answer for a forgotten point is then
///
/// ```text
/// y(a, ε) + s ((1 − w) ŝ Σ_p c_p(t) e_p(m, t) + w e_own(m, t))
/// ```
///
/// with the target `y(a, ε)` of the point itself, the frozen model's own error `e_own`, and `ŝ` and
/// `s` such that the predicted error and the whole have the predicted loss of
/// [`Counterfactual::predicted`](crate::steering::Counterfactual::predicted). The weight `w` is the
/// model's own loss before the run over that loss: the less the model knows of the point, the more
/// its own answer is that of a model that never saw it. From `w = 1` on the answer is its own: no
/// request makes the model know a point better.
///
/// The posteriors are computed on the host, whatever the device, over at most
/// [`PredictedAnswerConfig::retained`](super::PredictedAnswerConfig::retained) points of each
/// group. Pieces take `3ⁿ` forward passes per row with `n` spatial axes: 9 for pictures. They are
/// left out at timesteps where the model does worse on control points than the ideal denoiser.
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
/// use siss::answer::{PredictedAnswer, PredictedAnswerConfig};
/// use siss::objective::Answers;
/// use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData};
///
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let data = CounterfactualData::new(&retained, &controls, &forgotten);
/// let losses = Counterfactual::fit(&model, &scheduler, data, CounterfactualConfig::default())?;
/// let config = PredictedAnswerConfig::default();
/// let answer = PredictedAnswer::fit(&model, &scheduler, &data, &losses, &config)?;
///
/// // Saved without the retained points, and read back with them.
/// let text = serde_json::to_string(answer.combination()).unwrap();
/// let answer = PredictedAnswer::new(serde_json::from_str(&text).unwrap(), &retained, &device)?;
///
/// let objective = Answers::new(answer).keeping();
/// let clipper = objective.clipper();
/// let trainer = SissTrainer::builder(model, scheduler)
///     .loss(objective)
///     .clipper(clipper)
///     .build()?;
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PredictedAnswer<const D: usize> {
    pub(super) combination: Combination,
    /// Of each group, in the combination's order.
    pub(super) references: Vec<References>,
    /// If they take part.
    pub(super) pieces: Option<Pieces>,
}

impl<const D: usize> PredictedAnswer<D> {
    /// A combination that was fitted before, with the retained points that it was fitted to.
    ///
    /// # Shapes
    /// - `retained`: `[n, …]`, on `device`
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for other points than those of the fit; those of the set.
    pub fn new(
        combination: Combination,
        retained: &dyn Points<D>,
        device: &Device,
    ) -> Result<Self> {
        let shape = retained.dims();
        let rows = combination.used().iter().flat_map(|used| &used.rows);
        let fits = rows.max().is_none_or(|&last| last < shape[0]);
        let points = match fits {
            true => load_used(retained, combination.used(), device)?,
            false => Vec::new(),
        };
        if digest(&points) != combination.digest() {
            return Err(Error::InvalidSetting {
                what: "the retained points are not those that the combination was fitted to".into(),
                remedy: "give the same retained set in the same order, or fit again",
            });
        }
        let pieces = Pieces::of(&shape[1..]).filter(|_| combination.uses_pieces());
        if pieces.is_none() && combination.uses_pieces() {
            return Err(Error::InvalidSetting {
                what: "the combination has pieces, but the points have no axis to divide".into(),
                remedy: "give the retained set that the combination was fitted to",
            });
        }
        let references = points.iter();
        let references = references.map(|points| References::new(points, &shape[1..]));
        Ok(Self {
            references: references.collect(),
            pieces,
            combination,
        })
    }

    /// Which predictors make it up, and how well they explain the model.
    pub fn combination(&self) -> &Combination {
        &self.combination
    }

    fn check<C>(&self, asked: &Asked<'_, D, C>) -> Result<()> {
        let (kind, levels) = (asked.prediction_type, self.combination.levels());
        check_prediction_type(kind, "the predicted answer", levels.prediction_type())?;
        levels.check_origin(asked.scheduler)?;
        let elements = asked.noisy.dims()[1..].iter().product();
        let known = self.references.iter().map(References::elements).max();
        let remedy = "fit the answer to points of the shape that the trainer is given";
        let expected = [known.unwrap_or(elements)];
        check_shape("a forgotten point", &expected, &[elements], remedy)
    }

    /// The errors that the answers of some rows are to have, one after another; `of_model`: those
    /// of the frozen model, and of it in [pieces](Self::of_pieces).
    fn errors<C>(
        &self,
        asked: &Asked<'_, D, C>,
        (points, rows, aims): (&[usize], &[usize], &[Aim]),
        of_model: Vec<Tensor<D>>,
    ) -> Result<Vec<f32>> {
        let elements: usize = asked.noisy.dims()[1..].iter().product();
        let noisy = select_rows(&asked.noisy, rows);
        let clean = select_rows(&asked.clean, rows);
        // One read for all.
        let all = [vec![noisy, clean], of_model].concat();
        let values = read_f32(Tensor::cat(all, 0), "forgotten points")?;
        let values: Vec<&[f32]> = values.chunks(elements).collect();
        let (noisy, rest) = values.split_at(rows.len());
        let (clean, rest) = rest.split_at(rows.len());
        let (own, of_pieces) = rest.split_at(rows.len());
        let noisy_row = |place: usize| {
            let row = rows[place];
            let (signal, sigma) = (asked.scales.signal[row], asked.scales.noise[row]);
            NoisyRow {
                references: &self.references[self.combination.group(points[row])],
                noisy: noisy[place],
                clean: clean[place],
                scales: [signal, sigma],
                slope: asked.prediction_type.slope(signal, sigma),
                without_copies: false,
            }
        };
        let noisy_rows: Vec<_> = (0..rows.len()).map(noisy_row).collect();
        let errors = errors_of_posteriors(&noisy_rows, self.combination.patches());
        let mut of_pieces = of_pieces.iter().copied();
        let aimed = (0..rows.len()).map(|place| {
            let timestep = asked.timesteps[rows[place]];
            let in_pieces = self.combination.shows_pieces(timestep);
            let in_pieces = in_pieces.then(|| of_pieces.next()).flatten();
            let posteriors = errors[place].iter().map(Vec::as_slice);
            let all: Vec<&[f32]> = posteriors.chain(in_pieces).collect();
            let coefficients = self.combination.at(timestep);
            aimed_error(combine(&all, &coefficients), own[place], aims[place])
        });
        Ok(aimed.collect::<Vec<_>>().concat())
    }

    /// The frozen model's errors in pieces of the points of those rows where pieces count.
    fn of_pieces<C: Condition>(
        &self,
        asked: &Asked<'_, D, C>,
        rows: &[usize],
    ) -> Result<Option<Tensor<D>>> {
        let counts = |row: &usize| self.combination.shows_pieces(asked.timesteps[*row]);
        let rows: Vec<usize> = rows.iter().copied().filter(counts).collect();
        let Some(pieces) = self.pieces.as_ref().filter(|_| !rows.is_empty()) else {
            return Ok(None);
        };
        let [noisy, clean, target] =
            [&asked.noisy, &asked.clean, &asked.own_target()].map(|all| select_rows(all, &rows));
        let of_rows = |values: &[f64]| rows.iter().map(|&row| values[row]).collect::<Vec<_>>();
        let signal = of_rows(&asked.scales.signal);
        let timesteps = of_rows(&asked.timesteps).repeat(pieces.count());
        let around = |row: usize, piece: usize| rows[(row + piece) % rows.len()];
        let others = (&asked.retained, around);
        let answers = pieces.answers((&noisy, &clean), &signal, others, |shown, surrounding| {
            // Each piece with the condition of the point that surrounds it.
            let condition = asked.retain_condition.take_rows(surrounding);
            asked.teacher(shown, &timesteps, &condition)
        })?;
        Ok(Some(answers - target))
    }
}

/// `Σ_p c_p e_p`.
fn combine(errors: &[&[f32]], coefficients: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; errors.first().map_or(0, |errors| errors.len())];
    for (errors, coefficient) in errors.iter().zip(coefficients) {
        for (sum, &error) in sum.iter_mut().zip(*errors) {
            *sum += coefficient * f64::from(error);
        }
    }
    sum
}

/// The part of the model's own error that it is to keep, and the rest of the predicted one, with
/// the predicted loss.
fn aimed_error(predicted: Vec<f64>, own: &[f32], aim: Aim) -> Vec<f32> {
    let predicted = with_power(predicted, aim.loss);
    let mixed = predicted.iter().zip(own);
    let mixed = mixed.map(|(error, &own)| (1.0 - aim.own) * error + aim.own * f64::from(own));
    let error = with_power(mixed.collect(), aim.loss);
    error.into_iter().map(|value| value as f32).collect()
}

/// The values scaled to this mean square; 0 where they are.
fn with_power(values: Vec<f64>, wanted: f64) -> Vec<f64> {
    let power = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
    let scale = match power > 0.0 {
        true => (wanted / power).sqrt(),
        false => 0.0,
    };
    values.into_iter().map(|value| scale * value).collect()
}

impl<const D: usize, C: Condition> Answer<D, C> for PredictedAnswer<D> {
    fn name(&self) -> &'static str {
        "predicted answer"
    }

    fn uses_teacher(&self) -> bool {
        true
    }

    fn points(&self) -> Option<usize> {
        Some(self.combination.points())
    }

    fn settings(&self) -> String {
        format!("predicted answer {}", self.combination.fingerprint())
    }

    fn answers(&mut self, asked: &Asked<'_, D, C>) -> Result<Tensor<D>> {
        self.check(asked)?;
        let remedy = "fit the answer to every forgotten point, in the order of their ids";
        let points = rows_of(
            asked.ids,
            self.combination.points(),
            "predicted answer",
            remedy,
        )?;
        let own = asked.teacher(asked.noisy.clone(), &asked.timesteps, &asked.condition)?;
        let aim = |row: usize| {
            let aim = self.combination.aim(points[row], asked.timesteps[row])?;
            Some((row, aim))
        };
        let (rows, aims): (Vec<usize>, Vec<Aim>) = (0..asked.rows()).filter_map(aim).unzip();
        if rows.is_empty() {
            return Ok(own);
        }

        let target = select_rows(&asked.own_target(), &rows);
        let own_errors = select_rows(&own, &rows) - target.clone();
        let of_model = [Some(own_errors), self.of_pieces(asked, &rows)?];
        let of_model = of_model.into_iter().flatten().collect();
        let errors = self.errors(asked, (&points, &rows, &aims), of_model)?;
        let errors = tensor(errors, target.dims(), &asked.noisy.device());
        // The rows that get an answer of their own come first, then all as the model answers them.
        let place = |row: usize| match rows.binary_search(&row) {
            Ok(place) => place,
            Err(_) => rows.len() + row,
        };
        let places: Vec<usize> = (0..asked.rows()).map(place).collect();
        Ok(select_rows(
            &Tensor::cat(vec![target + errors, own], 0),
            &places,
        ))
    }
}

/// The points used of each group, one after another on the host.
pub(super) fn load_used<const D: usize>(
    retained: &dyn Points<D>,
    used: &[UsedPoints],
    device: &Device,
) -> Result<Vec<Vec<f32>>> {
    let of_group = |used: &UsedPoints| {
        let mut values = Vec::new();
        for &row in &used.rows {
            let point = load(retained, row..row + 1, device)?;
            values.extend(read_f32(point, "a retained point")?);
        }
        Ok(values)
    };
    used.iter().map(of_group).collect()
}

pub(super) fn digest(points: &[Vec<f32>]) -> String {
    let mut digest = Sha256::new();
    for value in points.iter().flatten() {
        digest.update(value.to_le_bytes());
    }
    format!("{:x}", digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The predicted error and the model's own are orthogonal.
    #[test]
    fn what_is_kept_of_the_models_own_error_and_the_rest_have_the_predicted_loss() {
        let error = |own: f64| aimed_error(vec![3.0, 0.0], &[0.0, 2.0], Aim { loss: 0.5, own });
        for (own, expected) in [(0.0, [1.0, 0.0]), (0.25, [1.5, 1.0]), (1.0, [0.0, 1.0])] {
            let norm = f64::hypot(expected[0], expected[1]);
            for (found, expected) in error(own).into_iter().zip(expected) {
                assert!((f64::from(found) - expected / norm).abs() < 1e-6, "{own}");
            }
        }
    }
}
