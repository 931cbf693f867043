use std::path::Path;

use burn::tensor::Distribution;

use super::*;
use crate::denoiser::Denoiser;
use crate::models::{
    ConditionDownBlockType, ConditionUpBlockType, TextCondition, UNet2dCondition,
    UNet2dConditionConfig,
};

fn network() -> UNet2dCondition {
    let config = UNet2dConditionConfig {
        block_out_channels: vec![8, 8],
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
        attention_head_dim: crate::models::PerStage::Same(2),
        cross_attention_dim: 6,
        ..UNet2dConditionConfig::default()
    };
    config.init(&Device::flex()).unwrap()
}

fn output(network: &UNet2dCondition) -> Vec<f32> {
    let device = Device::flex();
    let ramp = |count: i64| Tensor::<1, burn::tensor::Int>::arange(0..count, &device).float();
    let noisy = ramp(64).div_scalar(32.0).reshape([1, 4, 4, 4]);
    let prompts = TextCondition::new(ramp(18).div_scalar(9.0).reshape([1, 3, 6]));
    let output = network.predict(noisy, Tensor::from_data([7.0], &device), &prompts);
    output.into_data().try_to_vec().unwrap()
}

fn distance(one: &[f32], other: &[f32]) -> f32 {
    let pairs = one.iter().zip(other);
    pairs
        .map(|(one, other)| (one - other).abs())
        .fold(0.0, f32::max)
}

/// Factors with random `B`, of attention and of a convolution.
fn random(network: &UNet2dCondition) -> Lora {
    let targets = ["to_q", "to_out.0", "ff.net.0.proj", "conv1", "proj_in"];
    let mut lora = Lora::new(network, LoraPart::Unet, &targets, 2, 1).unwrap();
    for layer in &mut lora.layers {
        let shape = layer.up.shape().to_vec();
        let count: usize = shape.iter().product();
        let random = Tensor::<1>::random([count], Distribution::Normal(0.0, 1.0), &Device::flex());
        layer.up = reshaped(random.into_data(), shape).unwrap();
    }
    lora
}

#[test]
fn fresh_factors_change_nothing_and_are_only_where_they_were_asked_for() {
    let network = network();
    let lora = Lora::new(&network, LoraPart::Unet, &["to_q", "conv1"], 2, 1).unwrap();
    assert!(
        lora.layers
            .iter()
            .all(|layer| layer.stem.ends_with("to_q") || layer.stem.ends_with("conv1"))
    );
    let plain = output(&network);
    let attached = lora.attach(network.clone(), LoraPart::Unet).unwrap();
    assert_eq!(distance(&output(&attached), &plain), 0.0);
    let error = Lora::new(&network, LoraPart::Unet, &["no_layer"], 2, 1).unwrap_err();
    assert!(error.to_string().contains("no_layer"), "{error}");
}

#[test]
fn attached_and_merged_factors_are_the_same_function() {
    let network = network();
    let (lora, plain) = (random(&network), output(&network));
    let merged = output(&lora.merge(network.clone(), LoraPart::Unet).unwrap());
    let attached = output(&lora.attach(network, LoraPart::Unet).unwrap());
    assert!(distance(&merged, &plain) > 1e-2);
    assert!(distance(&merged, &attached) < 1e-4);
}

#[test]
fn only_the_factors_are_trained() {
    let network = network().train();
    let lora = random(&network);
    let attached = lora.attach(network, LoraPart::Unet).unwrap();
    let trained: Vec<String> = parameters(&attached)
        .into_iter()
        .filter(|parameter| parameter.to_string().ends_with("trained"))
        .map(|parameter| parameter.name)
        .collect();
    assert_eq!(trained.len(), 2 * lora.num_layers(), "{trained:?}");
    assert!(
        trained.iter().all(|name| name.contains(".lora.")),
        "{trained:?}"
    );
}

#[test]
fn factors_come_back_and_are_saved_in_the_spelling_they_came_in() {
    let folder = tempfile::tempdir().unwrap();
    let network = network();
    for spelling in [
        Spelling::Kohya,
        Spelling::Diffusers,
        Spelling::DiffusersOld,
        Spelling::Processor,
    ] {
        let mut lora = random(&network);
        lora.layers.retain(|layer| layer.stem.contains(".attn"));
        for layer in &mut lora.layers {
            let path = layer.stem.strip_prefix("unet.").unwrap().to_string();
            layer.spelling = spelling;
            layer.stem = match spelling {
                Spelling::Kohya => format!("lora_unet_{}", path.replace('.', "_")),
                Spelling::Processor => {
                    let path = path.strip_suffix(".0").unwrap_or(&path);
                    let (block, name) = path.rsplit_once('.').unwrap();
                    format!("unet.{block}.processor.{name}")
                }
                _ => layer.stem.clone(),
            };
        }
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        lora.save(&first).unwrap();
        let read = Lora::load(&first).unwrap();
        let merged = read.merge(network.clone(), LoraPart::Unet).unwrap();
        let attached = read.attach(network.clone(), LoraPart::Unet).unwrap();
        assert!(distance(&output(&merged), &output(&attached)) < 1e-4);
        assert!(
            distance(&output(&merged), &output(&network)) > 1e-3,
            "{spelling:?}"
        );
        read.trained(&attached, LoraPart::Unet)
            .unwrap()
            .save(&second)
            .unwrap();
        assert_eq!(
            std::fs::read(first).unwrap(),
            std::fs::read(second).unwrap()
        );
    }
}

/// The scale follows from `α` of the file, then from the settings beside it.
#[test]
fn the_scale_is_alpha_over_rank() {
    let settings = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
        Scales::beside(&folder.path().join("adapter_model.safetensors"))
    };
    let none = Scales::beside(Path::new("nowhere/x.safetensors")).unwrap();
    let (kohya, peft) = (Spelling::Kohya, Spelling::Diffusers);
    assert_eq!(none.scale(kohya, "a", 4, Some(1.0)), 0.25);
    assert_eq!(none.scale(kohya, "a", 4, Some(0.0)), 1.0);
    assert_eq!(none.scale(kohya, "a", 4, None), 1.0);
    assert_eq!(none.scale(peft, "a", 4, None), 1.0);
    let plain = settings(r#"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}}"#).unwrap();
    assert_eq!(plain.scale(peft, "block.to_k", 4, None), 2.0);
    assert_eq!(plain.scale(peft, "block.to_q", 4, None), 0.5);
    assert_eq!(plain.scale(peft, "block.to_k", 16, None), 0.5);
    assert_eq!(plain.scale(peft, "block.to_k", 4, Some(4.0)), 1.0);
    assert_eq!(plain.scale(kohya, "block_to_k", 4, None), 1.0);
    let stabilised = settings(r#"{"lora_alpha": 8, "use_rslora": true}"#).unwrap();
    assert_eq!(stabilised.scale(peft, "a", 16, None), 2.0);
    let error = settings(r#"{"use_dora": true}"#).unwrap_err().to_string();
    assert!(error.contains("use_dora"), "{error}");
}

#[test]
fn the_settings_that_hold_the_scale_are_written_beside_the_factors() {
    let [from, to, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let settings = |folder: &tempfile::TempDir| folder.path().join("adapter_config.json");
    let file = |folder: &tempfile::TempDir| folder.path().join("adapter_model.safetensors");
    let network = network();
    random(&network).save(file(&from)).unwrap();
    assert!(!settings(&from).exists(), "new factors have no settings");
    let text = r#"{"r": 2, "lora_alpha": 0.5, "peft_type": "LORA"}"#;
    std::fs::write(settings(&from), text).unwrap();
    let lora = Lora::load(from.path()).unwrap();
    lora.save(file(&to)).unwrap();
    assert_eq!(std::fs::read_to_string(settings(&to)).unwrap(), text);
    let merged = |lora: &Lora| output(&lora.merge(network.clone(), LoraPart::Unet).unwrap());
    let again = Lora::load(to.path()).unwrap();
    assert_eq!(merged(&again), merged(&lora));
    lora.save(file(&to)).unwrap();

    std::fs::write(settings(&other), r#"{"lora_alpha": 2}"#).unwrap();
    let error = lora.save(file(&other)).unwrap_err().to_string();
    assert!(error.contains("other factors"), "{error}");
    assert!(!file(&other).exists());
}

#[test]
fn tensors_of_other_methods_are_refused_by_name() {
    for (name, method) in [
        ("lora_unet_x.dora_scale", "DoRA"),
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.lora_mid.weight", "third factor"),
        ("lora_unet_x.diff_b", "biases"),
        ("lora_unet_x.diff", "weights"),
        ("unet.x.lora_magnitude_vector", "DoRA"),
        ("conv.weight", "not a factor"),
    ] {
        let Err(detail) = names::key(name) else {
            panic!("{name} was accepted");
        };
        assert!(detail.contains(method), "{name}: {detail}");
    }
}

#[test]
fn factors_that_do_not_fit_are_refused_by_name() {
    let network = network();
    let refusal = |change: fn(&mut Layer)| {
        let mut lora = random(&network);
        change(&mut lora.layers[0]);
        lora.merge(network.clone(), LoraPart::Unet)
            .unwrap_err()
            .to_string()
    };
    let error = refusal(|layer| layer.stem = "unet.mid_block.nothing".into());
    assert!(error.contains("unet.mid_block.nothing"), "{error}");
    let error = refusal(|layer| layer.down = TensorData::zeros::<f32, _>([1, 2, 3]));
    assert!(error.contains("[1, 2, 3]"), "{error}");
    let error = random(&network)
        .merge(network, LoraPart::TextEncoder)
        .unwrap_err();
    assert!(error.to_string().contains("text encoder"), "{error}");
}

#[test]
fn parts_of_a_pipeline_are_told_apart() {
    for (stem, spelling, part) in [
        ("lora_unet_down_blocks_0", Spelling::Kohya, LoraPart::Unet),
        (
            "lora_te_text_model_x",
            Spelling::Kohya,
            LoraPart::TextEncoder,
        ),
        (
            "lora_te1_text_model_x",
            Spelling::Kohya,
            LoraPart::TextEncoder,
        ),
        (
            "lora_te2_text_model_x",
            Spelling::Kohya,
            LoraPart::TextEncoder2,
        ),
        ("unet.down_blocks.0", Spelling::Diffusers, LoraPart::Unet),
        (
            "text_encoder.text_model",
            Spelling::Diffusers,
            LoraPart::TextEncoder,
        ),
        (
            "text_encoder_2.text_model",
            Spelling::Diffusers,
            LoraPart::TextEncoder2,
        ),
        (
            "transformer.blocks",
            Spelling::Diffusers,
            LoraPart::Transformer,
        ),
    ] {
        let all = [
            LoraPart::Unet,
            LoraPart::TextEncoder,
            LoraPart::TextEncoder2,
        ];
        for other in all {
            assert_eq!(other.has(spelling, stem), other == part, "{stem} {other}");
        }
    }
    // A folder of peft holds one network and does not name it.
    let stem = "base_model.model.down_blocks.0.to_q";
    assert!(LoraPart::Unet.has(Spelling::Diffusers, stem));
}

/// Queries of eight channels have factors of 2 × 8 and 8 × 2.
#[test]
fn values_are_counted_by_part() {
    let lora = Lora::new(&network(), LoraPart::Unet, &["to_q"], 2, 1).unwrap();
    assert!(lora.has(LoraPart::Unet) && !lora.has(LoraPart::TextEncoder));
    assert_eq!(lora.num_params(LoraPart::Unet), 32 * lora.num_layers());
    assert_eq!(lora.num_params(LoraPart::TextEncoder), 0);
}

/// What a trainer leaves is the untouched network with the factors that come back.
#[test]
fn a_trainer_changes_the_factors_and_nothing_else() {
    let device = Device::flex();
    let network = network();
    let lora = random(&network);
    let attached = lora.attach(network.clone(), LoraPart::Unet).unwrap();
    let scheduler = crate::DdpmScheduler::linear(1000).unwrap();
    let builder = crate::SissTrainer::builder(attached, scheduler).learning_rate(1e-2);
    let mut trainer = builder.build().unwrap();
    let points = |seed| normal_noise([2, 4, 4, 4], seed, 0, 0, Stream::Evaluation, &device);
    let prompts = TextCondition::new(Tensor::ones([2, 3, 6], &device));
    let batch =
        crate::UnlearningBatch::with_conditions(points(1), points(2), prompts.clone(), prompts);
    trainer.step(batch.unwrap()).unwrap();
    let after = trainer.into_model();
    let trained = lora.trained(&after, LoraPart::Unet).unwrap();
    let merged = trained.merge(network.clone(), LoraPart::Unet).unwrap();
    assert!(distance(&output(&after), &output(&merged)) < 1e-4);
    let before = lora.merge(network, LoraPart::Unet).unwrap();
    assert!(distance(&output(&after), &output(&before)) > 1e-3);
}
