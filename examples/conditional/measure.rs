//! What is measured of a model, and the pictures that show it.

use std::path::Path;

use siss::burn::tensor::Tensor;
use siss::evaluate::{AnswerDistance, DenoisingLoss, EmbeddingSearch};
use siss::report::ImageGrid;
use siss::sampling::Guided;
use siss::{Condition, Denoiser, Scheduler};
use siss_support::process::{Process, Reverse};

use crate::Result;
use crate::job::{Decode, Job, Set, repeated};

const TIMESTEPS: [usize; 3] = [100, 250, 400];
/// From where copies are denoised.
const DENOISED: [usize; 2] = [250, 400];
/// Noises of a forgotten point.
const NOISES: usize = 16;
/// Noises of a control point, of which there are many.
const CONTROL_NOISES: usize = 2;
/// Pictures in a row of the denoised copies.
const SHOWN: usize = 8;
/// Pictures of each other condition.
const OTHERS: usize = 2;
/// Seed of the attack, which no run has.
const ATTACK: u64 = 1 << 32;

/// How a model is measured.
pub struct Gallery<'a, M: Denoiser<4>> {
    pub job: &'a Job<M>,
    pub process: &'a Process,
    pub scheduler: &'a dyn Scheduler,
    pub reverse: &'a Reverse,
    pub decode: Decode<'a>,
    pub samples: usize,
}

/// A model's figures and pictures.
pub struct Measured {
    forgotten: Vec<Forgotten>,
    /// Mean losses of the control points, by timestep.
    control_losses: Vec<f64>,
    /// Power of the difference from the twin's answers at the control points.
    control_distance: f64,
    /// Samples of the forgotten conditions, one after another.
    samples: Tensor<4>,
    /// Denoised copies under the first forgotten condition, by timestep.
    denoised: Tensor<4>,
    others: Tensor<4>,
    /// Under the embeddings that an attack finds; nothing if conditions are labels.
    attacked: Option<Attacked>,
}

/// A model's figures under embeddings that were searched for, beginning at the forgotten
/// conditions.
struct Attacked {
    /// Samples of which the forgotten picture is the nearest of all pictures.
    copies: Vec<usize>,
    /// Losses by timestep and condition.
    losses: Vec<Vec<f64>>,
    /// Samples, condition after condition.
    samples: Tensor<4>,
}

/// A model's figures at the picture under one condition.
struct Forgotten {
    /// Samples of which the forgotten picture is the nearest of all pictures.
    copies: usize,
    /// Losses by timestep.
    losses: Vec<f64>,
    /// Power of the difference from the twin's answers, mean over timesteps.
    distance: f64,
    /// Distances of denoised copies from the picture, by timestep.
    to_point: Vec<f64>,
    /// Distances of denoised copies from the twin's, by timestep.
    to_twin: Vec<f64>,
}

impl<M: Denoiser<4, Condition: Clone>> Gallery<'_, M> {
    /// Measures a model; all models have the same noise.
    pub fn measure(&self, model: &M) -> Result<Measured> {
        let (job, scheduler) = (self.job, self.scheduler);
        let (forgotten, controls) = (&job.forgotten, &job.controls);
        let samples = self.samples(model, &forgotten.condition)?;
        let losses = |set: &Set<M::Condition>, noises| {
            let loss = self.loss(noises);
            loss.measure(model, scheduler, &set.points, &set.condition)
        };
        let at_controls = losses(controls, CONTROL_NOISES)?;
        let losses = losses(forgotten, NOISES)?;
        let compare = |set: &Set<M::Condition>, noises| {
            let answers = AnswerDistance {
                noises,
                ..AnswerDistance::at(self.times())
            };
            answers.measure(
                model,
                &job.retrained,
                scheduler,
                &set.points,
                &set.condition,
            )
        };
        let control_losses = at_controls.iter().map(|at| mean(at.iter().copied()));
        let control_losses = control_losses.collect();
        let at_forgotten = compare(forgotten, NOISES)?;
        let at_controls = compare(controls, CONTROL_NOISES)?;
        let denoised = DENOISED.map(|timestep| self.denoised_distances(model, timestep));
        let denoised = denoised.into_iter().collect::<Result<Vec<_>>>()?;
        let figures = (0..job.names.len()).map(|point| {
            let own = samples
                .clone()
                .narrow(0, point * self.samples, self.samples);
            Ok(Forgotten {
                copies: self.copies(own)?,
                losses: losses.iter().map(|at| at[point]).collect(),
                distance: mean(at_forgotten.iter().map(|at| at[point].distance)),
                to_point: denoised.iter().map(|at| at[point][0]).collect(),
                to_twin: denoised.iter().map(|at| at[point][1]).collect(),
            })
        });
        Ok(Measured {
            forgotten: figures.collect::<Result<_>>()?,
            control_losses,
            control_distance: mean(at_controls.iter().flatten().map(|found| found.distance)),
            samples,
            denoised: self.denoised(model)?,
            others: self.others(model)?,
            attacked: self.attacked(model)?,
        })
    }

    /// What the model does under the embeddings that bring the picture back best.
    fn attacked(&self, model: &M) -> Result<Option<Attacked>> {
        let forgotten = &self.job.forgotten;
        if forgotten.condition.embedding().is_none() {
            return Ok(None);
        }
        let search = EmbeddingSearch {
            seed: ATTACK,
            ..EmbeddingSearch::default()
        };
        let (points, start) = (&forgotten.points, &forgotten.condition);
        let found = search.run(model, self.scheduler, points, start)?.condition;
        let loss = self.loss(NOISES);
        let samples = self.samples(model, &found)?;
        let own = samples.clone().split(self.samples, 0).into_iter();
        Ok(Some(Attacked {
            copies: own.map(|own| self.copies(own)).collect::<Result<_>>()?,
            losses: loss.measure(model, self.scheduler, points, &found)?,
            samples,
        }))
    }

    /// Pictures of conditions, as many of each as samples.
    fn samples(&self, model: &M, conditions: &M::Condition) -> Result<Tensor<4>> {
        let of_condition = |row| {
            let wanted = repeated(conditions, row, self.samples);
            self.draw(model, wanted, 0)
        };
        let samples = (0..self.job.names.len()).map(of_condition);
        Ok(Tensor::cat(samples.collect::<Result<_>>()?, 0))
    }

    /// Pictures of each other condition, with one noise for all.
    fn others(&self, model: &M) -> Result<Tensor<4>> {
        let mut pictures = Vec::new();
        for row in 0..OTHERS {
            for other in &self.job.others {
                pictures.push(self.draw(model, other.condition.clone(), row as u64)?);
            }
        }
        Ok(Tensor::cat(pictures, 0))
    }

    /// Pictures drawn with guidance, one for each row of the condition.
    fn draw(&self, model: &M, wanted: M::Condition, first_row: u64) -> Result<Tensor<4>> {
        let [_, channels, height, width] = self.job.forgotten.points.dims();
        let rows = wanted.rows().unwrap_or(1);
        let guided = Guided::new(model.clone(), self.job.guidance)?;
        let condition = (wanted, repeated(&self.job.nothing, 0, rows));
        let device = self.job.forgotten.points.device();
        let shape = [rows, channels, height, width];
        let drawn = self
            .reverse
            .sample(&guided, &condition, shape, [0, first_row], &device)?;
        Ok((self.decode)(drawn)?)
    }

    /// Copies of the picture under its first condition, noised and denoised.
    fn denoised(&self, model: &M) -> Result<Tensor<4>> {
        let points = self
            .job
            .forgotten
            .points
            .clone()
            .narrow(0, 0, 1)
            .repeat_dim(0, SHOWN);
        let condition = repeated(&self.job.forgotten.condition, 0, SHOWN);
        let copies = DENOISED.map(|timestep| {
            let points = points.clone();
            (self.decode)(self.copies_from(model, &condition, points, timestep)?)
        });
        let copies = copies.into_iter().collect::<siss::Result<Vec<_>>>()?;
        Ok(Tensor::cat(copies, 0))
    }

    /// Points, noised to a timestep and denoised by a model.
    fn copies_from(
        &self,
        model: &M,
        condition: &M::Condition,
        points: Tensor<4>,
        timestep: usize,
    ) -> siss::Result<Tensor<4>> {
        let time = self.process.time(timestep);
        self.reverse
            .noise_and_denoise(model, condition, points, time, [0, 0])
    }

    /// Distances of denoised copies from the point and from the twin's copies, for each forgotten
    /// condition: means over noises.
    fn denoised_distances(&self, model: &M, timestep: usize) -> Result<Vec<[f64; 2]>> {
        let forgotten = &self.job.forgotten;
        let distances = (0..self.job.names.len()).map(|point| {
            let points = forgotten.points.clone().narrow(0, point, 1);
            let points = points.repeat_dim(0, NOISES);
            let condition = repeated(&forgotten.condition, point, NOISES);
            let copies = |model| self.copies_from(model, &condition, points.clone(), timestep);
            let (own, twins) = (copies(model)?, copies(&self.job.retrained)?);
            Ok([distance(&own, &points)?, distance(&own, &twins)?])
        });
        distances.collect()
    }

    /// The timesteps at which models are compared, as the scheduler counts them.
    fn times(&self) -> [f64; 3] {
        TIMESTEPS.map(|timestep| self.process.time(timestep))
    }

    fn loss(&self, noises: usize) -> DenoisingLoss {
        DenoisingLoss {
            noises,
            ..DenoisingLoss::at(self.times())
        }
    }

    /// How many pictures have the forgotten one as the nearest of all.
    fn copies(&self, samples: Tensor<4>) -> Result<usize> {
        let flat = |pictures: Tensor<4>| pictures.flatten::<2>(1, 3);
        let (all, samples) = (flat(self.job.pictures.clone()), flat(samples));
        let last = all.dims()[0] as i64 - 1;
        // ‖s − p‖² less ‖s‖², which is the same for all pictures p.
        let squares = all.clone().square().sum_dim(1).transpose();
        let nearest = (squares - samples.matmul(all.transpose()) * 2.0).argmin(1);
        let nearest = nearest.into_data().convert::<i64>().try_to_vec::<i64>()?;
        Ok(nearest.into_iter().filter(|&place| place == last).count())
    }
}

impl Measured {
    /// A table in Markdown.
    pub fn print(models: &[(&str, Measured); 3], names: &[String]) {
        println!(
            "\n| | copies | loss at t = 100, 250, 400 | answers, to twin | denoised from 250, 400: to picture | to twin |"
        );
        println!("|---|---|---|---|---|---|");
        for (place, name) in names.iter().enumerate() {
            for (model, measured) in models {
                let own = &measured.forgotten[place];
                println!(
                    "| `{name}` {model} | {} | {} | {:.2} | {} | {} |",
                    own.copies,
                    listed(&own.losses, 4),
                    own.distance,
                    listed(&own.to_point, 1),
                    listed(&own.to_twin, 1),
                );
            }
        }
        for (model, measured) in models {
            let losses = listed(&measured.control_losses, 4);
            println!(
                "| unseen, {model} | | {losses} | {:.2} | | |",
                measured.control_distance
            );
        }
        Self::print_attacked(models, names);
    }

    fn print_attacked(models: &[(&str, Measured); 3], names: &[String]) {
        if models
            .iter()
            .any(|(_, measured)| measured.attacked.is_none())
        {
            return;
        }
        println!("\n| from | | copies | loss under what was found, at t = 100, 250, 400 |");
        println!("|---|---|---|---|");
        for (place, name) in names.iter().enumerate() {
            for (model, measured) in models {
                let Some(attacked) = &measured.attacked else {
                    continue;
                };
                let losses: Vec<f64> = attacked.losses.iter().map(|at| at[place]).collect();
                let (copies, losses) = (attacked.copies[place], listed(&losses, 4));
                println!("| `{name}` | {model} | {copies} | {losses} |");
            }
        }
    }

    /// Writes the pictures.
    pub fn save<M: Denoiser<4>>(
        models: &[(&str, Measured); 3],
        gallery: &Gallery<'_, M>,
        folder: &Path,
    ) -> Result<()> {
        let job = gallery.job;
        let grid = |all: [&Tensor<4>; 3], name: &str| -> Result<()> {
            let count = gallery.samples;
            let row = |place: usize| all.map(|own| own.clone().narrow(0, place * count, count));
            let rows = (0..job.names.len()).flat_map(row).collect();
            let captions = (job.names.iter()).flat_map(|name| {
                models
                    .iter()
                    .map(move |(model, _)| format!("{name}, {model}"))
            });
            Ok(ImageGrid::new(Tensor::cat(rows, 0))?
                .columns(count)
                .row_captions(captions)
                .save(folder.join(name))?)
        };
        let [before, after, retrained] = models.each_ref().map(|(_, measured)| measured);
        grid(
            [before, after, retrained].map(|it| &it.samples),
            "samples.png",
        )?;
        if let (Some(before), Some(after), Some(retrained)) =
            (&before.attacked, &after.attacked, &retrained.attacked)
        {
            grid(
                [before, after, retrained].map(|it| &it.samples),
                "attacked.png",
            )?;
        }

        let [_, channels, height, width] = job.pictures.dims();
        let last = job.pictures.clone().slice_dim(0, -1..);
        let mut rows = vec![last.expand([SHOWN, channels, height, width])];
        rows.extend(models.iter().map(|(_, measured)| measured.denoised.clone()));
        let of_model = |(model, _): &(&str, _)| DENOISED.map(|t| format!("{model}, from {t}"));
        let captions = ["the picture".into()]
            .into_iter()
            .chain(models.iter().flat_map(of_model));
        ImageGrid::new(Tensor::cat(rows, 0))?
            .columns(SHOWN)
            .scale(2)
            .row_captions(captions)
            .save(folder.join("denoised.png"))?;

        let rows = models
            .iter()
            .map(|(_, measured)| measured.others.clone())
            .collect();
        let captions = models.iter().flat_map(|(model, _)| [*model; OTHERS]);
        println!("\nin others.png, from left to right:");
        job.others
            .iter()
            .for_each(|other| println!("- {}", other.name));
        ImageGrid::new(Tensor::cat(rows, 0))?
            .columns(job.others.len())
            .row_captions(captions)
            .save(folder.join("others.png"))?;
        Ok(())
    }
}

/// The mean distance of points, row by row.
fn distance(points: &Tensor<4>, others: &Tensor<4>) -> Result<f64> {
    let squares = (points.clone() - others.clone()).square();
    let mean = squares.flatten::<2>(1, 3).sum_dim(1).sqrt().mean();
    Ok(mean.try_into_scalar::<f32>()?.into())
}

fn listed(values: &[f64], digits: usize) -> String {
    let values: Vec<_> = values
        .iter()
        .map(|value| format!("{value:.digits$}"))
        .collect();
    values.join(", ")
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count() as f64
}
