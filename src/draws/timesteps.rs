//! How the timesteps of a batch are drawn.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use rand_distr::StandardNormal;

use super::{Stream, keyed_rng};
use crate::error::{Error, Result, check_positive, check_range};
use crate::process::TimeRange;
use crate::process::flow::shifted;
use crate::text::serde_as_text;

/// How the timesteps of a batch are drawn.
///
/// As text, on command lines and in configuration files: `uniform`, `low-discrepancy`,
/// `window:250..750`, `logit-normal:0,1,3`, `fixed:999`.
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
    /// Independent of each other, the middle of the range most often: at the share `u` of the
    /// range with `u = s v / (1 + (s − 1) v)`, where the logit of `v` is normal.
    ///
    /// Stable Diffusion 3 was trained with the mean 0, the scale 1 and the shift 3 of its
    /// scheduler's file (Esser et al. 2024, *Scaling Rectified Flow Transformers*, Eq. 19 and 23).
    LogitNormal {
        /// Mean of the logit.
        mean: f64,
        /// Standard deviation of the logit, above 0.
        scale: f64,
        /// `s`, above 0: more than 1 moves times to the noisy end, 1 leaves them.
        shift: f64,
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
                TimestepSampling::LogitNormal { mean, scale, shift } => {
                    let normal: f64 =
                        keyed_rng(seed, step, row as u64, stream).sample(StandardNormal);
                    range.at(shifted(logistic(mean + scale * normal), shift).min(LAST))
                }
                TimestepSampling::Fixed(timestep) => timestep,
            })
            .collect()
    }

    /// The first and the last timestep of a range that can be drawn.
    pub(crate) fn ends(self, range: TimeRange) -> [f64; 2] {
        match self {
            TimestepSampling::Uniform
            | TimestepSampling::LowDiscrepancy
            | TimestepSampling::LogitNormal { .. } => [range.at(0.0), range.at(LAST)],
            TimestepSampling::Window { low, high } => {
                [0.0, LAST].map(|u| range.at_within(low, high, u))
            }
            TimestepSampling::Fixed(timestep) => [timestep; 2],
        }
    }

    /// Checks that all timesteps that can be drawn lie in `range`.
    ///
    /// # Errors
    /// [`Error::TimestepOutOfRange`] names a timestep that is outside; [`Error::OutOfRange`] for a
    /// window without timesteps, and for a number of a distribution outside its range.
    pub fn check(self, range: TimeRange) -> Result<()> {
        let in_range = |timestep| match range.contains(timestep) {
            true => Ok(()),
            false => Err(Error::TimestepOutOfRange { timestep, range }),
        };
        match self {
            TimestepSampling::Uniform | TimestepSampling::LowDiscrepancy => Ok(()),
            TimestepSampling::Fixed(timestep) => in_range(timestep),
            TimestepSampling::LogitNormal { mean, scale, shift } => {
                let is_finite = mean.is_finite();
                check_range("the mean of the logit", mean, is_finite, "a finite number")?;
                check_positive("the scale of the logit", scale)?;
                check_positive("the shift of times", shift)?;
                Ok(())
            }
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

/// The largest number below 1.
const LAST: f64 = 1.0 - f64::EPSILON / 2.0;

fn logistic(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

impl fmt::Display for TimestepSampling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimestepSampling::Uniform => formatter.write_str("uniform"),
            TimestepSampling::LowDiscrepancy => formatter.write_str("low-discrepancy"),
            TimestepSampling::Window { low, high } => write!(formatter, "window:{low}..{high}"),
            TimestepSampling::LogitNormal { mean, scale, shift } => {
                write!(formatter, "logit-normal:{mean},{scale},{shift}")
            }
            TimestepSampling::Fixed(timestep) => write!(formatter, "fixed:{timestep}"),
        }
    }
}

/// How a kind is written, and the function that reads it.
type Form = (&'static str, fn(&str) -> Option<TimestepSampling>);

const FORMS: [Form; 5] = [
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
    ("logit-normal:MEAN,SCALE,SHIFT", |text| {
        let (mean, rest) = text.strip_prefix("logit-normal:")?.split_once(',')?;
        let (scale, shift) = rest.split_once(',')?;
        let (mean, scale, shift) = (mean.parse().ok()?, scale.parse().ok()?, shift.parse().ok()?);
        Some(TimestepSampling::LogitNormal { mean, scale, shift })
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

    /// Quantiles of the normal distribution are those of the times: `Φ(−1)`, ½ and `Φ(1)` of them
    /// lie below the times of the logits `m − s`, `m` and `m + s`.
    #[test]
    fn logits_are_normal_and_times_are_shifted() {
        let (mean, scale, shift) = (0.5, 0.8, 3.0);
        let sampling = TimestepSampling::LogitNormal { mean, scale, shift };
        let range = TimeRange::Continuous {
            min: 0.001,
            max: 1.0,
        };
        sampling.check(range).unwrap();
        let drawn = (0..2000).flat_map(|step| sampling.timesteps(range, 4, 3, step));
        let drawn: Vec<f64> = drawn.collect();
        for (deviations, expected) in [(-1.0, 0.158_655), (0.0, 0.5), (1.0, 0.841_345)] {
            let logit: f64 = mean + deviations * scale;
            let odds = shift * logit.exp();
            let time = range.at(odds / (1.0 + odds));
            let below = drawn.iter().filter(|&&drawn| drawn < time).count();
            let error = below as f64 / drawn.len() as f64 - expected;
            let standard_error = (expected * (1.0 - expected) / drawn.len() as f64).sqrt();
            assert!(error.abs() < 4.0 * standard_error, "{deviations}: {error}");
        }
        // Logits far out stay in the range.
        let far = |mean| TimestepSampling::LogitNormal {
            mean,
            scale: 1.0,
            shift: 1e6,
        };
        for timestep in [far(-800.0), far(800.0)].map(|it| it.timesteps(RANGE, 1, 0, 0)[0]) {
            assert!(RANGE.contains(timestep), "{timestep}");
        }
        for (mean, scale, shift) in [(f64::NAN, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, -3.0)] {
            let bad = TimestepSampling::LogitNormal { mean, scale, shift };
            assert!(bad.check(RANGE).is_err(), "{bad}");
        }
    }

    #[test]
    fn timestep_policies_parse_back() {
        for text in [
            "uniform",
            "low-discrepancy",
            "window:250..750",
            "window:0.1..0.5",
            "logit-normal:-0.5,1,3",
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
        for bad in [
            "even",
            "window:250",
            "window:a..b",
            "logit-normal:0,1",
            "fixed",
            "fixed:x",
        ] {
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
