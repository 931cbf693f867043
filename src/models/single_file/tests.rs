use std::fmt::Write as _;

use burn::tensor::{Bytes, Distribution, Tensor};
use sha2::{Digest, Sha256};

use super::*;
use crate::denoiser::Denoiser;
use crate::models::TextCondition;
use crate::models::folder::like;

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
        let names = unet_names(&config);
        let unet = config.init(&Device::flex()).unwrap();
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
    let names = unet_names(unet.config());
    let stages = autoencoder.config().block_out_channels.len();
    let mut tensors = Vec::new();
    for mut tensor in folder::collect(unet) {
        let half = burn_pack::Tensor::new(
            String::new(),
            burn::tensor::DType::F16,
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
        let tensor =
            burn_pack::Tensor::new(name.into(), burn::tensor::DType::F32, [1], None, one());
        tensors.push(tensor);
    }
    let mut file = std::fs::File::create(path).unwrap();
    folder::write(tensors, &folder::FileMetadata::new(), &mut file).unwrap();
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

/// Only a header: values are not read before names and shapes fit.
fn header(tensors: &[(&str, &[usize])]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensor = |(name, shape): &(&str, &[usize])| {
        let count: usize = shape.iter().product();
        let bytes = Bytes::from_bytes_vec(vec![0; 2 * count]);
        burn_pack::Tensor::new(
            (*name).into(),
            burn::tensor::DType::F16,
            shape.to_vec(),
            None,
            bytes,
        )
    };
    let mut file = std::fs::File::create(&path).unwrap();
    folder::write(
        tensors.iter().map(tensor).collect(),
        &folder::FileMetadata::new(),
        &mut file,
    ).unwrap();
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
