use std::path::Path;

use burn::tensor::{DType, Distribution};

use super::*;
use crate::denoiser::Denoiser;
use crate::models::{
    AdditionEmbedType, ClipTextConfig, ConditionDownBlockType, ConditionUpBlockType, PerStage,
    TextCondition, UNet2dCondition, UNet2dConditionConfig,
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
        attention_head_dim: PerStage::Same(2),
        cross_attention_dim: 6,
        ..UNet2dConditionConfig::default()
    };
    config.init(&Device::flex()).unwrap()
}

/// The layout of Stable Diffusion XL, with narrow stages and fewer transformer blocks.
fn xl() -> UNet2dCondition {
    use ConditionDownBlockType as Down;
    use ConditionUpBlockType as Up;
    let config = UNet2dConditionConfig {
        block_out_channels: vec![8, 12, 16],
        down_block_types: vec![Down::Resnet, Down::Attention, Down::Attention],
        up_block_types: vec![Up::Attention, Up::Attention, Up::Resnet],
        norm_num_groups: 4,
        attention_head_dim: PerStage::Same(2),
        cross_attention_dim: 6,
        transformer_layers_per_block: PerStage::Each(vec![1, 1, 2]),
        use_linear_projection: true,
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(4),
        projection_class_embeddings_input_dim: Some(30),
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

/// Layers of XL as diffusers calls them and as kohya's scripts do: those of a LoRA, then those that
/// a LoCon adds.
const OF_XL: [(&str, &str); 17] = [
    (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    ),
    (
        "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_k",
        "input_blocks_8_1_transformer_blocks_1_attn2_to_k",
    ),
    (
        "down_blocks.1.attentions.1.proj_in",
        "input_blocks_5_1_proj_in",
    ),
    (
        "mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj",
        "middle_block_1_transformer_blocks_1_ff_net_0_proj",
    ),
    (
        "up_blocks.0.attentions.2.proj_out",
        "output_blocks_2_1_proj_out",
    ),
    (
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
        "output_blocks_3_1_transformer_blocks_0_attn2_to_out_0",
    ),
    (
        "down_blocks.0.resnets.0.conv1",
        "input_blocks_1_0_in_layers_2",
    ),
    (
        "down_blocks.0.resnets.1.conv2",
        "input_blocks_2_0_out_layers_3",
    ),
    ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
    (
        "down_blocks.1.resnets.0.time_emb_proj",
        "input_blocks_4_0_emb_layers_1",
    ),
    (
        "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks_4_0_skip_connection",
    ),
    ("mid_block.resnets.1.conv2", "middle_block_2_out_layers_3"),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
    (
        "up_blocks.2.resnets.1.conv1",
        "output_blocks_7_0_in_layers_2",
    ),
    ("add_embedding.linear_1", "label_emb_0_0"),
    ("conv_in", "input_blocks_0_0"),
    ("conv_out", "out_2"),
];
/// The same of [`network`], whose projections are convolutions, as in versions 1.
const OF_1: [(&str, &str); 4] = [
    (
        "down_blocks.0.attentions.0.proj_in",
        "input_blocks_1_1_proj_in",
    ),
    (
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
        "output_blocks_3_1_transformer_blocks_0_attn2_to_v",
    ),
    (
        "down_blocks.0.resnets.0.time_emb_proj",
        "input_blocks_1_0_emb_layers_1",
    ),
    ("up_blocks.0.upsamplers.0.conv", "output_blocks_1_1_conv"),
];
const OF_ENCODER: [&str; 2] = [
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.1.mlp.fc1",
];

/// The weights of a network, as files have them.
fn weights<M: Module>(network: &M) -> BTreeMap<String, Vec<f32>> {
    let tensors = folder::collect(network).into_iter();
    let values = tensors.map(|tensor| {
        let name = tensor.name.clone();
        let data = data(tensor, Path::new("")).unwrap();
        (name, data.try_to_vec().unwrap())
    });
    values.collect()
}

/// Writes a file of kohya's scripts in half precision, with `α` 1 and rank 2, for layers of a
/// network and their names. Returns the change of each layer's weights.
fn kohya_file<M: Module>(
    network: &M,
    layers: &[(&str, String)],
    path: &Path,
) -> BTreeMap<String, Vec<f32>> {
    const RANK: usize = 2;
    let shapes = folder::expected_shapes(network);
    let (mut tensors, mut changes) = (Vec::new(), BTreeMap::new());
    for (number, (layer, name)) in layers.iter().enumerate() {
        let weight = format!("{layer}.weight");
        let shape = &shapes[&weight];
        let (mut down, mut up) = (shape.clone(), vec![1; shape.len()]);
        (down[0], up[0], up[1]) = (RANK, shape[0], RANK);
        let values = |count: usize, first: usize| -> Vec<f32> {
            let value = |index| ((index * 7 + first) % 23) as f32 / 16.0 - 0.7;
            (0..count)
                .map(value)
                .map(|value| (value * 64.0).round() / 64.0)
                .collect()
        };
        let inputs: usize = shape[1..].iter().product();
        let (a, b) = (
            values(RANK * inputs, number),
            values(shape[0] * RANK, number + 5),
        );
        let product = |row: usize, column: usize| -> f32 {
            (0..RANK)
                .map(|k| b[row * RANK + k] * a[k * inputs + column])
                .sum()
        };
        let places = (0..shape[0]).flat_map(|row| (0..inputs).map(move |column| (row, column)));
        let change = places.map(|(row, column)| product(row, column) / RANK as f32);
        changes.insert(weight, change.collect());
        for (ending, values, shape) in [
            ("lora_down.weight", a, down),
            ("lora_up.weight", b, up),
            ("alpha", vec![1.0], vec![]),
        ] {
            let data = TensorData::new(values, shape).convert_dtype(DType::F16);
            tensors.push(packed(format!("{name}.{ending}"), &data));
        }
    }
    let mut file = std::fs::File::create(path).unwrap();
    folder::write(tensors, &FileMetadata::new(), &mut file).unwrap();
    changes
}

/// Factors under these names change these layers, all of them and nothing else, by `α/r B A`, and
/// are saved under the same names.
fn assert_names_are_layers<M: Module>(network: &M, part: LoraPart, layers: &[(&str, String)]) {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let changes = kohya_file(network, layers, &first);
    assert_eq!(changes.len(), layers.len());
    let lora = Lora::load(&first).unwrap();
    let before = weights(network);
    for (name, after) in weights(&lora.merge(network.clone(), part).unwrap()) {
        let none = vec![0.0; after.len()];
        let change = changes.get(&name).unwrap_or(&none).iter();
        let expected: Vec<f32> = before[&name]
            .iter()
            .zip(change)
            .map(|(a, b)| a + b)
            .collect();
        assert!(distance(&after, &expected) < 1e-5, "{name}");
    }
    let attached = lora.attach(network.clone(), part).unwrap();
    let trained = lora.trained(&attached, part).unwrap();
    trained.save(&second).unwrap();
    assert_eq!(
        std::fs::read(first).unwrap(),
        std::fs::read(second).unwrap()
    );
}

#[test]
fn both_names_that_kohyas_scripts_give_to_a_layer_are_that_layer() {
    let cases: [(UNet2dCondition, &[(&str, &str)]); 2] = [(xl(), &OF_XL), (network(), &OF_1)];
    for (network, layers) in cases {
        let of_diffusers = |(path, _): &(&'static str, &str)| {
            (*path, format!("lora_unet_{}", path.replace('.', "_")))
        };
        let of_first = |(path, first): &(&'static str, &str)| (*path, format!("lora_unet_{first}"));
        let names: Vec<_> = layers.iter().map(of_diffusers).collect();
        assert_names_are_layers(&network, LoraPart::Unet, &names);
        let names: Vec<_> = layers.iter().map(of_first).collect();
        assert_names_are_layers(&network, LoraPart::Unet, &names);
    }
}

#[test]
fn factors_of_text_encoders_are_read_in_all_spellings_of_kohya() {
    let config = ClipTextConfig {
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        ..ClipTextConfig::default()
    };
    let encoder = config.init(&Device::flex()).unwrap();
    for (part, prefix) in [
        (LoraPart::TextEncoder, "lora_te"),
        (LoraPart::TextEncoder, "lora_te1"),
        (LoraPart::TextEncoder2, "lora_te2"),
    ] {
        let name = |path: &'static str| (path, format!("{prefix}_{}", path.replace('.', "_")));
        assert_names_are_layers(&encoder, part, &OF_ENCODER.map(name));
    }
}

#[test]
fn factors_that_would_be_passed_over_or_overwritten_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lora.safetensors");
    let network = network();
    let conv_in = |name: &str| ("conv_in", name.to_string());
    kohya_file(&network, &[conv_in("lora_te3_conv_in")], &file);
    let error = Lora::load(&file).unwrap_err().to_string();
    assert!(
        error.contains("lora_te3_conv_in") && error.contains("no part"),
        "{error}"
    );

    let both = [
        conv_in("lora_unet_conv_in"),
        conv_in("lora_unet_input_blocks_0_0"),
    ];
    kohya_file(&network, &both, &file);
    let error = Lora::load(&file).unwrap().merge(network, LoraPart::Unet);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("duplicate") && error.contains("lora_unet_"),
        "{error}"
    );
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

/// diffusers has the settings of each part in the header, under the part's name.
#[test]
fn the_scale_follows_from_settings_in_the_header() {
    let with = |scales: Scales, text: &str| {
        let metadata = FileMetadata::from([("lora_adapter_metadata".into(), text.into())]);
        scales.with_header(&metadata, Path::new("x.safetensors"))
    };
    let header = |text: &str| with(Scales::default(), text);
    let (kohya, peft) = (Spelling::Kohya, Spelling::Diffusers);
    let parts = header(
        r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 2}, "unet.use_dora": false,
            "text_encoder.lora_alpha": 2, "text_encoder.use_rslora": true}"#,
    );
    let parts = parts.unwrap();
    assert_eq!(parts.scale(peft, "unet.block.to_k", 4, None), 2.0);
    assert_eq!(parts.scale(peft, "unet.block.to_q", 4, None), 0.5);
    assert_eq!(parts.scale(peft, "unet.block.to_k", 4, Some(1.0)), 0.25);
    assert_eq!(parts.scale(peft, "text_encoder.x", 4, None), 1.0);
    assert_eq!(parts.scale(peft, "text_encoder_2.x", 4, None), 1.0);
    assert_eq!(parts.scale(kohya, "lora_unet_block_to_k", 4, None), 1.0);
    let one = header(r#"{"r": 4, "lora_alpha": 8}"#).unwrap();
    assert_eq!(one.scale(peft, "down_blocks.0.to_k", 4, None), 2.0);
    let without = header(r#"{"unet.target_modules": ["to_q"]}"#).unwrap();
    assert_eq!(without.scale(peft, "unet.to_q", 4, None), 1.0);

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("adapter_config.json"),
        r#"{"lora_alpha": 1}"#,
    )
    .unwrap();
    let beside = Scales::beside(&folder.path().join("x.safetensors")).unwrap();
    let both = with(beside, r#"{"unet.lora_alpha": 8}"#).unwrap();
    assert_eq!(both.scale(peft, "unet.to_q", 4, None), 2.0);
    assert_eq!(both.scale(peft, "text_encoder.x", 4, None), 0.25);

    for (text, says) in [
        (r#"{"unet.use_dora": true}"#, "use_dora"),
        ("alpha", "lora_adapter_metadata"),
    ] {
        let error = header(text).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// Facts of training stay, hashes of weights that are no longer those of the file do not.
#[test]
fn the_metadata_of_a_file_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let mut lora = random(&network());
    let facts: FileMetadata = [
        ("ss_network_dim", "2"),
        ("ss_tag_frequency", r#"{"hat": {"a \"red\" hat": 3}}"#),
        ("lora_adapter_metadata", r#"{"unet.lora_alpha": 8}"#),
    ]
    .map(|(name, text)| (name.into(), text.into()))
    .into();
    lora.metadata = facts.clone();
    for hash in [
        "sshs_model_hash",
        "sshs_legacy_hash",
        "modelspec.hash_sha256",
    ] {
        lora.metadata.insert(hash.into(), "0123".into());
    }
    lora.save(&first).unwrap();
    let read = Lora::load(&first).unwrap();
    assert!(read.layers.iter().all(|layer| layer.scale == 4.0));
    read.save(&second).unwrap();
    let bytes = std::fs::read(&second).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let written = header.metadata().clone().unwrap();
    assert_eq!(written.into_iter().collect::<FileMetadata>(), facts);
    // The order is fixed, so that the same file is the same bytes.
    for _ in 0..4 {
        read.save(&first).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), bytes);
    }
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
