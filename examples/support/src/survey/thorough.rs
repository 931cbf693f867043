//! What takes longer to measure of a model than its distances.

use siss::DdpmScheduler;
use siss::burn::tensor::Tensor;
use siss::evaluate::DenoisingLoss;
use siss::metrics::{Features, Likelihood, Relearning, Roc, SlicedDistance};
use siss::models::UNet2d;

use crate::cases::CaseData;
use crate::closeness::neighbours;
use crate::probe::{EVALUATION_SEED, Probe, mean};
use crate::progress::Progress;
use crate::trained::Trained;

use super::Result;

/// Timesteps of the losses that tell members from others, fixed here and not chosen by results.
const TIMESTEPS: [usize; 3] = [100, 250, 400];
/// Noises of each of these losses.
const NOISES: usize = 4;
/// Points that no model has seen, among which a forgotten point is looked for.
const CONTROLS: usize = 200;
/// Points whose likelihood is measured, at most, and the local error of a step of the equation: a
/// hundred times that of the published protocol, for fewer steps.
const LIKELY: usize = 16;
const TOLERANCE: f64 = 1e-3;
/// Steps of fine-tuning on images like the forgotten ones: at most, and between two looks.
const STEPS: u64 = 60;
const EVERY: u64 = 5;
/// Where the loss is measured meanwhile.
const RELEARNT_AT: usize = 250;
/// Fewest generated images that are compared.
const FEWEST: usize = 100;

/// Measured with `--thorough`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thorough {
    /// Bits per dimension of points that no model has seen, and of forgotten ones.
    pub likelihood: [f64; 2],
    /// Area under the ROC curve of the losses of forgotten points among those of points that no
    /// model has seen, mean over the timesteps: 1 if the forgotten points have the lowest.
    pub membership: f64,
    /// Steps of fine-tuning after which the forgotten points are half way back; `None` if they are
    /// not within 60.
    pub relearning: Option<u64>,
    /// Squared sliced Wasserstein distance of the pixels of generated images without copies from
    /// points that no model has seen; `None` for fewer than a hundred.
    pub sliced: Option<f64>,
}

/// What the measures of a case have in common.
#[derive(Clone, Copy)]
pub struct Measures<'a> {
    pub probe: &'a Probe,
    pub trained: &'a Trained,
    pub data: &'a CaseData,
    /// Forgotten points that the retrained models never saw.
    pub forgotten: &'a Tensor<4>,
}

impl Measures<'_> {
    /// Measures a model, and the images that it generated without copies.
    pub fn of(
        &self,
        model: &UNet2d,
        images: Option<&Tensor<4>>,
        progress: &dyn Progress,
    ) -> Result<Thorough> {
        progress.phase("likelihood");
        let likelihood = [
            self.likelihood(model, &self.data.heldout)?,
            self.likelihood(model, self.forgotten)?,
        ];
        progress.phase("membership");
        let membership = self.membership(model)?;
        progress.phase("teaching again");
        let relearning = self.relearning(model)?;
        progress.phase("distance of the generated images");
        let sliced = images.map(|images| self.sliced(images)).transpose()?;
        Ok(Thorough {
            likelihood,
            membership,
            relearning,
            sliced: sliced.flatten(),
        })
    }

    /// Mean bits per dimension of the first points.
    fn likelihood(&self, model: &UNet2d, points: &Tensor<4>) -> Result<f64> {
        let measure = Likelihood {
            relative_tolerance: TOLERANCE,
            absolute_tolerance: TOLERANCE,
            ..Likelihood::default()
        };
        let points = first(points, LIKELY);
        let found = measure.measure(model, &points, &())?;
        let bits: Vec<f64> = found.iter().map(|it| it.bits_per_dimension).collect();
        Ok(mean(&bits))
    }

    fn membership(&self, model: &UNet2d) -> Result<f64> {
        let controls = first(&self.data.heldout, CONTROLS);
        let losses = |points| (self.probe).mean_losses(model, points, &TIMESTEPS, NOISES);
        let pairs = losses(self.forgotten)?.into_iter().zip(losses(&controls)?);
        let areas = pairs.map(|(members, others)| area(&members, &others));
        Ok(mean(&areas.collect::<Result<Vec<f64>>>()?))
    }

    /// Fine-tunes on images that resemble the forgotten points.
    fn relearning(&self, model: &UNet2d) -> Result<Option<u64>> {
        let scheduler = DdpmScheduler::from_config(&self.trained.config)?;
        let loss = DenoisingLoss {
            noises: 4 * NOISES,
            seed: EVALUATION_SEED,
            ..DenoisingLoss::at([RELEARNT_AT as f64])
        };
        let of = |model: &UNet2d| -> Result<f64> {
            let losses = loss.measure(model, &scheduler, self.forgotten, &())?;
            Ok(mean(&losses.concat()))
        };
        // The same for every method: half way on a logarithmic scale from a model that never saw
        // the points to the one that memorised.
        let level = (of(&self.trained.model)? * of(&self.trained.retrained)?).sqrt();
        let similar = neighbours(self.forgotten).map(|(_, images)| images);
        let similar = Tensor::cat(similar.to_vec(), 0);
        let attack = Relearning {
            steps: STEPS,
            every: EVERY,
            batch_size: 32,
            ..Relearning::at(loss.clone())
        };
        let points = (self.forgotten, &());
        let curve = attack.run(model.clone(), &scheduler, (&similar, &()), points, level)?;
        Ok(curve.back_after)
    }

    fn sliced(&self, images: &Tensor<4>) -> Result<Option<f64>> {
        if images.dims()[0] < FEWEST {
            return Ok(None);
        }
        let real = first(&self.data.heldout, images.dims()[0]);
        let [real, generated] =
            [&real, images].map(|images| Features::of("pixels", images.clone().flatten(1, 3)));
        let found = SlicedDistance::default().compare(&real?, &generated?)?;
        Ok(Some(found.value))
    }
}

/// The area under the ROC curve of losses, low for members.
fn area(members: &[f64], controls: &[f64]) -> Result<f64> {
    let [members, controls] =
        [members, controls].map(|losses| losses.iter().map(|loss| -loss).collect::<Vec<_>>());
    Ok(Roc::new(&members, &controls)?.area().value)
}

/// The first points of a set, at most so many.
fn first(points: &Tensor<4>, most: usize) -> Tensor<4> {
    let count = points.dims()[0].min(most);
    points.clone().narrow(0, 0, count)
}

#[cfg(test)]
mod tests {
    use siss::burn::module::{Module, ModuleMapper, Param};
    use siss::draws::{Stream, normal_noise};
    use siss::process::SchedulerConfig;

    use super::*;
    use crate::probe::Chunks;
    use crate::progress::Silent;
    use crate::small::{device, unet};

    fn points(count: usize, seed: u64) -> Tensor<4> {
        let shape = [count, 3, 8, 8];
        normal_noise(shape, seed, 0, 0, Stream::Evaluation, &device())
    }

    fn mean_square(points: &Tensor<4>) -> f64 {
        f64::from(points.clone().square().mean().into_scalar::<f32>())
    }

    /// A model that always answers zero.
    fn silent() -> UNet2d {
        struct Zero;
        impl ModuleMapper for Zero {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|value| value.zeros_like())
            }
        }
        unet(0).map(&mut Zero)
    }

    #[test]
    fn what_is_known_is_told_from_what_is_not() {
        let chunks = Chunks {
            rows: 32,
            in_parallel: true,
        };
        let probe = Probe::new(&SchedulerConfig::default(), chunks).unwrap();
        let scale = 1000.0;
        let data = CaseData {
            retain: points(9, 0),
            heldout: points(120, 1) * scale,
            forget: points(2, 2),
        };
        let loss = |model: &UNet2d| {
            let losses = probe.mean_losses(model, &data.forget, &[RELEARNT_AT], 16);
            mean(&losses.unwrap().concat())
        };
        let mut models = [unet(0), unet(1)];
        models.sort_by(|one, other| loss(one).total_cmp(&loss(other)));
        let [model, retrained] = models;
        let trained = Trained {
            config: SchedulerConfig::default(),
            model,
            again: vec![retrained.clone()],
            retrained,
        };
        let measures = Measures {
            probe: &probe,
            trained: &trained,
            data: &data,
            forgotten: &data.forget,
        };
        let images = data.heldout.clone() + 1.0;
        let found = measures.of(&trained.model, Some(&images), &Silent).unwrap();
        assert_eq!(found.relearning, Some(0));
        // Without noise in it, a point becomes γ(T) x, and −log p(γ(T) x) has a term γ(T)² x² / 2.
        // The tolerance of the equation lets 8 % through.
        let silent = silent();
        let likelihood = |points| measures.likelihood(&silent, points).unwrap();
        let difference = likelihood(&data.heldout) - likelihood(&data.forget);
        let square = |points: &Tensor<4>| mean_square(&first(points, LIKELY));
        let gamma2 = 4.036e-5;
        let expected =
            gamma2 / (2.0 * f64::ln(2.0)) * (square(&data.heldout) - square(&data.forget));
        assert!(
            (difference / expected - 1.0).abs() < 0.1,
            "{difference} {expected}"
        );
        // 3 d μ² for a shift by μ.
        let expected = 3.0 * 192.0;
        assert!((found.sliced.unwrap() / expected - 1.0).abs() < 0.1);

        // Points among themselves, and points with lower losses.
        let same = Measures {
            forgotten: &data.heldout,
            ..measures
        };
        assert_eq!(same.membership(&trained.model).unwrap(), 0.5);
        assert_eq!(area(&[0.1], &[0.2, 0.3, 0.05, 0.4]).unwrap(), 0.75);

        let few = first(&images, FEWEST - 1);
        let found = measures
            .of(&trained.retrained, Some(&few), &Silent)
            .unwrap();
        assert_ne!(found.relearning, Some(0));
        assert_eq!(found.sliced, None);
    }
}
