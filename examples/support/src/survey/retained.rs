//! What stands for the retained points of a request.

use clap::ValueEnum;
use siss::Condition;
use siss::burn::tensor::Tensor;
use siss::metrics::{Features, KMeans};
use siss::models::UNet2d;

use crate::cases::CaseData;
use crate::probe::Probe;
use crate::progress::Progress;

use super::Result;

/// Images that a model generates in place of the retained ones.
const GENERATED: usize = 1_000;
/// The noise that they begin with is not that of the images that are counted.
const BEGIN: u64 = 1 << 32;
/// Clusters of the generated images.
const CLUSTERS: usize = 20;
/// Of the generated images, every so many-th is a control point.
const CONTROL_EVERY: usize = 10;

/// What stands for the retained points.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RetainSet {
    /// The points that the model was trained on.
    #[default]
    Data,
    /// 1,000 images that the model generates, a tenth of them as control points: nothing of the
    /// training data is left.
    Own,
    /// The same without those in the clusters of the forgotten points, of twenty by k-means.
    Filtered,
}

impl RetainSet {
    /// The name of all but the usual one.
    pub fn name(self) -> Option<&'static str> {
        match self {
            RetainSet::Data => None,
            RetainSet::Own => Some("own samples"),
            RetainSet::Filtered => Some("own samples, filtered"),
        }
    }

    /// What the model generates in place of retained and control points, to forget these.
    pub fn generate(
        self,
        probe: &Probe,
        model: &UNet2d,
        forget: &Tensor<4>,
        progress: &dyn Progress,
    ) -> Result<Option<Generated>> {
        if self == RetainSet::Data {
            return Ok(None);
        }
        let mut shape = forget.dims();
        shape[0] = GENERATED;
        let images = probe.sample(model, &(), BEGIN, shape, &forget.device(), |done| {
            progress.phase(&format!("generating a retain set: {done} of {GENERATED}"));
        })?;
        let kept = match self {
            RetainSet::Filtered => far_from(&images, forget)?,
            _ => (0..GENERATED).collect(),
        };
        progress.say(&format!(
            "{} generated images stand for the data",
            kept.len()
        ));
        Ok(Some(Generated::of(&images, &kept)))
    }
}

/// Images that stand for retained and control points.
#[derive(Debug, Clone)]
pub struct Generated {
    retain: Tensor<4>,
    controls: Tensor<4>,
}

impl Generated {
    fn of(images: &Tensor<4>, kept: &[usize]) -> Self {
        let part = |is_control: bool| {
            let places = kept.iter().enumerate();
            let part = places.filter(|(place, _)| (place % CONTROL_EVERY == 0) == is_control);
            images.take_rows(&part.map(|(_, &row)| row).collect::<Vec<usize>>())
        };
        Self {
            retain: part(false),
            controls: part(true),
        }
    }

    /// The data of a request with these instead of what was retained.
    pub fn stand_in(&self, data: CaseData) -> CaseData {
        CaseData {
            retain: self.retain.clone(),
            heldout: self.controls.clone(),
            forget: data.forget,
        }
    }
}

/// The images outside the clusters that the points belong to.
fn far_from(images: &Tensor<4>, points: &Tensor<4>) -> Result<Vec<usize>> {
    let count = images.dims()[0];
    let pixels = |images: Tensor<4>| images.flatten::<2>(1, 3);
    let all = Tensor::cat(vec![pixels(images.clone()), pixels(points.clone())], 0);
    let clusters = KMeans::new(CLUSTERS).fit(&Features::of("pixels", all)?)?;
    let (of_images, of_points) = clusters.labels.split_at(count);
    let far = (0..count).filter(|&image| !of_points.contains(&of_images[image]));
    Ok(far.collect())
}

#[cfg(test)]
mod tests {
    use siss::burn::tensor::TensorData;

    use super::*;
    use crate::small::device;

    /// Images of one value each: forty near 0, and three near the point at 5.
    #[test]
    fn images_like_a_forgotten_point_are_left_out() {
        let values: Vec<f32> = (0..43)
            .map(|row| match row {
                7 | 20 | 33 => 5.0 + row as f32 * 1e-3,
                _ => row as f32 * 0.1 - 2.0,
            })
            .collect();
        let shaped = |values: Vec<f32>| {
            let shape = [values.len(), 1, 1, 1];
            Tensor::<4>::from_data(TensorData::new(values, shape), &device())
        };
        let (images, point) = (shaped(values.clone()), shaped(vec![5.0]));
        let far = far_from(&images, &point).unwrap();
        let expected: Vec<usize> = (0..43).filter(|row| ![7, 20, 33].contains(row)).collect();
        assert_eq!(far, expected);

        let generated = Generated::of(&images, &far);
        let data = generated.stand_in(CaseData {
            retain: shaped(vec![9.0]),
            heldout: shaped(vec![9.0]),
            forget: point,
        });
        let read = |images: Tensor<4>| images.try_into_vec_as::<f32>().unwrap();
        let controls: Vec<f32> = far
            .iter()
            .step_by(CONTROL_EVERY)
            .map(|&at| values[at])
            .collect();
        assert_eq!(read(data.heldout), controls);
        assert_eq!(data.retain.dims()[0] + controls.len(), far.len());
        assert!(
            read(data.retain)
                .iter()
                .all(|value| !controls.contains(value) && *value < 5.0)
        );
        assert_eq!(read(data.forget), [5.0]);
    }
}
