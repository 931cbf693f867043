use burn::tensor::Distribution;

use super::*;

fn small() -> AutoencoderKlConfig {
    AutoencoderKlConfig {
        block_out_channels: vec![8, 8],
        layers_per_block: 1,
        norm_num_groups: 4,
        latent_channels: 2,
        ..AutoencoderKlConfig::default()
    }
}

fn distance(one: Tensor<4>, other: Tensor<4>) -> f32 {
    (one - other).abs().max().into_scalar()
}

/// `latent = (z − shift) · scale`, and pictures come from `z = latent / scale + shift`.
#[test]
fn latents_are_shifted_and_then_scaled() {
    let device = Device::flex();
    let config = AutoencoderKlConfig {
        scaling_factor: 1.5305,
        shift_factor: Some(0.0609),
        ..small()
    };
    let autoencoder = config.init(&device).unwrap();
    let images = Tensor::random([2, 3, 8, 4], Distribution::Uniform(-1.0, 1.0), &device);
    let mode = autoencoder.encode(images.clone()).unwrap().mean;
    let latent = autoencoder.latent(images.clone()).unwrap();
    let expected = (mode.clone() - 0.0609) * 1.5305;
    assert!(distance(latent.clone(), expected) < 1e-6);
    let image = autoencoder.image(latent.clone()).unwrap();
    assert!(distance(image, autoencoder.decode(mode).unwrap()) < 1e-5);
    // The mode, so that the same picture has the same latent every time.
    assert_eq!(distance(autoencoder.latent(images).unwrap(), latent), 0.0);
}

#[test]
fn pictures_that_do_not_fit_are_refused_with_their_size() {
    let device = Device::flex();
    let autoencoder = small().init(&device).unwrap();
    for (shape, part) in [
        ([1, 1, 8, 8], "[1, 1, 8, 8]"),
        ([1, 3, 7, 8], "7x8"),
        ([1, 3, 8, 7], "8x7"),
    ] {
        let error = autoencoder
            .latent(Tensor::zeros(shape, &device))
            .unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let latents = Tensor::zeros([1, 3, 4, 4], &device);
    assert!(autoencoder.image(latents).is_err());
}

#[test]
fn values_that_are_not_implemented_are_refused_by_name() {
    for (key, text) in [
        ("latents_mean", r#"{"latents_mean": [0.1, 0.2, 0.3, 0.4]}"#),
        ("latents_std", r#"{"latents_std": [1, 1, 1, 1]}"#),
        (
            "_class_name",
            r#"{"_class_name": "AsymmetricAutoencoderKL"}"#,
        ),
        (
            "down_block_types",
            r#"{"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"]}"#,
        ),
        (
            "up_block_types",
            r#"{"up_block_types": ["UpDecoderBlock2D"]}"#,
        ),
        ("scaling_factor", r#"{"scaling_factor": 0}"#),
        ("norm_num_groups", r#"{"norm_num_groups": 48}"#),
        ("new_option", r#"{"new_option": 1}"#),
    ] {
        match AutoencoderKlConfig::from_json(text, "config.json") {
            Err(Error::UnsupportedConfig { key: refused, .. }) => assert_eq!(refused, key),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_saved_autoencoder_is_read_back_alone_or_in_a_pipeline() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    for use_quant_conv in [true, false] {
        let config = AutoencoderKlConfig {
            use_quant_conv,
            use_post_quant_conv: use_quant_conv,
            ..small()
        };
        let autoencoder = config.init(&device).unwrap();
        let inside = folder.path().join("vae");
        autoencoder.save(&inside).unwrap();
        let images = Tensor::ones([1, 3, 4, 4], &device);
        for place in [folder.path(), &inside] {
            let back = AutoencoderKl::load(place, &device).unwrap();
            assert_eq!(back.config(), autoencoder.config());
            let [one, other] = [&back, &autoencoder].map(|vae| vae.latent(images.clone()).unwrap());
            assert_eq!(distance(one, other), 0.0);
        }
    }
}
