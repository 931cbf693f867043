//! Unlearning from models with a condition: classes and texts, over pixels and latents; the
//! example's own code on tiny networks with random weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use image::{Rgb, RgbImage};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use siss::burn::tensor::{DType, Device, TensorData};
use siss::models::{
    AutoencoderKl, ClipTextEncoder, Dit, Lora, LoraPart, Sd3Transformer, SingleFile, UNet2d,
    UNet2dCondition, UNet2dConditionConfig,
};
use siss::report::audit::AuditReport;
use siss::{Denoiser, PredictionType, StepReport};
use siss_support::audit;
use siss_support::audit::options::Command;
use siss_support::process::Process;
use siss_support::progress::{Progress, Silent};
use siss_support::tiny::{
    FLOW_INDEX, FLOW_SCHEDULER, SCHEDULER, XL_PARTS, class_model, flow_model, index, text_model,
    transformer_model, write, xl_model,
};
use siss_support::unlearn::{job, options};
use siss_support::variants;
use tempfile::TempDir;

/// Records the lines that it receives.
#[derive(Default)]
struct Told(std::sync::Mutex<Vec<String>>);

impl Progress for Told {
    fn phase(&self, _: &str) {}
    fn step(&self, _: &StepReport, _: usize) {}
    fn say(&self, line: &str) {
        self.0.lock().unwrap().push(line.into());
    }
}

impl Told {
    fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

/// A picture of 8 × 8 pixels, another for each number.
fn picture(path: &Path, number: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let number = number as u32;
    let colour = |x: u32, y: u32| {
        Rgb([
            ((x * 29 + number * 53) % 256) as u8,
            ((y * 31 + x * y * number * 7) % 256) as u8,
            ((x + y) * 16 + number * 11) as u8,
        ])
    };
    RgbImage::from_fn(8, 8, colour).save(path).unwrap();
}

/// Folders of a model with classes: `model`, `forget/1`, and `retain/0`, `retain/1`, `retain/2`.
fn place_of(model: impl Fn(&Path), count: usize) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let at = |name: String| place.path().join(name);
    model(&at("model".into()));
    picture(&at("forget/1/own.png".into()), 100);
    for number in 0..count {
        picture(&at(format!("retain/{}/{number}.png", number % 3)), number);
    }
    place
}

fn class_place(count: usize) -> TempDir {
    place_of(class_model, count)
}

/// Folders of a model with captions: in a listing for `retain`, beside the picture in `forget`.
fn captioned(model: impl Fn(&Path), count: usize) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let at = |name: String| place.path().join(name);
    model(&at("model".into()));
    picture(&at("forget/own.png".into()), 100);
    write(&at("forget/own.txt".into()), "a hat\n");
    let mut listing = String::new();
    for number in 0..count {
        picture(&at(format!("retain/{number}.png")), number);
        let caption = ["a dog", "a cat"][number % 2];
        listing += &format!("{{\"file_name\": \"{number}.png\", \"text\": \"{caption}\"}}\n");
    }
    write(&at("retain/metadata.jsonl".into()), &listing);
    place
}

fn text_place(count: usize) -> TempDir {
    captioned(text_model, count)
}

fn told(
    place: &Path,
    out: &str,
    more: &str,
    progress: &dyn Progress,
) -> Result<job::Summary, String> {
    let folder = |option: &str, name: &str| format!("--{option}={}", place.join(name).display());
    let folders = [
        ("model", "model"),
        ("forget", "forget"),
        ("retain", "retain"),
        ("out", out),
    ];
    let folders = folders.map(|(option, name)| folder(option, name));
    let usual = "--steps=2 --batch=4 --samples=2";
    let more = more.replace("PLACE", &place.display().to_string());
    let words = usual
        .split_whitespace()
        .chain(more.split_whitespace())
        .map(String::from);
    let arguments = ["unlearn".into()].into_iter().chain(folders).chain(words);
    let options = options::Options::try_parse_from(arguments).map_err(|error| error.to_string())?;
    job::run(options, progress).map_err(|error| error.to_string())
}

fn run(place: &Path, out: &str, more: &str) -> Result<job::Summary, String> {
    told(place, out, more, &Told::default())
}

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn weights(place: &Path, name: &str) -> Vec<u8> {
    fs::read(place.join(name).join(WEIGHTS)).unwrap()
}

/// The files below a folder, by their paths in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_path_buf();
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
    }
    found
}

/// Rewrites a file of weights in half precision.
fn halve(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut halves = Vec::new();
    for (name, tensor) in tensors.tensors() {
        let values = tensor.data().chunks_exact(4);
        let values: Vec<f32> = values
            .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
            .collect();
        let data = TensorData::new(values, tensor.shape().to_vec()).convert_dtype(DType::F16);
        halves.push((name, tensor.shape().to_vec(), data.as_bytes().to_vec()));
    }
    let views = halves.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// With 43 images 35 are left to predict answers from, and 32 are needed; with 20 the answers are
/// those under other classes. The same run gives the same bits, and its model is a conditional one.
#[test]
fn a_model_with_classes_is_unlearned_under_the_class_of_the_picture() {
    for (count, says) in [(43, "35 retained images explain"), (20, "under class 3")] {
        let place = class_place(count);
        let place = place.path();
        let progress = Told::default();
        // An untrained model may have nothing to forget; by learning the retained noise its weights
        // move all the same.
        let more = "--null-label 3 --guidance 2 --drop-condition 0.1 --clipper fraction:0.3:1";
        let summary = told(place, "out", more, &progress).unwrap();
        assert!(progress.text().contains(says), "{}", progress.text());
        let told = "told     forgotten: `class 1`; 3 different for the others; pictures are generated with guidance 2";
        assert!(progress.text().contains(told), "{}", progress.text());
        assert_eq!(summary.images[0].condition.as_deref(), Some("class 1"));
        assert_eq!(summary.predicted.is_some(), count == 43);
        assert!(
            summary
                .after
                .forget_loss
                .values()
                .all(|loss| loss.is_finite())
        );

        run(place, "again", more).unwrap();
        let after = weights(place, "out/model");
        assert_eq!(after, weights(place, "again/model"));
        assert_ne!(after, weights(place, "model"));
        let read = UNet2d::load(place.join("out/model"), &Device::flex()).unwrap();
        assert_eq!(read.config().num_class_embeds, Some(4));
        read.with_classes().unwrap();
        for picture in ["before.png", "after.png", "denoised.png"] {
            assert!(place.join("out").join(picture).exists(), "{picture}");
        }
    }
}

/// Only the network changes: everything else in its folder is as in the original.
fn assert_rest_is_copied(place: &Path, weights: &str) {
    let (was, is) = (files(&place.join("model")), files(&place.join("out/model")));
    for (name, bytes) in &was {
        let same = is.get(name) == Some(bytes);
        assert_eq!(same, name != Path::new(weights), "{}", name.display());
    }
}

/// A transformer of latents is unlearned like a network of pixels: guidance and the class for none
/// are its pipeline's, and the variance that it also predicts is not trained.
#[test]
fn a_transformer_with_classes_is_unlearned() {
    const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
    let place = place_of(|folder| transformer_model(folder, true), 20);
    let place = place.path();
    let progress = Told::default();
    let summary = told(place, "out", "--cache PLACE/cache", &progress).unwrap();
    let text = progress.text();
    assert!(text.contains("under class 3"), "{text}");
    assert!(
        text.contains("`class 1`") && text.contains("guidance 4"),
        "{text}"
    );
    assert_eq!(
        summary.latents,
        Some([0, 1 + summary.control_images + summary.retain_images])
    );
    assert_rest_is_copied(place, WEIGHTS);
    let [before, after] = ["model", "out/model"].map(|name| place.join(name).join(WEIGHTS));
    let [before, after] = [before, after].map(|path| fs::read(path).unwrap());
    let [before, after] = [&before, &after].map(|it| SafeTensors::deserialize(it).unwrap());
    let output =
        |tensors: &SafeTensors<'_>| tensors.tensor("proj_out_2.weight").unwrap().data().to_vec();
    let (before, after) = (output(&before), output(&after));
    // Of each pixel of a patch, the first four of the eight outputs are the prediction.
    let row = before.len() / (4 * 8);
    for (index, (was, is)) in before.chunks(row).zip(after.chunks(row)).enumerate() {
        assert_eq!(was != is, index % 8 < 4, "output {index}");
    }
    Dit::load(place.join("out/model"), &Device::flex()).unwrap();
}

/// Without an autoencoder the points are pixels, which can be streamed.
#[test]
fn a_transformer_of_pixels_is_unlearned_and_streamed() {
    let place = place_of(|folder| transformer_model(folder, false), 20);
    let place = place.path();
    let more = "--method siss --target none";
    let summary = run(place, "out", &format!("{more} --stream")).unwrap();
    assert!(summary.stream.is_some() && summary.latents.is_none());
    Dit::load(place.join("out/model"), &Device::flex()).unwrap();
    // The written folder is a model again.
    fs::rename(place.join("model"), place.join("earlier")).unwrap();
    fs::rename(place.join("out/model"), place.join("model")).unwrap();
    run(place, "again", more).unwrap();
}

/// The scheduler's file decides which process a network is of.
#[test]
fn a_transformer_of_flow_matching_is_unlearned() {
    let place = place_of(|folder| transformer_model(folder, false), 43);
    let place = place.path();
    write(
        &place.join("model/scheduler/scheduler_config.json"),
        FLOW_SCHEDULER,
    );
    let progress = Told::default();
    // An untrained model may have nothing to forget; by learning the retained noise its weights
    // move all the same.
    let learns = "--clipper fraction:0.3:1";
    let summary = told(place, "out", learns, &progress).unwrap();
    assert!(matches!(summary.model.process, Process::Flow(_)));
    let text = progress.text();
    assert!(text.contains("35 retained images explain"), "{text}");
    let read = Dit::load(place.join("out/model"), &Device::flex()).unwrap();
    assert_eq!(read.prediction_type(), PredictionType::FlowVelocity);
    assert_eq!(read.notes(), []);
}

/// Zeros stand for no prompt, as in the pipeline, unless its index says that the empty prompt does.
#[test]
fn stable_diffusion_xl_is_unlearned_with_two_encoders() {
    let place = captioned(xl_model, 20);
    let place = place.path();
    let more = "--method siss --target none --drop-condition 0.5";
    let summary = run(place, "out", more).unwrap();
    assert_eq!(summary.images[0].condition.as_deref(), Some("a hat"));
    assert_rest_is_copied(place, WEIGHTS);
    UNet2dCondition::load(place.join("out/model"), &Device::flex()).unwrap();

    let encoded = format!(r#"{XL_PARTS}, "force_zeros_for_empty_prompt": false"#);
    write(&place.join("model/model_index.json"), &index(&encoded));
    run(place, "encoded", more).unwrap();
    assert_ne!(weights(place, "out/model"), weights(place, "encoded/model"));
}

/// Factors of both text encoders are used, those of the network are trained.
#[test]
fn a_lora_of_stable_diffusion_xl_is_unlearned_alone() {
    let place = captioned(xl_model, 20);
    let place = place.path();
    let unet = UNet2dCondition::load(place.join("model"), &Device::flex()).unwrap();
    let lora = Lora::new(&unet, LoraPart::Unet, &["to_q", "to_v"], 2, 1).unwrap();
    lora.save(place.join("mine.safetensors")).unwrap();
    let before = fs::read(place.join("mine.safetensors")).unwrap();
    let more = "--lora PLACE/mine.safetensors --learning-rate 1e-2";
    let summary = run(place, "out", more).unwrap();
    assert!(summary.model.trained < summary.model.parameters);
    let written = files(&place.join("out/model"));
    assert_eq!(written.len(), 1);
    assert_ne!(written[Path::new("mine.safetensors")], before);
}

#[test]
fn a_new_lora_is_trained_on_a_frozen_model() {
    let place = captioned(text_model, 20);
    let place = place.path();
    let more = "--lora-rank 2 --learning-rate 1e-2 --clipper fraction:0.3:1";
    let summary = run(place, "out", more).unwrap();
    assert!(summary.model.trained < summary.model.parameters / 10);
    let written = files(&place.join("out/model"));
    let names: Vec<_> = written
        .keys()
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(names, ["pytorch_lora_weights.safetensors"]);
    let lora = Lora::load(place.join("out/model").join(&names[0])).unwrap();
    assert_eq!(lora.num_params(LoraPart::Unet), summary.model.trained);
    // The second factor of each layer is 0 in a new LoRA.
    let bytes = written.values().next().unwrap();
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    let mut second = tensors.iter().filter(|(name, _)| name.contains("lora_B"));
    assert!(second.all(|(_, tensor)| tensor.data().iter().any(|&byte| byte != 0)));
    for (rank, part) in [("0", "--lora-rank"), ("2 --lora l", "--lora")] {
        let error = run(place, "other", &format!("--lora-rank {rank}")).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

/// A single file and a folder without weights are unlearned as the whole folder is, and the result
/// is a single file again.
#[test]
fn a_single_file_of_stable_diffusion_is_unlearned() {
    let device = Device::flex();
    let place = text_place(20);
    let place = place.path();
    let folder = place.join("model");
    let parts = (
        UNet2dCondition::load(&folder, &device).unwrap(),
        AutoencoderKl::load(&folder, &device).unwrap(),
        ClipTextEncoder::load(&folder, &device).unwrap(),
    );
    let more = "--method siss --target none";
    run(place, "whole", more).unwrap();

    fs::rename(&folder, place.join("config")).unwrap();
    SingleFile::create(&folder, &parts.0, &parts.1, &parts.2).unwrap();
    let error = run(place, "out", more).unwrap_err();
    for part in [
        "single file",
        "--config DIR",
        "no tokenizer",
        "diffusers layout",
    ] {
        assert!(error.contains(part), "{error}");
    }
    for weights in [
        WEIGHTS,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        fs::remove_file(place.join("config").join(weights)).unwrap();
    }
    let progress = Told::default();
    let more = format!("{more} --config PLACE/config");
    told(place, "out", &more, &progress).unwrap();
    assert!(!progress.text().contains("assumed"), "{}", progress.text());
    let written: Vec<_> = files(&place.join("out/model")).into_keys().collect();
    assert_eq!(written, [Path::new("model")]);
    let file = SingleFile::open(place.join("out/model/model")).unwrap();
    let unet = file.unet_with(parts.0.config(), &device).unwrap();
    unet.save(place.join("again")).unwrap();
    let of_folder = UNet2dCondition::load(place.join("whole/model"), &device).unwrap();
    of_folder.save(place.join("expected")).unwrap();
    let [again, expected] = ["again", "expected"].map(|name| files(&place.join(name)));
    assert!(
        again == expected,
        "the file and the folder were unlearned differently"
    );

    fs::remove_file(place.join("config/tokenizer/vocab.json")).unwrap();
    let error = run(place, "none", &more).unwrap_err();
    assert!(error.contains("config/tokenizer/vocab.json"), "{error}");
}

/// Version 2 with linear projections.
fn second_model(folder: &Path) {
    text_model(folder);
    let config = UNet2dConditionConfig::from_file(folder.join("unet/config.json")).unwrap();
    let config = UNet2dConditionConfig {
        use_linear_projection: true,
        ..config
    };
    let unet = config.init(&Device::flex()).unwrap();
    unet.save(folder.join("unet")).unwrap();
}

/// Names, shapes and values of a file in single precision.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors_of(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = tensors.tensors().into_iter();
    let copy = tensors.map(|(name, it)| (name, (it.shape().to_vec(), it.data().to_vec())));
    copy.collect()
}

fn write_tensors(tensors: &Tensors, file: &Path) {
    let views = tensors.iter().map(|(name, (shape, data))| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, file).unwrap();
}

/// The text encoder of a folder in the layout of OpenCLIP: queries, keys and values above each
/// other, the projection transposed, and what no network takes.
fn open_clip(folder: &Path, prefix: &str) -> Tensors {
    let mut packed = Tensors::new();
    for (name, (shape, data)) in tensors_of(&folder.join("model.safetensors")) {
        if name == "text_projection.weight" {
            let values: Vec<&[u8]> = data.chunks(4).collect();
            let rows = values.chunks(shape[1]);
            let column = |index: usize| {
                let rows = rows.clone();
                rows.flat_map(move |row: &[&[u8]]| row[index].to_vec())
            };
            let data = (0..shape[1]).flat_map(column).collect();
            packed.insert(
                format!("{prefix}text_projection"),
                (vec![shape[1], shape[0]], data),
            );
            continue;
        }
        let mut place = name.replace("text_model.encoder.layers", "transformer.resblocks");
        for (own, there) in [
            (
                "text_model.embeddings.position_embedding.weight",
                "positional_embedding",
            ),
            ("text_model.embeddings.", ""),
            ("text_model.final_layer_norm", "ln_final"),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.out_proj", "attn.out_proj"),
        ] {
            place = place.replace(own, there);
        }
        let projections = ["q", "k", "v"].map(|it| format!("self_attn.{it}_proj."));
        let part = projections.iter().position(|it| place.contains(it));
        if let Some(part) = part {
            place = place.replace(&projections[part], "attn.in_proj_");
        }
        let place = format!("{prefix}{place}");
        match part {
            None => drop(packed.insert(place, (shape, data))),
            Some(part) => {
                let mut whole = shape.clone();
                whole[0] *= 3;
                let empty = (whole, vec![0; 3 * data.len()]);
                let (_, values) = packed.entry(place).or_insert(empty);
                values[part * data.len()..][..data.len()].copy_from_slice(&data);
            }
        }
    }
    let one = 1_f32.to_le_bytes().to_vec();
    packed.insert(format!("{prefix}logit_scale"), (vec![], one.clone()));
    if prefix.starts_with("cond_stage_model") {
        for unused in ["text_projection", "transformer.resblocks.2.ln_1.weight"] {
            packed.insert(format!("{prefix}{unused}"), (vec![1], one.clone()));
        }
    }
    packed
}

/// Files of version 2 and of XL hold an encoder in the layout of OpenCLIP, so that the folder needs
/// no weights at all.
#[test]
fn single_files_of_versions_2_and_xl_hold_their_encoders() {
    const FIRST: &str = "cond_stage_model.transformer.";
    let device = Device::flex();
    // The name of the first encoder in the file, or none; the prefix of the one of OpenCLIP, and
    // its folder.
    type Case = (fn(&Path), Option<&'static str>, [&'static str; 2]);
    let cases: [Case; 2] = [
        (
            second_model,
            None,
            ["cond_stage_model.model.", "text_encoder"],
        ),
        (
            xl_model,
            Some("conditioner.embedders.0.transformer."),
            ["conditioner.embedders.1.model.", "text_encoder_2"],
        ),
    ];
    for (model, first, [prefix, encoder_folder]) in cases {
        let place = captioned(model, 20);
        let place = place.path();
        let (folder, config) = (place.join("model"), place.join("config"));
        let more = "--method siss --target none";
        run(place, "whole", more).unwrap();
        let unet = UNet2dCondition::load(&folder, &device).unwrap();
        let autoencoder = AutoencoderKl::load(&folder, &device).unwrap();
        let encoder = ClipTextEncoder::load(folder.join("text_encoder"), &device).unwrap();
        fs::rename(&folder, &config).unwrap();
        SingleFile::create(&folder, &unet, &autoencoder, &encoder).unwrap();

        let renamed = tensors_of(&folder)
            .into_iter()
            .filter_map(|(name, tensor)| match (name.strip_prefix(FIRST), first) {
                (Some(_), None) => None,
                (Some(rest), Some(first)) => Some((format!("{first}{rest}"), tensor)),
                (None, _) => Some((name, tensor)),
            });
        let pruned: Tensors = renamed.collect();
        let mut whole = pruned.clone();
        whole.extend(open_clip(&config.join(encoder_folder), prefix));
        write_tensors(&whole, &folder);
        for file in files(&config).into_keys() {
            if file
                .extension()
                .is_some_and(|ending| ending == "safetensors")
            {
                fs::remove_file(config.join(file)).unwrap();
            }
        }

        let more = format!("{more} --config PLACE/config");
        run(place, "out", &more).unwrap();
        let written = place.join("out/model/model");
        for (name, tensor) in tensors_of(&written) {
            let is_unet = name.starts_with("model.diffusion_model.");
            assert!(is_unet || tensor == whole[&name], "{name}");
            whole.remove(&name);
        }
        assert!(whole.is_empty(), "{whole:?}");
        let file = SingleFile::open(&written).unwrap();
        let again = file.unet_with(unet.config(), &device).unwrap();
        again.save(place.join("again")).unwrap();
        let of_folder = UNet2dCondition::load(place.join("whole/model"), &device).unwrap();
        of_folder.save(place.join("expected")).unwrap();
        let [again, expected] = ["again", "expected"].map(|name| files(&place.join(name)));
        assert!(again == expected, "{prefix}: unlearned differently");

        // Without it, that of the folder is read.
        write_tensors(&pruned, &folder);
        let error = run(place, "none", &more).unwrap_err();
        let needed = format!("config/{encoder_folder}");
        assert!(error.contains(&needed), "{error}");
    }
}

/// Along the path of flow matching, with answers that are predicted and with those under no prompt.
#[test]
fn stable_diffusion_3_is_unlearned_along_the_path_of_flow_matching() {
    for (count, says) in [
        (43, "35 retained images explain"),
        (20, "under the empty prompt"),
    ] {
        let place = captioned(flow_model, count);
        let place = place.path();
        let progress = Told::default();
        // An untrained model may have nothing to forget; by learning the retained noise its weights
        // move all the same.
        let learns = "--clipper fraction:0.3:1";
        let summary = told(place, "out", learns, &progress).unwrap();
        let text = progress.text();
        for part in [says, "predicts", "guidance 7"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(summary.predicted.is_some(), count == 43);
        for losses in [&summary.before.forget_loss, &summary.after.control_loss] {
            assert!(losses.values().all(|loss| loss.is_finite() && *loss > 0.0));
        }
        assert_rest_is_copied(place, "transformer/diffusion_pytorch_model.safetensors");
        Sd3Transformer::load(place.join("out/model"), &Device::flex()).unwrap();
    }
}

/// A third encoder is copied and not used; the scheduler of another process is refused.
#[test]
fn parts_of_stable_diffusion_3_that_are_not_used_are_told() {
    let place = captioned(flow_model, 20);
    let place = place.path();
    let third = FLOW_INDEX.replace(
        r#""text_encoder_3": [null, null]"#,
        r#""text_encoder_3": ["transformers", "T5EncoderModel"]"#,
    );
    write(&place.join("model/model_index.json"), &third);
    write(&place.join("model/text_encoder_3/config.json"), "{}");
    let progress = Told::default();
    let more = "--method siss --target none --guidance 1";
    told(place, "out", more, &progress).unwrap();
    assert!(
        progress
            .text()
            .contains("`text_encoder_3`, T5) is not used"),
        "{}",
        progress.text()
    );
    assert!(place.join("out/model/text_encoder_3/config.json").exists());

    write(
        &place.join("model/scheduler/scheduler_config.json"),
        SCHEDULER,
    );
    let error = run(place, "other", more).unwrap_err();
    for part in ["scheduler_config.json", "FlowVelocity", "Epsilon"] {
        assert!(error.contains(part), "{error}");
    }
}

/// The class of the network decides, and of the pipeline; the error says what is unlearned.
#[test]
fn other_models_are_refused_by_the_name_of_their_class() {
    let flux = r#"{"_class_name": "FluxTransformer2DModel", "num_layers": 19}"#;
    let pixart = r#"{"_class_name": "PixArtTransformer2DModel"}"#;
    let older = r#"{"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}"#;
    let video = r#"{"_class_name": "UNet3DConditionModel"}"#;
    let inpainting = r#"{"_class_name": "UNet2DConditionModel", "in_channels": 9}"#;
    let score = r#"{"_class_name": "UNet2DModel", "down_block_types": ["SkipDownBlock2D"]}"#;
    let cases = [
        (
            "FluxPipeline",
            "transformer",
            flux,
            "FluxTransformer2DModel",
        ),
        (
            "PixArtAlphaPipeline",
            "transformer",
            pixart,
            "PixArtTransformer2DModel",
        ),
        (
            "PixArtAlphaPipeline",
            "transformer",
            older,
            "Transformer2DModel",
        ),
        (
            "TextToVideoSDPipeline",
            "unet",
            video,
            "UNet3DConditionModel",
        ),
        (
            "StableDiffusionInpaintPipeline",
            "unet",
            inpainting,
            "inpainting",
        ),
        ("ScoreSdeVePipeline", "unet", score, "SkipDownBlock2D"),
    ];
    let place = text_place(1);
    let place = place.path();
    for (pipeline, part, config, names) in cases {
        fs::remove_dir_all(place.join("model")).unwrap();
        write(&place.join("model").join(part).join("config.json"), config);
        write(
            &place.join("model/scheduler/scheduler_config.json"),
            SCHEDULER,
        );
        let index = format!(r#"{{"_class_name": "{pipeline}"}}"#);
        write(&place.join("model/model_index.json"), &index);
        let error = run(place, "out", "").unwrap_err();
        for part in [pipeline, names, "Stable Diffusion 1, 2, XL and 3"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

/// The class decides: under another one the model is changed in another way. A model that was saved
/// is unlearned again.
#[test]
fn a_label_can_be_given_for_the_forgotten_images() {
    let place = class_place(20);
    let place = place.path();
    fs::rename(place.join("forget/1"), place.join("forget/none")).unwrap();
    let error = run(place, "out", "").unwrap_err();
    assert!(
        error.contains("own.png") && error.contains("no label"),
        "{error}"
    );
    let run = |out: &str, label: usize| {
        run(
            place,
            out,
            &format!("--label {label} --method siss --target none"),
        )
        .unwrap()
    };
    let summary = run("one", 1);
    assert_eq!(summary.images[0].condition.as_deref(), Some("class 1"));
    run("two", 2);
    assert_ne!(weights(place, "one/model"), weights(place, "two/model"));
    fs::rename(place.join("model"), place.join("earlier")).unwrap();
    fs::rename(place.join("one/model"), place.join("model")).unwrap();
    run("three", 1);
}

/// Only the network changes, in its precision; everything else is copied byte for byte. The second
/// run reads the latents of the first and does the same.
#[test]
fn stable_diffusion_is_unlearned_on_latents_that_are_encoded_once() {
    let place = text_place(43);
    let place = place.path();
    halve(&place.join("model").join(WEIGHTS));
    let progress = Told::default();
    let summary = told(place, "out", "--cache PLACE/cache", &progress).unwrap();
    for part in [
        "the text encoder",
        "the autoencoder",
        "35 retained images explain",
    ] {
        assert!(progress.text().contains(part), "{}", progress.text());
    }
    assert_eq!(summary.images[0].condition.as_deref(), Some("a hat"));
    let [read, encoded] = summary.latents.unwrap();
    assert_eq!((read, encoded), (0, 1 + 8 + summary.retain_images));

    let again = run(place, "again", "--cache PLACE/cache").unwrap();
    assert_eq!(again.latents, Some([encoded, 0]));
    let plain = run(place, "plain", "").unwrap();
    assert_eq!(plain.latents, Some([0, encoded]));
    let after = weights(place, "out/model");
    assert_eq!(after, weights(place, "again/model"));
    assert_eq!(after, weights(place, "plain/model"));

    assert_rest_is_copied(place, WEIGHTS);
    let tensors = SafeTensors::deserialize(&after).unwrap();
    assert!(
        tensors
            .tensors()
            .iter()
            .all(|(_, tensor)| tensor.dtype() == Dtype::F16)
    );
    let folder = place.join("out/model");
    UNet2dCondition::load(&folder, &Device::flex()).unwrap();
    AutoencoderKl::load(&folder, &Device::flex()).unwrap();
    ClipTextEncoder::load(&folder, &Device::flex()).unwrap();
}

/// What is searched for along the way decides what the model learns; a run that was stopped and
/// resumed is the same run.
#[test]
fn embeddings_are_searched_for_while_the_model_forgets() {
    let place = text_place(20);
    let place = place.path();
    let more = "--adversarial 2 --overwrite";
    run(place, "out", more).unwrap();
    run(place, "plain", &more.replace("--adversarial 2", "")).unwrap();
    let after = weights(place, "out/model");
    assert_ne!(after, weights(place, "plain/model"));

    run(place, "again", &format!("{more} --checkpoint-every 1")).unwrap();
    assert_eq!(after, weights(place, "again/model"));
    let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let found: Vec<String> = fs::read_dir(place.join("again/checkpoints"))
        .unwrap()
        .map(|entry| name(entry.unwrap().path()))
        .collect();
    let newest = found.iter().filter(|it| it.starts_with("step-")).max();
    fs::remove_dir_all(place.join("again/checkpoints").join(newest.unwrap())).unwrap();
    let resumed = more.replace("--overwrite", "--checkpoint-every 1 --resume");
    run(place, "again", &resumed).unwrap();
    assert_eq!(after, weights(place, "again/model"));
    let error = run(
        place,
        "again",
        &resumed.replace("--adversarial 2", "--adversarial 3"),
    );
    assert!(error.unwrap_err().contains("adversary"));

    let place = class_place(20);
    let error = run(place.path(), "out", "--adversarial 2").unwrap_err();
    assert!(
        error.contains("--adversarial") && error.contains("of no use"),
        "{error}"
    );
}

/// Nothing but the user's own LoRA changes, and it is written as it came.
#[test]
fn a_lora_is_unlearned_alone() {
    let place = text_place(20);
    let place = place.path();
    let unet = UNet2dCondition::load(place.join("model"), &Device::flex()).unwrap();
    let lora = Lora::new(&unet, LoraPart::Unet, &["to_q", "to_v"], 2, 1).unwrap();
    lora.save(place.join("mine.safetensors")).unwrap();
    let progress = Told::default();
    let more = "--lora PLACE/mine.safetensors --neighbour-prompt hat --learning-rate 1e-2 --report";
    told(place, "out", more, &progress).unwrap();
    assert!(
        progress.text().contains("under the prompt `hat`"),
        "{}",
        progress.text()
    );
    let written = files(&place.join("out/model"));
    let names: Vec<_> = written.keys().collect();
    assert_eq!(names, [Path::new("mine.safetensors")]);
    let before = fs::read(place.join("mine.safetensors")).unwrap();
    let after = &written[Path::new("mine.safetensors")];
    assert_ne!(&before, after);
    let [before, after] = [&before, after].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(before.names().len(), after.names().len());
    for name in before.names() {
        assert_eq!(
            before.tensor(name).unwrap().shape(),
            after.tensor(name).unwrap().shape()
        );
    }
    Lora::load(place.join("out/model/mine.safetensors")).unwrap();
    // The report is about the LoRA, which is what changed.
    let report = fs::read_to_string(place.join("out/report.json")).unwrap();
    assert!(report.contains("mine.safetensors"), "{report}");
}

/// Audits a model and the one that it became, in the short form.
fn audited(place: &Path, after: &str, more: &str) -> Result<AuditReport, String> {
    let more = more.replace("PLACE", &place.display().to_string());
    let at = |name: &str| place.join(name).display().to_string();
    let mut arguments: Vec<String> = ["audit", "--quick", "--samples=4"].map(String::from).into();
    for (option, name) in [
        ("before", "model"),
        ("forget", "forget"),
        ("retain", "retain"),
        ("control", "retain"),
        ("out", "audit"),
    ] {
        arguments.push(format!("--{option}={}", at(name)));
    }
    if !after.is_empty() {
        arguments.push(format!("--after={}", at(after)));
    }
    arguments.extend(more.split_whitespace().map(String::from));
    let command = Command::try_parse_from(arguments).map_err(|error| error.to_string())?;
    audit::job::run(&command.options, &Silent).map_err(|error| error.to_string())
}

/// The losses of the chart over the timesteps, and the names of all signals.
fn measured(report: &AuditReport) -> (Vec<f64>, Vec<&str>) {
    let signals = report.tests.iter().map(|test| test.signal.as_str());
    let lines = report.charts[0].lines.iter();
    let losses = lines.flat_map(|line| line.points.iter().map(|&(_, loss)| loss));
    (losses.collect(), signals.collect())
}

#[test]
fn models_with_a_condition_are_audited_under_the_items_own() {
    let place = class_place(20);
    let place = place.path();
    run(place, "out", "--clipper fraction:0.3:1").unwrap();
    let of = |more: &str| audited(place, "out/model", more).unwrap();
    let own = of("--null-label 3 --guidance 2");
    let (losses, signals) = measured(&own);
    assert!(losses.iter().all(|loss| loss.is_finite() && *loss > 0.0));
    assert!(signals.contains(&"loss") && signals.contains(&"SecMI at timestep 100"));
    // The label of its folder is 1, and under another the loss is another.
    assert_eq!(losses, measured(&of("--label 1")).0);
    assert_ne!(losses, measured(&of("--label 2")).0);
    assert!(
        own.data.description.contains("guidance 2"),
        "{}",
        own.data.description
    );
    let open = own.not_tested.iter().map(|open| open.what.as_str());
    assert!(open.clone().any(|what| what.contains("embeddings")));
    assert!(open.clone().any(|what| what.contains("likelihood ratio")));
    let error = audited(place, "out/model", "--prompts PLACE/forget").unwrap_err();
    let takes = "--prompts is of no use for the model of";
    assert!(
        error.contains(takes) && !error.contains("drop-condition"),
        "{error}"
    );

    let place = captioned(flow_model, 20);
    let place = place.path();
    run(place, "out", "--clipper fraction:0.3:1").unwrap();
    let report = audited(place, "out/model", "").unwrap();
    let (losses, signals) = measured(&report);
    assert!(losses.iter().all(|loss| loss.is_finite() && *loss > 0.0));
    assert!(
        !signals.iter().any(|signal| signal.contains("PIA")),
        "{signals:?}"
    );
    let open = report.not_tested.iter();
    assert!(open.clone().any(|open| open.what.contains("PIA")));
}

/// With one noise the first item has the same alone and beside another, so that another class of it
/// changes the sum of both losses by as much as its own.
#[test]
fn each_item_is_audited_under_its_own_class() {
    let place = class_place(20);
    let place = place.path();
    fs::remove_dir_all(place.join("forget")).unwrap();
    let sums = |labels: &[usize]| -> Vec<f64> {
        let folder = place.join("forget");
        let mut listing = String::new();
        for (number, label) in labels.iter().enumerate() {
            let name = format!("{number}.png");
            picture(&folder.join(&name), 100 + number);
            listing += &format!("{{\"file_name\": \"{name}\", \"label\": {label}}}\n");
        }
        write(&folder.join("metadata.jsonl"), &listing);
        let report = audited(place, "model", "--noises 1").unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let before = report.charts[0].lines[0].points.iter();
        before.map(|point| point.1 * labels.len() as f64).collect()
    };
    let differences = |one: &[usize], other: &[usize]| -> Vec<f64> {
        let (one, other) = (sums(one), sums(other));
        one.iter()
            .zip(other)
            .map(|(one, other)| one - other)
            .collect()
    };
    let (alone, beside) = (differences(&[1], &[2]), differences(&[1, 0], &[2, 0]));
    assert!(alone.iter().any(|change| change.abs() > 1e-3), "{alone:?}");
    for (alone, beside) in alone.iter().zip(&beside) {
        assert!((alone - beside).abs() < 1e-5, "{alone} {beside}");
    }
}

/// Of an earlier request, under the class of its own folder; without a class it is left open.
#[test]
fn an_earlier_item_is_tested_again_under_its_own_class() {
    let place = class_place(20);
    let place = place.path();
    let log = "--log PLACE/log.jsonl";
    audited(place, "model", &format!("{log} --label 2")).unwrap();
    fs::rename(place.join("forget"), place.join("first")).unwrap();
    picture(&place.join("forget/2/next.png"), 101);
    let of = |earlier: &str| {
        let more = format!("{log} --label 0 --earlier PLACE/{earlier}");
        audited(place, "model", &more).unwrap()
    };
    let found = of("first");
    assert_eq!(found.rechecks.len(), 1, "{:?}", found.not_tested);
    fs::create_dir(place.join("plain")).unwrap();
    fs::copy(place.join("first/1/own.png"), place.join("plain/own.png")).unwrap();
    let left_open = of("plain");
    assert!(left_open.rechecks.is_empty());
    let why = left_open.not_tested.iter().map(|open| open.why.as_str());
    assert!(why.clone().any(|why| why.contains("its file was given")));
}

#[test]
fn a_lora_is_audited_beside_the_model_that_it_belongs_to() {
    let place = text_place(20);
    let place = place.path();
    let unet = UNet2dCondition::load(place.join("model"), &Device::flex()).unwrap();
    let lora = Lora::new(&unet, LoraPart::Unet, &["to_q", "to_v"], 2, 1).unwrap();
    lora.save(place.join("mine.safetensors")).unwrap();
    let trained = "--lora PLACE/mine.safetensors --learning-rate 1e-1 --clipper fraction:0.3:1";
    run(place, "out", trained).unwrap();
    let pair = "--lora PLACE/mine.safetensors --unlearned-lora PLACE/out/model/mine.safetensors";
    let report = audited(place, "", pair).unwrap();
    assert_ne!(report.model.before_sha256, report.model.after_sha256);
    let [before, after] = &report.charts[0].lines[..] else {
        panic!("a line before and one after");
    };
    assert_ne!(before.points, after.points);
    for (options, names) in [
        ("", "--after"),
        ("--unlearned-lora PLACE/mine.safetensors", "--lora"),
        (
            "--after=PLACE/model --unlearned-lora PLACE/mine.safetensors",
            "cannot be used with",
        ),
    ] {
        let error = audited(place, "", options).unwrap_err();
        assert!(error.contains(names), "{options}: {error}");
    }
}

/// Captions from a file of their own, and none.
#[test]
fn prompts_come_from_a_file_and_a_missing_one_is_named() {
    let place = text_place(20);
    let place = place.path();
    fs::remove_file(place.join("forget/own.txt")).unwrap();
    let error = run(place, "out", "").unwrap_err();
    for part in ["forget/own.png", "no caption", "own.txt", "metadata.jsonl"] {
        assert!(error.contains(part), "{error}");
    }
    let prompts = "{\"file_name\": \"forget/own.png\", \"text\": \"a hat\"}";
    write(&place.join("prompts.jsonl"), prompts);
    let more = "--prompts PLACE/prompts.jsonl --method siss --target none --drop-prompt 0.5";
    let summary = run(place, "out", more).unwrap();
    assert_eq!(summary.images[0].condition.as_deref(), Some("a hat"));
    let kept = run(place, "kept", &more.replace("0.5", "0")).unwrap();
    assert_eq!(kept.images[0].condition.as_deref(), Some("a hat"));
    // Which rows have no prompt decides what the model learns.
    assert_ne!(weights(place, "out/model"), weights(place, "kept/model"));
}

/// Every message names the file, folder or option, and says what to do.
#[test]
fn bad_conditions_are_refused_by_name() {
    type Case = (
        &'static str,
        fn() -> TempDir,
        fn(&Path),
        &'static str,
        &'static [&'static str],
    );
    let cases: [Case; 9] = [
        (
            "a class that the network has not",
            || class_place(20),
            |_| {},
            "--label 4",
            &["--label", "4", "0 to 3"],
        ),
        (
            "a folder of another class",
            || class_place(20),
            |place| fs::rename(place.join("retain/2"), place.join("retain/9")).unwrap(),
            "",
            &["retain/9/", "label is 9", "0 to 3"],
        ),
        (
            "guidance without a class for none",
            || class_place(20),
            |_| {},
            "--guidance 3",
            &["--guidance", "--null-label"],
        ),
        (
            "an option of the other kind",
            || class_place(20),
            |_| {},
            "--cache PLACE/cache",
            &["--cache", "of no use", "pixels"],
        ),
        (
            "an option for classes",
            || text_place(20),
            |_| {},
            "--label 1",
            &["--label", "of no use", "--prompts"],
        ),
        (
            "two text encoders",
            || text_place(20),
            |place| {
                let more = r#", "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]"#;
                write(&place.join("model/model_index.json"), &index(more));
            },
            "",
            &["model_index.json", "`text_encoder_2`"],
        ),
        (
            "no tokenizer",
            || text_place(20),
            |place| fs::remove_dir_all(place.join("model/tokenizer")).unwrap(),
            "",
            &["tokenizer/vocab.json"],
        ),
        (
            "no autoencoder",
            || text_place(20),
            |place| fs::remove_dir_all(place.join("model/vae")).unwrap(),
            "",
            &["vae/config.json"],
        ),
        (
            "a range of latents",
            || text_place(20),
            |_| {},
            "--range 0:1",
            &["--range", "leave it out"],
        ),
    ];
    for (what, place, spoil, more, parts) in cases {
        let place = place();
        spoil(place.path());
        let error = run(place.path(), "out", more).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{what}: {error}");
        }
        assert!(!place.path().join("out/model").exists(), "{what}");
    }
}

#[test]
fn a_broken_file_of_the_cache_is_named() {
    let place = text_place(20);
    let place = place.path();
    let more = "--method siss --target none --cache PLACE/cache";
    run(place, "out", more).unwrap();
    let file = fs::read_dir(place.join("cache"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(&file, "torn").unwrap();
    let error = run(place, "again", more).unwrap_err();
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        error.contains(&name) && error.contains("remove the file"),
        "{error}"
    );
}

/// The same variants are made and tested every time, and the triggers are a folder for `unlearn`.
#[test]
fn variants_are_searched_for_and_tested() {
    let place = text_place(20);
    let place = place.path();
    let folder = |name: &str| place.join(name).display().to_string();
    write(&place.join("words.txt"), "red old\ntree house sky");
    let search = |out: &str, more: &str| {
        let mut arguments = vec![
            "prompt_variants".into(),
            format!("--model={}", folder("model")),
            format!("--forget={}", folder("forget")),
            format!("--out={}", folder(out)),
            "--samples=2".into(),
            "--search=6".into(),
        ];
        arguments.extend(more.split_whitespace().map(String::from));
        let options = variants::Options::try_parse_from(arguments).unwrap();
        variants::run(&options, &Told::default()).map_err(|error| error.to_string())
    };
    // The tokenizer of single letters has no words.
    assert!(search("none", "").unwrap_err().contains("--words"));
    let words = format!("--words={}", folder("words.txt"));
    let table = search("one", &words).unwrap();
    assert!(table.contains("picture 0: of 7 prompts"), "{table}");
    assert!(table.contains("a hat (given)"), "{table}");
    search("two", &words).unwrap();
    let tested = |out: &str| {
        let summary = fs::read_to_string(place.join(out).join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        summary["triggers"].as_array().unwrap().clone()
    };
    let triggers = tested("one");
    assert_eq!(triggers, tested("two"));
    assert_eq!(triggers.len(), 7);
    let scores: Vec<f64> = triggers
        .iter()
        .map(|it| it["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");

    // What was given and is no less than a control's, and the best that are memorised in part.
    let prompts = |is_taken: &dyn Fn(&&serde_json::Value) -> bool| -> Vec<serde_json::Value> {
        let taken = triggers.iter().filter(is_taken);
        taken.map(|it| it["prompt"].clone()).collect()
    };
    let mut expected = prompts(&|it| it["is_given"] == true && it["memory"] != "not");
    let in_part = prompts(&|it| it["is_given"] == false && it["memory"] == "partly");
    expected.extend(in_part.into_iter().take(4));
    let folder = place.join("one/triggers");
    let listing = fs::read_to_string(folder.join("metadata.jsonl")).unwrap();
    let lines = listing.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(folder.join(line["file_name"].as_str().unwrap()).exists());
        line["text"].clone()
    });
    assert_eq!(lines.collect::<Vec<_>>(), expected);
    // A random network knows the picture under some of the prompts or none; all were scored against
    // the same controls, so the kinds stand in the order of the scores.
    let rank = |it: &serde_json::Value| match it["memory"].as_str().unwrap() {
        "memorised" => 0,
        "partly" => 1,
        _ => 2,
    };
    assert!(triggers.iter().map(rank).is_sorted(), "{triggers:?}");
    for (kind, what) in [("not", "not"), ("partly", "in part")] {
        let count = triggers.iter().filter(|it| it["memory"] == kind).count();
        assert!(table.contains(&format!("{count} {what}")), "{table}");
    }
}

/// A random network has memorised nothing, so that no variant splits; the table says so.
#[test]
fn variants_without_a_clear_split_are_told() {
    let place = text_place(1);
    let place = place.path();
    let folder = |name: &str| place.join(name).display().to_string();
    let arguments = [
        "prompt_variants".into(),
        format!("--model={}", folder("model")),
        format!("--forget={}", folder("forget")),
        format!("--out={}", folder("variants")),
        "--samples=4".into(),
    ];
    let options = variants::Options::try_parse_from(arguments).unwrap();
    let table = variants::run(&options, &Told::default()).unwrap();
    assert!(
        table.contains("no clear split  ") && table.contains("a hat"),
        "{table}"
    );
    assert!(table.contains("--variant"), "{table}");
    let summary = fs::read_to_string(place.join("variants/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["variants"][0]["prompt"], "a hat");
    assert_eq!(summary["variants"][0]["memorised"], 0);
    for side in ["memorised", "other"] {
        let listing = place.join("variants").join(side).join("metadata.jsonl");
        assert_eq!(fs::read_to_string(listing).unwrap(), "");
    }
}
