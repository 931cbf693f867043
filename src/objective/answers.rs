//! Forgotten points are answered as by a model that never saw them.

use std::fmt::{self, Debug};

use burn::tensor::Tensor;

use super::{LossInputs, LossTerm, LossTerms, SissLoss};
use crate::answer::{Answer, Asked};
use crate::clipper::{ConstantScale, FractionOfRetain, GradientClipper};
use crate::data::Side;
use crate::denoiser::Condition;
use crate::draws::{ExtraDraws, Stream};
use crate::error::{Result, check_range, check_shape};
use crate::process::SchedulerExt;

/// At a noisy forgotten point the model is taught what a model that never saw the point would
/// answer there ([`Answer`]). A regression to a bounded target: it descends, and rests where that
/// answer is given. Retained points are learnt as ever, or [keep their answers](Self::keeping).
///
/// Few of the batch's forgotten points are enough: a quarter of them take part, the first ones,
/// each with the weight `batch / forget_rows`, so that the term is their mean. They have timesteps
/// and noise of their own, and the timesteps cover the range whatever their number.
///
/// A network learns only a part of an answer, so the answers are made stronger while the model's
/// loss on the forgotten point is below theirs: the difference from the point's own target by up
/// to twice ([`LossTerm::with_boost`] of 3).
///
/// The clipper to use is [`Answers::clipper`]. Steering is not needed; with it, the forget term is
/// weakened where the point's own loss reaches the level.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::answer::Surrogate;
/// use siss::objective::Answers;
///
/// let edited = Tensor::<4>::zeros([1, 3, 8, 8], &Device::flex());
/// let objective = Answers::<4>::new(Surrogate::new(edited)?).with_forget_rows(8)?.keeping();
/// let clipper = objective.clipper();
/// # Ok::<(), siss::Error>(())
/// ```
pub struct Answers<const D: usize, C = ()> {
    answer: Box<dyn Answer<D, C>>,
    /// `None` for a share of the batch.
    forget_rows: Option<usize>,
    /// Whether retained points are taught the frozen model's answers instead of their own noise.
    keeps: bool,
}

impl<const D: usize, C> Debug for Answers<D, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Answers")
            .field("answer", &self.answer)
            .field("forget_rows", &self.forget_rows)
            .field("keeps", &self.keeps)
            .finish()
    }
}

/// The batch's share of forgotten points that take part unless their number is set: one of so many.
const ONE_OF: usize = 4;

/// How much stronger answers are made, in power, where a model has learnt nothing of them yet.
const BOOST: f64 = 3.0;

impl<const D: usize, C> Answers<D, C> {
    /// Teaches this answer.
    pub fn new(answer: impl Answer<D, C> + 'static) -> Self {
        Self {
            answer: Box::new(answer),
            forget_rows: None,
            keeps: false,
        }
    }

    /// Teaches retained points the answers that the frozen model gives, not their own noise.
    ///
    /// At a trained model both gradients are the same on average. This one is without the noise of
    /// the targets: it is 0 at first, and then holds the model where it was. So a short run moves
    /// the weights by little more than forgetting takes, and retained points lose less.
    ///
    /// It costs a forward pass of the frozen model per retained row. The retained points should be
    /// what the model was trained on or be like it: nothing new is learnt of them. The retain
    /// loss of a step is then the distance to the frozen model, and 0 in the first step.
    pub fn keeping(self) -> Self {
        Self {
            keeps: true,
            ..self
        }
    }

    /// How many of the batch's forgotten points take part: a quarter of the batch, rounded up,
    /// unless set.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for 0; in a step, for more than the batch
    /// has.
    pub fn with_forget_rows(self, rows: usize) -> Result<Self> {
        check_range("forget_rows", rows as f64, rows >= 1, "at least 1")?;
        Ok(Self {
            forget_rows: Some(rows),
            ..self
        })
    }

    /// The clipper for this objective: 30 % of the retain gradient's norm with a largest scale of
    /// one, `fraction:0.3:1` as text. If retained points [keep their answers](Self::keeping), it is
    /// a constant scale, because the retain gradient starts at 0: 0.05 for each forgotten point
    /// that the answer [knows of](Answer::points), at most one; `constant:0.05` for one point.
    pub fn clipper(&self) -> Box<dyn GradientClipper> {
        match self.keeps {
            true => Box::new(ConstantScale::keeping(self.answer.points().unwrap_or(1))),
            false => Box::new(FractionOfRetain::ANSWERS),
        }
    }

    fn retain_term(&self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerm<D>> {
        let term = inputs.plain_term(Side::Retain, 1.0);
        if !self.keeps {
            return Ok(term);
        }
        let (noisy, condition) = (term.noisy.clone(), inputs.retain_condition);
        let target = inputs.teacher(noisy, &term.timesteps, condition)?;
        Ok(LossTerm { target, ..term })
    }

    fn rows_of(&self, batch: usize) -> Result<usize> {
        let rows = self.forget_rows.unwrap_or(batch.div_ceil(ONE_OF));
        let requirement = "no more than the pairs of a batch";
        check_range("forget_rows", rows as f64, rows <= batch, requirement)?;
        Ok(rows)
    }
}

impl<const D: usize, C: Condition> SissLoss<D, C> for Answers<D, C> {
    fn name(&self) -> &'static str {
        "answers"
    }

    fn has_term(&self, _side: Side) -> bool {
        true
    }

    fn uses_teacher(&self) -> bool {
        self.keeps || self.answer.uses_teacher()
    }

    fn retain_gradient_starts_at_zero(&self) -> bool {
        self.keeps
    }

    fn extra_draws(&self) -> ExtraDraws {
        ExtraDraws::none()
            .timesteps(Stream::ForgetTimesteps)
            .normal(Stream::ForgetNoise)
    }

    fn settings(&self) -> String {
        let rows = match self.forget_rows {
            Some(rows) => rows.to_string(),
            None => format!("a share of 1/{ONE_OF} of"),
        };
        let kept = if self.keeps {
            ", retained ones kept"
        } else {
            ""
        };
        let answer = self.answer.settings();
        format!("answers, {rows} forget rows{kept}, {answer}")
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        Ok(LossTerms {
            retain: Some(self.retain_term(inputs)?),
            forget: Some(self.forget_term(inputs)?),
        })
    }
}

impl<const D: usize, C: Condition> Answers<D, C> {
    fn forget_term(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerm<D>> {
        let batch = inputs.forget_ids.len();
        let rows = self.rows_of(batch)?;
        let drawn = inputs.draws.timesteps_of(Stream::ForgetTimesteps)?;
        let timesteps = spread(drawn, rows);
        let noise = inputs.draws.numbers_of(Stream::ForgetNoise)?;
        let scales = inputs.scheduler.scales(&timesteps)?;
        let noisy = scales.noisy(inputs.forget, noise);
        let own = scales.target(inputs.prediction_type, inputs.forget, noise);

        let first = |all: &Tensor<D>| all.clone().narrow(0, 0, rows);
        let numbers: Vec<usize> = (0..rows).collect();
        let asked = Asked {
            clean: first(inputs.forget),
            noise: first(noise),
            noisy: first(&noisy),
            timesteps: timesteps[..rows].to_vec(),
            scales: inputs.scheduler.scales(&timesteps[..rows])?,
            ids: &inputs.forget_ids[..rows],
            condition: inputs.forget_condition.take_rows(&numbers),
            retained: first(inputs.retain),
            retain_condition: inputs.retain_condition.take_rows(&numbers),
            scheduler: inputs.scheduler,
            prediction_type: inputs.prediction_type,
            frozen: &|noisy, timesteps, condition| inputs.teacher(noisy, timesteps, condition),
        };
        let answers = self.answer.answers(&asked)?;
        let remedy = "give one answer for every noisy point";
        check_shape("the answers", &asked.noisy.dims(), &answers.dims(), remedy)?;

        let target = match rows == batch {
            true => answers,
            false => Tensor::cat(vec![answers, own.clone().narrow(0, rows, batch - rows)], 0),
        };
        let weight = batch as f64 / rows as f64;
        let term = LossTerm::new(noisy, timesteps, target, vec![weight; batch]);
        let term = term.with_own_target(own).with_boost(BOOST);
        Ok(term.keep_rows(|row| row < rows))
    }
}

/// The timesteps of a batch with those of its first rows taken from all over it: a batch's
/// timesteps are at even distances in the order of its rows.
fn spread(drawn: &[f64], rows: usize) -> Vec<f64> {
    let mut timesteps = drawn.to_vec();
    for (row, timestep) in timesteps.iter_mut().enumerate().take(rows) {
        *timestep = drawn[row * drawn.len() / rows];
    }
    timesteps
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::{Case, host};
    use super::*;
    use crate::draws::normal_noise;
    use crate::error::Error;
    use crate::process::PredictionType;
    use burn::tensor::Device;

    /// Says ten times what it is shown.
    #[derive(Debug, Default)]
    struct Tenfold;

    impl<const D: usize, C> Answer<D, C> for Tenfold {
        fn name(&self) -> &'static str {
            "tenfold"
        }

        fn answers(&mut self, asked: &Asked<'_, D, C>) -> Result<Tensor<D>> {
            assert_eq!(asked.rows(), asked.ids.len());
            Ok(asked.noisy.clone() * 10.0)
        }
    }

    fn case() -> Case {
        let mut case = Case::new(0.5);
        let noise = normal_noise([4, 2, 3], 4, 0, 0, Stream::Noise, &Device::flex());
        case.draws = (case.draws)
            .with_timesteps(Stream::ForgetTimesteps, vec![100.0, 350.0, 600.0, 850.0])
            .and_then(|draws| draws.with_numbers(Stream::ForgetNoise, noise))
            .unwrap();
        case
    }

    fn terms(objective: Answers<3>, case: &Case) -> Result<LossTerms<3>> {
        let mut objective = objective;
        objective.terms(&case.inputs(PredictionType::Epsilon))
    }

    #[test]
    fn the_first_rows_descend_to_the_answers_with_a_mean_weight_of_one() {
        let case = case();
        let noise = case.draws.numbers_of(Stream::ForgetNoise).unwrap();
        for (rows, timesteps) in [
            (None, vec![100.0]),
            (Some(2), vec![100.0, 600.0]),
            (Some(3), vec![100.0, 350.0, 600.0]),
            (Some(4), vec![100.0, 350.0, 600.0, 850.0]),
        ] {
            let mut objective = Answers::new(Tenfold);
            if let Some(rows) = rows {
                objective = objective.with_forget_rows(rows).unwrap();
            }
            let terms = terms(objective, &case).unwrap();
            assert_eq!(terms.retain.unwrap().weights, [1.0; 4]);
            let forget = terms.forget.unwrap();
            let rows = rows.unwrap_or(1);
            assert_eq!(forget.rows, (0..rows).collect::<Vec<_>>());
            assert_eq!(forget.weights, vec![4.0 / rows as f64; rows]);
            assert_eq!(forget.timesteps[..rows], timesteps);
            forget.check([4, 2, 3]).unwrap();

            let scales = case.scheduler.scales(&forget.timesteps).unwrap();
            let noisy = host(&scales.noisy(case.batch.forget(), noise));
            assert_eq!(host(&forget.noisy), noisy);
            let target = host(&forget.target);
            for (target, noisy) in target.iter().zip(&noisy).take(rows * 6) {
                assert_eq!(*target, 10.0 * noisy);
            }
            assert_eq!(forget.boost, BOOST);
            assert_eq!(host(&forget.own_target.unwrap()), host(noise));
        }
    }

    #[test]
    fn retained_rows_keep_what_the_frozen_model_answers() {
        let case = case();
        let objective = || Answers::<3>::new(Tenfold).with_forget_rows(2).unwrap();
        let error = terms(objective().keeping(), &case).unwrap_err();
        assert!(error.to_string().contains("teacher"), "{error}");

        let teacher = |noisy: Tensor<3>, _: &[f64], _: &()| Ok(noisy * 3.0);
        let inputs = case.inputs(PredictionType::Epsilon).with_teacher(&teacher);
        let kept = objective().keeping().terms(&inputs).unwrap();
        let learnt = objective().terms(&inputs).unwrap();
        let [retain, plain] = [kept.retain, learnt.retain].map(Option::unwrap);
        assert_eq!(host(&retain.noisy), host(&plain.noisy));
        assert_eq!(host(&retain.target), host(&(plain.noisy * 3.0)));
        assert_eq!(retain.weights, [1.0; 4]);
        let [forget, plain] = [kept.forget, learnt.forget].map(Option::unwrap);
        assert_eq!(host(&forget.target), host(&plain.target));

        let settings = objective().keeping().settings();
        assert_eq!(
            settings,
            "answers, 2 forget rows, retained ones kept, tenfold"
        );
    }

    #[test]
    fn a_number_of_rows_that_no_batch_has_is_refused() {
        let error = Answers::<3>::new(Tenfold).with_forget_rows(0).unwrap_err();
        assert!(error.to_string().contains("forget_rows is 0"), "{error}");
        let objective = Answers::new(Tenfold).with_forget_rows(5).unwrap();
        let error = terms(objective, &case()).unwrap_err();
        assert!(
            matches!(
                error,
                Error::OutOfRange {
                    name: "forget_rows",
                    ..
                }
            ),
            "{error}"
        );
        assert!(matches!(
            terms(Answers::new(Tenfold), &Case::new(0.5)).unwrap_err(),
            Error::MissingPart { .. }
        ));
    }

    #[test]
    fn the_settings_name_answer_and_rows_and_the_clipper_has_a_ceiling() {
        let objective = Answers::<3>::new(Tenfold).with_forget_rows(2).unwrap();
        assert_eq!(objective.settings(), "answers, 2 forget rows, tenfold");
        let of_points = |points: usize| {
            let points = burn::tensor::Tensor::<3>::zeros([points, 2, 3], &Device::flex());
            Answers::<3>::new(crate::answer::Surrogate::new(points).unwrap())
        };
        for (objective, text) in [
            (Answers::<3>::new(Tenfold), "fraction:0.3:1"),
            (of_points(4), "fraction:0.3:1"),
            (Answers::<3>::new(Tenfold).keeping(), "constant:0.05"),
            (of_points(4).keeping(), "constant:0.2"),
            (of_points(20).keeping(), "constant:1"),
        ] {
            let text = text.parse::<crate::clipper::ClipperSpec>().unwrap();
            let settings = objective.clipper().settings();
            assert_eq!(settings, text.build().unwrap().settings());
        }
    }
}
