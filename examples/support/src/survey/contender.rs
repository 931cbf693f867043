//! The methods by their names in the tables, where a steered method has a name of its own.

use std::fmt;
use std::str::FromStr;

use crate::way::Way;

/// A method, steered to the predicted level or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    pub way: Way,
    pub is_steered: bool,
}

/// Ends the name of a steered method.
const TO_LEVEL: &str = "-to-level";

impl fmt::Display for Contender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.is_steered { TO_LEVEL } else { "" };
        write!(formatter, "{}{end}", self.way)
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, is_steered) = match text.strip_suffix(TO_LEVEL) {
            Some(name) => (name, true),
            None => (text, false),
        };
        let way = name
            .parse()
            .map_err(|error: siss::Error| error.to_string())?;
        // Other ways have what they stop at.
        if is_steered && !matches!(way, Way::Method(_)) {
            return Err(format!("`{text}` is no method; use `{name}`"));
        }
        Ok(Self { way, is_steered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for name in [
            "siss",
            "siss-to-level",
            "re-track-to-level",
            "counterfactual",
        ] {
            assert_eq!(name.parse::<Contender>().unwrap().to_string(), name);
        }
        for name in [
            "ascent-to-level",
            "counterfactual-to-level",
            "siss-to-level-to-level",
            "-to-level",
        ] {
            assert!(name.parse::<Contender>().is_err(), "{name}");
        }
    }
}
