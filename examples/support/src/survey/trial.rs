//! Measures models of a case, and has them forget points in one request or several.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use siss::burn::tensor::Tensor;
use siss::models::UNet2d;

use crate::cases::{Case, CaseData};
use crate::classifier::{DigitClassifier, Judgement};
use crate::closeness::{ANSWERED, DENOISED, Distances, closeness, distances};
use crate::probe::{Probe, mean};
use crate::progress::Progress;
use crate::request::Copies;
use crate::trained::Trained;
use crate::tshirt::evaluate::chunks;

use super::Result;
use super::line::{Line, Measured, Setting, Subject, Took, Unlearning};
use super::options::Options;
use super::request::Request;
use super::requests::{Moments, RequestLine};
use super::retained::Generated;
use super::thorough::Measures;

/// Timesteps at which the loss of other points is measured.
const OTHERS: [usize; 3] = [100, 250, 400];

/// Losses of points that are not forgotten, at [`OTHERS`], or their rises in per cent.
#[derive(Debug, Clone, Copy, Default)]
pub struct OtherLosses {
    pub retained: [f64; 3],
    /// Of points that no model has seen.
    pub heldout: [f64; 3],
}

/// In per cent above those before.
fn rise(now: [f64; 3], before: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|at| 100.0 * (now[at] / before[at] - 1.0))
}

/// The models of a case, and how they are measured.
pub struct Trial<'a> {
    options: &'a Options,
    data: &'a CaseData,
    trained: Trained,
    probe: Probe,
    /// If the case is one of digits.
    classifier: Option<DigitClassifier>,
    /// Before unlearning.
    before: OtherLosses,
    /// In place of the data.
    generated: Option<Generated>,
}

impl<'a> Trial<'a> {
    pub fn load(options: &'a Options, data: &'a CaseData, progress: &dyn Progress) -> Result<Self> {
        progress.phase("loading");
        let device = options.device.device()?;
        let trained = Trained::load(options.case, &options.assets, &device)?;
        let mut trial = Self::new(options, data, trained, progress)?;
        if options.case != Case::Faces {
            trial.classifier = Some(DigitClassifier::load(&options.assets, &device)?);
        }
        Ok(trial)
    }

    fn new(
        options: &'a Options,
        data: &'a CaseData,
        trained: Trained,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let probe = Probe::new(&trained.config, chunks(options.device))?;
        let generated =
            (options.retained).generate(&probe, &trained.model, &data.forget, progress)?;
        let mut trial = Self {
            probe,
            generated,
            options,
            data,
            trained,
            classifier: None,
            before: OtherLosses::default(),
        };
        trial.before = OtherLosses {
            retained: trial.losses(&trial.trained.model, &data.retain)?,
            heldout: trial.losses(&trial.trained.model, &data.heldout)?,
        };
        Ok(trial)
    }

    /// To forget the first points of the case.
    pub fn forgetting(&self, points: usize) -> Result<Forgetting<'_>> {
        let data = self.request_data(0..points)?;
        let known = points.min(self.data.forget.dims()[0]);
        Ok(Forgetting {
            trial: self,
            points,
            unseen: self.data.forget.clone().narrow(0, 0, known),
            copies: Copies::of(self.options.case, &data),
            first: BTreeMap::new(),
        })
    }

    fn request_data(&self, points: Range<usize>) -> Result<CaseData> {
        Ok(self.data.forgetting(points, self.options.case.copies())?)
    }

    fn request(&self, model: UNet2d, points: Range<usize>) -> Result<Request<'_>> {
        let data = self.request_data(points)?;
        let data = match &self.generated {
            Some(generated) => generated.stand_in(data),
            None => data,
        };
        Ok(Request::new(&self.trained.config, model, data))
    }

    /// The loss of the last of some points: the first retained ones can be forgotten.
    fn losses(&self, model: &UNet2d, points: &Tensor<4>) -> Result<[f64; 3]> {
        let all = points.dims()[0];
        let count = all.min(self.options.heldout);
        let points = points.clone().narrow(0, all - count, count);
        let mut losses = [0.0; 3];
        for (loss, timestep) in losses.iter_mut().zip(OTHERS) {
            *loss = mean(&self.probe.losses(model, (&points, &()), timestep)?);
        }
        Ok(losses)
    }

    /// The rise of the loss of points that no model has seen.
    fn heldout_rise(&self, model: &UNet2d) -> Result<[f64; 3]> {
        let heldout = self.losses(model, &self.data.heldout)?;
        Ok(rise(heldout, self.before.heldout))
    }

    /// The rises of both losses.
    fn rises(&self, model: &UNet2d) -> Result<OtherLosses> {
        let retained = self.losses(model, &self.data.retain)?;
        Ok(OtherLosses {
            retained: rise(retained, self.before.retained),
            heldout: self.heldout_rise(model)?,
        })
    }
}

/// Points to forget.
pub struct Forgetting<'a> {
    trial: &'a Trial<'a>,
    points: usize,
    /// Those of them that the retrained models never saw.
    unseen: Tensor<4>,
    copies: Copies,
    /// Requests to the model that memorised, by their number of points: what is predicted of them
    /// serves several runs.
    first: BTreeMap<usize, Request<'a>>,
}

/// A model after the last request, what all of them took, and a line for each.
struct Unlearned {
    model: UNet2d,
    took: Took,
    lines: Vec<RequestLine>,
}

impl<'a> Forgetting<'a> {
    /// Unlearns if the setting says so, and measures: the line of the run, and one for each of its
    /// requests.
    pub fn run(
        &mut self,
        setting: &Setting,
        progress: &dyn Progress,
    ) -> Result<(Line, Vec<RequestLine>)> {
        let trained = &self.trial.trained;
        let plain = |model: &UNet2d| Unlearned {
            model: model.clone(),
            took: Took::default(),
            lines: Vec::new(),
        };
        let unlearned = match setting.subject {
            Subject::Before => plain(&trained.model),
            Subject::Retrained(place) => plain(&trained.again[place]),
            Subject::Unlearned(run) => self.unlearn(setting, run, progress)?,
        };
        let line = self.measured(setting, &unlearned.model, unlearned.took, progress)?;
        Ok((line, unlearned.lines))
    }

    /// Unlearns for one request after another.
    fn unlearn(
        &mut self,
        setting: &Setting,
        run: Unlearning,
        progress: &dyn Progress,
    ) -> Result<Unlearned> {
        let trial = self.trial;
        let requests = run.order.requests(self.points, run.of_each);
        let mut model = trial.trained.model.clone();
        let (mut total, mut lines) = (Took::default(), Vec::new());
        for (index, new) in requests.iter().enumerate() {
            if requests.len() > 1 {
                let of = requests.len();
                progress.say(&format!("{setting}: request {} of {of}", index + 1));
            }
            let before = self.distances(&trial.trained.model, new)?;
            let start = match index {
                0 => before,
                _ => self.distances(&model, new)?,
            };
            let points = run.order.forgotten(new);
            let mut later;
            let request = match index {
                0 => self.first(points)?,
                _ => {
                    later = trial.request(model, points)?;
                    &mut later
                }
            };
            let seed = run.seed + index as u64;
            let forgotten = request.forgotten();
            let took;
            (model, took) = request.unlearn(setting, Unlearning { seed, ..run }, progress)?;
            let moments = Moments {
                before,
                start,
                after: self.distances(&model, new)?,
            };
            let others = trial.rises(&model)?;
            lines.push(RequestLine::of(
                (setting, run),
                (index + 1, forgotten),
                &moments,
                (took, others),
                trial.options.device,
            ));
            total = total.and(took, requests.len());
        }
        // The last one is at its end already.
        let earlier = requests.len().saturating_sub(1);
        for (line, new) in lines.iter_mut().zip(&requests).take(earlier) {
            line.ends_at(self.distances(&model, new)?);
        }
        Ok(Unlearned {
            model,
            took: total,
            lines,
        })
    }

    /// The request that a run begins with.
    fn first(&mut self, points: Range<usize>) -> Result<&mut Request<'a>> {
        Ok(match self.first.entry(points.end) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(missing) => {
                let model = self.trial.trained.model.clone();
                missing.insert(self.trial.request(model, points)?)
            }
        })
    }

    /// How far a model is from the retrained one at those of the points that this one never saw.
    fn distances(&self, model: &UNet2d, points: &Range<usize>) -> Result<Option<Distances>> {
        let end = points.end.min(self.unseen.dims()[0]);
        if points.start >= end {
            return Ok(None);
        }
        let points = (self.unseen.clone()).narrow(0, points.start, end - points.start);
        let Trial { probe, trained, .. } = self.trial;
        Ok(Some(distances(
            probe,
            [model, &trained.retrained],
            &points,
        )?))
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
        let trial = self.trial;
        let close = closeness(&trial.probe, model, &trial.trained.retrained, &self.unseen)?;
        let drawn = self.drawn(model, progress)?;
        let measures = Measures {
            probe: &trial.probe,
            trained: &trial.trained,
            data: trial.data,
            forgotten: &self.unseen,
        };
        let thorough = match setting.thorough {
            true => Some(measures.of(model, drawn.others.as_ref(), progress)?),
            false => None,
        };
        let measured = Measured {
            answer: close.answer_distance,
            answers: ANSWERED.map(|timestep| close.answers[&timestep.to_string()].distance),
            cosines: ANSWERED.map(|timestep| close.answers[&timestep.to_string()].cosine),
            denoised: DENOISED.map(|timestep| close.denoised[&timestep.to_string()].to_reference),
            neighbourhood: close.neighbourhood,
            loss: close.loss_distance,
            copies: drawn.copies,
            judged: drawn.judged,
            thorough,
            took,
            heldout: trial.heldout_rise(model)?,
        };
        Ok(Line::of(setting, trial.options.device, &measured))
    }

    /// Images that a model generates, and what they are.
    fn drawn(&self, model: &UNet2d, progress: &dyn Progress) -> Result<Drawn> {
        let samples = self.trial.options.samples;
        if samples == 0 {
            return Ok(Drawn::default());
        }
        let mut shape = self.unseen.dims();
        shape[0] = samples;
        let device = self.unseen.device();
        let images = (self.trial.probe).sample(model, &(), 0, shape, &device, |done| {
            progress.phase(&format!("generating images: {done} of {samples}"));
        })?;
        let are_copies = self.copies.are(&images);
        let judged = match &self.trial.classifier {
            Some(classifier) => classifier.judge(&images, &are_copies)?,
            None => None,
        };
        let others = (0..samples).filter(|&row| !are_copies[row]);
        let others: Vec<i32> = others.map(|row| row as i32).collect();
        let copies = samples - others.len();
        let others = (copies < samples).then(|| {
            let rows = Tensor::from_ints(others.as_slice(), &device);
            images.select(0, rows)
        });
        Ok(Drawn {
            copies,
            judged,
            others,
        })
    }
}

/// Images that a model generated.
#[derive(Debug, Default)]
struct Drawn {
    /// How many are copies of forgotten points.
    copies: usize,
    /// What the others are as digits.
    judged: Option<Judgement>,
    /// The others.
    others: Option<Tensor<4>>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use siss::draws::{Stream, normal_noise};
    use siss::process::SchedulerConfig;

    use super::*;
    use crate::progress::Silent;
    use crate::small::{device, unet};

    fn trained() -> Trained {
        Trained {
            config: SchedulerConfig::default(),
            model: unet(0),
            retrained: unet(1),
            again: vec![unet(2)],
        }
    }

    fn options(words: &str) -> Options {
        let words = format!("closeness --case faces --seeds 0 --batch 2 --samples 0 {words}");
        Options::try_parse_from(words.split_whitespace()).unwrap()
    }

    fn points(count: usize, seed: u64) -> Tensor<4> {
        let shape = [count, 3, 8, 8];
        normal_noise(shape, seed, 0, 0, Stream::Evaluation, &device())
    }

    /// Two points in turn, without and with replay: what is known of a point when its own request
    /// ends, and when all have ended.
    #[test]
    fn requests_follow_each_other() {
        let options = options("--order in-turn,replay --methods siss --steps 20");
        let data = CaseData {
            retain: points(9, 0),
            heldout: points(3, 1),
            forget: points(2, 2),
        };
        let trial = Trial::new(&options, &data, trained(), &Silent).unwrap();
        let mut forgetting = trial.forgetting(2).unwrap();
        let settings = options.settings(2);
        let [_, _, in_turn, replay] = settings.try_into().unwrap();
        let mut run = |setting: &Setting| {
            let (line, requests) = forgetting.run(setting, &Silent).unwrap();
            assert!(line.is_of(setting));
            <[RequestLine; 2]>::try_from(requests).unwrap()
        };
        let ([first, second], [repeated, replayed]) = (run(&in_turn), run(&replay));
        assert_eq!(
            [&first, &second, &repeated, &replayed].map(|line| (line.request, line.forgotten)),
            [(1, 1), (2, 1), (1, 1), (2, 2)]
        );
        // Both runs begin with the same request.
        assert_eq!((repeated.answer, repeated.loss), (first.answer, first.loss));

        // The first request begins with the model that memorised, the last one ends with the last
        // model, and each changes the model.
        assert_eq!(first.answer_start, first.answer_before);
        assert_eq!(
            (second.answer, second.loss),
            (second.answer_end, second.loss_end)
        );
        assert_ne!(second.answer_start, second.answer_before);
        assert_ne!(first.answer, first.answer_before);
        assert_ne!(first.answer, first.answer_end);
        assert_ne!(
            (second.answer, second.loss),
            (replayed.answer, replayed.loss)
        );
        for line in [first, second] {
            assert_ne!(line.retained_250, 0.0);
            assert_ne!(line.heldout_250, line.retained_250);
        }
    }

    #[test]
    fn of_points_that_the_retrained_model_saw_no_distance_is_measured() {
        let options = options("--order in-turn --methods naive-deletion --steps 1");
        let data = CaseData {
            retain: points(9, 0),
            heldout: points(3, 1),
            forget: points(1, 2),
        };
        let trial = Trial::new(&options, &data, trained(), &Silent).unwrap();
        let setting = options.settings(2)[2];
        let (line, requests) = trial.forgetting(2).unwrap().run(&setting, &Silent).unwrap();
        let [first, second] = requests.try_into().unwrap();
        assert_eq!(first.answer_end, Some(line.answer));
        assert_eq!((second.answer, second.loss_end), (None, None));
        let table = super::super::requests::table(&[first, second]);
        assert!(table.contains("| –, –, –, – |"), "{table}");
    }
}
