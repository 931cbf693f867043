//! The report of a run, if `--report` asks for it.

use std::error::Error;
use std::path::Path;

use siss::files::path_text;
use siss::report::audit::{Manifest, Subject, WorstCase};

use crate::audit::material::records;
use crate::audit::summary::{self, Evidence};
use crate::probe::ByTimestep;
use crate::subject::source::Source;
use crate::unlearn::evaluate::Evaluation;
use crate::unlearn::job::{Config, Summary};

/// Writes `report.html` and `report.json` into the folder of the results.
pub fn write(summary: &Summary, source: &Source, folder: &Path) -> Result<(), Box<dyn Error>> {
    let Config { options, .. } = &summary.config;
    if !options.reporting.report {
        return Ok(());
    }
    let (before, after) = (&summary.before, &summary.after);
    let at = |of: fn(&Evaluation) -> &ByTimestep| {
        summary::by_timestep(summary.timesteps, [of(before), of(after)])
    };
    let (items, worst) = items(summary)?;
    let written = summary::written_network(folder);
    let lora = options.conditions.lora.as_deref();
    let evidence = Evidence {
        name: path_text(source.file().unwrap_or(source.folder().pipeline())),
        parameters: summary.model.parameters,
        networks: [lora.unwrap_or(source.network()), &written],
        items,
        retained: &options.retain,
        retained_count: summary.retain_images,
        retained_description: format!("images of {}", path_text(&options.retain)),
        controls: summary.control_images,
        samples: before.samples,
        copies: [before.near_count, after.near_count],
        copies_rule: format!(
            "nearer than half the median distance of unseen pictures, here {:.2} (L2, pixels from 0 to 1)",
            summary.near.distance
        ),
        ranks: at(|it| &it.forget_loss_percentile),
        denoised: [before.denoise_l2, after.denoise_l2],
        denoised_retrained: None,
        answers: None,
        quality: at(|it| &it.control_loss),
        judged: None,
        fid: before
            .fid
            .clone()
            .zip(after.fid.clone())
            .map(<[_; 2]>::from),
        similarity: before
            .sscd
            .clone()
            .zip(after.sscd.clone())
            .map(<[_; 2]>::from),
        worst,
        charts: Vec::new(),
    };
    let device = options.device.to_string();
    let repeated = (options.seed, device.as_str());
    summary::write(
        evidence,
        &options.reporting,
        &summary.config,
        repeated,
        folder,
    )
}

/// The items under names that give nothing away, and the one whose loss is lowest among those of
/// unseen images.
fn items(summary: &Summary) -> siss::Result<(Vec<Subject>, Option<WorstCase>)> {
    let mut items = Vec::new();
    let mut worst: Option<(f64, WorstCase)> = None;
    for image in summary.images.iter().filter(|image| !image.mirrored) {
        let sha256 = Manifest::of(&image.file)?.files()[0].sha256.clone();
        let percentile = image.after.percentile;
        if worst
            .as_ref()
            .is_none_or(|(lowest, _)| percentile < *lowest)
        {
            let finding = format!(
                "its loss is {:.4}; {percentile:.0} % of the unseen pictures have a lower one",
                image.after.loss
            );
            let sha256 = sha256.clone();
            worst = Some((percentile, WorstCase { sha256, finding }));
        }
        items.push(Subject {
            name: format!("item {}", items.len() + 1),
            sha256,
        });
    }
    if items.len() < summary.forget_images {
        // Not every one of very many was measured one by one.
        for item in records(&Manifest::of(&summary.config.options.forget)?) {
            if items.iter().all(|known| known.sha256 != item.sha256) {
                let name = format!("item {}", items.len() + 1);
                items.push(Subject { name, ..item });
            }
        }
    }
    Ok((items, worst.map(|it| it.1)))
}
