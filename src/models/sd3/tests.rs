use burn::tensor::Distribution;

use super::*;

fn small() -> Sd3TransformerConfig {
    Sd3TransformerConfig {
        sample_size: 8,
        in_channels: 4,
        out_channels: 4,
        num_layers: 2,
        attention_head_dim: 4,
        num_attention_heads: 2,
        joint_attention_dim: 6,
        caption_projection_dim: 8,
        pooled_projection_dim: 5,
        pos_embed_max_size: 6,
        ..Sd3TransformerConfig::default()
    }
}

fn condition(device: &Device) -> TextCondition {
    TextCondition::new(Tensor::ones([1, 3, 6], device)).with_pooled(Tensor::ones([1, 5], device))
}

/// A denoiser gets the time σ; the network itself counts to 1000.
#[test]
fn a_denoiser_takes_times_from_0_to_1() {
    let device = Device::flex();
    let transformer = small().init(&device).unwrap();
    let noisy = Tensor::random([1, 4, 4, 8], Distribution::Normal(0.0, 1.0), &device);
    let text = condition(&device);
    let one = transformer.predict(noisy.clone(), Tensor::from_data([0.25], &device), &text);
    let other = transformer.forward(noisy, Tensor::from_data([250.0], &device), &text);
    assert_eq!(one.dims(), [1, 4, 4, 8]);
    assert_eq!((one - other).abs().max().into_scalar::<f32>(), 0.0);
    assert_eq!(transformer.prediction_type(), PredictionType::FlowVelocity);
}

#[test]
fn positions_are_not_trained() {
    let transformer = small().init(&Device::flex().autodiff()).unwrap();
    let fixed: Vec<String> = crate::parameters::parameters(&transformer)
        .into_iter()
        .filter(|parameter| parameter.to_string().ends_with("fixed"))
        .map(|parameter| parameter.name)
        .collect();
    assert_eq!(fixed, ["pos_embed.pos_embed"]);
}

#[test]
fn inputs_and_conditions_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let transformer = small().init(&device).unwrap();
    assert!(transformer.check_input([1, 4, 12, 2]).is_ok());
    for shape in [[1, 3, 4, 4], [1, 4, 3, 4], [1, 4, 14, 4], [1, 4, 0, 4]] {
        assert!(transformer.check_input(shape).is_err(), "{shape:?}");
    }
    let text = condition(&device);
    assert!(transformer.check_condition(&text).is_ok());
    let sized = text.clone().with_time_ids(Tensor::zeros([1, 6], &device));
    let without = TextCondition {
        pooled: None,
        ..text
    };
    for condition in [sized, without] {
        assert!(transformer.check_condition(&condition).is_err());
    }
}

#[test]
fn the_additions_of_version_3_5_are_refused_by_name() {
    for (key, text) in [
        ("qk_norm", r#"{"qk_norm": "rms_norm"}"#),
        (
            "dual_attention_layers",
            r#"{"dual_attention_layers": [0, 1]}"#,
        ),
        ("caption_projection_dim", r#"{"caption_projection_dim": 7}"#),
        ("out_channels", r#"{"out_channels": 32}"#),
        ("new_option", r#"{"new_option": 1}"#),
    ] {
        match Sd3TransformerConfig::from_json(text, "config.json") {
            Err(Error::UnsupportedConfig { key: refused, .. }) => assert_eq!(refused, key),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_saved_network_is_read_back() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let transformer = small().init(&device).unwrap();
    transformer.save(folder.path().join("transformer")).unwrap();
    let back = Sd3Transformer::load(folder.path(), &device).unwrap();
    assert_eq!(back.config(), transformer.config());
    let [one, other] = [&transformer, &back].map(|transformer| {
        let noisy = Tensor::ones([1, 4, 4, 4], &device);
        transformer.predict(
            noisy,
            Tensor::from_data([0.5], &device),
            &condition(&device),
        )
    });
    assert_eq!((one - other).abs().max().into_scalar::<f32>(), 0.0);
}
