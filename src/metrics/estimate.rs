//! A measured number with its sample size and an interval.

use std::fmt;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::error::{Error, Result, check_range};
use crate::statistics::binomial_interval;

/// Confidence of all intervals of this module.
pub const CONFIDENCE: f64 = 0.95;

/// A measured number, with the sizes of the samples it comes from and a two-sided 95 % interval.
///
/// `Display` gives all of it on one line.
///
/// # Example
/// ```
/// use siss::metrics::Estimate;
///
/// let copies = Estimate::share("copies", 0, 30_720)?;
/// assert_eq!(copies.to_string(), "copies: 0 (95 % interval 0 to 0.0001201; n = 30720)");
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Estimate {
    /// What was measured, with every choice that changes the number.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Sizes of the samples.
    pub samples: Vec<usize>,
}

impl Estimate {
    /// A share of trials, with the exact interval of Clopper and Pearson.
    ///
    /// # Errors
    /// [`Error::Empty`] without trials, [`Error::OutOfRange`] for more successes than trials.
    pub fn share(name: impl Into<String>, successes: usize, trials: usize) -> Result<Self> {
        let (low, high) = binomial_interval(successes as u64, trials as u64, CONFIDENCE)?;
        Ok(Self {
            name: name.into(),
            value: successes as f64 / trials as f64,
            low,
            high,
            samples: vec![trials],
        })
    }

    /// The mean of independent numbers, with Student's interval.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for fewer than two numbers, [`Error::NonFiniteNumber`].
    pub fn mean(name: impl Into<String>, numbers: &[f64]) -> Result<Self> {
        check_samples(numbers.len())?;
        check_finite_numbers("the list to average", numbers)?;
        let count = numbers.len() as f64;
        let (mean, deviation) = mean_and_deviation(numbers);
        let half = student_quantile(count - 1.0)? * deviation / count.sqrt();
        let samples = vec![numbers.len()];
        Ok(Self::within(
            name,
            mean,
            (mean - half, mean + half),
            samples,
        ))
    }

    /// A number whose error is nearly normal, with a known standard error.
    pub(crate) fn normal(
        name: impl Into<String>,
        value: f64,
        standard_error: f64,
        samples: Vec<usize>,
    ) -> Self {
        let half = normal_quantile() * standard_error;
        Self::within(name, value, (value - half, value + half), samples)
    }

    pub(crate) fn within(
        name: impl Into<String>,
        value: f64,
        (low, high): (f64, f64),
        samples: Vec<usize>,
    ) -> Self {
        let name = name.into();
        Self {
            name,
            value,
            low,
            high,
            samples,
        }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [value, low, high] = [self.value, self.low, self.high].map(four_digits);
        let samples: Vec<String> = self.samples.iter().map(usize::to_string).collect();
        let (name, samples) = (&self.name, samples.join(" and "));
        write!(
            formatter,
            "{name}: {value} (95 % interval {low} to {high}; n = {samples})"
        )
    }
}

/// A number with four significant digits and no trailing zeros.
fn four_digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let decimals = (3 - value.abs().log10().floor() as i64).clamp(0, 17) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// Mean, and standard deviation with the divisor `n − 1`.
pub(super) fn mean_and_deviation(numbers: &[f64]) -> (f64, f64) {
    let count = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / count;
    let squares: f64 = numbers.iter().map(|it| (it - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

/// The quantile of the standard normal distribution that ends a two-sided interval.
pub(super) fn normal_quantile() -> f64 {
    Normal::standard().inverse_cdf(0.5 + CONFIDENCE / 2.0)
}

/// That of Student's distribution.
fn student_quantile(degrees: f64) -> Result<f64> {
    Ok(student(degrees)?.inverse_cdf(0.5 + CONFIDENCE / 2.0))
}

/// Student's distribution with some degrees of freedom.
pub(super) fn student(degrees: f64) -> Result<StudentsT> {
    StudentsT::new(0.0, 1.0, degrees).map_err(|_| Error::OutOfRange {
        name: "degrees of freedom",
        value: degrees,
        requirement: "above 0",
    })
}

/// Checks that a spread can be computed.
pub(super) fn check_samples(count: usize) -> Result<()> {
    let name = "the number of samples";
    check_range(name, count as f64, count >= 2, "at least 2")?;
    Ok(())
}

/// Checks that all numbers of a list are finite.
pub(super) fn check_finite_numbers(what: &'static str, numbers: &[f64]) -> Result<()> {
    match numbers.iter().position(|number| !number.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NonFiniteNumber {
            what,
            index,
            value: numbers[index],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.t.interval(0.95, 4, loc=3, scale=(2.5 / 5) ** 0.5)`.
    #[test]
    fn a_mean_has_the_interval_of_student() {
        let found = Estimate::mean("mean", &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((found.value, found.samples.as_slice()), (3.0, &[5][..]));
        assert!((found.low - 1.036756838522439).abs() < 1e-6, "{found:?}");
        assert!((found.high - 4.9632431614775605).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn samples_without_a_spread_are_refused() {
        let error = Estimate::mean("mean", &[1.0]).unwrap_err();
        assert!(
            matches!(error, Error::OutOfRange { value: 1.0, .. }),
            "{error}"
        );
        let error = Estimate::mean("mean", &[1.0, f64::NAN]).unwrap_err();
        assert!(
            matches!(error, Error::NonFiniteNumber { index: 1, .. }),
            "{error}"
        );
        assert!(matches!(
            Estimate::share("share", 0, 0),
            Err(Error::Empty { .. })
        ));
    }

    #[test]
    fn numbers_are_shown_with_four_digits() {
        let shown = [0.0, 1.0, 123456.0, 0.00012007, -3.25001, f64::NAN].map(four_digits);
        assert_eq!(shown, ["0", "1", "123456", "0.0001201", "-3.25", "NaN"]);
    }
}
