//! The results of `unlearn`, on a network of a few thousand numbers.
//!
//! Results appear together, a pipeline's folder is copied in full, any file name works, notes come
//! in time, and invalid requests are refused before the run begins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Parser;
use image::{Rgb, RgbImage};
use siss::StepReport;
use siss::burn::tensor::Device;
use siss::models::UNet2d;
use siss_support::progress::Progress;
use siss_support::tiny::{self, picture};
use siss_support::unlearn::{job, options};
use tempfile::TempDir;

const SIDE: u32 = 8;

/// A pipeline in `model`, two pictures in `forget`, 24 in `retain`.
fn workplace() -> TempDir {
    workplace_of(24)
}

fn workplace_of(retained: u32) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    tiny::plain_model(&at("model"));
    for (folder, numbers) in [("forget", 100..102), ("retain", 0..retained)] {
        tiny::pictures(&at(folder), numbers);
    }
    place
}

fn scheduler(model: &Path, class: &str) {
    let text = format!(
        r#"{{"_class_name": "{class}", "num_train_timesteps": 1000, "clip_sample": true}}"#
    );
    fs::write(model.join("scheduler/scheduler_config.json"), text).unwrap();
}

type Action = Box<dyn Fn() + Sync>;

/// Records the lines that it receives, and runs an action when a phase begins.
#[derive(Default)]
struct Told {
    events: Mutex<Vec<String>>,
    at: Option<(&'static str, Action)>,
}

impl Progress for Told {
    fn phase(&self, what: &str) {
        self.events.lock().unwrap().push(format!("phase: {what}"));
        if let Some((phase, action)) = &self.at
            && what.starts_with(phase)
        {
            action();
        }
    }
    fn step(&self, report: &StepReport, _: usize) {
        self.events
            .lock()
            .unwrap()
            .push(format!("step {}", report.step));
    }
    fn say(&self, line: &str) {
        self.events.lock().unwrap().push(line.into());
    }
}

/// Runs `unlearn` in a workplace; given options replace those of the folders and the method, which
/// is SISS.
fn run_telling(place: &Path, more: &[&str], told: &Told) -> Result<job::Summary, String> {
    let mut arguments: Vec<OsString> = vec!["unlearn".into()];
    for folder in ["model", "forget", "retain", "out"] {
        let option = format!("--{folder}");
        if !more.iter().any(|given| *given == option) {
            arguments.extend([option.into(), place.join(folder).into()]);
        }
    }
    let short = [
        ("--method", "siss"),
        ("--steps", "2"),
        ("--batch", "4"),
        ("--samples", "2"),
    ];
    for (option, value) in short {
        if !more.contains(&option) {
            arguments.extend([option.into(), value.into()]);
        }
    }
    arguments.extend(more.iter().map(|&word| word.into()));
    let options = options::Options::try_parse_from(arguments).map_err(|error| error.to_string())?;
    job::run(options, told).map_err(|error| error.to_string())
}

fn run(place: &Path, more: &[&str]) -> Result<job::Summary, String> {
    run_telling(place, more, &Told::default())
}

/// All files below a folder, with their contents.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            found.insert(path, Vec::new());
        } else if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

const WEIGHTS: &str = "model/unet/diffusion_pytorch_model.safetensors";

/// A failure at any stage leaves the earlier results, byte by byte, and nothing else; so does a
/// refusal.
#[test]
fn a_run_that_fails_leaves_the_earlier_result_whole() {
    let place = workplace();
    let place = place.path();
    let out = place.join("out");
    run(place, &["--checkpoint-every", "1"]).unwrap();
    let earlier = files(&out);
    assert!(earlier.contains_key(&out.join(WEIGHTS)));
    let results = || {
        let mut found = files(&out);
        found.retain(|path, _| !path.starts_with(out.join("checkpoints")));
        found
    };
    let mut expected = earlier.clone();
    expected.retain(|path, _| !path.starts_with(out.join("checkpoints")));

    let error = run(place, &["--seed", "1"]).unwrap_err();
    assert!(
        error.contains("--resume") && error.contains("--overwrite"),
        "{error}"
    );
    assert_eq!(files(&out), earlier);
    let error = run(place, &["--seed", "1", "--overwrite", "--resume"]).unwrap_err();
    assert!(error.contains("cannot be used with"), "{error}");

    // The place of a result is already occupied.
    for (phase, name) in [
        ("sampling before", "samples"),
        ("sampling after", "before.png"),
        ("losses after", "model"),
        ("writing", "summary.json"),
        ("writing", "curves.svg"),
        ("writing", "strange"),
    ] {
        let staged = out.join(".unfinished").join(name);
        let is_folder = !["model", "samples"].contains(&name);
        let told = Told {
            at: Some((
                phase,
                Box::new(move || {
                    if is_folder {
                        fs::create_dir_all(staged.join("in the way")).unwrap();
                    } else {
                        fs::write(&staged, "in the way").unwrap();
                    }
                }),
            )),
            ..Told::default()
        };
        let options = ["--seed", "1", "--overwrite", "--save-samples", "1"];
        let error = run_telling(place, &options, &told).unwrap_err();
        assert!(error.contains(name), "{phase}, {name}: {error}");
        assert_eq!(results(), expected, "{phase}, {name}");
        assert!(!out.join(".unfinished").exists());
    }

    run(place, &["--seed", "1", "--overwrite"]).unwrap();
    let new = results();
    assert_eq!(
        new.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for name in [WEIGHTS, "summary.json", "metrics.jsonl"] {
        assert!(new[&out.join(name)] != expected[&out.join(name)], "{name}");
    }
    assert!(!out.join("checkpoints").exists());
}

/// The log and the checkpoints that a killed run needs exist while it runs, and the run can be
/// finished from them. A run that neither resumes nor overwrites leaves them unchanged.
#[test]
fn a_killed_run_is_gone_on_with() {
    go_on_with_a_killed_run("siss", workplace().path());
}

/// The answers are predicted again, and are the same, also with a smaller micro-batch.
#[test]
fn a_killed_run_is_gone_on_with_towards_the_same_answers() {
    let place = workplace_of(48);
    let place = place.path();
    // Unlike the retained ones, so that their losses are predicted to be above the model's.
    for (name, value) in [("100", 0), ("101", 255)] {
        let file = place.join(format!("forget/{name}.png"));
        let plain = RgbImage::from_pixel(SIDE, SIDE, Rgb([value; 3]));
        plain.save(file).unwrap();
    }
    go_on_with_a_killed_run("counterfactual", place);

    let out = place.join("fewer");
    let options = |more: &[&str]| {
        let out = ["--out", out.to_str().unwrap(), "--method", "counterfactual"];
        run(
            place,
            &[&out[..], &["--checkpoint-every", "1"], more].concat(),
        )
    };
    let summary = options(&[]).unwrap();
    fs::remove_dir_all(out.join("checkpoints/step-0000000002")).unwrap();
    options(&["--resume", "--micro-batch", "1"]).unwrap();
    let answers = summary.predicted.unwrap().answers.unwrap();
    assert_eq!(answers.retained, 40);
    // The model is still that of the start, so where it answers otherwise, it is taught.
    let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let steps = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let mut steps = steps.map(|step: StepReport| step.forget.unwrap().mean_squared_error);
    assert!(steps.any(|error| error > 1e-3), "{log}");
}

fn go_on_with_a_killed_run(method: &str, place: &Path) {
    let (whole, out) = (place.join("whole"), place.join("out"));
    let steps = [
        "--steps",
        "4",
        "--checkpoint-every",
        "2",
        "--method",
        method,
    ];
    let with = |more: &[&str]| run(place, &[&steps, more].concat());
    with(&["--out", whole.to_str().unwrap()]).unwrap();

    // It fails after all steps are taken, and leaves no result.
    let in_the_way = out.join(".unfinished/summary.json");
    let told = Told {
        at: Some((
            "writing",
            Box::new(move || fs::create_dir_all(&in_the_way).unwrap()),
        )),
        ..Told::default()
    };
    run_telling(place, &steps, &told).unwrap_err();
    let names: Vec<_> = files(&out).into_keys().collect();
    assert!(
        names
            .iter()
            .all(|path| path.starts_with(out.join("checkpoints"))),
        "{names:?}"
    );
    let before = files(&out);
    for more in [&[][..], &["--seed", "3"]] {
        let error = run(place, more).unwrap_err();
        assert!(error.contains("--resume"), "{error}");
    }
    assert_eq!(files(&out), before);
    // Back to the second step, in the middle of a line of the log.
    fs::remove_dir_all(out.join("checkpoints/step-0000000004")).unwrap();
    let log = out.join("checkpoints/metrics.jsonl");
    let text = fs::read(&log).unwrap();
    fs::write(&log, &text[..text.len() - 100]).unwrap();
    with(&["--resume"]).unwrap();
    // Finished, and resumed again from the log among the results.
    let compare = || {
        for name in [WEIGHTS, "metrics.jsonl", "curves.svg", "after.png"] {
            let [whole, out] = [&whole, &out].map(|folder| fs::read(folder.join(name)).unwrap());
            assert!(whole == out, "{name}");
        }
    };
    compare();
    fs::remove_file(&log).unwrap();
    with(&["--resume"]).unwrap();
    compare();
    // Without a checkpoint a resumed run starts from the beginning, and says what it replaces.
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let told = Told::default();
    run_telling(place, &["--resume", "--method", method], &told).unwrap();
    let lines = told.events.into_inner().unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("holds results of an earlier run (model, before.png"))
    );
}

/// Contents are copied, but not modes: from a read-only folder, twice into the same output, and
/// resumed. All files that are written, including checkpoints and logs, have the mode of the umask.
#[cfg(unix)]
#[test]
fn a_read_only_origin_leaves_no_modes() {
    let place = workplace();
    let place = place.path();
    let model = place.join("model");
    for name in ["README.md", "LICENSE", "pipeline.py"] {
        fs::write(model.join(name), "text\n").unwrap();
    }
    let index = r#"{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"], "feature_extractor": ["transformers", "ViTImageProcessor"]}"#;
    fs::write(model.join("model_index.json"), index).unwrap();
    fs::create_dir(model.join("feature_extractor")).unwrap();
    fs::write(
        model.join("feature_extractor/preprocessor_config.json"),
        "{}",
    )
    .unwrap();
    let read_only = files(&model);
    read_only.keys().for_each(|file| set_mode(file, 0o444));
    let folders = [
        "model/unet",
        "model/scheduler",
        "model/feature_extractor",
        "model",
    ];
    for folder in folders {
        set_mode(&place.join(folder), 0o555);
    }

    fs::write(place.join("ordinary"), "").unwrap();
    fs::create_dir(place.join("ordinary folder")).unwrap();
    let out = place.join("out");
    for more in [
        &["--checkpoint-every", "1"][..],
        &["--overwrite", "--checkpoint-every", "1"],
        &["--resume"],
    ] {
        run(place, more).unwrap();
        let written = files(&out);
        assert!(written.len() > 12 + 5, "{:?}", written.keys());
        for file in written.keys() {
            assert_eq!(
                mode(file),
                mode(&place.join("ordinary")),
                "{}",
                file.display()
            );
            let folder = file.parent().unwrap();
            assert_eq!(
                mode(folder),
                mode(&place.join("ordinary folder")),
                "{}",
                folder.display()
            );
        }
        assert!(
            out.join("model/feature_extractor/preprocessor_config.json")
                .exists()
        );
    }
    // An earlier model that was made read-only is also replaced.
    set_mode(&out.join(WEIGHTS), 0o444);
    for folder in ["model/unet", "model"] {
        set_mode(&out.join(folder), 0o555);
    }
    run(place, &["--overwrite"]).unwrap();
    assert_eq!(
        mode(&out.join("model")),
        mode(&place.join("ordinary folder"))
    );
    for folder in folders {
        set_mode(&place.join(folder), 0o755);
    }
}

/// Each message begins with or contains the option's name, and nothing has been read, because there
/// are no folders.
#[test]
fn options_are_refused_by_name_before_anything_is_read() {
    let nowhere = Path::new("/nowhere/at/all");
    let cases: &[(&[&str], &str)] = &[
        (
            &["--learning-rate", "-1"],
            "--learning-rate is -1; it must be a finite number above 0",
        ),
        (&["--learning-rate", "NaN"], "--learning-rate is NaN"),
        (&["--learning-rate", "inf"], "--learning-rate is inf"),
        (&["--learning-rate", "0"], "--learning-rate is 0"),
        (&["--learning-rate", "-0.0"], "--learning-rate is -0"),
        (&["--learning-rate", "fast"], "--learning-rate"),
        (&["--steps", "0"], "--steps is 0; it must be at least 1"),
        (&["--steps", "-3"], "--steps"),
        (&["--batch", "0"], "--batch is 0"),
        (&["--samples", "0"], "--samples is 0"),
        (&["--save-samples", "0"], "--save-samples is 0"),
        (&["--micro-batch", "0"], "--micro-batch is 0"),
        (&["--threads", "0"], "--threads is 0"),
        (&["--checkpoint-every", "0"], "--checkpoint-every"),
        (&["--clipper", "fraction"], "--clipper"),
        (&["--clipper", "fraction:x"], "--clipper"),
        (&["--clipper", "fraction:-0.1"], "--clipper fraction:-0.1: "),
        (&["--clipper", "fraction:NaN"], "--clipper fraction:NaN: "),
        (
            &["--clipper", "fraction:0.1:0"],
            "--clipper fraction:0.1:0: ",
        ),
        (&["--clipper", "rescale:-5"], "--clipper rescale:-5: "),
        (&["--clipper", "constant:inf"], "--clipper constant:inf: "),
        (&["--clipper", "blend:2"], "--clipper blend:2: "),
        (&["--method", "forget"], "--method"),
        (
            &["--method", "naive-deletion"],
            "--method naive-deletion --target retrained: ",
        ),
        (
            &[
                "--method",
                "neg-grad",
                "--target",
                "none",
                "--clipper",
                "fraction:0.1",
            ],
            "--method neg-grad --target none --clipper fraction:0.1: ",
        ),
        (
            &["--method", "counterfactual", "--target", "none"],
            "--method counterfactual --target none: the method `counterfactual` has no predicted answers; let them be predicted: \
             --target retrained",
        ),
        (
            &["--method", "siss-to-level"],
            "use --method siss --target retrained",
        ),
        (&["--target", "somewhere"], "--target"),
        (&["--device", "abacus"], "--device"),
        (&["--seed", "x"], "--seed"),
        (&[], "--model: reading /nowhere/at/all/model: "),
    ];
    for (words, expected) in cases {
        let error = run(nowhere, words).unwrap_err();
        assert!(error.contains(expected), "{words:?}: {error}");
    }
    for method in siss::Method::ALL {
        let error = run(nowhere, &["--method", method.name(), "--target", "none"]).unwrap_err();
        assert!(error.contains("--model: "), "{method}: {error}");
    }
}

/// Two devices, here two halves of the CPU, end where one does.
#[test]
fn several_devices_give_the_result_of_one() {
    let place = workplace();
    let figures = |out: &str, devices: &[&str]| {
        let out = place.path().join(out);
        let out = ["--out", out.to_str().unwrap()];
        let summary = run(place.path(), &[&out[..], devices].concat()).unwrap();
        let losses = [summary.after.forget_loss, summary.after.control_loss];
        let losses = losses.into_iter().flat_map(|by| by.into_values());
        losses.collect::<Vec<f64>>()
    };
    let one = figures("one", &[]);
    let two = figures("two", &["--devices", "flex,flex"]);
    assert_eq!(one.len(), two.len());
    for (one, two) in one.iter().zip(&two) {
        assert!((one / two - 1.0).abs() < 1e-4, "{one} {two}");
    }
}

/// 8 of the 24 retained images are for comparison.
#[test]
fn too_few_retained_images_for_answers_are_refused() {
    let place = workplace();
    let error = run(place.path(), &["--method", "counterfactual"]).unwrap_err();
    for part in [
        "retain: it holds 16 images",
        "--method counterfactual",
        "at least 32",
        "--method siss",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

/// Refused before anything is created.
#[test]
fn an_output_that_would_be_in_the_way_is_refused() {
    let place = workplace();
    let place = place.path();
    let at = |name: &str| place.join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir_all(at("earlier")).unwrap();
    let copy = |to: &str| {
        for (file, contents) in files(&at("model")) {
            let file = at(to).join(file.strip_prefix(at("model")).unwrap());
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, contents).unwrap();
        }
    };
    copy("earlier/model");
    #[cfg(unix)]
    for (target, link) in [("retain", "link"), ("nowhere", "dangling")] {
        std::os::unix::fs::symlink(at(target), at(link)).unwrap();
    }
    #[cfg(target_os = "linux")]
    std::os::unix::fs::symlink("/proc", at("proc")).unwrap();
    let before = files(place);
    let cases = [
        ("retain", "model", "lies in --retain"),
        ("retain/new/deeper", "model", "lies in --retain"),
        ("forget/new", "model", "lies in --forget"),
        ("forget/../retain/new", "model", "lies in --retain"),
        ("model", "model", "lies in --model"),
        ("model/unet", "model", "lies in --model"),
        ("model/new", "model", "lies in --model"),
        ("earlier", "earlier/model", "would be overwritten"),
        ("file", "model", "is not a folder"),
        ("file/new", "model", "--out "),
        #[cfg(target_os = "linux")]
        // Nobody can create files there.
        ("proc/new", "model", "--out "),
        #[cfg(unix)]
        ("dangling", "model", "--out "),
        #[cfg(unix)]
        ("link/new", "model", "lies in --retain"),
    ];
    for (out, model, expected) in cases {
        let [out_path, model] = [out, model].map(|name| at(name).to_str().unwrap().to_owned());
        let error = run(
            place,
            &["--out", &out_path, "--model", &model, "--overwrite"],
        )
        .unwrap_err();
        assert!(error.contains(expected), "{out}: {error}");
        assert!(
            error.contains(&out_path) || error.contains(&model),
            "{out}: {error}"
        );
        assert_eq!(files(place), before, "{out}");
    }
    assert!(!at("retain/new").exists() && !at("out").exists());
}

/// The result of a pipeline is a complete pipeline: code, licence and card are copied. The card
/// says what was done and names no picture; parts that are not copied are reported.
#[test]
fn the_result_is_the_whole_pipeline() {
    let place = workplace();
    let place = place.path();
    let model = place.join("model");
    let write = |name: &str, text: &str| {
        let path = model.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let index = r#"{"_class_name": ["pipeline", "MyPipeline"], "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"], "safety_checker": [null, null]}"#;
    write("model_index.json", index);
    write("pipeline.py", "class MyPipeline: pass\n");
    write("README.md", "---\nlicense: mit\n---\n# Faces");
    write("LICENSE", "MIT\n");
    write(
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "old weights",
    );
    write(
        "unet_ema/diffusion_pytorch_model.safetensors",
        "old weights",
    );
    write(".git/HEAD", "ref");
    write("logs/events", "");
    let told = Told::default();
    run_telling(place, &[], &told).unwrap();

    let out = place.join("out/model");
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(read("model_index.json"), index);
    assert_eq!(read("pipeline.py"), "class MyPipeline: pass\n");
    assert_eq!(read("LICENSE"), "MIT\n");
    let card = read("README.md");
    assert!(
        card.starts_with("---\nlicense: mit\n---\n# Faces\n\n## Unlearning\n"),
        "{card}"
    );
    for part in [
        env!("CARGO_PKG_VERSION"),
        "`siss`",
        "2 steps of 4",
        "seed 0",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    for name in ["100.png", "101", "forget/", place.to_str().unwrap()] {
        assert!(!card.contains(name), "{name}: {card}");
    }
    let lines = told.events.into_inner().unwrap().join("\n");
    for left in [
        ".git",
        "logs",
        "unet_ema",
        "diffusion_pytorch_model.fp16.safetensors",
    ] {
        assert!(lines.contains(&format!("{left} (")), "{left}: {lines}");
    }
    let network = |name: &str| UNet2d::load(place.join(name), &Device::flex());
    network("model").unwrap();
    network("out/model").unwrap();
    let names: Vec<_> = files(&out).into_keys().collect();
    assert_eq!(names.len(), 7, "{names:?}");
}

#[test]
fn an_index_that_was_missing_has_the_schedulers_own_class() {
    for (class, pipeline) in [
        ("DDPMScheduler", "DDPMPipeline"),
        ("DDIMScheduler", "DDIMPipeline"),
    ] {
        let place = workplace();
        scheduler(&place.path().join("model"), class);
        run(place.path(), &["--steps", "1"]).unwrap();
        let text = fs::read_to_string(place.path().join("out/model/model_index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(index["_class_name"], pipeline);
        assert_eq!(index["scheduler"], serde_json::json!(["diffusers", class]));
        assert_eq!(
            index["unet"],
            serde_json::json!(["diffusers", "UNet2DModel"])
        );
    }
}

/// Names in every folder that are not UTF-8, with line breaks and escape codes: the run completes,
/// and in `summary.json` no two names are the same.
#[cfg(target_os = "linux")]
#[test]
fn any_name_of_a_file_system_goes_through() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = workplace();
    let odd = place.path().join(OsStr::from_bytes(b"caf\xe9\n\x1b[31m"));
    fs::create_dir(&odd).unwrap();
    for folder in ["model", "forget", "retain"] {
        fs::rename(place.path().join(folder), odd.join(folder)).unwrap();
    }
    let names: [&[u8]; 5] = [
        b"\xe9t\xe9.png",
        b"\xe8t\xe9.png",
        b"a\nb.png",
        br"a\nb.png",
        b"\xff\xfe\xfd.png",
    ];
    for (number, name) in names.into_iter().enumerate() {
        let file = odd.join("forget").join(OsStr::from_bytes(name));
        picture(200 + number as u32)
            .save_with_format(file, image::ImageFormat::Png)
            .unwrap();
        let file = odd.join("retain").join(OsStr::from_bytes(name));
        picture(300 + number as u32)
            .save_with_format(file, image::ImageFormat::Png)
            .unwrap();
    }
    let mut arguments: Vec<OsString> = vec!["unlearn".into()];
    for folder in ["model", "forget", "retain", "out"] {
        arguments.extend([format!("--{folder}").into(), odd.join(folder).into()]);
    }
    arguments.extend(
        "--method siss --steps 2 --batch 4 --samples 1 --save-samples 2 --checkpoint-every 1"
            .split(' ')
            .map(Into::into),
    );
    let told = Told::default();
    let options = options::Options::try_parse_from(arguments).unwrap();
    let summary = job::run(options, &told).unwrap();
    assert_eq!(summary.images.len(), 7);
    let text = fs::read_to_string(odd.join("out/summary.json")).unwrap();
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shown: std::collections::BTreeSet<&str> = written["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["file"].as_str().unwrap())
        .collect();
    assert_eq!(shown.len(), 7, "{shown:?}");
    for end in [
        r"/\xE9t\xE9.png",
        r"/\xE8t\xE9.png",
        r"/a\nb.png",
        r"/a\\nb.png",
        r"/\xFF\xFE\xFD.png",
    ] {
        assert!(
            shown.iter().any(|name| name.ends_with(end)),
            "{end}: {shown:?}"
        );
    }
    assert!(
        written["config"]["out"]
            .as_str()
            .unwrap()
            .ends_with(r"caf\xE9\n\u{1b}[31m/out")
    );
    for line in told.events.into_inner().unwrap() {
        let line = line.trim_end_matches('\n');
        assert!(!line.contains(['\n', '\x1b', '\u{fffd}']), "{line:?}");
    }
}

/// A step of one pair leaves one side empty: this is reported once, during the run, long before its
/// end.
#[test]
fn a_note_is_shown_when_it_is_found() {
    let place = workplace();
    let told = Told::default();
    let options = ["--steps", "60", "--batch", "1", "--target", "none"];
    let summary = run_telling(place.path(), &options, &told).unwrap();
    assert!(!summary.findings.is_empty());
    let events = told.events.into_inner().unwrap();
    let position = |text: &str| events.iter().position(|event| event.contains(text));
    for finding in &summary.findings {
        let note = format!("note: {finding}");
        let count = events.iter().filter(|event| **event == note).count();
        assert_eq!(count, 1, "{note}: {events:?}");
        let step = position(&format!("step {}", finding.step)).unwrap();
        let told = position(&note).unwrap();
        assert!(step < told, "{note}");
        if let Some(next) = events
            .iter()
            .position(|event| *event == format!("step {}", finding.step + 1))
        {
            assert!(told < next, "{note}");
        }
    }
    assert!(summary.findings[0].step < 30);
}

/// Single files of images on the sheet and further ones, with the same noise before and after: an
/// unchanged model generates the same images.
#[test]
fn samples_are_saved_as_single_files() {
    let place = workplace();
    let place = place.path();
    let samples = |folder: &str| {
        let mut found = BTreeMap::new();
        for (path, bytes) in files(&place.join(folder)) {
            let picture = image::load_from_memory(&bytes).unwrap();
            assert_eq!((picture.width(), picture.height()), (SIDE, SIDE));
            found.insert(
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                bytes,
            );
        }
        found
    };
    let still = ["--learning-rate", "1e-30", "--save-samples", "5"];
    run(place, &still).unwrap();
    let before = samples("out/samples/before");
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        ["000.png", "001.png", "002.png", "003.png", "004.png"]
    );
    assert!(before["000.png"] != before["001.png"] && before["001.png"] != before["003.png"]);
    assert_eq!(samples("out/samples/after"), before);
    // Fewer than on the sheet, and the same images for any number generated at a time.
    run(
        place,
        &[
            "--learning-rate",
            "1e-2",
            "--save-samples",
            "3",
            "--samples",
            "4",
            "--micro-batch",
            "3",
            "--overwrite",
        ],
    )
    .unwrap();
    let fewer = samples("out/samples/before");
    assert_eq!(fewer.len(), 3);
    for (name, bytes) in &fewer {
        let [pixels, others] =
            [bytes, &before[name]].map(|bytes| image::load_from_memory(bytes).unwrap().into_rgb8());
        let far = pixels
            .iter()
            .zip(others.iter())
            .any(|(one, other)| one.abs_diff(*other) > 1);
        assert!(!far, "{name}");
    }
    assert!(samples("out/samples/after") != fewer);
    // A run without single files removes those of an earlier run.
    run(place, &["--overwrite"]).unwrap();
    assert!(!place.join("out/samples").exists());
}
