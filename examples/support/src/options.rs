//! Checks of the options that the examples share; the messages contain the option's name.

use siss::clipper::ClipperSpec;

type Checked = std::result::Result<(), String>;

/// Checks options that count something.
pub fn at_least_one(counts: &[(&str, Option<usize>)]) -> Checked {
    match counts.iter().find(|(_, count)| *count == Some(0)) {
        None => Ok(()),
        Some((option, _)) => Err(format!("--{option} is 0; it must be at least 1")),
    }
}

/// Checks that a number is finite and valid.
pub fn number(option: &str, value: f64, is_legal: bool, requirement: &str) -> Checked {
    match value.is_finite() && is_legal {
        true => Ok(()),
        false => Err(format!("--{option} is {value}; it must be {requirement}")),
    }
}

/// Checks a learning rate, if one is given.
pub fn learning_rate(rate: Option<f64>) -> Checked {
    let rate = rate.unwrap_or(1.0);
    number("learning-rate", rate, rate > 0.0, "a finite number above 0")
}

/// Checks that a clipper's numbers are in their ranges.
pub fn clipper(spec: Option<ClipperSpec>) -> Checked {
    let Some(spec) = spec else {
        return Ok(());
    };
    spec.build()
        .map(|_| ())
        .map_err(|error| format!("--clipper {spec}: {error}"))
}
