//! Classifier-free guidance.

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor};

use crate::denoiser::Denoiser;
use crate::error::{Result, check_range};
use crate::process::PredictionType;

/// A conditional model with classifier-free guidance, for every sampler:
/// `u + s · (c − u)`, where `c` is the model's output under the condition and `u` that without.
///
/// The condition is a pair: the wanted one, and the one that stands for none, such as the encoded
/// empty prompt or the null class. Both have a row for each sample.
///
/// Every kind of prediction is affine in the noise, so outputs are combined as they are. Each step
/// runs the model twice.
///
/// # Example
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::{Device, Tensor};
/// use siss::Denoiser;
/// use siss::sampling::Guided;
///
/// #[derive(Module, Debug)]
/// struct Model { layer: Linear }
///
/// impl Denoiser<2> for Model {
///     type Condition = Tensor<2>;
///     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, condition: &Tensor<2>) -> Tensor<2> {
///         self.layer.forward(noisy) + condition.clone()
///     }
/// }
///
/// let device = Device::flex();
/// let model = Model { layer: LinearConfig::new(3, 3).with_bias(false).init(&device) };
/// let guided = Guided::new(model, 5.0)?;
/// let condition = (Tensor::ones([2, 3], &device), Tensor::zeros([2, 3], &device));
/// let noisy = Tensor::zeros([2, 3], &device);
/// let output = guided.predict(noisy, Tensor::zeros([2], &device), &condition);
/// assert_eq!(output.into_data().try_to_vec::<f32>().unwrap(), [5.0; 6]);
/// # Ok::<(), siss::Error>(())
/// ```
/// # Reference
/// Ho and Salimans 2021, *Classifier-Free Diffusion Guidance*, Eq. 6, with `s = 1 + w`.
#[derive(Debug, Clone)]
pub struct Guided<M> {
    model: M,
    scale: f64,
}

impl<M> Guided<M> {
    /// A model with guidance. Scale 1 is the model alone, 0 the model without condition.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a scale that is not finite.
    pub fn new(model: M, scale: f64) -> Result<Self> {
        let requirement = "a finite number";
        check_range("the guidance scale", scale, scale.is_finite(), requirement)?;
        Ok(Self { model, scale })
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The same guidance of another state of the model.
    fn with_model(self, change: impl FnOnce(M) -> M) -> Self {
        Self {
            model: change(self.model),
            ..self
        }
    }
}

impl<const D: usize, M: Denoiser<D>> Denoiser<D> for Guided<M> {
    type Condition = (M::Condition, M::Condition);

    fn check_input(&self, shape: [usize; D]) -> Result<()> {
        self.model.check_input(shape)
    }

    fn check_condition(&self, (wanted, none): &Self::Condition) -> Result<()> {
        self.model.check_condition(wanted)?;
        self.model.check_condition(none)
    }

    fn predict(
        &self,
        noisy: Tensor<D>,
        timesteps: Tensor<1>,
        (wanted, none): &Self::Condition,
    ) -> Tensor<D> {
        let with = self.model.predict(noisy.clone(), timesteps.clone(), wanted);
        let without = self.model.predict(noisy, timesteps, none);
        without.clone() + (with - without).mul_scalar(self.scale)
    }

    fn prediction_type(&self) -> PredictionType {
        self.model.prediction_type()
    }
}

/// The model itself, so that its parameters keep their names.
impl<M: Module> Module for Guided<M> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.model.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        self.with_model(|model| model.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.with_model(|model| model.to_device(device))
    }

    fn train(self) -> Self {
        self.with_model(Module::train)
    }

    fn valid(&self) -> Self {
        Self {
            model: self.model.valid(),
            scale: self.scale,
        }
    }

    fn materialize(self) -> Self {
        self.with_model(Module::materialize)
    }

    fn num_params(&self) -> usize {
        self.model.num_params()
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        self.model.visit(visitor);
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        self.with_model(|model| model.map(mapper))
    }
}
