//! FID and SSCD in `unlearn`: the figures are those of the library on the same pictures, and what
//! cannot be measured is refused before anything is computed. The networks have weights by formula.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Parser;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use siss::burn::tensor::{Device, Tensor};
use siss::metrics::networks::{
    InceptionTap, InceptionV3, Sscd, SscdSize, TensorSource, formula_weights,
};
use siss::metrics::{CopyProtocol, CopySimilarity, Resize, frechet_distance};
use siss::models::UNet2d;
use siss::process::SchedulerConfig;
use siss::sampling::{DdpmSampler, Sampler};
use siss::{Error, StepReport};
use siss_support::probe::EVALUATION_SEED;
use siss_support::progress::Progress;
use siss_support::tiny;
use siss_support::unlearn::{job, options};
use tempfile::TempDir;

const SIDE: u32 = 8;

/// Records what it is told.
#[derive(Default)]
struct Told {
    phases: Mutex<Vec<String>>,
    lines: Mutex<Vec<String>>,
}

impl Progress for Told {
    fn phase(&self, what: &str) {
        self.phases.lock().unwrap().push(what.into());
    }
    fn step(&self, _: &StepReport, _: usize) {}
    fn say(&self, line: &str) {
        self.lines.lock().unwrap().push(line.into());
    }
}

/// A pipeline, one picture to forget, four to retain and eight to compare with.
fn workplace() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    tiny::plain_model(&at("model"));
    for (folder, numbers) in [("forget", 100..101), ("retain", 0..4), ("control", 20..28)] {
        tiny::pictures(&at(folder), numbers);
    }
    place
}

fn formula(name: &str, shape: &[usize]) -> siss::Result<Vec<f32>> {
    Ok(formula_weights(name, shape))
}

/// Writes the weights by formula of all tensors that a network asks for.
fn write_weights(file: &Path, build: impl FnOnce(&mut TensorSource<'_>)) {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    build(&mut |name: &str, shape: &[usize]| {
        let values = formula_weights(name, shape);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        tensors.push((name.into(), shape.to_vec(), bytes.collect()));
        Ok(values)
    });
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    serialize_to_file(views, None, file).unwrap();
}

fn write_inception(place: &Path) -> PathBuf {
    let file = place.join("inception.safetensors");
    write_weights(&file, |source| {
        InceptionV3::from_tensors(source, &Device::flex()).unwrap();
    });
    file
}

fn write_sscd(place: &Path) -> PathBuf {
    let file = place.join("sscd.safetensors");
    write_weights(&file, |source| {
        Sscd::from_tensors(source, &Device::flex()).unwrap();
    });
    file
}

/// Runs `unlearn` in a workplace, where `{}` stands for it in options.
fn run(place: &Path, more: &str, told: &Told) -> Result<job::Summary, Box<dyn std::error::Error>> {
    let place = place.to_str().unwrap();
    let folders = ["model", "forget", "retain", "control", "out"];
    let folders = folders.map(|folder| format!("--{folder} {place}/{folder}"));
    let short = "--method siss --target none --steps 1 --batch 4";
    let words = format!(
        "unlearn {} {short} {}",
        folders.join(" "),
        more.replace("{}", place)
    );
    let options = options::Options::try_parse_from(words.split_whitespace())?;
    job::run(options, told)
}

/// The pictures of a folder by their names, with values from 0 to 255.
fn levels(folder: &Path) -> Tensor<4> {
    let files = fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let side = SIDE as usize;
    let pictures = files.iter().map(|file| {
        let bytes = image::open(file).unwrap().into_rgb8().into_raw();
        let values: Vec<f32> = bytes.into_iter().map(f32::from).collect();
        let values = Tensor::<1>::from_data(values.as_slice(), &Device::flex());
        values.reshape([1, side, side, 3]).permute([0, 3, 1, 2])
    });
    Tensor::cat(pictures.collect(), 0)
}

/// Of the sample images that the run saves, of all four retained ones, and of copies by the models
/// that it read and wrote.
#[test]
fn the_figures_are_those_of_the_library_on_the_same_pictures() {
    let place = workplace();
    let at = |name: &str| place.path().join(name);
    write_inception(place.path());
    write_sscd(place.path());
    let told = Told::default();
    let weights =
        "--inception {}/inception.safetensors --resize half_pixel --sscd {}/sscd.safetensors";
    let more = "--samples 4 --save-samples 4 --learning-rate 1e-2 --report";
    let summary = run(place.path(), &format!("{weights} {more}"), &told).unwrap();

    let device = Device::flex();
    let inception = InceptionV3::from_tensors(&mut formula, &device).unwrap();
    let features = |folder: &str| {
        let tap = InceptionTap::Pool2048;
        let features = inception.features(&levels(&at(folder)), tap, Resize::HalfPixel);
        features.unwrap()
    };
    let retained = features("retain");
    let sscd = Sscd::from_tensors(&mut formula, &device).unwrap();
    let forgotten = levels(&at("forget")) / 127.5 - 1.0;
    let config = SchedulerConfig::from_file(at("model/scheduler/scheduler_config.json")).unwrap();
    let sampler = DdpmSampler::from_scheduler(&config, 50).unwrap();
    let similarity = CopySimilarity {
        seed: EVALUATION_SEED,
        ..CopySimilarity::new(CopyProtocol::MeanOfSixteen)
    };
    for (name, figures, model) in [
        ("before", &summary.before, "model"),
        ("after", &summary.after, "out/model"),
    ] {
        let expected = features(&format!("out/samples/{name}"));
        let expected = frechet_distance(&retained, &expected).unwrap();
        let found = figures.fid.as_ref().unwrap();
        assert_eq!((&found.name, &found.samples), (&expected.name, &vec![4, 4]));
        assert!(found.name.contains("half_pixel"), "{found}");
        for (found, expected) in [
            (found.value, expected.value),
            (found.low, expected.low),
            (found.high, expected.high),
        ] {
            assert!(
                (found / expected - 1.0).abs() < 1e-4,
                "{name}: {found} {expected}"
            );
        }

        let model = UNet2d::load(at(model), &device).unwrap();
        let describe = |pictures| sscd.describe(pictures, SscdSize::SmallEdge288);
        let expected = similarity.measure(&model, &sampler, &forgotten, &(), describe);
        let expected = expected.unwrap().remove(0);
        let found = figures.sscd.as_ref().unwrap();
        assert_eq!(found.images.len(), 1);
        assert_eq!(found.images[0].copies.len(), 16);
        let found = [found.images[0].value, found.mean.value, found.mean.low];
        let estimate = expected.estimate.unwrap();
        for (found, expected) in
            found
                .into_iter()
                .zip([expected.value, expected.value, estimate.low])
        {
            assert!(
                (found - expected).abs() < 1e-4,
                "{name}: {found} {expected}"
            );
        }
    }
    // The model has changed, and with it its samples.
    let value = |of: &siss_support::unlearn::evaluate::Evaluation| of.fid.as_ref().unwrap().value;
    assert_ne!(value(&summary.before), value(&summary.after));

    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(at("out").join(name)).unwrap()).unwrap()
    };
    let written = read("summary.json");
    assert_eq!(written["after"]["fid"]["value"], value(&summary.after));
    assert_eq!(
        written["before"]["sscd"]["images"][0]["copies"]
            .as_array()
            .unwrap()
            .len(),
        16
    );
    assert_eq!(written["config"]["resize"], "half_pixel");
    let report = read("report.json").to_string();
    for part in ["by SSCD", "FID of the generated pictures", "half_pixel"] {
        assert!(report.contains(part), "{part}: {report}");
    }

    // 4 retained images, twice 4 samples, and twice 1 picture with 16 copies.
    assert_eq!(summary.measuring.described, 4 + 2 * (4 + 17));
    let lines = told.lines.lock().unwrap().join("\n");
    let announced = "and 46 through the networks of FID and SSCD";
    assert!(lines.contains(announced), "{lines}");
    let plain = run(
        place.path(),
        &format!("{more} --overwrite"),
        &Told::default(),
    )
    .unwrap();
    assert!(plain.before.fid.is_none() && plain.after.sscd.is_none());
    let below = sampler.timesteps().iter().filter(|&&it| it < 250).count();
    let copies = summary.measuring.images - plain.measuring.images;
    assert_eq!(copies, 2 * 16 * (1 + below));
}

/// By the option's name, before the first phase of the run.
#[test]
fn weights_that_cannot_be_used_are_refused_before_anything_is_computed() {
    let place = workplace();
    let inception = write_inception(place.path());
    let foreign = inception.display().to_string();
    let refused = |more: &str| {
        let told = Told::default();
        let error = run(place.path(), more, &told).unwrap_err();
        (error, told.phases.into_inner().unwrap())
    };
    for (more, expected) in [
        (
            "--inception {}/none.safetensors --resize half_pixel",
            &["--inception: ", "none.safetensors"][..],
        ),
        (
            "--sscd {}/none.safetensors",
            &["--sscd: ", "none.safetensors"],
        ),
        (
            "--sscd {}/inception.safetensors",
            &["--sscd: ", &foreign, "backbone.conv1.weight"],
        ),
        (
            "--sscd {}/model/scheduler/scheduler_config.json",
            &["--sscd: ", "scheduler_config.json"],
        ),
        ("--inception {}/inception.safetensors", &["--resize"]),
        ("--resize half_pixel", &["--inception"]),
        (
            "--inception {}/inception.safetensors --resize bilinear",
            &["--resize", "bilinear", "tensorflow1"],
        ),
    ] {
        let (error, phases) = refused(more);
        let error = error.to_string();
        for part in expected {
            assert!(error.contains(part), "{more}: {error}");
        }
        assert!(phases.is_empty(), "{more}: {phases:?}");
        assert!(!place.path().join("out").exists(), "{more}");
    }
    let given = "--inception {}/inception.safetensors --resize half_pixel";
    let (error, phases) = refused(&format!("{given} --samples 1"));
    let error = error.downcast_ref::<Error>().unwrap();
    assert!(
        matches!(error, Error::OutOfRange { value: 1.0, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("--samples"), "{error}");
    let is_reading = |phase: &String| phase.starts_with("loading") || phase.starts_with("reading");
    assert!(phases.iter().all(is_reading), "{phases:?}");
}

/// The published protocol adds noise to pixels from −1 to 1.
#[test]
fn copies_of_other_points_are_not_measured() {
    let place = workplace();
    write_sscd(place.path());
    let told = Told::default();
    let more = "--sscd {}/sscd.safetensors --range 0:1";
    let error = run(place.path(), more, &told).unwrap_err().to_string();
    assert!(
        error.contains("--sscd") && error.contains("-1 to 1"),
        "{error}"
    );
}
