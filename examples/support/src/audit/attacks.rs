//! Whether the items can be found in the model, or got out of it.

use siss::burn::tensor::Tensor;
use siss::metrics::{Estimate, MembershipSignal};
use siss::report::audit::{Attack, AuditTest, Figure, Measured, Unit, Verdict};
use siss::{DdpmScheduler, Result};

use crate::audit::material::Material;
use crate::audit::options::Options;
use crate::audit::ranks::{OfModels, Scores, smallest};
use crate::probe::{EVALUATION_SEED, distances};
use crate::process::Process;
use crate::progress::Progress;
use crate::subject::{ConditionOf, Points, Subject};

/// Timesteps of the loss, fixed here and not chosen by results.
pub const TIMESTEPS: [usize; 3] = [100, 250, 400];
/// Published signals of membership: name, timestep, and what is measured.
pub const SIGNALS: [(&str, u64, MembershipSignal); 4] = [
    (
        "PIA at timestep 200",
        200,
        MembershipSignal::Pia { timestep: 200 },
    ),
    (
        "PIAN at timestep 200",
        200,
        MembershipSignal::Pian { timestep: 200 },
    ),
    (
        "SecMI at timestep 100",
        100,
        MembershipSignal::SecMi {
            timestep: 100,
            stride: 10,
        },
    ),
    (
        "SimA at timestep 100",
        100,
        MembershipSignal::Sima { timestep: 100 },
    ),
];
/// Where items are noised to before they are denoised.
pub const DENOISED_FROM: usize = 250;
/// A loss this many times that of a retrained model is too high.
const OVERDONE: f64 = 3.0;

/// The loss of the items at fixed timesteps, by model.
pub struct Losses {
    pub before: Vec<Scores>,
    pub after: Vec<Scores>,
    pub retrained: Option<Vec<Scores>>,
}

impl Losses {
    /// Measures items and controls with the same number of noises.
    pub fn measure<S: Subject>(
        material: &Material<S>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let of = |model: &S::Model, name: &str| -> Result<Vec<Scores>> {
            let scores = |&timestep: &usize| {
                progress.phase(&format!("loss {name}, t = {timestep}"));
                let losses = |points| losses(material, model, points, timestep, options.noises);
                Ok(Scores {
                    items: losses(&material.items)?,
                    controls: losses(&material.controls)?,
                })
            };
            TIMESTEPS.iter().map(scores).collect()
        };
        let models = &material.models;
        let retrained = models.retrained.as_ref();
        Ok(Self {
            before: of(&models.before, "before")?,
            after: of(&models.after, "after")?,
            retrained: retrained
                .map(|model| of(model, "of the retrained model"))
                .transpose()?,
        })
    }

    fn of_models(&self) -> OfModels<'_> {
        OfModels {
            before: &self.before,
            after: &self.after,
            retrained: self.retrained.as_deref(),
        }
    }

    /// The item with the strongest trace after unlearning, and what was found of it.
    pub fn worst_item(&self) -> Result<Option<(usize, String)>> {
        let worst = self.of_models().ranks()?.worst();
        Ok(worst.map(|worst| {
            let text = format!(
                "its loss at timestep {} is {:.4}, on {}; by chance a picture that no model saw would lie so far out, on either side, with the probability {:.3}",
                TIMESTEPS[worst.place],
                self.after[worst.place].items[worst.item],
                worst.side.words(),
                worst.p_value
            );
            (worst.item, text)
        }))
    }

    /// The test.
    pub fn test<S: Subject>(&self, material: &Material<S>) -> Result<AuditTest> {
        let mut figures = Vec::new();
        for (index, timestep) in TIMESTEPS.into_iter().enumerate() {
            let retrained = self
                .retrained
                .as_ref()
                .map(|it| it[index].rank())
                .transpose()?;
            let name = format!("unseen pictures with a lower loss, t = {timestep}");
            let figure = Figure::new(name, Unit::Share, self.after[index].rank()?);
            figures.push(
                figure
                    .before(self.before[index].rank()?)
                    .retrained(retrained),
            );
        }
        let excess = self.excess();
        let over = excess.is_some_and(|excess| excess > OVERDONE);
        let (verdict, mut explanation) = self.of_models().verdict("loss")?;
        let verdict = match verdict {
            Verdict::NoTrace | Verdict::Undecided if over => Verdict::Overdone,
            other => other,
        };
        if let Some(excess) = excess {
            explanation += &format!(
                " Its loss is up to {excess:.1} times that of a model trained without it; above {OVERDONE} would count as forgotten too hard."
            );
        }
        Ok(AuditTest {
            attack: Attack::MembershipInference,
            signal: "loss".into(),
            question: "Does the model predict the item better than pictures it never saw? Then somebody who has the item and the model can tell that it was in the training data.".into(),
            reading: format!("0 % means that the model knows the item better than all unseen pictures, 100 % that it knows it worse. {} An item unlike the others has a high loss in every model, so the high side counts only where a model trained without it is not there.", p_values(material)),
            timesteps: TIMESTEPS.map(|it| it as u64).into(),
            fixed_in_advance: true,
            targets: material.items(),
            controls: material.controls.count(),
            figures,
            verdict,
            explanation,
        })
    }

    /// The largest ratio of an item's loss to that of a retrained model.
    fn excess(&self) -> Option<f64> {
        let retrained = self.retrained.as_ref()?;
        let pairs = self.after.iter().zip(retrained);
        let ratios = pairs.flat_map(|(after, other)| after.items.iter().zip(&other.items));
        Some(
            ratios
                .map(|(after, other)| after / other)
                .fold(0.0, f64::max),
        )
    }
}

/// How to read the p-values of ranks.
fn p_values<S: Subject>(material: &Material<S>) -> String {
    let controls = material.controls.count();
    format!(
        "The p-value is two-sided: the probability that chance puts a picture so far out on either side. With {controls} unseen pictures none is below {:.4}.",
        smallest(controls)
    )
}

/// The mean loss of each point over noises. Every row has a noise of its own.
pub fn losses<S: Subject>(
    material: &Material<S>,
    model: &S::Model,
    points: &Points<ConditionOf<S>>,
    timestep: usize,
    noises: usize,
) -> Result<Vec<f64>> {
    let (count, mut sums) = (points.count(), vec![0.0; points.count()]);
    // As many noises at a time as keep all cores busy, and no more: conditions may be large.
    let together = (material.probe.at_once() / count).clamp(1, noises);
    for first in (0..noises).step_by(together) {
        let some = together.min(noises - first);
        let rows: Vec<usize> = (0..some).flat_map(|_| 0..count).collect();
        let rows = points.rows(&rows);
        let images = (&rows.points, &rows.condition);
        let probe = &material.probe;
        let losses = probe.losses_from(first * count, model, images, timestep)?;
        for (row, loss) in losses.into_iter().enumerate() {
            sums[row % count] += loss;
        }
    }
    Ok(sums.into_iter().map(|sum| sum / noises as f64).collect())
}

/// Signals of membership beyond the loss. There are none for the path of flow matching: the attacks
/// were published for processes of steps.
pub fn signals<S: Subject>(
    material: &Material<S>,
    progress: &dyn Progress,
) -> Result<Vec<AuditTest>> {
    let Process::Steps(config) = &material.process else {
        return Ok(Vec::new());
    };
    let scheduler = DdpmScheduler::from_config(config)?;
    let test = |(name, timestep, signal): (&str, u64, MembershipSignal)| {
        progress.phase(name);
        let models = &material.models;
        let scores = |model: &S::Model| -> Result<Scores> {
            // None of these signals draws noise, so few points at a time find the same.
            let measure = |of: &Points<ConditionOf<S>>| -> Result<Vec<f64>> {
                let all: Vec<usize> = (0..of.count()).collect();
                let few = all.chunks(material.probe.rows()).map(|rows| {
                    let of = of.rows(rows);
                    signal.measure(model, &scheduler, &of.points, &of.condition)
                });
                Ok(few.collect::<Result<Vec<_>>>()?.concat())
            };
            Ok(Scores {
                items: measure(&material.items)?,
                controls: measure(&material.controls)?,
            })
        };
        let [before, after] = [&models.before, &models.after].map(scores);
        let [before, after] = [[before?], [after?]];
        let retrained = models.retrained.as_ref().map(scores).transpose()?;
        let retrained = retrained.map(|it| [it]);
        let of_models = OfModels {
            before: &before,
            after: &after,
            retrained: retrained.as_ref().map(|it| &it[..]),
        };
        let rank = |[scores]: &[Scores; 1]| scores.rank();
        let lower = "unseen pictures with a lower score";
        let figure = Figure::new(lower, Unit::Share, rank(&after)?)
            .before(rank(&before)?)
            .retrained(retrained.as_ref().map(rank).transpose()?);
        let (verdict, explanation) = of_models.verdict("score")?;
        Ok(AuditTest {
            attack: Attack::MembershipInference,
            signal: name.into(),
            question: "Does a published attack of a few queries tell the item from pictures the model never saw?".into(),
            reading: format!("0 % means that the item has the lowest score of all, as training data tend to, 100 % the highest. {}", p_values(material)),
            timesteps: vec![timestep],
            fixed_in_advance: true,
            targets: material.items(),
            controls: material.controls.count(),
            figures: vec![figure],
            verdict,
            explanation,
        })
    };
    SIGNALS.into_iter().map(test).collect()
}

/// Generated images, by model, with those of a retrained model if there is one.
pub struct Generated {
    pub before: Tensor<4>,
    pub after: Tensor<4>,
    pub retrained: Option<Tensor<4>>,
}

impl Generated {
    /// Samples start from the same noise for every model.
    pub fn sample<S: Subject>(
        material: &Material<S>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let count = options.samples;
        let sample = |model: &S::Model, name: &str| {
            let tell = |done| progress.phase(&format!("sampling {name}: {done} of {count}"));
            let numbers = ((options.seed << 32) as usize, count);
            let generation = material.generation();
            generation.sample(model, &material.items, numbers, tell)
        };
        let models = &material.models;
        let retrained = models.retrained.as_ref();
        Ok(Self {
            before: sample(&models.before, "before")?,
            after: sample(&models.after, "after")?,
            retrained: retrained
                .map(|model| sample(model, "of the retrained model"))
                .transpose()?,
        })
    }

    /// Whether the model still generates the items.
    pub fn test<S: Subject>(&self, material: &Material<S>) -> Result<AuditTest> {
        let share =
            |images: &Tensor<4>| Measured::share(material.copies.among(images), images.dims()[0]);
        let (before, after) = (share(&self.before)?, share(&self.after)?);
        let count = |share: &Measured| (share.value * share.samples[0] as f64).round();
        let [was, is] = [&before, &after].map(count);
        let high = after.interval.map_or(1.0, |it| it[1]);
        let (verdict, explanation) = match (was > 0.0, is > 0.0) {
            (_, true) => (Verdict::Trace, format!("{is} generated pictures are copies; before there were {was}.")),
            (true, false) if high < before.value => (
                Verdict::NoTrace,
                format!("None of the generated pictures is a copy; before there were {was}. At the old rate that would not be chance."),
            ),
            (true, false) => (
                Verdict::Undecided,
                "None of the generated pictures is a copy, but at the old rate that could be chance: generate more.".into(),
            ),
            (false, false) => (
                Verdict::Undecided,
                "The model before generated no copy either, so this says nothing.".into(),
            ),
        };
        let retrained = self.retrained.as_ref().map(share).transpose()?;
        let figure = Figure::new("generated pictures that are copies", Unit::Share, after);
        Ok(AuditTest {
            attack: Attack::DataReconstruction,
            signal: format!("copies among generated pictures: {}", material.copies_rule),
            question: "Does the model, asked for pictures, still produce the item?".into(),
            reading: "The upper end of the interval is the highest rate that is still plausible: 0 found does not mean never.".into(),
            timesteps: vec![],
            fixed_in_advance: true,
            targets: material.items(),
            controls: 0,
            figures: vec![figure.before(before).retrained(retrained)],
            verdict,
            explanation,
        })
    }
}

/// Number of denoised copies of each item.
pub fn copies(items: usize) -> usize {
    (64 / items).max(2)
}

/// Whether a noisy version of an item leads back to it.
pub fn denoised<S: Subject>(material: &Material<S>, progress: &dyn Progress) -> Result<AuditTest> {
    progress.phase("denoising the items");
    let copies = copies(material.items());
    let rows: Vec<usize> = (0..copies).flat_map(|_| 0..material.items()).collect();
    let noisy = material.items.rows(&rows);
    let clean = material.pictures.clone().repeat_dim(0, copies);
    let distance = |model: &S::Model| -> Result<Measured> {
        let generation = material.generation();
        let images = generation.denoise(model, &noisy, DENOISED_FROM)?;
        let distances = distances(&images, &clean);
        Ok(Measured::from(&Estimate::mean("distance", &distances)?))
    };
    let models = &material.models;
    let (before, after) = (distance(&models.before)?, distance(&models.after)?);
    let retrained = models.retrained.as_ref().map(distance).transpose()?;
    let another: Vec<Measured> = models.another.iter().map(distance).collect::<Result<_>>()?;
    let ends = |it: &Measured| it.interval.unwrap_or([it.value; 2]);
    let least = retrained.iter().chain(&another).map(|it| ends(it)[0]);
    let least = least.fold(f64::INFINITY, f64::min);
    let (verdict, explanation) = match () {
        () if !least.is_finite() => (
            Verdict::Undecided,
            "How near a model without the item would come is not known: give one with --retrained."
                .into(),
        ),
        () if ends(&after)[1] < least => (
            Verdict::Trace,
            format!(
                "The copies lie nearer to the item ({:.2}) than those of models trained without it ({least:.2} or more). Before, it was {:.2}.",
                after.value, before.value
            ),
        ),
        () => (
            Verdict::NoTrace,
            format!(
                "The copies lie as far from the item ({:.2}) as those of models trained without it. Before, it was {:.2}.",
                after.value, before.value
            ),
        ),
    };
    let figure = Figure::new(
        "distance of the copies from the item",
        Unit::named("L2, pixels 0 to 1"),
        after,
    );
    Ok(AuditTest {
        attack: Attack::DataReconstruction,
        signal: format!("copies denoised from timestep {DENOISED_FROM}"),
        question: "If the item is hidden under noise and the model removes the noise, does the item come back?".into(),
        reading: "A small distance means that the item comes back. Some of it shines through the noise, so every model comes near; compare with the models trained without it. Equal noise for all models.".into(),
        timesteps: vec![DENOISED_FROM as u64],
        fixed_in_advance: true,
        targets: material.items(),
        controls: 0,
        figures: vec![figure.before(before).retrained(retrained).floor(another.into_iter().next())],
        verdict,
        explanation,
    })
}

/// The seed of all measurements, for the report.
pub const SEED: u64 = EVALUATION_SEED;
