//! Models of several kinds memorise a point and unlearn it: the crate depends on no rank,
//! condition, forward process or prediction type.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv3d, Conv3dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig3d};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor};
use siss::answer::{PredictedAnswer, PredictedAnswerConfig};
use siss::clipper::FractionOfRetain;
use siss::draws::{Draws, Stream, TimestepSampling, normal_noise};
use siss::evaluate::{AnswerDistance, DenoisingLoss};
use siss::objective::{Answers, LossInputs, ReTrack, Siss};
use siss::observer::StepOutcome;
use siss::process::{SchedulerConfig, SchedulerExt, TimeRange};
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData};
use siss::trainer::SissTrainerBuilder;
use siss::*;
use siss_support::small::*;

const SEED: u64 = 5;
const BATCH: usize = 32;

/// Clean points, each with its condition.
struct Points<const D: usize, C = ()> {
    clean: Tensor<D>,
    condition: C,
}

impl<const D: usize, C: Condition> Points<D, C> {
    fn count(&self) -> usize {
        self.clean.dims()[0]
    }

    /// The rows of a step, as a list.
    fn rows(&self, step: u64) -> Vec<usize> {
        let first = step as usize * BATCH;
        (first..first + BATCH)
            .map(|row| row % self.count())
            .collect()
    }

    fn select(&self, rows: &[usize]) -> Self {
        Self {
            clean: Condition::take_rows(&self.clean, rows),
            condition: self.condition.take_rows(rows),
        }
    }
}

/// The training data of a model: many points, and one that is repeated.
struct Case<M: Denoiser<D>, const D: usize> {
    model: M,
    rest: Points<D, M::Condition>,
    memorised: Points<D, M::Condition>,
    training_steps: u64,
    unlearning_steps: u64,
}

/// Shares of the time range at which losses are measured.
const SHARES: [f64; 8] = [0.05, 0.15, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95];

/// Denoising losses over the whole time range.
#[derive(Debug)]
struct Losses {
    rest: f64,
    memorised: f64,
}

impl<M: Denoiser<D>, const D: usize> Case<M, D> {
    /// Mean squared error at timesteps across the whole range.
    fn loss(
        &self,
        model: &M,
        process: &dyn Scheduler,
        points: &Points<D, M::Condition>,
        step: u64,
    ) -> Tensor<1> {
        let (shape, device) = (points.clean.dims(), points.clean.device());
        let range = process.time_range();
        let times = TimestepSampling::LowDiscrepancy.timesteps(range, shape[0], SEED, step);
        let noise = normal_noise(shape, SEED, step, 0, Stream::Evaluation, &device);
        let scales = process.scales(&times).unwrap();
        let noisy = process
            .add_noise(points.clean.clone(), noise.clone(), &times)
            .unwrap();
        let target = model.prediction_type().target(
            points.clean.clone(),
            noise,
            scales.signal_tensor(&device),
            scales.noise_tensor(&device),
        );
        let times = scalars(&times, &device).squeeze_dim(1);
        let prediction = model.predict(noisy, times, &points.condition);
        (prediction - target).square().mean()
    }

    fn losses(&self, model: &M, process: &dyn Scheduler) -> Losses {
        let timesteps = SHARES.map(|share| match process.time_range() {
            TimeRange::Discrete { num_timesteps } => (share * num_timesteps as f64).floor(),
            TimeRange::Continuous { min, max } => min + share * (max - min),
        });
        let loss = |Points { clean, condition }: &Points<D, M::Condition>| {
            let loss = DenoisingLoss {
                noises: 64_usize.div_ceil(clean.dims()[0]),
                seed: SEED,
                ..DenoisingLoss::at(timesteps)
            };
            let losses = loss
                .measure(model, process, clean, condition)
                .unwrap()
                .concat();
            losses.iter().sum::<f64>() / losses.len() as f64
        };
        Losses {
            rest: loss(&self.rest),
            memorised: loss(&self.memorised),
        }
    }

    /// Trains on the other points, and with `repeats` also on the point to be memorised.
    fn train(&self, process: &dyn Scheduler, repeats: bool) -> M {
        let mut optimizer = AdamWConfig::new().init();
        let mut model = self.model.clone().train();
        for step in 0..self.training_steps {
            let rest = self.rest.select(&self.rest.rows(step));
            let mut loss = self.loss(&model, process, &rest, step);
            if repeats {
                let memorised = self.memorised.select(&[0; BATCH / 2]);
                loss = loss + self.loss(&model, process, &memorised, step);
            }
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let rate = 5e-3 * (1.0 - step as f64 / self.training_steps as f64);
            model = optimizer.step(rate, model, gradients);
        }
        model.valid()
    }

    fn unlearn(&self, model: M, process: impl Scheduler + 'static, method: Method) -> M {
        let builder = SissTrainer::builder(model, process)
            .method(method)
            .clipper(FractionOfRetain::new(0.5).unwrap());
        self.run(builder)
    }

    fn run(&self, builder: SissTrainerBuilder<M, D>) -> M {
        let mut trainer = (builder.learning_rate(1e-3).seed(SEED).build()).unwrap();
        for step in 0..self.unlearning_steps {
            let (rest, memorised) = (
                self.rest.select(&self.rest.rows(step)),
                self.memorised.select(&[0; BATCH]),
            );
            let batch = UnlearningBatch::with_conditions(
                rest.clean,
                memorised.clean,
                rest.condition,
                memorised.condition,
            );
            let report = trainer.step(batch.unwrap()).unwrap();
            assert_eq!(report.outcome, StepOutcome::Applied, "{report}");
        }
        trainer.into_model()
    }

    /// Asserts that training memorises the point, by comparison with a model trained without it.
    /// Unlearning must forget the point, more than continued training does, and keep the rest.
    fn assert_forgets(&self, process: impl Scheduler + Clone + 'static) {
        let losses = |model: &M| self.losses(model, &process);
        let unlearn = |model, method| losses(&self.unlearn(model, process.clone(), method));
        let without = losses(&self.train(&process, false));
        let model = self.train(&process, true);
        let before = losses(&model);
        let trained_on = unlearn(model.clone(), Method::NaiveDeletion);
        let after = unlearn(model, Method::Siss);
        let all = format!(
            "without {without:.3?}, before {before:.3?}, trained on {trained_on:.3?}, after {after:.3?}"
        );
        println!("{all}");
        assert!(
            before.memorised < 0.3 * without.memorised,
            "not memorised: {all}"
        );
        assert!(
            after.memorised > 3.0 * before.memorised,
            "not forgotten: {all}"
        );
        assert!(
            after.memorised > 1.5 * trained_on.memorised,
            "no better than training on: {all}"
        );
        assert!(after.rest < 1.1 * before.rest, "not kept: {all}");
    }
}

fn ddpm() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn noise<const D: usize>(shape: [usize; D], key: u64) -> Tensor<D> {
    normal_noise(shape, SEED, key, 0, Stream::Sampling, &device())
}

/// Videos `[batch, 1, 4 frames, 4, 4]`.
#[derive(Module, Debug)]
struct VideoNet {
    enter: Conv3d,
    position: Param<Tensor<5>>,
    inner: Conv3d,
    leave: Conv3d,
}

impl VideoNet {
    fn new(device: &Device, seed: u64) -> Self {
        let convolution = |inputs, outputs| {
            Conv3dConfig::new([inputs, outputs], [3; 3])
                .with_padding(PaddingConfig3d::Explicit(1, 1, 1))
                .init(device)
        };
        let model = Self {
            enter: convolution(2, 16),
            position: Param::from_tensor(Tensor::zeros([1, 16, 4, 4, 4], device)),
            inner: convolution(16, 16),
            leave: convolution(16, 1),
        };
        seeded(model, seed)
    }
}

impl Denoiser<5> for VideoNet {
    type Condition = ();

    fn predict(&self, noisy: Tensor<5>, timesteps: Tensor<1>, _: &()) -> Tensor<5> {
        let time = (timesteps / 1000.0)
            .reshape([-1, 1, 1, 1, 1])
            .expand(noisy.dims());
        let hidden = self
            .enter
            .forward(Tensor::cat(vec![noisy.clone(), time], 1));
        let hidden = silu(hidden + self.position.val());
        let hidden = silu(self.inner.forward(hidden));
        noisy + self.leave.forward(hidden)
    }
}

/// Static videos of uniform brightness.
fn videos(count: usize, key: u64) -> Tensor<5> {
    (noise([count, 1, 1, 1, 1], key) * 0.5).expand([count, 1, 4, 4, 4])
}

/// Static videos, and a flickering checkerboard that is memorised.
fn video_case() -> Case<VideoNet, 5> {
    let device = device();
    let checker: Vec<f32> = (0..64)
        .map(|i| {
            if (i / 16 + i / 4 + i) % 2 == 0 {
                1.0
            } else {
                -1.0
            }
        })
        .collect();
    let checker = Tensor::<1>::from_data(checker.as_slice(), &device).reshape([1, 1, 4, 4, 4]);
    let points = |clean| Points {
        clean,
        condition: (),
    };
    Case {
        model: VideoNet::new(&device, SEED),
        rest: points(videos(64, 1)),
        memorised: points(checker),
        training_steps: 200,
        unlearning_steps: 40,
    }
}

#[test]
fn a_video_model_of_rank_5_forgets_a_video() {
    video_case().assert_forgets(ddpm());
}

/// Predicted answers and SISS bring a model of videos near to its twin, which never saw the video.
/// Two twins are nearer still.
#[test]
fn a_video_model_forgets_towards_the_answers_of_its_twin() {
    let case = video_case();
    let (model, twin) = (case.train(&ddpm(), true), case.train(&ddpm(), false));
    let another = Case {
        model: VideoNet::new(&device(), SEED + 1),
        ..video_case()
    };
    let another = another.train(&ddpm(), false);

    let controls = videos(32, 2);
    let data = CounterfactualData::new(&case.rest.clean, &controls, &case.memorised.clean);
    let config = CounterfactualConfig::default();
    let losses = Counterfactual::fit(&model, &ddpm(), data, config).unwrap();
    let config = PredictedAnswerConfig::default();
    let answer = PredictedAnswer::fit(&model, &ddpm(), &data, &losses, &config).unwrap();
    let objective = Answers::new(answer).keeping();
    let clipper = objective.clipper();
    let builder = SissTrainer::builder(model.clone(), ddpm());
    let taught = case.run(builder.loss(objective).clipper(clipper));
    let pushed = case.unlearn(model.clone(), ddpm(), Method::Siss);

    let compare = AnswerDistance::at([100.0, 250.0, 400.0, 600.0]);
    let distance = |model: &VideoNet| {
        let point = &case.memorised.clean;
        let found = compare.measure(model, &twin, &ddpm(), point, &()).unwrap();
        found
            .iter()
            .map(|of_point| of_point[0].distance)
            .sum::<f64>()
            / found.len() as f64
    };
    let [before, taught, pushed, floor] = [&model, &taught, &pushed, &another].map(distance);
    let all = format!("before {before:.3}, taught {taught:.3}, SISS {pushed:.3}, floor {floor:.3}");
    println!("{all}");
    for after in [taught, pushed] {
        assert!(floor < after && after < 0.5 * before, "{all}");
    }
}

/// Points of eight elements, conditioned on four numbers.
#[derive(Module, Debug)]
struct Conditional {
    enter: Linear,
    inner: Linear,
    leave: Linear,
}

impl Conditional {
    fn new(device: &Device) -> Self {
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        let model = Self {
            enter: linear(8 + 1 + 4, 64),
            inner: linear(64, 64),
            leave: linear(64, 8),
        };
        seeded(model, SEED)
    }

    fn forward(&self, noisy: Tensor<2>, timesteps: Tensor<1>, condition: Tensor<2>) -> Tensor<2> {
        let time = (timesteps / 1000.0).unsqueeze_dim(1);
        let hidden = self
            .enter
            .forward(Tensor::cat(vec![noisy.clone(), time, condition], 1));
        noisy + self.leave.forward(silu(self.inner.forward(silu(hidden))))
    }
}

/// A condition that is not a tensor: a class for each row, by name.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Class {
    Cat,
    Dog,
    Owl,
}

#[derive(Debug, Clone)]
struct Labels(Vec<Class>);

impl Condition for Labels {
    fn part_rows(&self) -> Vec<usize> {
        vec![self.0.len()]
    }

    fn take_rows(&self, rows: &[usize]) -> Self {
        Self(rows.iter().map(|&row| self.0[row]).collect())
    }

    fn extended_by(self, other: Self) -> siss::Result<Self> {
        Ok(Self([self.0, other.0].concat()))
    }

    fn to_device(self, _device: &Device) -> Self {
        self
    }

    fn digest(&self, add: &mut dyn FnMut(&[u8])) -> siss::Result<()> {
        self.0.iter().for_each(|&class| add(&[class as u8]));
        Ok(())
    }
}

impl Labels {
    fn one_hot(&self, device: &Device) -> Tensor<2> {
        let classes: Vec<i32> = self.0.iter().map(|&class| class as i32).collect();
        Tensor::<1, Int>::from_data(classes.as_slice(), device)
            .one_hot::<2>(4)
            .float()
    }
}

impl Denoiser<2> for Conditional {
    type Condition = Labels;

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, labels: &Labels) -> Tensor<2> {
        let condition = labels.one_hot(&noisy.device());
        self.forward(noisy, timesteps, condition)
    }
}

/// The class of a row: 0, 1 and 2 in turn.
fn class_of(row: usize) -> usize {
    row % 3
}

/// 96 points, each near the centre of its class, and one point far from all others.
fn classes() -> (Tensor<2>, Tensor<2>) {
    let centres: Tensor<2> = noise([3, 8], 2) * 0.5;
    let rows: Vec<usize> = (0..96).map(class_of).collect();
    let rest = Condition::take_rows(&centres, &rows) + noise([96, 8], 3) * 0.3;
    (rest, noise([1, 8], 4).sign() * 1.5)
}

#[test]
fn a_model_with_a_condition_type_of_its_own_forgets_a_point_of_one_class() {
    let (rest, memorised) = classes();
    let names = [Class::Cat, Class::Dog, Class::Owl];
    let case = Case {
        model: Conditional::new(&device()),
        rest: Points {
            clean: rest,
            condition: Labels((0..96).map(|row| names[class_of(row)]).collect()),
        },
        memorised: Points {
            clean: memorised,
            condition: Labels(vec![Class::Owl]),
        },
        training_steps: 400,
        unlearning_steps: 60,
    };
    case.assert_forgets(ddpm());
}

#[test]
fn a_model_conditioned_on_two_tensors_forgets_a_point() {
    let device = device();
    let (rest, memorised) = classes();
    // A class by number, and a number that gives the brightness of the point.
    let condition = |clean: &Tensor<2>, classes: Vec<usize>| {
        let classes: Vec<i32> = classes.into_iter().map(|class| class as i32).collect();
        let classes = Tensor::<1, Int>::from_data(classes.as_slice(), &device);
        (clean.clone().mean_dim(1), classes)
    };
    let model = FnDenoiser::new(
        Conditional::new(&device),
        |model, noisy: Tensor<2>, timesteps, (bright, classes): &(Tensor<2>, Tensor<1, Int>)| {
            let classes = classes.clone().one_hot::<2>(3).float();
            let condition = Tensor::cat(vec![classes, bright.clone()], 1);
            Conditional::forward(model, noisy, timesteps, condition)
        },
    )
    .predicting(PredictionType::Sample);
    let case = Case {
        model,
        rest: Points {
            condition: condition(&rest, (0..96).map(class_of).collect()),
            clean: rest,
        },
        memorised: Points {
            condition: condition(&memorised, vec![2]),
            clean: memorised,
        },
        training_steps: 400,
        unlearning_steps: 60,
    };
    case.assert_forgets(ddpm());
}

/// ReTrack would otherwise teach the model, under a point's class, a neighbour from another class.
#[test]
fn neighbours_of_any_class_are_refused_for_a_model_that_knows_classes() {
    let (rest, memorised) = classes();
    let built = |loss: ReTrack<2>| {
        let builder = SissTrainer::builder(Conditional::new(&device()), ddpm());
        builder.method(Method::ReTrack).loss(loss).build().err()
    };
    let error = built(ReTrack::new(rest.clone()).unwrap())
        .unwrap()
        .to_string();
    assert!(error.contains("with_groups"), "{error}");
    let of_class = (0..96).map(|index| class_of(index) as u64).collect();
    let grouped = ReTrack::new(rest.clone())
        .unwrap()
        .with_groups(of_class, vec![2]);
    assert!(built(grouped.unwrap()).is_none());
    let given = ReTrack::from_neighbours(memorised, vec![rest.narrow(0, 0, 3)]);
    assert!(built(given.unwrap()).is_none());
}

/// Each side is predicted under its own condition, and the other side's condition has no influence
/// on it.
#[test]
fn each_side_has_its_own_condition() {
    let (rest, memorised) = classes();
    let gradients = |retain: Class, forget: Class| {
        let batch = UnlearningBatch::with_conditions(
            rest.clone().narrow(0, 0, 8),
            Condition::take_rows(&memorised, &[0; 8]),
            Labels(vec![retain; 8]),
            Labels(vec![forget; 8]),
        )
        .unwrap();
        let model = Conditional::new(&device());
        let mut trainer = SissTrainer::builder(model, ddpm()).build().unwrap();
        let draws = trainer.draw(&batch).unwrap();
        let gradients = trainer.gradients(&batch, &draws).unwrap();
        [&gradients.retain, &gradients.forget].map(|side| flat(trainer.model(), side))
    };
    let [retain, forget] = gradients(Class::Cat, Class::Cat);
    let [same, other] = gradients(Class::Cat, Class::Dog);
    assert!(retain == same && forget != other);
    let [other, same] = gradients(Class::Dog, Class::Cat);
    assert!(retain != other && forget == same);
}

#[test]
fn a_module_behind_a_function_takes_the_same_steps_bit_by_bit() {
    fn run<M: Denoiser<2, Condition = ()>>(model: M) -> (Vec<StepReport>, Vec<f64>) {
        let mut trainer = SissTrainer::builder(model, ddpm())
            .learning_rate(1e-2)
            .micro_batch_size(5)
            .build()
            .unwrap();
        let batch = batch(16, 0.5, 3, &device());
        let reports = (0..5)
            .map(|_| trainer.step(batch.clone()).unwrap())
            .collect();
        (reports, parameters(&trainer.into_model()))
    }
    let model = || Mlp::new(1, &device());
    let function = |model: &Mlp, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()| {
        model.predict(noisy, timesteps, &())
    };
    let (reports, stepped) = run(model());
    assert_eq!(
        run(FnDenoiser::new(model(), function)),
        (reports, stepped.clone())
    );
    assert_ne!(stepped, parameters(&model()));
}

/// Takes continuous time from 0 to 1, and no condition.
fn unconditional() -> impl Denoiser<2, Condition = ()> {
    FnDenoiser::new(
        Conditional::new(&device()),
        |model, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()| {
            let none = Tensor::zeros([noisy.dims()[0], 4], &noisy.device());
            Conditional::forward(model, noisy, timesteps * 1000.0, none)
        },
    )
    .predicting(PredictionType::FlowVelocity)
}

#[test]
fn a_flow_matching_model_forgets_a_point() {
    let (rest, memorised) = classes();
    let points = |clean| Points {
        clean,
        condition: (),
    };
    let case = Case {
        model: unconditional(),
        rest: points(rest),
        memorised: points(memorised),
        training_steps: 400,
        unlearning_steps: 60,
    };
    case.assert_forgets(FlowMatching::default());
}

/// `w = q(m|·) / q_λ(m)` with `q(m|x) = N(m; γx, σ²I)`, `γ = 1 − t`, `σ = t`, evaluated as written,
/// in f64.
#[test]
fn the_weights_of_flow_matching_are_ratios_of_gaussian_densities() {
    const FORGET_PROB: f64 = 0.3;
    let device = device();
    let times = [0.001, 0.0011, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999, 1.0];
    let rows = times.len();
    let clean = noise([rows, 4], 5);
    // As far apart as the noise at this time, so that neither side is certain, and farther.
    for distance in [0.5, 1.5, 20.0] {
        let apart = scalars(&times.map(|t| t * distance / 2.0), &device);
        let (retain, forget) = (clean.clone(), clean.clone() + apart);
        let from_forget: Vec<bool> = (0..rows).map(|row| row % 2 == 0).collect();
        let epsilon = noise([rows, 4], 6);
        let draws = Draws::new(
            times.into(),
            epsilon.clone(),
            from_forget.clone(),
            FORGET_PROB,
        );
        let (draws, process) = (draws.unwrap(), FlowMatching::default());
        let kind = PredictionType::FlowVelocity;
        let batch = UnlearningBatch::new(retain.clone(), forget.clone()).unwrap();
        let inputs = LossInputs::new(&batch, &draws, &process, kind).unwrap();
        let terms = Siss.terms(&inputs).unwrap();
        let (kept, forgotten) = (terms.retain.unwrap(), terms.forget.unwrap());

        let [x, a, epsilon] = [retain, forget, epsilon].map(host);
        for (row, t) in times.into_iter().enumerate() {
            let elements = 4 * row..4 * row + 4;
            let noisy = |i: usize| {
                let base = if from_forget[row] { a[i] } else { x[i] };
                (1.0 - t) * base + t * epsilon[i]
            };
            let log_density = |clean: &[f64]| -> f64 {
                let terms = elements.clone().map(|i| {
                    -0.5 * ((noisy(i) - (1.0 - t) * clean[i]) / t).powi(2)
                        - (t * std::f64::consts::TAU.sqrt()).ln()
                });
                terms.sum()
            };
            let densities = [log_density(&x), log_density(&a)];
            let largest = densities[0].max(densities[1]);
            let [of_x, of_a] = densities.map(|density| (density - largest).exp());
            let mixture = (1.0 - FORGET_PROB) * of_x + FORGET_PROB * of_a;
            let errors = [
                kept.weights[row] - of_x / mixture,
                -forgotten.weights[row] - of_a / mixture,
            ];
            assert!(
                errors.iter().all(|error| error.abs() < 1e-4),
                "t = {t}, {distance} apart: {errors:?}"
            );
        }
        // At t = 1 there is no signal: both sides explain the point equally well.
        assert_eq!(
            (kept.weights[rows - 1], forgotten.weights[rows - 1]),
            (1.0, -1.0)
        );
    }
}

#[test]
fn steps_without_any_signal_weigh_both_sides_alike() {
    let config = SchedulerConfig {
        zero_terminal_snr: true,
        prediction_type: PredictionType::Velocity,
        ..SchedulerConfig::default()
    };
    let process = DdpmScheduler::from_config(&config).unwrap();
    assert_eq!(process.signal_scale(999.0), 0.0);
    let model = Mlp::new(1, &device()).predicting(config.prediction_type);
    let mut trainer = SissTrainer::builder(model, process).build().unwrap();
    let batch = batch(4, 0.5, 1, &device());
    for _ in 0..3 {
        let noise = trainer.draw(&batch).unwrap().noise().clone();
        let draws = Draws::new(vec![999.0; 4], noise, vec![true, false, true, false], 0.5);
        let before = parameters(trainer.model());
        let report = trainer.step_with(&batch, &draws.unwrap()).unwrap();
        assert_eq!(report.outcome, StepOutcome::Applied);
        for term in [&report.retain, &report.forget] {
            let term = term.as_ref().unwrap();
            assert_eq!((term.weights.mean, term.weights.max), (1.0, 1.0));
            assert!(term.loss.is_finite() && term.loss > 0.0);
        }
        let after = parameters(trainer.model());
        assert!(after != before && after.iter().all(|value| value.is_finite()));
    }
}

/// A process that has lost its noise.
#[derive(Debug)]
struct Noiseless;

impl Scheduler for Noiseless {
    fn time_range(&self) -> TimeRange {
        TimeRange::Continuous { min: 0.0, max: 1.0 }
    }

    fn signal_scale(&self, _: f64) -> f64 {
        1.0
    }

    fn noise_scale(&self, _: f64) -> f64 {
        0.0
    }
}

#[test]
fn a_step_without_noise_is_a_typed_error_and_changes_nothing() {
    let model = Mlp::new(1, &device());
    let mut trainer = SissTrainer::builder(model, Noiseless).build().unwrap();
    let before = parameters(trainer.model());
    let error = trainer.step(batch(4, 0.5, 1, &device())).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoNoise {
                noise_scale: 0.0,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(
        (trainer.next_step(), parameters(trainer.model())),
        (0, before)
    );
}
