//! The trainer of a run, as the options say.

use std::collections::HashSet;
use std::error::Error;

use siss::answer::{Answer, Surrogate};
use siss::backend::DeviceSpec;
use siss::burn::nn::LinearConfig;
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::tensor::{Device, Tensor};
use siss::draws::{CoinFlip, TimestepSampling};
use siss::evaluate::EmbeddingSearch;
use siss::process::SchedulerConfig;
use siss::steering::Levels;
use siss::trainer::{
    Adversary, AllReduce, FusedAdamW, MasterWeights, Offloaded, SissTrainerBuilder,
};
use siss::{Condition, Denoiser, FnDenoiser, PairSampler, Side, SissTrainer};

use crate::process::Process;
use crate::progress::Progress;
use crate::target::Target;
use crate::unlearn::options::{Options, Protocol, Settings};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Rejects a method, target and clipper that do not fit together, by building a trainer for a model
/// of two numbers.
pub fn check_method(options: &Options, device: &Device) -> Result<()> {
    let linear = LinearConfig::new(1, 1).init(device);
    let model = FnDenoiser::new(linear, |linear, noisy: Tensor<2>, _, _: &()| {
        linear.forward(noisy)
    });
    let levels = match options.target {
        Target::Retrained => Some(Levels::new(vec![0.0, 999.0], vec![vec![1.0; 2]])?),
        Target::None => None,
    };
    let settings = Settings {
        learning_rate: options.learning_rate.unwrap_or(1.0),
        samples: 1,
        micro_batch: 1,
        measured_at_a_time: 1,
    };
    let point = Tensor::<2>::ones([1, 1], device);
    let answer = match options.target {
        Target::Retrained => Some(Surrogate::new(point.clone())?),
        Target::None => None,
    };
    let (predicted, asked) = ((levels, answer), (options, &settings));
    let process = Process::Steps(SchedulerConfig::default());
    let built = builder(model, point, predicted, &process, asked);
    match built.and_then(|builder| Ok(builder.build()?)) {
        Ok(_) => Ok(()),
        Err(error) => {
            let target = match options.target {
                Target::Retrained => "retrained",
                Target::None => "none",
            };
            let clipper = options
                .clipper
                .map(|clipper| format!(" --clipper {clipper}"));
            Err(format!(
                "--method {} --target {target}{}: {error}",
                options.method,
                clipper.unwrap_or_default()
            )
            .into())
        }
    }
}

/// The settings of a trainer, with what is predicted of a retrained model: losses and answers.
pub fn builder<M: Denoiser<D, Condition: 'static>, const D: usize>(
    model: M,
    retained: Tensor<D>,
    (levels, answer): (
        Option<Levels>,
        Option<impl Answer<D, M::Condition> + 'static>,
    ),
    process: &Process,
    (options, settings): (&Options, &Settings),
) -> Result<SissTrainerBuilder<M, D>> {
    let replicas = options.all_devices().1.iter().map(|spec| spec.device());
    let mut builder = SissTrainer::builder(model, process.scheduler()?)
        .retained_points(retained)
        .micro_batch_size(settings.micro_batch)
        .gradient_checkpointing(options.recompute)
        .replicas(replicas.collect::<siss::Result<Vec<_>>>()?)
        .seed(options.seed);
    let rate = settings.learning_rate;
    builder = match options.protocol {
        Protocol::Quick => {
            let falling = LinearLrSchedulerConfig::new(rate, 0.0, options.steps);
            builder
                .learning_rate(falling.init()?)
                .timestep_sampling(process.timesteps())
        }
        Protocol::CelebaHq | Protocol::StableDiffusion => builder
            .learning_rate(rate)
            .timestep_sampling(TimestepSampling::Uniform)
            .sampler(CoinFlip::new(0.5)?)
            .thin_below(0.0),
    };
    let builder = with_optimizer(builder, options);
    let method = options.method;
    Ok(method.set(builder, levels, answer, options.clipper)?)
}

/// The optimiser of the protocol, with its state in the place and precision that were asked for.
fn with_optimizer<M: Denoiser<D>, const D: usize>(
    builder: SissTrainerBuilder<M, D>,
    options: &Options,
) -> SissTrainerBuilder<M, D> {
    let host = options.moments_on_host.then(Device::flex);
    if options.protocol != Protocol::StableDiffusion {
        let builder = builder.master_weights(options.bf16_weights);
        return match host {
            Some(host) => builder.optimizer_state_device(host),
            None => builder,
        };
    }
    let adam = FusedAdamW::new([0.9, 0.999], 1e-8, 1e-2);
    builder.optimizer(match (host, options.bf16_weights) {
        (Some(host), false) => Offloaded::new(adam, host).into(),
        (Some(host), true) => Offloaded::new(MasterWeights::new(adam), host).into(),
        (None, false) => adam.into(),
        (None, true) => MasterWeights::new(adam).into(),
    })
}

/// Adds the gradients of several NVIDIA GPUs by NCCL, if that works, and otherwise on the first.
pub fn adding_gradients<M: Denoiser<D>, const D: usize>(
    builder: SissTrainerBuilder<M, D>,
    options: &Options,
    progress: &dyn Progress,
) -> siss::Result<SissTrainerBuilder<M, D>> {
    let (first, others) = options.all_devices();
    if !have_nccl(first, others) {
        return Ok(builder);
    }
    let devices = [first].into_iter().chain(others.iter().copied());
    let devices = devices.map(DeviceSpec::device);
    Ok(
        match AllReduce::new(devices.collect::<siss::Result<_>>()?) {
            Ok(reduce) => builder.reduce(reduce),
            Err(error) => {
                progress.say(&format!(
                "note: the gradients of all devices are added on {first}, because an all-reduce is not possible: {error}"
            ));
                builder
            }
        },
    )
}

/// Whether gradients of these devices may be added by NCCL: all are NVIDIA GPUs, each given once.
fn have_nccl(first: DeviceSpec, others: &[DeviceSpec]) -> bool {
    let is_gpu = |spec: &DeviceSpec| matches!(spec, DeviceSpec::Cuda(_));
    let different: HashSet<_> = others.iter().chain([&first]).collect();
    !others.is_empty() && different.len() == 1 + others.len() && different.into_iter().all(is_gpu)
}

/// The search for embeddings during the run, if requested.
pub fn adversary<C: Condition>(
    options: &Options,
    settings: &Settings,
    pairs: &PairSampler<4, C>,
) -> siss::Result<Option<Adversary<4, C>>> {
    let Some(every) = options.conditions.adversarial else {
        return Ok(None);
    };
    let search = EmbeddingSearch {
        seed: options.seed,
        micro_batch_size: settings.micro_batch,
        ..EmbeddingSearch::while_training()
    };
    let (points, condition) = (pairs.forget(), pairs.condition(Side::Forget));
    Adversary::new(search, every, points.clone(), condition.clone()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_is_for_different_nvidia_gpus() {
        let specs = |names: &str| -> Vec<DeviceSpec> {
            names.split(',').map(|name| name.parse().unwrap()).collect()
        };
        for (names, expected) in [
            ("cuda:0,cuda:1", true),
            ("cuda:1,cuda:0,cuda:2", true),
            ("cuda:0", false),
            ("cuda:0,cuda:0", false),
            ("cuda:0,cuda:1,cuda:0", false),
            ("cuda:0,flex", false),
            ("flex,flex", false),
        ] {
            let specs = specs(names);
            assert_eq!(have_nccl(specs[0], &specs[1..]), expected, "{names}");
        }
    }
}
