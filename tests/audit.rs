//! The example `audit` in its short form: every test runs, the report is whole, the log is chained.

use std::path::Path;

use clap::Parser;
use siss::report::audit::{
    Attack, AuditLog, AuditReport, RemainderKind, Remains, RemainsOf, Verdict,
};
use siss_support::audit::job;
use siss_support::audit::options::Command;
use siss_support::progress::Silent;

/// Audits the bundled model, which forgets for two steps.
fn audit(folder: &Path, further: &[&str]) -> Result<AuditReport, String> {
    let out = folder.join("out");
    let log = folder.join("log.jsonl");
    let paths = [
        "--out",
        out.to_str().unwrap(),
        "--log",
        log.to_str().unwrap(),
    ];
    let arguments = ["audit", "--quick"].iter().chain(&paths).chain(further);
    let command = Command::try_parse_from(arguments).map_err(|error| error.to_string())?;
    job::run(&command.options, &Silent).map_err(|error| error.to_string())
}

/// The second request, with everything that can be stated, and enough pictures for a score.
const SECOND: [&str; 16] = [
    "--request",
    "second",
    "--show-forgotten",
    "--samples=112",
    "--legal-basis=Article 17",
    "--parent",
    "base one",
    "--parent=base two",
    "--descendant=a LoRA of it",
    "--old-copy",
    "backup of May",
    "removed",
    "--old-copy",
    "a mirror",
    "asked to remove it",
    "--controls=130",
];

/// What was stated is in the record and on the page.
fn check_record(report: &AuditReport, page: &str) {
    let model = &report.model;
    assert_eq!(model.parents, ["base one", "base two"]);
    assert_eq!(model.descendants, Some(vec!["a LoRA of it".to_owned()]));
    let copies = model.old_copies.as_ref().unwrap();
    let of_may = (copies[1].place.as_str(), copies[1].fate.as_str());
    assert_eq!((copies.len(), of_may), (3, ("backup of May", "removed")));
    assert_eq!(report.request.legal_basis.as_deref(), Some("Article 17"));
    for stated in [
        "Article 17",
        "base two",
        "a LoRA of it",
        "a mirror: asked to remove it",
    ] {
        assert!(page.contains(stated), "{stated}");
    }
}

/// The digits' inception score of all three models, each with its interval.
fn check_quality(report: &AuditReport) {
    let mut figures = report.quality.iter();
    let score = figures
        .find(|figure| figure.name.contains("inception score"))
        .unwrap();
    let (before, retrained) = (score.before.as_ref(), score.retrained.as_ref());
    for measured in [before.unwrap(), &score.after, retrained.unwrap()] {
        let [low, high] = measured.interval.unwrap();
        assert!(
            (1.0..=10.0).contains(&measured.value) && low < high,
            "{measured:?}"
        );
        // Copies are left out.
        assert!((100..=112).contains(&measured.samples[0]), "{measured:?}");
    }
}

/// Two steps forget nothing: the T-shirt is found by its rank and beside the twins.
fn check_membership(report: &AuditReport) {
    let of = |signal: &str| {
        let mut tests = report.tests.iter();
        let found = tests.find(|test| test.signal.starts_with(signal));
        found.unwrap_or_else(|| panic!("no {signal}"))
    };
    let loss = of("loss");
    assert_eq!(loss.verdict, Verdict::Trace, "{}", loss.explanation);
    assert!(
        loss.explanation.contains("the low side"),
        "{}",
        loss.explanation
    );
    // 130 controls, two sides.
    let smallest = loss.figures[0].after.p_value.unwrap();
    assert!((smallest - 2.0 / 131.0).abs() < 1e-12, "{smallest}");
    assert!(
        loss.reading.contains("none is below 0.0153"),
        "{}",
        loss.reading
    );
    let worst = &report.worst_case.as_ref().unwrap().finding;
    assert!(worst.contains("low side"), "{worst}");
    for signal in ["PIA", "PIAN", "SecMI", "SimA"] {
        assert_eq!(of(&format!("{signal} at")).figures.len(), 1);
    }
    let ratio = of("loss, likelihood ratio against 3 models");
    for figure in &ratio.figures {
        let before = figure.before.as_ref().unwrap();
        assert!(
            before.value < 0.0 && before.p_value.unwrap() < 0.5,
            "{figure:?}"
        );
        assert_eq!(before.samples, [3]);
    }
}

/// What was announced and what it took stand beside each other.
fn check_time(report: &AuditReport) {
    let (announced, taken) = (report.run.announced_seconds, report.run.seconds);
    assert!(announced.unwrap() > 0.0 && taken.unwrap() > 0.0);
    println!("announced {announced:?}, took {taken:?}");
}

#[test]
fn every_test_runs_and_two_requests_make_a_chain() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let report = audit(folder, &["--request", "<b>first</b>"]).unwrap();
    for attack in Attack::ALL {
        assert!(
            report.tests.iter().any(|test| test.attack == attack),
            "{attack:?}"
        );
    }
    let read = |name: &str| std::fs::read_to_string(folder.join("out").join(name)).unwrap();
    let json = read("report.json");
    let again = AuditReport::from_json(&json).unwrap();
    assert!(again.to_json().unwrap() == json && report.to_json().unwrap() == json);
    let page = read("report.html");
    assert!(page.contains("&lt;b&gt;first&lt;/b&gt;") && !page.contains("<b>first"));
    // The T-shirt is in the pictures of the model before, or may be: they are left out.
    assert!(!report.pictures.is_empty());
    assert!(report.pictures.iter().all(|picture| !picture.shows_subject));
    let open = report.not_tested.iter().map(|open| open.what.as_str());
    assert!(open.clone().any(|what| what.contains("inception score")));
    let shown = audit(folder, &SECOND).unwrap();
    assert!(shown.pictures.iter().any(|picture| picture.shows_subject));
    check_record(&shown, &read("report.html"));
    check_quality(&shown);
    check_membership(&shown);
    check_time(&shown);

    let log = AuditLog::open(folder.join("log.jsonl")).unwrap();
    let requests: Vec<&str> = log.entries().iter().map(|it| it.request.as_str()).collect();
    assert_eq!(requests, ["<b>first</b>", "second"]);
    assert_eq!(report.previous_entry_sha256, Some("0".repeat(64)));
    assert_ne!(shown.previous_entry_sha256, report.previous_entry_sha256);
    assert_eq!(
        log.entries()[0].subjects,
        [report.subjects[0].sha256.clone()]
    );
    assert_ne!(report.model.before_sha256, report.model.after_sha256);

    // The unlearned model is not the old one, and nothing else in the folder is.
    let of = RemainsOf {
        subjects: vec![report.subjects[0].sha256.clone()],
        ..RemainsOf::default()
    };
    let remains = Remains::find(&[folder.join("out")], &of).unwrap();
    assert_eq!(remains.files(), []);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/data");
    let remains = Remains::find(&[assets], &of).unwrap();
    let kinds: Vec<RemainderKind> = remains.files().iter().map(|it| it.kind).collect();
    assert_eq!(kinds, [RemainderKind::Subject]);
}

#[test]
fn options_that_cannot_work_are_refused_before_anything_runs() {
    let scratch = tempfile::tempdir().unwrap();
    for (options, names) in [
        (["--samples", "1"], "--samples is 1"),
        (["--noises", "0"], "--noises is 0"),
        (["--forget", "folder"], "--before"),
        (["--before", "folder"], "--after"),
        (["--old-copy", "a place"], "--old-copy"),
        (["--parent", ""], "--parent"),
    ] {
        let error = audit(scratch.path(), &options).unwrap_err();
        assert!(error.contains(names), "{options:?}: {error}");
    }
    let own = "--before=a --after=b --forget=c --retain=d --control=e";
    for (options, names) in [
        ("--descendant a --no-descendants", "--no-descendants"),
        (
            "--retrained f --another f",
            "--another f: it is given twice",
        ),
        ("--retrained f --another g --another g", "--another g"),
    ] {
        let options: Vec<&str> = own.split(' ').chain(options.split(' ')).collect();
        let error = audit(scratch.path(), &options).unwrap_err();
        assert!(error.contains(names), "{options:?}: {error}");
    }
    std::fs::write(scratch.path().join("log.jsonl"), "{}").unwrap();
    let error = audit(scratch.path(), &[]).unwrap_err();
    assert!(
        error.contains("line 1") && error.contains("breaks off"),
        "{error}"
    );
    assert!(!scratch.path().join("out").exists());
}
