//! What is asked of the options that the examples share, with the option's name in the message.

use siss::clipper::ClipperSpec;

type Checked = std::result::Result<(), String>;

/// Options that count something.
pub fn at_least_one(counts: &[(&str, Option<usize>)]) -> Checked {
    match counts.iter().find(|(_, count)| *count == Some(0)) {
        None => Ok(()),
        Some((option, _)) => Err(format!("--{option} is 0; it must be at least 1")),
    }
}

/// A number that is finite and legal.
pub fn number(option: &str, value: f64, is_legal: bool, requirement: &str) -> Checked {
    match value.is_finite() && is_legal {
        true => Ok(()),
        false => Err(format!("--{option} is {value}; it must be {requirement}")),
    }
}

/// A learning rate, where one is given.
pub fn learning_rate(rate: Option<f64>) -> Checked {
    let rate = rate.unwrap_or(1.0);
    number("learning-rate", rate, rate > 0.0, "a finite number above 0")
}

/// A clipper whose numbers are in their ranges.
pub fn clipper(spec: Option<ClipperSpec>) -> Checked {
    let Some(spec) = spec else {
        return Ok(());
    };
    spec.build()
        .map(|_| ())
        .map_err(|error| format!("--clipper {spec}: {error}"))
}
