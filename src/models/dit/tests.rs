use burn::tensor::Distribution;

use super::*;
use crate::models::layers::assert_path_is_counted_in_thousandths;

fn small() -> DitConfig {
    DitConfig {
        num_attention_heads: 2,
        attention_head_dim: 4,
        num_layers: 2,
        sample_size: 4,
        num_embeds_ada_norm: 3,
        out_channels: Some(8),
        ..DitConfig::default()
    }
}

fn noise(rows: usize, side: usize) -> Tensor<4> {
    let device = Device::flex();
    Tensor::random(
        [rows, 4, side, side],
        Distribution::Normal(0.0, 1.0),
        &device,
    )
}

#[test]
fn every_class_and_the_null_class_change_the_prediction() {
    let device = Device::flex();
    let dit = small().init(&device).unwrap();
    assert_eq!(dit.null_class(), 3);
    let noisy = noise(1, 6);
    let predict = |label: i32| {
        let labels = Tensor::from_data([label], &device);
        dit.check_condition(&labels).unwrap();
        dit.predict(noisy.clone(), Tensor::from_data([5.0], &device), &labels)
    };
    let null = predict(3);
    assert_eq!(null.dims(), [1, 4, 6, 6]);
    for label in 0..3 {
        let change = (predict(label) - null.clone()).abs().max();
        assert!(change.into_scalar::<f32>() > 1e-4, "{label}");
    }
    let beyond = Tensor::from_data([4], &device);
    assert!(dit.check_condition(&beyond).is_err());
}

#[test]
fn a_path_is_counted_in_thousandths() {
    let device = Device::flex();
    let dit = small().init(&device).unwrap();
    let labels = Tensor::from_data([0, 3], &device);
    let with = |predicted| dit.clone().with_prediction_type(predicted);
    assert_path_is_counted_in_thousandths(with, &noise(2, 4), &labels);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let dit = small().init(&Device::flex()).unwrap();
    assert!(dit.check_input([1, 4, 6, 6]).is_ok());
    for shape in [[1, 3, 4, 4], [1, 4, 4, 6], [1, 4, 5, 5], [1, 4, 0, 0]] {
        assert!(dit.check_input(shape).is_err(), "{shape:?}");
    }
}

#[test]
fn values_that_are_not_implemented_are_refused_by_name() {
    for (key, text) in [
        ("norm_type", r#"{"norm_type": "ada_norm_single"}"#),
        ("activation_fn", r#"{"activation_fn": "geglu"}"#),
        (
            "_class_name",
            r#"{"_class_name": "PixArtTransformer2DModel"}"#,
        ),
        ("patch_size", r#"{"patch_size": 3}"#),
        (
            "attention_head_dim",
            r#"{"attention_head_dim": 1, "num_attention_heads": 3}"#,
        ),
        ("new_option", r#"{"new_option": 1}"#),
    ] {
        match DitConfig::from_json(text, "config.json") {
            Err(Error::UnsupportedConfig { key: refused, .. }) => assert_eq!(refused, key),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_saved_network_is_read_back() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let dit = small().init(&device).unwrap();
    dit.save(folder.path().join("transformer")).unwrap();
    let back = Dit::load(folder.path(), &device).unwrap();
    assert_eq!(back.config(), dit.config());
    let noisy = noise(2, 4);
    let [one, other] = [&dit, &back].map(|dit| {
        let labels = Tensor::from_data([0, 3], &device);
        dit.predict(
            noisy.clone(),
            Tensor::from_data([5.0, 900.0], &device),
            &labels,
        )
    });
    assert_eq!((one - other).abs().max().into_scalar::<f32>(), 0.0);
}
