//! How a job unlearns, by its name on command lines and in tables: a method, steered or not, or
//! regression to predicted answers.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use siss::answer::Answer;
use siss::clipper::{ClipperSpec, GradientClipper};
use siss::objective::Answers;
use siss::steering::Levels;
use siss::trainer::SissTrainerBuilder;
use siss::{Denoiser, Error, Method, Result, Side, Steering};

/// How a job unlearns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    /// By one of the library's named methods, which can be steered.
    Method(Method),
    /// By SISS, steered to the predicted losses of a retrained model.
    SissToLevel,
    /// By teaching the predicted answers of a retrained model.
    #[default]
    Counterfactual,
}

impl Way {
    /// Every way, in the order of the tables.
    pub fn all() -> Vec<Way> {
        let mut all = Vec::from(Method::ALL.map(Way::Method));
        all.insert(1, Way::SissToLevel);
        all.push(Way::Counterfactual);
        all
    }

    /// Those that are a method, steered or not.
    pub fn methods() -> Vec<Way> {
        let mut ways = Way::all();
        ways.retain(|way| way.method().is_some());
        ways
    }

    /// The method, of which [`Way::Counterfactual`] has none.
    pub fn method(self) -> Option<Method> {
        match self {
            Way::Method(method) => Some(method),
            Way::SissToLevel => Some(Method::Siss),
            Way::Counterfactual => None,
        }
    }

    /// Whether it needs something that is predicted of a retrained model.
    pub fn is_predicted(self) -> bool {
        !matches!(self, Way::Method(_))
    }

    /// Whether noisy points are drawn from the mixture, so that λ matters.
    pub fn draws_mixture(self) -> bool {
        matches!(self.method(), Some(Method::Siss | Method::Bernoulli))
    }

    /// The name in tables and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Way::Method(method) => method.name(),
            Way::SissToLevel => "siss-to-level",
            Way::Counterfactual => "counterfactual",
        }
    }

    /// Sets objective, clipper and steering. A method is steered if there are levels; answers are
    /// not. Without a clipper it is the way's own.
    ///
    /// Where answers are taught, retained points keep theirs, unless the clipper weighs by the
    /// gradient of learning them.
    pub fn set<M: Denoiser<D, Condition: 'static>, const D: usize>(
        self,
        builder: SissTrainerBuilder<M, D>,
        levels: Option<Levels>,
        answer: Option<impl Answer<D, M::Condition> + 'static>,
        clipper: Option<ClipperSpec>,
    ) -> Result<SissTrainerBuilder<M, D>> {
        let missing = |missing| Error::MissingPart {
            owner: format!("the method `{self}`"),
            missing,
            remedy: "let them be predicted: --target retrained",
        };
        let clipper = clipper.map(|clipper| clipper.build()).transpose()?;
        let Some(method) = self.method() else {
            let answer = answer.ok_or_else(|| missing("predicted answers"))?;
            let objective = match clipper.as_ref().is_some_and(|it| it.needs(Side::Retain)) {
                true => Answers::new(answer),
                false => Answers::new(answer).keeping(),
            };
            let clipper = clipper.unwrap_or_else(|| objective.clipper());
            return Ok(builder.loss(objective).clipper(clipper));
        };
        let builder = match (builder.method(method), levels) {
            (builder, Some(levels)) => builder.steering(Steering::new(levels)),
            (_, None) if self == Way::SissToLevel => return Err(missing("predicted losses")),
            (builder, None) => builder,
        };
        Ok(match clipper {
            Some(clipper) => builder.clipper(clipper),
            None => builder,
        })
    }
}

impl From<Method> for Way {
    fn from(method: Method) -> Self {
        Way::Method(method)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Serialize for Way {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut all = Way::all().into_iter();
        all.find(|way| way.name() == text)
            .ok_or_else(|| Error::UnknownName {
                what: "method",
                name: text.into(),
                known: Way::all().into_iter().map(Way::name).collect(),
            })
    }
}

/// Parses a way on a command line that has an option for the target too. There `siss-to-level` is
/// two options.
pub fn parse_way(text: &str) -> Result<Way> {
    match text.parse()? {
        Way::SissToLevel => Err(Error::InvalidSetting {
            what: format!("{text} is siss with a target"),
            remedy: "use --method siss --target retrained",
        }),
        way => Ok(way),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small::{Mlp, batch, level};
    use siss::answer::Surrogate;
    use siss::burn::tensor::{Device, Tensor};
    use siss::{DdpmScheduler, SissTrainer};

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        for way in Way::all() {
            assert_eq!(way.name().parse::<Way>().unwrap(), way);
            assert_eq!(parse_way(way.name()).is_ok(), way != Way::SissToLevel);
        }
        assert_eq!(Way::all().len(), Method::ALL.len() + 2);
        assert_eq!(Way::methods().len(), Method::ALL.len() + 1);
        let error = "ascent".parse::<Way>().unwrap_err().to_string();
        for name in ["`ascent`", "siss-to-level", "counterfactual"] {
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_is_not_predicted_is_missed_by_name() {
        let device = Device::flex();
        let set = |way: Way, is_predicted: bool| {
            let scheduler = DdpmScheduler::linear(1000).unwrap();
            let builder = SissTrainer::builder(Mlp::new(3, &device), scheduler);
            let levels = is_predicted.then(|| level(1.0).levels().clone());
            let answer = Surrogate::new(Tensor::<2>::zeros([1, 3], &device)).unwrap();
            way.set(builder, levels, is_predicted.then_some(answer), None)
        };
        for way in Way::all() {
            let error = set(way, false).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), way.is_predicted(), "{way}");
            let named = error.is_none_or(|error| {
                error.contains(way.name()) && error.contains("--target retrained")
            });
            assert!(named, "{way}");
            assert!(set(way, true).is_ok(), "{way}");
        }
    }

    #[test]
    fn retained_points_keep_their_answers_unless_the_clipper_weighs_by_their_gradient() {
        let device = Device::flex();
        for (clipper, keeps) in [
            (None, true),
            (Some("constant:0.3"), true),
            (Some("fraction:0.3:1"), false),
        ] {
            let scheduler = DdpmScheduler::linear(1000).unwrap();
            let builder = SissTrainer::builder(Mlp::new(3, &device), scheduler);
            let answer = Surrogate::new(Tensor::<2>::zeros([8, 3], &device)).unwrap();
            let clipper = clipper.map(|text| text.parse().unwrap());
            let builder = Way::Counterfactual.set(builder, None, Some(answer), clipper);
            let mut trainer = builder.unwrap().build().unwrap();
            let report = trainer.step(batch(8, 2.0, 1, &device)).unwrap();
            let distance = report.retain.unwrap().mean_squared_error;
            assert_eq!(distance == 0.0, keeps, "{clipper:?}: {distance}");
        }
    }
}
