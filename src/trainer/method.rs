//! Combinations of objective and clipper by name, most of them published.

use std::fmt;
use std::str::FromStr;

use crate::clipper::{Blend, ConstantScale, EraseDiffRule, FractionOfRetain, GradientClipper};
use crate::error::{Error, Result};
use crate::objective::{
    Bernoulli, EraseDiff, NaiveDeletion, NegGrad, ReTrack, Siss, SissLoss, SissNoIs,
};
use crate::text::serde_as_text;
use burn::tensor::Tensor;

/// A method by name, for configuration files and command lines. The builder can still replace each
/// part.
///
/// | method | objective | sampler | clipper | source |
/// |---|---|---|---|---|
/// | `Siss` | [`Siss`] | mixture, `λ` = ½ | [`FractionOfRetain`] 10 % | arXiv 2503.01034 |
/// | `SissNoIs` | [`SissNoIs`] | – | [`FractionOfRetain`] 10 % | arXiv 2503.01034 |
/// | `Bernoulli` | [`Bernoulli`] | mixture, `λ` = ½ | [`FractionOfRetain`] 10 % | see below |
/// | `NaiveDeletion` | [`NaiveDeletion`] | – | [`FractionOfRetain`], no effect | arXiv 2503.01034 |
/// | `NegGrad` | [`NegGrad`] | – | [`ConstantScale`] 1 | arXiv 2503.01034 |
/// | `EraseDiff` | [`EraseDiff`] | – | [`EraseDiffRule`] `η` = 1e-3 | arXiv 2401.05779 |
/// | `ReTrack` | [`ReTrack`], 10 neighbours | – | [`Blend`] 0.005 | arXiv 2509.13007 |
///
/// `Bernoulli` comes from the code of arXiv 2503.01034, which also runs EraseDiff with this `η`.
/// The blend of ReTrack is 0.02 for CIFAR-10 and 0.5 for Stable Diffusion in its paper.
///
/// Each method with a forget term can be steered to a level: see
/// [`SissTrainerBuilder::steering`](crate::trainer::SissTrainerBuilder::steering).
///
/// The mixture is drawn by [`FixedAllocation`](crate::draws::FixedAllocation) unless another
/// sampler is set; the objectives marked – do not use a mixture.
///
/// # Example
/// ```
/// let method: siss::Method = "siss-no-is".parse()?;
/// assert_eq!(method, siss::Method::SissNoIs);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Method {
    /// SISS, importance-sampled from the mixture.
    #[default]
    Siss,
    /// SISS without importance sampling: a separate noisy point for each side.
    SissNoIs,
    /// Each row serves one side only.
    Bernoulli,
    /// Trains on retained points only.
    NaiveDeletion,
    /// Ascent on forgotten points only.
    NegGrad,
    /// Forgotten points learn uniform noise.
    EraseDiff,
    /// Forgotten points learn the predictions that belong to their neighbours.
    ReTrack,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 7] = [
        Method::Siss,
        Method::SissNoIs,
        Method::Bernoulli,
        Method::NaiveDeletion,
        Method::NegGrad,
        Method::EraseDiff,
        Method::ReTrack,
    ];

    /// The name used in configuration files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Method::Siss => "siss",
            Method::SissNoIs => "siss-no-is",
            Method::Bernoulli => "bernoulli",
            Method::NaiveDeletion => "naive-deletion",
            Method::NegGrad => "neg-grad",
            Method::EraseDiff => "erase-diff",
            Method::ReTrack => "re-track",
        }
    }

    /// The method's objective.
    ///
    /// ReTrack searches for neighbours in `retained`, the whole retain set; the other methods
    /// ignore it.
    ///
    /// # Errors
    /// [`Error::MissingPart`] for ReTrack without retained points, [`Error::Empty`] if the tensor
    /// has no points.
    pub fn loss<const D: usize, C>(
        self,
        retained: Option<&Tensor<D>>,
    ) -> Result<Box<dyn SissLoss<D, C>>> {
        Ok(match self {
            Method::Siss => Box::new(Siss),
            Method::SissNoIs => Box::new(SissNoIs),
            Method::Bernoulli => Box::new(Bernoulli),
            Method::NaiveDeletion => Box::new(NaiveDeletion),
            Method::NegGrad => Box::new(NegGrad),
            Method::EraseDiff => Box::new(EraseDiff),
            Method::ReTrack => {
                let retained = retained.ok_or_else(|| Error::MissingPart {
                    owner: self.name().into(),
                    missing: "retained points to search for neighbours",
                    remedy: "give the retain set with `SissTrainerBuilder::retained_points`",
                })?;
                Box::new(ReTrack::new(retained.clone())?)
            }
        })
    }

    /// The method's clipper if its forget gradient is steered: 30 % instead of the rule of 10 %, a
    /// share that shrinks as the levels are reached.
    pub(crate) fn steered_clipper(self) -> Box<dyn GradientClipper> {
        match self {
            Method::NegGrad | Method::EraseDiff | Method::ReTrack => self.clipper(),
            _ => Box::new(FractionOfRetain::STEERED),
        }
    }

    /// The method's clipper with its published setting.
    pub fn clipper(self) -> Box<dyn GradientClipper> {
        match self {
            Method::Siss | Method::SissNoIs | Method::Bernoulli | Method::NaiveDeletion => {
                Box::new(FractionOfRetain::default())
            }
            Method::NegGrad => Box::new(ConstantScale::UNSCALED),
            Method::EraseDiff => Box::new(EraseDiffRule::PUBLISHED),
            Method::ReTrack => Box::new(Blend::PUBLISHED),
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
        found.ok_or_else(|| Error::UnknownName {
            what: "method",
            name: text.into(),
            known: Method::ALL.map(Method::name).to_vec(),
        })
    }
}

serde_as_text!(Method);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Side;
    use burn::tensor::Device;

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        for method in Method::ALL {
            assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
            let json = serde_json::to_string(&method).unwrap();
            assert_eq!(json, format!("\"{method}\""));
        }
        let error = "ascent".parse::<Method>().unwrap_err();
        assert!(matches!(&error, Error::UnknownName { name, known, .. }
                if name == "ascent" && known.len() == Method::ALL.len()));
        for known in Method::ALL {
            assert!(error.to_string().contains(known.name()), "{error}");
        }
    }

    #[test]
    fn re_track_asks_for_the_retained_points() {
        let error = Method::ReTrack.loss::<4, ()>(None).unwrap_err();
        assert!(error.to_string().contains("retained_points"), "{error}");
    }

    #[test]
    fn steering_raises_the_share_of_the_fraction_rule_and_no_other_clipper() {
        for method in Method::ALL {
            let clipper = method.clipper();
            let expected: Box<dyn GradientClipper> = match clipper.name() {
                "FractionOfRetain" => Box::new(FractionOfRetain::STEERED),
                _ => clipper,
            };
            let steered = method.steered_clipper().settings();
            assert_eq!(steered, expected.settings(), "{method}");
        }
    }

    #[test]
    fn every_methods_clipper_fits_its_objective() {
        for method in Method::ALL {
            let retained = Tensor::<4>::zeros([20, 1, 2, 2], &Device::flex());
            let loss = method.loss::<4, ()>(Some(&retained)).unwrap();
            let clipper = method.clipper();
            for side in [Side::Retain, Side::Forget] {
                assert!(loss.has_term(side) || !clipper.needs(side), "{method}");
            }
        }
    }
}
