use burn::tensor::Distribution;

use super::*;
use crate::draws::Stream;
use crate::error::Error;
use crate::evaluate::{DenoisingLoss, EmbeddingSearch};
use crate::models::PerStage;
use crate::models::layers::assert_path_is_counted_in_thousandths;

fn small() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        block_out_channels: vec![8, 16],
        down_block_types: vec![
            ConditionDownBlockType::Attention,
            ConditionDownBlockType::Resnet,
        ],
        up_block_types: vec![
            ConditionUpBlockType::Resnet,
            ConditionUpBlockType::Attention,
        ],
        layers_per_block: 1,
        norm_num_groups: 4,
        attention_head_dim: PerStage::Each(vec![2, 4]),
        cross_attention_dim: 6,
        ..UNet2dConditionConfig::default()
    }
}

fn large() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(4),
        projection_class_embeddings_input_dim: Some(6 * 4 + 5),
        ..small()
    }
}

fn refusal(text: &str) -> (String, String) {
    match UNet2dConditionConfig::from_json(text, "config.json") {
        Err(Error::UnsupportedConfig { key, remedy, .. }) => (key, remedy),
        other => panic!("{text}: {other:?}"),
    }
}

/// `attention_head_dim` is the number of heads here, the size of a head in `UNet2DModel`, and
/// diffusers refuses the key that would have said so.
#[test]
fn the_head_dimension_is_the_number_of_heads() {
    let (key, _) = refusal(r#"{"num_attention_heads": 8}"#);
    assert_eq!(key, "num_attention_heads");
    let config = UNet2dConditionConfig::from_json(
        r#"{"attention_head_dim": [5, 10, 20, 20], "num_attention_heads": null}"#,
        "config.json",
    );
    let heads = config.unwrap().attention_head_dim;
    assert_eq!((heads.get(0), heads.get(3)), (Some(5), Some(20)));
    // 7 heads do not divide 320 channels; as the size of a head, 64 would.
    assert_eq!(
        refusal(r#"{"attention_head_dim": 7}"#).0,
        "attention_head_dim"
    );
}

#[test]
fn transformer_layers_are_reversed_on_the_way_up_unless_the_file_says_how() {
    let layers = |text: &str| {
        let config = UNet2dConditionConfig::from_json(text, "config.json").unwrap();
        config.up_transformer_layers()
    };
    assert_eq!(layers("{}"), [1, 1, 1, 1]);
    assert_eq!(
        layers(r#"{"transformer_layers_per_block": [1, 2, 3, 10]}"#),
        [10, 3, 2, 1]
    );
    let text = r#"{"transformer_layers_per_block": [1, 2, 3, 10], "reverse_transformer_layers_per_block": [4, 3, 2, 1]}"#;
    assert_eq!(layers(text), [4, 3, 2, 1]);
}

#[test]
fn networks_with_other_inputs_are_refused_by_name() {
    for (channels, name) in [(9, "inpainting"), (8, "pix2pix"), (7, "other inputs")] {
        let (key, remedy) = refusal(&format!(r#"{{"in_channels": {channels}}}"#));
        assert_eq!(key, "in_channels");
        assert!(remedy.contains(name), "{remedy}");
    }
}

#[test]
fn values_that_are_not_implemented_are_refused_by_name() {
    for (key, value) in [
        ("_class_name", r#""UNet2DModel""#),
        ("class_embed_type", r#""projection""#),
        ("num_class_embeds", "1000"),
        ("only_cross_attention", "true"),
        ("dual_cross_attention", "true"),
        ("encoder_hid_dim", "768"),
        ("time_cond_proj_dim", "256"),
        ("addition_embed_type", r#""image""#),
        ("resnet_time_scale_shift", r#""scale_shift""#),
        ("mid_block_type", r#""UNetMidBlock2DSimpleCrossAttn""#),
        ("down_block_types", r#"["SimpleCrossAttnDownBlock2D"]"#),
        ("cross_attention_dim", "[768, 1024]"),
        ("conv_in_kernel", "1"),
        ("some_new_option", "true"),
        ("norm_eps", "0"),
        ("block_out_channels", "[320, 0, 1280, 1280]"),
        ("transformer_layers_per_block", "[1, 2]"),
        ("up_block_types", r#"["UpBlock2D"]"#),
    ] {
        let (refused, _) = refusal(&format!("{{\"{key}\": {value}}}"));
        assert_eq!(refused, key);
    }
}

#[test]
fn what_is_written_is_read_back_with_the_keys_of_diffusers() {
    for config in [small(), large()] {
        let text = settings::to_text(&config);
        let back = UNet2dConditionConfig::from_json(&text, "config.json").unwrap();
        assert_eq!(back, config);
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["_class_name"], "UNet2DConditionModel");
        assert_eq!(object["num_attention_heads"], serde_json::Value::Null);
        assert_eq!(object["conv_in_kernel"], 3);
    }
}

fn prompts(rows: usize, device: &Device) -> TextCondition {
    TextCondition::new(Tensor::random(
        [rows, 3, 6],
        Distribution::Normal(0.0, 1.0),
        device,
    ))
}

#[test]
fn a_condition_has_the_parts_that_the_network_needs() {
    let device = Device::flex();
    let (plain, sized) = (
        small().init(&device).unwrap(),
        large().init(&device).unwrap(),
    );
    let text = prompts(2, &device);
    let full = text
        .clone()
        .with_pooled(Tensor::zeros([2, 5], &device))
        .with_time_ids(Tensor::zeros([2, 6], &device));
    assert!(plain.check_condition(&text).is_ok());
    assert!(sized.check_condition(&full).is_ok());
    for (unet, condition, part) in [
        (&plain, full.clone(), "does not use"),
        (&sized, text.clone(), "pooled"),
        (
            &sized,
            text.clone().with_pooled(Tensor::zeros([2, 5], &device)),
            "sizes",
        ),
        (
            &sized,
            full.clone().with_pooled(Tensor::zeros([2, 4], &device)),
            "[2, 5]",
        ),
        (
            &sized,
            full.clone().with_time_ids(Tensor::zeros([2, 5], &device)),
            "[2, 6]",
        ),
        (
            &plain,
            TextCondition::new(Tensor::zeros([2, 3, 7], &device)),
            "[2, 3, 6]",
        ),
    ] {
        let error = unet.check_condition(&condition).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_path_is_counted_in_thousandths() {
    let device = Device::flex();
    let unet = small().init(&device).unwrap();
    let noisy = Tensor::random([2, 4, 4, 4], Distribution::Normal(0.0, 1.0), &device);
    let with = |predicted| unet.clone().with_prediction_type(predicted);
    assert_path_is_counted_in_thousandths(with, &noisy, &prompts(2, &device));
}

#[test]
fn every_part_of_the_condition_changes_the_prediction() {
    let device = Device::flex();
    let unet = large().init(&device).unwrap();
    let noisy = Tensor::random([1, 4, 6, 10], Distribution::Normal(0.0, 1.0), &device);
    let predict = |condition: &TextCondition| {
        unet.predict(noisy.clone(), Tensor::from_data([9.0], &device), condition)
    };
    let full = prompts(1, &device)
        .with_pooled(Tensor::ones([1, 5], &device))
        .with_time_ids(Tensor::ones([1, 6], &device));
    let output = predict(&full);
    assert_eq!(output.dims(), [1, 4, 6, 10]);
    for other in [
        TextCondition {
            hidden_states: full.hidden_states.clone() + 1.0,
            ..full.clone()
        },
        full.clone().with_pooled(Tensor::zeros([1, 5], &device)),
        full.clone().with_time_ids(Tensor::zeros([1, 6], &device)),
    ] {
        let change = (predict(&other) - output.clone()).abs().max();
        assert!(change.into_scalar::<f32>() > 1e-5);
    }
}

#[test]
fn odd_sizes_keep_their_shape_and_rows_do_not_mix() {
    let device = Device::flex();
    let unet = small().init(&device).unwrap();
    let noisy = Tensor::random([2, 4, 5, 7], Distribution::Normal(0.0, 1.0), &device);
    let timesteps = Tensor::from_data([3.0, 800.0], &device);
    let text = prompts(2, &device);
    let together = unet.predict(noisy.clone(), timesteps.clone(), &text);
    assert_eq!(together.dims(), [2, 4, 5, 7]);
    let alone = unet.predict(
        noisy.narrow(0, 1, 1),
        timesteps.narrow(0, 1, 1),
        &crate::Condition::take_rows(&text, &[1]),
    );
    let difference = (alone - together.narrow(0, 1, 1)).abs().max();
    assert!(difference.into_scalar::<f32>() < 1e-5);
}

#[test]
fn a_saved_network_is_read_back() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let unet = large().init(&device).unwrap();
    unet.save(folder.path()).unwrap();
    let back = UNet2dCondition::load(folder.path(), &device).unwrap();
    assert_eq!(back.config(), unet.config());
    let [one, other] = [&unet, &back].map(|unet| {
        let condition = TextCondition::new(Tensor::ones([1, 3, 6], &device))
            .with_pooled(Tensor::ones([1, 5], &device))
            .with_time_ids(Tensor::ones([1, 6], &device));
        let noisy = Tensor::ones([1, 4, 8, 8], &device);
        unet.predict(noisy, Tensor::from_data([9.0], &device), &condition)
    });
    assert_eq!((one - other).abs().max().into_scalar::<f32>(), 0.0);
}

/// The attack by embeddings goes through the whole network, and leaves it as it is.
#[test]
fn an_embedding_is_searched_in_a_frozen_network() {
    let device = Device::flex();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/sd2_tiny");
    let network = UNet2dCondition::load(folder, &device).unwrap();
    let before = crate::checkpoint::model_fingerprint(&network).unwrap();
    let config = network.config();
    let side = config.sample_size.map_or(8, |size| size.sides()[0]);
    let shape = [1, config.in_channels, side, side];
    let random = |row| crate::draws::normal_noise(shape, 5, 0, row, Stream::Evaluation, &device);
    let states = [1, 7, config.cross_attention_dim];
    let states = crate::draws::normal_noise(states, 6, 0, 0, Stream::Evaluation, &device);
    let start = TextCondition::new(states.clone());
    let scheduler = crate::DdpmScheduler::scaled_linear(1000).unwrap();
    let search = EmbeddingSearch {
        steps: 20,
        ..EmbeddingSearch::default()
    };
    let point = random(0);
    let found = search.run(&network, &scheduler, &point, &start).unwrap();
    let mean = |steps: &[Vec<f64>]| steps.iter().map(|it| it[0]).sum::<f64>() / steps.len() as f64;
    let (early, late) = (mean(&found.losses[..5]), mean(&found.losses[15..]));
    assert!(late < early, "{early} {late}");

    let loss = DenoisingLoss {
        noises: 8,
        ..DenoisingLoss::at([200.0, 600.0])
    };
    let loss = |condition| {
        loss.measure(&network, &scheduler, &point, condition)
            .unwrap()
    };
    let (plain, attacked) = (loss(&start).concat(), loss(&found.condition).concat());
    assert!(
        attacked.iter().sum::<f64>() < plain.iter().sum(),
        "{plain:?} {attacked:?}"
    );
    assert_ne!(
        found.condition.hidden_states.into_data(),
        states.into_data()
    );
    assert_eq!(
        crate::checkpoint::model_fingerprint(&network).unwrap(),
        before
    );
}
