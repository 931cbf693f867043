//! Clippers as text, for command lines and configuration files.

use std::fmt;
use std::str::FromStr;

use super::{
    Blend, ClipToNorm, ConstantScale, EraseDiffRule, FractionOfRetain, GradientClipper, Projected,
    RescaleToNorm,
};
use crate::error::{Error, Result};
use crate::text::serde_as_text;

/// A clipper with its number, written as `kind:number`.
///
/// | text | clipper |
/// |---|---|
/// | `fraction:0.1` | [`FractionOfRetain`] |
/// | `fraction:0.1:2.5` | the same with a limit of the scale |
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
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ClipperSpec {
    /// [`FractionOfRetain`].
    Fraction {
        /// Fraction of the retain gradient's norm.
        fraction: f64,
        /// The limit of the scale, if there is one.
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
    /// Creates the clipper.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a number outside its range.
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

/// How a kind is written, and the function that creates it from its numbers.
type Form = (&'static str, fn(&[f64]) -> Option<ClipperSpec>);

const FORMS: [Form; 8] = [
    ("fraction:F", |numbers| fraction(numbers, None)),
    ("fraction:F:MAX", |numbers| {
        let (&most, fraction_alone) = numbers.split_last()?;
        fraction(fraction_alone, Some(most))
    }),
    ("rescale:N", |numbers| {
        one(numbers).map(ClipperSpec::Rescale)
    }),
    ("clip:N", |numbers| one(numbers).map(ClipperSpec::Clip)),
    ("constant:S", |numbers| {
        one(numbers).map(ClipperSpec::Constant)
    }),
    ("blend:S", |numbers| one(numbers).map(ClipperSpec::Blend)),
    ("erase-diff:R", |numbers| {
        one(numbers).map(ClipperSpec::EraseDiff)
    }),
    ("projected", |numbers| {
        numbers.is_empty().then_some(ClipperSpec::Projected)
    }),
];

fn fraction(numbers: &[f64], max_scale: Option<f64>) -> Option<ClipperSpec> {
    one(numbers).map(|fraction| ClipperSpec::Fraction {
        fraction,
        max_scale,
    })
}

fn one(numbers: &[f64]) -> Option<f64> {
    match numbers {
        [number] => Some(*number),
        _ => None,
    }
}

fn kind(text: &str) -> &str {
    text.split_once(':').map_or(text, |(kind, _)| kind)
}

impl FromStr for ClipperSpec {
    type Err = Error;

    /// Parses a clipper from its text.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split(':').skip(1).map(|part| part.parse().ok());
        let numbers: Option<Vec<f64>> = numbers.collect();
        let of_kind = FORMS.iter().filter(|(form, _)| kind(form) == kind(text));
        let found = numbers.and_then(|numbers| {
            let mut clippers = of_kind.filter_map(|(_, clipper)| clipper(&numbers));
            clippers.next()
        });
        found.ok_or_else(|| Error::UnknownName {
            what: "clipper",
            name: text.into(),
            known: FORMS.map(|(form, _)| form).to_vec(),
        })
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

serde_as_text!(ClipperSpec);

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
            // The message for an unknown name lists the known ones.
            let error = "soft:1".parse::<ClipperSpec>().unwrap_err().to_string();
            assert!(error.contains(kind(text)), "{error}");
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
