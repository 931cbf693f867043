//! In a long run, memory use does not grow and steps do not slow down. `SISS_SOAK=1` takes 10,000
//! steps instead of 2,000.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use siss::draws::{Stream, normal_noise};
use siss::observer::{JsonLog, StepOutcome};
use siss::*;
use siss_support::small::*;

/// Resident memory of this process in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0
}

/// Slope of the least-squares line through values at 0, 1, 2, …
fn slope(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / count;
    let pairs = values.iter().enumerate();
    let (above, below) = pairs.fold((0.0, 0.0), |(above, below), (x, y)| {
        let x = x as f64 - middle;
        (above + x * (y - mean), below + x * x)
    });
    above / below
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn memory_and_time_stay_over_thousands_of_steps() {
    let steps = match std::env::var_os("SISS_SOAK") {
        Some(_) => 10_000,
        None => 2_000,
    };
    let device = device();
    let points = |rows, part| normal_noise([rows, 3], 1, part, 0, Stream::Evaluation, &device);
    let pairs = PairSampler::new(points(500, 1), points(5, 2) + 0.5, 3).unwrap();
    let mut trainer =
        SissTrainer::builder(Mlp::new(3, &device), DdpmScheduler::linear(1000).unwrap())
            .steering(level(1.0))
            .micro_batch_size(4)
            .ema(0.99)
            .observer(JsonLog::new(std::io::sink()))
            .build()
            .unwrap();
    let mut memory = Vec::with_capacity(steps);
    let mut times = Vec::with_capacity(steps);
    for step in 0..steps as u64 {
        let began = Instant::now();
        let report = trainer.step(pairs.batch(step, 8).unwrap()).unwrap();
        times.push(began.elapsed());
        memory.push(resident());
        assert_eq!(report.outcome, StepOutcome::Applied, "{report}");
    }
    let tenth = steps / 10;
    let growth = slope(&memory[2 * tenth..]);
    let (first, last) = (median(&times[..tenth]), median(&times[steps - tenth..]));
    println!(
        "{steps} steps: {growth:+.1} bytes a step, {:.1} MiB at the end; median of a step {first:?} at first, {last:?} at last",
        memory[steps - 1] / f64::from(1 << 20)
    );
    assert!(growth < 512.0, "memory grows by {growth} bytes a step");
    assert!(last < 3 * first, "steps became slower: {first:?}, {last:?}");
    assert!(parameters(trainer.model()).iter().all(|p| p.is_finite()));
}
