use super::*;

fn candidate(name: &str) -> Option<(Format, Option<&str>, bool)> {
    Candidate::of(name, Files::Diffusers).map(|found| (found.format, found.variant, found.is_index))
}

#[test]
fn transformers_has_names_of_its_own() {
    let of = |name| {
        let found = Candidate::of(name, Files::Transformers)?;
        Some((found.format, found.variant, found.is_index))
    };
    for (name, expected) in [
        ("model.safetensors", Some((Format::Safe, None, false))),
        (
            "model.fp16.safetensors",
            Some((Format::Safe, Some("fp16"), false)),
        ),
        (
            "model.safetensors.index.json",
            Some((Format::Safe, None, true)),
        ),
        ("pytorch_model.bin", Some((Format::Pickled, None, false))),
        ("model.bin", None),
        ("pytorch_model.safetensors", None),
        ("diffusion_pytorch_model.safetensors", None),
    ] {
        assert_eq!(of(name), expected, "{name}");
    }
}

#[test]
fn names_of_weights_are_told_apart() {
    use Format::{Pickled, Safe};
    for (name, expected) in [
        ("diffusion_pytorch_model.safetensors", (Safe, None, false)),
        ("diffusion_pytorch_model.bin", (Pickled, None, false)),
        (
            "diffusion_pytorch_model.fp16.safetensors",
            (Safe, Some("fp16"), false),
        ),
        (
            "diffusion_pytorch_model.non_ema.bin",
            (Pickled, Some("non_ema"), false),
        ),
        (
            "diffusion_pytorch_model.safetensors.index.json",
            (Safe, None, true),
        ),
        (
            "diffusion_pytorch_model.bin.index.json",
            (Pickled, None, true),
        ),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            (Safe, Some("fp16"), true),
        ),
        (
            "diffusion_pytorch_model.safetensors.fp16.index.json",
            (Safe, Some("fp16"), true),
        ),
    ] {
        assert_eq!(candidate(name), Some(expected), "{name}");
    }
    for name in [
        "diffusion_pytorch_model-00001-of-00003.safetensors",
        "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.fp16",
        "diffusion_pytorch_model.safetensors.json",
        "diffusion_pytorch_model.index.json",
        "diffusion_pytorch_model.safetensors.index",
        "diffusion_pytorch_model.onnx",
        "diffusion_pytorch_model",
        "model.safetensors",
        ".diffusion_pytorch_model.safetensors",
    ] {
        assert_eq!(candidate(name), None, "{name}");
    }
}

#[test]
fn the_plain_file_comes_first_and_pickles_last_where_they_are_not_read() {
    let names = [
        "diffusion_pytorch_model.bf16.safetensors",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.ema.safetensors",
        "diffusion_pytorch_model.fp16.bin",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
    ];
    let mut candidates: Vec<_> = names
        .into_iter()
        .filter_map(|name| Candidate::of(name, Files::Diffusers))
        .collect();
    candidates.sort_by_key(Candidate::rank);
    let order: Vec<_> = candidates
        .iter()
        .map(|found| names.iter().position(|name| *name == found.name).unwrap())
        .collect();
    match cfg!(feature = "pytorch") {
        true => assert_eq!(order, [5, 6, 1, 4, 0, 2, 3]),
        false => assert_eq!(order, [5, 6, 4, 0, 2, 1, 3]),
    }
}

#[test]
fn parts_lie_in_the_same_folder() {
    let read = |place: &str| {
        let text = serde_json::json!({"weight_map": {"conv_in.bias": place}}).to_string();
        weight_map(&text, Path::new("x.index.json"), Format::Safe)
    };
    assert_eq!(
        read("a.safetensors").unwrap()["conv_in.bias"],
        "a.safetensors"
    );
    for place in [
        "../a.safetensors",
        "/etc/a.safetensors",
        "b/a.safetensors",
        "..",
        ".",
        "",
        "./a.safetensors",
        "a.safetensors/",
        "b\\a.safetensors",
        "C:a.safetensors",
        "a\0.safetensors",
        "a.bin",
    ] {
        let error = read(place).unwrap_err().to_string();
        assert!(
            error.contains("conv_in.bias") && error.contains("same folder"),
            "{error}"
        );
    }
    for text in [
        "",
        "[]",
        "{}",
        r#"{"weight_map": []}"#,
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": 1}}"#,
        r#"{"weight_map": {"a": null}}"#,
    ] {
        let error = weight_map(text, Path::new("x.index.json"), Format::Safe).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
        assert!(error.to_string().contains("x.index.json"), "{error}");
    }
}
