//! Which ideal denoiser a prediction starts from.

use serde::{Deserialize, Serialize};

use super::ideal::{Ideal, Posterior};
use super::local::{Images, Local};
use crate::error::{Error, Result, check_range};

/// Which ideal denoiser of the retained data a prediction starts from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdealForm {
    /// One posterior for the whole point: any rank, all retained points, on the model's device.
    #[default]
    Whole,
    /// A posterior for each pixel that sees a square patch around it: nearer to what convolutional networks do where there is
    /// little noise (Kamb and Ganguli 2024, arXiv 2412.20292). For images `[n, channels, height, width]`; computed on the host.
    ///
    /// At each timestep the size is used whose denoiser is nearest to the model on control points.
    Patches {
        /// Sizes to choose from, in pixels, odd; one of at least twice the image's is the whole image.
        sizes: Vec<usize>,
        /// How many retained images a point's posterior is over: the nearest ones, see
        /// [`Counterfactual::cut_error`](crate::steering::Counterfactual::cut_error).
        nearest: usize,
    },
}

impl IdealForm {
    /// Patches of 3, 5, 7, 9 and 13 pixels, over the 2,000 nearest images.
    pub fn patches() -> Self {
        IdealForm::Patches {
            sizes: vec![3, 5, 7, 9, 13],
            nearest: 2000,
        }
    }

    /// The sizes to choose from, none for whole points.
    pub(super) fn sizes(&self) -> &[usize] {
        match self {
            IdealForm::Whole => &[],
            IdealForm::Patches { sizes, .. } => sizes,
        }
    }

    pub(super) fn check(&self, rank: usize) -> Result<()> {
        let IdealForm::Patches { sizes, nearest } = self else {
            return Ok(());
        };
        if rank != 4 {
            return Err(Error::InvalidSetting {
                what: format!("patches need images of rank 4, but the points have rank {rank}"),
                remedy: "use `IdealForm::Whole`, which takes any rank",
            });
        }
        let count = sizes.len() as f64;
        check_range(
            "the number of patch sizes",
            count,
            count >= 1.0,
            "at least 1",
        )?;
        for &size in sizes {
            check_range(
                "a patch size",
                size as f64,
                size % 2 == 1,
                "an odd number of pixels",
            )?;
        }
        check_range("nearest", *nearest as f64, *nearest >= 1, "at least 1")?;
        Ok(())
    }
}

/// The ideal denoiser of some points in every form that is asked for.
pub(super) struct Forms<'a> {
    pub(super) ideal: Ideal<'a>,
    /// For patches, with how many of the nearest images are looked at.
    images: Option<(Images<'a>, usize)>,
}

impl<'a> Forms<'a> {
    /// `shape` is that of a point, `retained` its retained points on the host where patches are wanted.
    pub(super) fn new(
        ideal: Ideal<'a>,
        form: &IdealForm,
        retained: &'a [f32],
        shape: &[usize],
    ) -> Result<Self> {
        let images = match (form, shape) {
            (IdealForm::Patches { nearest, .. }, &[channels, height, width]) => {
                let shape = [channels, height, width];
                Some((Images::new(&ideal, retained, shape)?, *nearest))
            }
            _ => None,
        };
        Ok(Self { ideal, images })
    }

    /// The denoiser of patches of this size, of whole points for none.
    pub(super) fn posterior(&self, patch: Option<usize>) -> Box<dyn Posterior + '_> {
        match (&self.images, patch) {
            (Some((images, nearest)), Some(patch)) => Box::new(Local {
                images,
                patch,
                nearest: *nearest,
            }),
            _ => Box::new(&self.ideal),
        }
    }

    /// The same over all retained images, where [`posterior`](Self::posterior) leaves some out.
    pub(super) fn uncut(&self, patch: Option<usize>) -> Option<Local<'_>> {
        let (images, nearest) = self.images.as_ref()?;
        let all = images.count();
        (*nearest < all).then_some(Local {
            images,
            patch: patch?,
            nearest: all,
        })
    }
}
