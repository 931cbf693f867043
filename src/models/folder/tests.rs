use burn::tensor::{Device, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::*;
use crate::denoiser::Denoiser;
use crate::models::{DownBlockType, LoadNote, UNet2d, UNet2dConfig, UpBlockType};
use crate::process::PredictionType;

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
    tensors_of(&folder.join(WEIGHTS))
}

fn tensors_of(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
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
    std::fs::write(folder.join(WEIGHTS), serialized(tensors)).unwrap();
}

fn load(folder: &Path) -> Result<UNet2d> {
    UNet2d::load(folder, &Device::flex())
}

/// The error for a saved network whose tensors were edited: problem, tensor, detail.
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

/// What is wrong is the type, not the file.
#[test]
fn a_type_that_is_not_read_is_named_with_the_tensor_and_the_remedy() {
    let folder = saved();
    let name = "conv_norm_out.weight";
    let original = read(folder.path());
    for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2] {
        let mut tensors = original.clone();
        let tensor = tensors.get_mut(name).unwrap();
        (tensor.0, tensor.2) = (dtype, vec![0; 4]);
        write(folder.path(), &tensors);
        let error = load(folder.path()).unwrap_err();
        let text = error.to_string();
        for part in [name, &format!("{dtype:?}"), "convert the file to F16"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(
            matches!(error, Error::UnsupportedTensorType { .. }),
            "{error:?}"
        );
    }
    let header =
        br#"{"a":{"dtype":"NF4","shape":[2],"data_offsets":[0,1]},"__metadata__":{"dtype":"x"}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let bytes = [&length[..], header, &[0]].concat();
    std::fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::UnsupportedTensorType { tensor, dtype, .. } if tensor == "a" && dtype == "NF4"),
        "{error:?}"
    );
}

/// Whatever is read can be written.
#[test]
fn tensors_of_all_types_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let types = [
        Dtype::F64,
        Dtype::I64,
        Dtype::U64,
        Dtype::F32,
        Dtype::I32,
        Dtype::U32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::BOOL,
    ];
    let tensor = |dtype: Dtype| {
        let data = vec![1; 2 * dtype.bitsize() / 8];
        (format!("{dtype:?}"), (dtype, vec![2], data))
    };
    let tensors: Tensors = types.map(tensor).into();
    std::fs::write(&first, serialized(&tensors)).unwrap();
    let read = safe::read(&first).unwrap();
    let mut file = std::fs::File::create(&second).unwrap();
    safe::write(
        read.tensors.into_values().collect(),
        &read.metadata,
        &mut file,
    )
    .unwrap();
    assert_eq!(tensors_of(&second), tensors);
}

/// Of one file, and of all parts together.
#[test]
fn a_network_written_like_another_keeps_its_metadata() {
    let [from, to] = [saved(), tempfile::tempdir().unwrap()];
    let unet = load(from.path()).unwrap();
    let tensors = read(from.path());
    let written = || {
        save_like(&unet, &unet.config().to_json(), [from.path(), to.path()]).unwrap();
        let bytes = weights(to.path());
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        header.metadata().clone().unwrap()
    };
    let entry = |name: &str| (name.to_string(), "kept".to_string());
    let with = |tensors: &Tensors, name: &str, file: &Path| {
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let metadata = [entry(name), entry("sshs_model_hash")].into();
        safetensors::serialize_to_file(views, Some(metadata), file).unwrap();
    };
    with(&tensors, "whole", &from.path().join(WEIGHTS));
    assert_eq!(written(), [entry("whole")].into());

    std::fs::remove_file(from.path().join(WEIGHTS)).unwrap();
    let halves = tensors.iter().enumerate().fold(
        [Tensors::new(), Tensors::new()],
        |mut halves, (index, (name, tensor))| {
            halves[index % 2].insert(name.clone(), tensor.clone());
            halves
        },
    );
    let mut map = serde_json::Map::new();
    for (number, half) in halves.iter().enumerate() {
        let file = format!("part-{number}.safetensors");
        with(half, &format!("half {number}"), &from.path().join(&file));
        map.extend(half.keys().map(|name| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(from.path().join(INDEX), index.to_string()).unwrap();
    assert_eq!(written(), [entry("half 0"), entry("half 1")].into());
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

/// Rounded towards zero; no subnormal numbers.
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

/// The reader checks the positions of all tensors first. If the file becomes shorter before their
/// values are read, that is an error, whereas with a memory map it would end the process.
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

const STEM: &str = "diffusion_pytorch_model";

fn serialized(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    serialize(views.collect::<BTreeMap<_, _>>(), None).unwrap()
}

/// Splits the weights of a saved network into three parts, with the index that names them.
fn in_parts(folder: &Path) -> serde_json::Map<String, serde_json::Value> {
    let mut parts = vec![Tensors::new(); 3];
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in read(folder).into_iter().enumerate() {
        map.insert(name.clone(), part(index % 3).into());
        parts[index % 3].insert(name, tensor);
    }
    for (index, tensors) in parts.iter().enumerate() {
        std::fs::write(folder.join(part(index)), serialized(tensors)).unwrap();
    }
    write_index(folder, &map);
    std::fs::remove_file(folder.join(WEIGHTS)).unwrap();
    map
}

fn part(index: usize) -> String {
    format!("{STEM}-{:05}-of-00003.safetensors", index + 1)
}

fn write_index(folder: &Path, map: &serde_json::Map<String, serde_json::Value>) {
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join(INDEX), index.to_string()).unwrap();
}

fn said(unet: &UNet2d) -> Vec<String> {
    let is_of_weights = |note: &&LoadNote| !matches!(note, LoadNote::NoiseAssumed { .. });
    let of_weights = unet.notes().iter().filter(is_of_weights);
    of_weights.map(ToString::to_string).collect()
}

#[test]
fn weights_in_parts_are_read_and_written_as_one_file() {
    let folder = saved();
    let expected = read(folder.path());
    in_parts(folder.path());
    let unet = load(folder.path()).unwrap();
    let said = said(&unet);
    assert!(said.len() == 1 && said[0].contains(INDEX), "{said:?}");
    let new = tempfile::tempdir().unwrap();
    unet.save(new.path()).unwrap();
    assert_eq!(read(new.path()), expected);
    assert_eq!(std::fs::read_dir(new.path()).unwrap().count(), 2);

    // With the parts still in place, diffusers would continue to read them.
    let error = unet.save(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains(INDEX) && error.contains("another folder"),
        "{error}"
    );
    assert!(!folder.path().join(WEIGHTS).exists());
}

#[test]
fn parts_that_do_not_fit_their_index_are_named() {
    let name = "mid_block.resnets.1.norm2.weight";
    type Spoil = fn(&Path, &mut serde_json::Map<String, serde_json::Value>);
    let spoils: [(&str, Spoil); 6] = [
        ("missing tensor", |folder, map| {
            let name = "mid_block.resnets.1.norm2.weight";
            let wrong = (0..3).find(|index| map[name] != part(*index)).unwrap();
            map.insert(name.into(), part(wrong).into());
            write_index(folder, map);
        }),
        ("unexpected tensor", |folder, map| {
            map.remove("mid_block.resnets.1.norm2.weight");
            write_index(folder, map);
        }),
        ("missing tensor", |folder, map| {
            map.insert("mid_block.resnets.1.norm2.weight.x".into(), part(0).into());
            write_index(folder, map);
        }),
        ("duplicate tensor", |folder, map| {
            // The last part contains this tensor as well as its own.
            let name = "mid_block.resnets.1.norm2.weight";
            let own = (0..3).find(|index| map[name] == part(*index)).unwrap();
            for index in (0..3).filter(|index| *index != own) {
                let tensors = tensors_of(&folder.join(part(index)));
                let mut more = tensors.clone();
                more.extend(tensors_of(&folder.join(part(own))).remove_entry(name));
                std::fs::write(folder.join(part(index)), serialized(&more)).unwrap();
            }
        }),
        ("mid_block.resnets.1.norm2.weight", |folder, map| {
            map.insert(
                "mid_block.resnets.1.norm2.weight".into(),
                "../other.safetensors".into(),
            );
            write_index(folder, map);
        }),
        ("download them again", |folder, map| {
            let name = map["mid_block.resnets.1.norm2.weight"].as_str().unwrap();
            std::fs::remove_file(folder.join(name)).unwrap();
        }),
    ];
    for (says, spoil) in spoils {
        let folder = saved();
        let mut map = in_parts(folder.path());
        spoil(folder.path(), &mut map);
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(error.contains(name) || error.contains("-of-"), "{error}");
    }
}

#[test]
fn variants_are_read_and_what_was_taken_is_said() {
    let folder = saved();
    let unet = load(folder.path()).unwrap();
    assert_eq!(unet.notes(), [LoadNote::NoiseAssumed { scheduler: None }]);
    let variant = |name: &str| format!("{STEM}.{name}.safetensors");
    let plain = folder.path().join(WEIGHTS);
    for name in ["fp16", "bf16", "ema"] {
        std::fs::copy(&plain, folder.path().join(variant(name))).unwrap();
    }
    let said_with_plain = said(&load(folder.path()).unwrap());
    assert!(
        said_with_plain[0].contains(&format!("{WEIGHTS}, not those of {}", variant("fp16"))),
        "{said_with_plain:?}"
    );
    std::fs::remove_file(&plain).unwrap();
    let read = load(folder.path()).unwrap();
    assert_eq!(output(&read), output(&unet));
    let [note] = said(&read).try_into().unwrap();
    let expected = format!(
        "{}, not those of {}, {}",
        variant("fp16"),
        variant("bf16"),
        variant("ema")
    );
    assert!(note.contains(&expected), "{note}");
    read.save(folder.path()).unwrap();
    assert!(plain.exists());
}

#[test]
fn the_names_of_wrapped_networks_are_read() {
    let folder = saved();
    let expected = output(&load(folder.path()).unwrap());
    let original = read(folder.path());
    for prefix in ["_orig_mod.", "module.", "module._orig_mod."] {
        let wrapped = original
            .iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()));
        let mut wrapped: Tensors = wrapped.collect();
        write(folder.path(), &wrapped);
        let unet = load(folder.path()).unwrap();
        assert_eq!(output(&unet), expected);
        assert!(said(&unet)[0].contains(prefix), "{:?}", said(&unet));

        // Errors name a tensor as in the file. If one name lacks the prefix, it is not a prefix.
        let lost = format!("{prefix}conv_in.bias");
        let mut more = wrapped.clone();
        let bias = wrapped.remove(&lost).unwrap();
        write(folder.path(), &wrapped);
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("missing tensor `conv_in.bias`"), "{error}");
        more.insert("conv_in.bias".into(), bias);
        write(folder.path(), &more);
        assert!(load(folder.path()).is_err());
    }
}

#[test]
fn a_pointer_of_git_is_no_file_of_weights() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let folder = saved();
    for name in [WEIGHTS, CONFIG] {
        std::fs::write(folder.path().join(name), pointer).unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("git lfs pull"),
            "{error}"
        );
    }
    let folder = saved();
    in_parts(folder.path());
    std::fs::write(folder.path().join(part(1)), pointer).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("00002") && error.contains("git lfs pull"),
        "{error}"
    );
}

#[test]
fn what_lies_there_instead_is_said() {
    for (name, says) in [
        ("diffusion_flax_model.msgpack", "Flax"),
        ("model.onnx", "ONNX"),
        ("unet.gguf", "GGUF"),
        ("model.ckpt", "convert"),
        ("model.safetensors", "another name"),
        ("pytorch_model.bin", "another name"),
        (
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            "index",
        ),
    ] {
        let folder = saved();
        std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
        std::fs::write(folder.path().join(name), "").unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        for part in [name, says, WEIGHTS] {
            assert!(error.contains(part), "{error}");
        }
    }
}

/// Also in half precision, and where a number is finite in the file but not in f32.
#[test]
fn a_weight_that_is_not_finite_is_named() {
    let name = "up_blocks.0.resnets.1.norm2.bias";
    for (dtype, value) in [
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
        (Dtype::F32, f32::INFINITY.to_le_bytes().to_vec()),
        (Dtype::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
        (Dtype::F16, 0x7e00_u16.to_le_bytes().to_vec()),
        (Dtype::F64, 1e300_f64.to_le_bytes().to_vec()),
    ] {
        let (problem, tensor, detail) = refusal(|tensors| {
            let (kind, shape, data) = tensors.get_mut(name).unwrap();
            *kind = dtype;
            *data = vec![0; value.len() * shape[0]];
            let last = data.len() - value.len();
            data[last..].copy_from_slice(&value);
        });
        assert_eq!((problem, tensor.as_str()), ("non-finite", name));
        assert!(detail.contains("NaN or an infinity"), "{detail}");
    }
}

#[test]
fn dropout_is_not_run_and_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let config = UNet2dConfig {
        dropout: 0.25,
        ..tiny()
    };
    let unet = config.init(&Device::flex()).unwrap();
    unet.save(folder.path()).unwrap();
    let read = load(folder.path()).unwrap();
    assert_eq!(output(&read), output(&unet));
    assert_eq!(read.notes()[1..], [LoadNote::Dropout { probability: 0.25 }]);
    assert_eq!(read.config().dropout, 0.25);
}

/// Beside the network, in the pipeline above it, or nowhere that this crate can read.
#[test]
fn what_a_network_predicts_is_that_of_its_scheduler() {
    let place = tempfile::tempdir().unwrap();
    let network = place.path().join("unet");
    tiny()
        .init(&Device::flex())
        .unwrap()
        .save(&network)
        .unwrap();
    let with = |file: &Path, text: &str| {
        std::fs::write(file, text).unwrap();
        load(&network)
    };
    let [above, beside] = [place.path(), &network].map(|base| base.join("scheduler_config.json"));
    let velocity = r#"{"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}"#;
    let read = with(&above, velocity).unwrap();
    assert_eq!(read.prediction_type(), PredictionType::Velocity);
    assert_eq!(read.notes(), []);
    let sample = velocity.replace("v_prediction", "sample");
    let read = with(&beside, &sample).unwrap();
    assert_eq!(read.prediction_type(), PredictionType::Sample);
    let path = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#;
    let read = with(&beside, path).unwrap();
    assert_eq!(read.prediction_type(), PredictionType::FlowVelocity);
    assert_eq!(read.notes(), []);
    let coarse = path.replace('}', r#", "num_train_timesteps": 100}"#);
    let error = with(&beside, &coarse).unwrap_err();
    assert!(matches!(error, Error::UnsupportedConfig { .. }), "{error}");
    let other = r#"{"_class_name": "KarrasVeScheduler"}"#;
    let read = with(&beside, other).unwrap();
    assert_eq!(read.prediction_type(), PredictionType::Epsilon);
    let scheduler = Some(beside.clone());
    assert_eq!(read.notes(), [LoadNote::NoiseAssumed { scheduler }]);
    let read = read.with_prediction_type(PredictionType::FlowVelocity);
    assert_eq!(read.prediction_type(), PredictionType::FlowVelocity);
    let error = with(&beside, "{").unwrap_err();
    assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
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

/// Byte by byte like burn's own writer, whose file only its owner may read.
#[test]
fn weights_are_written_as_burn_writes_them_for_whom_the_umask_says() {
    use burn::store::{BurnToPyTorchAdapter, SafetensorsStore};
    let folder = tempfile::tempdir().unwrap();
    let network = tiny().init(&Device::flex()).unwrap();
    network.save(folder.path()).unwrap();
    let burns = folder.path().join("burn.safetensors");
    let mut store = SafetensorsStore::from_file(&burns)
        .clear_metadata()
        .metadata("format", "pt")
        .with_to_adapter(BurnToPyTorchAdapter)
        .skip_enum_variants(true);
    network.save_into(&mut store).unwrap();
    assert!(weights(folder.path()) == std::fs::read(&burns).unwrap());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| {
            let metadata = std::fs::metadata(folder.path().join(name)).unwrap();
            metadata.permissions().mode() & 0o777
        };
        std::fs::write(folder.path().join("ordinary"), "").unwrap();
        assert_eq!(mode(WEIGHTS), mode("ordinary"));
        assert_eq!(mode(CONFIG), mode("ordinary"));
        // Saves again over read-only files.
        for name in [WEIGHTS, CONFIG] {
            let read_only = std::fs::Permissions::from_mode(0o400);
            std::fs::set_permissions(folder.path().join(name), read_only).unwrap();
        }
        network.save(folder.path()).unwrap();
        assert_eq!(mode(WEIGHTS), mode("ordinary"));
        assert_eq!(mode(CONFIG), mode("ordinary"));
    }
}
