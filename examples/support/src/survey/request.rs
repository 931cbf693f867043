//! A request to forget points, which a model is unlearned for.

use std::time::Instant;

use siss::answer::PredictedAnswer;
use siss::models::UNet2d;
use siss::process::SchedulerConfig;
use siss::steering::Counterfactual;
use siss::{PairSampler, SissTrainer};

use crate::cases::CaseData;
use crate::progress::Progress;
use crate::quick::{FORGET_PROB, Quick};
use crate::run::tell;
use crate::target::{predict_answers, predict_losses};
use crate::way::Way;

use super::Result;
use super::line::{Setting, Took, Unlearning};

/// A model, the points that it is to forget, and what is predicted of them once a method needs it.
pub struct Request<'a> {
    config: &'a SchedulerConfig,
    model: UNet2d,
    data: CaseData,
    losses: Option<Counterfactual>,
    answer: Option<PredictedAnswer<4>>,
    /// Seconds that the predictions took.
    losses_took: f64,
    answer_took: f64,
}

impl<'a> Request<'a> {
    pub fn new(config: &'a SchedulerConfig, model: UNet2d, data: CaseData) -> Self {
        Self {
            config,
            model,
            data,
            losses: None,
            answer: None,
            losses_took: 0.0,
            answer_took: 0.0,
        }
    }

    /// How many points are forgotten.
    pub fn forgotten(&self) -> usize {
        self.data.forget.dims()[0]
    }

    /// The model after unlearning, and what that took.
    pub fn unlearn(
        &mut self,
        setting: &Setting,
        run: Unlearning,
        progress: &dyn Progress,
    ) -> Result<(UNet2d, Took)> {
        let Unlearning {
            contender,
            steps,
            seed,
            ..
        } = run;
        let mut predicting = 0.0;
        let levels = match contender.is_steered {
            true => {
                let levels = self.losses(progress)?.levels;
                predicting += self.losses_took;
                Some(levels)
            }
            false => None,
        };
        let answer = match contender.way {
            Way::Counterfactual => {
                let answer = self.answer(progress)?;
                predicting += self.losses_took + self.answer_took;
                Some(answer)
            }
            _ => None,
        };
        let quick = Quick {
            config: self.config,
            retained: &self.data.retain,
            steps,
            clipper: setting.clipper,
            forget_prob: setting.forget_prob.unwrap_or(FORGET_PROB),
            seed,
        };
        let trainer = quick.trainer(self.model.clone(), contender.way, levels, answer)?;
        let (model, took) = self.train(trainer, run, setting.batch, progress)?;
        Ok((model, Took { predicting, ..took }))
    }

    /// The losses that a retrained model is predicted to have.
    fn losses(&mut self, progress: &dyn Progress) -> Result<Counterfactual> {
        if let Some(losses) = &self.losses {
            return Ok(losses.clone());
        }
        let began = Instant::now();
        let data = [&self.data.retain, &self.data.heldout, &self.data.forget];
        let losses = predict_losses(&self.model, self.config, data, progress)?;
        self.losses_took = began.elapsed().as_secs_f64();
        Ok(self.losses.insert(losses).clone())
    }

    /// The answers that a retrained model is predicted to give.
    fn answer(&mut self, progress: &dyn Progress) -> Result<PredictedAnswer<4>> {
        if let Some(answer) = &self.answer {
            return Ok(answer.clone());
        }
        let losses = self.losses(progress)?;
        let began = Instant::now();
        let data = [&self.data.retain, &self.data.heldout, &self.data.forget];
        let answer = predict_answers(&self.model, self.config, data, &losses, progress)?;
        self.answer_took = began.elapsed().as_secs_f64();
        Ok(self.answer.insert(answer).clone())
    }

    fn train(
        &self,
        mut trainer: SissTrainer<UNet2d, 4>,
        Unlearning { steps, seed, .. }: Unlearning,
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<(UNet2d, Took)> {
        let (retain, forget) = (self.data.retain.clone(), self.data.forget.clone());
        let pairs = PairSampler::new(retain, forget, seed)?;
        let mut took = Took::default();
        for step in 0..steps {
            let batch = pairs.batch(step as u64, batch)?;
            let began = Instant::now();
            let report = trainer.step(batch)?;
            took.seconds += began.elapsed().as_secs_f64();
            took.rows_per_sample += report.rows_per_sample() / steps as f64;
            progress.step(&report, steps);
            tell(&mut trainer, progress);
        }
        took.findings = trainer.findings().len();
        Ok((trainer.into_model(), took))
    }
}
