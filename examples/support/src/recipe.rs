//! The methods by their names in the tables, where a steered method has a name of its own.

use std::fmt;
use std::str::FromStr;

use siss::Method;

/// A row of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// A method without a target.
    Plain(Method),
    /// SISS with a target.
    SissToLevel,
}

impl Recipe {
    /// Every method, and SISS with a target.
    pub fn all() -> Vec<Recipe> {
        let mut all = Vec::from(Method::ALL.map(Recipe::Plain));
        all.insert(1, Recipe::SissToLevel);
        all
    }

    pub fn method(self) -> Method {
        match self {
            Recipe::Plain(method) => method,
            Recipe::SissToLevel => Method::Siss,
        }
    }

    pub fn is_steered(self) -> bool {
        self == Recipe::SissToLevel
    }

    /// The name in the tables and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Recipe::Plain(method) => method.name(),
            Recipe::SissToLevel => "siss-to-level",
        }
    }
}

impl From<Method> for Recipe {
    fn from(method: Method) -> Self {
        Recipe::Plain(method)
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Recipe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = Recipe::all();
        let found = all.iter().find(|recipe| recipe.name() == text);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|recipe| recipe.name()).collect();
            format!("there is no method `{text}`; use {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        for recipe in Recipe::all() {
            assert_eq!(recipe.name().parse(), Ok(recipe));
        }
        assert_eq!(Recipe::all().len(), Method::ALL.len() + 1);
        let error = "ascent".parse::<Recipe>().unwrap_err();
        assert!(
            error.contains("`ascent`") && error.contains("siss-to-level"),
            "{error}"
        );
    }
}
