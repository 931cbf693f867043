use std::fmt::Write as _;

use burn::tensor::{Bytes, DType, Distribution, Tensor, TensorData};
use sha2::{Digest, Sha256};

use super::open_clip::Kind;
use super::*;
use crate::denoiser::Denoiser;
use crate::models::folder::like;
use crate::models::{ConditionDownBlockType, ConditionUpBlockType, PerStage, TextCondition};

fn digest(lines: &mut [String]) -> String {
    lines.sort();
    let digest = Sha256::digest(lines.concat().as_bytes());
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The digests are those of names and shapes that diffusers 0.42's `convert_ldm_unet_checkpoint`
/// turns into exactly the tensors of its network.
#[test]
fn unets_have_the_names_of_published_files() {
    for (config, count, expected) in [
        (
            version_1(),
            686,
            "9f0e7b1bea92d1aa9c82058c586656a282159eff34e39a40d862779139e28fa8",
        ),
        (
            version_2(),
            686,
            "2eadac4df5c94323215ccd1f9f3472bf5556a556b54d1a41336fd7e3ee286b8c",
        ),
        (
            xl(),
            1680,
            "3697d2b34c652067c6a960df89b3e19d7a709e8f01c5065cb299cc01d9097157",
        ),
    ] {
        let unet = config.init(&Device::flex()).unwrap();
        let names = unet_names(&unet);
        let shapes = folder::expected_shapes(&unet);
        let line = |(name, shape): (&String, &Vec<usize>)| {
            format!("{UNET}{} {shape:?}\n", names.of(name).unwrap())
        };
        let mut lines: Vec<String> = shapes.iter().map(line).collect();
        assert_eq!(lines.len(), count);
        assert_eq!(digest(&mut lines), expected);
    }
}

/// As above, by `convert_ldm_vae_checkpoint`.
#[test]
fn autoencoders_have_the_names_of_published_files() {
    let autoencoder = AutoencoderKlConfig::default()
        .init(&Device::flex())
        .unwrap();
    let line = |(name, shape): (&String, &Vec<usize>)| {
        let mut shape = shape.clone();
        if name.contains("attentions") && shape.len() == 2 {
            shape.extend([1, 1]);
        }
        format!(
            "{AUTOENCODER}{} {shape:?}\n",
            names::autoencoder(name, 4).unwrap()
        )
    };
    let shapes = folder::expected_shapes(&autoencoder);
    let mut lines: Vec<String> = shapes.iter().map(line).collect();
    assert_eq!(lines.len(), 248);
    let expected = "ef95340b7d0b89479af7fce31de3dfd9d36ce22504227dc7671a5c40bfa2f885";
    assert_eq!(digest(&mut lines), expected);
}

/// As above, by `convert_open_clip_checkpoint`, without what it does not take: `logit_scale`, and
/// in version 2 the last layer and the projection.
#[test]
fn encoders_of_open_clip_have_the_names_of_published_files() {
    for (prefix, config, count, expected) in [
        (
            "cond_stage_model.model.",
            encoder_of_version_2(),
            280,
            "f1afbc93d84cb145bb99f021127b330abd4ba02876672ad88b350775f0a2f382",
        ),
        (
            "conditioner.embedders.1.model.",
            second_encoder_of_xl(),
            389,
            "d680b0ebb00ace0273882051080bf8d33c48bc9fcfffe6b7e8902480906f750b",
        ),
    ] {
        let encoder = config.init(&Device::flex()).unwrap();
        let line = |(name, mut shape): (String, Vec<usize>)| {
            let place = open_clip::place(&name).unwrap();
            match place.kind {
                Kind::Plain => {}
                Kind::Third(0) => shape[0] *= 3,
                Kind::Third(_) => return None,
                Kind::Transposed => shape.reverse(),
            }
            Some(format!("{prefix}{} {shape:?}\n", place.name))
        };
        let shapes = folder::expected_shapes(&encoder).into_iter();
        let mut lines: Vec<String> = shapes.filter_map(line).collect();
        assert_eq!(lines.len(), count);
        assert_eq!(digest(&mut lines), expected);
    }
}

fn small() -> UNet2dConditionConfig {
    UNet2dConditionConfig {
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
    }
}

/// A file with a UNet in half precision, an autoencoder, and other tensors.
fn file(unet: &UNet2dCondition, autoencoder: &AutoencoderKl, path: &Path) {
    let names = unet_names(unet);
    let stages = autoencoder.config().block_out_channels.len();
    let mut tensors = Vec::new();
    for mut tensor in folder::collect(unet) {
        let half = burn_pack::Tensor::new(
            String::new(),
            DType::F16,
            tensor.shape.clone(),
            None,
            Bytes::from_bytes_vec(vec![]),
        );
        tensor.name = format!("{UNET}{}", names.of(&tensor.name).unwrap());
        tensors.push(like(tensor, &half));
    }
    for mut tensor in folder::collect(autoencoder) {
        if tensor.name.contains("attentions") && tensor.shape[..].len() == 2 {
            tensor.shape = Shape::new([tensor.shape[0], tensor.shape[1], 1, 1]);
        }
        tensor.name = format!(
            "{AUTOENCODER}{}",
            names::autoencoder(&tensor.name, stages).unwrap()
        );
        tensors.push(tensor);
    }
    let one = || Bytes::from_bytes_vec(1f32.to_le_bytes().to_vec());
    for name in ["model_ema.decay", "alphas_cumprod"] {
        let tensor = burn_pack::Tensor::new(name.into(), DType::F32, [1], None, one());
        tensors.push(tensor);
    }
    let mut file = std::fs::File::create(path).unwrap();
    folder::write(tensors, &FileMetadata::new(), &mut file).unwrap();
}

fn output(unet: &UNet2dCondition, noisy: &Tensor<4>) -> Tensor<4> {
    let device = Device::flex();
    let prompts = TextCondition::new(Tensor::ones([1, 3, 6], &device));
    unet.predict(noisy.clone(), Tensor::from_data([7.0], &device), &prompts)
}

fn distance(one: Tensor<4>, other: Tensor<4>) -> f32 {
    (one - other).abs().max().into_scalar()
}

#[test]
fn a_file_comes_back_with_another_unet_and_without_the_average() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let unet = small().init(&device).unwrap();
    let config = AutoencoderKlConfig {
        block_out_channels: vec![8, 8, 8],
        layers_per_block: 1,
        norm_num_groups: 4,
        ..AutoencoderKlConfig::default()
    };
    let autoencoder = config.init(&device).unwrap();
    file(&unet, &autoencoder, &first);

    let read = SingleFile::open(&first).unwrap();
    let noisy = Tensor::random([1, 4, 8, 8], Distribution::Normal(0.0, 1.0), &device);
    let of_file = read.unet_with(&small(), &device).unwrap();
    assert!(distance(output(&of_file, &noisy), output(&unet, &noisy)) < 1e-2);
    let notes: Vec<String> = of_file.notes().iter().map(ToString::to_string).collect();
    assert!(
        notes.iter().any(|note| note.contains("moving average")),
        "{notes:?}"
    );
    let images = Tensor::ones([1, 3, 8, 8], &device);
    let of_file = read.autoencoder_with(&config, &device).unwrap();
    let [one, other] = [&of_file, &autoencoder].map(|vae| vae.latent(images.clone()).unwrap());
    assert_eq!(distance(one, other), 0.0);

    let changed = small().init(&device).unwrap();
    read.save_with(&changed, &second).unwrap();
    let written = SingleFile::open(&second).unwrap();
    assert!(!written.tensors.contains_key("model_ema.decay"));
    assert_eq!(written.tensors.len() + 1, read.tensors.len());
    for (name, tensor) in &written.tensors {
        let earlier = &read.tensors[name];
        assert_eq!(
            (tensor.dtype, &tensor.shape),
            (earlier.dtype, &earlier.shape),
            "{name}"
        );
    }
    let back = written.unet_with(&small(), &device).unwrap();
    assert!(distance(output(&back, &noisy), output(&changed, &noisy)) < 1e-2);

    // No tensor of the UNet before may stay.
    let twice = UNet2dConditionConfig {
        transformer_layers_per_block: PerStage::Same(2),
        ..small()
    };
    let larger = twice.init(&device).unwrap();
    file(&larger, &autoencoder, &first);
    let read = SingleFile::open(&first).unwrap();
    let error = read.save_with(&changed, &second).unwrap_err().to_string();
    assert!(
        error.contains("missing") && error.contains("transformer_blocks.1"),
        "{error}"
    );
}

/// What is written from parts is read back, bit by bit.
#[test]
fn a_file_is_written_from_its_parts() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let unet = small().init(&device).unwrap();
    let of_autoencoder = AutoencoderKlConfig {
        block_out_channels: vec![8, 8],
        layers_per_block: 1,
        norm_num_groups: 4,
        down_block_types: vec!["DownEncoderBlock2D".into(); 2],
        up_block_types: vec!["UpDecoderBlock2D".into(); 2],
        ..AutoencoderKlConfig::default()
    };
    let of_encoder = ClipTextConfig {
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        ..ClipTextConfig::default()
    };
    let autoencoder = of_autoencoder.init(&device).unwrap();
    let encoder = of_encoder.init(&device).unwrap();
    SingleFile::create(&path, &unet, &autoencoder, &encoder).unwrap();

    let read = SingleFile::open(&path).unwrap();
    let name = "first_stage_model.encoder.mid.attn_1.q.weight";
    assert_eq!(read.tensors[name].shape[..], [8, 8, 1, 1]);
    let noisy = Tensor::random([1, 4, 8, 8], Distribution::Normal(0.0, 1.0), &device);
    let of_file = read.unet_with(&small(), &device).unwrap();
    assert_eq!(
        distance(output(&of_file, &noisy), output(&unet, &noisy)),
        0.0
    );
    let images = Tensor::ones([1, 3, 8, 8], &device);
    let of_file = read.autoencoder_with(&of_autoencoder, &device).unwrap();
    let [one, other] = [&of_file, &autoencoder].map(|vae| vae.latent(images.clone()).unwrap());
    assert_eq!(distance(one, other), 0.0);
    let of_file = read.text_encoder_with(&of_encoder, &device).unwrap();
    let tokens = Tensor::from_data([[1, 2, 3]], &device);
    let [one, other] =
        [&of_file, &encoder].map(|it| it.encode(tokens.clone()).unwrap().last_hidden_state);
    assert_eq!((one - other).abs().max().into_scalar::<f32>(), 0.0);
}

fn small_encoder(has_projection: bool) -> ClipTextConfig {
    let kind = match has_projection {
        true => "CLIPTextModelWithProjection",
        false => "CLIPTextModel",
    };
    ClipTextConfig {
        architectures: vec![kind.into()],
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: 16,
        projection_dim: 6,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 5,
        eos_token_id: 9,
        ..ClipTextConfig::default()
    }
}

fn half(name: String, values: Vec<f32>, shape: Vec<usize>) -> burn_pack::Tensor {
    let data = TensorData::new(values, shape.clone()).convert_dtype(DType::F16);
    burn_pack::Tensor::new(name, DType::F16, shape, None, data.into_bytes())
}

/// An encoder in half precision and in the layout of OpenCLIP, put together by hand.
fn open_clip(encoder: &ClipTextEncoder, prefix: &str) -> Vec<burn_pack::Tensor> {
    let values = |name: &str| {
        let mut all = folder::collect(encoder).into_iter();
        let (_, dtype, shape, _, bytes) = all
            .find(|it| it.name == name)
            .unwrap()
            .into_parts()
            .unwrap();
        let data = TensorData::try_from_bytes(bytes, shape.clone(), dtype).unwrap();
        (data.try_to_vec::<f32>().unwrap(), shape.to_vec())
    };
    let mut tensors = Vec::new();
    let mut put = |name: String, (values, shape)| {
        tensors.push(half(format!("{prefix}{name}"), values, shape));
    };
    put(
        "token_embedding.weight".into(),
        values("text_model.embeddings.token_embedding.weight"),
    );
    put(
        "positional_embedding".into(),
        values("text_model.embeddings.position_embedding.weight"),
    );
    for parameter in ["weight", "bias"] {
        let norm = values(&format!("text_model.final_layer_norm.{parameter}"));
        put(format!("ln_final.{parameter}"), norm);
        for layer in 0..2 {
            let own = |name: &str| {
                values(&format!(
                    "text_model.encoder.layers.{layer}.{name}.{parameter}"
                ))
            };
            let [q, k, v] = ["q", "k", "v"].map(|name| own(&format!("self_attn.{name}_proj")));
            let mut shape = q.1.clone();
            shape[0] *= 3;
            let block = format!("transformer.resblocks.{layer}");
            put(
                format!("{block}.attn.in_proj_{parameter}"),
                ([q.0, k.0, v.0].concat(), shape),
            );
            for (name, there) in [
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ] {
                put(format!("{block}.{there}.{parameter}"), own(name));
            }
        }
    }
    if encoder.config().architectures[0].ends_with("WithProjection") {
        let (values, shape) = values("text_projection.weight");
        let (rows, columns) = (shape[0], shape[1]);
        let at = |index: usize| values[(index % rows) * columns + index / rows];
        put(
            "text_projection".into(),
            ((0..values.len()).map(at).collect(), vec![columns, rows]),
        );
    }
    put("logit_scale".into(), (vec![4.6], vec![]));
    tensors
}

fn encoded(encoder: &ClipTextEncoder) -> Vec<f32> {
    let tokens = Tensor::from_data([[3, 1, 9, 2, 0]], &Device::flex());
    let encoded = encoder.encode(tokens).unwrap();
    let states = [encoded.last_hidden_state, encoded.penultimate_hidden_state];
    let states = states.map(|state| state.flatten::<1>(0, 2));
    let projected = encoded.projected.map(|it| it.flatten::<1>(0, 1));
    let all = Tensor::cat(states.into_iter().chain(projected).collect(), 0);
    all.into_data().try_to_vec().unwrap()
}

fn close(one: &[f32], other: &[f32]) -> bool {
    let mut pairs = one.iter().zip(other);
    one.len() == other.len() && pairs.all(|(one, other)| (one - other).abs() < 1e-2)
}

/// A UNet and encoders of OpenCLIP: the second one of XL, or the one of version 2 with a projection
/// and a last layer that are not used.
fn with_open_clip(of_xl: bool, path: &Path) -> (UNet2dCondition, ClipTextEncoder) {
    let device = Device::flex();
    let unet = small().init(&device).unwrap();
    let encoder = small_encoder(of_xl).init(&device).unwrap();
    let prefix = match of_xl {
        true => "conditioner.embedders.1.model.",
        false => "cond_stage_model.model.",
    };
    let names = unet_names(&unet);
    let mut tensors = named(&unet, UNET, |name| names.of(name));
    tensors.extend(open_clip(&encoder, prefix));
    if of_xl {
        let first = small_encoder(false).init(&device).unwrap();
        let prefix = TEXT_ENCODERS[0][1].prefix;
        tensors.extend(named(&first, prefix, |name| Some(name.into())));
        let ids: Vec<u8> = (0..5_i64).flat_map(i64::to_le_bytes).collect();
        let name = format!("{prefix}text_model.embeddings.position_ids");
        let ids = Bytes::from_bytes_vec(ids);
        tensors.push(burn_pack::Tensor::new(name, DType::I64, [1, 5], None, ids));
    } else {
        let unused = ["text_projection", "transformer.resblocks.2.ln_1.weight"];
        let unused = unused.map(|name| half(format!("{prefix}{name}"), vec![1.0; 4], vec![2, 2]));
        tensors.extend(unused);
    }
    let metadata = FileMetadata::from([("modelspec.title".into(), "small".into())]);
    let mut file = std::fs::File::create(path).unwrap();
    folder::write(tensors, &metadata, &mut file).unwrap();
    (unet, encoder)
}

#[test]
fn encoders_of_open_clip_are_read_and_written_in_their_layout() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let [first, second, third] = ["first", "second", "third"].map(|it| folder.path().join(it));
    for of_xl in [true, false] {
        let (unet, encoder) = with_open_clip(of_xl, &first);
        let file = SingleFile::open(&first).unwrap();
        let config = small_encoder(of_xl);
        let read = |file: &SingleFile| match of_xl {
            true => file.text_encoder_2_with(&config, &device).unwrap(),
            false => file.text_encoder_with(&config, &device).unwrap(),
        };
        assert!(file.has_text_encoder() && file.has_text_encoder_2() == of_xl);
        assert!(close(&encoded(&read(&file)), &encoded(&encoder)));
        let before: Vec<ClipTextEncoder> = match of_xl {
            true => vec![
                file.text_encoder_with(&small_encoder(false), &device)
                    .unwrap(),
            ],
            false => Vec::new(),
        };
        let with = |last: &ClipTextEncoder, path: &Path| {
            let encoders: Vec<_> = before.iter().chain([last]).collect();
            file.save_with_encoders(&unet, &encoders, path).unwrap();
        };
        // The values are those of half precision, so that the same file comes back.
        with(&read(&file), &second);
        assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap());
        let other = config.init(&device).unwrap();
        with(&other, &third);
        let written = SingleFile::open(&third).unwrap();
        assert!(close(&encoded(&read(&written)), &encoded(&other)));
        assert!(!close(&encoded(&other), &encoded(&encoder)));
    }
}

#[test]
fn encoders_of_open_clip_that_do_not_fit_are_refused_by_name() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (unet, encoder) = with_open_clip(true, &path);
    let mut file = SingleFile::open(&path).unwrap();
    let read = |file: &SingleFile, config: &ClipTextConfig| {
        let read = file.text_encoder_2_with(config, &device);
        read.unwrap_err().to_string()
    };
    let less = ClipTextConfig {
        num_hidden_layers: 1,
        ..small_encoder(true)
    };
    let error = read(&file, &less);
    assert!(
        error.contains("unexpected") && error.contains("resblocks.1."),
        "{error}"
    );
    let error = read(&file, &small_encoder(false));
    assert!(
        error.contains("unexpected") && error.contains("text_projection"),
        "{error}"
    );
    let wider = ClipTextConfig {
        hidden_size: 16,
        ..small_encoder(true)
    };
    assert!(read(&file, &wider).contains("misshapen"));
    let wider = wider.init(&device).unwrap();
    let error = file.save_with_encoders(&unet, &[&wider, &encoder], folder.path().join("new"));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("misshapen") && error.contains("[10, 16]"),
        "{error}"
    );
    let packed = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias";
    let tensor = half(packed.into(), vec![0.0; 25], vec![25]);
    file.tensors.insert(packed.into(), tensor);
    let error = read(&file, &small_encoder(true));
    assert!(
        error.contains("misshapen") && error.contains(packed),
        "{error}"
    );
    file.tensors.remove(packed);
    let error = read(&file, &small_encoder(true));
    assert!(
        error.contains("missing") && error.contains(packed),
        "{error}"
    );
    let encoders = [&encoder, &encoder, &encoder];
    let error = file.save_with_encoders(&unet, &encoders, folder.path().join("new"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("3 text encoder"), "{error}");
}

/// Only a header: values are not read before names and shapes fit.
fn header(tensors: &[(&str, &[usize])]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensor = |(name, shape): &(&str, &[usize])| {
        let count: usize = shape.iter().product();
        let bytes = Bytes::from_bytes_vec(vec![0; 2 * count]);
        burn_pack::Tensor::new((*name).into(), DType::F16, shape.to_vec(), None, bytes)
    };
    let mut file = std::fs::File::create(&path).unwrap();
    folder::write(
        tensors.iter().map(tensor).collect(),
        &FileMetadata::new(),
        &mut file,
    )
    .unwrap();
    (folder, path)
}

#[test]
fn other_networks_are_refused_by_name() {
    let context = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight";
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    for (tensors, part) in [
        (
            vec![(context, &[320, 768][..]), (first, &[320, 9, 3, 3][..])],
            "inpainting",
        ),
        (
            vec![(context, &[320, 768][..]), (first, &[320, 8, 3, 3][..])],
            "pix2pix",
        ),
        (vec![(context, &[384, 1280][..])], "takes 1280 features"),
        (vec![(first, &[320, 4, 3, 3][..])], "refiner"),
        (
            vec![(context, &[320, 1024][..]), (first, &[320, 4, 3, 3][..])],
            "the configuration asks for it",
        ),
    ] {
        let (_folder, path) = header(&tensors);
        let file = SingleFile::open(path).unwrap();
        let error = file.unet(&Device::flex()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        let error = file.text_encoder(&Device::flex()).unwrap_err().to_string();
        assert!(error.contains("text encoder"), "{error}");
    }
    let (_folder, path) = header(&[("conv.weight", &[1])]);
    assert!(SingleFile::open(path).is_err());
}
