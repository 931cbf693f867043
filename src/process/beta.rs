//! Beta schedules of discrete diffusion processes, as plain `f64` numbers.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_range};

/// How the variance `β_t` of a discrete diffusion process grows over its steps.
///
/// The names are those of diffusers' `beta_schedule`.
///
/// # Example
/// ```
/// use siss::process::{BetaSchedule, alpha_bars};
///
/// let betas = BetaSchedule::linear().betas(1000)?;
/// assert_eq!(betas[0], 1e-4);
/// assert!(alpha_bars(&betas)[999] < 1e-4);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// `β` evenly spaced from `start` to `end` (Ho et al. 2020).
    Linear {
        /// `β_0`.
        start: f64,
        /// `β_{T−1}`.
        end: f64,
    },
    /// `√β` evenly spaced, as Stable Diffusion uses it.
    ScaledLinear {
        /// `β_0`.
        start: f64,
        /// `β_{T−1}`.
        end: f64,
    },
    /// `ᾱ(u) = cos²((u + 0.008) / 1.008 · π/2)` over `u ∈ [0, 1]`, `β` capped at 0.999
    /// (Nichol and Dhariwal 2021). diffusers calls it `squaredcos_cap_v2`.
    SquaredCosine,
    /// The betas a model was trained with, given one by one.
    Trained(Vec<f64>),
}

impl BetaSchedule {
    /// The linear schedule of DDPM, `β` from 1e-4 to 0.02.
    pub fn linear() -> Self {
        BetaSchedule::Linear {
            start: 1e-4,
            end: 0.02,
        }
    }

    /// The scaled linear schedule of Stable Diffusion, `β` from 8.5e-4 to 0.012.
    pub fn scaled_linear() -> Self {
        BetaSchedule::ScaledLinear {
            start: 8.5e-4,
            end: 0.012,
        }
    }

    fn check_ends(&self) -> Result<()> {
        if let BetaSchedule::Linear { start, end } | BetaSchedule::ScaledLinear { start, end } =
            self
        {
            for &beta in [start, end] {
                check_beta(beta)?;
            }
        }
        Ok(())
    }

    /// The betas of a process of `num_timesteps` steps.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if a beta is not in `(0, 1)` or the number of steps is not from 2 to
    /// 1,000,000; [`Error::ShapeMismatch`] if [`Trained`](BetaSchedule::Trained) has another number
    /// of betas.
    pub fn betas(&self, num_timesteps: usize) -> Result<Vec<f64>> {
        check_range(
            "num_timesteps",
            num_timesteps as f64,
            (2..=MOST_TIMESTEPS).contains(&num_timesteps),
            "from 2 to 1,000,000",
        )?;
        self.check_ends()?;
        let betas = match self {
            BetaSchedule::Linear { start, end } => evenly_spaced(*start, *end, num_timesteps),
            BetaSchedule::ScaledLinear { start, end } => {
                evenly_spaced(start.sqrt(), end.sqrt(), num_timesteps)
                    .into_iter()
                    .map(|root| root * root)
                    .collect()
            }
            BetaSchedule::SquaredCosine => squared_cosine(num_timesteps),
            BetaSchedule::Trained(betas) => betas.clone(),
        };
        if betas.len() != num_timesteps {
            return Err(Error::ShapeMismatch {
                what: "trained betas",
                expected: vec![num_timesteps],
                got: vec![betas.len()],
                remedy: "give one beta for every timestep",
            });
        }
        for &beta in &betas {
            check_beta(beta)?;
        }
        Ok(betas)
    }
}

fn check_beta(beta: f64) -> Result<f64> {
    check_range(
        "beta",
        beta,
        beta > 0.0 && beta < 1.0,
        "above 0 and below 1",
    )
}

/// More steps than any real process has: a larger number is a mistake.
const MOST_TIMESTEPS: usize = 1_000_000;

fn evenly_spaced(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / (count - 1) as f64;
    (0..count)
        .map(|index| {
            if index + 1 == count {
                end
            } else {
                start + step * index as f64
            }
        })
        .collect()
}

fn squared_cosine(count: usize) -> Vec<f64> {
    let alpha_bar = |u: f64| {
        ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
            .cos()
            .powi(2)
    };
    (0..count)
        .map(|index| {
            let now = alpha_bar(index as f64 / count as f64);
            let next = alpha_bar((index + 1) as f64 / count as f64);
            (1.0 - next / now).min(0.999)
        })
        .collect()
}

/// `ᾱ_t = Π_{s ≤ t} (1 − β_s)`, the signal's share of the variance after step `t`.
pub fn alpha_bars(betas: &[f64]) -> Vec<f64> {
    betas
        .iter()
        .scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .collect()
}

/// Shifts and scales `√ᾱ` so that the last step carries no signal and the first is unchanged (zero
/// terminal SNR; Lin et al. 2024, Algorithm 1).
pub fn rescale_to_zero_terminal_snr(alpha_bars: &[f64]) -> Vec<f64> {
    let (Some(first), Some(last)) = (alpha_bars.first(), alpha_bars.last()) else {
        return Vec::new();
    };
    let (first, last) = (first.sqrt(), last.sqrt());
    alpha_bars
        .iter()
        .map(|alpha_bar| ((alpha_bar.sqrt() - last) * first / (first - last)).powi(2))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_runs_from_start_to_end() {
        let betas = BetaSchedule::linear().betas(1000).unwrap();
        assert_eq!((betas[0], betas[999]), (1e-4, 0.02));
        assert!((betas[1] - (1e-4 + 0.0199 / 999.0)).abs() < 1e-15);
    }

    #[test]
    fn scaled_linear_is_linear_in_the_root() {
        let betas = BetaSchedule::ScaledLinear {
            start: 0.01,
            end: 0.09,
        }
        .betas(3)
        .unwrap();
        assert!((betas[1] - 0.04).abs() < 1e-15, "{betas:?}");
    }

    #[test]
    fn squared_cosine_follows_its_alpha_bar_and_is_capped() {
        let betas = BetaSchedule::SquaredCosine.betas(1000).unwrap();
        assert_eq!(betas[999], 0.999);
        // ᾱ after half the steps is cos²(0.508 / 1.008 · π/2) / cos²(0.008 / 1.008 · π/2).
        let half = |u: f64| {
            ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                .cos()
                .powi(2)
        };
        assert!((alpha_bars(&betas)[499] - half(0.5) / half(0.0)).abs() < 1e-12);
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_and_empties_the_last() {
        let before = alpha_bars(&BetaSchedule::linear().betas(1000).unwrap());
        let after = rescale_to_zero_terminal_snr(&before);
        assert!((after[0] - before[0]).abs() < 1e-12);
        assert_eq!(after[999], 0.0);
        assert!(after.windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn bad_betas_are_refused_with_their_value() {
        let error = BetaSchedule::Trained(vec![0.1, 1.5]).betas(2).unwrap_err();
        assert!(error.to_string().contains("1.5"), "{error}");
        let error = BetaSchedule::Trained(vec![0.1]).betas(2).unwrap_err();
        assert!(error.to_string().contains("[1]"), "{error}");
        let error = BetaSchedule::linear().betas(1).unwrap_err();
        assert!(error.to_string().contains("num_timesteps is 1"), "{error}");
        let not_a_number = BetaSchedule::Linear {
            start: f64::NAN,
            end: 0.1,
        };
        assert!(not_a_number.betas(10).is_err());
    }
}
