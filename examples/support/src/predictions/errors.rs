//! Errors of models, and predicted ones, at noisy images.

use rayon::prelude::*;
use siss::answer::PredictedAnswer;
use siss::burn::tensor::{Int, Tensor};
use siss::draws::{Draws, Stream, normal_noise};
use siss::models::UNet2d;
use siss::objective::{Answers, LossInputs};
use siss::prelude::*;
use siss::{DdpmScheduler, Error, Result, SissLoss, UnlearningBatch};

use crate::probe::EVALUATION_SEED;

/// Rows that a model is run on at a time.
const ROWS: usize = 32;

/// Noisy versions of images: image after image, each with its noises.
pub struct NoisyImages {
    noises: usize,
    ids: Vec<u64>,
    clean: Tensor<4>,
    noise: Tensor<4>,
}

impl NoisyImages {
    pub fn new(images: &Tensor<4>, noises: usize) -> Self {
        let count = images.dims()[0];
        let copies = (0..count).map(|row| images.clone().narrow(0, row, 1).repeat_dim(0, noises));
        let clean = Tensor::cat(copies.collect(), 0);
        let (shape, device) = (clean.dims(), clean.device());
        Self {
            noises,
            ids: (0..count * noises)
                .map(|row| (row / noises) as u64)
                .collect(),
            noise: normal_noise(shape, EVALUATION_SEED, 0, 0, Stream::Evaluation, &device),
            clean,
        }
    }

    fn rows(&self) -> usize {
        self.ids.len()
    }

    fn errors(&self, answers: Tensor<4>, target: Tensor<4>) -> Errors {
        let values = (answers - target).into_data().iter::<f32>().collect();
        Errors {
            values,
            rows: self.rows(),
            noises: self.noises,
        }
    }

    /// The errors of a plain model.
    pub fn errors_of(
        &self,
        model: &UNet2d,
        scheduler: &DdpmScheduler,
        timestep: usize,
    ) -> Result<Errors> {
        let timesteps = vec![timestep as f64; self.rows()];
        let scales = scheduler.scales(&timesteps)?;
        let noisy = scales.noisy(&self.clean, &self.noise);
        let kind = Denoiser::<4>::prediction_type(model);
        let answers = outputs(model, &noisy, &timesteps);
        Ok(self.errors(answers, scales.target(kind, &self.clean, &self.noise)))
    }

    /// The objective that asks for an answer at every noisy image.
    pub fn objective(&self, answer: PredictedAnswer<4>) -> Result<Answers<4>> {
        Answers::new(answer).with_forget_rows(self.rows())
    }

    /// The predicted errors of a retrained model; pieces of images are shown to the model inside
    /// retained points.
    pub fn predicted(
        &self,
        objective: &mut Answers<4>,
        (model, scheduler): (&UNet2d, &DdpmScheduler),
        retained: &Tensor<4>,
        timestep: usize,
    ) -> Result<Errors> {
        let timesteps = vec![timestep as f64; self.rows()];
        let of_retained = vec![false; self.rows()];
        let draws = Draws::new(timesteps.clone(), self.noise.clone(), of_retained, 0.5)?
            .with_timesteps(Stream::ForgetTimesteps, timesteps)?
            .with_numbers(Stream::ForgetNoise, self.noise.clone())?;
        // Only the forget term is looked at.
        let count = retained.dims()[0];
        let places: Vec<i32> = (0..self.rows())
            .map(|row| (row * count / self.rows()) as i32)
            .collect();
        let places = Tensor::<1, Int>::from_data(places.as_slice(), &retained.device());
        let around = retained.clone().select(0, places);
        let batch = UnlearningBatch::new(around, self.clean.clone())?;
        let batch = batch.with_forget_ids(self.ids.clone())?;
        let kind = Denoiser::<4>::prediction_type(model);
        let own =
            |noisy: Tensor<4>, timesteps: &[f64], _: &()| Ok(outputs(model, &noisy, timesteps));
        let inputs = LossInputs::new(&batch, &draws, scheduler, kind)?.with_teacher(&own);
        let term = objective.terms(&inputs)?.forget;
        let asked = term.and_then(|term| Some((term.target, term.own_target?)));
        let Some((answers, target)) = asked else {
            return Err(Error::MissingPart {
                owner: "the objective".into(),
                missing: "forget term with targets of its own",
                remedy: "ask one that teaches answers",
            });
        };
        Ok(self.errors(answers, target))
    }
}

/// The model's outputs.
fn outputs(model: &UNet2d, noisy: &Tensor<4>, timesteps: &[f64]) -> Tensor<4> {
    let parts = timesteps
        .par_chunks(ROWS)
        .enumerate()
        .map(|(part, timesteps)| {
            let noisy = noisy.clone().narrow(0, part * ROWS, timesteps.len());
            let timesteps: Vec<f32> = timesteps.iter().map(|&timestep| timestep as f32).collect();
            let timesteps = Tensor::from_data(timesteps.as_slice(), &noisy.device());
            model.predict(noisy, timesteps, &())
        });
    Tensor::cat(parts.collect(), 0)
}

/// The errors at noisy images, row after row.
pub struct Errors {
    values: Vec<f32>,
    rows: usize,
    noises: usize,
}

impl Errors {
    /// Multiplies those of each image by its factor.
    pub fn scale(&mut self, factor: impl Fn(usize) -> f64) {
        let of_image = self.values.len() / self.rows * self.noises;
        for (image, values) in self.values.chunks_mut(of_image).enumerate() {
            let factor = factor(image) as f32;
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }

    /// For each image the cosine of its errors with those of a reference, mean over noises, and the
    /// power of their difference over the power of the reference.
    pub fn against(&self, reference: &Self) -> Vec<(f64, f64)> {
        let elements = self.values.len() / self.rows;
        let rows = self.values.chunks(elements);
        let products: Vec<_> = (rows.zip(reference.values.chunks(elements)))
            .map(|(own, other)| [dot(own, own), dot(own, other), dot(other, other)])
            .collect();
        let of_image = |products: &[[f64; 3]]| {
            let cosines = products
                .iter()
                .map(|[own, inner, other]| inner / (own * other).sqrt());
            let cosine = cosines.sum::<f64>() / products.len() as f64;
            let differences = products
                .iter()
                .map(|[own, inner, other]| own - 2.0 * inner + other);
            let powers = products.iter().map(|[.., other]| other);
            (cosine, differences.sum::<f64>() / powers.sum::<f64>())
        };
        products.chunks(self.noises).map(of_image).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(values: &[f32]) -> Errors {
        Errors {
            values: values.to_vec(),
            rows: 4,
            noises: 2,
        }
    }

    /// Two images of two elements, with two noises each.
    #[test]
    fn figures_are_of_each_image_and_scaling_leaves_the_cosine() {
        let reference = errors(&[1.0, 0.0, 0.0, 2.0, 3.0, 4.0, 1.0, 0.0]);
        let mut found = errors(&[2.0, 0.0, 2.0, 0.0, 3.0, 4.0, 1.0, 0.0]);
        let (first, second) = ((0.5, 9.0 / 5.0), (1.0, 0.0));
        assert_eq!(found.against(&reference), [first, second]);
        // The first image's errors become (1, 0) and (1, 0): the difference is (0, 0) and (1, −2).
        found.scale(|image| [0.5, 3.0][image]);
        assert_eq!(found.against(&reference), [(0.5, 1.0), (1.0, 4.0)]);
    }
}
