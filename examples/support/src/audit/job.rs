//! The audit: all tests, and the report.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use siss::burn::module::Module;
use siss::images::ImageFiles;
use siss::models::{ClassUNet2d, Dit, Sd3Transformer, UNet2dCondition};
use siss::report::audit::{
    Attack, AuditLog, AuditReport, AuditedData, EarlierSubject, LogEntry, NotTested, Recheck,
    Verdict, WorstCase,
};

use crate::audit::attacks::{Generated, Losses, TIMESTEPS, denoised, losses, signals};
use crate::audit::closeness::{answers, relative};
use crate::audit::cost::Cost;
use crate::audit::facts::{frame, left_open, never_tested, threats};
use crate::audit::keep::quality;
use crate::audit::material::{Material, named, sha256};
use crate::audit::options::Options;
use crate::audit::pictures::{levels, pictures};
use crate::audit::ranks::{Ranks, Scores, Side};
use crate::audit::ratio::likelihood_ratio;
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
    let cost = Cost::of(
        &material,
        options,
        earlier.iter().filter(|it| it.1.is_ok()).count(),
    );
    let announced = cost.seconds(&material)?;
    progress.say(&cost.line(announced));
    let began = Instant::now();
    let (mut report, losses) = audit(&material, options, progress)?;
    for (item, found) in earlier {
        match found {
            Ok(point) => {
                report
                    .rechecks
                    .push(test_again(&material, &losses, options, (&item, &point))?)
            }
            Err(why) => report.not_tested.push(NotTested {
                attack: None,
                what: format!("an item of the earlier request {}", item.request),
                why,
            }),
        }
    }
    report.previous_entry_sha256 = log.as_ref().map(|log| log.head().to_owned());
    report.run.announced_seconds = Some(announced);
    report.run.seconds = Some(began.elapsed().as_secs_f64());
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

/// All tests, and the losses behind some of them.
pub(super) fn audit<S: Subject>(
    material: &Material<S>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(AuditReport, Losses)> {
    let generated = Generated::sample(material, options, progress)?;
    let losses = Losses::measure(material, options, progress)?;
    let (relearned, relearning_chart) = relearning(material, options, progress)?;
    let mut tests = vec![
        generated.test(material)?,
        denoised(material, progress)?,
        losses.test(material)?,
    ];
    tests.extend(likelihood_ratio(material, &losses, options, progress)?);
    tests.extend(signals(material, progress)?);
    tests.extend(answers(material, options, progress)?);
    tests.extend(relative(material, &generated, progress)?);
    tests.push(relearned);
    let generates = material.copies.among(&generated.before) > 0;
    tests.push(pair(material, options, generates, progress)?);
    let tested: Vec<Attack> = tests.iter().map(|test| test.attack).collect();

    let subjects = material.records.clone();
    let worst = losses.worst_item()?.and_then(|(item, finding)| {
        let sha256 = subjects.get(item)?.sha256.clone();
        Some(WorstCase { sha256, finding })
    });
    let frame = frame(
        &options.record,
        options,
        options.seed,
        &options.device.to_string(),
    )?;
    let mut not_tested = left_open(&tested, "no model trained without the items was given");
    not_tested.extend(never_tested());
    not_tested.extend(of_this_model(material));
    let (quality, without_score) = quality(material, &losses, &generated)?;
    not_tested.extend(without_score);
    let [before, after] = &material.models.places;
    let mut report = AuditReport {
        worst_case: worst,
        subjects,
        threats: threats(&tested),
        model: options.record.model(
            material.name.clone(),
            material.models.before.num_params(),
            [before, after],
        )?,
        data: AuditedData {
            description: material.description.clone(),
            retain_manifest_sha256: material.manifest.sha256(),
            retained: material.retained as u64,
            controls: material.controls.count() as u64,
        },
        tests,
        quality,
        charts: vec![levels(material, options, progress)?, relearning_chart],
        pictures: pictures(material, &generated, options.record.show_forgotten)?,
        not_tested,
        ..frame
    };
    report.run.configuration.extend(material.unlearning.clone());
    Ok((report, losses))
}

/// What is not tested of a model with a condition, with the path of flow matching, or without two
/// models that never saw the items.
fn of_this_model<S: Subject>(material: &Material<S>) -> Vec<NotTested> {
    let other_conditions = (!material.items.words.is_empty()).then(|| NotTested {
        attack: Some(Attack::DataReconstruction),
        what: "other classes or captions than the items' own, and embeddings found by a search".into(),
        why: "every test tells the model the item's own condition; the example `prompt_variants` looks for others".into(),
    });
    let signals = matches!(material.process, Process::Flow(_)).then(|| NotTested {
        attack: Some(Attack::MembershipInference),
        what: "PIA, PIAN, SecMI and SimA".into(),
        why: "they are defined for processes of steps, and this model's is a path".into(),
    });
    let twins = &material.models;
    let ratio = (twins.retrained.is_none() || twins.another.is_empty()).then(|| NotTested {
        attack: Some(Attack::MembershipInference),
        what: "the likelihood ratio of the items' losses".into(),
        why: "it needs two models trained without the items (--retrained, --another)".into(),
    });
    let parts = (!material.subject.space().is_pixels()).then(|| NotTested {
        attack: None,
        what: "the autoencoder and the text encoders of the other models".into(),
        why: "all networks are run with those of the model before".into(),
    });
    [other_conditions, signals, ratio, parts]
        .into_iter()
        .flatten()
        .collect()
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

/// The rank of the loss of an earlier item. A side on which it lay before this run is not this
/// run's doing; the low side is a trace all the same.
fn test_again<S: Subject>(
    material: &Material<S>,
    measured: &Losses,
    options: &Options,
    (item, point): (&EarlierSubject, &Points<ConditionOf<S>>),
) -> Result<Recheck> {
    let among = |model: &S::Model, controls: &[Scores]| -> Result<Vec<Scores>> {
        let of = |(timestep, controls): (usize, &Scores)| {
            Ok(Scores {
                items: losses(material, model, point, timestep, options.noises)?,
                controls: controls.controls.clone(),
            })
        };
        TIMESTEPS.into_iter().zip(controls).map(of).collect()
    };
    let models = &material.models;
    let after = among(&models.after, &measured.after)?;
    let ranks = Ranks::new(&after, &among(&models.before, &measured.before)?)?;
    let (verdict, finding) = recheck(&ranks);
    Ok(Recheck {
        request: item.request.clone(),
        sha256: item.sha256.clone(),
        verdict,
        finding,
    })
}

/// The verdict of the ranks of an earlier item, and the numbers behind it.
fn recheck(ranks: &Ranks) -> (Verdict, String) {
    let verdict = match (ranks.found(Side::Low), ranks.found(Side::High)) {
        (Some(_), _) => Verdict::Trace,
        (None, Some(_)) => Verdict::Overdone,
        (None, None) if ranks.too_few().is_some() => Verdict::Undecided,
        (None, None) => Verdict::NoTrace,
    };
    let finding = match (verdict, ranks.too_few(), ranks.worst()) {
        (Verdict::Undecided, Some(why), _) => why,
        (_, _, Some(worst)) => {
            let before = if worst.is_expected {
                ", as before this run"
            } else {
                ""
            };
            format!(
                "rank of its loss among unseen pictures: smallest p-value {:.3}, at timestep {}, on {}{before} ({})",
                worst.p_value,
                TIMESTEPS[worst.place],
                worst.side.words(),
                ranks.rule()
            )
        }
        (_, _, None) => "its loss was not measured".into(),
    };
    (verdict, finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An earlier item at the three timesteps, after and before, among so many controls.
    fn of(controls: usize, after: f64, before: f64) -> (Verdict, String) {
        let scores = |item: f64| -> Vec<Scores> {
            let one = || Scores {
                items: vec![item],
                controls: (1..=controls).map(|it| it as f64).collect(),
            };
            TIMESTEPS.map(|_| one()).into()
        };
        recheck(&Ranks::new(&scores(after), &scores(before)).unwrap())
    }

    #[test]
    fn an_earlier_item_is_found_on_either_side_and_the_finding_says_which() {
        let (verdict, finding) = of(200, 0.0, 100.5);
        assert_eq!(verdict, Verdict::Trace);
        assert!(
            finding.contains("low side") && finding.contains("0.010"),
            "{finding}"
        );
        let (verdict, finding) = of(200, 1e3, 100.5);
        assert_eq!(verdict, Verdict::Overdone);
        assert!(finding.contains("high side"), "{finding}");
        assert_eq!(of(200, 100.5, 100.5).0, Verdict::NoTrace);
        // It lay there before this run.
        let (verdict, finding) = of(200, 1e3, 1e3);
        assert_eq!(verdict, Verdict::NoTrace);
        assert!(finding.contains("as before this run"), "{finding}");
        // No rank among so few is rare.
        let (verdict, finding) = of(100, 0.0, 0.0);
        assert_eq!(verdict, Verdict::Undecided);
        assert!(finding.contains("119"), "{finding}");
    }
}
