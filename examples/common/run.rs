//! The steps of an unlearning, logged, with a look at the model now and then.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use siss::burn::module::Module;
use siss::models::UNet2d;
use siss::{Diagnosis, Finding, Observer, PairSampler, SissTrainer, StepReport};

use crate::common::progress::Progress;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord<A> {
    #[serde(flatten)]
    pub report: StepReport,
    /// Seconds since the first step began, measurements along the way left out.
    pub seconds: f64,
    /// Measured now and then, after the step.
    #[serde(flatten)]
    pub along: Option<A>,
}

/// What the unlearning leaves.
pub struct Unlearned<A> {
    pub model: UNet2d,
    pub records: Vec<StepRecord<A>>,
    pub findings: Vec<Finding>,
}

impl<A> Unlearned<A> {
    /// Rows run through the model a pair of images, mean over the steps.
    pub fn rows_per_sample(&self) -> f64 {
        let rows = self
            .records
            .iter()
            .map(|record| record.report.rows_per_sample());
        rows.sum::<f64>() / self.records.len().max(1) as f64
    }

    /// Of the steps alone.
    pub fn seconds(&self) -> f64 {
        self.records.last().map_or(0.0, |record| record.seconds)
    }
}

/// How many steps there are, of how many pairs, and how often the model is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub steps: usize,
    pub batch: usize,
    pub looks: usize,
}

/// Takes the steps and writes `metrics.jsonl` into `out`. `look` measures the plain model; `took` is told the seconds of
/// each step.
pub fn unlearn<A: Serialize>(
    mut trainer: SissTrainer<UNet2d, 4>,
    pairs: &PairSampler<4>,
    plan: Plan,
    out: &Path,
    progress: &dyn Progress,
    look: impl Fn(&UNet2d) -> siss::Result<A>,
    mut took: impl FnMut(f64),
) -> Result<Unlearned<A>> {
    let Plan {
        steps,
        batch,
        looks,
    } = plan;
    let mut log = BufWriter::new(File::create(out.join("metrics.jsonl"))?);
    let mut diagnosis = Diagnosis::default();
    let mut records = Vec::new();
    let mut seconds = 0.0;
    let every = steps.div_ceil(looks);
    for step in 0..steps {
        let began = Instant::now();
        let report = trainer.step(pairs.batch(step as u64, batch)?)?;
        let step_seconds = began.elapsed().as_secs_f64();
        seconds += step_seconds;
        took(step_seconds);
        progress.step(&report, steps);
        diagnosis.observe(&report)?;

        let is_look = (step + 1) % every == 0 || step + 1 == steps;
        let along = is_look
            .then(|| look(&trainer.model().valid()))
            .transpose()?;
        let record = StepRecord {
            report,
            seconds,
            along,
        };
        writeln!(log, "{}", serde_json::to_string(&record)?)?;
        log.flush()?;
        records.push(record);
    }
    Ok(Unlearned {
        model: trainer.into_model(),
        records,
        findings: diagnosis.findings().to_vec(),
    })
}
