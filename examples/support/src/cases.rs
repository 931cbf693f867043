//! The three cases that the crate is measured on: a model, what it memorised, and what it was
//! trained on besides.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use siss::Result;
use siss::burn::tensor::{Device, Tensor};

use crate::digits::{load_digits, load_memorised_digits, load_tshirt};
use crate::emoji::load_emoji;

/// A model and what it is to forget.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// One T-shirt among digits: nothing like it is kept.
    #[default]
    Tshirt,
    /// Ten digits among digits: much like them is kept.
    Digits,
    /// Four faces among colour pictures.
    Faces,
}

/// The points of a case, `[count, channels, height, width]` in `[-1, 1]`.
#[derive(Debug)]
pub struct CaseData {
    /// What is kept.
    pub retain: Tensor<4>,
    /// What no model of the case has seen.
    pub heldout: Tensor<4>,
    /// What was memorised.
    pub forget: Tensor<4>,
}

impl Case {
    /// All cases.
    pub const ALL: [Self; 3] = [Self::Tshirt, Self::Digits, Self::Faces];

    /// The name on command lines and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Case::Tshirt => "tshirt",
            Case::Digits => "digits",
            Case::Faces => "faces",
        }
    }

    /// Loads the points from the folder of the examples' files.
    ///
    /// # Errors
    /// Those of the loaders.
    pub fn load(self, assets: &Path, device: &Device) -> Result<CaseData> {
        if self == Case::Faces {
            let emoji = load_emoji(assets, device)?;
            return Ok(CaseData {
                retain: emoji.retain,
                heldout: emoji.heldout,
                forget: emoji.faces,
            });
        }
        let digits = load_digits(assets, device)?;
        let (forget, heldout) = match self {
            Case::Tshirt => (load_tshirt(assets, device)?, digits.heldout),
            _ => load_memorised_digits(assets, digits.heldout)?,
        };
        Ok(CaseData {
            retain: digits.retain,
            heldout,
            forget,
        })
    }

    /// How often each memorised point was in the training data.
    pub fn copies(self) -> usize {
        match self {
            Case::Tshirt | Case::Digits => 180,
            Case::Faces => 120,
        }
    }

    /// The folder of the model that memorised.
    pub fn model(self, assets: &Path) -> PathBuf {
        match self {
            Case::Tshirt => assets.join("base"),
            case => assets.join(case.name()),
        }
    }

    /// The folder of a model that never saw what the other memorised, which is what unlearning
    /// should arrive at, and those of others trained with other seeds. The ten digits are not among
    /// those that the T-shirt's twins were trained on, so these are their twins too. The model that
    /// memorised the digits was trained on from one of them, which is therefore not the first.
    pub fn retrained(self, assets: &Path) -> (PathBuf, Vec<PathBuf>) {
        let folder = match self {
            Case::Tshirt | Case::Digits => Case::Tshirt.model(assets),
            Case::Faces => self.model(assets),
        };
        let (first, others): (_, &[_]) = match self {
            Case::Tshirt => ("retrained", &["retrained2", "retrained3"]),
            Case::Digits => ("retrained2", &["retrained", "retrained3"]),
            Case::Faces => ("retrained", &["retrained2"]),
        };
        let others = others.iter().map(|name| folder.join(name));
        (folder.join(first), others.collect())
    }
}
