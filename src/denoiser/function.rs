//! A [`Denoiser`] made of any burn module and a function that says how to call it.

use std::fmt;
use std::marker::PhantomData;

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor};

use super::Denoiser;
use super::condition::Condition;
use crate::process::PredictionType;

/// Makes any burn module a [`Denoiser`]: for a module from another crate, for which you cannot
/// implement the trait.
///
/// The function is [`predict`](Denoiser::predict), with the same shapes. It determines the rank `D`
/// and the condition `C`, so a closure must name their types. It must compute with the module that
/// it is given: a module that the closure captures is not trained.
///
/// As a [`Module`] it is the module that it wraps: the parameters have the same names, so files of
/// weights fit both.
///
/// # Example
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Distribution, Tensor};
/// use siss::{DdpmScheduler, FnDenoiser, SissTrainer, UnlearningBatch};
///
/// let device = Device::flex();
/// let layer = LinearConfig::new(4, 3).init(&device);
/// let model = FnDenoiser::new(layer, |layer, noisy: Tensor<2>, timesteps, _: &()| {
///     layer.forward(Tensor::cat(vec![noisy, timesteps.unsqueeze_dim(1) / 1000.0], 1))
/// });
///
/// let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?).build()?;
/// let retain = Tensor::random([8, 3], Distribution::Default, &device);
/// let report = trainer.step(UnlearningBatch::new(retain, Tensor::zeros([8, 3], &device))?)?;
/// println!("{report}");
/// let layer = trainer.into_model().into_inner();
/// # Ok::<(), siss::Error>(())
/// ```
/// If the type must be written down, use a function pointer:
/// `FnDenoiser<Linear, fn(&Linear, Tensor<2>, Tensor<1>, &()) -> Tensor<2>>`.
#[derive(Clone)]
pub struct FnDenoiser<M, F, C = ()> {
    module: M,
    function: F,
    prediction_type: PredictionType,
    /// The function takes a condition, but none is stored.
    condition: PhantomData<fn(&C)>,
}

impl<M: Module, F, C: Condition> FnDenoiser<M, F, C> {
    /// Predicts the noise with `function(&module, noisy, timesteps, &condition)`.
    ///
    /// If the output is something else, add [`predicting`](FnDenoiser::predicting).
    pub fn new<const D: usize>(module: M, function: F) -> Self
    where
        F: Fn(&M, Tensor<D>, Tensor<1>, &C) -> Tensor<D> + Clone + Send,
    {
        Self {
            module,
            function,
            prediction_type: PredictionType::Epsilon,
            condition: PhantomData,
        }
    }
}

impl<M, F, C> FnDenoiser<M, F, C> {
    /// The module.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// Sets what the output is.
    ///
    /// # Example
    /// ```
    /// # use burn::nn::{Linear, LinearConfig};
    /// # use burn::tensor::{Device, Tensor};
    /// use siss::{Denoiser, FnDenoiser, PredictionType};
    ///
    /// # let layer = LinearConfig::new(3, 3).init(&Device::flex());
    /// # let function = |layer: &Linear, noisy: Tensor<2>, _: Tensor<1>, _: &()| layer.forward(noisy);
    /// let model = FnDenoiser::new(layer, function).predicting(PredictionType::Velocity);
    /// assert_eq!(model.prediction_type(), PredictionType::Velocity);
    /// ```
    pub fn predicting(self, prediction_type: PredictionType) -> Self {
        Self {
            prediction_type,
            ..self
        }
    }

    /// The module, without the function.
    pub fn into_inner(self) -> M {
        self.module
    }

    /// The same function with another state of the module.
    fn with_module(self, change: impl FnOnce(M) -> M) -> Self {
        Self {
            module: change(self.module),
            ..self
        }
    }
}

impl<M: Module, F, C> fmt::Debug for FnDenoiser<M, F, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FnDenoiser")
            .field("module", &self.module)
            .field("prediction_type", &self.prediction_type)
            .finish_non_exhaustive()
    }
}

impl<M, F, C, const D: usize> Denoiser<D> for FnDenoiser<M, F, C>
where
    M: Module,
    F: Fn(&M, Tensor<D>, Tensor<1>, &C) -> Tensor<D> + Clone + Send,
    C: Condition,
{
    type Condition = C;

    fn predict(&self, noisy: Tensor<D>, timesteps: Tensor<1>, condition: &C) -> Tensor<D> {
        (self.function)(&self.module, noisy, timesteps, condition)
    }

    fn prediction_type(&self) -> PredictionType {
        self.prediction_type
    }
}

/// Implemented by hand: burn's derive requires `Debug` of skipped fields, which closures lack, and
/// would add a level to the parameters' names.
impl<M: Module, F: Clone + Send, C: Condition> Module for FnDenoiser<M, F, C> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.module.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        self.with_module(|module| module.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.with_module(|module| module.to_device(device))
    }

    fn train(self) -> Self {
        self.with_module(Module::train)
    }

    fn valid(&self) -> Self {
        Self {
            module: self.module.valid(),
            function: self.function.clone(),
            prediction_type: self.prediction_type,
            condition: PhantomData,
        }
    }

    fn materialize(self) -> Self {
        self.with_module(Module::materialize)
    }

    fn num_params(&self) -> usize {
        self.module.num_params()
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        self.module.visit(visitor);
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        self.with_module(|module| module.map(mapper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::ParamId;
    use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};

    #[derive(Module, Debug)]
    struct Network {
        layer: Linear,
        dropout: Dropout,
    }

    fn network() -> Network {
        Network {
            layer: LinearConfig::new(3, 3).init(&Device::flex()),
            dropout: DropoutConfig::new(0.5).init(),
        }
    }

    fn denoiser(network: Network) -> impl Denoiser<2, Condition = ()> {
        FnDenoiser::new(network, |network, noisy: Tensor<2>, _, _: &()| {
            network.dropout.forward(network.layer.forward(noisy))
        })
    }

    /// Names and ids of all parameters, and whether they are trained.
    fn parameters<M: Module>(model: &M) -> Vec<(String, ParamId, bool)> {
        struct Collect(Vec<String>, Vec<(String, ParamId, bool)>);
        impl ModuleVisitor for Collect {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.0.push(name.into());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.0.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
                let trained = param.val().is_require_grad();
                self.1.push((self.0.join("."), param.id, trained));
            }
        }
        let mut collect = Collect(Vec::new(), Vec::new());
        model.visit(&mut collect);
        collect.1
    }

    #[test]
    fn it_has_the_parameters_of_its_module_in_every_state() {
        let network = network();
        let wrapped = denoiser(network.clone());
        assert_eq!(wrapped.num_params(), 12);
        assert_eq!(parameters(&wrapped)[0].0, "layer.weight");
        assert_eq!(parameters(&wrapped), parameters(&network));
        let (trained, wrapped) = (network.train(), wrapped.train());
        assert!(parameters(&wrapped).iter().all(|parameter| parameter.2));
        assert_eq!(parameters(&wrapped), parameters(&trained));
        assert_eq!(parameters(&wrapped.valid()), parameters(&trained.valid()));
        let frozen = wrapped.no_grad();
        assert!(parameters(&frozen).iter().all(|parameter| !parameter.2));
    }

    #[test]
    fn dropout_is_on_in_training_and_off_in_its_plain_form() {
        let input = || Tensor::<2>::ones([8, 3], &Device::flex());
        let zeros = |output: Tensor<2>| {
            let values: Vec<f32> = output.into_data().try_to_vec().unwrap();
            values.iter().filter(|value| **value == 0.0).count()
        };
        let model = denoiser(network()).train();
        let predict = |model: &dyn Fn(Tensor<2>) -> Tensor<2>| zeros(model(input()));
        let time = || Tensor::zeros([8], &Device::flex());
        assert!(predict(&|noisy| model.predict(noisy, time(), &()).inner()) > 0);
        assert_eq!(
            predict(&|noisy| model.valid().predict(noisy, time(), &())),
            0
        );
    }

    #[test]
    fn it_says_what_it_predicts_in_every_state() {
        let function = |network: &Network, noisy: Tensor<2>, _: Tensor<1>, _: &()| {
            network.layer.forward(noisy)
        };
        let model = FnDenoiser::new(network(), function);
        assert_eq!(model.prediction_type(), PredictionType::Epsilon);
        let model = model.predicting(PredictionType::Sample).train();
        let states = [model.valid(), model.clone().no_grad(), model];
        for model in states {
            assert_eq!(model.prediction_type(), PredictionType::Sample);
        }
    }

    #[test]
    fn saved_weights_fit_the_module_alone_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights.bpk");
        let values = |network: &Network| -> Vec<f32> {
            network.layer.weight.val().to_data().try_to_vec().unwrap()
        };
        let (saved, other) = (network(), network());
        denoiser(saved.clone()).save_file(&file).unwrap();
        let loaded = other.try_load_file(&file).unwrap();
        assert_eq!(values(&loaded), values(&saved));

        let function = |network: &Network, noisy: Tensor<2>, _: Tensor<1>, _: &()| {
            network.layer.forward(noisy)
        };
        let wrapped = FnDenoiser::new(network(), function);
        let wrapped = wrapped.try_load_file(&file).unwrap();
        assert_eq!(values(wrapped.module()), values(&saved));
        assert_eq!(values(&wrapped.into_inner()), values(&saved));
    }

    #[test]
    fn its_debug_output_shows_the_module() {
        let text = format!("{:?}", denoiser(network()));
        assert!(
            text.starts_with("FnDenoiser { module: Network")
                && text.ends_with("prediction_type: Epsilon, .. }"),
            "{text}"
        );
    }
}
