//! Mean and covariance of gradients, summarised by two numbers.

/// Number of groups that are left out in turn to estimate the error of a ratio.
const GROUPS: usize = 8;

/// Sums of gradients and of their squared norms, in groups.
#[derive(Debug, Default)]
pub struct Moments {
    groups: Vec<Sums>,
    added: usize,
}

/// Sums over some gradients.
#[derive(Debug, Default, Clone)]
struct Sums {
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
    fn merge(mut self, other: &Sums) -> Sums {
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

    /// An unbiased estimate of the trace of the covariance.
    fn trace(&self) -> f64 {
        (self.squares - self.squared_sum() / self.count) / (self.count - 1.0)
    }

    /// An unbiased estimate of `‖E g‖²`: the mean of `⟨g, g′⟩` over pairs of different gradients.
    fn squared_mean(&self) -> f64 {
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

    fn sums(&self, picks: impl Fn(usize) -> bool) -> Sums {
        let picked = self.groups.iter().enumerate();
        let picked = picked.filter(|&(index, _)| picks(index));
        picked.fold(Sums::default(), |sums, (_, group)| sums.merge(group))
    }

    /// Estimates of the gradients' distribution.
    pub fn spread(&self) -> Spread {
        let all = self.sums(|_| true);
        Spread {
            trace: all.trace(),
            squared_mean: all.squared_mean(),
            without: std::array::from_fn(|left_out| self.sums(|index| index != left_out).trace()),
        }
    }
}

/// Unbiased estimates of the trace of the covariance and the squared norm of the mean.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub trace: f64,
    pub squared_mean: f64,
    /// The trace with each group left out.
    without: [f64; GROUPS],
}

impl Spread {
    /// The ratio of this trace to another's, from the same draws, and the jackknife estimate of its
    /// standard error.
    pub fn over(&self, other: &Spread) -> (f64, f64) {
        let ratios: Vec<f64> = self
            .without
            .iter()
            .zip(&other.without)
            .map(|(own, other)| own / other)
            .collect();
        let mean = ratios.iter().sum::<f64>() / GROUPS as f64;
        let squares: f64 = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum();
        let error = (squares * (GROUPS - 1) as f64 / GROUPS as f64).sqrt();
        (self.trace / other.trace, error)
    }
}
