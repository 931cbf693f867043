//! What a model predicts for a noisy point, and what its output stands for.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What a model predicts. All kinds are affine in clean point and noise, so every objective works
/// with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PredictionType {
    /// The noise `ε`.
    #[default]
    Epsilon,
    /// The clean point `x_0`.
    Sample,
    /// `v = γ ε − σ x_0` (Salimans and Ho 2022).
    Velocity,
    /// The velocity of the straight path of flow matching, `ε − x_0`.
    FlowVelocity,
}

impl PredictionType {
    /// The change of the output per change of the clean point, for a fixed noisy point.
    ///
    /// Targets are linear in clean point and noise, and the noise in the same noisy point changes
    /// by `−ρ = −γ/σ`.
    pub(crate) fn slope(self, signal_scale: f64, noise_scale: f64) -> f64 {
        let ratio = signal_scale / noise_scale;
        match self {
            PredictionType::Epsilon => -ratio,
            PredictionType::Sample => 1.0,
            PredictionType::Velocity => -(signal_scale * ratio + noise_scale),
            PredictionType::FlowVelocity => -(ratio + 1.0),
        }
    }

    /// The correct output at a noisy point made of `clean` and `noise`.
    ///
    /// # Shapes
    /// - `clean`, `noise` and the result: `[batch, …]`; `signal_scale`, `noise_scale`:
    ///   `[batch, 1, …]`
    ///
    /// # Panics
    /// If the shapes do not fit each other, as burn's arithmetic does.
    pub fn target<const D: usize>(
        self,
        clean: Tensor<D>,
        noise: Tensor<D>,
        signal_scale: Tensor<D>,
        noise_scale: Tensor<D>,
    ) -> Tensor<D> {
        match self {
            PredictionType::Epsilon => noise,
            PredictionType::Sample => clean,
            PredictionType::Velocity => noise * signal_scale - clean * noise_scale,
            PredictionType::FlowVelocity => noise - clean,
        }
    }

    /// The clean point and the noise that a model output `y` stands for at a noisy point
    /// `m = γ x_0 + σ ε`.
    ///
    /// This is the inverse of [`target`](PredictionType::target).
    ///
    /// | kind | `x_0` | `ε` |
    /// |---|---|---|
    /// | `Epsilon` | `(m − σ y) / γ` | `y` |
    /// | `Sample` | `y` | `(m − γ y) / σ` |
    /// | `Velocity` | `(γ m − σ y) / (γ² + σ²)` | `(σ m + γ y) / (γ² + σ²)` |
    /// | `FlowVelocity` | `(m − σ y) / (γ + σ)` | `(m + γ y) / (γ + σ)` |
    ///
    /// Without signal (`γ = 0`) a predicted noise says nothing about the clean point, and without
    /// noise (`σ = 0`) a predicted sample says nothing about the noise: that part is then not
    /// finite.
    ///
    /// # Shapes
    /// - `noisy`, `model_output` and the results: `[batch, …]`
    /// - `signal_scale`, `noise_scale`: `[batch, 1, …]`
    ///
    /// # Panics
    /// If the shapes do not fit each other, as burn's arithmetic does.
    ///
    /// # Example
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use siss::PredictionType;
    ///
    /// let device = Device::flex();
    /// let one = |value: f32| Tensor::<2>::from_data([[value]], &device);
    /// let (clean, noise, gamma, sigma) = (one(2.0), one(3.0), one(0.8), one(0.6));
    /// let noisy = clean.clone() * gamma.clone() + noise.clone() * sigma.clone();
    /// let velocity = PredictionType::Velocity.target(clean, noise, gamma.clone(), sigma.clone());
    /// let kind = PredictionType::Velocity;
    /// let (clean, noise) = kind.clean_and_noise(noisy, velocity, gamma, sigma);
    /// assert!((clean.into_scalar::<f32>() - 2.0).abs() < 1e-6);
    /// assert!((noise.into_scalar::<f32>() - 3.0).abs() < 1e-6);
    /// ```
    pub fn clean_and_noise<const D: usize>(
        self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        signal_scale: Tensor<D>,
        noise_scale: Tensor<D>,
    ) -> (Tensor<D>, Tensor<D>) {
        let (gamma, sigma) = (signal_scale, noise_scale);
        match self {
            PredictionType::Epsilon => {
                let clean = (noisy - model_output.clone() * sigma) / gamma;
                (clean, model_output)
            }
            PredictionType::Sample => {
                let noise = (noisy - model_output.clone() * gamma) / sigma;
                (model_output, noise)
            }
            PredictionType::Velocity => {
                let size = gamma.clone().square() + sigma.clone().square();
                let clean = noisy.clone() * gamma.clone() - model_output.clone() * sigma.clone();
                let noise = noisy * sigma + model_output * gamma;
                (clean / size.clone(), noise / size)
            }
            PredictionType::FlowVelocity => {
                let sum = gamma.clone() + sigma.clone();
                let clean = noisy.clone() - model_output.clone() * sigma;
                let noise = noisy + model_output * gamma;
                (clean / sum.clone(), noise / sum)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn targets_follow_their_definition() {
        let device = Device::flex();
        let one = |value: f32| Tensor::<1>::from_data([value], &device);
        let target = |kind: PredictionType| {
            kind.target(one(2.0), one(3.0), one(0.8), one(0.6))
                .into_scalar::<f32>()
        };
        assert_eq!(target(PredictionType::Epsilon), 3.0);
        assert_eq!(target(PredictionType::Sample), 2.0);
        assert!((target(PredictionType::Velocity) - (0.8 * 3.0 - 0.6 * 2.0)).abs() < 1e-6);
        assert_eq!(target(PredictionType::FlowVelocity), 1.0);
    }

    /// For one row each, at scales whose squares add up to 1 and at other scales.
    #[test]
    fn an_output_stands_for_the_clean_point_and_the_noise_of_its_target() {
        let device = Device::flex();
        let column = |values: [f32; 3]| Tensor::<1>::from_data(values, &device).reshape([3, 1]);
        let (gamma, sigma) = (column([0.8, 0.3, 1.0]), column([0.6, 0.7, 2.0]));
        let clean = Tensor::<2>::from_data([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.5]], &device);
        let noise = Tensor::<2>::from_data([[3.0, 0.25], [-1.0, 1.0], [0.0, -2.0]], &device);
        let noisy = clean.clone() * gamma.clone() + noise.clone() * sigma.clone();
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Sample,
            PredictionType::Velocity,
            PredictionType::FlowVelocity,
        ] {
            let output = kind.target(clean.clone(), noise.clone(), gamma.clone(), sigma.clone());
            let (found_clean, found_noise) =
                kind.clean_and_noise(noisy.clone(), output, gamma.clone(), sigma.clone());
            for (found, expected) in [(found_clean, &clean), (found_noise, &noise)] {
                let worst = (found - expected.clone()).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5, "{kind:?}: {worst}");
            }
        }
    }
}
