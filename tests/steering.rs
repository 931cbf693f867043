//! Where steered and one-sided runs converge, for a model whose loss on the forgotten point has a
//! closed form.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use siss::clipper::FractionOfRetain;
use siss::draws::{FixedAllocation, Stream, TimestepSampling, normal_noise};
use siss::objective::Siss;
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, HardStop, Levels};
use siss::trainer::SissTrainerBuilder;
use siss::{DdpmScheduler, Denoiser, PairSampler, Scheduler, SissTrainer, Steering, StepReport};

/// The only timestep of these runs.
const TIMESTEP: f64 = 250.0;

fn scheduler() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn scales() -> [f64; 2] {
    let scheduler = scheduler();
    [
        scheduler.signal_scale(TIMESTEP),
        scheduler.noise_scale(TIMESTEP),
    ]
}

/// A model that knows two clean points: one for noisy points with a mean above 0, one for those
/// below. It explains a noisy point by the point it is near, except for a fraction of the noise.
#[derive(Module, Debug)]
struct TwoPoints {
    above: Param<Tensor<1>>,
    below: Param<Tensor<1>>,
    #[module(skip)]
    missed: f64,
}

impl Denoiser<2> for TwoPoints {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        let [signal, noise] = scales();
        let is_above = noisy.clone().mean_dim(1).greater_elem(0.0).float();
        let row = |point: &Param<Tensor<1>>| point.val().unsqueeze_dim::<2>(0);
        let below = row(&self.below) * (-is_above.clone() + 1.0);
        let clean = row(&self.above) * is_above + below;
        (noisy - clean * signal) * ((1.0 - self.missed) / noise)
    }
}

/// Position of the forgotten point; the retained points lie on the other side of 0.
const PLACE: f64 = 2.0;

struct Toy {
    elements: usize,
    /// Distance of the model's point from the forgotten point, in each element.
    off: f64,
    missed: f64,
}

impl Toy {
    fn model(&self) -> TwoPoints {
        let device = Device::flex();
        let point = |value: f64| Param::from_tensor(Tensor::full([self.elements], value, &device));
        TwoPoints {
            above: point(PLACE + self.off),
            below: point(-PLACE + 0.5),
            missed: self.missed,
        }
    }

    /// The mean loss on the forgotten point: the error of the model is `(1−k) ρ (a − p) − k ε`.
    fn loss(&self, model: &TwoPoints) -> f64 {
        let [signal, noise] = scales();
        let point: Vec<f64> = model.above.val().into_data().iter().collect();
        let squares = point.iter().map(|value| (value - PLACE).powi(2));
        let mean = squares.sum::<f64>() / self.elements as f64;
        ((1.0 - self.missed) * signal / noise).powi(2) * mean + self.missed.powi(2)
    }

    fn pairs(&self) -> PairSampler<2> {
        let device = Device::flex();
        let retained = normal_noise([60, self.elements], 1, 0, 0, Stream::Evaluation, &device);
        let forgotten = Tensor::full([1, self.elements], PLACE, &device);
        PairSampler::new(retained * 0.1 - PLACE, forgotten, 3).unwrap()
    }

    fn builder(&self) -> SissTrainerBuilder<TwoPoints, 2> {
        SissTrainer::builder(self.model(), scheduler())
            .timestep_sampling(TimestepSampling::Fixed(TIMESTEP))
            .learning_rate(4e-3)
    }

    fn run(
        &self,
        builder: SissTrainerBuilder<TwoPoints, 2>,
        batch: usize,
        steps: u64,
    ) -> (f64, Vec<StepReport>) {
        let mut trainer = builder.build().unwrap();
        let pairs = self.pairs();
        let step = |step| trainer.step(pairs.batch(step, batch).unwrap()).unwrap();
        let reports = (0..steps).map(step).collect();
        (self.loss(&trainer.into_model()), reports)
    }
}

fn level(level: f64) -> Levels {
    Levels::new(vec![200.0, 300.0], vec![vec![level; 2]]).unwrap()
}

/// `c_f ‖g_f‖ / ‖g_r‖`.
fn share(report: &StepReport) -> f64 {
    report.coefficients.forget * report.norms.forget / report.norms.retain
}

/// With one pair per step, one side has no row, because the points are far apart.
#[test]
fn a_run_forgets_whatever_the_batch_and_lambda() {
    let toy = Toy {
        elements: 16,
        off: 0.05,
        missed: 0.1,
    };
    let before = toy.loss(&toy.model());
    for (batch, forget_prob, thin_below) in [
        (1, 0.5, 1.0),
        (1, 0.5, 0.0),
        (4, 0.1, 1.0),
        (4, 0.9, 1.0),
        (32, 0.5, 1.0),
    ] {
        let case = format!("batch {batch}, λ {forget_prob}, τ {thin_below}");
        let sampler = FixedAllocation::new(forget_prob).unwrap();
        let builder = toy.builder().sampler(sampler).thin_below(thin_below);
        let (after, reports) = toy.run(builder, batch, 200);
        let applied = |report: &StepReport| report.coefficients.forget * report.norms.forget;
        let forgotten: f64 = reports.iter().map(applied).sum();
        let retained: f64 = reports.iter().map(|report| report.norms.retain).sum();
        let share = forgotten / retained;
        assert!((0.03..0.3).contains(&share), "{case}: {share}");
        assert!(after > 2.0 * before, "{case}: {before} {after}");
    }
}

/// The gradient that remains at the level is noise, and is not scaled up to the share that
/// forgetting gets.
#[test]
fn at_the_level_the_forget_gradient_takes_no_share() {
    let toy = Toy {
        elements: 256,
        off: 0.3,
        missed: 0.3,
    };
    let target = 4.0 * toy.loss(&toy.model());
    let (after, reports) = toy.run(
        toy.builder().steering(Steering::new(level(target))),
        16,
        600,
    );
    assert!((after / target - 1.0).abs() < 0.1, "{after} {target}");
    let mean =
        |reports: &[StepReport]| reports.iter().map(share).sum::<f64>() / reports.len() as f64;
    let (first, last) = (mean(&reports[..5]), mean(&reports[500..]));
    assert!(first > 0.06, "{first}");
    assert!(last < 0.02, "{last}");
}

/// Steering is the only setting needed: SISS then takes the larger share of a steered run.
#[test]
fn steering_alone_is_siss_with_a_share_of_thirty_percent() {
    let toy = Toy {
        elements: 16,
        off: 0.3,
        missed: 0.3,
    };
    let target = 4.0 * toy.loss(&toy.model());
    let builder = || toy.builder().steering(Steering::new(level(target)));
    let steered = toy.run(builder(), 16, 20);
    let with = |fraction| {
        let clipper = FractionOfRetain::new(fraction).unwrap();
        toy.run(builder().loss(Siss).clipper(clipper), 16, 20)
    };
    assert_eq!(steered, with(0.3));
    assert_ne!(steered.0, with(0.1).0);
}

/// Retained points lie next to the forgotten point, and the model does not know them although it
/// could: the predicted loss is far below the model's loss.
#[test]
fn a_request_never_makes_the_model_know_a_point_better() {
    let toy = Toy {
        elements: 16,
        off: 0.8,
        missed: 0.6,
    };
    let (model, device) = (toy.model(), Device::flex());
    let own = toy.loss(&model);
    let around = |seed: u64, rows: usize, place: f64| {
        normal_noise([rows, 16], seed, 0, 0, Stream::Evaluation, &device) * 0.1 + place
    };
    let forgotten = Tensor::<2>::full([1, 16], PLACE, &device);
    let retained = Tensor::cat(vec![around(1, 60, -PLACE), around(2, 60, PLACE)], 0);
    let controls = around(4, 40, -PLACE);
    let data = CounterfactualData::new(&retained, &controls, &forgotten);
    let config = CounterfactualConfig {
        timesteps: Some(vec![240.0, TIMESTEP, 260.0]),
        noises: 2000,
        ..CounterfactualConfig::default()
    };
    let fit = Counterfactual::fit(&model, &scheduler(), data, config).unwrap();
    assert!(fit.predicted[0][1] < 0.8 * own, "{:?}", fit.predicted);
    assert!((fit.levels.own_losses()[0][1] / own - 1.0).abs() < 0.05);
    assert!(fit.kept_timesteps(0).contains(&TIMESTEP));
    assert!(fit.kept_timesteps(1).is_empty());
    let (after, _) = toy.run(toy.builder().steering(Steering::new(fit)), 16, 600);
    assert!((0.97..1.15).contains(&(after / own)), "{after} {own}");
}

/// Rows whose noise happens to give a low loss must not keep driving the loss up.
#[test]
fn a_hard_stop_stays_where_it_stopped() {
    for elements in [16, 256] {
        let toy = Toy {
            elements,
            off: 0.5,
            missed: 0.5,
        };
        let target = 2.0 * toy.loss(&toy.model());
        let after = |steps| {
            let steering = Steering::new(level(target)).with_rule(HardStop);
            toy.run(toy.builder().steering(steering), 16, steps).0 / target
        };
        let (early, late) = (after(600), after(1500));
        assert!((0.9..1.25).contains(&early), "{elements}: {early}");
        assert!(late < 1.05 * early, "{elements}: {early} {late}");
    }
}

#[test]
fn the_ends_of_lambda_are_refused_where_a_side_would_be_missing() {
    let toy = Toy {
        elements: 4,
        off: 0.1,
        missed: 0.1,
    };
    let built = |forget_prob: f64| {
        let sampler = FixedAllocation::new(forget_prob).unwrap();
        toy.builder().sampler(sampler)
    };
    let error = built(0.0).build().unwrap_err().to_string();
    assert!(error.contains("λ is 0"), "{error}");
    let error = built(1.0).build().unwrap_err().to_string();
    assert!(
        error.contains("λ is 1") && error.contains("RescaleToNorm"),
        "{error}"
    );
    let rescaled = built(1.0).clipper(siss::clipper::RescaleToNorm::new(1.0).unwrap());
    assert!(rescaled.build().is_ok());
    // A method without a mixture is not affected.
    assert!(built(0.0).method(siss::Method::SissNoIs).build().is_ok());
}

/// Levels of one process do not apply to another, and levels at two timesteps do not apply to other
/// timesteps.
#[test]
fn levels_of_another_process_or_of_few_timesteps_are_refused() {
    let toy = Toy {
        elements: 4,
        off: 0.1,
        missed: 0.1,
    };
    let (model, pairs) = (toy.model(), toy.pairs());
    let fit = |timesteps: Option<Vec<f64>>| {
        let controls = pairs.retain().clone() * 0.9;
        let data = CounterfactualData::new(pairs.retain(), &controls, pairs.forget());
        let config = CounterfactualConfig {
            timesteps,
            ..CounterfactualConfig::default()
        };
        Counterfactual::fit(&model, &scheduler(), data, config).unwrap()
    };
    let refused = |scheduler: DdpmScheduler, levels| {
        let builder = SissTrainer::builder(toy.model(), scheduler).steering(Steering::new(levels));
        builder.build().err().map(|error| error.to_string())
    };
    assert_eq!(refused(scheduler(), fit(None)), None);
    let other = DdpmScheduler::squared_cosine(1000).unwrap();
    let error = refused(other, fit(None)).unwrap();
    assert!(error.contains("another process"), "{error}");
    let error = refused(scheduler(), fit(Some(vec![300.0, 600.0]))).unwrap();
    assert!(error.contains("from 300 to 600"), "{error}");
    let window = toy.builder().timestep_sampling(TimestepSampling::Window {
        low: 300.0,
        high: 601.0,
    });
    assert!(
        window
            .steering(Steering::new(fit(Some(vec![300.0, 600.0]))))
            .build()
            .is_ok()
    );
}

/// The retained points are learned at every timestep, the forgotten point is unlearned only within
/// the window.
#[test]
fn forgetting_keeps_to_its_timesteps_and_learning_does_not() {
    let toy = Toy {
        elements: 16,
        off: 0.05,
        missed: 0.1,
    };
    let builder = |low, high| {
        // Every row has the weight 1.
        let builder = SissTrainer::builder(toy.model(), scheduler()).method(siss::Method::SissNoIs);
        builder.forget_within(low, high)
    };
    let rows = |report: &StepReport| {
        [&report.retain, &report.forget].map(|term| term.as_ref().map_or(0, |term| term.rows))
    };
    let (_, reports) = toy.run(builder(250.0, 500.0).thin_below(0.0), 16, 8);
    for report in &reports {
        // A quarter of the evenly spread timesteps.
        assert_eq!(rows(report), [16, 4]);
    }
    let (_, reports) = toy.run(builder(0.0, 1000.0).thin_below(0.0), 16, 1);
    assert_eq!(rows(&reports[0]), [16, 16]);
    for (low, high) in [(500.0, 250.0), (10.2, 10.8), (f64::NAN, 5.0), (0.0, 2000.0)] {
        assert!(builder(low, high).build().is_err(), "{low} {high}");
    }
}
