//! A clipper as text, for command lines and configuration files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    Blend, ClipToNorm, ConstantScale, EraseDiffRule, FractionOfRetain, GradientClipper, Projected,
    RescaleToNorm,
};
use crate::error::{Error, Result};

/// A clipper with its number, written as `kind:number`.
///
/// | text | clipper |
/// |---|---|
/// | `fraction:0.1` | [`FractionOfRetain`] |
/// | `fraction:0.1:2.5` | the same with a largest scale |
/// | `rescale:5` | [`RescaleToNorm`] |
/// | `clip:5` | [`ClipToNorm`] |
/// | `constant:1` | [`ConstantScale`] |
/// | `blend:0.005` | [`Blend`] |
/// | `erase-diff:0.001` | [`EraseDiffRule`] |
/// | `projected` | [`Projected`] |
///
/// # Example
/// ```
/// let clipper = "fraction:0.1".parse::<siss::clipper::ClipperSpec>()?.build()?;
/// assert_eq!(clipper.name(), "FractionOfRetain");
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum ClipperSpec {
    /// [`FractionOfRetain`].
    Fraction {
        /// Of the retain gradient's norm.
        fraction: f64,
        /// What the scale may not exceed, if anything.
        max_scale: Option<f64>,
    },
    /// [`RescaleToNorm`] with its norm.
    Rescale(f64),
    /// [`ClipToNorm`] with its norm.
    Clip(f64),
    /// [`ConstantScale`] with its scale.
    Constant(f64),
    /// [`Blend`] with its share.
    Blend(f64),
    /// [`EraseDiffRule`] with its rate.
    EraseDiff(f64),
    /// [`Projected`].
    Projected,
}

impl ClipperSpec {
    /// The clipper.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a number that is not in its range.
    pub fn build(self) -> Result<Box<dyn GradientClipper>> {
        Ok(match self {
            ClipperSpec::Fraction {
                fraction,
                max_scale,
            } => {
                let clipper = FractionOfRetain::new(fraction)?;
                Box::new(match max_scale {
                    None => clipper,
                    Some(max_scale) => clipper.with_max_scale(max_scale)?,
                })
            }
            ClipperSpec::Rescale(norm) => Box::new(RescaleToNorm::new(norm)?),
            ClipperSpec::Clip(norm) => Box::new(ClipToNorm::new(norm)?),
            ClipperSpec::Constant(scale) => Box::new(ConstantScale::new(scale)?),
            ClipperSpec::Blend(share) => Box::new(Blend::new(share)?),
            ClipperSpec::EraseDiff(rate) => Box::new(EraseDiffRule::new(rate)?),
            ClipperSpec::Projected => Box::new(Projected),
        })
    }
}

impl FromStr for ClipperSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let kind = parts.next().unwrap_or_default();
        let numbers: Option<Vec<f64>> = parts.map(|part| part.parse().ok()).collect();
        match (kind, numbers.as_deref()) {
            ("fraction", Some(&[fraction, ref most @ ..])) if most.len() < 2 => {
                Ok(ClipperSpec::Fraction {
                    fraction,
                    max_scale: most.first().copied(),
                })
            }
            ("rescale", Some(&[norm])) => Ok(ClipperSpec::Rescale(norm)),
            ("clip", Some(&[norm])) => Ok(ClipperSpec::Clip(norm)),
            ("constant", Some(&[scale])) => Ok(ClipperSpec::Constant(scale)),
            ("blend", Some(&[share])) => Ok(ClipperSpec::Blend(share)),
            ("erase-diff", Some(&[rate])) => Ok(ClipperSpec::EraseDiff(rate)),
            ("projected", Some(&[])) => Ok(ClipperSpec::Projected),
            _ => Err(Error::InvalidSetting {
                what: format!("there is no clipper `{text}`"),
                remedy: "use fraction:F, fraction:F:MAX, rescale:N, clip:N, constant:S, blend:S, erase-diff:R or projected",
            }),
        }
    }
}

impl fmt::Display for ClipperSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClipperSpec::Fraction {
                fraction,
                max_scale: None,
            } => write!(formatter, "fraction:{fraction}"),
            ClipperSpec::Fraction {
                fraction,
                max_scale: Some(max_scale),
            } => write!(formatter, "fraction:{fraction}:{max_scale}"),
            ClipperSpec::Rescale(norm) => write!(formatter, "rescale:{norm}"),
            ClipperSpec::Clip(norm) => write!(formatter, "clip:{norm}"),
            ClipperSpec::Constant(scale) => write!(formatter, "constant:{scale}"),
            ClipperSpec::Blend(share) => write!(formatter, "blend:{share}"),
            ClipperSpec::EraseDiff(rate) => write!(formatter, "erase-diff:{rate}"),
            ClipperSpec::Projected => formatter.write_str("projected"),
        }
    }
}

impl From<ClipperSpec> for String {
    fn from(spec: ClipperSpec) -> String {
        spec.to_string()
    }
}

impl TryFrom<String> for ClipperSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_parses_back_and_builds_its_clipper() {
        for (text, name) in [
            ("fraction:0.1", "FractionOfRetain"),
            ("fraction:0.1:4", "FractionOfRetain"),
            ("rescale:5", "RescaleToNorm"),
            ("clip:5", "ClipToNorm"),
            ("constant:1", "ConstantScale"),
            ("blend:0.005", "Blend"),
            ("erase-diff:0.001", "EraseDiffRule"),
            ("projected", "Projected"),
        ] {
            let spec: ClipperSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            assert_eq!(spec.build().unwrap().name(), name);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<ClipperSpec>(&json).unwrap(), spec);
        }
    }

    #[test]
    fn the_largest_scale_binds() {
        use crate::clipper::GradientNorms;
        let norms = GradientNorms {
            retain: 100.0,
            forget: 1.0,
            ..GradientNorms::default()
        };
        let scale = |text: &str| {
            let mut clipper = text.parse::<ClipperSpec>().unwrap().build().unwrap();
            clipper.coefficients(&norms).unwrap().forget
        };
        assert_eq!(["fraction:0.1", "fraction:0.1:4"].map(scale), [10.0, 4.0]);
    }

    #[test]
    fn what_is_no_clipper_is_refused_with_its_text() {
        for bad in [
            "fraction:0.1:4:1",
            "fraction:0.1:4x",
            "fraction",
            "fraction:x",
            "clip:1:2",
            "projected:1",
            "soft:1",
            "",
        ] {
            let error = bad.parse::<ClipperSpec>().unwrap_err().to_string();
            assert!(error.contains(&format!("no clipper `{bad}`")), "{error}");
        }
        assert!("blend:2".parse::<ClipperSpec>().unwrap().build().is_err());
    }
}
