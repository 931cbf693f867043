//! What the unlearning cost the rest.

use siss::Result;
use siss::burn::tensor::Tensor;
use siss::metrics::Estimate;
use siss::report::audit::{Figure, Measured, NotTested, Unit};

use crate::audit::attacks::{Generated, Losses, TIMESTEPS};
use crate::audit::material::Material;
use crate::audit::ranks::Scores;
use crate::audit::summary::judged;
use crate::classifier::{DigitClassifier, Judgement};
use crate::subject::Subject;

/// The loss of pictures that no model saw, at each timestep; of digits, what a classifier finds in
/// the generated ones, or why it was not asked.
pub fn quality<S: Subject>(
    material: &Material<S>,
    losses: &Losses,
    generated: &Generated,
) -> Result<(Vec<Figure>, Option<NotTested>)> {
    let mut figures = of_losses(losses)?;
    let Some(classifier) = &material.classifier else {
        return Ok((figures, None));
    };
    let judge = |images: &Tensor<4>| classifier.judge(images, &material.copies.are(images));
    let digits = digits(judge, generated)?;
    let open = digits.is_none().then(|| NotTested {
        attack: None,
        what: "the inception score of the generated digits".into(),
        why: format!(
            "it needs {} pictures of each model that are no copies (--samples)",
            DigitClassifier::FEWEST
        ),
    });
    figures.extend(digits.into_iter().flatten());
    Ok((figures, open))
}

/// The digits of all models; `None` if there are too few of one.
fn digits(
    judge: impl Fn(&Tensor<4>) -> Result<Option<Judgement>>,
    generated: &Generated,
) -> Result<Option<[Figure; 2]>> {
    let (before, after) = (judge(&generated.before)?, judge(&generated.after)?);
    let retrained = generated.retrained.as_ref().map(judge).transpose()?;
    let both = before.zip(after).map(<[_; 2]>::from);
    Ok(both.map(|both| judged(&both, retrained.flatten().as_ref())))
}

fn of_losses(losses: &Losses) -> Result<Vec<Figure>> {
    let mean = |scores: &Scores| {
        Ok(Measured::from(&Estimate::mean(
            "loss of unseen pictures",
            &scores.controls,
        )?))
    };
    let figure = |(index, timestep): (usize, usize)| {
        let name = format!("mean loss of unseen pictures, t = {timestep}");
        let retrained = losses
            .retrained
            .as_ref()
            .map(|it| mean(&it[index]))
            .transpose()?;
        let figure = Figure::new(name, Unit::named(""), mean(&losses.after[index])?);
        Ok(figure
            .before(mean(&losses.before[index])?)
            .retrained(retrained))
    };
    TIMESTEPS.into_iter().enumerate().map(figure).collect()
}
