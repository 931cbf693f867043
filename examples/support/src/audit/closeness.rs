//! Whether the model answers as one that never saw the items.

use siss::Result;
use siss::burn::tensor::Tensor;
use siss::evaluate::AnswerDistance;
use siss::metrics::{Estimate, Features, RelativeTest, ratio_to_floor};
use siss::report::audit::{Attack, AuditTest, Figure, Measured, Unit, Verdict};

use crate::audit::attacks::{Generated, SEED, TIMESTEPS};
use crate::audit::material::Material;
use crate::audit::options::Options;
use crate::progress::Progress;
use crate::subject::{Points, Subject};

/// Repetitions with other noise, for the interval.
pub const REPETITIONS: u64 = 8;
/// Up to this many times the floor counts as the answers of a retrained model.
const LIKE_RETRAINED: f64 = 1.5;
/// Fewest samples of the relative test.
const FEWEST: usize = 40;

/// The distance of answers at the items, divided by that of two retrained models.
///
/// `None` without two retrained models.
pub fn answers<S: Subject>(
    material: &Material<S>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Option<AuditTest>> {
    let models = &material.models;
    let (Some(retrained), Some(another)) = (&models.retrained, models.another.first()) else {
        return Ok(None);
    };
    progress.phase("comparing answers");
    let from_retrained = |model: &S::Model| distances(material, options, model, retrained);
    let floor = from_retrained(another)?;
    let [before, after] = [&models.before, &models.after].map(from_retrained);
    let (before, after) = (before?, after?);
    let ratio = |distances: &[f64]| ratio_to_floor("answers", distances, &floor);
    let (was, is) = (ratio(&before)?, ratio(&after)?);
    let to_original = Estimate::mean(
        "to the original",
        &distances(material, options, &models.after, &models.before)?,
    )?;
    let to_retrained = Estimate::mean("to the retrained", &after)?;
    let (verdict, explanation) = match () {
        () if to_retrained.low > to_original.high => (
            Verdict::Trace,
            format!(
                "Its answers are nearer to those of the model before ({:.2}) than to those of a model trained without the item ({:.2}).",
                to_original.value, to_retrained.value
            ),
        ),
        () if is.high <= LIKE_RETRAINED => (
            Verdict::NoTrace,
            format!(
                "Its answers are as near to those of a model trained without the item as two such models are to each other, within a factor of {LIKE_RETRAINED}."
            ),
        ),
        () => (
            Verdict::Undecided,
            format!(
                "Its answers are {:.1} times as far from those of a model trained without the item as those of a second such model; before it was {:.1} times. It is not what training without the item gives, which is not itself a trace of the item.",
                is.value, was.value
            ),
        ),
    };
    let figure = |name: &str, unit: Unit, after: &Estimate, before: &Estimate| {
        Figure::new(name, unit, Measured::from(after)).before(Measured::from(before))
    };
    let plain = Unit::named("");
    let mean = |list: &[f64]| Estimate::mean("distance", list);
    let floor = Measured::from(&mean(&floor)?);
    let figures = vec![
        figure(
            "distance from a model trained without it, divided by the noise floor",
            plain.clone(),
            &is,
            &was,
        ),
        figure("the distance itself", plain, &to_retrained, &mean(&before)?).floor(Some(floor)),
    ];
    Ok(Some(AuditTest {
        attack: Attack::ClosenessToRetrained,
        signal: "answers at the noisy item".into(),
        question: "Shown the item under noise, does the model answer as a model that never saw it?".into(),
        reading: "1 is as near as a second model trained without the item comes. The distance itself is 0 for the same answers and 1 if they differ by as much as the answer errs. The intervals cover the noise, not the spread between retrained models.".into(),
        timesteps: TIMESTEPS.map(|it| it as u64).into(),
        fixed_in_advance: true,
        targets: material.items(),
        controls: 0,
        figures,
        verdict,
        explanation,
    }))
}

/// Distances of two models' answers, one per item and repetition, mean over timesteps.
fn distances<S: Subject>(
    material: &Material<S>,
    options: &Options,
    model: &S::Model,
    reference: &S::Model,
) -> Result<Vec<f64>> {
    let scheduler = material.process.scheduler()?;
    let Points {
        points, condition, ..
    } = &material.items;
    let mut distances = Vec::new();
    for repetition in 0..REPETITIONS {
        let compare = AnswerDistance {
            noises: options.noises,
            seed: SEED + repetition,
            micro_batch_size: material.probe.rows(),
            ..AnswerDistance::at(material.times(&TIMESTEPS))
        };
        let found = compare.measure(model, reference, scheduler.as_ref(), points, condition)?;
        for item in 0..material.items() {
            let sum: f64 = found
                .iter()
                .map(|of_timestep| of_timestep[item].distance)
                .sum();
            distances.push(sum / TIMESTEPS.len() as f64);
        }
    }
    Ok(distances)
}

/// Whether generated images are nearer to those of a retrained model than to those of the original.
///
/// `None` without a retrained model or with too few images.
pub fn relative<S: Subject>(
    material: &Material<S>,
    generated: &Generated,
    progress: &dyn Progress,
) -> Result<Option<AuditTest>> {
    let Some(retrained) = &generated.retrained else {
        return Ok(None);
    };
    if generated.after.dims()[0] < FEWEST {
        return Ok(None);
    }
    progress.phase("comparing generated pictures");
    let pixels = |images: &Tensor<4>| Features::of("pixels", images.clone().flatten::<2>(1, 3));
    let (after, retrained, before) = (
        pixels(&generated.after)?,
        pixels(retrained)?,
        pixels(&generated.before)?,
    );
    let found = RelativeTest::default().compare(&after, &retrained, &before)?;
    let mut difference = Measured::from(&found.difference);
    difference.p_value = Some(found.p_value);
    let (verdict, explanation) = match found.p_value {
        p if p < 0.05 => (
            Verdict::NoTrace,
            format!("They are nearer to those of a model trained without the item (p = {p:.3})."),
        ),
        p if p > 0.95 => (
            Verdict::Trace,
            format!(
                "They are nearer to those of the model before (p = {:.3} in that direction).",
                1.0 - p
            ),
        ),
        p => (
            Verdict::Undecided,
            format!(
                "They are as near to the one as to the other (p = {p:.2}). With one item among many that is to be expected of this test."
            ),
        ),
    };
    Ok(Some(AuditTest {
        attack: Attack::ClosenessToRetrained,
        signal: "relative test on generated pictures (hockey-stick divergence of pixels)".into(),
        question: "Taken as a whole, are its pictures like those of a model trained without the item, or like those of the model before?".into(),
        reading: "Below 0 is nearer to the model trained without the item. The p-value is the probability of so low a value if both were as near.".into(),
        timesteps: vec![],
        fixed_in_advance: true,
        targets: material.items(),
        controls: 0,
        figures: vec![Figure::new("divergence from retrained, minus divergence from original", Unit::named(""), difference)],
        verdict,
        explanation,
    }))
}
