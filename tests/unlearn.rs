//! Unlearning from folders of images: the example's own code with a small budget, its images, and
//! its refusals.

use std::fs;
use std::path::Path;

use clap::Parser;
use image::{DynamicImage, GrayImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage};
use safetensors::{Dtype, SafeTensors};
use siss::burn::tensor::Device;
use siss::images::{Format, ImageFiles, Images, Transparency};
use siss::models::{ModelFolder, UNet2d, UNet2dConfig};
use siss::observer::StepOutcome;
use siss::{DdpmScheduler, Method, PairSampler, SissTrainer, StepReport};
use siss_support::digits;
use siss_support::progress::Progress;
use siss_support::unlearn::{checks, data, job, options};
use tempfile::TempDir;

struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &str) {}
    fn step(&self, report: &StepReport, _: usize) {
        assert_eq!(report.outcome, StepOutcome::Applied, "{report}");
    }
}

/// A folder `forget` with the T-shirt, and a folder `retain` with digits.
fn workplace(digits: usize) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let assets = Path::new(digits::ASSETS);
    for folder in ["forget", "retain/more"] {
        fs::create_dir_all(place.path().join(folder)).unwrap();
    }
    let tshirt = place.path().join("forget/tshirt.png");
    fs::copy(assets.join("data/tshirt.png"), tshirt).unwrap();
    let pixels =
        digits::read_idx_images(&assets.join("data/digits10k-images-idx3-ubyte.gz")).unwrap();
    for (index, digit) in pixels.chunks_exact(784).take(digits).enumerate() {
        let folder = if index % 2 == 0 {
            "retain"
        } else {
            "retain/more"
        };
        let picture = GrayImage::from_raw(28, 28, digit.to_vec()).unwrap();
        let file = place.path().join(folder).join(format!("{index}.png"));
        picture.save(file).unwrap();
    }
    place
}

/// Runs the job on the bundled model and the folders of a workplace, by SISS unless `more` names a
/// method.
fn run(place: &Path, more: &str) -> Result<job::Summary, String> {
    let model = Path::new(digits::ASSETS).join("base");
    run_on(&model, &place.join("forget"), place, more)
}

fn run_on(model: &Path, forget: &Path, place: &Path, more: &str) -> Result<job::Summary, String> {
    told_on(model, forget, place, more, &Quiet)
}

fn told_on(
    model: &Path,
    forget: &Path,
    place: &Path,
    more: &str,
    progress: &dyn Progress,
) -> Result<job::Summary, String> {
    let (retain, out) = (place.join("retain"), place.join("out"));
    let folders = [
        ("model", model),
        ("forget", forget),
        ("retain", &retain),
        ("out", &out),
    ];
    let is_default = |(option, _): &(&str, _)| !more.contains(&format!("--{option} "));
    let folders = folders.into_iter().filter(is_default);
    let folders = folders.map(|(option, path)| format!("--{option}={}", path.display()));
    let method = match more.contains("--method") {
        true => "",
        false => "--method=siss",
    };
    let more = more.split_whitespace().chain(method.split_whitespace());
    let more = more.map(String::from);
    let arguments = ["unlearn".into()].into_iter().chain(folders).chain(more);
    let options = options::Options::try_parse_from(arguments).map_err(|error| error.to_string())?;
    job::run(options, progress).map_err(|error| error.to_string())
}

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

/// A copy with one more grey pixel, among the retained or the control images, is reported together
/// with its original.
#[test]
fn copies_under_another_name_are_told_by_their_files() {
    let place = workplace(40);
    let path = |name: &str| place.path().join(name);
    let mut copy = image::open(path("forget/tshirt.png")).unwrap().into_luma8();
    copy.put_pixel(3, 3, Luma([40]));
    copy.save(path("retain/more/holiday.png")).unwrap();
    let format = Format {
        height: 28,
        width: 28,
        ..GREY
    };
    let read = |folder: &str| {
        let found = ImageFiles::find(&path(folder)).unwrap();
        Images::read_all(found, format, |_| {}).unwrap()
    };
    let told = |control: &str| {
        let (forget, account) = read("forget");
        let data = data::Data {
            forget,
            control: read(control).0,
            retain: read("retain").0,
            stream: None,
            retain_found: 41,
            accounts: data::Accounts {
                forget: account.clone(),
                retain: account,
                control: None,
            },
            found: data::Found {
                forget: ImageFiles::default(),
                retain: ImageFiles::default(),
                control: ImageFiles::default(),
            },
        };
        let tensor = |images: &Images| images.all(&Device::flex());
        let pairs = PairSampler::new(tensor(&data.retain), tensor(&data.forget), 0).unwrap();
        let told = Told::default();
        let range = Some(data.format().range);
        checks::images(&data, &pairs, &tensor(&data.control), range, &told).unwrap();
        told.0.into_inner().unwrap()
    };
    let lines = told("retain/more");
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, side) in lines.iter().zip(["retained images", "control images"]) {
        let all = [
            "more/holiday.png is almost identical to",
            "forget/tshirt.png,",
            side,
        ];
        assert!(all.iter().all(|part| line.contains(part)), "{line}");
    }
    fs::remove_file(path("retain/more/holiday.png")).unwrap();
    assert_eq!(told("retain/more"), Vec::<String>::new());
}

/// In 24 steps of 8 pairs with a strong forget gradient, the T-shirt's loss rises and the digits'
/// does not; all promised files are written, and the resulting model can be unlearned again.
#[test]
fn a_folder_is_being_forgotten_and_the_other_is_not() {
    let place = workplace(40);
    let place = place.path();
    let summary = run(
        place,
        "--steps 24 --batch 8 --learning-rate 5e-5 --clipper fraction:0.5 --samples 2 --report",
    )
    .unwrap();
    assert_eq!(
        (
            summary.forget_images,
            summary.retain_images,
            summary.control_images
        ),
        (1, 32, 8)
    );
    assert_eq!((summary.steps, summary.timesteps), (24, [100, 250, 400]));
    for timestep in ["100", "250", "400"] {
        let (before, after) = (&summary.before, &summary.after);
        let tshirt = after.forget_loss[timestep] / before.forget_loss[timestep];
        let digits = after.control_loss[timestep] / before.control_loss[timestep];
        println!("t = {timestep}: T-shirt's loss times {tshirt:.2}, digits' times {digits:.3}");
        assert!(tshirt > 1.2 && digits < 1.1 && tshirt - 1.0 > 4.0 * (digits - 1.0));
        assert_eq!(before.forget_loss_percentile[timestep], 0.0);
    }
    let [tshirt] = &summary.images[..] else {
        panic!("{:?}", summary.images)
    };
    assert!(tshirt.file.ends_with("forget/tshirt.png"));
    assert_eq!(tshirt.before.percentile, 0.0);
    assert_eq!(tshirt.before.loss, summary.before.forget_loss["250"]);
    assert!((6.0..9.0).contains(&summary.near.distance) && summary.near.controls == 0);

    let out = place.join("out");
    let file =
        |name: &str| fs::read(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    for picture in ["before.png", "after.png", "denoised.png"] {
        assert!(file(picture).starts_with(b"\x89PNG"), "{picture}");
    }
    let report = String::from_utf8(file("report.json")).unwrap();
    let report = siss::report::audit::AuditReport::from_json(&report).unwrap();
    assert_eq!((report.subjects.len(), report.pictures.len()), (1, 0));
    assert_eq!(report.worst_case.unwrap().sha256, report.subjects[0].sha256);
    assert!(file("report.html").starts_with(b"<!doctype html>"));
    let curves = String::from_utf8(file("curves.svg")).unwrap();
    for label in [
        "forget scale",
        "Loss of the control images",
        "control before, t = 250",
        "predicted, t = 250",
    ] {
        assert!(curves.contains(label), "curves.svg has no `{label}`");
    }
    let metrics = String::from_utf8(file("metrics.jsonl")).unwrap();
    let steps: Vec<StepReport> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(steps.len(), 24);
    let written: serde_json::Value = serde_json::from_slice(&file("summary.json")).unwrap();
    assert_eq!(written["config"]["clipper"], "fraction:0.5");
    assert_eq!(written["model"]["prediction_type"], "epsilon");
    assert_eq!(written["after"]["samples"], 2);

    // The layout is that of the original model: here a pipeline.
    for name in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
    ] {
        file(&format!("model/{name}"));
    }
    UNet2d::load(out.join("model"), &Device::flex()).unwrap();
    let error = run_on(&out.join("model"), &place.join("forget"), place, "").unwrap_err();
    assert!(error.contains("would be overwritten"), "{error}");
}

#[test]
fn a_network_at_the_root_of_its_folder_stays_there() {
    let place = workplace(20);
    let place = place.path();
    let (base, flat) = (Path::new(digits::ASSETS).join("base"), place.join("flat"));
    fs::create_dir(&flat).unwrap();
    for file in [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ] {
        let file = base.join(file);
        fs::copy(&file, flat.join(file.file_name().unwrap())).unwrap();
    }
    let index = r#"{"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}"#;
    fs::write(flat.join("model_index.json"), index).unwrap();
    let tshirt = place.join("forget/tshirt.png");
    run_on(&flat, &tshirt, place, "--steps 1 --batch 1 --samples 1").unwrap();

    let model = place.join("out/model");
    UNet2d::load(&model, &Device::flex()).unwrap();
    for file in ["config.json", "scheduler_config.json"] {
        assert!(model.join(file).exists(), "{file}");
    }
    assert_eq!(
        fs::read_to_string(model.join("model_index.json")).unwrap(),
        index
    );
    // A model with another layout replaces it completely.
    run(place, "--steps 1 --batch 1 --samples 1 --overwrite").unwrap();
    assert!(!model.join("config.json").exists() && model.join("unet/config.json").exists());

    let latent = index.replace("scheduler", "vqvae");
    fs::write(flat.join("model_index.json"), latent).unwrap();
    let error = run_on(&flat, &tshirt, place, "").unwrap_err();
    assert!(error.contains("has a `vqvae`"), "{error}");
}

/// A checkpoint of diffusers' training script has two networks and no scheduler: the choice is
/// reported.
#[test]
fn a_training_checkpoint_is_unlearned_with_the_scheduler_of_its_run() {
    let place = workplace(20);
    let place = place.path();
    let base = Path::new(digits::ASSETS).join("base");
    let training = place.join("training");
    for file in [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ] {
        for network in ["unet", "unet_ema"] {
            let target = match file.strip_prefix("unet/") {
                Some(file) => training.join("checkpoint-9").join(network).join(file),
                None => training.join(file),
            };
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(base.join(file), target).unwrap();
        }
    }
    let told = Told::default();
    let arguments = [
        "unlearn".into(),
        format!("--model={}", training.join("checkpoint-9").display()),
        format!("--forget={}", place.join("forget").display()),
        format!("--retain={}", place.join("retain").display()),
        format!("--out={}", place.join("out").display()),
        "--method=siss".into(),
        "--steps=1".into(),
        "--batch=1".into(),
        "--samples=1".into(),
    ];
    let options = options::Options::try_parse_from(arguments).unwrap();
    job::run(options, &told).unwrap();
    let lines = told.0.into_inner().unwrap();
    for part in [
        "checkpoint-9/unet_ema",
        "training/scheduler/scheduler_config.json",
    ] {
        assert!(lines.iter().any(|line| line.contains(part)), "{lines:?}");
    }
    let model = ModelFolder::find(place.join("out/model")).unwrap();
    assert_eq!(model.notes(), []);
    assert_eq!(model.network(), place.join("out/model/unet"));
    UNet2d::load(model.network(), &Device::flex()).unwrap();
}

#[test]
fn a_model_that_is_not_here_is_told_with_the_way_to_get_it() {
    let place = workplace(20);
    let error = run_on(
        Path::new("siss-of-nobody/no-such-model"),
        &place.path().join("forget"),
        place.path(),
        "",
    );
    let error = error.unwrap_err();
    for part in [
        "--model",
        "models--siss-of-nobody--no-such-model",
        "hf download siss-of-nobody/no-such-model",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

/// 30 pixels cannot be halved twice in diffusers, whether the size comes from the configuration or
/// from the images.
#[test]
fn sizes_that_do_not_halve_are_refused_before_any_work() {
    let place = workplace(20);
    let place = place.path();
    let base = Path::new(digits::ASSETS).join("base");
    let flat = place.join("flat");
    fs::create_dir(&flat).unwrap();
    for file in [
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ] {
        let file = base.join(file);
        fs::copy(&file, flat.join(file.file_name().unwrap())).unwrap();
    }
    let config = fs::read_to_string(base.join("unet/config.json")).unwrap();
    let config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&config).unwrap();
    for folder in ["forget", "retain", "retain/more"] {
        for file in fs::read_dir(place.join(folder)).unwrap() {
            let file = file.unwrap().path();
            if file.is_file() {
                let picture = image::open(&file).unwrap().into_luma8();
                let filter = image::imageops::FilterType::Nearest;
                let picture = image::imageops::resize(&picture, 30, 30, filter);
                picture.save(&file).unwrap();
            }
        }
    }
    for size in [serde_json::json!(30), serde_json::Value::Null] {
        let mut config = config.clone();
        config.insert("sample_size".into(), size);
        fs::write(
            flat.join("config.json"),
            serde_json::Value::Object(config).to_string(),
        )
        .unwrap();
        let error = run_on(&flat, &place.join("forget"), place, "--batch 1").unwrap_err();
        for part in ["30x30", "28x28 or 32x32"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

/// Every message names the file or folder, and says what to do.
#[test]
fn bad_folders_are_refused_by_name() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str, &[&str]); 9] = [
        (
            "an empty folder",
            |place| fs::remove_file(place.join("forget/tshirt.png")).unwrap(),
            "",
            &["/forget:", "no image", "png, jpeg"],
        ),
        (
            "no folder",
            |place| fs::remove_dir_all(place.join("retain")).unwrap(),
            "",
            &["--retain", "/retain:"],
        ),
        (
            "a text by the name of a picture",
            |place| fs::write(place.join("forget/note.png"), "no picture").unwrap(),
            "",
            &["/forget/note.png:", "text, not a picture"],
        ),
        (
            "half a picture",
            |place| {
                let bytes = fs::read(place.join("forget/tshirt.png")).unwrap();
                fs::write(place.join("forget/half.png"), &bytes[..bytes.len() / 2]).unwrap();
            },
            "",
            &["/forget/half.png:", "not read"],
        ),
        (
            "a picture that would fill the memory",
            |place| {
                fs::write(place.join("forget/huge.bmp"), bitmap_header(16_000, 16_000)).unwrap()
            },
            "",
            &["/forget/huge.bmp:", "16000x16000"],
        ),
        (
            "a picture that is wider than any",
            |place| fs::write(place.join("forget/wide.bmp"), bitmap_header(2_000_000, 1)).unwrap(),
            "",
            &["/forget/wide.bmp:", "not read"],
        ),
        (
            "nothing but what is to be forgotten",
            |place| {
                fs::remove_dir_all(place.join("retain")).unwrap();
                std::os::unix::fs::symlink(place.join("forget"), place.join("retain")).unwrap();
            },
            "",
            &[
                "--retain",
                "/retain: nothing is left of its 1 image",
                "/forget",
            ],
        ),
        (
            "too few images",
            |_| {},
            "--batch 13",
            &[
                "/retain:",
                "holds 20 images",
                "21 are needed",
                "smaller --batch",
            ],
        ),
        ("no step", |_| {}, "--steps 0", &["--steps is 0"]),
    ];
    for (name, spoil, options, expected) in cases {
        let place = workplace(20);
        spoil(place.path());
        let options = if options.contains("batch") {
            options.into()
        } else {
            format!("--batch 4 {options}")
        };
        let error = run(place.path(), &options)
            .err()
            .unwrap_or_else(|| panic!("{name} is taken"));
        for text in expected {
            assert!(error.contains(text), "{name}: `{error}` has no `{text}`");
        }
    }
}

/// A folder of training data, and a file, subfolder, link or copy from it to forget: these images
/// are removed from the rest.
#[test]
fn what_is_forgotten_is_taken_out_of_what_is_kept() {
    let options = "--steps 1 --batch 4 --samples 1 --target none --overwrite";
    let base = Path::new(digits::ASSETS).join("base");
    let place = workplace(30);
    let at = |name: &str| place.path().join(name);
    std::os::unix::fs::symlink(at("retain/more"), at("link")).unwrap();
    // The same picture under another name, in another file format, and as a link.
    fs::copy(at("retain/0.png"), at("retain/more/copy.jpeg")).unwrap();
    image::open(at("retain/0.png"))
        .unwrap()
        .save(at("retain/copy.bmp"))
        .unwrap();
    std::os::unix::fs::symlink(at("retain/0.png"), at("retain/link")).unwrap();
    for (forget, count, files, copies, found) in [
        ("retain/0.png", 1, 2, 2, 31),
        ("retain/more", 16, 16, 2, 17),
        ("link", 16, 16, 2, 17),
    ] {
        let told = Told::default();
        let summary = told_on(&base, &at(forget), place.path(), options, &told);
        let summary = summary.unwrap_or_else(|error| panic!("{forget}: {error}"));
        assert_eq!(summary.forget_images, count, "{forget}");
        let account = &summary.files.retain;
        assert_eq!(account.taken_out[0].files, files, "{forget}");
        // At most the copies that were found while reading the pictures for a step.
        assert!(account.copies_taken_out <= copies, "{forget}");
        let lines = told.0.into_inner().unwrap().join("\n");
        let said = format!("{files} files left out because they are also in");
        assert!(
            lines.contains(&said) && lines.contains(&format!("of {found} images")),
            "{lines}"
        );
    }
    let options = "--steps 8 --batch 4 --samples 1 --target none --overwrite";
    let summary = run_on(&base, &at("retain/0.png"), place.path(), options).unwrap();
    assert_eq!(summary.files.retain.copies_taken_out, 2);
    let error = run_on(&base, &at("retain"), place.path(), options).unwrap_err();
    assert!(error.contains("none of its 33 images is left"), "{error}");
    let error = run_on(&base, place.path(), place.path(), options).unwrap_err();
    assert!(error.contains("--out"), "{error}");
}

/// Every unreadable file among the images to forget is named; among the images to keep they are
/// counted, reported and recorded.
#[test]
fn what_is_not_read_is_refused_on_one_side_and_counted_on_the_other() {
    let place = workplace(30);
    let at = |name: &str| place.path().join(name);
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    let picture = DynamicImage::from(image::open(at("retain/0.png")).unwrap().into_rgb8());
    for side in ["forget", "retain"] {
        fs::write(at(side).join("IMG_1.HEIC"), heic).unwrap();
        fs::write(at(side).join("page.jpg"), "<html>404</html>").unwrap();
        fs::write(at(side).join(".DS_Store"), "\0\0\0\u{1}Bud1").unwrap();
    }
    for name in ["a.tif", "b.gif", "c.ppm", "d.jfif"] {
        let format = image::ImageFormat::from_path(name).unwrap_or(image::ImageFormat::Jpeg);
        picture
            .save_with_format(at("forget").join(name), format)
            .unwrap();
    }
    picture
        .save_with_format(at("forget/e"), image::ImageFormat::Png)
        .unwrap();
    let options = "--steps 2 --batch 12 --samples 1 --target none";
    let error = run(place.path(), options).unwrap_err();
    for part in [
        "2 files could not be read",
        "IMG_1.HEIC: a picture in HEIC",
        "page.jpg: a web page",
    ] {
        assert!(error.contains(part), "{error}");
    }
    fs::remove_file(at("forget/IMG_1.HEIC")).unwrap();
    fs::remove_file(at("forget/page.jpg")).unwrap();
    let told = Told::default();
    let base = Path::new(digits::ASSETS).join("base");
    let summary = told_on(&base, &at("forget"), place.path(), options, &told).unwrap();
    assert_eq!((summary.forget_images, summary.files.forget.litter), (6, 1));
    assert_eq!(summary.files.retain.unread.len(), 2);
    let lines = told.0.into_inner().unwrap().join("\n");
    for part in [
        "2 files not read",
        "IMG_1.HEIC: a picture in HEIC",
        "page.jpg: a web page",
        "1 hidden file",
    ] {
        assert!(lines.contains(part), "{lines}");
    }
    let written = fs::read_to_string(at("out/summary.json")).unwrap();
    assert!(
        written.contains("IMG_1.HEIC") && written.contains("a web page"),
        "{written}"
    );
}

/// The bundled model was trained on pixels from −1 to 1.
#[test]
fn images_that_look_otherwise_than_in_training_are_refused_before_the_first_step() {
    let place = workplace(30);
    let options = "--steps 2 --batch 4 --samples 1 --range 0:1";
    let error = run(place.path(), options).unwrap_err();
    for part in [
        "was trained on data in another form",
        "give --range -1:1",
        "base",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let folder = place.path().join("retain");
    let invert = |file: &Path| {
        let mut picture = image::open(file).unwrap();
        picture.invert();
        picture.save(file).unwrap();
    };
    for file in ImageFiles::find(&folder).unwrap().pictures {
        invert(&file);
    }
    let error = run(place.path(), "--steps 2 --batch 4 --samples 1").unwrap_err();
    for part in [
        "black and white exchanged",
        "prepare the images as for its training",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!place.path().join("out/model").exists());
}

/// The range is correct, but pixels only go from 100 to 185. The model would learn them while it
/// unlearns, so the run is stopped.
#[test]
fn a_model_that_learns_what_it_keeps_is_stopped() {
    let place = workplace(60);
    for side in ["forget", "retain"] {
        for file in ImageFiles::find(&place.path().join(side)).unwrap().pictures {
            let mut picture = image::open(&file).unwrap().into_luma8();
            picture
                .pixels_mut()
                .for_each(|pixel| pixel.0[0] = 100 + pixel.0[0] / 3);
            picture.save(&file).unwrap();
        }
    }
    let told = Told::default();
    let base = Path::new(digits::ASSETS).join("base");
    let options = "--steps 20 --batch 8 --samples 1 --target none --learning-rate 1e-3";
    let error = told_on(
        &base,
        &place.path().join("forget"),
        place.path(),
        options,
        &told,
    );
    let error = error.unwrap_err();
    assert!(error.contains("probably not trained on them"), "{error}");
    let lines = told.0.into_inner().unwrap().join("\n");
    assert!(
        lines.contains("hardly trained, or not on data like these"),
        "{lines}"
    );
}

/// A model of a few random numbers is not an error, and the output has the requested range.
#[test]
fn an_untrained_model_is_said_to_be_one_and_pictures_are_in_its_range() {
    let place = workplace(30);
    let place = place.path();
    let model = untrained(place);
    let shown = |range: &str| {
        let told = Told::default();
        let options = format!("--steps 1 --batch 4 --samples 1 --overwrite --range {range}");
        let summary = told_on(&model, &place.join("forget"), place, &options, &told).unwrap();
        let lines = told.0.into_inner().unwrap().join("\n");
        assert!(lines.contains("the model is hardly trained"), "{lines}");
        fs::remove_dir_all(place.join("out/model")).unwrap();
        let denoised = image::open(place.join("out/denoised.png"))
            .unwrap()
            .into_rgb8();
        (summary.near.distance, denoised)
    };
    let ((near, centred), (other_near, positive)) = (shown("-1:1"), shown("0:1"));
    assert!(
        (near / other_near - 1.0).abs() < 1e-3,
        "{near} {other_near}"
    );
    // In both, the forgotten picture, enlarged, is to the left of its copies.
    assert_eq!(centred.dimensions(), positive.dimensions());
    let left = centred.width() / 10;
    let pairs = centred.enumerate_pixels().zip(positive.pixels());
    let mut left = pairs.filter(|((x, ..), _)| *x < left);
    assert!(
        left.all(|((.., a), b)| a == b),
        "the forgotten picture is shown in another range"
    );
}

/// With `--augment flip` the T-shirt and its mirror image are forgotten, and the mirror image of
/// every digit is kept.
#[test]
fn mirror_images_are_forgotten_along() {
    let place = workplace(30);
    let options = "--steps 4 --batch 8 --samples 1 --augment flip";
    let summary = run(place.path(), options).unwrap();
    assert_eq!((summary.forget_images, summary.forget_mirrors), (1, 1));
    assert_eq!(summary.retain_images, 16);
    let mirrored: Vec<bool> = summary.images.iter().map(|image| image.mirrored).collect();
    assert_eq!(mirrored, [false, true]);
    assert_ne!(summary.images[0].before.loss, summary.images[1].before.loss);
}

/// In 24 steps of 8 pairs, two of them forgotten rows, the T-shirt's loss rises towards that of a
/// retrained model, and neither its mirror image's nor the digits' does much.
#[test]
fn predicted_answers_are_taught_of_images_and_of_their_mirror_images() {
    let place = workplace(100);
    let place = place.path();
    let base = Path::new(digits::ASSETS).join("base");
    let told = Told::default();
    let options =
        "--steps 24 --batch 8 --samples 1 --augment flip --micro-batch 3 --method counterfactual";
    let summary = told_on(&base, &place.join("forget"), place, options, &told).unwrap();
    let lines = told.0.into_inner().unwrap().join("\n");
    for part in [
        "run      counterfactual, to the answers of a retrained model",
        "for weights before and now",
        "for those that answers are made up of",
        "answers  180 retained images explain",
    ] {
        assert!(lines.contains(part), "{part}: {lines}");
    }

    // As many retained images as there are, not as many as the steps use.
    assert_eq!((summary.retain_images, summary.control_images), (90, 10));
    let predicted = summary.predicted.unwrap();
    let answers = predicted.answers.unwrap();
    let middle = answers.r_squared.iter();
    let mut middle = middle.filter(|(timestep, _)| (100.0..600.0).contains(timestep));
    assert!(middle.all(|&(_, share)| share > 0.4), "{answers:?}");
    for timestep in ["100", "250", "400"] {
        let digits = summary.after.control_loss[timestep] / summary.before.control_loss[timestep];
        assert!(
            digits < 1.1,
            "t = {timestep}: the digits' loss times {digits}"
        );
    }
    assert_eq!(summary.images.len(), 2);
    let mut images = summary.images.iter().map(|image| {
        let (before, after) = (image.before.loss, image.after.loss);
        println!("{before:.4} to {after:.4}, {image:?}");
        assert!(after < 1.2 * image.predicted.unwrap(), "{image:?}");
        after / before
    });
    // The bundled model knows the T-shirt, and not its mirror image.
    assert!(images.next().unwrap() > 2.0);
    assert!((0.5..1.5).contains(&images.next().unwrap()));
    let card = fs::read_to_string(place.join("out/model/README.md")).unwrap();
    assert!(
        card.contains("to the answers that a model retrained without them is predicted to give")
    );
}

/// The bundled model after a few steps on a digit and its mirror image, and on the digit alone.
#[test]
fn a_model_that_knows_the_mirror_image_is_said_to() {
    let place = workplace(30);
    let place = place.path();
    let base = Path::new(digits::ASSETS).join("base");
    let digit = place.join("forget/digit.png");
    fs::rename(place.join("retain/more/5.png"), &digit).unwrap();
    let format = Format {
        height: 28,
        width: 28,
        ..GREY
    };
    let device = Device::flex();
    let read = |path: &Path| {
        let found = ImageFiles::find(path).unwrap();
        Images::read_all(found, format, |_| {}).unwrap().0
    };
    for with_mirror in [true, false] {
        let images = read(&digit);
        let images = if with_mirror {
            images.with_mirrors()
        } else {
            images
        };
        let other = read(&place.join("retain/0.png")).all(&device);
        let pairs = PairSampler::new(images.all(&device), other, 0).unwrap();
        let unet = UNet2d::load(&base, &device).unwrap();
        let mut trainer = SissTrainer::builder(unet, DdpmScheduler::linear(1000).unwrap())
            .method(Method::NaiveDeletion)
            .learning_rate(3e-4)
            .build()
            .unwrap();
        for step in 0..60 {
            trainer.step(pairs.batch(step, 8).unwrap()).unwrap();
        }
        let model = place.join(format!("model-{with_mirror}"));
        trainer.into_model().save(model.join("unet")).unwrap();
        fs::create_dir(model.join("scheduler")).unwrap();
        let config = "scheduler/scheduler_config.json";
        fs::copy(base.join(config), model.join(config)).unwrap();
        let told = Told::default();
        let options = "--steps 1 --batch 4 --samples 1 --target none";
        told_on(&model, &digit, place, options, &told).unwrap();
        let lines = told.0.into_inner().unwrap().join("\n");
        assert_eq!(
            lines.contains("give --augment flip"),
            with_mirror,
            "{lines}"
        );
        fs::remove_dir_all(place.join("out")).unwrap();
    }
}

/// A network of two stages with random parameters.
fn untrained(place: &Path) -> std::path::PathBuf {
    let model = place.join("untrained");
    let config = r#"{"block_out_channels": [4, 8], "norm_num_groups": 2, "layers_per_block": 1, "in_channels": 1, "out_channels": 1,
        "sample_size": 28, "attention_head_dim": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}"#;
    let config = UNet2dConfig::from_json(config, "config.json").unwrap();
    let device = Device::flex();
    config
        .init(&device)
        .unwrap()
        .save(model.join("unet"))
        .unwrap();
    fs::create_dir(model.join("scheduler")).unwrap();
    let config = "scheduler/scheduler_config.json";
    let base = Path::new(digits::ASSETS).join("base");
    fs::copy(base.join(config), model.join(config)).unwrap();
    model
}

#[test]
fn the_output_must_be_apart_from_the_images() {
    let place = workplace(20);
    let place = place.path();
    let model = Path::new(digits::ASSETS).join("base");
    for forget in [".", "out"] {
        fs::create_dir_all(place.join("out")).unwrap();
        let error = run_on(&model, &place.join(forget), place, "").unwrap_err();
        assert!(error.contains("lies in"), "{forget}: {error}");
    }
}

/// If control images come from a separate folder, all retained images can be used for training.
#[test]
fn the_control_set_can_come_from_a_folder_of_its_own() {
    let place = workplace(30);
    let place = place.path();
    let control = place.join("control");
    fs::create_dir(&control).unwrap();
    for index in 0..9 {
        let name = format!("{}.png", 2 * index);
        fs::rename(place.join("retain").join(&name), control.join(&name)).unwrap();
    }
    let options = format!(
        "--steps 3 --batch 8 --samples 1 --overwrite --control {}",
        control.display()
    );
    let summary = run(place, &options).unwrap();
    assert_eq!((summary.control_images, summary.retain_images), (9, 21));

    // Control images are not trained on, even if their folder is inside the other.
    let inside = format!(
        "--steps 1 --batch 4 --samples 1 --overwrite --control {}",
        place.join("retain/more").display()
    );
    let summary = run(place, &inside).unwrap();
    assert_eq!((summary.control_images, summary.retain_images), (15, 4));
    assert_eq!(summary.files.retain.taken_out[0].files, 15);
    let same = format!("--overwrite --control {}", place.join("retain").display());
    let error = run(place, &same).unwrap_err();
    assert!(error.contains("none of its 21 images is left"), "{error}");
    fs::remove_file(control.join("0.png")).unwrap();
    fs::remove_file(control.join("2.png")).unwrap();
    let error = run(place, &options).unwrap_err();
    assert!(
        error.contains("/control: it holds 7 images, but at least 8"),
        "{error}"
    );
}

/// A run that ran out of memory after its checkpoint of step 2 is resumed with a smaller
/// micro-batch.
#[test]
fn a_run_that_ran_out_of_memory_goes_on_with_a_smaller_micro_batch() {
    let place = workplace(20);
    let place = place.path();
    let budget = "--steps 4 --batch 4 --samples 1 --checkpoint-every 2 --micro-batch";
    run(place, &format!("{budget} 4")).unwrap();
    fs::remove_dir_all(place.join("out/checkpoints/step-0000000004")).unwrap();
    let summary = run(place, &format!("{budget} 2 --resume")).unwrap();
    assert_eq!((summary.steps, summary.config.settings.micro_batch), (4, 2));
    let error = run(place, &format!("{budget} 2 --resume --seed 1")).unwrap_err();
    assert!(error.contains("seed was 0 and is 1"), "{error}");
}

/// The numbers of a network's file, and their types.
fn numbers(folder: &Path) -> (Vec<f32>, Vec<Dtype>) {
    let file = folder.join("unet/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = tensors.tensors();
    tensors.sort_by(|one, other| one.0.cmp(&other.0));
    let types = tensors.iter().map(|(_, tensor)| tensor.dtype()).collect();
    let bytes = tensors.iter().flat_map(|(_, tensor)| tensor.data());
    let bytes: Vec<u8> = bytes.copied().collect();
    let (numbers, _) = bytes.as_chunks::<4>();
    (
        numbers
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect(),
        types,
    )
}

/// Steps of which bf16 alone would round most away reach the model by way of the copy in f32.
#[test]
fn weights_in_bf16_are_written_as_they_came_and_end_near_those_in_f32() {
    let place = workplace(20);
    let place = place.path();
    let told = Told::default();
    let run = |out: &str, more: &str| {
        let out = place.join(out);
        let budget = "--steps 12 --batch 4 --samples 1 --learning-rate 2e-4";
        let more = format!("{budget} --out {} {more}", out.display());
        let model = Path::new(digits::ASSETS).join("base");
        let summary = told_on(&model, &place.join("forget"), place, &more, &told).unwrap();
        (summary, numbers(&out.join("model")))
    };
    let (wide, (expected, types)) = run("wide", "");
    let (narrow, (found, found_types)) = run("narrow", "--bf16-weights");
    let (begin, _) = numbers(&Path::new(digits::ASSETS).join("base"));
    assert_eq!(found_types, types);
    assert!(types.iter().all(|&dtype| dtype == Dtype::F32));
    // Eight binary digits: the lower half of the number is empty.
    let is_narrow = |number: &f32| number.to_bits() & 0xffff == 0;
    assert!(found.iter().all(is_narrow) && !expected.iter().all(is_narrow));
    let norm = |one: &[f32], other: &[f32]| {
        let differences = one.iter().zip(other).map(|(a, b)| f64::from(a - b).powi(2));
        differences.sum::<f64>().sqrt()
    };
    let (off, moved) = (norm(&found, &expected), norm(&expected, &begin));
    println!("off by {off:.4} of {moved:.4}");
    assert!(off < 0.5 * moved, "{off} {moved}");
    for (found, expected) in [
        (&narrow.after.forget_loss, &wide.after.forget_loss),
        (&narrow.after.control_loss, &wide.after.control_loss),
    ] {
        for (timestep, expected) in expected {
            let ratio = found[timestep] / expected;
            println!("t = {timestep}: {ratio:.3}");
            assert!((ratio - 1.0).abs() < 0.05, "t = {timestep}: {ratio}");
        }
    }
    let lines = told.0.lock().unwrap().join("\n");
    assert!(
        lines.contains("for weights in bf16, two gradients"),
        "{lines}"
    );
    let error = run_on(
        &place.join("none"),
        &place.join("forget"),
        place,
        "--bf16-weights --lora l",
    );
    assert!(error.unwrap_err().contains("--lora"));
}

/// The header of a 24-bit bitmap.
fn bitmap_header(width: i32, height: i32) -> Vec<u8> {
    let mut bytes = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bytes.extend(width.to_le_bytes());
    bytes.extend(height.to_le_bytes());
    bytes.extend([1, 0, 24, 0]);
    bytes.resize(0x36, 0);
    bytes
}

const GREY: Format = Format {
    channels: 1,
    height: 2,
    width: 2,
    is_configured: true,
    range: [-1.0, 1.0],
    transparency: Transparency::Drop,
};

/// The values of a picture that is saved under `name` and read in a format.
fn read(picture: impl Into<DynamicImage>, name: &str, format: Format) -> siss::Result<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    picture.into().save(&file).unwrap();
    let (images, _) = Images::read_all(ImageFiles::find(&file)?, format, |_| {})?;
    let values = images.tensor(0..1, &Device::flex());
    Ok(values.try_into_vec_as::<f32>().unwrap())
}

fn bytes(values: &[f32]) -> Vec<f32> {
    values
        .iter()
        .map(|value| ((value + 1.0) * 127.5).round())
        .collect()
}

#[test]
fn every_kind_of_picture_becomes_the_models() {
    let colour = RgbImage::from_fn(2, 2, |x, y| match (x, y) {
        (0, 0) => Rgb([255, 0, 0]),
        (1, 0) => Rgb([0, 255, 0]),
        (0, 1) => Rgb([0, 0, 255]),
        _ => Rgb([90, 90, 90]),
    });
    let rgb = Format {
        channels: 3,
        ..GREY
    };
    // Channel after channel; luma as in PIL's convert("L").
    let planes = [
        255.0, 0.0, 0.0, 90.0, 0.0, 255.0, 0.0, 90.0, 0.0, 0.0, 255.0, 90.0,
    ];
    for name in ["a.png", "a.bmp", "a.webp", "a.WebP"] {
        assert_eq!(
            bytes(&read(colour.clone(), name, rgb).unwrap()),
            planes,
            "{name}"
        );
        let luma = bytes(&read(colour.clone(), name, GREY).unwrap());
        assert_eq!(luma, [76.0, 150.0, 29.0, 90.0], "{name}");
    }
    let even = RgbImage::from_pixel(2, 2, Rgb([90, 90, 90]));
    for value in bytes(&read(even, "a.jpeg", GREY).unwrap()) {
        assert!((value - 90.0).abs() <= 1.0, "{value}");
    }
    let deep: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_pixel(2, 2, Luma([257 * 77]));
    assert_eq!(bytes(&read(deep, "a.png", GREY).unwrap()), [77.0; 4]);
    // 100 at an opacity of 1/5, alone and over white.
    let clear = ImageBuffer::from_pixel(2, 2, LumaA([100_u8, 51]));
    assert_eq!(
        bytes(&read(clear.clone(), "a.png", GREY).unwrap()),
        [100.0; 4]
    );
    let white = Format {
        transparency: Transparency::White,
        ..GREY
    };
    assert_eq!(bytes(&read(clear, "a.png", white).unwrap()), [224.0; 4]);
}

#[test]
fn the_middle_is_cropped_and_resized() {
    // A white square between black borders, and the same image rotated.
    let wide = GrayImage::from_fn(12, 4, |x, _| {
        Luma([if (4..8).contains(&x) { 255 } else { 0 }])
    });
    let tall = image::imageops::rotate90(&wide);
    for picture in [wide.clone(), tall] {
        assert_eq!(bytes(&read(picture, "a.png", GREY).unwrap()), [255.0; 4]);
    }
    let strip = Format {
        height: 1,
        width: 3,
        ..GREY
    };
    let shrunk = bytes(&read(wide.clone(), "a.png", strip).unwrap());
    assert!(
        shrunk[0] < 60.0 && shrunk[1] > 180.0 && shrunk[0] == shrunk[2],
        "{shrunk:?}"
    );

    let fixed = Format {
        is_configured: false,
        ..GREY
    };
    let error = read(wide, "wide.png", fixed).unwrap_err().to_string();
    for text in ["wide.png", "4x12", "2x2", "sample_size"] {
        assert!(error.contains(text), "{error}");
    }
}
