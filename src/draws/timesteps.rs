//! How the timesteps of a batch are drawn.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;

use super::{Stream, keyed_rng};
use crate::error::{Error, Result, check_range};
use crate::process::TimeRange;
use crate::text::serde_as_text;

/// How the timesteps of a batch are drawn.
///
/// As text, on command lines and in configuration files: `uniform`, `low-discrepancy`,
/// `window:250..750`, `fixed:999`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum TimestepSampling {
    /// Uniform over the scheduler's range and independent of each other, as in the published code.
    Uniform,
    /// One uniform number `u` for the batch, and rows evenly spaced from it: `u + i / B` modulo 1.
    ///
    /// The timestep of each row is uniform, and every step covers the whole range, which lowers the
    /// variance (Kingma et al. 2021, Appendix I.1).
    #[default]
    LowDiscrepancy,
    /// Low-discrepancy timesteps from `low` up to, but not including, `high`.
    ///
    /// This forgets where it matters and leaves the other timesteps alone (arXiv 2510.17917 takes
    /// 250 to 750 of 1,000 for faces).
    Window {
        /// The first timestep.
        low: f64,
        /// The end of the window, which is not drawn.
        high: f64,
    },
    /// The same timestep for every row.
    Fixed(f64),
}

impl TimestepSampling {
    /// The timesteps of the rows in optimiser step `step`.
    ///
    /// `range` must be that of a scheduler for which [`check`](TimestepSampling::check) passed.
    pub fn timesteps(self, range: TimeRange, batch_size: usize, seed: u64, step: u64) -> Vec<f64> {
        self.stream(range, batch_size, seed, step, Stream::Timesteps)
    }

    /// Like [`timesteps`](TimestepSampling::timesteps), from another stream: for a term with
    /// timesteps of its own.
    pub(super) fn stream(
        self,
        range: TimeRange,
        batch_size: usize,
        seed: u64,
        step: u64,
        stream: Stream,
    ) -> Vec<f64> {
        let uniform = |row: u64| keyed_rng(seed, step, row, stream).random::<f64>();
        let shared = uniform(0);
        let low_discrepancy = |row: usize| (shared + row as f64 / batch_size as f64).fract();
        (0..batch_size)
            .map(|row| match self {
                TimestepSampling::Uniform => range.at(uniform(row as u64)),
                TimestepSampling::LowDiscrepancy => range.at(low_discrepancy(row)),
                TimestepSampling::Window { low, high } => {
                    range.at_within(low, high, low_discrepancy(row))
                }
                TimestepSampling::Fixed(timestep) => timestep,
            })
            .collect()
    }

    /// The first and the last timestep of a range that can be drawn.
    pub(crate) fn ends(self, range: TimeRange) -> [f64; 2] {
        // The largest number below 1.
        let last = 1.0 - f64::EPSILON / 2.0;
        match self {
            TimestepSampling::Uniform | TimestepSampling::LowDiscrepancy => {
                [range.at(0.0), range.at(last)]
            }
            TimestepSampling::Window { low, high } => {
                [0.0, last].map(|u| range.at_within(low, high, u))
            }
            TimestepSampling::Fixed(timestep) => [timestep; 2],
        }
    }

    /// Checks that all timesteps that can be drawn lie in `range`.
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`] names a timestep that is outside; [`Error::OutOfRange`] for a
    /// window without timesteps.
    pub fn check(self, range: TimeRange) -> Result<()> {
        let in_range = |timestep| match range.contains(timestep) {
            true => Ok(()),
            false => Err(Error::TimestepOutOfRange { timestep, range }),
        };
        match self {
            TimestepSampling::Uniform | TimestepSampling::LowDiscrepancy => Ok(()),
            TimestepSampling::Fixed(timestep) => in_range(timestep),
            TimestepSampling::Window { low, high } => {
                let requirement = "above the window's low end, so that a timestep lies between";
                check_range("the window's high end", high, low < high, requirement)?;
                let first = range.at_within(low, high, 0.0);
                check_range("the window's high end", high, first < high, requirement)?;
                in_range(first)?;
                in_range(range.at_within(low, high, 1.0 - f64::EPSILON))
            }
        }
    }
}

impl fmt::Display for TimestepSampling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimestepSampling::Uniform => formatter.write_str("uniform"),
            TimestepSampling::LowDiscrepancy => formatter.write_str("low-discrepancy"),
            TimestepSampling::Window { low, high } => write!(formatter, "window:{low}..{high}"),
            TimestepSampling::Fixed(timestep) => write!(formatter, "fixed:{timestep}"),
        }
    }
}

/// How a kind is written, and the function that reads it.
type Form = (&'static str, fn(&str) -> Option<TimestepSampling>);

const FORMS: [Form; 4] = [
    ("uniform", |text| {
        (text == "uniform").then_some(TimestepSampling::Uniform)
    }),
    ("low-discrepancy", |text| {
        (text == "low-discrepancy").then_some(TimestepSampling::LowDiscrepancy)
    }),
    ("window:LOW..HIGH", |text| {
        let (low, high) = text.strip_prefix("window:")?.split_once("..")?;
        let (low, high) = (low.parse().ok()?, high.parse().ok()?);
        Some(TimestepSampling::Window { low, high })
    }),
    ("fixed:T", |text| {
        let timestep = text.strip_prefix("fixed:")?.parse().ok()?;
        Some(TimestepSampling::Fixed(timestep))
    }),
];

impl FromStr for TimestepSampling {
    type Err = Error;

    /// Parses a kind of sampling from its text.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    fn from_str(text: &str) -> Result<Self> {
        let found = FORMS.iter().find_map(|(_, read)| read(text));
        found.ok_or_else(|| Error::UnknownName {
            what: "timestep sampling",
            name: text.into(),
            known: FORMS.map(|(form, _)| form).to_vec(),
        })
    }
}

serde_as_text!(TimestepSampling);

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: TimeRange = TimeRange::Discrete {
        num_timesteps: 1000,
    };

    #[test]
    fn low_discrepancy_timesteps_hit_every_stratum_in_every_step() {
        for step in 0..50 {
            let mut timesteps = TimestepSampling::LowDiscrepancy.timesteps(RANGE, 10, 7, step);
            timesteps.sort_by(f64::total_cmp);
            for pair in timesteps.windows(2) {
                assert!(
                    (99.0..=101.0).contains(&(pair[1] - pair[0])),
                    "{timesteps:?}"
                );
            }
        }
    }

    /// For each row, the mean of the timestep over many steps is that of the uniform distribution,
    /// 499.5 (standard deviation 288.7).
    #[test]
    fn every_row_is_uniform_under_both_policies() {
        for policy in [TimestepSampling::Uniform, TimestepSampling::LowDiscrepancy] {
            let steps = 4000;
            let mut sums = [0.0; 4];
            for step in 0..steps {
                for (sum, t) in sums.iter_mut().zip(policy.timesteps(RANGE, 4, 11, step)) {
                    *sum += t;
                }
            }
            for sum in sums {
                let error = (sum / steps as f64 - 499.5) / (288.7 / (steps as f64).sqrt());
                assert!(error.abs() < 4.0, "{policy:?}: {error} standard errors");
            }
        }
    }

    #[test]
    fn a_window_is_covered_evenly_in_discrete_and_in_continuous_time() {
        let continuous = TimeRange::Continuous {
            min: 0.01,
            max: 1.0,
        };
        for (range, low, high) in [(RANGE, 250.0, 254.0), (continuous, 0.25, 0.5)] {
            let window = TimestepSampling::Window { low, high };
            window.check(range).unwrap();
            let mut counts = [0; 4];
            for step in 0..50 {
                for t in window.timesteps(range, 8, 1, step) {
                    assert!(low <= t && t < high && range.contains(t), "{t}");
                    counts[((t - low) / (high - low) * 4.0) as usize] += 1;
                }
            }
            assert_eq!(counts, [100; 4]);
        }
    }

    #[test]
    fn timestep_policies_parse_back() {
        for text in [
            "uniform",
            "low-discrepancy",
            "window:250..750",
            "window:0.1..0.5",
            "fixed:999",
        ] {
            let sampling: TimestepSampling = text.parse().unwrap();
            assert_eq!(sampling.to_string(), text);
            let json = serde_json::to_string(&sampling).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(
                serde_json::from_str::<TimestepSampling>(&json).unwrap(),
                sampling
            );
            // The message for an unknown name lists the known ones.
            let error = "even".parse::<TimestepSampling>().unwrap_err().to_string();
            let (kind, _) = text.split_once(':').unwrap_or((text, ""));
            assert!(error.contains(kind), "{error}");
        }
        for bad in ["even", "window:250", "window:a..b", "fixed", "fixed:x"] {
            let error = bad.parse::<TimestepSampling>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn a_window_that_ends_between_timesteps_holds_those_inside_it() {
        let window = |low, high| TimestepSampling::Window { low, high };
        let drawn = (0..50).flat_map(|step| window(2.5, 4.5).timesteps(RANGE, 4, 1, step));
        let mut drawn: Vec<f64> = drawn.collect();
        drawn.sort_by(f64::total_cmp);
        drawn.dedup();
        assert_eq!(drawn, [3.0, 4.0]);
        window(2.5, 3.5).check(RANGE).unwrap();
        // The end is not drawn, so this window has no timestep.
        assert!(window(2.5, 3.0).check(RANGE).is_err());
    }
}
