//! Networks that turn pictures into features, in the layout of the published weights.
//!
//! | network | for | published weights |
//! |---|---|---|
//! | [`InceptionV3`] | FID, KID, inception score, precision and recall | torch-fidelity, `weights-inception-2015-12-05-6726825d.pth` |
//! | [`Sscd`] | copies | SSCD, `sscd_disc_mixup.torchscript.pt` |
//! | [`ResNet18`] | inception score of digits | those of a classifier of your own |
//! | [`ClipIqa`] | quality without a reference | OpenAI's CLIP `RN50` |
//!
//! Weights are read from safetensors, strictly. `examples/convert_weights.py` in the repository
//! makes these files from a PyTorch or TorchScript file, in Python; the crate itself runs no pickle.
//! The weights have licences of their own and are not part of the crate. [`formula_weights`] shows
//! that an architecture is right without them.

mod clip;
mod inception;
mod layers;
mod resnet;
mod weights;

use burn::tensor::Tensor;

use super::Features;
use crate::data::Points;
use crate::data::points::check_not_empty;
use crate::error::{Result, check_shape};

pub use clip::ClipIqa;
pub use inception::{InceptionTap, InceptionV3};
pub use resnet::{ResNet18, Sscd, SscdSize};
pub use weights::{TensorSource, formula_weights};

/// Endings of tensors that only training needs.
const IGNORED: [&str; 1] = ["num_batches_tracked"];

/// Pictures run at a time.
const PICTURES: usize = 16;

/// Checks that pictures have three channels.
fn check_channels(shape: [usize; 4]) -> Result<[usize; 4]> {
    let [rows, _, height, width] = shape;
    let remedy = "give colour pictures; repeat a single channel three times";
    check_shape("a picture", &[rows, 3, height, width], &shape, remedy)?;
    Ok(shape)
}

/// The features of a set, a few pictures at a time.
fn each_part(
    name: String,
    pictures: &dyn Points<4>,
    make: impl Fn(Tensor<4>) -> Result<Tensor<2>>,
) -> Result<Features> {
    check_not_empty(pictures, "the set of pictures")?;
    let count = pictures.dims()[0];
    let mut features = Features::new(name);
    for first in (0..count).step_by(PICTURES) {
        let part = pictures.load(first..count.min(first + PICTURES))?;
        features.push(make(part.inner())?)?;
    }
    Ok(features)
}
