//! Tests a model before and after unlearning and writes a report that a person can read:
//! `cargo run --release --example audit`. See `--help` and `examples/README.md`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use siss::files::path_text;
use siss::report::audit::{AuditLog, AuditReport, Manifest, Remains, RemainsOf};
use siss_support::audit::job;
use siss_support::audit::options::{Command, LogOptions, Options, PurgeOptions, Task};
use siss_support::progress::Bar;

fn main() -> ExitCode {
    let command = Command::parse();
    let done = match &command.task {
        None => audit(&command.options),
        Some(Task::Log(options)) => log(options),
        Some(Task::Purge(options)) => purge(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn audit(options: &Options) -> Result<(), Box<dyn Error>> {
    let progress = Bar::new()?;
    let report = job::run(options, &progress)?;
    progress.finish();
    print_verdicts(&report);
    println!("\nthe report is in {}/report.html", path_text(&options.out));
    Ok(())
}

fn print_verdicts(report: &AuditReport) {
    for test in &report.tests {
        let name = format!("{}: {}", test.attack.name(), test.signal);
        println!("{:<32} {name}", test.verdict.words());
        println!("{:<32} {}", "", test.explanation);
    }
    println!(
        "\nnot tested: {}; none of this proves erasure",
        report.not_tested.len()
    );
}

fn log(options: &LogOptions) -> Result<(), Box<dyn Error>> {
    let log = AuditLog::open(&options.file)?;
    if let Some(head) = &options.head {
        log.check_head(head)?;
    }
    for entry in log.entries() {
        let items = entry.subjects.len();
        println!(
            "{}  request {}, items: {items}, report {}",
            entry.time, entry.request, entry.report
        );
    }
    println!(
        "\nthe chain is whole; its last entry has the SHA-256 {}",
        log.head()
    );
    let earlier = log.to_recheck(&[]);
    println!("a new run tests {} earlier items again:", earlier.len());
    for item in earlier {
        println!("{}  request {}", item.sha256, item.request);
    }
    Ok(())
}

fn purge(options: &PurgeOptions) -> Result<(), Box<dyn Error>> {
    let of = RemainsOf {
        subjects: hashes(&options.item, |_| true)?,
        // A configuration is the same before and after.
        old_model: hashes(&options.old_model, |name| !name.ends_with(".json"))?,
    };
    let mut remains = Remains::find(&options.folders, &of)?;
    if options.remove.is_empty() {
        for file in remains.files() {
            let sha256 = file.sha256.as_deref().unwrap_or("not followed");
            println!(
                "{:<16} {:>12}  {sha256}  {}",
                file.kind,
                file.bytes,
                path_text(&file.path)
            );
        }
        println!("\nnothing was removed: name files with --remove");
        return Ok(());
    }
    for file in remains.remove(&options.remove)? {
        println!("removed {:<16} {}", file.kind, path_text(&file.path));
    }
    println!("\n{} files are left on the list", remains.files().len());
    Ok(())
}

/// The SHA-256 of the files of these paths whose name counts.
fn hashes(paths: &[PathBuf], counts: impl Fn(&str) -> bool) -> siss::Result<Vec<String>> {
    let mut hashes = Vec::new();
    for path in paths {
        let manifest = Manifest::of(path)?;
        let files = manifest.files().iter().filter(|file| counts(&file.name));
        hashes.extend(files.map(|file| file.sha256.clone()));
    }
    Ok(hashes)
}
