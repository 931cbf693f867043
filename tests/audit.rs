//! The example `audit` in its short form: every test runs, the report is whole, the log is chained.

use std::path::Path;

use clap::Parser;
use siss::report::audit::{Attack, AuditLog, AuditReport, RemainderKind, Remains, RemainsOf};
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
    assert!(report.pictures.iter().all(|picture| !picture.shows_subject));
    let shown = audit(folder, &["--request", "second", "--show-forgotten"]).unwrap();
    assert!(shown.pictures.iter().any(|picture| picture.shows_subject));

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
    ] {
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
