//! A short form of the main example: its own code with a small budget.

use clap::Parser;
use siss::StepReport;
use siss::models::UNet2d;
use siss::observer::StepOutcome;
use siss::report::audit::{Attack, AuditReport};
use siss_support::closeness::Closeness;
use siss_support::probe::ByTimestep;
use siss_support::progress::Progress;
use siss_support::tshirt::job::{self, ToRetrained};
use siss_support::tshirt::options;

struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &str) {}
    fn step(&self, report: &StepReport, _: usize) {
        assert_eq!(report.outcome, StepOutcome::Applied, "{report}");
    }
}

/// In 20 steps of 16 pairs with a strong forget gradient, the T-shirt's loss rises at every
/// timestep and the digits' does not; all promised files are written.
#[test]
fn the_tshirt_is_being_forgotten_and_the_digits_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let budget = "test --steps 20 --batch 16 --learning-rate 5e-5 --clipper fraction:0.3 --samples 4 --heldout 64 --report --out";
    let arguments = budget.split(' ').chain([out]);
    let summary = job::run(options::Options::parse_from(arguments), &Quiet).unwrap();

    for timestep in ["100", "250", "400"] {
        let ratio = |before: &ByTimestep, after: &ByTimestep| after[timestep] / before[timestep];
        let tshirt = ratio(&summary.before.tshirt_loss, &summary.after.tshirt_loss);
        let digits = ratio(&summary.before.heldout_loss, &summary.after.heldout_loss);
        println!("t = {timestep}: T-shirt's loss times {tshirt:.2}, digits' times {digits:.3}");
        assert!(
            tshirt > 1.3,
            "t = {timestep}: the T-shirt's loss is only {tshirt} times what it was"
        );
        assert!(
            digits < 1.05,
            "t = {timestep}: the digits' loss is {digits} times what it was"
        );
        assert!(tshirt - 1.0 > 8.0 * (digits - 1.0));
    }
    assert_eq!((summary.steps, summary.before.samples), (20, 4));
    assert_floor(&summary.closeness);

    let file = |name: &str| {
        std::fs::read(folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    for picture in ["before.png", "after.png", "denoised.png"] {
        assert!(file(picture).starts_with(b"\x89PNG"), "{picture}");
    }
    let curves = String::from_utf8(file("curves.svg")).unwrap();
    for label in ["forget scale", "retrained, t = 250", "Denoised T-shirt"] {
        assert!(curves.contains(label), "curves.svg has no `{label}`");
    }
    let metrics = String::from_utf8(file("metrics.jsonl")).unwrap();
    let steps: Vec<StepReport> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        steps.iter().map(|report| report.step).collect::<Vec<_>>(),
        (0..20).collect::<Vec<_>>()
    );
    let written: serde_json::Value = serde_json::from_slice(&file("summary.json")).unwrap();
    for key in ["before", "after"] {
        for figure in [
            "samples",
            "tshirt_count",
            "tshirt_share",
            "tshirt_share_interval",
            "tshirt_loss",
            "heldout_loss",
            "heldout_loss_p99",
            "tshirt_loss_percentile",
            "tshirt_denoise_l2",
        ] {
            assert!(
                !written[key][figure].is_null(),
                "summary.json has no {key}.{figure}"
            );
        }
    }
    let closeness = &written["closeness"];
    for model in ["before", "after", "another_retrained"] {
        for figure in [
            "/answers/250/cosine",
            "/answer_distance",
            "/denoised/400/to_reference",
            "/neighbours/upside down",
            "/neighbourhood",
            "/loss_distance",
        ] {
            let found = closeness[model].pointer(figure);
            assert!(
                found.is_some_and(serde_json::Value::is_f64),
                "summary.json has no closeness.{model}{figure}"
            );
        }
    }
    let report = String::from_utf8(file("report.json")).unwrap();
    let report = AuditReport::from_json(&report).unwrap();
    let untested = report.not_tested.iter().filter_map(|open| open.attack);
    assert_eq!(
        untested.collect::<Vec<_>>(),
        [Attack::Relearning, Attack::PairAttack]
    );
    assert!(file("report.html").starts_with(b"<!doctype html>"));
    let device = summary.config.options.device.device().unwrap();
    UNet2d::load(folder.path().join("model"), &device).unwrap();
}

/// By every measure the second retrained model is closer to the first than the model that memorised
/// the T-shirt is.
fn assert_floor(closeness: &ToRetrained) {
    let figures = |of: &Closeness| {
        [
            ("answers", of.answer_distance),
            ("neighbourhood", of.neighbourhood),
            ("copies from 250", of.denoised["250"].to_reference),
            ("copies from 400", of.denoised["400"].to_reference),
            ("losses", of.loss_distance),
        ]
    };
    let floor = figures(&closeness.another_retrained);
    for ((name, before), (_, floor)) in figures(&closeness.before).into_iter().zip(floor) {
        println!("{name}: {before:.3} before, {floor:.3} of another retrained model");
        assert!(0.0 < floor && floor < before, "{name}: {floor}, {before}");
    }
}

/// By steered SISS, the T-shirt's loss rises towards the predicted loss of a retrained model, and
/// the prediction is close to the actual loss of the retrained model.
#[test]
fn the_target_is_predicted_and_steered_to() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let budget = "test --method siss --steps 6 --batch 16 --samples 2 --heldout 64 --out";
    let arguments = budget.split(' ').chain([out]);
    let summary = job::run(options::Options::parse_from(arguments), &Quiet).unwrap();
    let predicted = summary.predicted.unwrap();
    for (timestep, predicted) in &predicted {
        let ratio = predicted / summary.retrained.tshirt_loss[timestep];
        println!("t = {timestep}: predicted over retrained {ratio:.2}");
        assert!((0.5..2.0).contains(&ratio), "t = {timestep}: {ratio}");
    }
    let metrics = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    let first: StepReport = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    // While the T-shirt is memorised, most rows are far below the level.
    assert!(first.forget.unwrap().steering.unwrap() > 0.2);
    let levels = std::fs::read_to_string(folder.path().join("levels.svg")).unwrap();
    assert!(levels.contains("predicted, without retraining"));
}

/// A run that was ended after its second step, in the middle of a line of its log, leaves the same
/// results as one that was not. This includes the network, the steering and the kernels of the
/// example.
#[test]
fn a_resumed_run_is_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let run = |folder: &str, more: &[&str]| {
        let out = scratch.path().join(folder);
        let budget = "test --steps 4 --batch 8 --samples 2 --heldout 16 --checkpoint-every 2 --out";
        let arguments = budget.split(' ').chain([out.to_str().unwrap()]);
        let arguments = arguments.chain(more.iter().copied());
        job::run(options::Options::parse_from(arguments), &Quiet).map(|_| out)
    };
    let whole = run("whole", &[]).unwrap();
    let ended = scratch.path().join("ended");
    let checkpoint = "checkpoints/step-0000000002";
    std::fs::create_dir_all(ended.join(checkpoint)).unwrap();
    for file in std::fs::read_dir(whole.join(checkpoint)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), ended.join(checkpoint).join(file.file_name())).unwrap();
    }
    let log = std::fs::read(whole.join("metrics.jsonl")).unwrap();
    std::fs::write(ended.join("metrics.jsonl"), &log[..log.len() - 100]).unwrap();

    let error = run("ended", &["--target", "none"]).err().unwrap();
    assert!(error.to_string().contains("--resume"), "{error}");
    run("ended", &["--resume"]).unwrap();
    let files = [
        "metrics.jsonl",
        "curves.svg",
        "model/unet/config.json",
        "model/unet/diffusion_pytorch_model.safetensors",
        "checkpoints/step-0000000004/manifest.json",
    ];
    for file in files {
        let read = |folder: &std::path::Path| std::fs::read(folder.join(file)).unwrap();
        assert!(read(&ended) == read(&whole), "{file} differs");
    }
}
