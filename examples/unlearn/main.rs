//! Unlearns images from a diffusers model: `cargo run --release --example unlearn -- --help`. See
//! `examples/README.md`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use siss::files::path_text;
use siss::metrics::Estimate;
use siss_support::progress::{Bar, duration};
use siss_support::unlearn::evaluate::Evaluation;
use siss_support::unlearn::job::{self, Summary};
use siss_support::unlearn::options::Options;
use siss_support::unlearn::resources::{bytes, images};
use siss_support::way::Way;

fn main() -> ExitCode {
    match forget(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn forget(options: Options) -> Result<(), Box<dyn Error>> {
    options.check()?;
    if let Some(threads) = options.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let built = pool.build_global();
        built.map_err(|error| format!("--threads {threads}: {error}"))?;
    }
    let out = options.out.clone();
    let progress = Bar::new()?;
    let summary = job::run(options, &progress)?;
    progress.finish();
    print_table(&summary);
    for note in advice(&summary) {
        println!("\nnote: {note}");
    }
    for finding in &summary.findings {
        println!("\nnote: {finding}");
    }
    let out = path_text(out);
    println!("\nthe unlearned model is in {out}/model; pictures, curves and numbers are in {out}");
    Ok(())
}

fn print_table(summary: &Summary) {
    let (before, after) = (&summary.before, &summary.after);
    let row = |name: &str, before: String, after: String, predicted: String| {
        let row = format!("{name:<50} {before:>20} {after:>20} {predicted:>20}");
        println!("{}", row.trim_end());
    };
    let none = String::new;
    let share = |figures: &Evaluation| {
        let [low, high] = figures.near_share_interval.map(|end| 100.0 * end);
        format!("{:.1} % [{low:.1}, {high:.1}]", 100.0 * figures.near_share)
    };
    let title = match summary.predicted {
        Some(_) => "predicted (3)".into(),
        None => none(),
    };
    row("", "before".into(), "after".into(), title);
    row(
        &format!("samples near a forgotten one (1), of {}", before.samples),
        before.near_count.to_string(),
        after.near_count.to_string(),
        none(),
    );
    row(
        "  share, exact 95 % interval",
        share(before),
        share(after),
        none(),
    );
    for timestep in summary.timesteps {
        let key = timestep.to_string();
        let loss = |figures: &Evaluation| {
            let percentile = figures.forget_loss_percentile[&key];
            format!("{:.4} ({percentile:.0} %)", figures.forget_loss[&key])
        };
        let predicted = summary.predicted.as_ref();
        let predicted = predicted.map(|figures| format!("{:.4}", figures.forget_loss[&key]));
        let name = format!("loss of the forgotten images, t = {timestep} (2)");
        row(
            &name,
            loss(before),
            loss(after),
            predicted.unwrap_or_default(),
        );
    }
    for timestep in summary.timesteps {
        let key = timestep.to_string();
        let (was, is) = (before.control_loss[&key], after.control_loss[&key]);
        row(
            &format!(
                "loss of {} control images, t = {timestep}",
                summary.control_images
            ),
            format!("{was:.4}"),
            format!("{is:.4} ({:+.1} %)", 100.0 * (is / was - 1.0)),
            none(),
        );
    }
    row(
        "L2 from forgotten images to their denoised copies",
        format!("{:.2}", before.denoise_l2),
        format!("{:.2}", after.denoise_l2),
        none(),
    );
    for [name, before, after] in published_rows(summary) {
        row(&name, before, after, none());
    }
    println!(
        "\n(1) closer than half the median distance of the control images to it, here {:.2} (pixels in [0, 1]); {} of {} control \
         images are that near\n(2) in brackets: share of the control images whose loss is lower; near 0 is memorised",
        summary.near.distance, summary.near.controls, summary.control_images,
    );
    if summary.predicted.is_some() {
        println!("(3) of a model retrained without them: where forgetting stops");
    }
    for note in published_notes(summary) {
        println!("{note}");
    }
    let memory = match summary.peak_memory_bytes {
        Some(peak) => format!(", {} of memory at most", bytes(peak)),
        None => String::new(),
    };
    println!(
        "\n{} steps in {} of {}, {:.2} rows per sample{memory}",
        summary.steps,
        duration(summary.unlearning_seconds),
        duration(summary.seconds),
        summary.rows_per_sample,
    );
}

/// The rows of FID and SSCD, as far as they were measured: name, before, after.
fn published_rows(summary: &Summary) -> Vec<[String; 3]> {
    let (before, after) = (&summary.before, &summary.after);
    let shown = |of: &Estimate| format!("{:.2} [{:.2}, {:.2}]", of.value, of.low, of.high);
    let mut rows = Vec::new();
    if let (Some(before), Some(after)) = (&before.fid, &after.fid) {
        let [retained, samples] = [0, 1].map(|side| after.samples[side]);
        let name = format!("FID of {samples} samples, {retained} retained (4)");
        rows.push([name, shown(before), shown(after)]);
    }
    if let (Some(before), Some(after)) = (&before.sscd, &after.sscd) {
        let name = format!("SSCD of {} with copies (5)", images(after.images.len()));
        rows.push([name, shown(&before.mean), shown(&after.mean)]);
    }
    rows
}

/// What the figures of FID and SSCD are.
fn published_notes(summary: &Summary) -> Vec<String> {
    let fid = summary.after.fid.as_ref().map(|fid| {
        format!(
            "(4) {}, with its 95 % interval. With so few samples it is too large, by about the same before and after; it is not \
             comparable with published figures, which are of 10,000 samples",
            fid.name
        )
    });
    let sscd = summary.after.sscd.as_ref().map(|sscd| {
        format!(
            "(5) {}, with its 95 % interval: the protocol of SISS; ReTrack's figures are of another one, and belong in another column",
            sscd.mean.name
        )
    });
    fid.into_iter().chain(sscd).collect()
}

/// Below this percentile the loss of an image suggests that the model has memorised it.
const MEMORISED: f64 = 5.0;
/// From this percentile on the loss suggests nothing.
const UNSUSPICIOUS: f64 = 25.0;
/// A loss on forgotten images this many times that of the control images is too high.
const OVERDONE: f64 = 10.0;
/// An increase of the control loss by this factor means a loss of quality.
const HARMED: f64 = 1.05;

/// A number with two digits.
fn rounded(number: f64) -> f64 {
    format!("{number:.1e}").parse().unwrap_or(number)
}

/// Advice that follows from the results.
fn advice(summary: &Summary) -> Vec<String> {
    let (before, after) = (&summary.before, &summary.after);
    let lowest = |figures: &Evaluation| {
        let percentiles = figures.forget_loss_percentile.values().copied();
        percentiles.fold(100.0, f64::min)
    };
    let [less, more] = match (summary.config.options.method, summary.forget_scale) {
        (Way::Counterfactual, Some(scale)) => {
            [0.5, 3.0].map(|factor| format!("constant:{}", rounded(factor * scale)))
        }
        _ => ["fraction:0.05", "fraction:0.5"].map(Into::into),
    };
    let mut advice = Vec::new();
    if lowest(before) >= UNSUSPICIOUS {
        advice.push(
            "before, the forgotten images' loss was no lower than that of others: the model may not have memorised them, or they differ from those it was trained on (size, crop, colours)"
                .into(),
        );
    }
    let known = summary.images.iter();
    let known = known
        .filter(|image| image.after.percentile < MEMORISED)
        .count();
    if known > 0 {
        advice.push(format!(
            "{} of {} to forget still {} a loss lower than {:.0} % of the control images': take more steps, a higher learning rate, \
             or more forgetting (--clipper {}); summary.json has each",
            known,
            images(summary.images.len()),
            if known == 1 { "has" } else { "have" },
            100.0 - MEMORISED,
            more,
        ));
    }
    let predicted = summary.predicted.as_ref();
    let is_beyond = |(key, loss): &(&String, &f64)| {
        predicted.is_none_or(|predicted| **loss > predicted.forget_loss[*key])
    };
    let excess = |(key, loss): (&String, &f64)| loss / after.control_loss[key];
    let losses = after.forget_loss.iter().filter(is_beyond);
    let excess = losses.map(excess).fold(0.0, f64::max);
    if excess > OVERDONE {
        let target = match predicted {
            Some(_) => "",
            None => "a target (--target retrained), ",
        };
        advice.push(format!(
            "the forgotten images' loss is up to {excess:.0} times that of the control images: probably more than is needed, and itself a \
             trace of them; {target}fewer steps or less forgetting (--clipper {less}) may do"
        ));
    }
    let rise = |(key, loss): (&String, &f64)| loss / before.control_loss[key];
    let rise = after.control_loss.iter().map(rise).fold(0.0, f64::max);
    if rise > HARMED {
        advice.push(format!(
            "the control images' loss rose by up to {:.0} %, so its generated images are worse: take a lower learning rate, less forgetting \
             (--clipper {less}) or more retained images",
            100.0 * (rise - 1.0)
        ));
    }
    advice
}
