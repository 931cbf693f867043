//! Compares the kernels for whole gradients and AdamW with the same sums on the host.

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, AdamWState, GradientsParams, ModuleOptimizer, Optimizer};
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};

use crate::backend::DeviceSpec;
use crate::draws::{Stream, normal_noise};
use crate::kernel::fused::{PRODUCTS, gradient_products, is_on_cube, non_finite, scaled_sums};
use crate::trainer::FusedAdamW;
use crate::trainer::gradients::combine;
use crate::trainer::optimizer::OpaqueOptimizer;

/// The GPU that this build has, or the software driver.
fn device() -> Device {
    let spec = match cfg!(feature = "wgpu") {
        true => DeviceSpec::Wgpu,
        false => DeviceSpec::Cuda(0),
    };
    spec.device().unwrap()
}

/// Sizes around those of a cube and a block; more than one launch takes.
const SIZES: [usize; 18] = [
    1, 31, 255, 257, 4095, 4096, 4097, 20_000, 7, 1, 2, 3, 64, 9000, 5, 6, 8, 33,
];

fn noise(size: usize, seed: u64, device: &Device) -> Tensor<1> {
    normal_noise([size], seed, 0, 0, Stream::Evaluation, device)
}

fn numbers(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().unwrap()
}

#[test]
fn products_are_those_of_the_host() {
    let device = device();
    let mut pairs = [Vec::new(), Vec::new()];
    let mut expected = [0.0f64; PRODUCTS];
    for (seed, size) in (1..).zip(SIZES) {
        let (a, b) = (noise(size, seed, &device), noise(size, 100 + seed, &device));
        assert!(is_on_cube(&a) && is_on_cube(&b));
        for (a, b) in numbers(a.clone()).into_iter().zip(numbers(b.clone())) {
            let (a, b) = (f64::from(a), f64::from(b));
            let products = [a * a, b * b, a * b];
            expected = std::array::from_fn(|index| expected[index] + products[index]);
        }
        pairs[0].push(a);
        pairs[1].push(b);
    }
    let [retain, forget] = pairs;
    let got = numbers(gradient_products(retain, forget).unwrap());
    for (got, expected) in got.into_iter().zip(expected) {
        let scale = expected.abs().max(1.0);
        assert!(
            (f64::from(got) - expected).abs() < 1e-5 * scale,
            "{got} {expected}"
        );
    }
}

#[test]
fn every_number_that_is_not_finite_is_counted() {
    let device = device();
    let counted = |values: &[f32]| {
        let values = Tensor::<1>::from_data(values, (&device, DType::F32));
        let rest = Tensor::<1>::full([5], f32::MAX, (&device, DType::F32));
        let mut all = vec![rest; 18];
        all[17] = values;
        numbers(non_finite(all).unwrap())
    };
    for size in SIZES {
        let mut values = vec![-f32::MIN_POSITIVE; size];
        assert_eq!(counted(&values), [0.0], "{size}");
        values[size - 1] = f32::NAN;
        assert_eq!(counted(&values), [1.0], "{size}");
        values[size / 2] = f32::NEG_INFINITY;
        let distinct = if size / 2 == size - 1 { 1.0 } else { 2.0 };
        assert_eq!(counted(&values), [distinct], "{size}");
    }
}

#[test]
fn scaled_sums_are_those_of_the_host() {
    let device = device();
    let pairs = SIZES.map(|size| [1, 2].map(|seed| noise(size, seed, &device)));
    let sums = scaled_sums(pairs.to_vec(), 0.3, -1.7);
    assert_eq!(sums.len(), SIZES.len());
    for ([a, b], sum) in pairs.into_iter().zip(sums) {
        let pairs = numbers(a).into_iter().zip(numbers(b));
        let expected: Vec<f32> = pairs.map(|(a, b)| 0.3 * a - 1.7 * b).collect();
        let got = numbers(sum);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.into_iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }
}

/// Parameters, and both moments, after three steps.
fn after_three(
    step_of: impl Fn(Tensor<1>, Tensor<1>, Option<AdamWState<1>>) -> (Tensor<1>, Option<AdamWState<1>>),
    size: usize,
    device: &Device,
) -> [Vec<f32>; 3] {
    let mut parameter = noise(size, 1, device);
    let mut state = None;
    for step in 0..3 {
        let gradient = noise(size, 10 + step, device) * 0.1;
        (parameter, state) = step_of(parameter, gradient, state);
    }
    let momentum = state.unwrap().momentum;
    assert_eq!(momentum.time, 3);
    [parameter, momentum.moment_1, momentum.moment_2].map(numbers)
}

#[test]
fn a_step_of_adamw_is_burns() {
    let plain = AdamWConfig::new()
        .with_beta_1(0.95)
        .with_beta_2(0.999)
        .with_epsilon(1e-8)
        .with_weight_decay(0.1)
        .build();
    let fused = FusedAdamW::new([0.95, 0.999], 1e-8, 0.1);
    let plain = |parameter, gradient, state| plain.step(0.01, parameter, gradient, state);
    let fused = |parameter, gradient, state| fused.step(0.01, parameter, gradient, state);
    for size in SIZES {
        let expected = after_three(plain, size, &Device::flex());
        // Without a kernel it is burn's, to the bit.
        assert_eq!(after_three(fused, size, &Device::flex()), expected);
        let got = after_three(fused, size, &device());
        for (got, expected) in got
            .into_iter()
            .flatten()
            .zip(expected.into_iter().flatten())
        {
            let off = (got - expected).abs();
            assert!(
                off <= 1e-5 * expected.abs() + 1e-7,
                "{size}: {got} {expected}"
            );
        }
    }
}

#[derive(Module, Debug)]
struct Layers {
    layers: Vec<Linear>,
}

impl Layers {
    /// 40 parameters: more than two groups, and sizes around a block.
    fn new(device: &Device) -> Self {
        let sizes = [(1, 1), (64, 64), (65, 63), (3, 70), (257, 31)];
        let layers = sizes.iter().cycle().take(20);
        let layers =
            layers.map(|&(inputs, outputs)| LinearConfig::new(inputs, outputs).init(device));
        Self {
            layers: layers.collect(),
        }
    }

    /// Gradients for a step; in the second, one parameter has none.
    fn gradients(&self, step: u64, device: &Device) -> GradientsParams {
        struct Visitor<'a> {
            step: u64,
            seed: u64,
            device: &'a Device,
            gradients: GradientsParams,
        }
        impl ModuleVisitor for Visitor<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.seed += 1;
                if (self.step, self.seed) == (1, 5) {
                    return;
                }
                let shape = param.shape();
                let noise = noise(
                    shape.num_elements(),
                    100 * self.step + self.seed,
                    self.device,
                );
                self.gradients
                    .register::<D>(param.id, noise.reshape(shape) * 0.1);
            }
        }
        let mut visitor = Visitor {
            step,
            seed: 0,
            device,
            gradients: GradientsParams::new(),
        };
        self.visit(&mut visitor);
        visitor.gradients
    }

    fn values(&self) -> Vec<f32> {
        struct Visitor(Vec<f32>);
        impl ModuleVisitor for Visitor {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.extend(numbers(param.val().flatten(0, D - 1)));
            }
        }
        let mut visitor = Visitor(Vec::new());
        self.visit(&mut visitor);
        visitor.0
    }
}

/// Counts this thread's launches of a kernel.
struct Counter {
    thread: ThreadId,
    kernel: &'static str,
    count: Mutex<usize>,
}

impl LaunchObserver for Counter {
    fn launched(&self, kernel: &'static str) {
        if thread::current().id() == self.thread && kernel.contains(self.kernel) {
            *self.count.lock().unwrap() += 1;
        }
    }
}

/// Parameters after four steps, and how many kernels of AdamW each step launched.
fn after_four(
    optimizer: ModuleOptimizer,
    model: Layers,
    device: &Device,
) -> (Vec<f32>, Vec<usize>) {
    let mut optimizer = OpaqueOptimizer::new(optimizer);
    let mut model = model.to_device(device).train();
    let launches = (0..4).map(|step| {
        let gradients = model.gradients(step, device);
        let counter = Arc::new(Counter {
            thread: thread::current().id(),
            kernel: "update::Update",
            count: Mutex::new(0),
        });
        let watching = LaunchObservation::new(counter.clone());
        model = optimizer.step(0.01.into(), model.clone(), gradients);
        drop(watching);
        let count = *counter.count.lock().unwrap();
        count
    });
    let launches = launches.collect();
    (model.valid().values(), launches)
}

#[test]
fn a_step_of_adamw_in_groups_is_burns() {
    let plain = AdamWConfig::new()
        .with_beta_1(0.95)
        .with_beta_2(0.999)
        .with_epsilon(1e-8)
        .with_weight_decay(0.1);
    let fused = || ModuleOptimizer::from(FusedAdamW::new([0.95, 0.999], 1e-8, 0.1));
    let model = Layers::new(&Device::flex());
    let before = model.values();
    let (expected, _) = after_four(plain.init(), model.clone(), &Device::flex());
    let (on_cpu, launches) = after_four(fused(), model.clone(), &Device::flex());
    assert_eq!((on_cpu, launches), (expected.clone(), vec![0; 4]));
    let (got, launches) = after_four(fused(), model, &device());
    // The first step has no state and is burn's. The second shows that all have a kernel. Later
    // the parameter that missed a step parts a group: 40 are 4, 1, 16, 16 and 3.
    // A device that binds fewer tensors takes more launches for a group.
    assert_eq!(launches[..2], [0, 39]);
    assert!(
        launches[2..]
            .iter()
            .all(|launches| (5..20).contains(launches)),
        "{launches:?}"
    );
    assert!(
        before
            .iter()
            .zip(&got)
            .any(|(before, got)| (before - got).abs() > 0.01)
    );
    for (index, (got, expected)) in got.into_iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 1e-6, "{index}: {got} {expected}");
    }
}

/// All numbers of a gradient, in the order of the model's parameters.
fn flat(model: &Layers, gradients: &GradientsParams) -> Vec<f32> {
    struct Visitor<'a>(&'a GradientsParams, Vec<f32>);
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = self.0.get::<D>(param.id).unwrap();
            self.1.extend(numbers(gradient.flatten(0, D - 1)));
        }
    }
    let mut visitor = Visitor(gradients, Vec::new());
    model.visit(&mut visitor);
    visitor.1
}

#[test]
fn a_gradient_without_another_is_scaled() {
    let device = device();
    let model = Layers::new(&device);
    let gradients = || model.gradients(0, &device);
    let before = flat(&model, &gradients());
    let scaled = |scale: f32| {
        before
            .iter()
            .map(|number| number * scale)
            .collect::<Vec<_>>()
    };
    let none = GradientsParams::new;
    let forget = combine(&model, (0.5, none()), (-3.0, gradients()));
    assert_eq!(flat(&model, &forget), scaled(-3.0));
    let retain = combine(&model, (0.3, gradients()), (7.0, none()));
    assert_eq!(flat(&model, &retain), scaled(0.3));
    let unchanged = combine(&model, (1.0, gradients()), (7.0, none()));
    assert_eq!(flat(&model, &unchanged), before);
}
