//! Several kinds of images that no model of a case has seen.

use std::path::Path;

use siss::Result;
use siss::burn::tensor::{Device, Tensor};

use crate::cases::{Case, CaseData};
use crate::digits::{load_digits, load_tshirt};
use crate::emoji::load_emoji;

/// Images and the kind of each.
pub struct Unseen {
    /// `[count, channels, height, width]` in `[-1, 1]`.
    pub images: Tensor<4>,
    pub kinds: Vec<&'static str>,
}

/// The colours of digits: shares of red, green and blue.
const COLOURS: [[f32; 3]; 4] = [
    [0.8, 0.1, 0.1],
    [0.1, 0.5, 0.2],
    [0.1, 0.2, 0.8],
    [0.9, 0.6, 0.0],
];
/// Height and width of digits.
const DIGIT: usize = 28;

impl Unseen {
    /// `count` images of each kind. Points of the case are those of the second half of its unseen
    /// ones: the first serves as control points.
    ///
    /// # Errors
    /// Those of the loaders.
    pub fn load(case: Case, assets: &Path, data: &CaseData, count: usize) -> Result<Self> {
        let device = data.heldout.device();
        let all = data.heldout.dims()[0];
        // Four parts for kinds that are made of the case's own points.
        let count = count.min(all / 8);
        let own = |part: usize| {
            data.heldout
                .clone()
                .narrow(0, all / 2 + part * count, count)
        };
        let emoji = |part: usize| -> Result<Tensor<4>> {
            let heldout = load_emoji(assets, &device)?.heldout;
            let count = count.min(heldout.dims()[0] / 2);
            Ok(heldout.narrow(0, part * count, count))
        };
        let kinds = match case {
            Case::Faces => vec![
                ("picture", own(0)),
                ("picture, mirrored", own(1).flip([3])),
                ("picture, upside down", own(2).flip([2])),
                ("picture, negative", -own(3)),
                (
                    "digit in colour",
                    in_colour(load_digits(assets, &device)?.heldout.narrow(0, 0, count)),
                ),
            ],
            Case::Tshirt | Case::Digits => {
                let mut kinds = vec![
                    ("digit", own(0)),
                    ("digit, mirrored", own(1).flip([3])),
                    ("digit, negative", -own(2)),
                    ("picture", in_grey(emoji(0)?)),
                    ("picture, negative", -in_grey(emoji(1)?)),
                ];
                if case == Case::Digits {
                    kinds.push(("T-shirt", load_tshirt(assets, &device)?));
                }
                kinds
            }
        };
        let (mut images, mut names) = (Vec::new(), Vec::new());
        for (kind, of_kind) in kinds {
            names.extend(vec![kind; of_kind.dims()[0]]);
            images.push(of_kind);
        }
        Ok(Self {
            images: Tensor::cat(images, 0),
            kinds: names,
        })
    }
}

/// Colour pictures as grey ones of the size of digits.
fn in_grey(pictures: Tensor<4>) -> Tensor<4> {
    let side = pictures.dims()[2];
    let device = pictures.device();
    let weights = resize(side, DIGIT, &device);
    let grey = pictures.mean_dim(1);
    let transposed = weights.clone().swap_dims(2, 3);
    weights.matmul(grey).matmul(transposed)
}

/// Digits in colour on white, of the size of the colour pictures.
fn in_colour(digits: Tensor<4>) -> Tensor<4> {
    // The share of colour at a place, with a margin of two places.
    let ink = ((digits + 1.0) / 2.0).pad([(2, 2), (2, 2)], 0.0);
    let coloured = (0..ink.dims()[0]).map(|row| {
        let ink = ink.clone().narrow(0, row, 1);
        let channel = |share: f32| 1.0 - ink.clone() * (2.0 * (1.0 - share));
        let colour = COLOURS[row % COLOURS.len()];
        Tensor::cat(colour.map(channel).to_vec(), 1)
    });
    Tensor::cat(coloured.collect(), 0)
}

/// The matrix `[1, 1, to, from]` that resizes one axis: each new place is a mean of the old ones
/// around it, with weights that fall off linearly.
fn resize(from: usize, to: usize, device: &Device) -> Tensor<4> {
    let step = from as f32 / to as f32;
    let mut weights = Vec::new();
    for place in 0..to {
        let middle = (place as f32 + 0.5) * step - 0.5;
        let row = (0..from).map(|other| (1.0 - (other as f32 - middle).abs() / step).max(0.0));
        let total: f32 = row.clone().sum();
        weights.extend(row.map(|weight| weight / total));
    }
    let weights = Tensor::<1>::from_data(weights.as_slice(), device);
    weights.reshape([1, 1, to, from])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits::ASSETS;

    #[test]
    fn every_case_has_forty_images_in_range_that_are_not_among_its_points() {
        let (assets, device) = (Path::new(ASSETS), Device::flex());
        for case in Case::ALL {
            let data = case.load(assets, &device).unwrap();
            let unseen = Unseen::load(case, assets, &data, 8).unwrap();
            let [count, of_image @ ..] = unseen.images.dims();
            assert!(count >= 40 && count == unseen.kinds.len(), "{count}");
            let [_, of_point @ ..] = data.retain.dims();
            assert_eq!(of_image, of_point);
            let values: Vec<f32> = unseen.images.clone().into_data().try_to_vec().unwrap();
            let range = -1.0 - 1e-5..=1.0 + 1e-5;
            assert!(values.iter().all(|value| range.contains(value)));
            let heldout: Vec<f32> = data.heldout.clone().into_data().try_to_vec().unwrap();
            let elements = of_image.iter().product();
            let controls = &heldout[..heldout.len() / 2];
            for image in values.chunks(elements) {
                assert!(controls.chunks(elements).all(|control| control != image));
            }
        }
    }

    #[test]
    fn resizing_keeps_an_even_picture_even_and_the_mean_of_a_slope() {
        let (device, slope) = (Device::flex(), |side: usize| {
            (0..side)
                .map(|place| place as f32 / side as f32)
                .collect::<Vec<_>>()
        });
        let weights = resize(32, 28, &device);
        let even = weights.clone().matmul(Tensor::ones([1, 1, 32, 1], &device));
        let values: Vec<f32> = even.into_data().try_to_vec().unwrap();
        assert!(values.iter().all(|value| (value - 1.0).abs() < 1e-6));
        let column = Tensor::<1>::from_data(slope(32).as_slice(), &device).reshape([1, 1, 32, 1]);
        let values: Vec<f32> = weights.matmul(column).into_data().try_to_vec().unwrap();
        for (value, wanted) in values.iter().zip(slope(28)).skip(1).take(26) {
            assert!((value - wanted).abs() < 0.02, "{value} {wanted}");
        }
    }
}
