//! Tests of checkpoints.
//!
//! A run that is killed, or whose files are torn, altered or refused by the system, never loses
//! more than the steps since the last checkpoint, and a resumed run equals an uninterrupted one.
//! `SISS_SOAK=1` runs the long forms. Tests that kill a process start themselves again as that
//! process.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use burn::module::{Module, ParamGroup};
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::tensor::{Device, Tensor};
use siss::checkpoint::model_fingerprint;
use siss::clipper::{Coefficients, FractionOfRetain, GradientNorms};
use siss::draws::{Stream, keyed_rng, normal_noise};
use siss::objective::{LossInputs, LossTerms, Siss};
use siss::observer::JsonLog;
use siss::rand::{Rng, RngExt};
use siss::steering::{HardStop, SteeringRule};
use siss::trainer::SissTrainerBuilder;
use siss::{
    Checkpoints, DdpmScheduler, Denoiser, Error, FlowMatching, GradientClipper, Method, Observer,
    PairSampler, PredictionType, Side, SissLoss, SissTrainer, Steering, StepReport,
};
use siss_support::small::{self, seeded};

/// Three layers: wide enough that a checkpoint has hundreds of blocks.
#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
    third: Linear,
    #[module(skip)]
    kind: PredictionType,
}

impl Net {
    fn new(width: usize) -> Self {
        let device = Device::flex();
        let layer = |inputs, outputs| LinearConfig::new(inputs, outputs).init(&device);
        let net = Self {
            first: layer(4, width),
            second: layer(width, width),
            third: layer(width, 3),
            kind: PredictionType::Epsilon,
        };
        seeded(net, 1)
    }
}

impl Denoiser<2> for Net {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let time = (timesteps / 1000.0).unsqueeze_dim(1);
        let hidden = self.first.forward(Tensor::cat(vec![noisy, time], 1));
        self.third
            .forward(self.second.forward(hidden.tanh()).tanh())
    }

    fn prediction_type(&self) -> PredictionType {
        self.kind
    }
}

/// Hidden units of the small model, and of the large one.
const SMALL: usize = 8;
const LARGE: usize = 160;
const BATCH: usize = 8;

type Builder = SissTrainerBuilder<Net, 2>;

fn falling() -> ModuleLrScheduler {
    let falling = LinearLrSchedulerConfig::new(1e-2, 1e-4, 500);
    falling.init().unwrap()
}

/// A trainer in which everything with a state is in use: average, momenta, a clipper with memory, a
/// falling rate.
fn builder(width: usize) -> Builder {
    builder_of(Net::new(width))
}

fn builder_of(model: Net) -> Builder {
    SissTrainer::builder(model, DdpmScheduler::linear(1000).unwrap())
        .learning_rate(falling())
        .clipper(FractionOfRetain::new(0.1).unwrap())
        .ema(0.99)
        .seed(3)
}

fn pairs() -> PairSampler<2> {
    let device = Device::flex();
    let points = |part, count| normal_noise([count, 3], 5, part, 0, Stream::Evaluation, &device);
    PairSampler::new(points(0, 50), points(1, 4) + 3.0, 9).unwrap()
}

fn take_step(trainer: &mut SissTrainer<Net, 2>) {
    let batch = pairs().batch(trainer.next_step(), BATCH).unwrap();
    trainer.step(batch).unwrap();
}

/// A typical program: resumes if there is a checkpoint, logs, saves every few steps, writes its
/// model.
fn run(folder: &Path, steps: u64, every: u64, keep: usize) {
    fs::create_dir_all(folder).unwrap();
    let log = JsonLog::open(folder.join("log.jsonl")).unwrap();
    let mut trainer = builder(SMALL).observer(log).build().unwrap();
    let mut checkpoints = Checkpoints::new(folder.join("checkpoints"))
        .unwrap()
        .keep(keep)
        .setting("batch", &BATCH)
        .unwrap();
    if let Some(resumed) = checkpoints.resume(&mut trainer).unwrap() {
        assert_eq!(resumed.step, trainer.next_step());
        let state: BTreeMap<String, u64> = resumed.state().unwrap();
        assert_eq!(state["saved_at"], resumed.step);
    }
    while trainer.next_step() < steps {
        take_step(&mut trainer);
        if trainer.next_step().is_multiple_of(every) {
            let state = BTreeMap::from([("saved_at", trainer.next_step())]);
            checkpoints.save(&mut trainer, &state).unwrap();
        }
    }
    let average = model_fingerprint(&trainer.ema_model().unwrap()).unwrap();
    let model = model_fingerprint(&trainer.into_model()).unwrap();
    fs::write(folder.join("model"), format!("{model}\n{average}\n")).unwrap();
}

/// Every file below a folder, by its path.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

fn assert_same_tree(found: &Path, expected: &Path) -> usize {
    let (found, expected) = (tree(found), tree(expected));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{} differs", name.display());
    }
    expected.len()
}

/// The number of repetitions in the short or the long form.
fn times(short: usize, long: usize) -> usize {
    match std::env::var_os("SISS_SOAK") {
        Some(value) if value == "1" => long,
        _ => short,
    }
}

/// The variable that turns a test into the process to be killed: the folder in which it works.
const VICTIM: &str = "SISS_TEST_VICTIM";

fn victim() -> Option<PathBuf> {
    std::env::var_os(VICTIM).map(PathBuf::from)
}

/// This test again, as a process of its own.
fn again(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(VICTIM, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Kills a process by SIGKILL, unless it has ended by itself. Returns whether it was killed.
fn kill(mut child: Child) -> bool {
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(code) => {
            assert_eq!(code, 0, "{errors}");
            false
        }
        None => true,
    }
}

fn random(seed: u64) -> impl Rng {
    keyed_rng(seed, 0, 0, Stream::Evaluation)
}

#[test]
fn a_run_killed_at_random_moments_leaves_the_bytes_of_one_that_was_not() {
    const STEPS: u64 = 150;
    let work = |folder: &Path| run(folder, STEPS, 4, 3);
    if let Some(folder) = victim() {
        return work(&folder);
    }
    let scratch = tempfile::tempdir().unwrap();
    let whole = scratch.path().join("whole");
    work(&whole);

    let (wanted, mut kills, mut runs, mut files) = (times(5, 100), 0, 0, 0);
    let mut random = random(1);
    while kills < wanted {
        let folder = scratch.path().join("killed");
        let mut of_this_run = 0;
        loop {
            let test = "a_run_killed_at_random_moments_leaves_the_bytes_of_one_that_was_not";
            let child = again(test, &folder).spawn().unwrap();
            // A run that is always killed early never ends, so the time allowed grows with each
            // kill.
            let longest = 100 + 40 * of_this_run;
            std::thread::sleep(Duration::from_millis(random.random_range(0..longest)));
            if !kill(child) {
                break;
            }
            of_this_run += 1;
        }
        files = assert_same_tree(&folder, &whole);
        fs::remove_dir_all(&folder).unwrap();
        (kills, runs) = (kills + of_this_run as usize, runs + 1);
    }
    println!("{kills} kills in {runs} runs of {STEPS} steps; all {files} files equal each time");
}

#[test]
fn a_save_killed_at_random_moments_leaves_a_whole_checkpoint() {
    const STEPS: u64 = 60;
    const TEST: &str = "a_save_killed_at_random_moments_leaves_a_whole_checkpoint";
    /// Saves after every step, and reports each save that has returned.
    fn work(folder: &Path, mut saved: impl FnMut(u64, &Path)) {
        let mut trainer = builder(LARGE).build().unwrap();
        let checkpoints = Checkpoints::new(folder.join("checkpoints")).unwrap();
        let mut checkpoints = checkpoints.keep(2);
        checkpoints.resume(&mut trainer).unwrap();
        while trainer.next_step() < STEPS {
            take_step(&mut trainer);
            let path = checkpoints.save(&mut trainer, &()).unwrap();
            saved(trainer.next_step(), &path);
        }
    }
    if let Some(folder) = victim() {
        let mut acknowledged = OpenOptions::new();
        let file = acknowledged.append(true).create(true);
        let mut file = file.open(folder.join("acknowledged")).unwrap();
        return work(&folder, |step, _| writeln!(file, "{step}").unwrap());
    }
    let scratch = tempfile::tempdir().unwrap();
    // The manifest contains the digest of every file: equal manifests mean equal checkpoints.
    let mut expected = BTreeMap::new();
    work(&scratch.path().join("whole"), |step, path| {
        expected.insert(step, fs::read(path.join("manifest.json")).unwrap());
    });

    let folder = scratch.path().join("killed");
    fs::create_dir(&folder).unwrap();
    let acknowledged = || -> Vec<u64> {
        let text = fs::read_to_string(folder.join("acknowledged")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let wanted = times(50, 1000);
    let (mut kills, mut in_the_middle, mut looked_at) = (0, 0, 0);
    let mut random = random(2);
    while kills < wanted {
        let before = acknowledged().len();
        let child = again(TEST, &folder).spawn().unwrap();
        let began = Instant::now();
        while acknowledged().len() == before && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..30_000)));
        if kill(child) {
            kills += 1;
        }
        let names = fs::read_dir(folder.join("checkpoints")).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        let is = |name: &OsStr, start: &str| name.to_string_lossy().starts_with(start);
        in_the_middle += usize::from(names.iter().any(|name| is(name, ".scratch-write")));
        for name in names.iter().filter(|name| is(name, "step-")) {
            let step: u64 = name.to_string_lossy()[5..].parse().unwrap();
            let manifest = folder.join("checkpoints").join(name).join("manifest.json");
            assert_eq!(fs::read(manifest).unwrap(), expected[&step]);
            looked_at += 1;
        }
        let latest = Checkpoints::new(folder.join("checkpoints"))
            .unwrap()
            .latest();
        let latest = latest.unwrap().unwrap();
        assert_eq!(latest.passed_over, []);
        assert!(latest.step >= *acknowledged().last().unwrap());
        if latest.step == STEPS {
            fs::remove_dir_all(&folder).unwrap();
            fs::create_dir(&folder).unwrap();
        }
    }
    assert!(in_the_middle > 0);
    println!(
        "{kills} kills, {in_the_middle} of them in the middle of a save; {looked_at} checkpoints looked at, none lost or unreadable"
    );
}

/// Checkpoints of steps 4 and 8 of the large model.
fn two_checkpoints(folder: &Path) -> [PathBuf; 2] {
    let mut trainer = builder(LARGE).build().unwrap();
    let mut checkpoints = Checkpoints::new(folder).unwrap();
    [4, 8].map(|step| {
        while trainer.next_step() < step {
            take_step(&mut trainer);
        }
        checkpoints.save(&mut trainer, &()).unwrap()
    })
}

/// Asserts that the newest checkpoint is skipped in favour of the one before.
fn assert_caught(checkpoints: &Checkpoints, newest: &Path, what: &str) {
    let found = checkpoints.latest().unwrap().unwrap();
    assert_eq!(found.step, 4, "{what} was not seen");
    assert_eq!(found.passed_over.len(), 1);
    assert_eq!(found.passed_over[0].path, newest);
    assert!(!found.passed_over[0].reason.is_empty());
}

#[test]
fn every_truncation_and_every_flipped_bit_is_caught() {
    let scratch = tempfile::tempdir().unwrap();
    let [_, newest] = two_checkpoints(scratch.path());
    let checkpoints = Checkpoints::new(scratch.path()).unwrap();
    let files: Vec<(PathBuf, Vec<u8>)> = tree(&newest)
        .into_iter()
        .map(|(name, bytes)| (newest.join(name), bytes))
        .collect();
    assert_eq!(files.len(), 5);

    let mut truncations = 0;
    for (path, bytes) in &files {
        let ends = (0..bytes.len()).step_by(4096).chain([bytes.len() - 1]);
        for length in ends {
            fs::write(path, &bytes[..length]).unwrap();
            let what = format!("{} cut at {length}", path.display());
            assert_caught(&checkpoints, &newest, &what);
            truncations += 1;
        }
        fs::remove_file(path).unwrap();
        assert_caught(&checkpoints, &newest, "a missing file");
        fs::write(path, bytes).unwrap();
    }

    let mut random = random(3);
    const FLIPS: usize = 1000;
    for flip in 0..FLIPS {
        let (path, bytes) = &files[flip % files.len()];
        let (index, bit) = (random.random_range(0..bytes.len()), flip / files.len() % 8);
        let mut flipped = bytes.clone();
        flipped[index] ^= 1 << bit;
        fs::write(path, flipped).unwrap();
        let what = format!("bit {bit} of byte {index} of {}", path.display());
        assert_caught(&checkpoints, &newest, &what);
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(checkpoints.latest().unwrap().unwrap().step, 8);
    println!("{truncations} truncations and {FLIPS} flipped bits of 5 files caught");
}

#[test]
fn a_torn_newest_checkpoint_costs_its_steps_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let (whole, torn) = (scratch.path().join("whole"), scratch.path().join("torn"));
    run(&whole, 40, 4, 3);
    run(&torn, 30, 4, 3);
    // Before its last steps, the newest checkpoint is that of step 28.
    let newest = torn.join("checkpoints/step-0000000028/optimizer.bpk");
    let bytes = fs::read(&newest).unwrap();
    fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let mut checkpoints = Checkpoints::new(torn.join("checkpoints"))
        .unwrap()
        .setting("batch", &BATCH)
        .unwrap();
    let resumed = checkpoints.resume(&mut builder(SMALL).build().unwrap());
    let resumed = resumed.unwrap().unwrap();
    assert_eq!((resumed.step, resumed.passed_over.len()), (24, 1));
    let reason = resumed.passed_over[0].to_string();
    assert!(
        reason.contains("step-0000000028: optimizer.bpk has"),
        "{reason}"
    );
    drop(checkpoints);

    run(&torn, 40, 4, 3);
    assert_same_tree(&torn, &whole);
}

#[test]
fn where_no_checkpoint_is_whole_nothing_is_begun_afresh() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    for path in two_checkpoints(folder) {
        fs::write(path.join("model.bpk"), "").unwrap();
    }
    let mut checkpoints = Checkpoints::new(folder).unwrap();
    let mut trainer = builder(LARGE).build().unwrap();
    let error = checkpoints.resume(&mut trainer).unwrap_err();
    let Error::NoUsableCheckpoint { passed_over, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(passed_over.len(), 2);
    assert!(
        error
            .to_string()
            .contains("step-0000000008: model.bpk has 0 bytes"),
        "{error}"
    );
    assert_eq!(trainer.next_step(), 0);
}

/// A clipper whose scale is never usable: each step is skipped.
#[derive(Debug)]
struct NoNumber;

impl GradientClipper for NoNumber {
    fn name(&self) -> &'static str {
        "NoNumber"
    }

    fn settings(&self) -> String {
        "NoNumber".into()
    }

    fn needs(&self, _: Side) -> bool {
        false
    }

    fn coefficients(&mut self, _: &GradientNorms) -> siss::Result<Coefficients> {
        Ok(Coefficients {
            retain: f64::NAN,
            forget: f64::NAN,
        })
    }
}

#[test]
fn steps_skipped_in_a_row_are_counted_on() {
    let scratch = tempfile::tempdir().unwrap();
    let trainer = || builder(SMALL).clipper(NoNumber).max_skipped_steps(3);
    let mut first = trainer().build().unwrap();
    take_step(&mut first);
    take_step(&mut first);
    let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
    checkpoints.save(&mut first, &()).unwrap();
    let mut second = trainer().build().unwrap();
    checkpoints.resume(&mut second).unwrap().unwrap();
    for trainer in [&mut first, &mut second] {
        let batch = pairs().batch(2, BATCH).unwrap();
        let error = trainer.step(batch).unwrap_err();
        assert!(
            matches!(error, Error::TooManySkippedSteps { steps: 3, .. }),
            "{error}"
        );
    }
}

#[test]
fn the_last_n_are_kept() {
    for keep in [0, 1, 2, 5] {
        let scratch = tempfile::tempdir().unwrap();
        run(scratch.path(), 30, 3, keep);
        let names = fs::read_dir(scratch.path().join("checkpoints")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
        names.sort();
        // At least one is kept.
        let first = 10 - keep.max(1) as u64 + 1;
        let expected: Vec<_> = (first..=10)
            .map(|k| format!("step-{:010}", 3 * k))
            .collect();
        assert_eq!(names, expected);
    }
}

#[test]
fn what_differs_is_named_with_both_values() {
    let scratch = tempfile::tempdir().unwrap();
    let new = |batch: usize| {
        let checkpoints = Checkpoints::new(scratch.path()).unwrap();
        checkpoints.setting("batch", &batch).unwrap()
    };
    let mut trainer = builder(SMALL).build().unwrap();
    let mut checkpoints = new(BATCH);
    take_step(&mut trainer);
    checkpoints.save(&mut trainer, &()).unwrap();
    drop(checkpoints);

    let adam = AdamWConfig::new().with_beta_1(0.9).init();
    let narrow = || ParamGroup::from_predicate("second");
    let velocity = Net {
        kind: PredictionType::Velocity,
        ..Net::new(SMALL)
    };
    let other_process = SissTrainer::builder(Net::new(SMALL), FlowMatching::default());
    let cases: Vec<(&str, Builder, &str)> = vec![
        ("seed", builder(SMALL).seed(4), "seed was 3 and is 4"),
        (
            "average",
            builder(SMALL).ema(0.5),
            "ema_decay was 0.99 and is 0.5",
        ),
        (
            "clip",
            builder(SMALL).max_grad_norm(None),
            "max_grad_norm was 1.0 and is null",
        ),
        (
            "thinning",
            builder(SMALL).thin_below(0.0),
            "thin_below was 1.0 and is 0.0",
        ),
        (
            "rate",
            builder(SMALL).learning_rate(1e-3),
            "learning_rate was",
        ),
        (
            "rate of a group",
            builder(SMALL).learning_rate(falling().with_group(narrow(), 0.5)),
            "learning_rate of second.weight was absent and is 0.5",
        ),
        (
            "objective",
            builder(SMALL).method(Method::SissNoIs),
            "objective was SISS and is SISS (No IS)",
        ),
        (
            "clipper",
            builder(SMALL).clipper(FractionOfRetain::new(0.2).unwrap()),
            "clipper was FractionOfRetain, fraction 0.1 and is FractionOfRetain, fraction 0.2",
        ),
        (
            "optimizer",
            builder(SMALL).optimizer(adam),
            "optimizer (its first three steps) was",
        ),
        (
            "process",
            other_process,
            "scheduler.time_range was 0, 1, …, 999",
        ),
        (
            "prediction type",
            builder_of(velocity),
            "prediction_type was epsilon and is velocity",
        ),
        (
            "shape",
            builder(9),
            "parameter first.weight was f32 [4, 8], trained and is f32 [4, 9], trained",
        ),
        (
            "frozen",
            builder(SMALL).train_only(narrow()),
            "first.bias was f32 [8], trained and is f32 [8], fixed",
        ),
        (
            "steered",
            builder(SMALL).steering(small::level(1.0)),
            "steering.levels was absent",
        ),
        (
            "mixture",
            builder(SMALL)
                .loss(Siss)
                .sampler(siss::draws::CoinFlip::new(0.25).unwrap()),
            "sampler was FixedAllocation",
        ),
    ];
    let count = cases.len() + 1;
    for (name, builder, expected) in cases {
        let mut trainer = builder.build().unwrap();
        let before = model_fingerprint(trainer.model()).unwrap();
        let mut checkpoints = new(BATCH);
        let error = checkpoints.resume(&mut trainer).unwrap_err();
        assert!(
            matches!(error, Error::CheckpointDiffers { .. }),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert!(
            error.to_string().contains("step-0000000001"),
            "{name}: {error}"
        );
        assert_eq!(trainer.next_step(), 0);
        assert_eq!(model_fingerprint(trainer.model()).unwrap(), before);
        // It does not write into the other run either.
        let error = checkpoints.save(&mut trainer, &()).unwrap_err();
        assert!(matches!(error, Error::AnotherRun { .. }), "{error}");
        assert!(error.to_string().contains("does not continue"), "{error}");
    }
    let error = new(16)
        .resume(&mut builder(SMALL).build().unwrap())
        .unwrap_err();
    assert!(
        error.to_string().contains("program.batch was 8 and is 16"),
        "{error}"
    );
    println!("{count} other configurations refused by name");

    let mut same = builder(SMALL).build().unwrap();
    assert_eq!(new(BATCH).resume(&mut same).unwrap().unwrap().step, 1);
    let error = new(BATCH).resume(&mut same).unwrap_err();
    assert!(
        matches!(error, Error::AlreadyStarted { steps: 1 }),
        "{error}"
    );
    assert!(error.to_string().contains("has taken 1 step;"), "{error}");
}

/// A model with a text prompt for each point, whose letters it counts.
#[derive(Module, Debug)]
struct Prompted {
    layer: Linear,
}

impl Denoiser<2> for Prompted {
    type Condition = Vec<String>;

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, prompts: &Vec<String>) -> Tensor<2> {
        let letters: Vec<f32> = prompts.iter().map(|prompt| prompt.len() as f32).collect();
        let letters = Tensor::<1>::from_data(letters.as_slice(), &noisy.device()) / 100.0;
        let input = Tensor::cat(vec![noisy, letters.unsqueeze_dim(1)], 1);
        self.layer.forward(input)
    }
}

#[test]
fn a_run_resumed_with_other_prompts_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let trainer = || {
        let layer = LinearConfig::new(4, 3).init(&device);
        let model = seeded(Prompted { layer }, 1);
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        SissTrainer::builder(model, scheduler).build().unwrap()
    };
    let pairs = |retain: [&str; 3], forget: &str| {
        let points =
            |part, count| normal_noise([count, 3], 5, part, 0, Stream::Evaluation, &device);
        let retain_prompts = retain.map(String::from).to_vec();
        let forget_prompts = vec![forget.to_owned()];
        PairSampler::with_conditions(
            points(0, 3),
            points(1, 1),
            retain_prompts,
            forget_prompts,
            9,
        )
        .unwrap()
    };
    let checkpoints = |pairs: &PairSampler<2, Vec<String>>| {
        let checkpoints = Checkpoints::new(scratch.path()).unwrap();
        let fingerprint = pairs.fingerprint().unwrap();
        checkpoints.setting("pairs", &fingerprint).unwrap()
    };
    let animals = ["a dog", "a cat", "a hat"];
    let own = pairs(animals, "a face");
    let mut run = trainer();
    run.step(own.batch(0, BATCH).unwrap()).unwrap();
    checkpoints(&own).save(&mut run, &()).unwrap();
    for (retain, forget) in [
        (["a dog", "a hat", "a cat"], "a face"),
        (animals, "a place"),
    ] {
        let error = checkpoints(&pairs(retain, forget)).resume(&mut trainer());
        let Err(Error::CheckpointDiffers { differences, .. }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].setting, "program.pairs");
        assert_eq!(differences[0].saved, own.fingerprint().ok());
    }
    let resumed = checkpoints(&pairs(animals, "a face")).resume(&mut trainer());
    assert_eq!(resumed.unwrap().unwrap().step, 1);
}

#[test]
fn the_programs_state_comes_back_as_its_own_type_or_not_at_all() {
    let scratch = tempfile::tempdir().unwrap();
    let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
    let mut run = builder(SMALL).build().unwrap();
    take_step(&mut run);
    let state = (7_u32, vec!["a".to_owned()]);
    checkpoints.save(&mut run, &state).unwrap();
    let mut again = builder(SMALL).build().unwrap();
    let resumed = checkpoints.resume(&mut again).unwrap().unwrap();
    assert_eq!(resumed.state::<(u32, Vec<String>)>().unwrap(), state);
    let error = resumed.state::<BTreeMap<String, u64>>().unwrap_err();
    assert!(
        matches!(&error, Error::InvalidFile { path, .. } if *path == resumed.path),
        "{error}"
    );
}

/// A run that ran out of memory is resumed with smaller micro-batches.
#[test]
fn a_resumed_run_may_change_what_changes_memory_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let mut whole = builder(SMALL).build().unwrap();
    let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
    for _ in 0..3 {
        take_step(&mut whole);
    }
    checkpoints.save(&mut whole, &()).unwrap();
    let leaner = builder(SMALL)
        .micro_batch_size(2)
        .gradient_checkpointing(true)
        .max_skipped_steps(3);
    let mut leaner = leaner.build().unwrap();
    assert_eq!(checkpoints.resume(&mut leaner).unwrap().unwrap().step, 3);
    for _ in 0..3 {
        take_step(&mut whole);
        take_step(&mut leaner);
    }
    let weights = |trainer: SissTrainer<Net, 2>| trainer.into_model().first.weight.val();
    let difference: f32 = (weights(whole) - weights(leaner)).abs().max().into_scalar();
    assert!(difference < 1e-5, "{difference}");
}

/// A steering whose factor is a setting.
#[derive(Debug)]
struct Factor(f64);

impl SteeringRule for Factor {
    fn name(&self) -> &'static str {
        "Factor"
    }

    fn settings(&self) -> String {
        format!("Factor {}", self.0)
    }

    fn factors(&self, losses: Tensor<1>, _: Tensor<1>, _: Tensor<1>) -> Tensor<1> {
        losses.zeros_like() + self.0
    }
}

#[test]
fn a_log_that_lost_lines_is_not_gone_on_with() {
    let scratch = tempfile::tempdir().unwrap();
    run(scratch.path(), 10, 5, 3);
    let path = scratch.path().join("log.jsonl");
    fs::write(&path, "").unwrap();
    let log = JsonLog::open(&path).unwrap();
    let mut trainer = builder(SMALL).observer(log).build().unwrap();
    let checkpoints = Checkpoints::new(scratch.path().join("checkpoints")).unwrap();
    let mut checkpoints = checkpoints.setting("batch", &BATCH).unwrap();
    let error = checkpoints.resume(&mut trainer).unwrap_err();
    assert!(error.to_string().contains("log.jsonl"), "{error}");
    assert_eq!(trainer.next_step(), 0);
}

#[test]
fn of_two_writers_the_second_is_refused() {
    let test = "of_two_writers_the_second_is_refused";
    if let Some(folder) = victim() {
        let error = Checkpoints::new(&folder).unwrap_err();
        assert!(matches!(error, Error::FolderInUse { .. }), "{error}");
        assert!(
            error.to_string().contains(folder.to_str().unwrap()),
            "{error}"
        );
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let first = Checkpoints::new(scratch.path()).unwrap();
    // In the same process and in another one.
    assert!(matches!(
        Checkpoints::new(scratch.path()),
        Err(Error::FolderInUse { .. })
    ));
    assert_success(again(test, scratch.path()).output().unwrap());
    drop(first);
    Checkpoints::new(scratch.path()).unwrap();
}

fn assert_success(output: Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// Resumes from the checkpoints in a folder that cannot be written now: the error is typed and
/// names the path, and the last checkpoint is unchanged.
fn save_fails(folder: &Path) -> Error {
    let mut checkpoints = Checkpoints::new(folder).unwrap();
    let mut trainer = builder(LARGE).build().unwrap();
    assert_eq!(checkpoints.resume(&mut trainer).unwrap().unwrap().step, 8);
    take_step(&mut trainer);
    let error = checkpoints.save(&mut trainer, &()).unwrap_err();
    let Error::Io { path, .. } = &error else {
        panic!("{error}");
    };
    assert!(path.starts_with(folder), "{error}");
    let latest = checkpoints.latest().unwrap().unwrap();
    assert_eq!((latest.step, latest.passed_over.len()), (8, 0));
    error
}

#[cfg(unix)]
#[test]
fn a_limit_on_the_size_of_files_leaves_the_last_checkpoint() {
    if let Some(folder) = victim() {
        let error = save_fails(&folder);
        assert!(error.to_string().contains("writing"), "{error}");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    two_checkpoints(scratch.path());
    let direct = again(
        "a_limit_on_the_size_of_files_leaves_the_last_checkpoint",
        scratch.path(),
    );
    // The shell limits files to 50 or 100 kB; the signal sent at the limit is ignored.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -f 100 && trap '' XFSZ && exec \"$0\" \"$@\""])
        .arg(direct.get_program())
        .args(direct.get_args())
        .env(VICTIM, scratch.path());
    assert_success(limited.output().unwrap());
    // The disk has space again.
    let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
    let mut trainer = builder(LARGE).build().unwrap();
    checkpoints.resume(&mut trainer).unwrap().unwrap();
    take_step(&mut trainer);
    checkpoints.save(&mut trainer, &()).unwrap();
    assert_eq!(checkpoints.latest().unwrap().unwrap().step, 9);
}

/// A separate file system, where mounting is permitted.
#[cfg(target_os = "linux")]
struct Mount(PathBuf);

#[cfg(target_os = "linux")]
impl Mount {
    fn new(folder: &Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let mounted = command.arg(folder).output().ok()?.status.success();
        mounted.then(|| Self(folder.into()))
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let mut command = Command::new("mount");
        assert_success(
            command
                .args(["-o", &options])
                .arg(&self.0)
                .output()
                .unwrap(),
        );
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn places_that_cannot_be_written_are_named_and_a_full_disk_leaves_the_last_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let mut faults = 0;
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let long = scratch.path().join("x".repeat(300));
    let places = [
        &file,
        &file.join("below"),
        &long,
        Path::new("/proc/siss"),
        Path::new("/sys/siss"),
        Path::new("/dev/null"),
    ];
    for place in places {
        let error = Checkpoints::new(place).unwrap_err();
        let Error::Io { path, .. } = &error else {
            panic!("{error}");
        };
        assert!(path.starts_with(place), "{error}");
        assert!(
            error.to_string().contains(place.to_str().unwrap()),
            "{error}"
        );
        faults += 1;
    }

    let folder = scratch.path().join("mount");
    fs::create_dir(&folder).unwrap();
    let Some(mount) = Mount::new(&folder, "4m") else {
        println!("{faults} faults; mounting is not permitted here, so no disk was filled");
        return;
    };
    let checkpoints = folder.join("checkpoints");
    let path = two_checkpoints(&checkpoints)[1].clone();
    let used: u64 = tree(&path).values().map(|bytes| bytes.len() as u64).sum();
    // The disk is full at each of its files in turn.
    for room in [0, 1, 4, 8].map(|part| part * used / 10) {
        let free = (4 << 20) - 2 * used - 64 * 1024 - room;
        fs::write(folder.join("ballast"), vec![1; free as usize]).unwrap();
        let error = save_fails(&checkpoints).to_string();
        assert!(error.contains("No space left"), "{error}");
        faults += 1;
    }
    fs::remove_file(folder.join("ballast")).unwrap();
    // Opened while the folder was still writable.
    let mut open = Checkpoints::new(&checkpoints).unwrap();
    let mut trainer = builder(LARGE).build().unwrap();
    open.resume(&mut trainer).unwrap().unwrap();
    take_step(&mut trainer);
    drop(open);
    mount.remount("ro");
    let error = Checkpoints::new(&checkpoints).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(error.to_string().contains("Read-only"), "{error}");
    faults += 1;
    mount.remount("rw");
    assert_eq!(
        Checkpoints::new(&checkpoints)
            .unwrap()
            .latest()
            .unwrap()
            .unwrap()
            .step,
        8
    );
    println!(
        "{faults} faults, each a typed error with its path, the last checkpoint whole after each"
    );
}

/// The folders of checkpoints, in the order of their steps.
fn folders(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("step-")).collect();
    names.sort();
    names
}

#[test]
fn a_torn_checkpoint_goes_when_its_step_has_passed_or_is_written_anew() {
    for steps in [[5, 9], [5, 8]] {
        let scratch = tempfile::tempdir().unwrap();
        let [_, torn] = two_checkpoints(scratch.path());
        fs::write(torn.join("model.bpk"), "").unwrap();
        let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
        let mut trainer = builder(LARGE).build().unwrap();
        assert_eq!(checkpoints.resume(&mut trainer).unwrap().unwrap().step, 4);
        let mut found = Vec::new();
        for step in steps {
            while trainer.next_step() < step {
                take_step(&mut trainer);
            }
            checkpoints.save(&mut trainer, &()).unwrap();
            found.push(folders(scratch.path()));
        }
        let name = |step: u64| format!("step-{step:010}");
        assert_eq!(found[0], [4, 5, 8].map(name));
        assert_eq!(found[1], [4, 5, steps[1]].map(name));
        let latest = checkpoints.latest().unwrap().unwrap();
        assert_eq!((latest.step, latest.passed_over.len()), (steps[1], 0));
    }
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    let [_, newest] = two_checkpoints(scratch.path());
    let renamed = newest.with_file_name("step-0000000012");
    fs::rename(&newest, &renamed).unwrap();
    let checkpoints = Checkpoints::new(scratch.path()).unwrap();
    assert_caught(&checkpoints, &renamed, "another name");
}

#[test]
fn a_rate_that_differs_later_and_another_steering_rule_are_seen() {
    let scratch = tempfile::tempdir().unwrap();
    let falling = |steps| {
        LinearLrSchedulerConfig::new(1e-2, 1e-4, steps)
            .init()
            .unwrap()
    };
    let levels = || small::level(1.0).levels().clone();
    let built = |steps, steering| {
        let builder = builder(SMALL).learning_rate(falling(steps));
        builder.steering(steering).build().unwrap()
    };
    let mut trainer = built(500, Steering::new(levels()));
    let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
    take_step(&mut trainer);
    checkpoints.save(&mut trainer, &()).unwrap();
    drop(checkpoints);
    for (mut other, expected) in [
        (built(50, Steering::new(levels())), "learning_rate was"),
        (
            built(500, Steering::new(levels()).with_rule(HardStop)),
            "steering.rule was Proportional and is HardStop",
        ),
        (
            built(500, Steering::new(levels()).with_rule(Factor(0.5))),
            "steering.rule was Proportional and is Factor(0.5)",
        ),
    ] {
        let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
        let error = checkpoints.resume(&mut other).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A component with a state: the number of its calls. Copies share it.
#[derive(Debug, Clone, Default)]
struct Calls(Arc<Mutex<f64>>);

impl Calls {
    fn count(&self) -> f64 {
        *self.0.lock().unwrap()
    }

    fn set(&self, count: f64) {
        *self.0.lock().unwrap() = count;
    }
}

impl GradientClipper for Calls {
    fn name(&self) -> &'static str {
        "Calls"
    }

    fn settings(&self) -> String {
        "Calls".into()
    }

    fn needs(&self, _: Side) -> bool {
        false
    }

    fn coefficients(&mut self, _: &GradientNorms) -> siss::Result<Coefficients> {
        self.set(self.count() + 1.0);
        Ok(Coefficients {
            retain: 1.0,
            forget: 0.1,
        })
    }

    fn state(&self) -> Vec<f64> {
        vec![self.count()]
    }

    fn restore(&mut self, state: &[f64]) -> siss::Result<()> {
        self.set(state[0]);
        Ok(())
    }
}

impl SissLoss<2> for Calls {
    fn name(&self) -> &'static str {
        "Calls"
    }

    fn has_term(&self, _: Side) -> bool {
        true
    }

    fn terms(&mut self, inputs: &LossInputs<'_, 2>) -> siss::Result<LossTerms<2>> {
        self.set(self.count() + 1.0);
        Ok(LossTerms {
            retain: Some(inputs.plain_term(Side::Retain, 1.0)),
            forget: Some(inputs.plain_term(Side::Forget, -1.0)),
        })
    }

    fn state(&self) -> Vec<f64> {
        vec![self.count()]
    }

    fn restore(&mut self, state: &[f64]) -> siss::Result<()> {
        self.set(state[0]);
        Ok(())
    }
}

/// A component that records the calls it receives, and optionally fails to restore its state.
#[derive(Debug, Clone, Default)]
struct Asked {
    what: Arc<Mutex<Vec<String>>>,
    is_stuck: bool,
}

impl Asked {
    fn note(&self, what: String) {
        self.what.lock().unwrap().push(what);
    }
}

impl Observer for Asked {
    fn observe(&mut self, report: &StepReport) -> siss::Result<()> {
        self.note(format!("observe {}", report.step));
        Ok(())
    }

    fn persist(&mut self) -> siss::Result<()> {
        self.note("persist".into());
        Ok(())
    }

    fn rewind(&mut self, next_step: u64) -> siss::Result<()> {
        self.note(format!("rewind {next_step}"));
        match self.is_stuck {
            true => Err(Error::Observer("it cannot go back".into())),
            false => Ok(()),
        }
    }
}

#[test]
fn parts_with_a_state_go_on_from_it_and_are_as_before_where_resuming_fails() {
    let scratch = tempfile::tempdir().unwrap();
    let trainer = |clipper: &Calls, loss: &Calls, observer: &Asked| {
        let builder = builder(SMALL).clipper(clipper.clone()).loss(loss.clone());
        builder.observer(observer.clone()).build().unwrap()
    };
    let (clipper, loss, observer) = (Calls::default(), Calls::default(), Asked::default());
    let mut first = trainer(&clipper, &loss, &observer);
    let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
    assert!(checkpoints.resume(&mut first).unwrap().is_none());
    loss.set(10.0);
    take_step(&mut first);
    take_step(&mut first);
    checkpoints.save(&mut first, &()).unwrap();
    assert_eq!((clipper.count(), loss.count()), (2.0, 12.0));
    let asked = observer.what.lock().unwrap().clone();
    assert_eq!(asked, ["rewind 0", "observe 0", "observe 1", "persist"]);

    for is_stuck in [true, false] {
        let (clipper, loss) = (Calls::default(), Calls::default());
        let observer = Asked {
            is_stuck,
            ..Asked::default()
        };
        let mut second = trainer(&clipper, &loss, &observer);
        let resumed = checkpoints.resume(&mut second);
        assert_eq!(observer.what.lock().unwrap()[..], ["rewind 2"]);
        if is_stuck {
            assert!(matches!(resumed, Err(Error::Observer(_))));
            assert_eq!((clipper.count(), loss.count()), (0.0, 0.0));
        } else {
            assert_eq!(resumed.unwrap().unwrap().step, 2);
            assert_eq!((clipper.count(), loss.count()), (2.0, 12.0));
        }
    }
}
