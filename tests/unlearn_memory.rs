//! The memory that `unlearn` announces before a run, against that which it takes.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use siss::StepReport;
use siss_support::digits;
use siss_support::progress::Progress;
use siss_support::unlearn::{job, options};

/// Set in the process of a run, whose peak is its own: the folder of the run and further options.
const PLACE: &str = "SISS_TEST_PLACE";
const MORE: &str = "SISS_TEST_MORE";

struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &str) {}
    fn step(&self, _: &StepReport, _: usize) {}
    fn say(&self, line: &str) {
        println!("{line}");
    }
}

/// Runs the job as a process of its own does, and returns the announced and the measured peak.
fn run_here(place: &Path, more: &str) -> job::Summary {
    let folders = ["model", "forget", "retain", "out"]
        .map(|name| format!("--{name}={}", place.join(name).display()));
    let more = more.split_whitespace().map(String::from);
    let arguments = ["unlearn".into()].into_iter().chain(folders).chain(more);
    let options = options::Options::try_parse_from(arguments).unwrap();
    job::run(options, &Quiet).unwrap()
}

/// Runs the test of this name again in a process of its own with further options, and returns the
/// summary of the run.
fn run_apart(test: &str, place: &Path, more: &str) -> serde_json::Value {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(PLACE, place)
        .env(MORE, more)
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{error}");
    let lines = said.lines().filter(|line| line.starts_with("memory"));
    lines.for_each(|line| println!("{more}: {line}"));
    let summary = fs::read_to_string(place.join("out/summary.json")).unwrap();
    fs::remove_dir_all(place.join("out")).unwrap();
    serde_json::from_str(&summary).unwrap()
}

/// The run of a process that [`run_apart`] started, if this is one.
fn is_run_apart() -> bool {
    let (Ok(place), Ok(more)) = (std::env::var(PLACE), std::env::var(MORE)) else {
        return false;
    };
    run_here(Path::new(&place), &more);
    true
}

/// Digits to keep and to forget, and a copy of the bundled model.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let assets = Path::new(digits::ASSETS);
    for folder in ["forget", "retain", "model"] {
        fs::create_dir_all(place.path().join(folder)).unwrap();
    }
    let pixels =
        digits::read_idx_images(&assets.join("data/digits10k-images-idx3-ubyte.gz")).unwrap();
    for (index, digit) in pixels.chunks_exact(784).take(80).enumerate() {
        let folder = if index == 0 { "forget" } else { "retain" };
        let picture = image::GrayImage::from_raw(28, 28, digit.to_vec()).unwrap();
        let file = place.path().join(folder).join(format!("{index}.png"));
        picture.save(file).unwrap();
    }
    let base = Path::new(digits::ASSETS).join("base");
    for (part, file) in [
        ("unet", "config.json"),
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("scheduler", "scheduler_config.json"),
    ] {
        fs::create_dir_all(place.path().join("model").join(part)).unwrap();
        let [from, to] =
            [&base, &place.path().join("model")].map(|root| root.join(part).join(file));
        fs::copy(from, to).unwrap();
    }
    place
}

fn bytes(summary: &serde_json::Value, key: &str) -> f64 {
    summary.pointer(key).unwrap().as_f64().unwrap()
}

/// With all rows of a side at once; and with few, and cheap operations computed again.
#[test]
fn the_peak_of_a_run_is_the_announced_one() {
    if is_run_apart() {
        return;
    }
    let place = workplace();
    let place = place.path();
    let budget = "--method siss --target none --steps 2 --batch 48 --samples 1";
    let test = "the_peak_of_a_run_is_the_announced_one";
    let peaks = ["", "--micro-batch 8 --recompute"].map(|more| {
        let summary = run_apart(test, place, &format!("{budget} {more}"));
        let announced = bytes(&summary, "/memory/announced_memory_bytes");
        let peak = bytes(&summary, "/peak_memory_bytes");
        println!(
            "announced {announced:.2e}, measured {peak:.2e}: {:.2}",
            announced / peak
        );
        (more, announced, peak)
    });
    for (more, announced, peak) in peaks {
        assert!(
            (0.8..1.2).contains(&(announced / peak)),
            "{more}: {announced} {peak}"
        );
    }
    let [(_, _, whole), (_, _, few)] = peaks;
    assert!(few < whole, "{whole} {few}");
}

/// A run of which the checkpoint was written with one image at a time is resumed so, and a run
/// without one takes all.
#[test]
fn a_resumed_run_takes_the_micro_batch_of_the_run_before() {
    let place = workplace();
    let place = place.path();
    let budget = "--method siss --target none --steps 4 --batch 4 --samples 1 --checkpoint-every 2";
    let summary = run_here(place, budget);
    assert_eq!(summary.config.settings.micro_batch, 4);
    let plan = place.join("out/checkpoints/memory.json");
    let text = fs::read_to_string(&plan).unwrap();
    let text = text.replace("\"micro_batch\": 4", "\"micro_batch\": 1");
    fs::write(&plan, text).unwrap();
    fs::remove_dir_all(place.join("out/checkpoints/step-0000000004")).unwrap();
    let resumed = run_here(place, &format!("{budget} --resume"));
    assert_eq!((resumed.steps, resumed.config.settings.micro_batch), (4, 1));
    let asked = run_here(place, &format!("{budget} --overwrite --micro-batch 2"));
    assert_eq!(asked.config.settings.micro_batch, 2);
}
