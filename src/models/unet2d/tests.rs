use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Distribution, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::*;
use crate::models::layers::assert_path_is_counted_in_thousandths;

fn conformance() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

/// The metadata of a case that PyTorch computed.
fn read_metadata(file: &[u8]) -> HashMap<String, String> {
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    header.metadata().clone().unwrap_or_default()
}

/// The tensors of a case, converted to one number type.
fn read_tensors(file: &[u8]) -> BTreeMap<String, TensorData> {
    let read = |(name, view): (String, TensorView<'_>)| {
        let data = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => parts(data).map(f32::from_le_bytes).collect(),
            Dtype::I64 => parts(data)
                .map(|bytes| i64::from_le_bytes(bytes) as f32)
                .collect(),
            other => panic!("{name} is {other}"),
        };
        (name, TensorData::new(values, view.shape().to_vec()))
    };
    let tensors = SafeTensors::deserialize(file).unwrap().tensors();
    tensors.into_iter().map(read).collect()
}

fn parts<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.chunks_exact(N).map(|bytes| bytes.try_into().unwrap())
}

fn relative_error(got: Tensor<4>, expected: Tensor<4>) -> f32 {
    let norm = |tensor: Tensor<4>| tensor.square().sum().into_scalar::<f32>().sqrt();
    norm(got - expected.clone()) / norm(expected)
}

fn tiny() -> UNet2dConfig {
    UNet2dConfig {
        block_out_channels: vec![8, 16],
        down_block_types: vec![DownBlockType::Attention, DownBlockType::Resnet],
        up_block_types: vec![UpBlockType::Resnet, UpBlockType::Attention],
        layers_per_block: 1,
        norm_num_groups: 4,
        attention_head_dim: Some(4),
        ..UNet2dConfig::default()
    }
}

fn noise(shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

#[test]
fn the_forward_pass_is_pytorchs() {
    let device = Device::flex();
    let mut cases = 0;
    for entry in std::fs::read_dir(conformance()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "safetensors")
        {
            continue;
        }
        let file = std::fs::read(&path).unwrap();
        let metadata = read_metadata(&file);
        if metadata.get("kind").is_none_or(|kind| kind != "unet2d") {
            continue;
        }
        let tensors = read_tensors(&file);
        let unet = UNet2d::load(conformance().join(&metadata["checkpoint"]), &device).unwrap();
        let timesteps = Tensor::from_data(tensors["t"].clone(), &device);
        let noisy = Tensor::from_data(tensors["x"].clone(), &device);
        let expected = Tensor::from_data(tensors["expect_output"].clone(), &device);
        let labels = tensors.get("class_labels").cloned();
        let labels = labels.map(|labels| Tensor::<1>::from_data(labels, &device).int());
        let classes = labels.map(ClassCondition::Labels);
        let output = unet.forward(noisy, timesteps, classes.as_ref());
        let error = relative_error(output, expected);
        assert!(error < 1e-4, "{}: {error:e}", path.display());
        cases += 1;
    }
    assert!(cases > 0);
}

#[test]
fn a_path_is_counted_in_thousandths() {
    let device = Device::flex();
    let unet = tiny().init(&device).unwrap();
    let with = |predicted| unet.clone().with_prediction_type(predicted);
    assert_path_is_counted_in_thousandths(with, &noise([2, 3, 4, 4], &device), &());
}

#[test]
fn every_legal_size_keeps_its_shape() {
    let device = Device::flex();
    for downsample_padding in [0, 1] {
        let config = UNet2dConfig {
            block_out_channels: vec![4, 4, 8],
            down_block_types: vec![DownBlockType::Resnet; 3],
            up_block_types: vec![UpBlockType::Resnet; 3],
            in_channels: 2,
            downsample_padding,
            ..tiny()
        };
        let unet = config.init(&device).unwrap();
        for [height, width] in [[4, 4], [5, 7], [8, 6], [13, 4]] {
            let output = unet.predict(
                noise([2, 2, height, width], &device),
                Tensor::from_data([0.5, 12.0], &device),
                &(),
            );
            assert_eq!(output.dims(), [2, 3, height, width]);
        }
    }
}

#[test]
fn inputs_that_do_not_halve_are_refused_with_the_nearest_sizes() {
    let unet = tiny().init(&Device::flex()).unwrap();
    assert!(unet.check_input([2, 3, 8, 6]).is_ok());
    for (height, width, nearest) in [(8, 7, "8x6 or 8x8"), (1, 4, "2x4"), (0, 4, "2x4")] {
        let error = unet
            .check_input([2, 3, height, width])
            .unwrap_err()
            .to_string();
        let size = format!("{height}x{width}");
        assert!(error.contains(&size) && error.contains(nearest), "{error}");
    }
    assert!(unet.check_input([2, 1, 8, 8]).is_err());
}

#[test]
fn rows_do_not_mix() {
    let device = Device::flex();
    let unet = tiny().init(&device).unwrap();
    let noisy = noise([3, 3, 8, 8], &device);
    let timesteps = Tensor::from_data([1.0, 50.0, 999.0], &device);
    let together = unet.predict(noisy.clone(), timesteps.clone(), &());
    for row in 0..3 {
        let alone = unet.predict(
            noisy.clone().narrow(0, row, 1),
            timesteps.clone().narrow(0, row, 1),
            &(),
        );
        assert!(relative_error(alone, together.clone().narrow(0, row, 1)) < 1e-6);
    }
}

#[test]
fn settings_change_the_function() {
    let device = Device::flex();
    let noisy = noise([1, 3, 8, 8], &device);
    let timesteps = Tensor::from_data([7.0], &device);
    let unet = tiny().init(&device).unwrap();
    let output = unet.predict(noisy.clone(), timesteps.clone(), &());
    for config in [
        UNet2dConfig {
            center_input_sample: true,
            ..tiny()
        },
        UNet2dConfig {
            flip_sin_to_cos: false,
            ..tiny()
        },
        UNet2dConfig {
            freq_shift: 1,
            ..tiny()
        },
        UNet2dConfig {
            mid_block_scale_factor: 2.0,
            ..tiny()
        },
        UNet2dConfig {
            attention_head_dim: None,
            ..tiny()
        },
        UNet2dConfig {
            norm_eps: 0.1,
            ..tiny()
        },
        UNet2dConfig {
            norm_num_groups: 2,
            ..tiny()
        },
        UNet2dConfig {
            attn_norm_num_groups: Some(2),
            ..tiny()
        },
    ] {
        let other = UNet2d::build(&config, &device).load_record(unet.clone().into_record());
        let changed = other.predict(noisy.clone(), timesteps.clone(), &());
        assert!(relative_error(changed, output.clone()) > 1e-4, "{config:?}");
    }
}

#[test]
fn every_parameter_receives_a_gradient() {
    struct Counter<'a>(&'a GradientsParams, usize, Vec<String>, Vec<String>);
    impl ModuleVisitor for Counter<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.2.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.2.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1 += 1;
            let gradient = self.0.get::<D>(param.id);
            if gradient.is_none_or(|gradient| gradient.abs().sum().into_scalar::<f32>() == 0.0) {
                self.3.push(self.2.join("."));
            }
        }
    }
    let device = Device::flex().autodiff();
    let unet = tiny().init(&device).unwrap();
    let timesteps = Tensor::from_data([3.0, 400.0], &device);
    let output = unet.predict(noise([2, 3, 8, 8], &device), timesteps, &());
    let gradients = GradientsParams::from_grads(output.square().sum().backward(), &unet);
    let mut counter = Counter(&gradients, 0, vec![], vec![]);
    unet.visit(&mut counter);
    assert!(counter.1 > 100);
    assert_eq!(counter.3, Vec::<String>::new());
}
