//! Measures models of a case, and unlearns.

use std::time::Instant;

use siss::answer::PredictedAnswer;
use siss::models::UNet2d;
use siss::steering::Counterfactual;
use siss::{PairSampler, SissTrainer};

use crate::cases::CaseData;
use crate::closeness::{ANSWERED, DENOISED, closeness};
use crate::probe::{Probe, mean};
use crate::progress::Progress;
use crate::quick::Quick;
use crate::request::Copies;
use crate::run::tell;
use crate::target::{predict_answers, predict_losses};
use crate::trained::Trained;
use crate::tshirt::evaluate::chunks;
use crate::way::Way;

use super::Result;
use super::line::{Line, Measured, Setting, Subject, Took};
use super::options::Options;

/// Timesteps at which the loss of unseen points is measured.
const HELDOUT: [usize; 3] = [100, 250, 400];

/// The models of a case, and how they are measured.
pub struct Trial<'a> {
    options: &'a Options,
    data: &'a CaseData,
    trained: Trained,
    probe: Probe,
    /// Losses of unseen points before unlearning, at [`HELDOUT`].
    before: [f64; 3],
}

impl<'a> Trial<'a> {
    pub fn load(options: &'a Options, data: &'a CaseData, progress: &dyn Progress) -> Result<Self> {
        progress.phase("loading");
        let device = options.device.device()?;
        let trained = Trained::load(options.case, &options.assets, &device)?;
        let mut trial = Self {
            probe: Probe::new(&trained.config, chunks(options.device))?,
            options,
            data,
            trained,
            before: [1.0; 3],
        };
        trial.before = trial.heldout(&trial.trained.model)?;
        Ok(trial)
    }

    /// To forget points of the case.
    pub fn request(&self, data: CaseData) -> Request<'_> {
        Request {
            trial: self,
            copies: Copies::of(self.options.case, &data),
            data,
            losses: None,
            answer: None,
        }
    }

    /// The losses of unseen points.
    fn heldout(&self, model: &UNet2d) -> Result<[f64; 3]> {
        let heldout = &self.data.heldout;
        let count = heldout.dims()[0].min(self.options.heldout);
        let heldout = heldout.clone().narrow(0, 0, count);
        let mut losses = [0.0; 3];
        for (loss, timestep) in losses.iter_mut().zip(HELDOUT) {
            *loss = mean(&self.probe.losses(model, (&heldout, &()), timestep)?);
        }
        Ok(losses)
    }
}

/// Points to forget, and what is predicted of them once a method needs it.
pub struct Request<'a> {
    trial: &'a Trial<'a>,
    data: CaseData,
    copies: Copies,
    losses: Option<Counterfactual>,
    answer: Option<PredictedAnswer<4>>,
}

impl Request<'_> {
    /// Unlearns if the setting says so, and measures.
    pub fn run(&mut self, setting: &Setting, progress: &dyn Progress) -> Result<Line> {
        let trained = &self.trial.trained;
        match setting.subject {
            Subject::Before => self.measured(setting, &trained.model, Took::default(), progress),
            Subject::Retrained => self.measured(setting, &trained.again, Took::default(), progress),
            Subject::Unlearned {
                contender,
                steps,
                seed,
            } => {
                let levels = match contender.is_steered {
                    true => Some(self.losses(progress)?.levels),
                    false => None,
                };
                let answer = match contender.way {
                    Way::Counterfactual => Some(self.answer(progress)?),
                    _ => None,
                };
                let run = Quick {
                    config: &trained.config,
                    retained: &self.data.retain,
                    steps,
                    clipper: setting.clipper,
                    seed,
                };
                let model = trained.model.clone();
                let trainer = run.trainer(model, contender.way, levels, answer)?;
                let (model, took) = self.unlearn(trainer, steps, seed, setting.batch, progress)?;
                self.measured(setting, &model, took, progress)
            }
        }
    }

    /// The losses that a retrained model is predicted to have.
    fn losses(&mut self, progress: &dyn Progress) -> Result<Counterfactual> {
        if let Some(losses) = &self.losses {
            return Ok(losses.clone());
        }
        let Trained { model, config, .. } = &self.trial.trained;
        let data = [&self.data.retain, &self.data.heldout, &self.data.forget];
        let losses = predict_losses(model, config, data, progress)?;
        Ok(self.losses.insert(losses).clone())
    }

    /// The answers that a retrained model is predicted to give.
    fn answer(&mut self, progress: &dyn Progress) -> Result<PredictedAnswer<4>> {
        if let Some(answer) = &self.answer {
            return Ok(answer.clone());
        }
        let losses = self.losses(progress)?;
        let Trained { model, config, .. } = &self.trial.trained;
        let data = [&self.data.retain, &self.data.heldout, &self.data.forget];
        let answer = predict_answers(model, config, data, &losses, progress)?;
        Ok(self.answer.insert(answer).clone())
    }

    fn unlearn(
        &self,
        mut trainer: SissTrainer<UNet2d, 4>,
        steps: usize,
        seed: u64,
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

    /// The line of a run that ended at this model.
    fn measured(
        &self,
        setting: &Setting,
        model: &UNet2d,
        took: Took,
        progress: &dyn Progress,
    ) -> Result<Line> {
        progress.phase(&format!("measuring {setting}"));
        let Trial {
            options,
            probe,
            trained,
            before,
            ..
        } = self.trial;
        let close = closeness(probe, model, &trained.retrained, &self.data.forget)?;
        let mut measured = Measured {
            answer: close.answer_distance,
            answers: ANSWERED.map(|timestep| close.answers[&timestep.to_string()].distance),
            cosines: ANSWERED.map(|timestep| close.answers[&timestep.to_string()].cosine),
            denoised: DENOISED.map(|timestep| close.denoised[&timestep.to_string()].to_reference),
            neighbourhood: close.neighbourhood,
            loss: close.loss_distance,
            copies: self.copies_drawn(model, progress)?,
            took,
            heldout: [0.0; HELDOUT.len()],
        };
        let heldout = self.trial.heldout(model)?;
        for (change, (now, before)) in measured.heldout.iter_mut().zip(heldout.iter().zip(before)) {
            *change = 100.0 * (now / before - 1.0);
        }
        Ok(Line::of(setting, options.device, &measured))
    }

    /// How many of the images that a model generates are copies of forgotten points.
    fn copies_drawn(&self, model: &UNet2d, progress: &dyn Progress) -> Result<usize> {
        let samples = self.trial.options.samples;
        if samples == 0 {
            return Ok(0);
        }
        let points = &self.data.forget;
        let mut shape = points.dims();
        shape[0] = samples;
        let images = (self.trial.probe).sample(model, &(), 0, shape, &points.device(), |done| {
            progress.phase(&format!("generating images: {done} of {samples}"));
        })?;
        Ok(self.copies.among(&images))
    }
}
