//! Whether the items come back: by fine-tuning, or with the help of the old model.

use siss::evaluate::DenoisingLoss;
use siss::metrics::{Relearning, RelearningCurve, pair_attack};
use siss::report::audit::{Attack, AuditTest, Chart, Figure, Line, Measured, Unit, Verdict};
use siss::{DdpmScheduler, FlowMatching, Result};

use crate::audit::attacks::SEED;
use crate::audit::material::Material;
use crate::audit::options::Options;
use crate::probe::mean;
use crate::process::Process;
use crate::progress::Progress;
use crate::subject::Subject;

/// Where the loss is measured while a model is taught again.
const TIMESTEP: usize = 250;
/// How many times the loss of the model before is that of an item which is at least hidden.
const HIDDEN: f64 = 2.0;
/// Measurements of the loss on the way.
const LOOKS: u64 = 12;
/// Weights of the old model in the pair attack; 1 is the old model itself.
pub const WEIGHTS: [f64; 2] = [2.0, 4.0];
/// What a model is taught the items again with.
pub const DATA: [&str; 2] = ["other data", "altered copies"];
/// Points per step then.
pub const BATCH: usize = 32;
/// Share of the generated pictures that the pair attack draws: it runs two models.
const PART: usize = 4;

/// Steps from one measurement to the next.
fn every(steps: u64) -> u64 {
    (steps / LOOKS).max(1)
}

/// Measurements of the loss while a model takes these steps, the first before any.
pub fn looks(steps: u64) -> usize {
    1 + steps.div_ceil(every(steps)) as usize
}

/// Pictures that the pair of models generates, at least one under the condition of each item.
pub fn of_pair(samples: usize, items: usize) -> usize {
    (samples / PART).max(2).max(items)
}

/// What fine-tuning brings back: the test, and a chart.
pub fn relearning<S: Subject>(
    material: &Material<S>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(AuditTest, Chart)> {
    let loss = DenoisingLoss {
        noises: options.noises,
        seed: SEED,
        micro_batch_size: material.probe.rows(),
        ..DenoisingLoss::at(material.times(&[TIMESTEP]))
    };
    let attack = Relearning {
        steps: options.relearning_steps,
        every: every(options.relearning_steps),
        batch_size: BATCH,
        seed: options.seed,
        ..Relearning::at(loss.clone())
    };
    let models = &material.models;
    let scheduler = material.process.scheduler()?;
    let items = (&material.items.points, &material.items.condition);
    let of = |model: &S::Model| -> Result<f64> {
        let losses = loss.measure(model, scheduler.as_ref(), items.0, items.1)?;
        Ok(mean(&losses.concat()))
    };
    let (known, forgotten) = (of(&models.before)?, of(&models.after)?);
    // Half way on a logarithmic scale.
    let level = (known * forgotten).sqrt();
    let mut lines = Vec::new();
    let mut figures = Vec::new();
    let mut pairs = Vec::new();
    for (name, data) in DATA.into_iter().zip([&material.retain, &material.altered]) {
        let mut run = |model: &S::Model, whose: &str| -> Result<RelearningCurve> {
            progress.phase(&format!("teaching the {whose} model again on {name}"));
            let data = (&data.points, &data.condition);
            let model = model.clone();
            let curve = match &material.process {
                Process::Steps(config) => {
                    let scheduler = DdpmScheduler::from_config(config)?;
                    attack.run(model, &scheduler, data, items, level)?
                }
                Process::Flow(_) => {
                    attack.run(model, &FlowMatching::default(), data, items, level)?
                }
            };
            let points = curve.losses.iter().map(|&(step, loss)| (step as f64, loss));
            lines.push(Line {
                name: format!("{whose}, on {name}"),
                points: points.collect(),
            });
            Ok(curve)
        };
        let after = run(&models.after, "unlearned")?;
        let retrained = models
            .retrained
            .as_ref()
            .map(|model| run(model, "retrained"))
            .transpose()?;
        let figure = Figure::new(
            format!("steps until it is back, fine-tuned on {name}"),
            Unit::named("steps"),
            steps(&after, &attack),
        );
        figures.push(figure.retrained(retrained.as_ref().map(|it| steps(it, &attack))));
        pairs.push((name, after.back_after, retrained.map(|it| it.back_after)));
    }
    let (verdict, explanation) = match forgotten < HIDDEN * known {
        true => (
            Verdict::Undecided,
            format!(
                "The item's loss is {forgotten:.3}, and that of the model before {known:.3}: it is still there, so nothing can come back."
            ),
        ),
        false => verdict(&pairs, options.relearning_steps),
    };
    let chart = Chart {
        title: "Teaching the item again".into(),
        caption: format!(
            "The item's loss while the models are fine-tuned. At {level:.3} or below it counts as back; the model before unlearning is at {known:.3}."
        ),
        x_label: "steps of fine-tuning".into(),
        y_label: format!("loss at t = {TIMESTEP}"),
        log_y: true,
        lines,
    };
    let test = AuditTest {
        attack: Attack::Relearning,
        signal: format!("steps of fine-tuning (batches of {}, AdamW at {:e})", attack.batch_size, attack.learning_rate),
        question: "Is the item only hidden, so that a little training on other data, or on altered copies of it, brings it back sooner than in a model that never knew it?".into(),
        reading: format!("The more steps, the better. The item counts as back when its loss is half way, on a logarithmic scale, from {forgotten:.3} to the {known:.3} of the model before. A model never trained on the item stands next to it where there is one."),
        timesteps: vec![TIMESTEP as u64],
        fixed_in_advance: true,
        targets: material.items(),
        controls: 0,
        figures,
        verdict,
        explanation,
    };
    Ok((test, chart))
}

/// The number of steps, and between which measurements it lies.
fn steps(curve: &RelearningCurve, attack: &Relearning) -> Measured {
    match curve.back_after {
        Some(step) => {
            let before = step.saturating_sub(attack.every);
            Measured::noted(
                step as f64,
                [1],
                format!("one run; between {before} and {step}"),
            )
        }
        None => Measured::noted(attack.steps as f64, [1], "one run; not back by then"),
    }
}

type Pair<'a> = (&'a str, Option<u64>, Option<Option<u64>>);

/// A model that is taught again in fewer than half the steps of a retrained one only hid the item.
///
/// Where no model learns the item in these steps, they say nothing.
fn verdict(pairs: &[Pair<'_>], most: u64) -> (Verdict, String) {
    let count = |steps: Option<u64>| steps.unwrap_or(most + 1);
    let sooner = pairs.iter().find(|(_, after, retrained)| {
        retrained.is_some_and(|retrained| after.is_some() && 2 * count(*after) < count(retrained))
    });
    if let Some((name, after, _)) = sooner {
        let text = format!(
            "Fine-tuned on {name}, it is back after {} steps, less than half of what a model that never knew it takes.",
            count(*after)
        );
        return (Verdict::Trace, text);
    }
    let open = pairs
        .iter()
        .find(|(_, after, retrained)| after.is_some() && retrained.flatten().is_none());
    if let Some((name, after, retrained)) = open {
        let other = match retrained {
            Some(_) => format!("a model that never knew it is not within {most}: take more steps"),
            None => "whether a model that never knew it takes longer was not measured".into(),
        };
        let text = format!(
            "Fine-tuned on {name}, it is back after {} steps; {other}.",
            count(*after)
        );
        return (Verdict::Undecided, text);
    }
    let is_back = pairs.iter().any(|(_, after, _)| after.is_some());
    let is_learnt = pairs
        .iter()
        .any(|(_, _, retrained)| retrained.flatten().is_some());
    match (is_back, is_learnt) {
        (true, _) => (
            Verdict::NoTrace,
            "Where it comes back, a model that never knew it learns it in at most twice the steps."
                .into(),
        ),
        (false, true) => (
            Verdict::NoTrace,
            format!(
                "It is not back within {most} steps, in which a model that never knew it learns it."
            ),
        ),
        (false, false) => (
            Verdict::Undecided,
            format!(
                "It is not back within {most} steps; nor is a model known that learns it in these: take more."
            ),
        ),
    }
}

/// What somebody can do who kept the model from before.
///
/// `generates` says whether the model before generates the items by itself.
pub fn pair<S: Subject>(
    material: &Material<S>,
    options: &Options,
    generates: bool,
    progress: &dyn Progress,
) -> Result<AuditTest> {
    let models = &material.models;
    let count = of_pair(options.samples, material.items());
    let mut figures = Vec::new();
    let mut most: f64 = 0.0;
    for weight in WEIGHTS {
        let both = pair_attack::<4, _>(models.after.clone(), models.before.clone(), weight)?;
        let tell = |done| progress.phase(&format!("pair attack, w = {weight}: {done} of {count}"));
        let generation = material.generation();
        let images = generation.sample(&both, &material.items, (0, count), tell)?;
        let copies = material.copies.among(&images);
        let share = Measured::share(copies, count)?;
        most = most.max(share.value);
        figures.push(Figure::new(
            format!("copies among pictures of the pair, w = {weight}"),
            Unit::Share,
            share,
        ));
    }
    let (verdict, explanation) = match (most > 0.0, generates) {
        (true, _) => (Verdict::Trace, format!("Together the two models produce the item in up to {:.1} % of the pictures. So copies of the model from before must not stay with anyone.", 100.0 * most)),
        (false, true) => (Verdict::NoTrace, "The difference of the two models does not lead to the item in these pictures. The model from before still knows it.".into()),
        (false, false) => (Verdict::Undecided, "The difference of the two models does not lead to the item in these pictures, but the model from before did not generate it either: generate more.".into()),
    };
    Ok(AuditTest {
        attack: Attack::PairAttack,
        signal: "samples guided by the difference of the two models".into(),
        question: "Can somebody who kept the model from before use both models to find what was forgotten?".into(),
        reading: "w is how far the guidance goes: 0 is the new model, 1 the old one, above 1 beyond the old one.".into(),
        timesteps: vec![],
        fixed_in_advance: true,
        targets: material.items(),
        controls: 0,
        figures,
        verdict,
        explanation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps until the item is back in the unlearned and, if there is one, in the retrained model.
    fn of(after: Option<u64>, retrained: Option<Option<u64>>) -> Verdict {
        verdict(
            &[
                ("other data", None, retrained.map(|_| None)),
                ("altered copies", after, retrained),
            ],
            100,
        )
        .0
    }

    #[test]
    fn a_trace_is_what_comes_back_sooner_than_in_a_model_that_never_knew_it() {
        assert_eq!(of(Some(10), Some(Some(30))), Verdict::Trace);
        assert_eq!(of(Some(10), Some(None)), Verdict::Trace);
        assert_eq!(of(Some(20), Some(Some(30))), Verdict::NoTrace);
        assert_eq!(of(None, Some(Some(30))), Verdict::NoTrace);
        // Nothing came back anywhere, or there is nothing to compare with.
        assert_eq!(of(None, Some(None)), Verdict::Undecided);
        assert_eq!(of(None, None), Verdict::Undecided);
        assert_eq!(of(Some(10), None), Verdict::Undecided);
        // Sooner, but the steps do not show by how much.
        assert_eq!(of(Some(60), Some(None)), Verdict::Undecided);
    }
}
