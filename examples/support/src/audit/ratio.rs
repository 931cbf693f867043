//! How the items' losses lie among those of models trained without them.

use siss::Result;
use siss::metrics::LikelihoodRatio;
use siss::report::audit::{Attack, AuditTest, Figure, Measured, Unit, Verdict};

use crate::audit::attacks::{Losses, TIMESTEPS, losses};
use crate::audit::material::Material;
use crate::audit::options::Options;
use crate::audit::ranks::{LEVEL, Scores};
use crate::progress::Progress;
use crate::subject::Subject;

/// Fewest retrained models whose losses have a spread.
const FEWEST: usize = 2;

/// The offline likelihood ratio of each item's loss, against the models trained without it.
///
/// `None` without two such models.
pub fn likelihood_ratio<S: Subject>(
    material: &Material<S>,
    measured: &Losses,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Option<AuditTest>> {
    let Some(retrained) = &measured.retrained else {
        return Ok(None);
    };
    if 1 + material.models.another.len() < FEWEST {
        return Ok(None);
    }
    progress.phase("losses of the other models trained without the items");
    let mut of_retrained: Vec<Vec<Vec<f64>>> = retrained
        .iter()
        .map(|scores| vec![scores.items.clone()])
        .collect();
    for model in &material.models.another {
        for (timestep, of_models) in TIMESTEPS.into_iter().zip(&mut of_retrained) {
            let of = losses(material, model, &material.items, timestep, options.noises)?;
            of_models.push(of);
        }
    }
    let ratios = |of: &[Scores]| {
        let places = of.iter().zip(&of_retrained);
        places
            .map(|(scores, of_models)| ratios(&scores.items, of_models))
            .collect::<Result<Vec<_>>>()
    };
    let (before, after) = (ratios(&measured.before)?, ratios(&measured.after)?);
    let (verdict, explanation) = verdict(&before, &after);
    let figures = TIMESTEPS.into_iter().zip(before.iter().zip(&after));
    let figure = |(timestep, (before, after)): (usize, (&Vec<_>, &Vec<_>))| {
        let name =
            format!("deviation from the losses of models trained without it, t = {timestep}");
        let unit = Unit::named("Student's t");
        Figure::new(name, unit, farthest(after)).before(farthest(before))
    };
    Ok(Some(AuditTest {
        attack: Attack::MembershipInference,
        signal: format!("loss, likelihood ratio against {} models trained without the items", of_retrained[0].len()),
        question: "Is the item's loss one that a model trained without it could have?".into(),
        reading: "The logarithm of the loss minus its mean over the models trained without the item, in standard deviations of a further such model: below 0 the model knows the item, above 0 it avoids it. The p-value is two-sided, by Student's distribution, for logarithms of losses that are normal over such models. With two or three models only a very large deviation is rare by chance.".into(),
        timesteps: TIMESTEPS.map(|it| it as u64).into(),
        fixed_in_advance: true,
        targets: material.items(),
        controls: 0,
        figures: figures.map(figure).collect(),
        verdict,
        explanation,
    }))
}

/// The test of each item at one timestep: its loss, and the losses by model and item.
fn ratios(items: &[f64], of_models: &[Vec<f64>]) -> Result<Vec<LikelihoodRatio>> {
    let test = |(item, loss): (usize, &f64)| {
        let others: Vec<f64> = of_models.iter().map(|losses| losses[item].ln()).collect();
        LikelihoodRatio::offline(loss.ln(), &others)
    };
    items.iter().enumerate().map(test).collect()
}

fn least<'a>(ratios: impl Iterator<Item = &'a LikelihoodRatio>) -> Option<&'a LikelihoodRatio> {
    ratios.min_by(|a, b| a.two_sided.total_cmp(&b.two_sided))
}

/// The ratio of the item that lies farthest from the models trained without it.
fn farthest(ratios: &[LikelihoodRatio]) -> Measured {
    let (statistic, p_value, models) =
        least(ratios.iter()).map_or((0.0, 1.0, 0), |it| (it.statistic, it.two_sided, it.models));
    Measured {
        p_value: Some(p_value),
        ..Measured::noted(statistic, [models], "of the item farthest off")
    }
}

/// The verdict of ratios by timestep and item.
fn verdict(before: &[Vec<LikelihoodRatio>], after: &[Vec<LikelihoodRatio>]) -> (Verdict, String) {
    let comparisons = after.iter().map(Vec::len).sum::<usize>();
    let level = LEVEL / comparisons as f64;
    let of_side = |ratios: &[Vec<LikelihoodRatio>], is_low: bool| {
        let own = ratios.iter().flatten();
        least(own.filter(|it| (it.statistic < 0.0) == is_low)).map_or(1.0, |it| it.two_sided)
    };
    let (was, is, over) = (
        of_side(before, true),
        of_side(after, true),
        of_side(after, false),
    );
    let counts =
        format!("at most {level:.4} counts, {LEVEL} shared out among {comparisons} comparisons");
    match () {
        () if is <= level => (
            Verdict::Trace,
            format!(
                "The item's loss is lower than models trained without it explain: p-value {is:.4} ({counts})."
            ),
        ),
        () if over <= level => (
            Verdict::Overdone,
            format!(
                "The item's loss is higher than models trained without it explain: p-value {over:.4} ({counts})."
            ),
        ),
        () if was <= level => (
            Verdict::NoTrace,
            format!(
                "The item's loss was lower before than models trained without it explain (p-value {was:.4}), and is one of theirs now (p-value {:.4}; {counts}).",
                is.min(over)
            ),
        ),
        () => (
            Verdict::Undecided,
            format!(
                "This test does not find the item in the model before either (p-value {was:.4}; {counts}), so its silence now says nothing. With more models trained without it (--another) smaller deviations count."
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses of one item of the model, and of four models trained without it.
    fn of(before: f64, after: f64) -> (Verdict, String) {
        let others = [0.9, 1.0, 1.0, 1.1].map(|loss| vec![loss]);
        let ratio = |loss| vec![ratios(&[loss], &others).unwrap()];
        verdict(&ratio(before), &ratio(after))
    }

    #[test]
    fn a_loss_that_no_retrained_model_has_is_found_on_both_sides() {
        assert_eq!(of(0.1, 0.1).0, Verdict::Trace);
        assert_eq!(of(0.1, 1.0).0, Verdict::NoTrace);
        assert_eq!(of(0.1, 9.0).0, Verdict::Overdone);
        assert_eq!(of(0.95, 1.0).0, Verdict::Undecided);
        let (_, text) = of(0.1, 9.0);
        assert!(text.contains("higher than"), "{text}");
    }

    /// `ln 2` above the mean of two models at `±ln 2`, whose deviation is `√2 ln 2`:
    /// `1 / (√2 √(3/2))`.
    #[test]
    fn ratios_are_those_of_logarithms_and_of_each_item() {
        let models = [vec![0.5, 3.0], vec![2.0, 6.0]];
        let found = ratios(&[2.0, 4.0], &models).unwrap();
        let expected = 1.0 / (2.0_f64.sqrt() * 1.5_f64.sqrt());
        assert!((found[0].statistic - expected).abs() < 1e-12, "{found:?}");
        let expected =
            (4.0_f64.ln() - 18.0_f64.ln() / 2.0) / (0.5_f64.sqrt() * 1.5_f64.sqrt() * 2.0_f64.ln());
        assert!((found[1].statistic - expected).abs() < 1e-12, "{found:?}");
        // The item nearest to its models does not hide the other.
        assert_eq!(farthest(&found).value, found[0].statistic);
    }
}
