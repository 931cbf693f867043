//! The steps of an unlearning run, with a log and measurements at intervals.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use siss::backend::DeviceSpec;
use siss::data::{PairStream, UnlearningBatch};
use siss::files::path_text;
use siss::models::UNet2d;
use siss::observer::{Finding, cut_log};
use siss::trainer::Adversary;
use siss::{Checkpoints, Condition, Denoiser, PairSampler, SissTrainer, StepReport};

use crate::files::{self, failed};
use crate::progress::Progress;
use crate::resume::Checkpointing;

/// Number of pairs whose gradients are compared with the CPU's, and the largest deviation allowed.
const CHECKED_PAIRS: usize = 4;
const DEVICE_TOLERANCE: f64 = 0.05;

/// File name of the log, which has one line per step.
pub const LOG: &str = "metrics.jsonl";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A line of `metrics.jsonl`. It contains no time, so that a resumed run writes the same lines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepRecord<A> {
    #[serde(flatten)]
    pub report: StepReport,
    /// Measured at intervals, after the step.
    #[serde(flatten)]
    pub along: Option<A>,
}

/// The outcome of the unlearning.
pub struct Unlearned<A, M = UNet2d> {
    pub model: M,
    pub records: Vec<StepRecord<A>>,
    pub findings: Vec<Finding>,
    /// Duration of the steps alone, as far as this process took them.
    pub seconds: f64,
    /// The part of it that steps waited for images.
    pub waited: f64,
    /// Duration of the measurements between the steps.
    pub looking: f64,
}

impl<A, M> Unlearned<A, M> {
    /// Rows run through the model per pair of images, mean over the steps.
    pub fn rows_per_sample(&self) -> f64 {
        let rows = self
            .records
            .iter()
            .map(|record| record.report.rows_per_sample());
        rows.sum::<f64>() / self.records.len().max(1) as f64
    }

    /// Factor of the forget gradient, if it was the same in all steps.
    pub fn forget_scale(&self) -> Option<f64> {
        let records = self.records.iter();
        let mut scales = records.map(|record| record.report.coefficients.forget);
        let first = scales.next()?;
        scales.all(|scale| scale == first).then_some(first)
    }
}

/// The number of steps, the pairs per step, and the number of measurements.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub steps: usize,
    pub batch: usize,
    pub looks: usize,
}

impl Plan {
    /// Whether the model is measured after this many steps.
    fn is_look(&self, taken: u64) -> bool {
        let every = self.steps.div_ceil(self.looks) as u64;
        taken.is_multiple_of(every) || taken == self.steps as u64
    }
}

/// Where the batches of a run come from.
pub enum Batches<'a, C> {
    /// Pairs of images that are held in memory.
    Held(&'a PairSampler<4, C>),
    /// Pairs whose retained images are decoded ahead of the steps.
    Stream {
        stream: Box<PairStream<4, C>>,
        /// Pairs of the retained images that are held in memory.
        sample: &'a PairSampler<4, C>,
        /// The fingerprint of all retained files.
        files: String,
    },
}

impl<'a, C> From<&'a PairSampler<4, C>> for Batches<'a, C> {
    fn from(pairs: &'a PairSampler<4, C>) -> Self {
        Self::Held(pairs)
    }
}

impl<'a, C: Condition + 'static> Batches<'a, C> {
    fn batch(&mut self, step: u64, size: usize) -> siss::Result<UnlearningBatch<4, C>> {
        match self {
            Self::Held(pairs) => pairs.batch(step, size),
            Self::Stream { stream, .. } => stream.batch(step, size),
        }
    }

    /// The pairs that are held in memory.
    fn held(&self) -> &'a PairSampler<4, C> {
        match self {
            Self::Held(pairs) | Self::Stream { sample: pairs, .. } => pairs,
        }
    }

    fn fingerprint(&self) -> siss::Result<String> {
        let held = self.held().fingerprint()?;
        Ok(match self {
            Self::Held(_) => held,
            Self::Stream { files, .. } => format!("{held} {files}"),
        })
    }

    /// The seconds that steps have waited for images.
    fn waited(&self) -> f64 {
        match self {
            Self::Held(_) => 0.0,
            Self::Stream { stream, .. } => stream.waited().as_secs_f64(),
        }
    }
}

/// An unlearning run that has been set up or resumed, and has steps to take.
pub struct Run<'a, A, M: Denoiser<4> = UNet2d> {
    trainer: SissTrainer<M, 4>,
    adversary: Option<Adversary<4, M::Condition>>,
    batches: Batches<'a, M::Condition>,
    plan: Plan,
    progress: &'a dyn Progress,
    checkpointing: &'a Checkpointing,
    checkpoints: Option<Checkpoints>,
    log: File,
    log_path: PathBuf,
    /// The folder for results, including the log.
    results: PathBuf,
    records: Vec<StepRecord<A>>,
}

impl<'a, A: Serialize + DeserializeOwned, M: Denoiser<4, Condition: 'static>> Run<'a, A, M> {
    /// Opens the checkpoints in `out`, and the log next to them, which a resumed run needs. Without
    /// checkpoints the log is an ordinary result. Conditions that prevent resuming the run are
    /// detected here.
    pub fn begin(
        mut trainer: SissTrainer<M, 4>,
        mut adversary: Option<Adversary<4, M::Condition>>,
        batches: impl Into<Batches<'a, M::Condition>>,
        plan: Plan,
        checkpointing: &'a Checkpointing,
        [out, results]: [&Path; 2],
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let amount = [plan.steps, plan.batch];
        let say = |line: &str| progress.say(line);
        let batches = batches.into();
        let fingerprint = || batches.fingerprint();
        let against = adversary.as_mut();
        let checkpoints =
            checkpointing.begin(&mut trainer, against, fingerprint, amount, out, say)?;

        check_device(&mut trainer, batches.held(), progress)?;
        let log_path = match &checkpoints {
            Some(checkpoints) => checkpoints.folder().join(LOG),
            None => results.join(LOG),
        };
        // A finished run has the log among its results.
        let finished = out.join(LOG);
        if trainer.next_step() > 0 && !log_path.exists() && finished.exists() {
            files::copy(&finished, &log_path)?;
        }
        let lines = cut_log(&log_path, trainer.next_step())?;
        let records = lines.lines().map(serde_json::from_str);
        let records: std::result::Result<Vec<StepRecord<A>>, _> = records.collect();
        let records = records.map_err(|error| format!("{}: {error}", path_text(&log_path)))?;
        for finding in trainer.findings() {
            progress.say(&format!("note: {finding}"));
        }
        let log = OpenOptions::new().append(true).create(true).open(&log_path);
        Ok(Self {
            log: log.map_err(failed("creating", &log_path))?,
            log_path,
            results: results.into(),
            trainer,
            adversary,
            batches,
            plan,
            progress,
            checkpointing,
            checkpoints,
            records,
        })
    }

    /// Number of steps that were taken before.
    pub fn taken(&self) -> usize {
        self.trainer.next_step() as usize
    }

    /// Number of measurements that are still to be made during the run.
    pub fn looks(&self) -> usize {
        let left = self.trainer.next_step() + 1..=self.plan.steps as u64;
        left.filter(|&taken| self.plan.is_look(taken)).count()
    }

    /// Takes the steps. `look` measures the plain model; `took` receives the seconds of each step.
    pub fn finish(
        mut self,
        look: impl Fn(&M) -> siss::Result<A>,
        mut took: impl FnMut(f64),
    ) -> Result<Unlearned<A, M>> {
        let Plan { steps, batch, .. } = self.plan;
        let steps = steps as u64;
        let (mut seconds, mut looking) = (0.0, 0.0);
        while self.trainer.next_step() < steps {
            let began = Instant::now();
            let mut batch = self.batches.batch(self.trainer.next_step(), batch)?;
            if let Some(adversary) = &mut self.adversary {
                batch = adversary.confront(&self.trainer, batch)?;
            }
            let report = self.trainer.step(batch)?;
            let step_seconds = began.elapsed().as_secs_f64();
            seconds += step_seconds;
            took(step_seconds);
            self.progress.step(&report, self.plan.steps);
            tell(&mut self.trainer, self.progress);

            let taken = self.trainer.next_step();
            let began = Instant::now();
            let is_look = self.plan.is_look(taken);
            let along = is_look
                .then(|| look(&self.trainer.model().valid()))
                .transpose()?;
            looking += began.elapsed().as_secs_f64();
            let record = StepRecord { report, along };
            let line = serde_json::to_string(&record)?;
            writeln!(self.log, "{line}").map_err(failed("writing", &self.log_path))?;
            self.records.push(record);
            if self.checkpointing.is_due(taken, steps) {
                self.save()?;
            }
        }
        let result = self.results.join(LOG);
        if result != self.log_path {
            files::copy(&self.log_path, &result)?;
        }
        Ok(Unlearned {
            findings: self.trainer.findings().to_vec(),
            model: self.trainer.into_model(),
            records: self.records,
            seconds,
            looking,
            waited: self.batches.waited(),
        })
    }

    fn save(&mut self) -> Result<()> {
        if let Some(checkpoints) = &mut self.checkpoints {
            // The log must not be shorter than the checkpoint says.
            let synced = self.log.sync_all();
            synced.map_err(failed("writing", &self.log_path))?;
            let state = self.adversary.as_ref().map(Adversary::state).transpose()?;
            checkpoints.save(&mut self.trainer, &state)?;
        }
        Ok(())
    }
}

/// Reports problems while they can still be solved.
pub fn tell<M: Denoiser<4>>(trainer: &mut SissTrainer<M, 4>, progress: &dyn Progress) {
    for finding in trainer.new_findings() {
        progress.say(&format!("note: {finding}"));
    }
}

/// Rejects a device whose gradients differ from the CPU's.
fn check_device<M: Denoiser<4>>(
    trainer: &mut SissTrainer<M, 4>,
    pairs: &PairSampler<4, M::Condition>,
    progress: &dyn Progress,
) -> Result<()> {
    let Ok(reference) = DeviceSpec::Flex.device() else {
        progress.say(
            "the device was not compared with the CPU, which is not compiled in (feature `flex`)",
        );
        return Ok(());
    };
    if pairs.retain().device() == reference {
        return Ok(());
    }
    progress.phase("comparing the device's gradients with the CPU's");
    let batch = pairs.batch(trainer.next_step(), CHECKED_PAIRS)?;
    let check = trainer.self_check(&batch, &reference, DEVICE_TOLERANCE)?;
    progress.say(&format!(
        "the device agrees with the CPU: gradients within {:.1e}, `{}` farthest",
        check.worst, check.worst_parameter
    ));
    Ok(())
}
