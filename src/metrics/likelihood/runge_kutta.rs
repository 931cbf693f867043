//! The Runge–Kutta method of Dormand and Prince with the step control of SciPy's `RK45`.

use crate::error::{Error, Result};

/// The solution of `y' = f(t, y)` from one time to another, for one `y`.
///
/// It does not call `f`: it asks for a slope, and continues when it gets it. So many solutions,
/// each with steps of its own, can share the evaluations of a model.
///
/// # Reference
/// Dormand and Prince 1980, *A family of embedded Runge–Kutta formulae*; Hairer, Nørsett and
/// Wanner, *Solving Ordinary Differential Equations I*, Sections II.4 and II.5. The choices of
/// SciPy: error norm, first step, limits of the step's change.
#[derive(Debug, Clone)]
pub(super) struct RungeKutta {
    time: f64,
    end: f64,
    tolerances: Tolerances,
    state: Vec<f64>,
    /// Size of the next step, above 0.
    step: f64,
    /// Whether the current step was tried before.
    is_repeated: bool,
    /// Slopes of the current step; the first is that at its beginning.
    slopes: Vec<Vec<f64>>,
    phase: Phase,
    evaluations: usize,
}

/// The local error that a step may make: `absolute + relative · |y|`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerances {
    pub(super) absolute: f64,
    pub(super) relative: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The slope at the beginning is needed.
    Begin,
    /// That after a trial step of this size is needed, to choose the first step.
    Trial(f64),
    /// That of this stage of a step is needed.
    Stage(usize),
    Done,
}

/// Stages of a step; the slope at its end is the first of the next step.
const STAGES: usize = 6;
const TIMES: [f64; STAGES] = [0.0, 1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0];
const STAGE_WEIGHTS: [&[f64]; STAGES] = [
    &[],
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[
        19372.0 / 6561.0,
        -25360.0 / 2187.0,
        64448.0 / 6561.0,
        -212.0 / 729.0,
    ],
    &[
        9017.0 / 3168.0,
        -355.0 / 33.0,
        46732.0 / 5247.0,
        49.0 / 176.0,
        -5103.0 / 18656.0,
    ],
];
const WEIGHTS: [f64; STAGES] = [
    35.0 / 384.0,
    0.0,
    500.0 / 1113.0,
    125.0 / 192.0,
    -2187.0 / 6784.0,
    11.0 / 84.0,
];
/// The difference between the solutions of orders 5 and 4.
const ERROR_WEIGHTS: [f64; STAGES + 1] = [
    -71.0 / 57600.0,
    0.0,
    71.0 / 16695.0,
    -71.0 / 1920.0,
    17253.0 / 339_200.0,
    -22.0 / 525.0,
    1.0 / 40.0,
];
/// One over the order of the error.
const EXPONENT: f64 = 1.0 / 5.0;
const SAFETY: f64 = 0.9;
const LEAST_FACTOR: f64 = 0.2;
const LARGEST_FACTOR: f64 = 10.0;

impl RungeKutta {
    /// From `state` at `time` to `end`.
    pub(super) fn new(time: f64, end: f64, state: Vec<f64>, tolerances: Tolerances) -> Self {
        Self {
            time,
            end,
            tolerances,
            state,
            step: 0.0,
            is_repeated: false,
            slopes: Vec::with_capacity(STAGES + 1),
            phase: if time == end {
                Phase::Done
            } else {
                Phase::Begin
            },
            evaluations: 0,
        }
    }

    /// Where the next slope is needed; `None` at the end.
    pub(super) fn wants(&self) -> Option<(f64, Vec<f64>)> {
        let direction = self.direction();
        match self.phase {
            Phase::Done => None,
            Phase::Begin => Some((self.time, self.state.clone())),
            Phase::Trial(step) => {
                let state = self.moved(direction * step, &[1.0]);
                Some((self.time + direction * step, state))
            }
            Phase::Stage(STAGES) => {
                Some((self.time_after(), self.moved(self.signed_step(), &WEIGHTS)))
            }
            Phase::Stage(stage) => {
                let step = self.signed_step();
                let state = self.moved(step, STAGE_WEIGHTS[stage]);
                Some((self.time + TIMES[stage] * step, state))
            }
        }
    }

    /// Takes the slope that was needed.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if the steps become too small for the numbers.
    pub(super) fn take(&mut self, slope: Vec<f64>) -> Result<()> {
        self.evaluations += 1;
        match self.phase {
            Phase::Done => {}
            Phase::Begin => {
                self.phase = Phase::Trial(self.trial_step(&slope));
                self.slopes.push(slope);
            }
            Phase::Trial(trial) => {
                self.step = self.first_step(trial, &slope);
                self.begin_step();
            }
            Phase::Stage(STAGES) => {
                self.slopes.push(slope);
                self.end_step()?;
            }
            Phase::Stage(stage) => {
                self.slopes.push(slope);
                self.phase = Phase::Stage(stage + 1);
            }
        }
        Ok(())
    }

    /// The solution so far.
    pub(super) fn state(&self) -> &[f64] {
        &self.state
    }

    /// Slopes that were taken.
    pub(super) fn evaluations(&self) -> usize {
        self.evaluations
    }

    fn direction(&self) -> f64 {
        (self.end - self.time).signum()
    }

    /// `y + step Σ w k`.
    fn moved(&self, step: f64, weights: &[f64]) -> Vec<f64> {
        let mut moved = self.state.clone();
        for (slope, weight) in self.slopes.iter().zip(weights) {
            for (value, slope) in moved.iter_mut().zip(slope) {
                *value += step * weight * slope;
            }
        }
        moved
    }

    fn time_after(&self) -> f64 {
        let after = self.time + self.direction() * self.step;
        match self.direction() * (after - self.end) > 0.0 {
            true => self.end,
            false => after,
        }
    }

    fn signed_step(&self) -> f64 {
        self.time_after() - self.time
    }

    /// The root mean square of values divided by the tolerated error.
    fn norm(&self, values: impl Iterator<Item = f64>, sizes: impl Iterator<Item = f64>) -> f64 {
        let Tolerances { absolute, relative } = self.tolerances;
        let scaled = values
            .zip(sizes)
            .map(|(value, size)| value / (absolute + relative * size));
        let squares: f64 = scaled.map(|value| value * value).sum();
        (squares / self.state.len() as f64).sqrt()
    }

    fn sizes(&self) -> impl Iterator<Item = f64> + '_ {
        self.state.iter().map(|value| value.abs())
    }

    fn trial_step(&self, slope: &[f64]) -> f64 {
        let size = self.norm(self.state.iter().copied(), self.sizes());
        let slope = self.norm(slope.iter().copied(), self.sizes());
        let step = match size < 1e-5 || slope < 1e-5 {
            true => 1e-6,
            false => 0.01 * size / slope,
        };
        step.min((self.end - self.time).abs())
    }

    fn first_step(&self, trial: f64, slope: &[f64]) -> f64 {
        let before = &self.slopes[0];
        let change = slope
            .iter()
            .zip(before)
            .map(|(after, before)| after - before);
        let curvature = self.norm(change, self.sizes()) / trial;
        let slope = self.norm(before.iter().copied(), self.sizes());
        let step = match slope <= 1e-15 && curvature <= 1e-15 {
            true => (trial * 1e-3).max(1e-6),
            false => (0.01 / slope.max(curvature)).powf(EXPONENT),
        };
        step.min(100.0 * trial).min((self.end - self.time).abs())
    }

    fn least_step(&self) -> f64 {
        let next = match self.direction() > 0.0 {
            true => self.time.next_up(),
            false => self.time.next_down(),
        };
        10.0 * (next - self.time).abs()
    }

    fn begin_step(&mut self) {
        self.is_repeated = false;
        self.step = self.step.max(self.least_step());
        self.phase = Phase::Stage(1);
    }

    /// Accepts the step, or tries a smaller one.
    fn end_step(&mut self) -> Result<()> {
        let (end, step) = (self.time_after(), self.signed_step());
        let after = self.moved(step, &WEIGHTS);
        let sizes = self
            .sizes()
            .zip(&after)
            .map(|(size, after)| size.max(after.abs()));
        let errors = (0..after.len()).map(|index| {
            let slopes = self.slopes.iter().zip(ERROR_WEIGHTS);
            step * slopes
                .map(|(slope, weight)| weight * slope[index])
                .sum::<f64>()
        });
        let error = self.norm(errors, sizes);
        self.step = step.abs();
        if error < 1.0 {
            let grown = (SAFETY * error.powf(-EXPONENT)).min(LARGEST_FACTOR);
            let factor = if error == 0.0 { LARGEST_FACTOR } else { grown };
            let most = if self.is_repeated {
                1.0
            } else {
                LARGEST_FACTOR
            };
            self.time = end;
            self.step *= factor.min(most);
            self.state = after;
            self.slopes.swap_remove(0);
            self.slopes.truncate(1);
            match self.time == self.end {
                true => self.phase = Phase::Done,
                false => self.begin_step(),
            }
            return Ok(());
        }
        // An error that is NaN gives the smallest factor.
        self.step *= (SAFETY * error.powf(-EXPONENT)).max(LEAST_FACTOR);
        self.is_repeated = true;
        self.slopes.truncate(1);
        self.phase = Phase::Stage(1);
        if self.step < self.least_step() {
            return Err(Error::InvalidSetting {
                what: format!("the steps of the equation vanish at time {}", self.time),
                remedy: "check the model's output for NaN, or allow larger tolerances",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIGHT: Tolerances = Tolerances {
        absolute: 1e-5,
        relative: 1e-5,
    };

    fn solve(
        slope: impl Fn(f64, &[f64]) -> Vec<f64>,
        (time, end): (f64, f64),
        state: &[f64],
        tolerances: Tolerances,
    ) -> RungeKutta {
        let mut solution = RungeKutta::new(time, end, state.to_vec(), tolerances);
        while let Some((time, state)) = solution.wants() {
            solution.take(slope(time, &state)).unwrap();
        }
        solution
    }

    #[test]
    fn a_decay_is_the_exponential_in_either_direction() {
        let decay = |_: f64, y: &[f64]| y.iter().map(|y| -y).collect();
        let there = solve(decay, (0.0, 3.0), &[1.0, 2.0], TIGHT);
        assert!((there.state()[1] / 2.0 - (-3.0_f64).exp()).abs() < 1e-5);
        let back = solve(decay, (3.0, 0.0), there.state(), TIGHT);
        assert!((back.state()[0] - 1.0).abs() < 1e-4);
    }

    #[test]
    fn a_polynomial_of_degree_five_is_exact() {
        let found = solve(|t, _| vec![5.0 * t.powi(4)], (0.0, 2.0), &[0.0], TIGHT);
        assert!(
            (found.state()[0] - 32.0).abs() < 1e-10,
            "{:?}",
            found.state()
        );
    }

    #[test]
    fn no_time_needs_no_slope_and_a_slope_without_a_value_is_an_error() {
        let none = solve(|_, _| vec![f64::NAN], (1.0, 1.0), &[4.0], TIGHT);
        assert_eq!((none.state(), none.evaluations()), (&[4.0][..], 0));
        let mut ruined = RungeKutta::new(0.0, 1.0, vec![1.0], TIGHT);
        let error = loop {
            let (time, _) = ruined.wants().unwrap();
            let slope = if time > 0.1 { f64::NAN } else { 1.0 };
            if let Err(error) = ruined.take(vec![slope]) {
                break error;
            }
        };
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    }

    /// The number of evaluations of `scipy.integrate.solve_ivp` 1.17, and its solution, for three
    /// pairs of tolerances (relative, absolute).
    #[test]
    fn steps_are_those_of_scipy() {
        const TOLERANCES: [(f64, f64); 3] = [(1e-3, 1e-6), (1e-5, 1e-5), (1e-8, 1e-10)];
        type Slope = fn(f64, &[f64]) -> Vec<f64>;
        /// Slope, interval, start, evaluations and final values.
        type Case = (Slope, (f64, f64), &'static [f64], [usize; 3], [f64; 3]);
        let decay: Slope = |_, y| vec![-y[0], -y[1]];
        let pendulum: Slope = |_, y| vec![y[1], -y[0].sin()];
        let hunt: Slope = |_, y| vec![1.5 * y[0] - y[0] * y[1], -3.0 * y[1] + y[0] * y[1]];
        let backward: Slope = |t, y| vec![t.cos() * y[0]];
        let stiff: Slope = |_, y| vec![y[1], 30.0 * (1.0 - y[0] * y[0]) * y[1] - y[0]];
        let flat: Slope = |_, y| vec![0.0 * y[0]];
        let cases: [Case; 6] = [
            (
                decay,
                (0.0, 10.0),
                &[1.0, 2.0],
                [74, 98, 530],
                [
                    4.5702058349727025e-05,
                    4.581389071575856e-05,
                    4.539994312189956e-05,
                ],
            ),
            (
                pendulum,
                (0.0, 20.0),
                &[2.0, 0.0],
                [194, 302, 1358],
                [-1.6901306643781497, -1.644769775886587, -1.6445676038853054],
            ),
            (
                hunt,
                (0.0, 15.0),
                &[10.0, 5.0],
                [470, 800, 3056],
                [0.5820213744837123, 0.7140383535754029, 0.7137513710819546],
            ),
            (
                backward,
                (5.0, 0.0),
                &[1.0],
                [44, 92, 296],
                [2.6117280048787808, 2.6089178792671452, 2.6088885476924193],
            ),
            (
                stiff,
                (0.0, 40.0),
                &[2.0, 0.0],
                [4964, 5174, 10220],
                [
                    -1.6065427020990195,
                    -1.6066439016852667,
                    -1.6066429112051357,
                ],
            ),
            (flat, (0.0, 1.0), &[1.0], [44, 44, 44], [1.0, 1.0, 1.0]),
        ];
        for (slope, times, state, evaluations, ends) in cases {
            for (index, (relative, absolute)) in TOLERANCES.into_iter().enumerate() {
                let found = solve(slope, times, state, Tolerances { absolute, relative });
                assert_eq!(
                    found.evaluations(),
                    evaluations[index],
                    "{relative} {times:?}"
                );
                let error = (found.state()[0] / ends[index] - 1.0).abs();
                assert!(error < 1e-6, "{relative} {times:?}: {error}");
            }
        }
    }
}
