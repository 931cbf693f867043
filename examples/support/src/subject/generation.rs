//! Pictures by models of a subject, with its guidance.

use siss::burn::tensor::Tensor;
use siss::metrics::{CopySimilarity, PictureSimilarity};
use siss::sampling::{DdpmSampler, Guided};
use siss::{Condition, Denoiser, Result};

use super::{ConditionOf, Points, Subject};
use crate::probe::Probe;

/// A model with guidance, and two conditions: the wanted one, and the one that stands for none.
type GuidedModel<M, C> = (Guided<M>, (C, C));

/// Generates pictures with models of a subject.
pub struct Generation<'a, S> {
    pub subject: &'a S,
    pub probe: &'a Probe,
}

impl<S: Subject> Generation<'_, S> {
    /// Pictures from number `first` on with values from −1 to 1, each under the condition of a
    /// point in turn. `progress` receives the number of pictures.
    pub fn sample<M: Denoiser<4, Condition = ConditionOf<S>> + Sync>(
        &self,
        model: &M,
        of: &Points<ConditionOf<S>>,
        (first, count): (usize, usize),
        progress: impl Fn(usize) + Sync,
    ) -> Result<Tensor<4>> {
        let rows = first..first + count;
        let rows: Vec<usize> = rows.map(|row| row % of.count()).collect();
        let condition = of.condition.take_rows(&rows);
        let device = of.points.device();
        let [_, channels, height, width] = of.points.dims();
        let shape = [count, channels, height, width];
        let (probe, first) = (self.probe, first as u64);
        let points = match self.guided(model, &condition, count)? {
            Some((model, both)) => probe.sample(&model, &both, first, shape, &device, progress),
            None => probe.sample(model, &condition, first, shape, &device, progress),
        };
        self.subject.space().pictures(&points?)
    }

    /// Pictures, with values from −1 to 1, of points that are noised to a timestep and denoised.
    pub fn denoise<M: Denoiser<4, Condition = ConditionOf<S>> + Sync>(
        &self,
        model: &M,
        points: &Points<ConditionOf<S>>,
        timestep: usize,
    ) -> Result<Tensor<4>> {
        let (condition, clean) = (&points.condition, &points.points);
        let denoised = match self.guided(model, condition, points.count())? {
            Some((model, both)) => self.probe.denoise(&model, (clean, &both), timestep),
            None => self.probe.denoise(model, (clean, condition), timestep),
        };
        self.subject.space().pictures(&denoised?)
    }

    /// How similar points, which are pictures with values from −1 to 1, are to their copies.
    pub fn similarity<M: Denoiser<4, Condition = ConditionOf<S>> + Sync>(
        &self,
        model: &M,
        points: &Points<ConditionOf<S>>,
        (measure, sampler): (&CopySimilarity, &DdpmSampler),
        describe: impl Fn(Tensor<4>) -> Result<Tensor<2>>,
    ) -> Result<Vec<PictureSimilarity>> {
        let (condition, clean) = (&points.condition, &points.points);
        match self.guided(model, condition, points.count())? {
            Some((model, both)) => measure.measure(&model, sampler, clean, &both, describe),
            None => measure.measure(model, sampler, clean, condition, describe),
        }
    }

    /// The model with guidance, if the subject has it, and its pair of conditions.
    fn guided<M: Denoiser<4, Condition = ConditionOf<S>>>(
        &self,
        model: &M,
        wanted: &ConditionOf<S>,
        count: usize,
    ) -> Result<Option<GuidedModel<M, ConditionOf<S>>>> {
        let Some((scale, none)) = self.subject.guidance() else {
            return Ok(None);
        };
        let none = none.take_rows(&vec![0; count]);
        Ok(Some((
            Guided::new(model.clone(), scale)?,
            (wanted.clone(), none),
        )))
    }
}
