//! A request to forget some of the points that a model memorised, and copies of them among
//! generated images.

use std::ops::Range;

use siss::burn::tensor::Tensor;

use crate::cases::{Case, CaseData};
use crate::probe::distances;
use crate::tshirt::evaluate::TSHIRT_DISTANCE;

impl CaseData {
    /// A request to forget some points. Points are numbered: first those that were memorised, then
    /// the retained ones in their order. All before the request's are forgotten already. The
    /// memorised ones behind it are kept, and each is in the retained set as often as it was in
    /// the training data.
    ///
    /// # Errors
    /// A message if there are no such points, or half of the retained points would not be left.
    pub fn forgetting(&self, points: Range<usize>, copies: usize) -> Result<CaseData, String> {
        let (memorised, retained) = (self.forget.dims()[0], self.retain.dims()[0]);
        let most = memorised + retained / 2;
        if points.is_empty() || points.end > most {
            let points = points.end;
            return Err(format!(
                "--points: {points} points to forget; it must be from 1 to {most}"
            ));
        }
        let taken = points.end.saturating_sub(memorised);
        let mut retain = vec![self.retain.clone().narrow(0, taken, retained - taken)];
        if points.end < memorised {
            let others = self.forget.clone();
            let others = others.narrow(0, points.end, memorised - points.end);
            retain.push(others.repeat_dim(0, copies));
        }
        let mut forget = vec![self.forget.clone()];
        if taken > 0 {
            forget.push(self.retain.clone().narrow(0, 0, taken));
        }
        Ok(CaseData {
            retain: Tensor::cat(retain, 0),
            heldout: self.heldout.clone(),
            forget: Tensor::cat(forget, 0).narrow(0, points.start, points.len()),
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
        self.are(images)
            .into_iter()
            .filter(|&is_copy| is_copy)
            .count()
    }

    /// Which images are a copy of a forgotten point.
    pub fn are(&self, images: &Tensor<4>) -> Vec<bool> {
        let mut is_copy = vec![false; images.dims()[0]];
        for (point, within) in &self.points {
            for (is_copy, distance) in is_copy.iter_mut().zip(distances(images, point)) {
                *is_copy |= distance < *within;
            }
        }
        is_copy
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
        let all = data().forgetting(0..3, 2).unwrap();
        assert_eq!(values(all.retain), [-1.0, 0.0]);
        assert_eq!(values(all.forget), [0.5, 1.0, 0.75]);

        let first = data().forgetting(0..1, 2).unwrap();
        assert_eq!(values(first.retain), [-1.0, 0.0, 1.0, 0.75, 1.0, 0.75]);
        assert_eq!(values(first.forget), [0.5]);
        assert_eq!(values(first.heldout), [0.1]);

        // The first is forgotten already.
        let second = data().forgetting(1..2, 2).unwrap();
        assert_eq!(values(second.retain), [-1.0, 0.0, 0.75, 0.75]);
        assert_eq!(values(second.forget), [1.0]);

        // More points than were memorised.
        let more = data().forgetting(2..4, 2).unwrap();
        assert_eq!(values(more.retain), [0.0]);
        assert_eq!(values(more.forget), [0.75, -1.0]);

        for points in [0, 5] {
            let error = data().forgetting(0..points, 2).unwrap_err();
            assert!(
                error.contains("--points") && error.contains("1 to 4"),
                "{error}"
            );
        }
    }

    /// The forgotten 0.5 and 1 lie 0.5 and 1 from the nearest retained point, so images within 0.25
    /// and 0.5 of them are copies. The distances of the two pixels have the same factor.
    #[test]
    fn a_copy_is_nearer_than_half_the_nearest_retained_point_and_counts_once() {
        let images = points(&[0.24, 0.26, 0.74, 0.9, -0.5]);
        let request = data().forgetting(0..2, 0).unwrap();
        assert_eq!(Copies::of(Case::Digits, &request).among(&images), 3);
        // A kept point at 0.75 halves the distances.
        let request = data();
        let request = request.forgetting(0..2, 1).unwrap();
        assert_eq!(Copies::of(Case::Digits, &request).among(&images), 1);
        assert_eq!(Copies::of(Case::Tshirt, &request).among(&images), 5);
    }
}
