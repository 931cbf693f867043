//! Mean and covariance of gradients, as far as two numbers say it.

/// Groups over which the error of a trace is estimated.
const GROUPS: usize = 8;

/// Sums of gradients and of their squared norms, in groups.
#[derive(Debug, Default)]
pub struct Moments {
    groups: Vec<Sums>,
    added: usize,
}

/// Sums over some gradients.
#[derive(Debug, Default, Clone)]
pub struct Sums {
    sum: Vec<f64>,
    squares: f64,
    count: f64,
}

impl Sums {
    fn add(&mut self, gradient: &[f32]) {
        self.sum.resize(gradient.len(), 0.0);
        for (sum, &value) in self.sum.iter_mut().zip(gradient) {
            *sum += f64::from(value);
            self.squares += f64::from(value).powi(2);
        }
        self.count += 1.0;
    }

    /// The sums over both.
    pub fn merge(mut self, other: &Sums) -> Sums {
        self.sum.resize(other.sum.len(), 0.0);
        for (sum, more) in self.sum.iter_mut().zip(&other.sum) {
            *sum += more;
        }
        self.squares += other.squares;
        self.count += other.count;
        self
    }

    /// `‖Σ g‖²`.
    fn squared_sum(&self) -> f64 {
        self.sum.iter().map(|sum| sum * sum).sum()
    }

    /// Unbiased for the trace of the covariance.
    fn trace(&self) -> f64 {
        (self.squares - self.squared_sum() / self.count) / (self.count - 1.0)
    }

    /// Unbiased for `‖E g‖²`: the mean of `⟨g, g′⟩` over pairs of different gradients.
    pub fn squared_mean(&self) -> f64 {
        (self.squared_sum() - self.squares) / (self.count * (self.count - 1.0))
    }
}

impl Moments {
    /// Adds one gradient of all parameters.
    pub fn add(&mut self, gradient: &[f32]) {
        self.groups.resize(GROUPS, Sums::default());
        self.groups[self.added % GROUPS].add(gradient);
        self.added += 1;
    }

    /// Over all gradients.
    pub fn total(&self) -> Sums {
        self.groups.iter().fold(Sums::default(), Sums::merge)
    }

    /// Trace of the covariance, and its standard error from the groups' traces.
    pub fn trace(&self) -> (f64, f64) {
        let traces: Vec<f64> = self.groups.iter().map(Sums::trace).collect();
        let mean = traces.iter().sum::<f64>() / GROUPS as f64;
        let squares: f64 = traces.iter().map(|trace| (trace - mean).powi(2)).sum();
        let error = (squares / (GROUPS * (GROUPS - 1)) as f64).sqrt();
        (self.total().trace(), error)
    }
}
