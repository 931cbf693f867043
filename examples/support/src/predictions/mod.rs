//! The job of `predicted_answers`: predicted answers of a model that never saw an image, compared
//! with those of models that never saw it.

mod errors;
mod images;
mod table;

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use serde::{Deserialize, Serialize};
use siss::DdpmScheduler;
use siss::answer::{PredictedAnswer, PredictedAnswerConfig};
use siss::burn::tensor::{Device, Tensor};
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData};

use crate::cases::{Case, CaseData};
use crate::digits::ASSETS;
use crate::options::at_least_one;
use crate::progress::Progress;
use crate::trained::Trained;
use crate::{files, lines};

use errors::{Errors, NoisyImages};
use images::Unseen;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Compares predicted with actual answers on images that no model has seen.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Options {
    /// Whose models: of a T-shirt among digits, ten digits among digits, four faces among colour
    /// pictures.
    #[arg(long, value_enum, default_value_t)]
    case: Case,

    /// Retained points used by a prediction, separated by commas; of more than there are, all.
    #[arg(long, value_delimiter = ',', default_value = "500,2000,9000")]
    retained: Vec<usize>,

    /// Images of each kind.
    #[arg(long, default_value_t = 8)]
    images: usize,

    /// Noises for each image and timestep.
    #[arg(long, default_value_t = 4)]
    noises: usize,

    /// Folder for everything that is written.
    #[arg(long, value_name = "DIR", default_value = "target/predicted_answers")]
    pub out: PathBuf,

    /// Folder of the pictures and the bundled models.
    #[arg(long, value_name = "DIR", default_value = ASSETS, hide = true)]
    assets: PathBuf,
}

/// A model's answers at an image, or predicted ones, against a retrained model's.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Comparison {
    case: String,
    answers: String,
    /// Retained points that the prediction used; none for a model's answers.
    retained: Option<usize>,
    kind: String,
    image: usize,
    timestep: usize,
    /// Cosine of the two errors, mean over noises.
    cosine: f64,
    /// Power of the difference over the power of the retrained model's error.
    distance: f64,
}

const TIMESTEPS: [usize; 5] = [50, 100, 250, 400, 600];

/// Most control points.
const CONTROLS: usize = 200;

/// What the answers of models are called among the predictors.
const RETRAINED: &str = "model retrained with another seed";
const MEMORISED: &str = "model that memorised others";
/// All together, as in a run.
const ALL: &str = "all";

/// Compares, writes a file of all comparisons and a table, and returns the table.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<String> {
    let retained = options.retained.iter();
    at_least_one(
        &retained
            .map(|&count| ("retained", Some(count)))
            .collect::<Vec<_>>(),
    )?;
    let Options { images, noises, .. } = *options;
    at_least_one(&[("images", Some(images)), ("noises", Some(noises))])?;
    let comparisons = Trial::load(options)?.comparisons(progress)?;
    lines::write(&options.out.join("comparisons.csv"), &comparisons)?;
    let table = table::table(&comparisons);
    files::write(&options.out.join("table.md"), &table)?;
    Ok(table)
}

/// What a prediction is made of: posteriors of whole points alone, with patches of one width or
/// pieces, all patches, and all together.
fn predictors() -> Vec<(String, PredictedAnswerConfig)> {
    let all = PredictedAnswerConfig::default();
    let of = |patches: &[usize], pieces: bool| PredictedAnswerConfig {
        patches: patches.to_vec(),
        pieces,
        ..PredictedAnswerConfig::default()
    };
    let mut predictors = vec![("whole points".into(), of(&[], false))];
    for &width in &all.patches {
        predictors.push((
            format!("whole points, patches of {width}"),
            of(&[width], false),
        ));
    }
    predictors.push(("whole points, all patches".into(), of(&all.patches, false)));
    predictors.push(("whole points, pieces".into(), of(&[], true)));
    predictors.push((ALL.into(), all));
    predictors
}

/// The models, the points and the images.
struct Trial<'a> {
    options: &'a Options,
    trained: Trained,
    scheduler: DdpmScheduler,
    data: CaseData,
    /// The first half of the points that no model has seen; images come from the second.
    controls: Tensor<4>,
    unseen: Unseen,
    noisy: NoisyImages,
}

impl<'a> Trial<'a> {
    fn load(options: &'a Options) -> Result<Self> {
        let Options { case, assets, .. } = options;
        let device = Device::flex();
        let trained = Trained::load(*case, assets, &device)?;
        let data = case.load(assets, &device)?;
        let half = data.heldout.dims()[0] / 2;
        let unseen = Unseen::load(*case, assets, &data, options.images)?;
        Ok(Self {
            options,
            scheduler: DdpmScheduler::from_config(&trained.config)?,
            trained,
            controls: data.heldout.clone().narrow(0, 0, half.min(CONTROLS)),
            noisy: NoisyImages::new(&unseen.images, options.noises),
            data,
            unseen,
        })
    }

    fn comparisons(&self, progress: &dyn Progress) -> Result<Vec<Comparison>> {
        progress.phase("the models' answers");
        let errors = |model| {
            let at = |t| self.noisy.errors_of(model, &self.scheduler, t);
            TIMESTEPS
                .into_iter()
                .map(at)
                .collect::<siss::Result<Vec<_>>>()
        };
        let actual = errors(&self.trained.retrained)?;
        let mut comparisons = Vec::new();
        for (name, model) in [
            (RETRAINED, &self.trained.again[0]),
            (MEMORISED, &self.trained.model),
        ] {
            comparisons.extend(self.compare(name, None, &errors(model)?, &actual));
        }
        let losses = self.losses(progress)?;
        for retained in self.retained() {
            for (name, config) in predictors() {
                progress.phase(&format!("predicting from {retained} points: {name}"));
                let config = PredictedAnswerConfig { retained, ..config };
                let predicted = self.predicted(&losses, &config)?;
                let of_predictor = self.compare(&name, Some(retained), &predicted, &actual);
                let line = table::line(&of_predictor.iter().collect::<Vec<_>>());
                progress.say(line.trim_end());
                comparisons.extend(of_predictor);
            }
        }
        Ok(comparisons)
    }

    /// Numbers of retained points, ascending and no more than there are.
    fn retained(&self) -> Vec<usize> {
        let most = self.data.retain.dims()[0];
        let counts = self.options.retained.iter();
        let mut counts: Vec<usize> = counts.map(|&count| count.min(most)).collect();
        counts.sort_unstable();
        counts.dedup();
        counts
    }

    fn of_points(&self) -> CounterfactualData<'_, 4> {
        CounterfactualData::new(&self.data.retain, &self.controls, &self.unseen.images)
    }

    /// The predicted losses on the images.
    fn losses(&self, progress: &dyn Progress) -> Result<Counterfactual> {
        let config = CounterfactualConfig {
            timesteps: Some(TIMESTEPS.map(|timestep| timestep as f64).to_vec()),
            noises: self.options.noises,
            ..CounterfactualConfig::default()
        };
        let tell = |share| progress.phase(&format!("predicting losses: {:.0} %", 100.0 * share));
        let (model, scheduler) = (&self.trained.model, &self.scheduler);
        let data = self.of_points();
        Ok(Counterfactual::fit_with_progress(
            model, scheduler, data, config, tell,
        )?)
    }

    /// The predicted errors at the noisy images, by timestep.
    fn predicted(
        &self,
        losses: &Counterfactual,
        config: &PredictedAnswerConfig,
    ) -> Result<Vec<Errors>> {
        // A prediction gives way to the model's own answer where that has the larger loss: not
        // below this one, from which it is scaled to the predicted loss.
        const HIGH: f64 = 1e4;
        let mut high = losses.clone();
        high.predicted
            .iter_mut()
            .flatten()
            .for_each(|loss| *loss = HIGH);
        let (model, data) = (&self.trained.model, self.of_points());
        let answer = PredictedAnswer::fit(model, &self.scheduler, &data, &high, config)?;
        let mut objective = self.noisy.objective(answer)?;
        let mut predicted = Vec::new();
        for (index, timestep) in TIMESTEPS.into_iter().enumerate() {
            let (of_model, retained) = ((model, &self.scheduler), &self.data.retain);
            let mut errors =
                (self.noisy).predicted(&mut objective, of_model, retained, timestep)?;
            errors.scale(|image| (losses.predicted[image][index] / HIGH).sqrt());
            predicted.push(errors);
        }
        Ok(predicted)
    }

    fn compare(
        &self,
        answers: &str,
        retained: Option<usize>,
        errors: &[Errors],
        actual: &[Errors],
    ) -> Vec<Comparison> {
        let mut comparisons = Vec::new();
        for (timestep, (errors, actual)) in TIMESTEPS.into_iter().zip(errors.iter().zip(actual)) {
            let of_images = errors.against(actual).into_iter().zip(&self.unseen.kinds);
            for (image, ((cosine, distance), kind)) in of_images.enumerate() {
                comparisons.push(Comparison {
                    case: self.options.case.name().into(),
                    answers: answers.into(),
                    retained,
                    kind: kind.to_string(),
                    image,
                    timestep,
                    cosine: lines::rounded(cosine),
                    distance: lines::rounded(distance),
                });
            }
        }
        comparisons
    }
}
