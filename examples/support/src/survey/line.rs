//! What is run, and the line that a finished run is.

use std::fmt;

use serde::{Deserialize, Serialize};
use siss::backend::DeviceSpec;
use siss::clipper::ClipperSpec;

use crate::cases::Case;
use crate::classifier::Judgement;
use crate::lines::rounded;

use super::contender::Contender;
use super::order::Order;
use super::retained::RetainSet;
use super::thorough::Thorough;

/// The model that is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Subject {
    /// The one that memorised.
    Before,
    /// Another retrained one, by its place among those: the floor of every distance.
    Retrained(usize),
    /// The one that memorised, after unlearning.
    Unlearned(Unlearning),
}

/// How a model is unlearned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unlearning {
    pub contender: Contender,
    pub order: Order,
    /// Points of each request, where they come in turn.
    pub of_each: usize,
    /// For each request.
    pub steps: usize,
    pub seed: u64,
}

/// All that a run depends on.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub case: Case,
    pub points: usize,
    pub subject: Subject,
    pub clipper: Option<ClipperSpec>,
    /// `None` stands for the protocol's own.
    pub forget_prob: Option<f64>,
    pub retained: RetainSet,
    pub batch: usize,
    pub samples: usize,
    /// Whether [`Thorough`] is measured too.
    pub thorough: bool,
}

/// The names of the models that were not unlearned, among the methods.
pub const BEFORE: &str = "before";
pub const RETRAINED: &str = "retrained again";

impl Setting {
    /// The model's name among the methods, with what is not the method's own.
    pub fn title(&self) -> String {
        let clipper = name_of(self.clipper);
        match self.subject {
            Subject::Before | Subject::Retrained(_) => self.method(),
            Subject::Unlearned(_) => {
                let retained = self.retained.name();
                title(&self.method(), &clipper, self.forget_prob, retained)
            }
        }
    }

    /// The model's name among the methods.
    pub fn method(&self) -> String {
        match self.subject {
            Subject::Before => BEFORE.into(),
            Subject::Retrained(_) => RETRAINED.into(),
            Subject::Unlearned(run) => {
                format!("{}{}", run.contender, run.order.suffix(run.of_each))
            }
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (case, points) = (self.case.name(), self.points);
        write!(formatter, "{case}, points {points}, {}", self.title())?;
        match self.subject {
            Subject::Before => Ok(()),
            Subject::Retrained(place) => write!(formatter, ", seed {place}"),
            Subject::Unlearned(Unlearning { steps, seed, .. }) => {
                write!(formatter, ", steps {steps}, seed {seed}")
            }
        }
    }
}

/// A finished run: one line of the file. The models that were not unlearned are lines of 0 steps.
///
/// Distances are those to the retrained model at the forgotten points, means over these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub case: String,
    /// Forgotten points.
    pub points: usize,
    /// Of a run with several requests, their order too.
    pub method: String,
    /// Empty for the method's own.
    pub clipper: String,
    /// For each request.
    pub steps: usize,
    /// Of a retrained model its place among those.
    pub seed: u64,
    pub batch: usize,
    /// Mean of the answer distance over t = 100, 250, 400 and 600.
    pub answer: f64,
    pub answer_50: f64,
    pub answer_100: f64,
    pub answer_250: f64,
    pub answer_400: f64,
    pub answer_600: f64,
    pub cosine_50: f64,
    pub cosine_100: f64,
    pub cosine_250: f64,
    pub cosine_400: f64,
    pub cosine_600: f64,
    /// L2 between denoised copies, by where they are denoised from, pixels in `[0, 1]`.
    pub denoised_250: f64,
    pub denoised_400: f64,
    pub neighbourhood: f64,
    pub loss: f64,
    /// Loss of points that no model has seen, in per cent above that before the run.
    pub heldout_100: f64,
    pub heldout_250: f64,
    pub heldout_400: f64,
    /// Generated images, and copies of forgotten points among them.
    pub samples: usize,
    pub copies: usize,
    /// Duration of the steps alone.
    pub seconds: f64,
    pub rows_per_sample: f64,
    /// Findings of the diagnosis.
    pub findings: usize,
    pub device: String,
    /// Of the generated digits that are no copies: the inception score with its interval, and how
    /// even the classes are. None of the faces and of fewer than a hundred.
    pub inception_score: Option<f64>,
    pub inception_low: Option<f64>,
    pub inception_high: Option<f64>,
    pub evenness: Option<f64>,
    /// The share λ of noisy points; empty for the protocol's own.
    pub forget_prob: Option<f64>,
    /// What is measured with `--thorough`: [`Thorough`], which has the meanings.
    pub likelihood_heldout: Option<f64>,
    pub likelihood_forgotten: Option<f64>,
    pub membership: Option<f64>,
    pub relearning: Option<u64>,
    pub sliced: Option<f64>,
    /// What stood for the retained points; empty for the data.
    pub retained: Option<String>,
}

/// How a model compares with the retrained one, and what its unlearning took.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Mean of the answer distance.
    pub answer: f64,
    /// At t = 50, 100, 250, 400 and 600.
    pub answers: [f64; 5],
    pub cosines: [f64; 5],
    pub denoised: [f64; 2],
    pub neighbourhood: f64,
    pub loss: f64,
    /// In per cent above the loss before the run.
    pub heldout: [f64; 3],
    pub copies: usize,
    pub judged: Option<Judgement>,
    pub thorough: Option<Thorough>,
    pub took: Took,
}

/// What the steps of a run took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    pub seconds: f64,
    /// Seconds of the predictions that a method needs before its first step.
    pub predicting: f64,
    pub rows_per_sample: f64,
    pub findings: usize,
}

impl Took {
    /// With one of several requests added: rows per sample are a mean over them.
    pub fn and(self, request: Took, of: usize) -> Took {
        Took {
            seconds: self.seconds + request.seconds,
            predicting: self.predicting + request.predicting,
            rows_per_sample: self.rows_per_sample + request.rows_per_sample / of as f64,
            findings: self.findings + request.findings,
        }
    }
}

impl Line {
    /// The line of a setting whose model was measured.
    pub fn of(setting: &Setting, device: DeviceSpec, measured: &Measured) -> Self {
        let (steps, seed, batch) = match setting.subject {
            Subject::Before => (0, 0, 0),
            Subject::Retrained(place) => (0, place as u64, 0),
            Subject::Unlearned(run) => (run.steps, run.seed, setting.batch),
        };
        let clipper = setting.clipper.filter(|_| steps > 0);
        let Measured { took, .. } = measured;
        let judged = measured.judged.as_ref();
        let thorough = measured.thorough.as_ref();
        let [answer_50, answer_100, answer_250, answer_400, answer_600] =
            measured.answers.map(rounded);
        let [cosine_50, cosine_100, cosine_250, cosine_400, cosine_600] =
            measured.cosines.map(rounded);
        let [denoised_250, denoised_400] = measured.denoised.map(rounded);
        let [heldout_100, heldout_250, heldout_400] = measured.heldout.map(rounded);
        Self {
            case: setting.case.name().into(),
            points: setting.points,
            method: setting.method(),
            clipper: name_of(clipper),
            steps,
            seed,
            batch,
            answer: rounded(measured.answer),
            answer_50,
            answer_100,
            answer_250,
            answer_400,
            answer_600,
            cosine_50,
            cosine_100,
            cosine_250,
            cosine_400,
            cosine_600,
            denoised_250,
            denoised_400,
            neighbourhood: rounded(measured.neighbourhood),
            loss: rounded(measured.loss),
            heldout_100,
            heldout_250,
            heldout_400,
            samples: setting.samples,
            copies: measured.copies,
            seconds: rounded(took.seconds),
            rows_per_sample: rounded(took.rows_per_sample),
            findings: took.findings,
            device: device.to_string(),
            inception_score: judged.map(|it| rounded(it.inception_score.value)),
            inception_low: judged.map(|it| rounded(it.inception_score.low)),
            inception_high: judged.map(|it| rounded(it.inception_score.high)),
            evenness: judged.map(|it| rounded(it.evenness)),
            forget_prob: setting.forget_prob.filter(|_| steps > 0),
            likelihood_heldout: thorough.map(|it| rounded(it.likelihood[0])),
            likelihood_forgotten: thorough.map(|it| rounded(it.likelihood[1])),
            membership: thorough.map(|it| rounded(it.membership)),
            relearning: thorough.and_then(|it| it.relearning),
            sliced: thorough.and_then(|it| it.sliced.map(rounded)),
            retained: setting
                .retained
                .name()
                .filter(|_| steps > 0)
                .map(Into::into),
        }
    }

    /// Whether it is a run of this setting and was measured as thoroughly.
    pub fn is_of(&self, setting: &Setting) -> bool {
        let is_thorough = self.likelihood_heldout.is_some();
        self.is_run_of(setting) && (is_thorough || !setting.thorough)
    }

    /// Whether it is a run of this setting. A model that was not unlearned has neither a clipper
    /// nor a batch.
    pub fn is_run_of(&self, setting: &Setting) -> bool {
        let (case, points, samples) = (self.case.as_str(), self.points, self.samples);
        let is_same_model = self.method == setting.method()
            && (case, points, samples) == (setting.case.name(), setting.points, setting.samples);
        is_same_model
            && match setting.subject {
                Subject::Before => true,
                Subject::Retrained(place) => self.seed == place as u64,
                Subject::Unlearned(run) => {
                    (self.steps, self.seed, self.batch) == (run.steps, run.seed, setting.batch)
                        && self.clipper == name_of(setting.clipper)
                        && self.forget_prob == setting.forget_prob
                        && self.retained.as_deref() == setting.retained.name()
                }
            }
    }

    /// The method, with what is not its own.
    pub fn title(&self) -> String {
        let retained = self.retained.as_deref();
        title(&self.method, &self.clipper, self.forget_prob, retained)
    }

    /// Whether it is a run of unlearning.
    pub fn is_unlearned(&self) -> bool {
        ![BEFORE, RETRAINED].contains(&self.method.as_str())
    }

    /// A line for the screen.
    pub fn summary(&self) -> String {
        let Line {
            case,
            points,
            steps,
            seed,
            answer,
            heldout_400,
            copies,
            ..
        } = self;
        format!(
            "{case}, points {points}, {}, steps {steps}, seed {seed}: answer distance {answer}, \
             held-out loss {heldout_400:+} %, {copies} copies",
            self.title()
        )
    }
}

/// A method with what is not its own: the clipper, empty if it is, λ, and what stood for the
/// retained points.
pub fn title(
    method: &str,
    clipper: &str,
    forget_prob: Option<f64>,
    retained: Option<&str>,
) -> String {
    let clipper = match clipper {
        "" => String::new(),
        clipper => format!(", {clipper}"),
    };
    let forget_prob = forget_prob.map_or(String::new(), |it| format!(", λ = {it}"));
    let retained = retained.map_or(String::new(), |it| format!(", {it}"));
    format!("{method}{clipper}{forget_prob}{retained}")
}

/// The text of a clipper; none for the method's own.
pub fn name_of(clipper: Option<ClipperSpec>) -> String {
    clipper.map_or(String::new(), |clipper| clipper.to_string())
}
