use super::*;
use crate::error::Error;

/// google/ddpm-celebahq-256, as published.
pub(in crate::models) const CELEBAHQ: &str = r#"{
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu",
    "attention_head_dim": null, "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": false,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "in_channels": 3,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32,
    "out_channels": 3, "sample_size": 256, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]
}"#;

fn refusal(text: &str) -> (String, String, String) {
    match UNet2dConfig::from_json(text, "config.json") {
        Err(Error::UnsupportedConfig {
            key, value, remedy, ..
        }) => (key, value, remedy),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_published_configuration_is_read() {
    let config = UNet2dConfig::from_json(CELEBAHQ, "config.json").unwrap();
    assert_eq!(config.sample_size, Some([256, 256]));
    assert_eq!(config.attention_head_dim, None);
    assert_eq!(config.freq_shift, 1);
    assert_eq!(config.norm_eps, 1e-6);
    assert_eq!(config.down_block_types[4], DownBlockType::Attention);
    assert_eq!(config.up_block_types[1], UpBlockType::Attention);
    assert_eq!(config.attended_channels(), [512, 512, 512]);
}

#[test]
fn absent_keys_have_the_defaults_of_diffusers() {
    let config = UNet2dConfig::from_json("{}", "config.json").unwrap();
    assert_eq!(config, UNet2dConfig::default());
    assert_eq!(config.embedding_size(), 896);
}

#[test]
fn what_is_written_is_read_back() {
    let mut config = UNet2dConfig::from_json(CELEBAHQ, "config.json").unwrap();
    for sample_size in [None, Some([64, 64]), Some([32, 96])] {
        config.sample_size = sample_size;
        let text = config.to_json();
        assert_eq!(
            UNet2dConfig::from_json(&text, "config.json").unwrap(),
            config
        );
        let through_serde: UNet2dConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(through_serde, config);
    }
}

#[test]
fn values_that_are_not_implemented_are_refused_by_name() {
    for (key, value) in [
        ("_class_name", r#""UNet2DConditionModel""#),
        ("time_embedding_type", r#""fourier""#),
        ("time_embedding_type", r#""learned""#),
        ("mid_block_type", r#""UNetMidBlock2DCrossAttn""#),
        ("downsample_type", r#""fir""#),
        ("upsample_type", r#""fir""#),
        ("dropout", "1.5"),
        ("act_fn", r#""gelu""#),
        ("resnet_time_scale_shift", r#""spatial""#),
        ("class_embed_type", r#""projection""#),
        ("num_class_embeds", r#""ten""#),
        ("down_block_types", r#"["SkipDownBlock2D"]"#),
        ("up_block_types", r#"["SkipUpBlock2D"]"#),
        ("norm_num_groups", "null"),
        ("in_channels", "-1"),
        ("sample_size", r#""large""#),
        ("some_new_option", "true"),
    ] {
        let (refused, got, _) = refusal(&format!("{{\"{key}\": {value}}}"));
        assert_eq!(refused, key);
        let compact = value.replace(", ", ",");
        assert_eq!(got, format!("`{compact}`"));
    }
}

#[test]
fn all_that_is_not_of_score_models_is_read_and_written_back() {
    for text in [
        r#"{"num_class_embeds": 10}"#,
        r#"{"class_embed_type": "timestep"}"#,
        r#"{"class_embed_type": "identity"}"#,
        r#"{"resnet_time_scale_shift": "scale_shift"}"#,
        r#"{"downsample_type": "resnet", "upsample_type": "resnet"}"#,
        r#"{"mid_block_type": null}"#,
        r#"{"block_out_channels": [32, 32], "down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "ResnetUpsampleBlock2D"]}"#,
    ] {
        let config = UNet2dConfig::from_json(text, "config.json").unwrap();
        let written = config.to_json();
        assert_eq!(
            UNet2dConfig::from_json(&written, "config.json").unwrap(),
            config
        );
        let written: serde_json::Value = serde_json::from_str(&written).unwrap();
        let given: serde_json::Value = serde_json::from_str(text).unwrap();
        for (key, value) in given.as_object().unwrap() {
            assert_eq!(&written[key], value, "{key}");
        }
    }
}

#[test]
fn a_refusal_says_what_is_supported() {
    let (_, _, remedy) = refusal(r#"{"down_block_types": ["SkipDownBlock2D"]}"#);
    assert!(
        remedy.contains("DownBlock2D") && remedy.contains("AttnDownBlock2D"),
        "{remedy}"
    );
    let (_, _, remedy) = refusal(r#"{"act_fn": "gelu"}"#);
    assert!(remedy.contains("silu"), "{remedy}");
}

#[test]
fn equivalent_spellings_are_accepted() {
    for text in [
        r#"{"act_fn": "swish", "dropout": 0}"#,
        r#"{"dropout": 0.1}"#,
        r#"{"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]}"#,
        r#"{"class_embed_type": null, "num_class_embeds": null, "num_train_timesteps": 1000}"#,
    ] {
        assert!(
            UNet2dConfig::from_json(text, "config.json").is_ok(),
            "{text}"
        );
    }
}

#[test]
fn illegal_values_are_refused_by_name() {
    for (key, text) in [
        ("in_channels", r#"{"in_channels": 0}"#),
        ("out_channels", r#"{"out_channels": 100000000000}"#),
        ("layers_per_block", r#"{"layers_per_block": 0}"#),
        ("layers_per_block", r#"{"layers_per_block": 4000000000}"#),
        ("downsample_padding", r#"{"downsample_padding": 2}"#),
        ("norm_eps", r#"{"norm_eps": 0}"#),
        ("mid_block_scale_factor", r#"{"mid_block_scale_factor": 0}"#),
        ("time_embedding_dim", r#"{"time_embedding_dim": 0}"#),
        ("norm_num_groups", r#"{"norm_num_groups": 0}"#),
        ("norm_num_groups", r#"{"norm_num_groups": 33}"#),
        ("attn_norm_num_groups", r#"{"attn_norm_num_groups": 33}"#),
        ("attention_head_dim", r#"{"attention_head_dim": 0}"#),
        ("attention_head_dim", r#"{"attention_head_dim": 9}"#),
        ("block_out_channels", r#"{"block_out_channels": []}"#),
        (
            "block_out_channels",
            r#"{"block_out_channels": [32, 0, 32, 32]}"#,
        ),
        (
            "block_out_channels",
            r#"{"block_out_channels": [32, 32, 32, 18446744073709551615]}"#,
        ),
        (
            "down_block_types",
            r#"{"block_out_channels": [32, 32, 32]}"#,
        ),
        ("up_block_types", r#"{"up_block_types": ["UpBlock2D"]}"#),
        ("freq_shift", r#"{"freq_shift": 112}"#),
    ] {
        assert_eq!(refusal(text).0, key, "{text}");
    }
}

#[test]
fn settings_made_in_code_are_checked_too() {
    let config = UNet2dConfig {
        norm_eps: f64::NAN,
        ..UNet2dConfig::default()
    };
    let error = config.init(&Device::flex()).unwrap_err().to_string();
    assert!(
        error.contains("norm_eps") && error.contains("NaN"),
        "{error}"
    );
}

#[test]
fn a_divisor_that_nothing_uses_is_not_checked() {
    let config = UNet2dConfig {
        down_block_types: vec![DownBlockType::Resnet; 4],
        up_block_types: vec![UpBlockType::Resnet; 4],
        add_attention: false,
        attention_head_dim: Some(9),
        attn_norm_num_groups: Some(33),
        ..UNet2dConfig::default()
    };
    assert!(config.init(&Device::flex()).is_ok());
}

#[test]
fn text_that_is_no_object_is_an_invalid_file() {
    for text in ["", "[]", "{\"in_channels\": ", "\u{0}", "{\"a\": nan}"] {
        let error = UNet2dConfig::from_json(text, "config.json");
        assert!(matches!(error, Err(Error::InvalidFile { .. })), "{text}");
    }
}

/// The keys that `EMAModel.save_pretrained` writes.
#[test]
fn the_keys_of_averages_are_passed_over() {
    let text = r#"{"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 3, "power": 0.75,
        "update_after_step": 0, "use_ema_warmup": true, "in_channels": 1}"#;
    let config = UNet2dConfig::from_json(text, "config.json").unwrap();
    assert_eq!(config.in_channels, 1);
    assert!(!config.to_json().contains("decay"));
}

#[test]
fn all_unknown_keys_are_named_at_once() {
    let text = r#"{"colour": "red", "decay": 1, "shade": 3, "tint": null, "act_fn": "gelu"}"#;
    let error = UNet2dConfig::from_json(text, "config.json")
        .unwrap_err()
        .to_string();
    for part in [
        "`colour`",
        "`shade` (3)",
        "`tint` (null)",
        "`act_fn`",
        "gelu",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("decay"), "{error}");
}

/// Settings that the weights depend on cannot be changed to another value.
#[test]
fn no_refusal_of_another_network_advises_another_setting() {
    for text in [
        r#"{"class_embed_type": "projection"}"#,
        r#"{"resnet_time_scale_shift": "spatial"}"#,
        r#"{"downsample_type": "fir"}"#,
        r#"{"time_embedding_type": "fourier"}"#,
        r#"{"down_block_types": ["AttnSkipDownBlock2D"]}"#,
        r#"{"_class_name": "UNet2DConditionModel"}"#,
    ] {
        let (_, _, remedy) = refusal(text);
        assert!(
            remedy.contains("siss::Denoiser") && !remedy.contains("set it to"),
            "{remedy}"
        );
    }
}

#[test]
fn numbers_that_only_python_writes_are_named() {
    let (key, value, _) = refusal(r#"{"norm_eps": NaN}"#);
    assert_eq!((key.as_str(), value.as_str()), ("norm_eps", "`\"NaN\"`"));
    let (key, value, _) = refusal(r#"{"mid_block_scale_factor": -Infinity}"#);
    assert_eq!(
        (key.as_str(), value.as_str()),
        ("mid_block_scale_factor", "`\"-Infinity\"`")
    );
}

/// diffusers joins the halved feature maps with those it doubled.
#[test]
fn sizes_that_do_not_halve_are_refused_with_the_nearest_that_do() {
    let config = |size: &str, stages: usize| {
        let list = |kind: &str| vec![format!("\"{kind}\""); stages].join(",");
        let text = format!(
            r#"{{"sample_size": {size}, "block_out_channels": [{}], "down_block_types": [{}], "up_block_types": [{}]}}"#,
            vec!["32"; stages].join(","),
            list("DownBlock2D"),
            list("UpBlock2D")
        );
        UNet2dConfig::from_json(&text, "config.json").map_err(|error| error.to_string())
    };
    for (size, stages) in [
        ("30", 1),
        ("30", 2),
        ("28", 3),
        ("32", 6),
        ("[28, 30]", 2),
        ("null", 6),
    ] {
        assert!(config(size, stages).is_ok(), "{size} in {stages} stages");
    }
    for (size, stages, nearest) in [
        ("30", 3, "28x28 or 32x32"),
        ("[30, 32]", 3, "28x32 or 32x32"),
        ("28", 4, "24x24 or 32x32"),
        ("3", 3, "as 4x4"),
        ("0", 2, "as 2x2"),
        ("1", 2, "as 2x2"),
    ] {
        let error = config(size, stages).unwrap_err();
        assert!(
            error.contains("sample_size") && error.contains(nearest),
            "{error}"
        );
    }
}
