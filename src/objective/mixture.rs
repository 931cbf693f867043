//! The defensive mixture `q_λ = (1−λ) q(·|x) + λ q(·|a)` from which SISS draws its noisy points,
//! and the importance weights that correct for it.

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::error::{Result, check_device, check_shape};
use crate::host::{column, sum_elements};
use crate::kernel::mixture_draw;
use crate::process::Scales;

/// The two importance weights of a noisy point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImportanceWeights {
    /// `w_x = q(m|x) / q_λ(m)`, in `[0, 1/(1−λ)]`.
    pub retain: f64,
    /// `w_a = q(m|a) / q_λ(m)`, in `[0, 1/λ]`.
    pub forget: f64,
}

/// The importance weights for the log-ratio `δ = ln q(m|a) − ln q(m|x)`.
///
/// With `z = δ + ln(λ / (1−λ))`:
/// ```text
/// w_a = sigmoid(z) / λ
/// w_x = sigmoid(−z) / (1−λ)
/// ```
/// so that `(1−λ) w_x + λ w_a = 1` and nothing overflows. At `λ = 0` the retained side weighs 1 and
/// the forgotten one `e^δ`; at `λ = 1` the forgotten side weighs 1 and the retained one `e^{−δ}`.
/// In these two cases an exponential beyond the range of `f64` saturates at the largest `f64`.
///
/// `log_ratio` may be any number, infinities included; `forget_prob` is `λ ∈ [0, 1]`. A NaN gives
/// NaN.
///
/// # Reference
/// SISS (arXiv 2503.01034), Eq. 6, in a form that does not overflow in `f64`.
///
/// # Example
/// ```
/// let weights = siss::objective::importance_weights(0.0, 0.25);
/// assert_eq!((weights.retain, weights.forget), (1.0, 1.0));
/// let weights = siss::objective::importance_weights(-1e9, 0.5);
/// assert_eq!((weights.retain, weights.forget), (2.0, 0.0));
/// ```
pub fn importance_weights(log_ratio: f64, forget_prob: f64) -> ImportanceWeights {
    let saturated_exp = |exponent: f64| {
        let value = exponent.exp();
        if value.is_infinite() { f64::MAX } else { value }
    };
    let (lambda, rest) = (forget_prob, 1.0 - forget_prob);
    if lambda == 0.0 {
        return ImportanceWeights {
            retain: 1.0,
            forget: saturated_exp(log_ratio),
        };
    }
    if rest == 0.0 {
        return ImportanceWeights {
            retain: saturated_exp(-log_ratio),
            forget: 1.0,
        };
    }
    // sigmoid(z) / λ = 1 / (λ + (1−λ) e^{−δ}), written so that the exponential is at most 1.
    if log_ratio > 0.0 {
        let ratio = (-log_ratio).exp(); // q(m|x) / q(m|a)
        let mixture = lambda + rest * ratio;
        ImportanceWeights {
            retain: ratio / mixture,
            forget: 1.0 / mixture,
        }
    } else {
        let ratio = log_ratio.exp(); // q(m|a) / q(m|x)
        let mixture = rest + lambda * ratio;
        ImportanceWeights {
            retain: 1.0 / mixture,
            forget: ratio / mixture,
        }
    }
}

/// The noisy points of a batch, and the noise that explains each of them from either side.
#[derive(Debug, Clone)]
pub struct MixturePoints<const D: usize> {
    /// `m = γ·(x or a) + σ ε`, `[batch, …]`.
    pub noisy: Tensor<D>,
    /// `ε_x = (m − γ x) / σ`, `[batch, …]`.
    pub retain_noise: Tensor<D>,
    /// `ε_a = (m − γ a) / σ`, `[batch, …]`.
    pub forget_noise: Tensor<D>,
    /// `δ = ln q(m|a) − ln q(m|x)`, `[batch]`.
    pub log_ratio: Tensor<1>,
}

/// Draws each row's noisy point from its side of the mixture, and computes the noise that explains
/// it from each side.
///
/// With `r = (γ/σ)(a − x)`:
/// ```text
/// ε_x = ε + r where m is drawn from a, else ε
/// ε_a = ε − r where m is drawn from x, else ε
/// δ   = ½⟨ε_x + ε_a, r⟩
/// ```
/// There is no difference of huge squares and no division of `m − γx`, so the result is correct at
/// `x = a`, where `δ = 0`, and at `γ = 0`.
///
/// # Shapes
/// - `retain`, `forget`, `noise`: `[batch, …]`; `from_forget` and the scales: `[batch]`
///
/// # Errors
/// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) or
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch) if the arguments do not fit each other
/// or are on different devices.
pub fn mixture_points<const D: usize>(
    retain: Tensor<D>,
    forget: Tensor<D>,
    noise: Tensor<D>,
    scales: &Scales,
    from_forget: &[bool],
) -> Result<MixturePoints<D>> {
    let device = retain.device();
    for (what, other) in [
        ("forgotten points", &forget),
        ("the drawn noise values", &noise),
    ] {
        check_shape(
            what,
            &retain.dims(),
            &other.dims(),
            "make the draws for the batch of this step",
        )?;
        check_device(what, &device, &other.device())?;
    }
    for (what, rows) in [
        ("the list of components", from_forget.len()),
        ("the signal scales", scales.signal.len()),
        ("the noise scales", scales.noise.len()),
    ] {
        check_shape(what, &retain.dims()[..1], &[rows], "give one for every row")?;
    }
    let from_forget: Vec<f64> = from_forget.iter().map(|&from| f64::from(from)).collect();
    let drawn = mixture_draw([&retain, &forget, &noise], scales, &from_forget);
    let Some(([noisy, retain_noise, forget_noise], log_ratio)) = drawn else {
        return Ok(in_operations([retain, forget, noise], scales, &from_forget));
    };
    Ok(MixturePoints {
        noisy,
        retain_noise,
        forget_noise,
        log_ratio,
    })
}

/// The portable version of [`mixture_points`], in tensor operations.
///
/// `from_forget` is 1 or 0.
pub(crate) fn in_operations<const D: usize>(
    [retain, forget, noise]: [Tensor<D>; 3],
    scales: &Scales,
    from_forget: &[f64],
) -> MixturePoints<D> {
    let device = retain.device();
    let from_forget = column::<D>(from_forget, &device);
    let from_retain = -from_forget.clone() + 1.0;
    let difference = (forget.clone() - retain.clone()) * column(&scales.ratios(), &device);
    let retain_noise = noise.clone() + difference.clone() * from_forget.clone();
    let forget_noise = noise.clone() - difference.clone() * from_retain.clone();
    let log_ratio = sum_elements((retain_noise.clone() + forget_noise.clone()) * difference) * 0.5;

    let base = retain * from_retain + forget * from_forget;
    let noisy = scales.noisy(&base, &noise);
    MixturePoints {
        noisy,
        retain_noise,
        forget_noise,
        log_ratio,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use burn::tensor::Device;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn weights_keep_their_bounds_and_their_sum(log_ratio in prop_oneof![-1e9..1e9, -50.0..50.0, -1.0..1.0f64],
                                                   lambda in prop_oneof![0.0..=1.0f64, Just(0.0), Just(1.0), 0.0..1e-9f64]) {
            let w = importance_weights(log_ratio, lambda);
            prop_assert!(w.retain >= 0.0 && w.forget >= 0.0);
            prop_assert!(w.retain.is_finite() && w.forget.is_finite());
            prop_assert!(lambda == 1.0 || w.retain <= (1.0 + 1e-12) / (1.0 - lambda));
            prop_assert!(lambda == 0.0 || w.forget <= (1.0 + 1e-12) / lambda);
            prop_assert!(((1.0 - lambda) * w.retain + lambda * w.forget - 1.0).abs() < 1e-12, "{:?}", w);
        }

        #[test]
        fn swapping_the_sides_swaps_the_weights(log_ratio in -700.0..700.0f64, lambda in 0.0..=1.0f64) {
            let (w, swapped) = (importance_weights(log_ratio, lambda), importance_weights(-log_ratio, 1.0 - lambda));
            prop_assert!((w.retain - swapped.forget).abs() <= 1e-9 * w.retain.abs());
            prop_assert!((w.forget - swapped.retain).abs() <= 1e-9 * w.forget.abs());
        }

        #[test]
        fn weights_are_the_densities_over_the_mixture(log_ratio in -30.0..30.0f64, lambda in 0.001..0.999f64) {
            // q(m|x) = 1, q(m|a) = e^δ up to a common factor.
            let mixture = (1.0 - lambda) + lambda * log_ratio.exp();
            let w = importance_weights(log_ratio, lambda);
            prop_assert!((w.retain * mixture - 1.0).abs() < 1e-10);
            prop_assert!((w.forget * mixture / log_ratio.exp() - 1.0).abs() < 1e-10);
        }
    }

    #[test]
    fn the_ends_of_lambda_use_plain_likelihood_ratios() {
        let at_zero = importance_weights(-2.0, 0.0);
        assert_eq!((at_zero.retain, at_zero.forget), (1.0, (-2.0f64).exp()));
        assert!((importance_weights(2.0, 0.0).forget / 2.0f64.exp() - 1.0).abs() < 1e-12);
        assert!((importance_weights(-2.0, 1.0).retain / 2.0f64.exp() - 1.0).abs() < 1e-12);
        let saturated = importance_weights(1e9, 0.0);
        assert_eq!((saturated.retain, saturated.forget), (1.0, f64::MAX));
        assert!(importance_weights(f64::NAN, 0.5).retain.is_nan());
    }

    fn points(gamma: f64, sigma: f64, spread: f32) -> (Vec<f64>, MixturePoints<2>, [Vec<f32>; 2]) {
        let device = Device::flex();
        let shape = [6, 40];
        let retain = normal_noise(shape, 1, 0, 0, Stream::Noise, &device);
        let forget = retain.clone() + normal_noise(shape, 2, 0, 0, Stream::Noise, &device) * spread;
        let noise = normal_noise(shape, 3, 0, 0, Stream::Noise, &device);
        let scales = Scales {
            signal: vec![gamma; 6],
            noise: vec![sigma; 6],
        };
        let from_forget = [true, false, true, false, false, true];
        let points =
            mixture_points(retain.clone(), forget.clone(), noise, &scales, &from_forget).unwrap();
        let host = |t: Tensor<2>| t.into_data().try_to_vec::<f32>().unwrap();
        let (x, a, m) = (host(retain), host(forget), host(points.noisy.clone()));
        // The definition, in f64: (‖m − γx‖² − ‖m − γa‖²) / 2σ².
        let delta = (0..6)
            .map(|row| {
                (row * 40..(row + 1) * 40)
                    .map(|i| {
                        let square = |clean: f32| (m[i] as f64 - gamma * clean as f64).powi(2);
                        (square(x[i]) - square(a[i])) / (2.0 * sigma * sigma)
                    })
                    .sum()
            })
            .collect();
        (delta, points, [x, a])
    }

    #[test]
    fn the_log_ratio_is_that_of_the_definition() {
        for (gamma, sigma) in [(0.99, 0.141), (0.7, 0.714), (0.01, 0.99995)] {
            let (expected, points, _) = points(gamma, sigma, 1.0);
            let got = points.log_ratio.into_data().try_to_vec::<f32>().unwrap();
            for (got, expected) in got.iter().zip(expected) {
                assert!(
                    (*got as f64 - expected).abs() < 1e-4 * expected.abs().max(1.0),
                    "{got} {expected}"
                );
            }
        }
    }

    #[test]
    fn both_explanations_rebuild_the_noisy_point() {
        let (gamma, sigma) = (0.6f32, 0.8f32);
        let (_, points, [x, a]) = points(0.6, 0.8, 1.0);
        let host = |t: Tensor<2>| t.into_data().try_to_vec::<f32>().unwrap();
        let (m, ex, ea) = (
            host(points.noisy),
            host(points.retain_noise),
            host(points.forget_noise),
        );
        for i in 0..m.len() {
            assert!((gamma * x[i] + sigma * ex[i] - m[i]).abs() < 1e-5);
            assert!((gamma * a[i] + sigma * ea[i] - m[i]).abs() < 1e-5);
        }
    }

    #[test]
    fn equal_points_and_pure_noise_have_log_ratio_zero() {
        for (gamma, spread) in [(0.9, 0.0), (0.0, 1.0)] {
            let (_, points, _) = points(gamma, 0.5, spread);
            assert!(
                points
                    .log_ratio
                    .into_data()
                    .try_to_vec::<f32>()
                    .unwrap()
                    .iter()
                    .all(|&delta| delta == 0.0)
            );
        }
    }

    #[test]
    fn lists_of_another_number_of_rows_are_refused() {
        let points = || normal_noise::<2>([3, 2], 1, 0, 0, Stream::Noise, &Device::flex());
        let draw = |signal: usize, noise: usize, components: usize| {
            let scales = Scales {
                signal: vec![0.6; signal],
                noise: vec![0.8; noise],
            };
            mixture_points(
                points(),
                points(),
                points(),
                &scales,
                &vec![false; components],
            )
        };
        assert!(draw(3, 3, 3).is_ok());
        // A single value would broadcast over the rows of a tensor.
        for (signal, noise, components) in [(1, 3, 3), (3, 1, 3), (3, 3, 1)] {
            assert!(draw(signal, noise, components).is_err());
        }
    }
}
