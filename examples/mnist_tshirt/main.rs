//! The main example, unlearning a memorised T-shirt: `cargo run --release --example mnist_tshirt`.
//! See `--help` and `examples/README.md`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use siss_support::classifier::Judgement;
use siss_support::closeness::{Closeness, DENOISED};
use siss_support::progress::Bar;
use siss_support::tshirt::evaluate::{Evaluation, TIMESTEPS};
use siss_support::tshirt::job::{self, Summary, ToRetrained};
use siss_support::tshirt::options::Options;

fn main() -> ExitCode {
    match forget_the_tshirt(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn forget_the_tshirt(options: Options) -> Result<(), Box<dyn Error>> {
    let out = options.out.clone();
    let progress = Bar::new()?;
    let summary = job::run(options, &progress)?;
    progress.finish();
    print_table(&summary);
    for finding in &summary.findings {
        println!("\nnote: {finding}");
    }
    println!(
        "\npictures, curves, numbers and the model are in {}",
        siss::files::path_text(out)
    );
    Ok(())
}

fn print_table(summary: &Summary) {
    let (before, after) = (&summary.before, &summary.after);
    let row = |name: &str, before: String, after: String, retrained: String| {
        println!("{name:<34} {before:>20} {after:>20} {retrained:>25}");
    };
    let share = |evaluation: &Evaluation| {
        let [low, high] = evaluation.tshirt_share_interval;
        format!(
            "{:.1} % [{:.1}, {:.1}]",
            100.0 * evaluation.tshirt_share,
            100.0 * low,
            100.0 * high
        )
    };
    row("", "before".into(), "after".into(), "retrained".into());
    row(
        &format!("T-shirts of {} images", before.samples),
        before.tshirt_count.to_string(),
        after.tshirt_count.to_string(),
        String::new(),
    );
    row(
        "  share, exact 95 % interval",
        share(before),
        share(after),
        String::new(),
    );
    for timestep in TIMESTEPS {
        let key = timestep.to_string();
        row(
            &format!("loss of the T-shirt, t = {timestep}"),
            format!("{:.4}", before.tshirt_loss[&key]),
            format!("{:.4}", after.tshirt_loss[&key]),
            match &summary.predicted {
                Some(predicted) => format!(
                    "{:.4} (predicted {:.3})",
                    summary.retrained.tshirt_loss[&key], predicted[&key]
                ),
                None => format!("{:.4}", summary.retrained.tshirt_loss[&key]),
            },
        );
    }
    for timestep in TIMESTEPS {
        let key = timestep.to_string();
        let (was, is) = (before.heldout_loss[&key], after.heldout_loss[&key]);
        row(
            &format!(
                "loss of {} new digits, t = {timestep}",
                summary.config.options.heldout
            ),
            format!("{was:.4}"),
            format!("{is:.4} ({:+.1} %)", 100.0 * (is / was - 1.0)),
            String::new(),
        );
    }
    row(
        "L2, T-shirt to its denoised copies",
        format!("{:.2}", before.tshirt_denoise_l2),
        format!("{:.2}", after.tshirt_denoise_l2),
        format!("{:.2}", summary.retrained.tshirt_denoise_l2),
    );
    if let (Some(before), Some(after)) = (&before.digits, &after.digits) {
        let score = |of: &Judgement| {
            let score = &of.inception_score;
            format!("{:.2} [{:.2}, {:.2}]", score.value, score.low, score.high)
        };
        row(
            "inception score of the digits",
            score(before),
            score(after),
            String::new(),
        );
        row(
            "  evenness of their classes",
            format!("{:.3}", before.evenness),
            format!("{:.3}", after.evenness),
            String::new(),
        );
    }
    print_closeness(&summary.closeness);
    println!(
        "\n{} steps, {:.2} rows per sample, {:.0} s of {:.0} s",
        summary.steps, summary.rows_per_sample, summary.unlearning_seconds, summary.seconds,
    );
}

/// Distances to the retrained model; 0 is the same model.
fn print_closeness(closeness: &ToRetrained) {
    let row = |name: &str, figure: &dyn Fn(&Closeness) -> f64| {
        let [before, after, another] = [
            &closeness.before,
            &closeness.after,
            &closeness.another_retrained,
        ]
        .map(figure);
        println!("{name:<34} {before:>20.2} {after:>20.2} {another:>25.2}");
    };
    println!(
        "\n{:<34} {:>20} {:>20} {:>25}",
        "distance to the retrained model", "before", "after", "another retrained"
    );
    row("answers at the T-shirt", &|of| of.answer_distance);
    row("answers at images like it", &|of| of.neighbourhood);
    for timestep in DENOISED {
        let key = timestep.to_string();
        let name = format!("L2, copies denoised from t = {timestep}");
        row(&name, &|of| of.denoised[&key].to_reference);
    }
    row("loss of the T-shirt, |ln|", &|of| of.loss_distance);
}
