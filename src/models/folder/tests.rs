use burn::tensor::{Device, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::*;
use crate::denoiser::Denoiser;
use crate::models::{DownBlockType, UNet2d, UNet2dConfig, UpBlockType};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tiny() -> UNet2dConfig {
    UNet2dConfig {
        block_out_channels: vec![4, 8],
        down_block_types: vec![DownBlockType::Resnet, DownBlockType::Attention],
        up_block_types: vec![UpBlockType::Attention, UpBlockType::Resnet],
        layers_per_block: 1,
        norm_num_groups: 2,
        attention_head_dim: None,
        sample_size: Some([8, 8]),
        ..UNet2dConfig::default()
    }
}

/// A folder with a fresh network.
fn saved() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny()
        .init(&Device::flex())
        .unwrap()
        .save(folder.path())
        .unwrap();
    folder
}

fn weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join(WEIGHTS)).unwrap()
}

fn read(folder: &Path) -> Tensors {
    let bytes = weights(folder);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let copy = |(name, view): (String, TensorView<'_>)| {
        (
            name,
            (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        )
    };
    file.tensors().into_iter().map(copy).collect()
}

fn write(folder: &Path, tensors: &Tensors) {
    let views: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        })
        .collect();
    std::fs::write(folder.join(WEIGHTS), serialize(views, None).unwrap()).unwrap();
}

fn load(folder: &Path) -> Result<UNet2d> {
    UNet2d::load(folder, &Device::flex())
}

/// What is wrong with a saved network after an edit of its tensors: problem, tensor, detail.
fn refusal(edit: impl Fn(&mut Tensors)) -> (&'static str, String, String) {
    let folder = saved();
    let mut tensors = read(folder.path());
    edit(&mut tensors);
    write(folder.path(), &tensors);
    match load(folder.path()) {
        Err(Error::WeightMismatch {
            problem,
            tensor,
            detail,
            ..
        }) => (problem, tensor, detail),
        other => panic!("{other:?}"),
    }
}

fn expected_shapes(unet: &UNet2d) -> BTreeMap<String, Vec<usize>> {
    let mut expected = ExpectedTensors::default();
    unet.visit(&mut expected);
    expected.shapes
}

fn output(unet: &UNet2d) -> TensorData {
    let device = Device::flex();
    let noisy = Tensor::<1, burn::tensor::Int>::arange(0..192, &device).float();
    let noisy = noisy.div_scalar(96.0).reshape([1, 3, 8, 8]);
    unet.predict(noisy, Tensor::from_data([5.0], &device), &())
        .into_data()
}

#[test]
fn celebahq_256_has_450_tensors_under_the_names_of_diffusers() {
    let config = crate::models::unet2d::CELEBAHQ;
    let unet = UNet2dConfig::from_json(config, "config.json").unwrap();
    let shapes = expected_shapes(&unet.init(&Device::flex()).unwrap());
    assert_eq!(shapes.len(), 450);
    for (name, shape) in [
        ("conv_in.weight", vec![128, 3, 3, 3]),
        ("time_embedding.linear_1.weight", vec![512, 128]),
        ("down_blocks.0.resnets.1.norm1.weight", vec![128]),
        (
            "down_blocks.2.resnets.0.conv_shortcut.weight",
            vec![256, 128, 1, 1],
        ),
        ("down_blocks.4.attentions.0.to_out.0.weight", vec![512, 512]),
        ("down_blocks.4.downsamplers.0.conv.bias", vec![512]),
        ("mid_block.attentions.0.group_norm.bias", vec![512]),
        ("up_blocks.1.resnets.2.conv1.weight", vec![512, 768, 3, 3]),
        ("up_blocks.5.resnets.2.time_emb_proj.weight", vec![128, 512]),
        ("conv_norm_out.weight", vec![128]),
    ] {
        assert_eq!(shapes.get(name), Some(&shape), "{name}");
    }
}

#[test]
fn saving_what_was_loaded_changes_no_bit() {
    let conformance =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/unet_tshirt_tiny");
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("new/unet");
    load(&conformance).unwrap().save(&inner).unwrap();
    assert_eq!(read(&inner), read(&conformance));
    let again = load(folder.path().join("new").as_path()).unwrap();
    assert_eq!(again.config(), load(&conformance).unwrap().config());
    let names: Vec<_> = std::fs::read_dir(&inner)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn saving_replaces_what_was_there() {
    let folder = saved();
    let unet = tiny().init(&Device::flex()).unwrap();
    unet.save(folder.path()).unwrap();
    assert_eq!(output(&load(folder.path()).unwrap()), output(&unet));
}

#[test]
fn a_missing_tensor_is_named() {
    let name = "mid_block.resnets.1.norm2.weight";
    let (problem, tensor, _) = refusal(|tensors| drop(tensors.remove(name)));
    assert_eq!((problem, tensor.as_str()), ("missing", name));
}

#[test]
fn an_extra_tensor_is_named() {
    let extra = (Dtype::F32, vec![1], vec![0; 4]);
    for name in ["class_embedding.weight", "conv_norm_out.gamma", ""] {
        let (problem, tensor, _) =
            refusal(|tensors| drop(tensors.insert(name.into(), extra.clone())));
        assert_eq!((problem, tensor.as_str()), ("unexpected", name));
    }
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let name = "time_embedding.linear_1.weight";
    let (problem, tensor, detail) = refusal(|tensors| tensors.get_mut(name).unwrap().1.reverse());
    assert_eq!((problem, tensor.as_str()), ("misshapen", name));
    assert!(
        detail.contains("[4, 16]") && detail.contains("[16, 4]"),
        "{detail}"
    );
}

#[test]
fn integers_are_no_weights() {
    let name = "conv_norm_out.weight";
    for dtype in [Dtype::I32, Dtype::U32] {
        let (problem, tensor, detail) = refusal(|tensors| tensors.get_mut(name).unwrap().0 = dtype);
        assert_eq!((problem, tensor.as_str()), ("unreadable", name));
        assert!(detail.contains("32"), "{detail}");
    }
}

#[test]
fn old_attention_names_and_shapes_are_read() {
    let folder = saved();
    let expected = output(&load(folder.path()).unwrap());
    let mut old = Tensors::new();
    for (name, (dtype, mut shape, data)) in read(folder.path()) {
        let mut name = name;
        for (new, legacy) in [
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ] {
            if name.contains(new) {
                name = name.replace(new, legacy);
                if shape.len() == 2 && legacy != "key" {
                    shape.extend([1, 1]);
                }
            }
        }
        old.insert(name, (dtype, shape, data));
    }
    write(folder.path(), &old);
    assert_eq!(output(&load(folder.path()).unwrap()), expected);

    let name = "mid_block.attentions.0.key.bias";
    old.insert("mid_block.attentions.0.to_k.bias".into(), old[name].clone());
    write(folder.path(), &old);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("key.bias") && error.contains("to_k.bias"),
        "{error}"
    );

    old.remove("mid_block.attentions.0.to_k.bias");
    old.get_mut(name).unwrap().1 = vec![2, 4];
    write(folder.path(), &old);
    assert!(load(folder.path()).unwrap_err().to_string().contains(name));
}

/// Rounded towards zero, without subnormal numbers.
fn to_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = ((bits >> 23) & 0xff).saturating_sub(112);
    let magnitude = (exponent << 10) | ((bits >> 13) & 0x3ff);
    let sign = (bits >> 16) & 0x8000;
    (sign | if exponent == 0 { 0 } else { magnitude }) as u16
}

#[test]
fn half_and_double_precision_become_single() {
    let folder = saved();
    let original = read(folder.path());
    let single = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    type Narrow = fn(f32) -> Vec<u8>;
    let formats: [(Dtype, Narrow); 3] = [
        (Dtype::F16, |value| to_half(value).to_le_bytes().to_vec()),
        (Dtype::BF16, |value| {
            (value.to_bits() >> 16).to_le_bytes()[..2].to_vec()
        }),
        (Dtype::F64, |value| f64::from(value).to_le_bytes().to_vec()),
    ];
    for (dtype, narrow) in formats {
        let mut tensors = original.clone();
        for (kind, _, data) in tensors.values_mut() {
            *kind = dtype;
            *data = data
                .chunks_exact(4)
                .flat_map(|bytes| narrow(single(bytes)))
                .collect();
        }
        write(folder.path(), &tensors);
        load(folder.path()).unwrap().save(folder.path()).unwrap();
        for (name, (kind, shape, data)) in read(folder.path()) {
            let (_, expected_shape, expected) = &original[&name];
            assert_eq!((kind, &shape), (Dtype::F32, expected_shape), "{name}");
            for (got, expected) in data.chunks_exact(4).zip(expected.chunks_exact(4)) {
                let (got, expected) = (single(got), single(expected));
                assert!(
                    (got - expected).abs() <= 1e-4 + expected.abs() / 128.0,
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn truncated_weights_are_an_invalid_file() {
    let folder = saved();
    let bytes = weights(folder.path());
    for length in (0..bytes.len())
        .step_by(997)
        .chain([1, 7, 8, 9, bytes.len() - 1])
    {
        std::fs::write(folder.path().join(WEIGHTS), &bytes[..length]).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(
            matches!(error, Error::InvalidFile { .. }),
            "{length}: {error}"
        );
    }
}

/// The reader looks at the places of all tensors first. Should the file become shorter before their values are read, that is an
/// error, where a memory map would end the process.
#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let folder = saved();
    let path = folder.path().join(WEIGHTS);
    let length = std::fs::metadata(&path).unwrap().len();
    let tensors = safe::tensors(&path).unwrap();
    let count = tensors.len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(length / 2).unwrap();
    let read = tensors
        .into_values()
        .filter(|tensor| tensor.to_bytes().is_ok());
    let read = read.count();
    assert!(0 < read && read < count, "{read} of {count}");
}

#[test]
fn garbage_is_an_invalid_file() {
    let folder = saved();
    let header_of_all_lengths = [u64::MAX.to_le_bytes().to_vec(), vec![b'{'; 64]].concat();
    let overlapping = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let endless =
        br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}"#;
    let with_length = |header: &[u8]| {
        let length = (header.len() as u64).to_le_bytes();
        [length.as_slice(), header, &[0; 12]].concat()
    };
    for bytes in [
        vec![0; 64],
        vec![255; 4096],
        b"PK\x03\x04 not a tensor in sight".to_vec(),
        header_of_all_lengths,
        with_length(overlapping),
        with_length(endless),
        with_length(b"{}"),
        with_length(b"[1, 2"),
    ] {
        std::fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
    }
}

#[test]
fn a_garbage_configuration_is_an_invalid_file() {
    let folder = saved();
    for bytes in [vec![], vec![0xff; 32], b"{\"in_channels\": 3".to_vec()] {
        std::fs::write(folder.path().join(CONFIG), bytes).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
        assert!(error.to_string().contains(CONFIG), "{error}");
    }
}

#[test]
fn a_flipped_bit_in_the_header_never_panics() {
    let folder = saved();
    let bytes = weights(folder.path());
    for position in (0..1200).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 1 << (position % 8);
        std::fs::write(folder.path().join(WEIGHTS), damaged).unwrap();
        let _ = load(folder.path());
    }
}

#[test]
fn an_absent_file_is_an_io_error_with_its_path() {
    let folder = saved();
    std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(
        matches!(error, Error::Io { .. }) && error.to_string().contains(WEIGHTS),
        "{error}"
    );
    std::fs::write(folder.path().join(PICKLED), "no pickle").unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains(PICKLED) && error.contains("safe_serialization=True"),
        "{error}"
    );
    let error = load(Path::new("no/such/folder")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_is_an_io_error() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let unet = tiny().init(&Device::flex()).unwrap();
    assert!(matches!(unet.save(&blocked), Err(Error::Io { .. })));
    std::fs::create_dir_all(folder.path().join("unet").join(WEIGHTS).join("occupied")).unwrap();
    assert!(matches!(
        unet.save(folder.path().join("unet")),
        Err(Error::Io { .. })
    ));
}
