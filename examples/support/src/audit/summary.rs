//! The report of a job that has unlearned, from what it measured anyway: `--report`.
//!
//! It has fewer tests than `audit`, and says so.

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use siss::metrics::Estimate;
use siss::models::ModelFolder;
use siss::report::audit::{
    Attack, AuditReport, AuditTest, AuditedData, Chart, Figure, Manifest, Measured, Subject, Unit,
    Verdict, WorstCase,
};

use crate::audit::facts::{frame, left_open, never_tested, threats};
use crate::audit::options::RecordOptions;
use crate::classifier::Judgement;
use crate::probe::ByTimestep;
use crate::unlearn::published::Similarity;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The options of a job that can write a report.
#[derive(Args, Debug, Clone)]
pub struct Reporting {
    /// Writes report.html and report.json as well: a record of the request with what was measured.
    #[arg(long)]
    pub report: bool,

    #[command(flatten)]
    pub record: RecordOptions,
}

/// Where the network is that a job wrote into the folder of its results; all that it wrote, if that
/// is no network.
pub fn written_network(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    let network = ModelFolder::find(&model).map(|found| found.network().to_owned());
    network.unwrap_or(model)
}

/// A figure before and after, by timestep.
pub fn by_timestep(
    timesteps: [usize; 3],
    [before, after]: [&ByTimestep; 2],
) -> Vec<(usize, [f64; 2])> {
    let at = |timestep: usize| {
        let key = timestep.to_string();
        (timestep, [before[&key], after[&key]])
    };
    timesteps.map(at).to_vec()
}

/// What a job has measured, before and after.
pub struct Evidence<'a> {
    pub name: String,
    pub parameters: usize,
    /// Where the network before is, and that after.
    pub networks: [&'a Path; 2],
    /// What was to be forgotten, a file or a folder; or the files that were read of it.
    pub items: Vec<Subject>,
    pub retained: &'a Path,
    pub retained_count: usize,
    pub retained_description: String,
    pub controls: usize,
    pub samples: usize,
    /// Copies among the samples.
    pub copies: [usize; 2],
    pub copies_rule: String,
    /// Timestep, and the percentage of the controls with a lower loss than the items' mean.
    pub ranks: Vec<(usize, [f64; 2])>,
    /// Distance of denoised copies from the items, and that of a retrained model.
    pub denoised: [f64; 2],
    pub denoised_retrained: Option<f64>,
    /// Distance of the answers from a retrained model, and that of another retrained one.
    pub answers: Option<[f64; 3]>,
    /// Timestep, and the mean loss of the controls.
    pub quality: Vec<(usize, [f64; 2])>,
    /// What a classifier of digits finds in the samples.
    pub judged: Option<[Judgement; 2]>,
    /// Of the samples against retained pictures.
    pub fid: Option<[Estimate; 2]>,
    /// Of items and their denoised copies.
    pub similarity: Option<[Similarity; 2]>,
    pub worst: Option<WorstCase>,
    pub charts: Vec<Chart>,
}

/// Writes the report into a folder.
pub fn write(
    evidence: Evidence<'_>,
    reporting: &Reporting,
    settings: &impl Serialize,
    (seed, device): (u64, &str),
    folder: &Path,
) -> Result<()> {
    if !reporting.report {
        return Ok(());
    }
    let mut tests = vec![copies(&evidence)?, denoised(&evidence), rank(&evidence)?];
    tests.extend(evidence.similarity.as_ref().map(similarity));
    tests.extend(answers(&evidence));
    let tested: Vec<Attack> = tests.iter().map(|test| test.attack).collect();
    let mut not_tested = left_open(&tested, "not part of this job: run the example `audit`");
    not_tested.extend(never_tested());
    let report = AuditReport {
        quality: quality(&evidence),
        threats: threats(&tested),
        tests,
        not_tested,
        worst_case: evidence.worst,
        charts: evidence.charts,
        subjects: evidence.items,
        model: (reporting.record).model(evidence.name, evidence.parameters, evidence.networks)?,
        data: AuditedData {
            description: evidence.retained_description,
            retain_manifest_sha256: Manifest::of(evidence.retained)?.sha256(),
            retained: evidence.retained_count as u64,
            controls: evidence.controls as u64,
        },
        ..frame(&reporting.record, settings, seed, device)?
    };
    report.save(folder)?;
    Ok(())
}

fn copies(evidence: &Evidence<'_>) -> siss::Result<AuditTest> {
    let [was, is] = evidence.copies;
    let [before, after] = evidence
        .copies
        .map(|count| Measured::share(count, evidence.samples));
    let (before, after) = (before?, after?);
    let high = after.interval.map_or(1.0, |it| it[1]);
    let (verdict, explanation) = match (was, is) {
        (_, 1..) => (
            Verdict::Trace,
            format!("{is} generated pictures are copies; before there were {was}."),
        ),
        (1.., 0) if high < before.value => (
            Verdict::NoTrace,
            format!(
                "None is a copy; before there were {was}. At the old rate that would not be chance."
            ),
        ),
        (1.., 0) => (
            Verdict::Undecided,
            "None is a copy, but at the old rate that could be chance: generate more (--samples)."
                .into(),
        ),
        (0, 0) => (
            Verdict::Undecided,
            "The model before generated no copy either, so this says nothing.".into(),
        ),
    };
    let figure = Figure::new("generated pictures that are copies", Unit::Share, after);
    Ok(AuditTest {
        attack: Attack::DataReconstruction,
        signal: format!("copies among generated pictures: {}", evidence.copies_rule),
        question: "Does the model, asked for pictures, still produce the item?".into(),
        reading: "The upper end of the interval is the highest rate that is still plausible: 0 found does not mean never.".into(),
        timesteps: vec![],
        fixed_in_advance: true,
        targets: evidence.items.len(),
        controls: 0,
        figures: vec![figure.before(before)],
        verdict,
        explanation,
    })
}

fn denoised(evidence: &Evidence<'_>) -> AuditTest {
    const NOTE: &str = "mean of a few copies, without an interval";
    let mean = |value: f64| Measured::noted(value, [evidence.items.len()], NOTE);
    let [before, after] = evidence.denoised;
    let name = "distance of the copies from the item";
    let figure = Figure::new(name, Unit::named("L2, pixels 0 to 1"), mean(after));
    AuditTest {
        attack: Attack::DataReconstruction,
        signal: "copies denoised from a noisy item".into(),
        question: "If the item is hidden under noise and the model removes the noise, does the item come back?".into(),
        reading: "A small distance means that the item comes back; every model comes near, because some of the item shines through the noise.".into(),
        timesteps: vec![],
        fixed_in_advance: true,
        targets: evidence.items.len(),
        controls: 0,
        figures: vec![figure.before(mean(before)).retrained(evidence.denoised_retrained.map(mean))],
        verdict: Verdict::Undecided,
        explanation: "Too few copies for a verdict; the example `audit` measures more.".into(),
    }
}

fn similarity([before, after]: &[Similarity; 2]) -> AuditTest {
    let figure = Figure::new(
        "similarity of the copies with the item",
        Unit::named(""),
        Measured::from(&after.mean),
    );
    AuditTest {
        attack: Attack::DataReconstruction,
        signal: format!("similarity of copies denoised from a noisy item, by SSCD: {}", after.mean.name),
        question: "If the item is hidden under noise and the model removes the noise, does a detector of copies find the item?".into(),
        reading: "1 is the same picture. The detector's authors call two pictures copies above 0.75. Some of the item shines through the noise, so a model that never saw it is not at 0.".into(),
        timesteps: vec![],
        fixed_in_advance: true,
        targets: after.images.len(),
        controls: 0,
        figures: vec![figure.before(Measured::from(&before.mean))],
        verdict: Verdict::Undecided,
        explanation: "No model that never saw the item was measured, so what is usual is not known.".into(),
    }
}

fn rank(evidence: &Evidence<'_>) -> siss::Result<AuditTest> {
    let controls = evidence.controls;
    let share = |percent: f64| {
        let below = (percent / 100.0 * controls as f64).round() as usize;
        Measured::share(below.min(controls), controls)
    };
    let figure = |&(timestep, [before, after]): &(usize, [f64; 2])| {
        let name = format!("unseen pictures with a lower loss, t = {timestep}");
        Ok(Figure::new(name, Unit::Share, share(after)?).before(share(before)?))
    };
    let figures = evidence
        .ranks
        .iter()
        .map(figure)
        .collect::<siss::Result<_>>()?;
    let lowest = |side: usize| {
        let ranks = evidence.ranks.iter().map(|(_, ranks)| ranks[side]);
        ranks.fold(100.0, f64::min)
    };
    // 0.05 shared out among the timesteps. Of the high side a retrained model would have to tell
    // whether it is the unlearning's doing.
    let level = 5.0 / evidence.ranks.len().max(1) as f64;
    let [before, after] = [lowest(0), lowest(1)];
    let (verdict, explanation) = match (before <= level, after <= level) {
        (_, true) => (
            Verdict::Trace,
            format!(
                "The loss of the items is lower than that of all but {after:.1} % of the unseen pictures."
            ),
        ),
        (true, false) => (
            Verdict::NoTrace,
            format!(
                "The loss of the items was lower than that of all but {before:.1} % of the unseen pictures, and is not now ({after:.1} %)."
            ),
        ),
        (false, false) => (
            Verdict::Undecided,
            format!(
                "The loss of the items was not unusually low before either ({before:.1} %), so this says nothing."
            ),
        ),
    };
    Ok(AuditTest {
        attack: Attack::MembershipInference,
        signal: "loss, mean over the items".into(),
        question: "Does the model predict the items better than pictures it never saw?".into(),
        reading: "0 % means that the model knows the items better than all unseen pictures. The items' loss is a mean over more noises than that of each unseen picture, so no p-value is given. Only the low side counts here; the example `audit` looks at both.".into(),
        timesteps: evidence.ranks.iter().map(|&(timestep, _)| timestep as u64).collect(),
        fixed_in_advance: true,
        targets: evidence.items.len(),
        controls,
        figures,
        verdict,
        explanation,
    })
}

fn answers(evidence: &Evidence<'_>) -> Option<AuditTest> {
    const NOTE: &str = "mean over 32 noises and four timesteps, without an interval";
    let [before, after, floor] = evidence.answers?;
    let mean = |value: f64| Measured::noted(value, [evidence.items.len()], NOTE);
    let name = "distance of the answers from a model trained without it";
    let figure = Figure::new(name, Unit::named(""), mean(after));
    Some(AuditTest {
        attack: Attack::ClosenessToRetrained,
        signal: "answers at the noisy item".into(),
        question: "Shown the item under noise, does the model answer as a model that never saw it?".into(),
        reading: "0 is the same answers. The last column is how far apart two models trained without the item are: no unlearned model can be expected to be nearer.".into(),
        timesteps: vec![100, 250, 400, 600],
        fixed_in_advance: true,
        targets: evidence.items.len(),
        controls: 0,
        figures: vec![figure.before(mean(before)).floor(Some(mean(floor)))],
        verdict: Verdict::Undecided,
        explanation: format!("{:.1} times as far as two models trained without the item; before it was {:.1} times. The example `audit` gives intervals.", after / floor, before / floor),
    })
}

fn quality(evidence: &Evidence<'_>) -> Vec<Figure> {
    let figure = |&(timestep, [before, after]): &(usize, [f64; 2])| {
        let name = format!("mean loss of unseen pictures, t = {timestep}");
        let mean = |value: f64| {
            Measured::noted(
                value,
                [evidence.controls],
                "the same noise before and after",
            )
        };
        Figure::new(name, Unit::named(""), mean(after)).before(mean(before))
    };
    let losses = evidence.quality.iter().map(figure);
    losses
        .chain(evidence.judged.iter().flat_map(|it| judged(it, None)))
        .chain(evidence.fid.iter().map(fid))
        .collect()
}

fn fid([before, after]: &[Estimate; 2]) -> Figure {
    let measured = |of: &Estimate| {
        Measured {
        note: Some("too large by a bias that is the same before and after; not comparable with figures of 10,000 samples".into()),
        ..Measured::from(of)
    }
    };
    let name = format!(
        "FID of the generated pictures against retained ones: {}",
        after.name
    );
    Figure::new(name, Unit::named(""), measured(after)).before(measured(before))
}

/// What a classifier finds in the digits of the models.
pub fn judged([before, after]: &[Judgement; 2], retrained: Option<&Judgement>) -> [Figure; 2] {
    let score = |of: &Judgement| Measured::from(&of.inception_score);
    let name = "inception score of the generated digits";
    let scores = Figure::new(name, Unit::named(""), score(after))
        .before(score(before))
        .retrained(retrained.map(score));
    let evenness = |of: &Judgement| {
        let samples = of.counts.iter().sum();
        Measured::noted(of.evenness, [samples], "a description of these samples")
    };
    let name = "evenness of the ten classes among them";
    let evennesses = Figure::new(name, Unit::named(""), evenness(after))
        .before(evenness(before))
        .retrained(retrained.map(evenness));
    [scores, evennesses]
}
