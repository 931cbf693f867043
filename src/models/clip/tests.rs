use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::*;

fn small(projects: bool) -> ClipTextConfig {
    ClipTextConfig {
        architectures: vec![if projects {
            "CLIPTextModelWithProjection".into()
        } else {
            "CLIPTextModel".into()
        }],
        vocab_size: 20,
        hidden_size: 8,
        intermediate_size: 12,
        projection_dim: 5,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 6,
        eos_token_id: 19,
        ..ClipTextConfig::default()
    }
}

fn tokens<const N: usize>(ids: [i32; N]) -> Tensor<2, Int> {
    Tensor::<1, Int>::from_data(ids, &Device::flex()).reshape([1, N])
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// A token knows the ones before it, not those after it.
#[test]
fn attention_is_causal() {
    let encoder = small(false).init(&Device::flex()).unwrap();
    let state = |ids| encoder.encode(tokens(ids)).unwrap().last_hidden_state;
    let (one, other) = (state([1, 2, 3, 4]), state([1, 2, 3, 9]));
    let before = (one.clone() - other.clone()).narrow(1, 0, 3).abs().max();
    let last = (one - other).narrow(1, 3, 1).abs().max();
    assert_eq!(before.into_scalar::<f32>(), 0.0);
    assert!(last.into_scalar::<f32>() > 1e-3);
}

/// The published configurations say 2 for the end-of-text token, and transformers then takes the
/// largest id.
#[test]
fn the_projection_is_that_of_the_first_end_of_text_token() {
    let encoder = small(true).init(&Device::flex()).unwrap();
    let project = |encoder: &ClipTextEncoder, ids: [i32; 4]| {
        values(encoder.encode(tokens(ids)).unwrap().projected.unwrap())
    };
    let padded = project(&encoder, [0, 7, 19, 19]);
    assert_eq!(padded.len(), 5);
    assert_eq!(padded, project(&encoder, [0, 7, 19, 3]));
    assert_ne!(padded, project(&encoder, [0, 7, 3, 19]));
    let published = ClipTextConfig {
        eos_token_id: 2,
        ..small(true)
    };
    let published = published.init(&Device::flex()).unwrap();
    let first = project(&published, [0, 7, 19, 19]);
    assert_eq!(first, project(&published, [0, 7, 19, 2]));
}

#[test]
fn the_penultimate_state_is_what_a_shorter_encoder_has_before_its_last_normalisation() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let encoder = small(false).init(&device).unwrap();
    encoder.save(folder.path()).unwrap();
    edit(folder.path(), |tensors| {
        tensors.retain(|name, _| !name.contains("layers.1."));
    });
    let shorter = ClipTextConfig {
        num_hidden_layers: 1,
        ..small(false)
    };
    let text = settings::to_text(&shorter);
    std::fs::write(folder.path().join("config.json"), text).unwrap();
    let shorter = ClipTextEncoder::load(folder.path(), &device).unwrap();
    let ids = || tokens([4, 5, 6]);
    let penultimate = encoder.encode(ids()).unwrap().penultimate_hidden_state;
    let normed = shorter.encode(ids()).unwrap().last_hidden_state;
    // The fresh normalisation has gain 1 and offset 0.
    let mean = penultimate.clone().mean_dim(2);
    let centred = penultimate - mean;
    let deviation = centred.clone().square().mean_dim(2).add_scalar(1e-5).sqrt();
    let difference = (centred / deviation - normed).abs().max();
    assert!(difference.into_scalar::<f32>() < 1e-4);
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Changes the tensors of a saved encoder.
fn edit(folder: &Path, change: impl Fn(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let copy = |(name, view): (String, TensorView<'_>)| {
        let parts = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (name, parts)
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file.tensors().into_iter().map(copy).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Old files hold position ids, and transformers 5 leaves out the first name.
#[test]
fn old_and_new_files_are_read() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let encoder = small(false).init(&device).unwrap();
    encoder.save(folder.path()).unwrap();
    let expected = values(encoder.encode(tokens([1, 2])).unwrap().last_hidden_state);
    let read = || {
        let encoder = ClipTextEncoder::load(folder.path(), &device).unwrap();
        values(encoder.encode(tokens([1, 2])).unwrap().last_hidden_state)
    };
    assert_eq!(read(), expected);
    edit(folder.path(), |tensors| {
        let ids = (Dtype::I64, vec![1, 6], vec![0; 48]);
        tensors.insert("text_model.embeddings.position_ids".into(), ids);
    });
    assert_eq!(read(), expected);
    edit(folder.path(), |tensors| {
        let named = std::mem::take(tensors).into_iter();
        *tensors = named
            .map(|(name, tensor)| (name.replace("text_model.", ""), tensor))
            .collect();
    });
    assert_eq!(read(), expected);
    edit(folder.path(), |tensors| {
        tensors.remove("final_layer_norm.bias");
    });
    let error = ClipTextEncoder::load(folder.path(), &device)
        .unwrap_err()
        .to_string();
    assert!(error.contains("final_layer_norm.bias"), "{error}");
}

#[test]
fn tokens_that_do_not_fit_are_refused_with_their_value() {
    let encoder = small(false).init(&Device::flex()).unwrap();
    for (ids, part) in [
        (tokens([1, 20]), "token 20 "),
        (tokens([-1, 2]), "token -1 "),
    ] {
        let error = encoder.encode(ids).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = encoder.encode(tokens([0; 7])).unwrap_err().to_string();
    assert!(
        error.contains("[1, 7]") && error.contains("[1, 6]"),
        "{error}"
    );
}

#[test]
fn values_that_are_not_implemented_are_refused_by_name() {
    for (key, text) in [
        ("model_type", r#"{"model_type": "t5"}"#),
        ("hidden_act", r#"{"hidden_act": "relu"}"#),
        ("architectures", r#"{"architectures": ["CLIPModel"]}"#),
        ("num_attention_heads", r#"{"num_attention_heads": 7}"#),
        ("layer_norm_eps", r#"{"layer_norm_eps": -1}"#),
        ("new_option", r#"{"new_option": 1}"#),
    ] {
        match ClipTextConfig::from_json(text, "config.json") {
            Err(Error::UnsupportedConfig { key: refused, .. }) => assert_eq!(refused, key),
            other => panic!("{text}: {other:?}"),
        }
    }
}
