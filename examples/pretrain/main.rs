//! Trains a small model that memorises some pictures, or its twin that never saw them:
//! `cargo run --release --example pretrain`. See `--help` and `examples/README.md`.
//!
//! An ordinary training is the crate's trainer without a forget term, so it has the trainer's
//! checkpoints, average of the weights and log.

mod half;
mod options;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use siss::burn::module::Module;
use siss::burn::optim::AdamWConfig;
use siss::burn::optim::lr_scheduler::composed::ComposedLrSchedulerConfig;
use siss::burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use siss::burn::tensor::Tensor;
use siss::evaluate::DenoisingLoss;
use siss::files::path_text;
use siss::models::{DownBlockType, UNet2d, UNet2dConfig, UpBlockType};
use siss::{DdpmScheduler, Method, PairSampler, SissTrainer};
use siss_support::cases::CaseData;
use siss_support::files;

use self::options::Options;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Steps of the process.
const TIMESTEPS: usize = 1000;
/// Steps until the learning rate is at its highest.
const WARM_UP: usize = 200;
/// A line is printed after so many steps.
const TOLD_EVERY: u64 = 100;
/// Timesteps and held-out points at which the losses of the trained model are measured.
const MEASURED: [f64; 5] = [50.0, 100.0, 250.0, 400.0, 600.0];
const MEASURED_POINTS: usize = 100;

fn main() -> ExitCode {
    match train(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(options: &Options) -> Result<()> {
    options.check()?;
    let device = options.device.device()?;
    let data = options.data(&device)?;
    let training = training_set(options, &data);
    let [count, channels, height, width] = training.dims();
    println!("{count} pictures of {channels}x{height}x{width}");
    // A pair has a point to forget. Without a forget term it is never run, so any other will do.
    let unused = data.heldout.clone().narrow(0, 0, 1);
    let pairs = PairSampler::new(training, unused, options.seed)?;

    device.seed(options.seed);
    let network = match &options.from {
        Some(folder) => UNet2d::load(folder, &device)?,
        None => network(options, [channels, height, width]).init(&device)?,
    };
    let mut trainer = trainer(options, network)?;
    let amount = [options.steps as usize, options.batch];
    let (checkpointing, out) = (&options.checkpointing, options.out.as_path());
    let fingerprint = || pairs.fingerprint();
    let say = |line: &str| println!("{line}");
    let mut checkpoints = checkpointing.begin(&mut trainer, None, fingerprint, amount, out, say)?;
    let (mut loss, mut counted) = (0.0, 0);
    while trainer.next_step() < options.steps {
        let report = trainer.step(pairs.batch(trainer.next_step(), options.batch)?)?;
        loss += (report.retain.as_ref()).map_or(0.0, |term| term.mean_squared_error);
        counted += 1;
        let taken = trainer.next_step();
        if taken.is_multiple_of(TOLD_EVERY) || taken == options.steps {
            println!("step {taken}: loss {:.4}", loss / f64::from(counted));
            (loss, counted) = (0.0, 0);
        }
        if let Some(checkpoints) = &mut checkpoints
            && checkpointing.is_due(taken, options.steps)
        {
            checkpoints.save(&mut trainer, &())?;
        }
    }

    let model = trainer
        .ema_model()
        .unwrap_or_else(|| trainer.model().clone());
    save(options, &model)?;
    measure(&model, &data)?;
    println!("the model is in {}", path_text(out));
    Ok(())
}

/// The retained points, and copies of those that are to be memorised.
fn training_set(options: &Options, data: &CaseData) -> Tensor<4> {
    let retain = data.retain.clone();
    match options.copies() {
        0 => retain,
        copies => Tensor::cat(vec![retain, data.forget.clone().repeat_dim(0, copies)], 0),
    }
}

/// Three stages with attention in the middle one, the network of the bundled models.
fn network(options: &Options, [channels, height, width]: [usize; 3]) -> UNet2dConfig {
    UNet2dConfig {
        sample_size: Some([height, width]),
        in_channels: channels,
        out_channels: channels,
        layers_per_block: 1,
        block_out_channels: options.width.clone(),
        norm_num_groups: 8,
        down_block_types: vec![
            DownBlockType::Resnet,
            DownBlockType::Attention,
            DownBlockType::Resnet,
        ],
        up_block_types: vec![
            UpBlockType::Resnet,
            UpBlockType::Attention,
            UpBlockType::Resnet,
        ],
        ..UNet2dConfig::default()
    }
}

fn trainer(options: &Options, network: UNet2d) -> Result<SissTrainer<UNet2d, 4>> {
    let optimizer = AdamWConfig::new().with_weight_decay(1e-4).init();
    let builder = SissTrainer::builder(network, DdpmScheduler::linear(TIMESTEPS)?)
        .method(Method::NaiveDeletion)
        .optimizer(optimizer)
        .learning_rate(learning_rate(options)?)
        .ema(options.ema)
        .seed(options.seed);
    Ok(builder.build()?)
}

/// Rises for some steps, then falls to a fiftieth along a cosine.
fn learning_rate(options: &Options) -> Result<ModuleLrScheduler> {
    let steps = options.steps as usize;
    let rise = LinearLrSchedulerConfig::new(1.0 / WARM_UP as f64, 1.0, WARM_UP.min(steps));
    let rate = options.learning_rate;
    let fall = CosineAnnealingLrSchedulerConfig::new(rate, steps).with_min_lr(0.02 * rate);
    let product = ComposedLrSchedulerConfig::new().linear(rise).cosine(fall);
    Ok(product.init()?)
}

/// Writes the folder of a pipeline, its weights in half precision.
fn save(options: &Options, model: &UNet2d) -> Result<()> {
    let (network, scheduler) = (options.out.join("unet"), options.out.join("scheduler"));
    model.save(&network)?;
    half::halve(&network.join("diffusion_pytorch_model.safetensors"))?;
    files::create_folder(&scheduler)?;
    let config = serde_json::json!({
        "_class_name": "DDPMScheduler",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": true,
        "clip_sample_range": 1.0,
        "num_train_timesteps": TIMESTEPS,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "variance_type": "fixed_small",
    });
    let text = format!("{config:#}\n");
    files::write(&scheduler.join("scheduler_config.json"), text)?;
    Ok(())
}

/// Prints the losses of the trained model on what it memorised and on what it never saw.
fn measure(model: &UNet2d, data: &CaseData) -> Result<()> {
    let scheduler = DdpmScheduler::linear(TIMESTEPS)?;
    let unseen = data.heldout.dims()[0].min(MEASURED_POINTS);
    let unseen = data.heldout.clone().narrow(0, 0, unseen);
    let loss = DenoisingLoss::at(MEASURED);
    for (name, points) in [("to forget", &data.forget), ("held out", &unseen)] {
        let losses = loss.measure(&model.valid(), &scheduler, points, &())?;
        for (timestep, losses) in MEASURED.iter().zip(&losses) {
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            println!("loss of the pictures {name}, t = {timestep}: {mean:.4}");
        }
    }
    Ok(())
}
