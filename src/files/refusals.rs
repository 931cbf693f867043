//! Collects all settings of a file that are refused into one error, so that a user need not find
//! them one per run.

use serde_json::Value;

use super::{cut, shortened};
use crate::error::{Error, Result};

/// Most unknown keys that are named, and most bytes of each key and its value.
const MOST_NAMED: usize = 24;
const LONGEST_NAME: usize = 40;
const LONGEST_VALUE: usize = 20;
/// Longest text about all refused settings, in bytes.
const LONGEST_ACCOUNT: usize = 1600;

/// The refused settings of a file, collected while it is read.
#[derive(Debug)]
pub(crate) struct Refusals<'a> {
    file: &'a str,
    known: Vec<Refusal>,
    unknown: Vec<Refusal>,
}

#[derive(Debug)]
struct Refusal {
    key: String,
    value: String,
    remedy: String,
}

impl<'a> Refusals<'a> {
    /// No refusals yet; `file` is the name in the error.
    pub(crate) fn of(file: &'a str) -> Self {
        Self {
            file,
            known: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Adds a key whose value is not supported.
    pub(crate) fn add(&mut self, key: &str, value: impl ToString, remedy: impl Into<String>) {
        self.known.push(Refusal {
            key: key.into(),
            value: shortened(value.to_string()),
            remedy: remedy.into(),
        });
    }

    /// Adds an unknown key.
    pub(crate) fn add_unknown(&mut self, key: &str, value: &Value) {
        self.unknown.push(Refusal {
            key: cut(key.into(), LONGEST_NAME),
            value: cut(value.to_string(), LONGEST_VALUE),
            remedy: String::new(),
        });
    }

    /// Returns an error if anything was refused.
    ///
    /// # Errors
    /// [`Error::UnsupportedConfig`] with the first key that is refused, and all others in the
    /// remedy.
    pub(crate) fn into_result(self) -> Result<()> {
        let unknown = together(self.unknown);
        let mut all = self.known.into_iter().chain(unknown);
        let Some(first) = all.next() else {
            return Ok(());
        };
        let others: String = all
            .map(|Refusal { key, value, remedy }| {
                format!("; `{key}` is `{value}`, which is not supported either: {remedy}")
            })
            .collect();
        Err(Error::UnsupportedConfig {
            file: self.file.into(),
            key: shortened(first.key),
            value: format!("`{}`", first.value),
            remedy: cut(first.remedy + &others, LONGEST_ACCOUNT),
        })
    }
}

/// Combines all unknown keys into one refusal: that of the first, which names the others.
fn together(unknown: Vec<Refusal>) -> Option<Refusal> {
    let mut unknown = unknown.into_iter();
    let first = unknown.next()?;
    let others: Vec<_> = unknown
        .map(|other| format!("`{}` ({})", other.key, other.value))
        .collect();
    let remedy = match others.len() {
        0 => "the key is unknown: remove it if it does not change the computation".into(),
        count => {
            let mut named = others[..count.min(MOST_NAMED)].join(", ");
            if count > MOST_NAMED {
                named += &format!(" and {} more", count - MOST_NAMED);
            }
            let are = if count == 1 { "is" } else { "are" };
            format!(
                "the key is unknown, and so {are} {named}: remove those that do not change the computation"
            )
        }
    };
    Some(Refusal { remedy, ..first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_refused_is_in_one_error() {
        let mut refusals = Refusals::of("config.json");
        refusals.add_unknown("colour", &"red".into());
        refusals.add("act_fn", "\"gelu\"", "only silu is implemented");
        refusals.add_unknown("shade", &3.into());
        let error = refusals.into_result().unwrap_err().to_string();
        for part in [
            "`act_fn` is `\"gelu\"`",
            "silu",
            "`colour`",
            "`shade` (3)",
            "unknown",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(Refusals::of("config.json").into_result().is_ok());
    }

    #[test]
    fn a_thousand_keys_of_a_megabyte_make_a_short_error() {
        let mut refusals = Refusals::of("config.json");
        for index in 0..1000 {
            refusals.add_unknown(&format!("{index}{}", "ü".repeat(100_000)), &Value::Null);
        }
        let error = refusals.into_result().unwrap_err().to_string();
        assert!(error.len() < 2000 && error.contains("more"), "{error}");
    }
}
