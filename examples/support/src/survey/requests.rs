//! What became of the points of each request, one line and one row of a table each.

use serde::{Deserialize, Serialize};
use siss::backend::DeviceSpec;

use crate::closeness::Distances;
use crate::lines::rounded;
use crate::probe::mean;

use super::line::{Setting, Took, Unlearning, name_of, title};
use super::trial::OtherLosses;

/// A request of a finished run. Distances are those to the retrained model at the points that are
/// new in the request, means over these; of points that the retrained model saw there are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestLine {
    pub case: String,
    /// Forgotten points of the run.
    pub points: usize,
    pub method: String,
    /// Empty for the method's own.
    pub clipper: String,
    pub steps: usize,
    /// Of the run.
    pub seed: u64,
    pub batch: usize,
    /// Which of the requests, from 1 on.
    pub request: usize,
    /// Points in its forget set.
    pub forgotten: usize,
    /// The answer distance of the model that memorised, of the one that the request begins with,
    /// of the one that it ends with, and of that after the last request.
    pub answer_before: Option<f64>,
    pub answer_start: Option<f64>,
    pub answer: Option<f64>,
    pub answer_end: Option<f64>,
    /// The same of the losses.
    pub loss_before: Option<f64>,
    pub loss_start: Option<f64>,
    pub loss: Option<f64>,
    pub loss_end: Option<f64>,
    /// After the request, the loss of retained points in per cent above that of the model that
    /// memorised.
    pub retained_100: f64,
    pub retained_250: f64,
    pub retained_400: f64,
    /// The same of points that no model has seen.
    pub heldout_100: f64,
    pub heldout_250: f64,
    pub heldout_400: f64,
    /// Duration of the predictions before the steps, of which a run with the same first request
    /// made use too.
    pub predicting: f64,
    /// Duration of the steps alone.
    pub seconds: f64,
    pub device: String,
    /// The share λ of noisy points; empty for the protocol's own.
    pub forget_prob: Option<f64>,
    /// What stood for the retained points; empty for the data.
    pub retained: Option<String>,
}

/// Distances at the new points of a request in the model that memorised, in the one that the
/// request begins with, and in the one that it ends with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments {
    pub before: Option<Distances>,
    pub start: Option<Distances>,
    pub after: Option<Distances>,
}

fn answer(distances: Option<Distances>) -> Option<f64> {
    distances.map(|distances| rounded(distances.answer))
}

fn loss(distances: Option<Distances>) -> Option<f64> {
    distances.map(|distances| rounded(distances.loss))
}

impl RequestLine {
    /// The line of a request, `number` from 1 on, with so many points in its forget set, as if it
    /// were the last.
    pub fn of(
        (setting, run): (&Setting, Unlearning),
        (number, forgotten): (usize, usize),
        moments: &Moments,
        (took, others): (Took, OtherLosses),
        device: DeviceSpec,
    ) -> Self {
        let [retained_100, retained_250, retained_400] = others.retained.map(rounded);
        let [heldout_100, heldout_250, heldout_400] = others.heldout.map(rounded);
        Self {
            case: setting.case.name().into(),
            points: setting.points,
            method: setting.method(),
            clipper: name_of(setting.clipper),
            steps: run.steps,
            seed: run.seed,
            batch: setting.batch,
            request: number,
            forgotten,
            answer_before: answer(moments.before),
            answer_start: answer(moments.start),
            answer: answer(moments.after),
            answer_end: answer(moments.after),
            loss_before: loss(moments.before),
            loss_start: loss(moments.start),
            loss: loss(moments.after),
            loss_end: loss(moments.after),
            retained_100,
            retained_250,
            retained_400,
            heldout_100,
            heldout_250,
            heldout_400,
            predicting: rounded(took.predicting),
            seconds: rounded(took.seconds),
            device: device.to_string(),
            forget_prob: setting.forget_prob,
            retained: setting.retained.name().map(Into::into),
        }
    }

    /// Whether it is the same request of the same run.
    pub fn is_again(&self, other: &Self) -> bool {
        self.seed == other.seed && key(self) == key(other)
    }

    /// Sets the distances in the model after the last request.
    pub fn ends_at(&mut self, distances: Option<Distances>) {
        (self.answer_end, self.loss_end) = (answer(distances), loss(distances));
    }
}

/// What requests have in common that differ only in the seed of their run.
type Key<'a> = (&'a str, usize, String, usize, usize, usize);

fn titled(line: &RequestLine) -> String {
    let retained = line.retained.as_deref();
    title(&line.method, &line.clipper, line.forget_prob, retained)
}

fn key(line: &RequestLine) -> Key<'_> {
    let title = titled(line);
    let RequestLine {
        points,
        steps,
        batch,
        request,
        ..
    } = *line;
    (&line.case, points, title, steps, batch, request)
}

/// A row for each request: means over the seeds.
pub fn table(lines: &[RequestLine]) -> String {
    let mut keys: Vec<Key<'_>> = lines.iter().map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut table = String::from(
        "| case | points | method | steps | request | forgotten | seeds | answer distance before, at its \
         start, after it, at the end | loss distance | retained loss, % | held-out loss, % | \
         predicting, s | steps, s |\n",
    );
    table += &format!("|{}\n", "---|".repeat(13));
    for of_group in keys {
        let group: Vec<_> = lines.iter().filter(|line| key(line) == of_group).collect();
        table += &row(&group);
    }
    table
}

/// A value of a request.
type Value<T> = fn(&RequestLine) -> T;

fn row(group: &[&RequestLine]) -> String {
    let average = |value: Value<f64>| {
        let values: Vec<f64> = group.iter().map(|line| value(line)).collect();
        mean(&values)
    };
    let distances = |of: [Value<Option<f64>>; 4]| {
        let texts = of.map(|value| {
            let values: Option<Vec<f64>> = group.iter().map(|line| value(line)).collect();
            values.map_or("–".into(), |values| format!("{:.3}", mean(&values)))
        });
        texts.join(", ")
    };
    let rises = |of: [Value<f64>; 3]| of.map(|value| format!("{:+.1}", average(value))).join(", ");
    let first = group[0];
    let cells = [
        first.case.clone(),
        first.points.to_string(),
        titled(first),
        first.steps.to_string(),
        first.request.to_string(),
        first.forgotten.to_string(),
        group.len().to_string(),
        distances([
            |line| line.answer_before,
            |line| line.answer_start,
            |line| line.answer,
            |line| line.answer_end,
        ]),
        distances([
            |line| line.loss_before,
            |line| line.loss_start,
            |line| line.loss,
            |line| line.loss_end,
        ]),
        rises([
            |line| line.retained_100,
            |line| line.retained_250,
            |line| line.retained_400,
        ]),
        rises([
            |line| line.heldout_100,
            |line| line.heldout_250,
            |line| line.heldout_400,
        ]),
        format!("{:.0}", average(|line| line.predicting)),
        format!("{:.0}", average(|line| line.seconds)),
    ];
    format!("| {} |\n", cells.join(" | "))
}
