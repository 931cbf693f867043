//! The published combinations of objective and clipper, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clipper::{ConstantScale, FractionOfRetain, GradientClipper};
use crate::error::{Error, Result};
use crate::loss::{Bernoulli, NaiveDeletion, NegGrad, Siss, SissLoss, SissNoIs};

/// A method by name, for configuration files and command lines. Each part can still be replaced in the builder.
///
/// | method | objective | clipper | source |
/// |---|---|---|---|
/// | `Siss` | [`Siss`] | [`FractionOfRetain`] 10 % | arXiv 2503.01034 |
/// | `SissNoIs` | [`SissNoIs`] | [`FractionOfRetain`] 10 % | arXiv 2503.01034 |
/// | `Bernoulli` | [`Bernoulli`] | [`FractionOfRetain`] 10 % | the code of arXiv 2503.01034 |
/// | `NaiveDeletion` | [`NaiveDeletion`] | [`FractionOfRetain`], with nothing to scale | arXiv 2503.01034 |
/// | `NegGrad` | [`NegGrad`] | [`ConstantScale`] 1 | arXiv 2503.01034 |
///
/// # Example
/// ```
/// let method: siss::Method = "siss-no-is".parse()?;
/// assert_eq!(method, siss::Method::SissNoIs);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// Importance sampled from the mixture.
    #[default]
    Siss,
    /// Two separate noisy points.
    SissNoIs,
    /// Each row for one side.
    Bernoulli,
    /// Retained points alone.
    NaiveDeletion,
    /// Ascent on forgotten points alone.
    NegGrad,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 5] = [
        Method::Siss,
        Method::SissNoIs,
        Method::Bernoulli,
        Method::NaiveDeletion,
        Method::NegGrad,
    ];

    /// The name used in configuration files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Method::Siss => "siss",
            Method::SissNoIs => "siss-no-is",
            Method::Bernoulli => "bernoulli",
            Method::NaiveDeletion => "naive-deletion",
            Method::NegGrad => "neg-grad",
        }
    }

    /// The method's objective.
    pub fn loss<const D: usize>(self) -> Box<dyn SissLoss<D>> {
        match self {
            Method::Siss => Box::new(Siss),
            Method::SissNoIs => Box::new(SissNoIs),
            Method::Bernoulli => Box::new(Bernoulli),
            Method::NaiveDeletion => Box::new(NaiveDeletion),
            Method::NegGrad => Box::new(NegGrad),
        }
    }

    /// The method's clipper with its published setting.
    pub fn clipper(self) -> Box<dyn GradientClipper> {
        match self {
            Method::Siss | Method::SissNoIs | Method::Bernoulli | Method::NaiveDeletion => {
                Box::new(FractionOfRetain::default())
            }
            Method::NegGrad => Box::new(ConstantScale::UNSCALED),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Method::ALL.into_iter().find(|method| method.name() == text);
        found.ok_or_else(|| Error::InvalidSetting {
            what: format!("there is no method `{text}`"),
            remedy: "use siss, siss-no-is, bernoulli, naive-deletion or neg-grad",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Side;

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        for method in Method::ALL {
            assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
            let json = serde_json::to_string(&method).unwrap();
            assert_eq!(json, format!("\"{method}\""));
        }
        assert!(
            "ascent"
                .parse::<Method>()
                .unwrap_err()
                .to_string()
                .contains("ascent")
        );
    }

    #[test]
    fn every_methods_clipper_fits_its_objective() {
        for method in Method::ALL {
            let (loss, clipper) = (method.loss::<4>(), method.clipper());
            for side in [Side::Retain, Side::Forget] {
                assert!(loss.has_term(side) || !clipper.needs(side), "{method}");
            }
        }
    }
}
