//! What both cases have in common: measure, unlearn, measure again.

use std::path::Path;

use siss::answer::{PredictedAnswer, PredictedAnswerConfig};
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::tensor::Tensor;
use siss::evaluate::EmbeddingSearch;
use siss::objective::Answers;
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, Groups};
use siss::trainer::Adversary;
use siss::{Condition, Denoiser, PairSampler, Scheduler, SissTrainer};
use siss_support::process::Process;

use crate::measure::{Gallery, Measured};
use crate::{Options, Result};

/// Steps of the samplers.
const INFERENCE_STEPS: usize = 25;

/// Points with their conditions, and the groups in which points explain each other.
pub struct Set<C> {
    pub points: Tensor<4>,
    pub condition: C,
    pub groups: Vec<u64>,
}

/// A condition that pictures are shown of.
pub struct Shown<C> {
    pub name: String,
    /// One row.
    pub condition: C,
}

/// Two models and their data. The forgotten picture is one point for each condition under which
/// the model memorised it.
pub struct Job<M: Denoiser<4>> {
    /// It memorised a picture.
    pub model: M,
    /// Its twin that never saw the picture.
    pub retrained: M,
    pub retained: Set<M::Condition>,
    /// Points that neither model has seen.
    pub controls: Set<M::Condition>,
    pub forgotten: Set<M::Condition>,
    /// The names of the forgotten conditions.
    pub names: Vec<String>,
    /// Other conditions, which must stay as they are.
    pub others: Vec<Shown<M::Condition>>,
    /// The condition that says nothing, one row.
    pub nothing: M::Condition,
    pub guidance: f64,
    /// All pictures; the last one is the forgotten one.
    pub pictures: Tensor<4>,
}

/// From the points of a model to pictures.
pub type Decode<'a> = &'a dyn Fn(Tensor<4>) -> siss::Result<Tensor<4>>;

impl<M: Denoiser<4, Condition: Clone + 'static>> Job<M> {
    /// Unlearns, prints a table, writes pictures, and returns the unlearned model.
    pub fn run(self, scheduler_file: &Path, decode: Decode<'_>, options: &Options) -> Result<M> {
        let process = Process::from_file(scheduler_file)?;
        let scheduler = process.scheduler()?;
        let reverse = process.reverse(INFERENCE_STEPS)?;
        let gallery = Gallery {
            job: &self,
            process: &process,
            scheduler: &scheduler,
            reverse: &reverse,
            decode,
            samples: options.samples,
        };
        let before = gallery.measure(&self.model)?;
        let unlearned = self.unlearn(&process, options)?;
        let measured = [
            ("before", before),
            ("after", gallery.measure(&unlearned)?),
            ("retrained", gallery.measure(&self.retrained)?),
        ];
        Measured::print(&measured, &self.names);
        Measured::save(&measured, &gallery, &options.out())?;
        Ok(unlearned)
    }

    /// Teaches the model what a model that never saw the picture is predicted to answer.
    fn unlearn(&self, process: &Process, options: &Options) -> Result<M> {
        let scheduler: &dyn Scheduler = &process.scheduler()?;
        let data = CounterfactualData::new(
            &self.retained.points,
            &self.controls.points,
            &self.forgotten.points,
        )
        .with_conditions(&self.controls.condition, &self.forgotten.condition)
        .with_groups(Groups {
            retained: &self.retained.groups,
            controls: &self.controls.groups,
            forgotten: &self.forgotten.groups,
        });
        let losses = Counterfactual::fit(
            &self.model,
            scheduler,
            data,
            CounterfactualConfig::default(),
        )?;
        let config = PredictedAnswerConfig::default();
        let answer = PredictedAnswer::fit(&self.model, scheduler, &data, &losses, &config)?;
        println!("the answers of a retrained model are predicted");

        let pairs = PairSampler::with_conditions(
            self.retained.points.clone(),
            self.forgotten.points.clone(),
            self.retained.condition.clone(),
            self.forgotten.condition.clone(),
            options.seed,
        )?;
        let steps = options.steps as usize;
        let rate = LinearLrSchedulerConfig::new(options.learning_rate, 0.0, steps).init()?;
        let objective = Answers::<4, M::Condition>::new(answer);
        let clipper = objective.clipper();
        let mut trainer = SissTrainer::builder(self.model.clone(), process.scheduler()?)
            .loss(objective)
            .clipper(clipper)
            .timestep_sampling(process.timesteps())
            .learning_rate(rate)
            .seed(options.seed)
            .build()?;
        let mut adversary = self.adversary(options)?;
        for step in 0..options.steps {
            let mut batch = pairs.batch(step, options.batch)?;
            if let Some(adversary) = &mut adversary {
                batch = adversary.confront(&trainer, batch)?;
            }
            let report = trainer.step(batch)?;
            if (step + 1) % 25 == 0 {
                println!("{report}");
            }
        }
        for finding in trainer.findings() {
            println!("note: {finding}");
        }
        Ok(trainer.into_model())
    }
}

impl<M: Denoiser<4>> Job<M> {
    /// The search for embeddings during the run, if requested.
    fn adversary(&self, options: &Options) -> siss::Result<Option<Adversary<4, M::Condition>>> {
        let Some(every) = options.adversarial else {
            return Ok(None);
        };
        let search = EmbeddingSearch {
            seed: options.seed,
            ..EmbeddingSearch::while_training()
        };
        let (points, condition) = (&self.forgotten.points, &self.forgotten.condition);
        Adversary::new(search, every, points.clone(), condition.clone()).map(Some)
    }
}

/// A row of a condition, so often.
pub fn repeated<C: Condition>(condition: &C, row: usize, times: usize) -> C {
    condition.take_rows(&vec![row; times])
}
