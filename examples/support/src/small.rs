//! A small model and points for tests of the public interface.

use siss::answer::Surrogate;
use siss::burn;
use siss::burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use siss::burn::nn::{Linear, LinearConfig};
use siss::burn::optim::GradientsParams;
use siss::burn::tensor::{Device, FloatDType, Tensor, TensorData};
use siss::draws::{Stream, normal_noise};
use siss::models::{DownBlockType, UNet2d, UNet2dConfig, UpBlockType};
use siss::steering::Levels;
use siss::trainer::SissTrainerBuilder;
use siss::{Denoiser, PredictionType, Steering, UnlearningBatch};

use crate::cast::cast;
use crate::way::Way;

/// The device under test: `SISS_TEST_DEVICE`, or the CPU.
pub fn device() -> Device {
    let spec = std::env::var("SISS_TEST_DEVICE").unwrap_or_else(|_| "flex".into());
    spec.parse::<siss::backend::DeviceSpec>()
        .unwrap()
        .device()
        .unwrap()
}

/// A network of diffusers for small colour pictures, with the weights of a seed.
pub fn unet(seed: u64) -> UNet2d {
    let config = UNet2dConfig {
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![4, 8],
        down_block_types: vec![DownBlockType::Resnet; 2],
        up_block_types: vec![UpBlockType::Resnet; 2],
        layers_per_block: 1,
        norm_num_groups: 2,
        attention_head_dim: None,
        ..UNet2dConfig::default()
    };
    seeded(config.init(&Device::flex()).unwrap(), seed)
}

/// A model with two layers over three elements and the timestep. Its parameters are determined by a
/// seed.
#[derive(Module, Debug)]
pub struct Mlp {
    first: Linear,
    second: Linear,
    #[module(skip)]
    kind: PredictionType,
}

impl Mlp {
    /// The model of a seed.
    pub fn new(seed: u64, device: &Device) -> Self {
        let weights = |index: u64, shape: [usize; 2]| {
            let noise: Tensor<2> =
                normal_noise(shape, seed, 0, 100 * index, Stream::Evaluation, device);
            Param::from_tensor(noise * 0.4)
        };
        let bias = |size: usize| Some(Param::from_tensor(Tensor::<1>::zeros([size], device)));
        let mut first = LinearConfig::new(4, 8).init(device);
        let mut second = LinearConfig::new(8, 3).init(device);
        (first.weight, first.bias) = (weights(1, [4, 8]), bias(8));
        (second.weight, second.bias) = (weights(2, [8, 3]), bias(3));
        let kind = PredictionType::Epsilon;
        Self {
            first,
            second,
            kind,
        }
    }

    /// The same, said to predict something else than the noise.
    pub fn predicting(self, kind: PredictionType) -> Self {
        Self { kind, ..self }
    }
}

impl Denoiser<2> for Mlp {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let time = (timesteps / 1000.0).unsqueeze_dim(1);
        let hidden = self.first.forward(Tensor::cat(vec![noisy, time], 1));
        self.second.forward(hidden.tanh())
    }

    fn prediction_type(&self) -> PredictionType {
        self.kind
    }
}

/// The same network with parameters and arithmetic of another precision.
#[derive(Module, Debug)]
pub struct Narrow {
    model: Mlp,
    #[module(skip)]
    dtype: FloatDType,
}

impl Narrow {
    /// The model of a seed.
    pub fn new(seed: u64, dtype: FloatDType, device: &Device) -> Self {
        let model = cast(Mlp::new(seed, device), dtype);
        Self { model, dtype }
    }
}

impl Denoiser<2> for Narrow {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        // The timestep is divided before the cast: f16 is exact only up to 2,048.
        let time = (timesteps / 1000.0).cast(self.dtype) * 1000.0;
        self.model.predict(noisy.cast(self.dtype), time, &())
    }
}

/// Sets the weights of a module from a seed, biases and offsets to zero. burn's own initial values
/// come from a generator that the whole process shares.
pub fn seeded<M: Module>(model: M, seed: u64) -> M {
    struct Weights {
        seed: u64,
        count: u64,
    }
    impl ModuleMapper for Weights {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.count += 1;
            param.map(|value| {
                if D == 1 {
                    // The gain of a norm begins with ones and stays.
                    let is_gain = value.clone().equal_elem(1.0).all().into_scalar::<bool>();
                    return if is_gain { value } else { value.zeros_like() };
                }
                let (shape, device) = (value.dims(), value.device());
                let inputs = if D == 2 {
                    shape[0]
                } else {
                    shape[1..].iter().product()
                };
                let noise =
                    normal_noise(shape, self.seed, self.count, 0, Stream::Evaluation, &device);
                noise / (inputs as f64).sqrt()
            })
        }
    }
    model.map(&mut Weights { seed, count: 0 })
}

/// Pairs of points with three elements; the two sides are `distance` apart in each element. Each
/// forgotten point has its own id.
pub fn batch(rows: usize, distance: f64, seed: u64, device: &Device) -> UnlearningBatch<2> {
    let points = |part| normal_noise([rows, 3], seed, part, 0, Stream::Evaluation, device) * 0.3;
    let ids = (0..rows as u64).collect();
    let batch = UnlearningBatch::new(points(1), points(2) + distance).unwrap();
    batch.with_forget_ids(ids).unwrap()
}

/// The elements of a tensor as a list.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// All parameters of a model as a list.
pub fn parameters<M: Module>(model: &M) -> Vec<f64> {
    struct Collect(Vec<f64>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(host(param.val().inner()));
        }
    }
    let mut collect = Collect(Vec::new());
    model.visit(&mut collect);
    collect.0
}

/// A gradient in the order of [`parameters`]; zero for parameters without a gradient.
pub fn flat<M: Module>(model: &M, gradients: &GradientsParams) -> Vec<f64> {
    struct Collect<'a>(&'a GradientsParams, Vec<f64>);
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match self.0.get::<D>(param.id) {
                Some(gradient) => self.1.extend(host(gradient)),
                None => self.1.extend(vec![0.0; param.val().shape().num_elements()]),
            }
        }
    }
    let mut collect = Collect(gradients, Vec::new());
    model.visit(&mut collect);
    collect.1
}

/// The Euclidean norm.
pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// `a − b`, for lists of the same length.
pub fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// A tensor with one element per row.
pub fn scalars(values: &[f64], device: &Device) -> Tensor<2> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let rows = values.len();
    Tensor::from_data(TensorData::new(values, [rows, 1]), device)
}

/// Sets a way that is a method, with the data that it needs: retained points to search, and levels
/// too high to matter.
pub fn with_method(
    builder: SissTrainerBuilder<Mlp, 2>,
    way: impl Into<Way>,
    retained: &Tensor<2>,
) -> SissTrainerBuilder<Mlp, 2> {
    let way = way.into();
    let builder = builder.retained_points(retained.clone());
    let levels = way.is_predicted().then(|| level(1e30).levels().clone());
    way.set(builder, levels, None::<Surrogate<2>>, None)
        .unwrap()
}

/// The same level for each of the first 64 points at every timestep.
pub fn level(level: f64) -> Steering {
    let levels = vec![vec![level; 2]; 64];
    Steering::new(Levels::new(vec![0.0, 999.0], levels).unwrap())
}

/// The model with one of its parameters shifted.
pub fn nudged(model: &Mlp, index: usize, shift: f64) -> Mlp {
    struct Nudge {
        left: Option<usize>,
        shift: f64,
    }
    impl ModuleMapper for Nudge {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let elements = param.val().shape().num_elements();
            let Some(left) = self.left else { return param };
            if left >= elements {
                self.left = Some(left - elements);
                return param;
            }
            self.left = None;
            let shift = self.shift;
            param.map(|value| {
                let mut data = value.to_data().try_to_vec::<f32>().unwrap();
                data[left] = (f64::from(data[left]) + shift) as f32;
                Tensor::from_data(TensorData::new(data, value.shape()), &value.device())
            })
        }
    }
    model.valid().map(&mut Nudge {
        left: Some(index),
        shift,
    })
}
