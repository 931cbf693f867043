//! Measures a model on the forgotten images, and on images that it is not trained on.

use serde::{Deserialize, Serialize};
use siss::Result;
use siss::burn::tensor::Tensor;
use siss::metrics::{CopyProtocol, CopySimilarity, Estimate, Features, frechet_distance};
use siss::report::{binomial_interval, percentile_rank, quantile};
use siss::sampling::{DdpmSampler, Sampler};

use crate::probe::{ByTimestep, EVALUATION_SEED, Probe, distances, enough, mean};
use crate::progress::Progress;
use crate::subject::{ConditionOf, Generation, Points, Subject};
use crate::unlearn::predicted::{Figures, Predicted};
use crate::unlearn::published::{Costs, PublishedNetworks, Similarity};

/// Fewest rows over which the loss of small forgotten images is averaged: few images are measured
/// with many noises.
const FORGET_ROWS: usize = 32;
/// Most forgotten images whose loss is measured.
const MOST_MEASURED: usize = 256;
/// Number of forgotten images that are noised and denoised.
const DENOISED: usize = 8;
/// Number of denoised copies of each image, and of a single small image.
const COPIES: usize = 4;
const COPIES_OF_ONE: usize = 8;
/// Rows of either side per measurement of small images during the run.
const ROWS_ALONG: usize = 16;

/// The copies of each image whose similarity is measured, and the steps of their sampler, as in the
/// SISS paper.
const PROTOCOL: CopyProtocol = CopyProtocol::MeanOfSixteen;
const COPY_STEPS: usize = 50;

/// Pixels of the images that are generated at a time to be saved, and most images.
const FEW_PIXELS: usize = 1 << 22;
const MOST_DRAWN: usize = 256;

/// The results of measuring a model.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    pub samples: usize,
    /// Number of samples near a forgotten image.
    pub near_count: usize,
    pub near_share: f64,
    pub near_share_interval: [f64; 2],
    /// Mean over the forgotten images.
    pub forget_loss: ByTimestep,
    /// Rank of `forget_loss` among the losses of the control images, in percent.
    pub forget_loss_percentile: ByTimestep,
    /// Mean over the control images.
    pub control_loss: ByTimestep,
    /// Mean distance of the forgotten images from their denoised copies, pixels in `[0, 1]`.
    pub denoise_l2: f64,
    /// Of the samples against as many retained images, if weights were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<Estimate>,
    /// Of the first forgotten images with their denoised copies by SSCD, if weights were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sscd: Option<Similarity>,
}

/// The results of measuring a model, and the data behind them.
pub struct Evaluated {
    pub figures: Evaluation,
    /// Generated images with values from −1 to 1, `[samples, channels, height, width]`.
    pub generated: Tensor<4>,
    /// Denoised copies with values from −1 to 1, image after image, as in [`Examiner::shown`].
    pub denoised: Tensor<4>,
    /// The losses of the first forgotten images one by one.
    pub each: Vec<ImageLoss>,
}

/// The loss of one image at timestep T/4.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ImageLoss {
    pub loss: f64,
    /// Rank among the losses of the control images, in percent.
    pub percentile: f64,
}

/// Losses measured during the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Along {
    pub forget_loss: ByTimestep,
    pub control_loss: ByTimestep,
}

/// The time of the measurements, and what they are.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measuring {
    /// Images that are run through the model.
    pub images: usize,
    /// Images that are run through the networks of FID and SSCD.
    #[serde(skip_serializing_if = "is_none")]
    pub described: usize,
    /// How long they take, judging from a few before the first measurement.
    pub announced_seconds: f64,
    /// How long they took.
    pub seconds: f64,
    /// How long one image takes.
    #[serde(skip)]
    pub each: f64,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

/// Networks with published weights, and what they measure models with.
struct Published {
    networks: PublishedNetworks,
    /// Of as many retained images as there are samples.
    retained: Option<Features>,
}

/// The data used to measure models.
pub struct Examiner<'a, S: Subject> {
    subject: &'a S,
    probe: Probe,
    forget: Points<ConditionOf<S>>,
    control: Points<ConditionOf<S>>,
    /// The forgotten images with values from −1 to 1.
    forget_pictures: Tensor<4>,
    samples: usize,
    /// T/10, T/4 and 2T/5.
    pub timesteps: [usize; 3],
    /// For each forgotten image, the distance below which a sample counts as near.
    near: Vec<f64>,
    /// Number of control images that count as near.
    near_controls: usize,
    published: Option<Published>,
}

impl<'a, S: Subject> Examiner<'a, S> {
    /// # Shapes
    /// - `pictures`: the forgotten and the control images with values from −1 to 1,
    ///   `[count, channels, height, width]`; the latter never trained on
    pub fn new(
        subject: &'a S,
        probe: Probe,
        [forget, control]: [Points<ConditionOf<S>>; 2],
        pictures: [Tensor<4>; 2],
        samples: usize,
        num_timesteps: usize,
    ) -> Result<Self> {
        let half_the_median = |column: Vec<f64>| Ok(0.5 * quantile(&column, 0.5)?);
        let [forget_pictures, control_pictures] = pictures;
        let near = pairwise(&forget_pictures, &control_pictures)
            .into_iter()
            .map(half_the_median)
            .collect::<Result<_>>()?;
        let mut examiner = Self {
            subject,
            probe,
            forget,
            control,
            forget_pictures,
            samples,
            timesteps: [num_timesteps / 10, num_timesteps / 4, 2 * num_timesteps / 5],
            near,
            near_controls: 0,
            published: None,
        };
        examiner.near_controls = examiner.near_count(&control_pictures);
        Ok(examiner)
    }

    /// Measures FID and SSCD as well, as far as there are networks for them.
    ///
    /// # Shapes
    /// - `retained`: pictures with values from −1 to 1, `[count, channels, height, width]`
    pub fn add_published(
        &mut self,
        networks: PublishedNetworks,
        retained: &Tensor<4>,
        progress: &dyn Progress,
    ) -> Result<()> {
        if networks.has_fid() {
            progress.phase("describing retained images");
        }
        self.published = Some(Published {
            retained: networks.features(retained)?,
            networks,
        });
        Ok(())
    }

    /// The sampler of copies whose similarity is measured.
    fn copier(&self) -> Result<DdpmSampler> {
        self.probe.process().ancestral(COPY_STEPS)
    }

    /// The timestep from which images are denoised and at which each image is reported.
    pub fn middle(&self) -> usize {
        self.timesteps[1]
    }

    /// Number of control images that count as near, which shows how sharp the criterion is.
    pub fn near_controls(&self) -> usize {
        self.near_controls
    }

    /// Mean, over the forgotten images, of the distance below which a sample counts as near.
    pub fn near_distance(&self) -> f64 {
        mean(&self.near)
    }

    /// What two evaluations and `looks` measurements during the run take. `saved`: images that are
    /// generated to be saved, before or after. `published`: the networks of FID and SSCD with what
    /// they take, and the number of retained images for FID.
    pub fn measuring(
        &self,
        model: &S::Model,
        (looks, saved): (usize, usize),
        (networks, costs, retained): (&PublishedNetworks, &Costs, usize),
    ) -> Result<Measuring> {
        let per_sample = if self.subject.guidance().is_some() {
            2
        } else {
            1
        };
        let [sampling, denoising] = self.probe.calls(self.middle());
        let generated = sampling * self.samples.max(saved)
            + denoising * self.copy_rows().len()
            + self.copying(networks)?;
        let losses = |rows: usize, most, controls| {
            let count = self.forget.count().min(most);
            self.timesteps.len() * (rows.next_multiple_of(count) + controls)
        };
        let evaluation = per_sample * generated
            + losses(
                self.enough(FORGET_ROWS),
                MOST_MEASURED,
                self.control.count(),
            );
        let along = self.enough(ROWS_ALONG);
        let look = losses(along, along, along.min(self.control.count()));
        let images = 2 * evaluation + looks * look;
        let control = (&self.control.points, &self.control.condition);
        let each = self
            .probe
            .seconds_per_image(model, control, self.middle())?;
        let of_fid = if networks.has_fid() {
            [retained, self.samples]
        } else {
            [0; 2]
        };
        let of_sscd = self.similar(networks) * (1 + PROTOCOL.copies());
        let described = of_fid[0] + 2 * (of_fid[1] + of_sscd);
        Ok(Measuring {
            images,
            described,
            announced_seconds: each * images as f64 + costs.seconds(of_fid, of_sscd),
            seconds: 0.0,
            each,
        })
    }

    /// Number of images whose similarity to their copies is measured.
    fn similar(&self, networks: &PublishedNetworks) -> usize {
        match networks.has_sscd() {
            true => DENOISED.min(self.forget.count()),
            false => 0,
        }
    }

    /// Images that are run through the model for these copies.
    fn copying(&self, networks: &PublishedNetworks) -> Result<usize> {
        let copies = self.similar(networks) * PROTOCOL.copies();
        if copies == 0 {
            return Ok(0);
        }
        let copier = self.copier()?;
        let below = copier.timesteps().iter();
        let below = below.filter(|&&below| below < self.middle());
        Ok(copies * (1 + below.count()))
    }

    /// Measures a plain model (`model.valid()`).
    pub fn evaluate(
        &self,
        model: &S::Model,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<Evaluated> {
        let generated = self.sample(model, 0, self.samples, |done| {
            progress.phase(&format!("sampling {name}: {done} of {}", self.samples));
        })?;
        let near_count = self.near_count(&generated);
        let (low, high) = binomial_interval(near_count as u64, self.samples as u64, 0.95)?;
        progress.phase(&format!("denoising {name}"));
        let copies = self.copies();
        let denoised = self.generation().denoise(model, &copies, self.middle())?;
        let mut figures = Evaluation {
            samples: self.samples,
            near_count,
            near_share: near_count as f64 / self.samples as f64,
            near_share_interval: [low, high],
            forget_loss: ByTimestep::new(),
            forget_loss_percentile: ByTimestep::new(),
            control_loss: ByTimestep::new(),
            denoise_l2: mean(&distances(&denoised, &self.copied(&self.forget_pictures))),
            fid: self.fid(&generated, name, progress)?,
            sscd: self.sscd(model, name, progress)?,
        };
        let mut each = Vec::new();
        for timestep in self.timesteps {
            progress.phase(&format!("losses {name}, t = {timestep}"));
            let rows = self.enough(FORGET_ROWS);
            let forget = self.forget_losses(model, timestep, rows, MOST_MEASURED)?;
            let control = self.losses(model, &self.control, timestep)?;
            if timestep == self.middle() {
                let rank = |&loss: &f64| ImageLoss {
                    loss,
                    percentile: percentile_rank(loss, &control),
                };
                each = forget.iter().map(rank).collect();
            }
            let (key, loss) = (timestep.to_string(), mean(&forget));
            let percentile = percentile_rank(loss, &control);
            figures.forget_loss.insert(key.clone(), loss);
            figures
                .forget_loss_percentile
                .insert(key.clone(), percentile);
            figures.control_loss.insert(key, mean(&control));
        }
        Ok(Evaluated {
            figures,
            generated,
            denoised,
            each,
        })
    }

    /// FID of generated pictures, if there is a network for it.
    fn fid(
        &self,
        generated: &Tensor<4>,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<Option<Estimate>> {
        let Some(Published {
            networks,
            retained: Some(retained),
            ..
        }) = &self.published
        else {
            return Ok(None);
        };
        progress.phase(&format!("FID {name}"));
        let features = networks.features(generated)?;
        let distance = features.map(|features| frechet_distance(retained, &features));
        distance.transpose()
    }

    /// How similar the first forgotten images are to their copies, if there is a network for it.
    fn sscd(
        &self,
        model: &S::Model,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<Option<Similarity>> {
        let networks = self.published.as_ref().map(|it| &it.networks);
        let Some((networks, describe)) = networks.and_then(|it| Some((it, it.describe()?))) else {
            return Ok(None);
        };
        progress.phase(&format!("SSCD {name}"));
        let measure = CopySimilarity {
            timestep: self.middle(),
            seed: EVALUATION_SEED,
            micro_batch_size: self.probe.rows(),
            ..CopySimilarity::new(PROTOCOL)
        };
        let images = self.forget.first(self.similar(networks));
        let images =
            self.generation()
                .similarity(model, &images, (&measure, &self.copier()?), describe)?;
        Similarity::of(images).map(Some)
    }

    /// The figures of a prediction at the timesteps, and of the images, that are measured.
    pub fn of(&self, predicted: &Predicted<ConditionOf<S>>) -> Result<Option<Figures>> {
        predicted.figures(self.probe.process(), self.timesteps, MOST_MEASURED)
    }

    /// Passes the first `count` generated images to `save`, a few at a time with the number of the
    /// first: those in memory, then newly generated ones.
    pub fn each_sample(
        &self,
        model: &S::Model,
        generated: &Tensor<4>,
        count: usize,
        progress: impl Fn(usize) + Sync,
        mut save: impl FnMut(usize, Tensor<4>) -> Result<()>,
    ) -> Result<()> {
        let [known, _, height, width] = generated.dims();
        let few = (FEW_PIXELS / (height * width)).clamp(1, MOST_DRAWN);
        for first in (0..count.min(known)).step_by(few) {
            let some = few.min(count.min(known) - first);
            save(first, generated.clone().narrow(0, first, some))?;
        }
        for first in (known..count).step_by(few) {
            let done = |done| progress(first + done);
            save(
                first,
                self.sample(model, first, few.min(count - first), done)?,
            )?;
        }
        Ok(())
    }

    /// The losses, measured with few noises.
    pub fn look(&self, model: &S::Model) -> Result<Along> {
        let rows = self.enough(ROWS_ALONG);
        let control = self.control.first(rows.min(self.control.count()));
        let mut along = Along {
            forget_loss: ByTimestep::new(),
            control_loss: ByTimestep::new(),
        };
        for timestep in self.timesteps {
            let forget = self.forget_losses(model, timestep, rows, rows)?;
            let control = self.losses(model, &control, timestep)?;
            let key = timestep.to_string();
            along.forget_loss.insert(key.clone(), mean(&forget));
            along.control_loss.insert(key, mean(&control));
        }
        Ok(along)
    }

    /// The forgotten images that are noised and denoised, with values from −1 to 1, and the number
    /// of copies of each.
    pub fn shown(&self) -> (Tensor<4>, usize) {
        let (count, copies) = self.denoised();
        (self.forget_pictures.clone().narrow(0, 0, count), copies)
    }

    /// Number of images that are denoised, and of copies of each.
    fn denoised(&self) -> (usize, usize) {
        match DENOISED.min(self.forget.count()) {
            1 => (1, self.enough(COPIES_OF_ONE)),
            count => (count, COPIES),
        }
    }

    /// How many of the points do for `count` small ones.
    fn enough(&self, count: usize) -> usize {
        enough(count, self.forget.points.dims()[1..].iter().product())
    }

    /// The row of each copy of the shown images, image after image.
    fn copy_rows(&self) -> Vec<usize> {
        let (count, copies) = self.denoised();
        (0..count * copies).map(|copy| copy / copies).collect()
    }

    fn copies(&self) -> Points<ConditionOf<S>> {
        self.forget.rows(&self.copy_rows())
    }

    fn copied(&self, pictures: &Tensor<4>) -> Tensor<4> {
        let rows = self.copy_rows().into_iter();
        let rows = rows.map(|row| pictures.clone().narrow(0, row, 1));
        Tensor::cat(rows.collect(), 0)
    }

    fn generation(&self) -> Generation<'_, S> {
        Generation {
            subject: self.subject,
            probe: &self.probe,
        }
    }

    /// Pictures from number `first` on, each under the condition of a forgotten image in turn.
    fn sample(
        &self,
        model: &S::Model,
        first: usize,
        count: usize,
        progress: impl Fn(usize) + Sync,
    ) -> Result<Tensor<4>> {
        let numbers = (first, count);
        self.generation()
            .sample(model, &self.forget, numbers, progress)
    }

    /// The model's loss on each point under its own condition, without guidance.
    fn losses(
        &self,
        model: &S::Model,
        points: &Points<ConditionOf<S>>,
        timestep: usize,
    ) -> Result<Vec<f64>> {
        self.probe
            .losses(model, (&points.points, &points.condition), timestep)
    }

    /// The loss of each of the first forgotten images, with enough noises for at least `rows` rows.
    fn forget_losses(
        &self,
        model: &S::Model,
        timestep: usize,
        rows: usize,
        most: usize,
    ) -> Result<Vec<f64>> {
        let count = self.forget.count().min(most);
        let noises = rows.div_ceil(count);
        let rows: Vec<usize> = (0..noises).flat_map(|_| 0..count).collect();
        let losses = self.losses(model, &self.forget.rows(&rows), timestep)?;
        let of_image = |image| losses.iter().skip(image).step_by(count).sum::<f64>();
        Ok((0..count)
            .map(|image| of_image(image) / noises as f64)
            .collect())
    }

    /// Number of images near a forgotten one.
    fn near_count(&self, images: &Tensor<4>) -> usize {
        let is_near = |distances: &Vec<f64>| {
            let mut pairs = distances.iter().zip(&self.near);
            pairs.any(|(distance, near)| distance < near)
        };
        let distances = pairwise(images, &self.forget_pictures);
        distances.iter().filter(|row| is_near(row)).count()
    }
}

/// Euclidean distances with pixels in `[0, 1]`: from each image of the first batch to all of the
/// second.
fn pairwise(images: &Tensor<4>, others: &Tensor<4>) -> Vec<Vec<f64>> {
    let [images, others] = [images, others].map(|batch| batch.clone().flatten::<2>(1, 3) / 2.0);
    let norms = |batch: &Tensor<2>| (batch.clone() * batch.clone()).sum_dim(1);
    // ‖a − b‖² = ‖a‖² + ‖b‖² − 2⟨a, b⟩
    let squares = norms(&images) + norms(&others).transpose()
        - images.matmul(others.clone().transpose()) * 2.0;
    let values: Vec<f64> = squares.into_data().iter::<f64>().collect();
    values
        .chunks_exact(others.dims()[0])
        .map(|row| row.iter().map(|square| square.max(0.0).sqrt()).collect())
        .collect()
}
