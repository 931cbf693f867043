//! Measures a model and the ideal denoisers of its data over the grid.

use std::collections::BTreeSet;

use burn::tensor::Tensor;

use super::config::CounterfactualConfig;
use super::data::CounterfactualData;
use super::form::Forms;
use super::ideal::Posterior;
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, normal_noise};
use crate::error::Result;
use crate::evaluate::{DenoisingLoss, parts, residual};
use crate::host::{read_f32, select_rows, squared_norms, to_f32};
use crate::process::Scales;

/// The most control points on which patch sizes are compared.
pub(super) const PROBES: usize = 32;

/// The most control points on which the effect of a cut of the retained images is measured.
const CUT_PROBES: usize = 8;

/// The most numbers and rows of the reconstructions of one pass over the retained points.
const PASS_ELEMENTS: usize = 1 << 26;
const PASS_ROWS: usize = 1024;

/// Timesteps of the grid with the same patch, by their number in the grid.
pub(super) struct SamePatch {
    patch: Option<usize>,
    indices: Vec<usize>,
}

pub(super) fn same_patches(patches: &[usize], timesteps: usize) -> Vec<SamePatch> {
    if patches.is_empty() {
        return vec![SamePatch {
            patch: None,
            indices: (0..timesteps).collect(),
        }];
    }
    let sizes: BTreeSet<usize> = patches.iter().copied().collect();
    let of_size = |size| SamePatch {
        patch: Some(size),
        indices: (0..timesteps)
            .filter(|&index| patches[index] == size)
            .collect(),
    };
    sizes.into_iter().map(of_size).collect()
}

/// Reports the share of the rows that are done, each at one timestep.
pub(super) struct Progress<'a> {
    pub(super) tell: &'a mut dyn FnMut(f64),
    pub(super) timesteps: usize,
    pub(super) done: usize,
    pub(super) total: usize,
}

impl Progress<'_> {
    /// Rows at every timestep.
    fn add(&mut self, rows: usize) {
        self.add_single(rows * self.timesteps);
    }

    pub(super) fn add_single(&mut self, rows: usize) {
        self.done += rows;
        (self.tell)(self.done as f64 / self.total as f64);
    }
}

/// A model and its data on the grid.
///
/// A row has the same noise at every timestep, so the noise is drawn only once.
pub(super) struct Probe<'a, const D: usize, M: Denoiser<D>> {
    pub(super) model: M,
    pub(super) timesteps: &'a [f64],
    /// The scales of each timestep.
    pub(super) scales: &'a Scales,
    pub(super) data: CounterfactualData<'a, D, M::Condition>,
    pub(super) config: &'a CounterfactualConfig,
}

impl<const D: usize, M: Denoiser<D>> Probe<'_, D, M> {
    /// The ideal denoiser's error by timestep and point, mean over noises and elements.
    pub(super) fn ideal_errors(
        &self,
        forms: &Forms<'_>,
        patches: &[SamePatch],
        noises: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let [points, elements] = forms.ideal.shape();
        let mut means = vec![vec![0.0; points]; self.timesteps.len()];
        let size = PASS_ELEMENTS / (elements * self.timesteps.len());
        for (first, rows) in parts(points, noises, size.clamp(1, PASS_ROWS)) {
            let noise = self.noise([rows.len(), elements], first);
            for part in patches {
                let posterior = forms.posterior(part.patch);
                let errors =
                    self.errors(forms, posterior.as_ref(), &rows, &noise, &part.indices)?;
                for (&index, errors) in part.indices.iter().zip(errors.chunks(rows.len())) {
                    for (&row, &error) in rows.iter().zip(errors) {
                        means[index][row] += f64::from(error) / noises as f64;
                    }
                }
            }
            progress.add(rows.len());
        }
        Ok(means)
    }

    /// A posterior's error at some timesteps of the grid, one timestep after another.
    fn errors(
        &self,
        forms: &Forms<'_>,
        posterior: &dyn Posterior,
        rows: &[usize],
        noise: &Tensor<2>,
        indices: &[usize],
    ) -> Result<Vec<f32>> {
        let means = posterior.means(rows, noise, &self.ratios(indices))?;
        let errors = means.into_iter().map(|mean| forms.ideal.errors(rows, mean));
        read_f32(
            Tensor::cat(errors.collect(), 0),
            "the ideal denoiser's errors",
        )
    }

    fn ratios(&self, indices: &[usize]) -> Vec<f64> {
        let ratios = self.scales.ratios();
        indices.iter().map(|&index| ratios[index]).collect()
    }

    /// The patch size at each timestep whose denoiser is nearest to the model on control points;
    /// empty for whole points.
    pub(super) fn choose_patches(
        &self,
        forms: &Forms<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<usize>> {
        let sizes = self.config.form.sizes();
        let Some(&smallest) = sizes.first() else {
            return Ok(Vec::new());
        };
        let [points, elements] = forms.ideal.shape();
        let rows: Vec<usize> = (0..points.min(PROBES)).collect();
        let clean = to_f32(select_rows(self.data.controls, &rows).inner());
        let noise = self.noise(clean.dims(), 0);
        let condition = self.data.control_condition.take_rows(&rows);
        let residual = |index| {
            let residual = self.residual(&clean, &noise, &condition, index);
            residual.map(|residual| residual.reshape([rows.len(), elements]))
        };
        let indices: Vec<usize> = (0..self.timesteps.len()).collect();
        let residuals: Vec<_> = indices
            .iter()
            .map(|&i| residual(i))
            .collect::<Result<_>>()?;
        let noise = noise.clone().reshape([rows.len(), elements]);
        let mut best = vec![(f64::INFINITY, smallest); indices.len()];
        for &size in sizes {
            let posterior = forms.posterior(Some(size));
            let means = posterior.means(&rows, &noise, &self.ratios(&indices))?;
            let distances = indices.iter().zip(means).map(|(&index, mean)| {
                let deviation = self.output_deviation(forms.ideal.deviations(&rows, mean), index);
                squared_norms(residuals[index].clone() - deviation)
            });
            let distances = Tensor::cat(distances.collect(), 0);
            let distances = read_f32(distances, "the ideal denoiser's distance from the model")?;
            for (best, distances) in best.iter_mut().zip(distances.chunks(rows.len())) {
                let distance: f64 = distances.iter().copied().map(f64::from).sum();
                if distance < best.0 {
                    *best = (distance, size);
                }
            }
            progress.add(rows.len());
        }
        Ok(best.into_iter().map(|(_, size)| size).collect())
    }

    /// Converts a deviation `x̂ − u` of the clean point to one of the output.
    fn output_deviation(&self, clean: Tensor<2>, index: usize) -> Tensor<2> {
        clean * self.slope(index)
    }

    fn slope(&self, index: usize) -> f64 {
        let (signal, noise) = (self.scales.signal[index], self.scales.noise[index]);
        self.model.prediction_type().slope(signal, noise)
    }

    /// The ratio of a squared error of the output to that of the clean point it stands for.
    pub(super) fn squared_slope(&self, index: usize) -> f64 {
        self.slope(index).powi(2)
    }

    /// The largest `|ln|` over the grid of the ratio by which the error changes when the cut of the
    /// retained images is undone.
    pub(super) fn cut_error(&self, forms: &Forms<'_>, patches: &[SamePatch]) -> Result<f64> {
        let [points, elements] = forms.ideal.shape();
        let rows: Vec<usize> = (0..points.min(CUT_PROBES)).collect();
        let noise = self.noise([rows.len(), elements], 0);
        let mut largest: f64 = 0.0;
        for SamePatch { patch, indices } in patches {
            let Some(uncut) = forms.uncut(*patch) else {
                continue;
            };
            let cut = forms.posterior(*patch);
            let cut = self.errors(forms, cut.as_ref(), &rows, &noise, indices)?;
            let uncut = self.errors(forms, &uncut, &rows, &noise, indices)?;
            for (cut, uncut) in cut.chunks(rows.len()).zip(uncut.chunks(rows.len())) {
                let [cut, uncut] = [cut, uncut].map(|errors| errors.iter().sum::<f32>());
                largest = largest.max(f64::from((uncut / cut).ln().abs()));
            }
        }
        Ok(largest)
    }

    /// The model's loss on each of some points by timestep, over its noises.
    pub(super) fn model_losses(
        &self,
        points: &Tensor<D>,
        condition: &M::Condition,
        noises: usize,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Vec<LossMoments>>> {
        let (count, device) = (points.dims()[0], points.device());
        let mut moments = vec![vec![LossMoments::default(); count]; self.timesteps.len()];
        let loss = DenoisingLoss {
            noises,
            seed: self.config.seed,
            micro_batch_size: self.config.micro_batch_size,
            ..DenoisingLoss::at(self.timesteps)
        };
        let (model, scales) = (&self.model, self.scales);
        loss.each_part(model, scales, points, condition, &device, |rows, losses| {
            for (moments, losses) in moments.iter_mut().zip(losses.chunks(rows.len())) {
                for (&row, &loss) in rows.iter().zip(losses) {
                    moments[row].add(f64::from(loss), noises);
                }
            }
            progress.add(rows.len());
        })?;
        Ok(moments)
    }

    /// The model's output minus its target.
    fn residual(
        &self,
        clean: &Tensor<D>,
        noise: &Tensor<D>,
        condition: &M::Condition,
        index: usize,
    ) -> Result<Tensor<D>> {
        let scales = self.scales.repeat(index, clean.dims()[0]);
        let timestep = self.timesteps[index];
        residual(&self.model, timestep, &scales, clean, noise, condition)
    }

    pub(super) fn noise<const R: usize>(&self, shape: [usize; R], first_row: usize) -> Tensor<R> {
        let (seed, device) = (self.config.seed, self.data.controls.device());
        let (first_row, stream) = (first_row as u64, Stream::Evaluation);
        normal_noise(shape, seed, 0, first_row, stream, &device)
    }
}

/// A model's loss on a point over several noises.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LossMoments {
    pub(super) mean: f64,
    mean_square: f64,
}

impl LossMoments {
    fn add(&mut self, loss: f64, noises: usize) {
        self.mean += loss / noises as f64;
        self.mean_square += loss * loss / noises as f64;
    }

    /// The level at which steering leaves the loss unchanged.
    ///
    /// (53) vanishes in the mean over noises where `E[(b − L) L] = 0`, if the loss grows in the
    /// same way under each noise: at `b = E[L²] / E[L]`, a little above the mean.
    pub(super) fn at_rest(&self) -> f64 {
        self.mean_square / self.mean
    }
}
