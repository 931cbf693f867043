//! How close a model is to a retrained one at points that it is to forget.

use std::collections::BTreeMap;

use serde::Serialize;
use siss::Result;
use siss::burn::tensor::Tensor;
use siss::models::UNet2d;

use crate::probe::{Probe, mean};

/// Timesteps at which answers are compared.
pub const ANSWERED: [usize; 5] = [50, 100, 250, 400, 600];
/// Those of them that count in [`Closeness::answer_distance`].
const COUNTED: [usize; 4] = [100, 250, 400, 600];
/// Timesteps from which copies are denoised.
pub const DENOISED: [usize; 2] = [250, 400];
/// The timestep at which answers to neighbours are compared.
const NEIGHBOURS_AT: usize = 250;
/// Timesteps at which losses are compared.
pub const CURVE: [usize; 10] = [25, 50, 100, 150, 250, 400, 500, 600, 800, 900];

/// Rows per measurement if there are few points, and fewest noises of each of many.
const ROWS: usize = 32;
const FEWEST_NOISES: usize = 8;

/// How close a model is to a reference, a model that was retrained without the points. Both are
/// plain models.
///
/// Two retrained models that differ in their seed are not the same model: what they differ by is
/// as close as unlearning can come.
#[derive(Debug, Clone, Serialize)]
pub struct Closeness {
    /// The answers at the points, by timestep ([`ANSWERED`]).
    pub answers: BTreeMap<String, Answers>,
    /// Mean of the answers' distances over the timesteps 100, 250, 400 and 600.
    pub answer_distance: f64,
    /// Denoised copies of the points, by the timestep from which they are denoised ([`DENOISED`]).
    pub denoised: BTreeMap<String, Denoised>,
    /// The distance of the answers at images that resemble the points, at t = 250, by what was
    /// done to the points.
    pub neighbours: BTreeMap<&'static str, f64>,
    /// Mean of these distances.
    pub neighbourhood: f64,
    /// Mean of |ln(loss / the reference's loss)| over the points and the timesteps of [`CURVE`].
    pub loss_distance: f64,
}

/// Answers at a timestep against the reference's: see
/// [`AnswerDistance`](siss::evaluate::AnswerDistance).
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    /// Mean over the points.
    pub distance: f64,
    /// Mean over the points.
    pub cosine: f64,
    /// The distance of each point.
    pub distances: Vec<f64>,
}

/// Mean Euclidean distances of denoised copies, pixels in `[0, 1]`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Denoised {
    /// From the reference's copy of the same noise.
    pub to_reference: f64,
    /// From the point itself.
    pub to_point: f64,
}

/// The two distances of [`Closeness`] that are measured soonest.
#[derive(Debug, Clone, Copy)]
pub struct Distances {
    /// [`Closeness::answer_distance`].
    pub answer: f64,
    /// [`Closeness::loss_distance`].
    pub loss: f64,
}

/// Measures how far the answers and the losses of a model are from those of a reference at points.
///
/// # Errors
/// Those of the measures in [`siss::evaluate`].
pub fn distances(
    probe: &Probe,
    [model, reference]: [&UNet2d; 2],
    points: &Tensor<4>,
) -> Result<Distances> {
    let compared = Compared::new(probe, [model, reference], points);
    Ok(Distances {
        answer: answer_distance(&compared.answers(points, &COUNTED)?),
        loss: compared.loss_distance(points)?,
    })
}

/// Measures how close a model is to a reference at points.
///
/// # Shapes
/// - `points`: `[count, channels, height, width]` in `[-1, 1]`, with sides of more than 3
///
/// # Errors
/// Those of the measures in [`siss::evaluate`].
pub fn closeness(
    probe: &Probe,
    model: &UNet2d,
    reference: &UNet2d,
    points: &Tensor<4>,
) -> Result<Closeness> {
    let compared = Compared::new(probe, [model, reference], points);
    let answers = compared.answers(points, &ANSWERED)?;
    let neighbours = neighbours(points).map(|(name, images)| {
        let answers = compared.answers(&images, &[NEIGHBOURS_AT])?;
        Ok((name, answers[&NEIGHBOURS_AT.to_string()].distance))
    });
    let neighbours: BTreeMap<_, _> = neighbours.into_iter().collect::<Result<_>>()?;
    Ok(Closeness {
        answer_distance: answer_distance(&answers),
        answers,
        denoised: compared.denoised(points)?,
        neighbourhood: mean(&neighbours.values().copied().collect::<Vec<_>>()),
        neighbours,
        loss_distance: compared.loss_distance(points)?,
    })
}

/// Two models, and the number of noises per point with which they are compared.
struct Compared<'a> {
    probe: &'a Probe,
    /// The model and the reference.
    models: [&'a UNet2d; 2],
    noises: usize,
}

impl<'a> Compared<'a> {
    fn new(probe: &'a Probe, models: [&'a UNet2d; 2], points: &Tensor<4>) -> Self {
        Self {
            probe,
            models,
            noises: (ROWS / points.dims()[0].max(1)).max(FEWEST_NOISES),
        }
    }

    fn answers(
        &self,
        points: &Tensor<4>,
        timesteps: &[usize],
    ) -> Result<BTreeMap<String, Answers>> {
        let found = self
            .probe
            .answers(self.models, points, timesteps, self.noises)?;
        let of_timestep = timesteps.iter().zip(found).map(|(timestep, of_points)| {
            let distances: Vec<f64> = of_points.iter().map(|it| it.distance).collect();
            let cosines: Vec<f64> = of_points.iter().map(|it| it.cosine).collect();
            let answers = Answers {
                distance: mean(&distances),
                cosine: mean(&cosines),
                distances,
            };
            (timestep.to_string(), answers)
        });
        Ok(of_timestep.collect())
    }

    fn denoised(&self, points: &Tensor<4>) -> Result<BTreeMap<String, Denoised>> {
        let found = self
            .probe
            .denoised(self.models, points, &DENOISED, self.noises)?;
        let from_timestep = DENOISED.iter().zip(found).map(|(timestep, of_points)| {
            let to_reference: Vec<f64> = of_points.iter().map(|it| it.to_reference).collect();
            let to_point: Vec<f64> = of_points.iter().map(|it| it.to_point).collect();
            // Pixels in [0, 1] are half as far apart as in [-1, 1].
            let denoised = Denoised {
                to_reference: mean(&to_reference) / 2.0,
                to_point: mean(&to_point) / 2.0,
            };
            (timestep.to_string(), denoised)
        });
        Ok(from_timestep.collect())
    }

    fn loss_distance(&self, points: &Tensor<4>) -> Result<f64> {
        let losses = |model| self.probe.mean_losses(model, points, &CURVE, self.noises);
        let [own, other] = [losses(self.models[0])?, losses(self.models[1])?].map(|it| it.concat());
        let pairs = own.iter().zip(other);
        let logs: Vec<f64> = pairs.map(|(own, other)| (own / other).ln().abs()).collect();
        Ok(mean(&logs))
    }
}

fn answer_distance(answers: &BTreeMap<String, Answers>) -> f64 {
    mean(&COUNTED.map(|timestep| answers[&timestep.to_string()].distance))
}

/// Images that resemble the points, with what was done to the points.
pub fn neighbours(points: &Tensor<4>) -> [(&'static str, Tensor<4>); 5] {
    [
        ("mirrored", points.clone().flip([3])),
        ("shifted by 1", shifted(points, 1)),
        ("shifted by 3", shifted(points, 3)),
        // Half as bright; −1 is black.
        ("dimmed", (points.clone() - 1.0) / 2.0),
        ("upside down", points.clone().flip([2])),
    ]
}

/// Shifts images to the right; their leftmost column fills what becomes free.
fn shifted(images: &Tensor<4>, pixels: usize) -> Tensor<4> {
    let width = images.dims()[3];
    let left = images.clone().narrow(3, 0, 1).repeat_dim(3, pixels);
    let rest = images.clone().narrow(3, 0, width - pixels);
    Tensor::cat(vec![left, rest], 3)
}

#[cfg(test)]
mod tests {
    use siss::burn::tensor::{Device, TensorData};
    use siss::process::SchedulerConfig;

    use super::*;
    use crate::probe::Chunks;
    use crate::small::{host, unet};

    fn image(values: [f32; 8]) -> Tensor<4> {
        Tensor::from_data(
            TensorData::new(values.to_vec(), [1, 1, 2, 4]),
            &Device::flex(),
        )
    }

    #[test]
    fn a_model_is_as_close_to_itself_as_can_be_and_another_is_not() {
        let chunks = Chunks {
            rows: 32,
            in_parallel: true,
        };
        let probe = Probe::new(&SchedulerConfig::default(), chunks).unwrap();
        let points = Tensor::ones([2, 3, 8, 8], &Device::flex()) * 0.5;
        let (model, other) = (unet(0), unet(1));

        let same = closeness(&probe, &model, &model, &points).unwrap();
        for answers in same.answers.values() {
            assert_eq!((answers.distance, answers.distances.len()), (0.0, 2));
            assert!((answers.cosine - 1.0).abs() < 1e-5, "{}", answers.cosine);
        }
        assert_eq!((same.answer_distance, same.neighbourhood), (0.0, 0.0));
        assert_eq!((same.neighbours.len(), same.loss_distance), (5, 0.0));
        for denoised in same.denoised.values() {
            assert_eq!(denoised.to_reference, 0.0);
            assert!(denoised.to_point > 0.0);
        }

        let apart = closeness(&probe, &other, &model, &points).unwrap();
        let alone = distances(&probe, [&other, &model], &points).unwrap();
        let of_both = (apart.answer_distance, apart.loss_distance);
        assert_eq!((alone.answer, alone.loss), of_both);
        let to_reference = apart.denoised["250"].to_reference;
        for figure in [
            apart.answer_distance,
            apart.neighbourhood,
            apart.loss_distance,
            to_reference,
        ] {
            assert!(figure > 1e-3, "{apart:?}");
        }
        assert!(apart.answers["50"].cosine < 0.9999);
    }

    #[test]
    fn neighbours_are_made_as_they_are_called() {
        let point = image([-1.0, 0.0, 0.5, 1.0, 0.2, 0.4, 0.6, 0.8]);
        let made: BTreeMap<_, _> = neighbours(&point).into_iter().collect();
        for (name, values) in [
            ("mirrored", [1.0, 0.5, 0.0, -1.0, 0.8, 0.6, 0.4, 0.2]),
            ("shifted by 1", [-1.0, -1.0, 0.0, 0.5, 0.2, 0.2, 0.4, 0.6]),
            ("shifted by 3", [-1.0, -1.0, -1.0, -1.0, 0.2, 0.2, 0.2, 0.2]),
            ("dimmed", [-1.0, -0.5, -0.25, 0.0, -0.4, -0.3, -0.2, -0.1]),
            ("upside down", [0.2, 0.4, 0.6, 0.8, -1.0, 0.0, 0.5, 1.0]),
        ] {
            let difference = host(made[name].clone() - image(values));
            assert!(difference.iter().all(|it| it.abs() < 1e-6), "{name}");
        }
    }
}
