//! A request to forget some of the points that a model memorised, and copies of them among
//! generated images.

use siss::burn::tensor::Tensor;

use crate::cases::{Case, CaseData};
use crate::probe::distances;
use crate::tshirt::evaluate::TSHIRT_DISTANCE;

impl CaseData {
    /// Forgets the first so many memorised points. The others are kept, and each is in the retained
    /// set as often as it was in the training data.
    ///
    /// # Errors
    /// A message if the model memorised fewer points, or none is to be forgotten.
    pub fn forgetting(&self, points: usize, copies: usize) -> Result<CaseData, String> {
        let memorised = self.forget.dims()[0];
        if !(1..=memorised).contains(&points) {
            return Err(format!(
                "--points: {points} of the memorised points; it must be from 1 to {memorised}"
            ));
        }
        let mut retain = vec![self.retain.clone()];
        if points < memorised {
            let others = self.forget.clone().narrow(0, points, memorised - points);
            retain.push(others.repeat_dim(0, copies));
        }
        Ok(CaseData {
            retain: Tensor::cat(retain, 0),
            heldout: self.heldout.clone(),
            forget: self.forget.clone().narrow(0, 0, points),
        })
    }
}

/// Finds copies of forgotten points among generated images.
#[derive(Debug)]
pub struct Copies {
    /// Each forgotten point, and the distance below which an image is a copy of it.
    points: Vec<(Tensor<4>, f64)>,
}

impl Copies {
    /// Of the T-shirt an image counts as a copy within a distance of 10, of any other point within
    /// half the distance to its nearest retained point.
    pub fn of(case: Case, data: &CaseData) -> Self {
        let within = |point: &Tensor<4>| match case {
            Case::Tshirt => TSHIRT_DISTANCE,
            Case::Digits | Case::Faces => {
                let apart = distances(&data.retain, point);
                apart.into_iter().fold(f64::INFINITY, f64::min) / 2.0
            }
        };
        let points = (0..data.forget.dims()[0]).map(|row| data.forget.clone().narrow(0, row, 1));
        Self {
            points: points
                .map(|point| (point.clone(), within(&point)))
                .collect(),
        }
    }

    /// How many images are a copy of a forgotten point.
    pub fn among(&self, images: &Tensor<4>) -> usize {
        let mut is_copy = vec![false; images.dims()[0]];
        for (point, within) in &self.points {
            for (is_copy, distance) in is_copy.iter_mut().zip(distances(images, point)) {
                *is_copy |= distance < *within;
            }
        }
        is_copy.into_iter().filter(|&is_copy| is_copy).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use siss::burn::tensor::Device;

    /// Points of two pixels, all of one value.
    fn points(values: &[f32]) -> Tensor<4> {
        let values = Tensor::<1>::from_data(values, &Device::flex());
        let count = values.dims()[0];
        values.reshape([count, 1, 1, 1]).repeat_dim(3, 2)
    }

    fn data() -> CaseData {
        CaseData {
            retain: points(&[-1.0, 0.0]),
            heldout: points(&[0.1]),
            forget: points(&[0.5, 1.0, 0.75]),
        }
    }

    fn values(points: Tensor<4>) -> Vec<f32> {
        points.narrow(3, 0, 1).into_data().try_to_vec().unwrap()
    }

    #[test]
    fn what_is_not_to_be_forgotten_is_kept_with_its_copies() {
        let all = data().forgetting(3, 2).unwrap();
        assert_eq!(values(all.retain), [-1.0, 0.0]);
        assert_eq!(values(all.forget), [0.5, 1.0, 0.75]);

        let first = data().forgetting(1, 2).unwrap();
        assert_eq!(values(first.retain), [-1.0, 0.0, 1.0, 0.75, 1.0, 0.75]);
        assert_eq!(values(first.forget), [0.5]);
        assert_eq!(values(first.heldout), [0.1]);

        for points in [0, 4] {
            let error = data().forgetting(points, 2).unwrap_err();
            assert!(
                error.contains("--points") && error.contains("1 to 3"),
                "{error}"
            );
        }
    }

    /// The forgotten 0.5 and 1 lie 0.5 and 1 from the nearest retained point, so images within 0.25
    /// and 0.5 of them are copies. The distances of the two pixels have the same factor.
    #[test]
    fn a_copy_is_nearer_than_half_the_nearest_retained_point_and_counts_once() {
        let images = points(&[0.24, 0.26, 0.74, 0.9, -0.5]);
        let request = data().forgetting(2, 0).unwrap();
        assert_eq!(Copies::of(Case::Digits, &request).among(&images), 3);
        // A kept point at 0.75 halves the distances.
        let request = data();
        let request = request.forgetting(2, 1).unwrap();
        assert_eq!(Copies::of(Case::Digits, &request).among(&images), 1);
        assert_eq!(Copies::of(Case::Tshirt, &request).among(&images), 5);
    }
}
