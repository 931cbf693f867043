//! The timesteps of a process.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The timesteps on which a scheduler is defined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeRange {
    /// The whole numbers `0, 1, …, num_timesteps − 1`; 0 is the cleanest.
    Discrete {
        /// Number of steps `T`.
        num_timesteps: usize,
    },
    /// Every real number from `min` to `max`; `min` is the cleanest.
    Continuous {
        /// The smallest time, with `σ_min > 0`.
        min: f64,
        /// The largest time.
        max: f64,
    },
}

impl TimeRange {
    /// Whether `timestep` is in the range.
    pub fn contains(&self, timestep: f64) -> bool {
        match *self {
            TimeRange::Discrete { num_timesteps } => {
                timestep.fract() == 0.0 && timestep >= 0.0 && timestep < num_timesteps as f64
            }
            TimeRange::Continuous { min, max } => (min..=max).contains(&timestep),
        }
    }

    /// Maps `u ∈ [0, 1)` onto the range, so that a uniform `u` gives a uniform timestep.
    pub fn at(&self, u: f64) -> f64 {
        match *self {
            TimeRange::Discrete { num_timesteps } => (u * num_timesteps as f64)
                .floor()
                .min(num_timesteps as f64 - 1.0),
            TimeRange::Continuous { min, max } => min + u * (max - min),
        }
    }

    /// Maps `u ∈ [0, 1)` onto the timesteps from `low` up to, but not including, `high`, evenly.
    pub fn at_within(&self, low: f64, high: f64, u: f64) -> f64 {
        match *self {
            TimeRange::Discrete { .. } => {
                let (first, end) = (low.ceil(), high.ceil());
                first + (u * (end - first)).floor()
            }
            TimeRange::Continuous { .. } => low + u * (high - low),
        }
    }
}

impl fmt::Display for TimeRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeRange::Discrete { num_timesteps } => {
                write!(formatter, "0, 1, …, {}", num_timesteps.saturating_sub(1))
            }
            TimeRange::Continuous { min, max } => write!(formatter, "[{min}, {max}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_u_maps_into_the_range() {
        for range in [
            TimeRange::Discrete { num_timesteps: 7 },
            TimeRange::Continuous {
                min: 0.01,
                max: 1.0,
            },
        ] {
            for u in [0.0, 0.3, 0.999_999_999_999_999_9] {
                assert!(range.contains(range.at(u)), "{range} at {u}");
            }
        }
        assert_eq!(TimeRange::Discrete { num_timesteps: 10 }.at(0.35), 3.0);
    }
}
