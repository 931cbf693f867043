//! A method by name, or regression to predicted answers, which needs more than a name.

use std::fmt;
use std::str::FromStr;

use siss::{Error, Method, Result};

use crate::target::parse_method;

/// How a job unlearns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By one of the library's named methods.
    Method(Method),
    /// By teaching the predicted answers of a retrained model.
    Counterfactual,
}

const COUNTERFACTUAL: &str = "counterfactual";

impl Default for Way {
    fn default() -> Self {
        Way::Method(Method::default())
    }
}

impl From<Method> for Way {
    fn from(method: Method) -> Self {
        Way::Method(method)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Method(method) => method.fmt(formatter),
            Way::Counterfactual => formatter.write_str(COUNTERFACTUAL),
        }
    }
}

impl FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == COUNTERFACTUAL {
            return Ok(Way::Counterfactual);
        }
        parse_method(text)
            .map(Way::Method)
            .map_err(|error| match error {
                Error::UnknownName {
                    what,
                    name,
                    mut known,
                } => {
                    known.push(COUNTERFACTUAL);
                    Error::UnknownName { what, name, known }
                }
                error => error,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        let methods = Method::ALL.map(Way::Method);
        for way in methods.into_iter().chain([Way::Counterfactual]) {
            assert_eq!(way.to_string().parse::<Way>().unwrap(), way);
        }
        let error = "ascent".parse::<Way>().unwrap_err().to_string();
        assert!(
            error.contains("counterfactual") && error.contains("siss"),
            "{error}"
        );
        assert!("siss-to-level".parse::<Way>().is_err());
    }
}
