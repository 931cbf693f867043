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
    /// A posterior for each pixel, which sees a square patch around the pixel. At low noise, this
    /// is closer to how convolutional networks behave (Kamb and Ganguli 2024, arXiv 2412.20292).
    /// For images `[n, channels, height, width]`; computed on the host.
    ///
    /// At each timestep, the patch size is chosen whose denoiser is nearest to the model on control
    /// points.
    Patches {
        /// Sizes to choose from, in pixels, odd; a size of at least twice the image's covers the
        /// whole image.
        sizes: Vec<usize>,
        /// How many retained images each posterior uses: the nearest ones. See
        /// [`Counterfactual::cut_error`](crate::steering::Counterfactual::cut_error).
        nearest: usize,
    },
}

impl IdealForm {
    /// Patches of 3, 5, 7, 9 and 13 pixels, with the 2,000 nearest images.
    pub fn patches() -> Self {
        IdealForm::Patches {
            sizes: vec![3, 5, 7, 9, 13],
            nearest: 2000,
        }
    }

    /// The sizes to choose from; none for whole points.
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

/// The ideal denoisers of some points, in every form that is needed.
pub(super) struct Forms<'a> {
    pub(super) ideal: Ideal<'a>,
    /// For patches: the images, and how many of the nearest ones are used.
    images: Option<(Images<'a>, usize)>,
}

impl<'a> Forms<'a> {
    /// `shape` is that of a point; `retained` holds its retained points on the host if patches are
    /// used.
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

    /// The denoiser of patches of this size; of whole points for `None`.
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

    /// The same over all retained images, if [`posterior`](Self::posterior) leaves some out.
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
