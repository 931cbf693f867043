//! What someone can do who has the model from before the unlearning too.

use burn::tensor::Tensor;

use crate::denoiser::{Denoiser, FnDenoiser};
use crate::error::{Result, check_prediction_type, check_range};

/// A model that points from the unlearned towards the original one:
/// `f_after + w (f_before − f_after)`.
///
/// With `w` above 1, guidance towards what was forgotten: whoever kept the old checkpoint can sample
/// from it with any [`Sampler`](crate::sampling::Sampler), and copies among the samples show how much
/// the pair of models gives away. Weights of 1, 2 and 4 are usual; 0 is the unlearned model, 1 the
/// original. It runs both models.
///
/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) for a weight that is not finite;
/// [`Error::PredictionTypeDiffers`](crate::Error::PredictionTypeDiffers) for models that do not
/// predict the same.
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Tensor};
/// # use siss::FnDenoiser;
/// use siss::DdpmScheduler;
/// use siss::metrics::pair_attack;
/// use siss::sampling::{DdimConfig, DdimSampler, Sampler};
///
/// # let device = Device::flex();
/// # let layer = || LinearConfig::new(3, 3).init(&device);
/// # let ask = |layer: &Linear, noisy: Tensor<2>, _: Tensor<1>, _: &()| layer.forward(noisy);
/// # let (after, before) = (FnDenoiser::new(layer(), ask), FnDenoiser::new(layer(), ask));
/// let attack = pair_attack::<2, _>(after, before, 2.0)?;
/// let sampler = DdimSampler::new(&DdpmScheduler::linear(1000)?, DdimConfig::new(10))?;
/// let samples = sampler.sample(&attack, &(), [16, 3], 0, 0, &device)?;
/// assert_eq!(samples.dims(), [16, 3]);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Wu et al. 2025, reversed guidance for language models; here for denoisers.
pub fn pair_attack<const D: usize, M: Denoiser<D>>(
    after: M,
    before: M,
    weight: f64,
) -> Result<impl Denoiser<D, Condition = M::Condition>> {
    check_range(
        "the weight of the original model",
        weight,
        true,
        "a finite number",
    )?;
    let kind = after.prediction_type();
    check_prediction_type(kind, "the original model", Some(before.prediction_type()))?;
    let guide = move |(after, before): &(M, M),
                      noisy: Tensor<D>,
                      timesteps: Tensor<1>,
                      condition: &M::Condition| {
        let towards = before.predict(noisy.clone(), timesteps.clone(), condition);
        let own = after.predict(noisy, timesteps, condition);
        own.clone() + (towards - own) * weight
    };
    Ok(FnDenoiser::new((after, before), guide).predicting(kind))
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::normal;
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use crate::denoiser::FnDenoiser;
    use crate::error::Error;
    use crate::process::{DdpmScheduler, PredictionType};
    use crate::sampling::{DdimConfig, DdimSampler, Sampler};

    type Layer = FnDenoiser<Linear, fn(&Linear, Tensor<2>, Tensor<1>, &()) -> Tensor<2>>;

    fn model() -> Layer {
        let layer = LinearConfig::new(3, 3).init(&Device::flex());
        FnDenoiser::new(layer, |layer, noisy, _, _| layer.forward(noisy))
    }

    #[test]
    fn weights_of_zero_and_one_are_the_two_models_and_others_lie_on_their_line() {
        let (after, before) = (model(), model());
        let sampler = DdimSampler::new(&DdpmScheduler::linear(1000).unwrap(), DdimConfig::new(5));
        let sampler = sampler.unwrap();
        let samples = |model: &dyn Fn() -> Tensor<2>| model().into_data();
        let attack = |weight| pair_attack::<2, _>(after.clone(), before.clone(), weight).unwrap();
        for (weight, model) in [(0.0, &after), (1.0, &before)] {
            let attack = attack(weight);
            let found = samples(&|| {
                sampler
                    .sample(&attack, &(), [4, 3], 0, 0, &Device::flex())
                    .unwrap()
            });
            let expected = samples(&|| {
                sampler
                    .sample(model, &(), [4, 3], 0, 0, &Device::flex())
                    .unwrap()
            });
            found.assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-4));
        }
        let (noisy, timesteps) = (normal(1, 4, 3), Tensor::zeros([4], &Device::flex()));
        let says = |model: &dyn Fn(Tensor<2>, Tensor<1>) -> Tensor<2>| {
            model(noisy.clone(), timesteps.clone())
        };
        let (own, other) = (
            says(&|m, t| after.predict(m, t, &())),
            says(&|m, t| before.predict(m, t, &())),
        );
        let attack = attack(3.0);
        let found = says(&|m, t| attack.predict(m, t, &()));
        let error = (found - own.clone() - (other - own) * 3.0)
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(error < 1e-5, "{error}");
    }

    #[test]
    fn models_that_predict_different_things_are_not_mixed() {
        let other = model().predicting(PredictionType::Velocity);
        let error = pair_attack::<2, _>(model(), other, 2.0).unwrap_err();
        assert!(
            matches!(error, Error::PredictionTypeDiffers { .. }),
            "{error}"
        );
        let error = pair_attack::<2, _>(model(), model(), f64::NAN).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
}
