//! The timesteps at which losses are compared.

use crate::process::Scheduler;

/// The most timesteps of the default grid.
const GRID: usize = 16;

/// Beyond these logarithms of the ratio of signal to noise, one of the two can no longer be seen.
const LOG_RATIOS: [f64; 2] = [-7.0, 7.0];

/// Timesteps between the ends of the range, evenly in the logarithm of the ratio of signal to
/// noise.
///
/// Losses change evenly on this scale.
pub(super) fn default_timesteps(scheduler: &dyn Scheduler) -> Vec<f64> {
    let range = scheduler.time_range();
    let log_ratio = |share: f64| {
        let timestep = range.at(share);
        let ratio = scheduler.signal_scale(timestep) / scheduler.noise_scale(timestep);
        ratio.ln().clamp(LOG_RATIOS[0], LOG_RATIOS[1])
    };
    let (clean, noisy) = (log_ratio(0.0), log_ratio(1.0));
    let inner = (1..GRID - 1).map(|index| {
        let wanted = clean + (noisy - clean) * index as f64 / (GRID - 1) as f64;
        range.at(first_share(|share| log_ratio(share) <= wanted))
    });
    let mut timesteps: Vec<f64> = inner.chain([range.at(0.0), range.at(1.0)]).collect();
    timesteps.sort_by(f64::total_cmp);
    timesteps.dedup();
    timesteps
}

/// The smallest share from 0 to 1 from which a condition holds up to 1.
fn first_share(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{DdpmScheduler, FlowMatching, TimeRange};

    /// EDM's time is σ itself, from 0.002 to 80.
    #[derive(Debug)]
    struct Edm;

    impl Scheduler for Edm {
        fn time_range(&self) -> TimeRange {
            TimeRange::Continuous {
                min: 0.002,
                max: 80.0,
            }
        }

        fn signal_scale(&self, _: f64) -> f64 {
            1.0
        }

        fn noise_scale(&self, timestep: f64) -> f64 {
            timestep
        }
    }

    #[test]
    fn the_grid_is_even_in_the_logarithm_of_signal_over_noise() {
        let grid = default_timesteps(&Edm);
        assert_eq!((grid[0], grid[15]), (0.002, 80.0));
        // Both ends, except what lies beyond the clamp.
        let step = (80.0f64 / 0.002).ln().min(6.3 + 4.4) / 15.0;
        for pair in grid.windows(2) {
            let ratio = (pair[1] / pair[0]).ln();
            assert!((ratio / step - 1.0).abs() < 0.05, "{grid:?}");
        }
        let linear = default_timesteps(&DdpmScheduler::linear(1000).unwrap());
        assert_eq!((linear.len(), linear[0], linear[15]), (16, 0.0, 999.0));
        assert!(
            linear.windows(2).all(|pair| pair[1] - pair[0] < 130.0),
            "{linear:?}"
        );
        // Without signal at the end.
        let grid = default_timesteps(&FlowMatching::default());
        assert_eq!((grid.len(), grid.last()), (16, Some(&1.0)));
        assert!(grid.windows(2).all(|pair| pair[0] < pair[1]), "{grid:?}");
    }

    #[test]
    fn a_process_of_few_timesteps_has_each_once_in_its_grid() {
        let few = DdpmScheduler::linear(4).unwrap();
        assert_eq!(default_timesteps(&few), [0.0, 1.0, 2.0, 3.0]);
    }
}
