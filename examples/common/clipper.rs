//! A clipper by name, for the command line.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use siss::{ClipToNorm, ConstantScale, FractionOfRetain, GradientClipper, RescaleToNorm};

/// A clipper with its number, as `kind:number`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClipperSpec {
    Fraction(f64),
    Rescale(f64),
    Clip(f64),
    Constant(f64),
}

impl ClipperSpec {
    pub fn build(self) -> siss::Result<Box<dyn GradientClipper>> {
        Ok(match self {
            ClipperSpec::Fraction(fraction) => Box::new(FractionOfRetain::new(fraction)?),
            ClipperSpec::Rescale(norm) => Box::new(RescaleToNorm::new(norm)?),
            ClipperSpec::Clip(norm) => Box::new(ClipToNorm::new(norm)?),
            ClipperSpec::Constant(scale) => Box::new(ConstantScale::new(scale)?),
        })
    }
}

impl FromStr for ClipperSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, number) = text
            .split_once(':')
            .ok_or("write it as kind:number, as in fraction:0.1")?;
        let number = number
            .parse()
            .map_err(|_| format!("`{number}` is not a number"))?;
        match kind {
            "fraction" => Ok(ClipperSpec::Fraction(number)),
            "rescale" => Ok(ClipperSpec::Rescale(number)),
            "clip" => Ok(ClipperSpec::Clip(number)),
            "constant" => Ok(ClipperSpec::Constant(number)),
            _ => Err(format!(
                "`{kind}` is not fraction, rescale, clip or constant"
            )),
        }
    }
}

impl fmt::Display for ClipperSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClipperSpec::Fraction(number) => write!(formatter, "fraction:{number}"),
            ClipperSpec::Rescale(number) => write!(formatter, "rescale:{number}"),
            ClipperSpec::Clip(number) => write!(formatter, "clip:{number}"),
            ClipperSpec::Constant(number) => write!(formatter, "constant:{number}"),
        }
    }
}

impl Serialize for ClipperSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
