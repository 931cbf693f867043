//! The audit: all tests, and the report.

use std::error::Error;
use std::path::Path;

use siss::burn::module::Module;
use siss::files::path_text;
use siss::images::ImageFiles;
use siss::metrics::ControlTest;
use siss::models::{ClassUNet2d, Dit, Sd3Transformer, UNet2dCondition};
use siss::report::audit::{
    Attack, AuditLog, AuditReport, AuditedData, AuditedModel, EarlierSubject, LogEntry, Manifest,
    NotTested, Recheck, Verdict, WorstCase,
};

use crate::audit::attacks::{Generated, Losses, TIMESTEPS, denoised, losses, signals};
use crate::audit::closeness::{answers, relative};
use crate::audit::facts::{frame, left_open, never_tested, old_model, threats};
use crate::audit::keep::quality;
use crate::audit::material::{Material, named, sha256};
use crate::audit::options::Options;
use crate::audit::pictures::{levels, pictures};
use crate::audit::returns::{pair, relearning};
use crate::audit::today::today;
use crate::process::Process;
use crate::progress::Progress;
use crate::subject::source::Source;
use crate::subject::{Classes, ConditionOf, Kind, Points, Subject, Text, Unconditional};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tests, writes `report.html` and `report.json` into `options.out`, and appends to the log.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<AuditReport> {
    options.check()?;
    // A broken log is refused before anything takes time.
    let log = options.log.as_ref().map(AuditLog::open).transpose()?;
    let Some(before) = &options.before else {
        let material = Material::bundled(options, progress)?;
        return tested(material, options, log, progress);
    };
    let conditions = options.told.conditions();
    let source = Source::find(&named("before", before, options, &conditions))?;
    let own = (before.as_path(), &source);
    match Kind::of(&source)? {
        Kind::Unconditional => own_tested::<Unconditional>(options, own, log, progress),
        Kind::Classes => own_tested::<Classes<ClassUNet2d>>(options, own, log, progress),
        Kind::Dit => own_tested::<Classes<Dit>>(options, own, log, progress),
        Kind::Text => own_tested::<Text<UNet2dCondition>>(options, own, log, progress),
        Kind::Sd3 => own_tested::<Text<Sd3Transformer>>(options, own, log, progress),
    }
}

/// Tests the model of the command line.
fn own_tested<S: Subject>(
    options: &Options,
    own: (&Path, &Source),
    log: Option<AuditLog>,
    progress: &dyn Progress,
) -> Result<AuditReport> {
    let material = Material::<S>::own(options, own, progress)?;
    tested(material, options, log, progress)
}

/// Tests a model, writes the report, and appends to the log.
fn tested<S: Subject>(
    mut material: Material<S>,
    options: &Options,
    mut log: Option<AuditLog>,
    progress: &dyn Progress,
) -> Result<AuditReport> {
    // What is wrong with the earlier items is known before the tests, which take long.
    let earlier = match &log {
        Some(log) => earlier_items(&mut material, options, log)?,
        None => Vec::new(),
    };
    let mut report = audit(&material, options, progress)?;
    for (item, found) in earlier {
        match found {
            Ok(point) => report
                .rechecks
                .push(test_again(&material, options, &item, &point)?),
            Err(why) => report.not_tested.push(NotTested {
                attack: None,
                what: format!("an item of the earlier request {}", item.request),
                why,
            }),
        }
    }
    report.previous_entry_sha256 = log.as_ref().map(|log| log.head().to_owned());
    let sha256 = report.save(&options.out)?;
    if let Some(log) = &mut log {
        log.append(LogEntry {
            time: today(),
            request: report.request.id.clone(),
            subjects: report.subjects.iter().map(|it| it.sha256.clone()).collect(),
            model_before: report.model.before_sha256.clone(),
            model_after: report.model.after_sha256.clone(),
            report: sha256,
        })?;
    }
    Ok(report)
}

/// All tests.
fn audit<S: Subject>(
    material: &Material<S>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<AuditReport> {
    let generated = Generated::sample(material, options, progress)?;
    let losses = Losses::measure(material, options, progress)?;
    let (relearned, relearning_chart) = relearning(material, options, progress)?;
    let mut tests = vec![
        generated.test(material)?,
        denoised(material, progress)?,
        losses.test(material)?,
    ];
    tests.extend(signals(material, progress)?);
    tests.extend(answers(material, options, progress)?);
    tests.extend(relative(material, &generated, progress)?);
    tests.push(relearned);
    let generates = material.copies.among(&generated.before) > 0;
    tests.push(pair(material, options, generates, progress)?);
    let tested: Vec<Attack> = tests.iter().map(|test| test.attack).collect();

    let (worst, finding) = losses.worst_item()?;
    let subjects = material.records.clone();
    let frame = frame(
        &options.record,
        options,
        options.seed,
        &options.device.to_string(),
    )?;
    let mut not_tested = left_open(&tested, "no model trained without the items was given");
    not_tested.extend(never_tested());
    not_tested.extend(of_conditions(material));
    let mut report = AuditReport {
        worst_case: subjects.get(worst).map(|item| WorstCase {
            sha256: item.sha256.clone(),
            finding,
        }),
        subjects,
        threats: threats(&tested),
        model: model(material)?,
        data: AuditedData {
            description: material.description.clone(),
            retain_manifest_sha256: material.manifest.sha256(),
            retained: material.retained as u64,
            controls: material.controls.count() as u64,
        },
        tests,
        quality: quality(&losses)?,
        charts: vec![levels(material, options, progress)?, relearning_chart],
        pictures: pictures(material, &generated, options.record.show_forgotten)?,
        not_tested,
        ..frame
    };
    report.run.configuration.extend(material.unlearning.clone());
    Ok(report)
}

/// What is not tested of a model with a condition, or with the path of flow matching.
fn of_conditions<S: Subject>(material: &Material<S>) -> Vec<NotTested> {
    let other_conditions = (!material.items.words.is_empty()).then(|| NotTested {
        attack: Some(Attack::DataReconstruction),
        what: "other classes or captions than the items' own, and embeddings found by a search".into(),
        why: "every test tells the model the item's own condition; the example `prompt_variants` looks for others".into(),
    });
    let signals = matches!(material.process, Process::Flow(_)).then(|| NotTested {
        attack: Some(Attack::MembershipInference),
        what: "PIA, SecMI and SimA".into(),
        why: "they are defined for processes of steps, and this model's is a path".into(),
    });
    let parts = (!material.subject.space().is_pixels()).then(|| NotTested {
        attack: None,
        what: "the autoencoder and the text encoders of the other models".into(),
        why: "all networks are run with those of the model before".into(),
    });
    [other_conditions, signals, parts]
        .into_iter()
        .flatten()
        .collect()
}

fn model<S: Subject>(material: &Material<S>) -> siss::Result<AuditedModel> {
    let [before, after] = &material.models.places;
    Ok(AuditedModel {
        name: material.name.clone(),
        parents: Vec::new(),
        parameters: material.models.before.num_params() as u64,
        before_sha256: Manifest::of(before)?.sha256(),
        after_sha256: Manifest::of(after)?.sha256(),
        descendants: None,
        old_copies: Some(vec![old_model(path_text(before))]),
    })
}

/// An item of an earlier request, and its point or why there is none.
type Earlier<C> = (EarlierSubject, std::result::Result<Points<C>, String>);

/// The items of earlier requests, of which the files may be there.
fn earlier_items<S: Subject>(
    material: &mut Material<S>,
    options: &Options,
    log: &AuditLog,
) -> Result<Vec<Earlier<ConditionOf<S>>>> {
    let current: Vec<String> = material
        .records
        .iter()
        .map(|it| it.sha256.clone())
        .collect();
    let found = match &options.earlier {
        Some(folder) => ImageFiles::find(folder)?,
        None => ImageFiles::default(),
    };
    let hashed = found.pictures.iter().map(|file| Ok((sha256(file)?, file)));
    let hashed: Vec<_> = hashed.collect::<siss::Result<_>>()?;
    let of_item = |item: EarlierSubject| {
        let point = match hashed.iter().find(|(hash, _)| *hash == item.sha256) {
            Some((_, file)) => material
                .item(file, &found)
                .map_err(|error| format!("its file was given, but: {error}")),
            None => Err(format!(
                "no file with the SHA-256 {} was given (--earlier)",
                item.sha256
            )),
        };
        (item, point)
    };
    Ok(log.to_recheck(&current).into_iter().map(of_item).collect())
}

/// The rank of the loss of an earlier item.
fn test_again<S: Subject>(
    material: &Material<S>,
    options: &Options,
    item: &EarlierSubject,
    point: &Points<ConditionOf<S>>,
) -> Result<Recheck> {
    let (model, noises) = (&material.models.after, options.noises);
    let mut lowest: (f64, usize) = (1.0, TIMESTEPS[0]);
    for timestep in TIMESTEPS {
        let of = |points| losses(material, model, points, timestep, noises);
        let test = ControlTest::new(of(point)?[0], &of(&material.controls)?)?;
        if test.low < lowest.0 {
            lowest = (test.low, timestep);
        }
    }
    let (p_value, timestep) = lowest;
    let level = 0.05 / TIMESTEPS.len() as f64;
    Ok(Recheck {
        request: item.request.clone(),
        sha256: item.sha256.clone(),
        verdict: if p_value <= level {
            Verdict::Trace
        } else {
            Verdict::NoTrace
        },
        finding: format!(
            "rank of its loss among {} unseen pictures: lowest p-value {p_value:.3}, at timestep {timestep}",
            material.controls.count()
        ),
    })
}
