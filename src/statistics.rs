//! Intervals and ranks.

use crate::error::{Error, Result, check_range};

/// Exact two-sided (Clopper–Pearson) confidence interval of a probability, given `successes` in
/// `trials`.
///
/// Each end leaves `(1 − confidence) / 2`: at the upper end, that is the probability of at most
/// `successes`; at the lower end, that of at least `successes`. With 0 successes the lower end is
/// 0, with `trials` successes the upper end is 1. The time grows with the square root of `trials`.
///
/// # Example
/// ```
/// let (low, high) = siss::report::binomial_interval(0, 30_720, 0.95)?;
/// assert_eq!(low, 0.0);
/// assert!((high - 1.2007e-4).abs() < 1e-8);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Errors
/// [`Error::Empty`] without trials, [`Error::OutOfRange`] if there are more successes than trials
/// or `confidence` is not between 0 and 1.
///
/// # Reference
/// Clopper and Pearson 1934, *The use of confidence or fiducial limits illustrated in the case of
/// the binomial*.
pub fn binomial_interval(successes: u64, trials: u64, confidence: f64) -> Result<(f64, f64)> {
    if trials == 0 {
        return Err(Error::Empty {
            what: "the list of trials",
            remedy: "an interval needs at least one trial",
        });
    }
    let (counted, possible) = (successes as f64, successes <= trials);
    check_range(
        "successes",
        counted,
        possible,
        "at most the number of trials",
    )?;
    let legal = confidence > 0.0 && confidence < 1.0;
    check_range("confidence", confidence, legal, "above 0 and below 1")?;

    let tail = (1.0 - confidence) / 2.0;
    let low = match successes {
        0 => 0.0,
        _ => bisect(|p| binomial_tails(successes, trials, p).at_least < tail),
    };
    let high = match successes {
        _ if successes == trials => 1.0,
        0 => -(tail.ln() / trials as f64).exp_m1(),
        _ => bisect(|p| binomial_tails(successes, trials, p).at_most > tail),
    };
    Ok((low, high))
}

/// The point of `[0, 1]` at which `is_below` changes from true to false.
fn bisect(is_below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return middle;
        }
        if is_below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// `P(X ≤ k)` and `P(X ≥ k)` of a binomial `X`.
struct Tails {
    at_most: f64,
    at_least: f64,
}

/// The tails at `k` of a binomial with `0 < p < 1`.
///
/// Sums the probabilities relative to that of the mode, outwards from it, until they become
/// negligible: no term is negative and none needs a factorial.
fn binomial_tails(k: u64, trials: u64, p: f64) -> Tails {
    /// Terms below this fraction of the mode's are left out: about 12 standard deviations away.
    const NEGLIGIBLE: f64 = 1e-30;
    let odds = p / (1.0 - p);
    let mode = ((trials as f64 * p + p) as u64).min(trials);
    let (mut total, mut at_most, mut at_least) = (0.0, 0.0, 0.0);
    let mut add = |count: u64, weight: f64| {
        total += weight;
        at_most += if count <= k { weight } else { 0.0 };
        at_least += if count >= k { weight } else { 0.0 };
    };

    add(mode, 1.0);
    let (mut count, mut weight) = (mode, 1.0);
    while count > 0 && weight > NEGLIGIBLE {
        weight *= count as f64 / (trials - count + 1) as f64 / odds;
        count -= 1;
        add(count, weight);
    }
    (count, weight) = (mode, 1.0);
    while count < trials && weight > NEGLIGIBLE {
        weight *= (trials - count) as f64 / (count + 1) as f64 * odds;
        count += 1;
        add(count, weight);
    }
    Tails {
        at_most: at_most / total,
        at_least: at_least / total,
    }
}

/// Percentage of the population below `value`; members equal to it count by half.
///
/// The population need not be sorted. NaN if it is empty, or if it or `value` contains a NaN.
///
/// # Example
/// ```
/// use siss::report::percentile_rank;
///
/// assert_eq!(percentile_rank(3.0, &[4.0, 1.0, 3.0, 2.0]), 62.5);
/// ```
pub fn percentile_rank(value: f64, population: &[f64]) -> f64 {
    if value.is_nan() || population.iter().any(|member| member.is_nan()) {
        return f64::NAN;
    }
    let below = population.iter().filter(|&&member| member < value).count();
    let ties = population.iter().filter(|&&member| member == value).count();
    100.0 * (below as f64 + 0.5 * ties as f64) / population.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantile::quantile;
    use proptest::prelude::*;

    /// `scipy.stats.beta.ppf` of scipy 1, the textbook form of the interval.
    #[test]
    fn intervals_agree_with_the_beta_quantiles_of_scipy() {
        let cases = [
            (0, 30_720, 0.95, 0.0, 0.00012007350199688605),
            (
                1,
                30_720,
                0.95,
                8.241470557125654e-07,
                0.0001813551052194368,
            ),
            (30_719, 30_720, 0.95, 0.9998186448947806, 0.9999991758529443),
            (15, 512, 0.95, 0.01648801460911842, 0.04786087313588523),
            (256, 512, 0.95, 0.45582167411961994, 0.5441783258803801),
            (3, 10, 0.90, 0.0872644339141503, 0.6066242161054123),
            (5, 10, 0.99, 0.12831055393508328, 0.8716894460649167),
            (10, 10, 0.95, 0.6915028921812392, 1.0),
            (1, 1, 0.50, 0.25, 1.0),
            (
                15_000,
                1_000_000,
                0.95,
                0.014762667030523383,
                0.015240148253478164,
            ),
            (
                500_000,
                1_000_000,
                0.999,
                0.498354241502883,
                0.501645758497117,
            ),
        ];
        for (successes, trials, confidence, low, high) in cases {
            let got = binomial_interval(successes, trials, confidence).unwrap();
            let close = |got: f64, want: f64| (got - want).abs() <= 1e-9 * want;
            let text = format!("{successes} of {trials}: {got:?}, not {:?}", (low, high));
            assert!(close(got.0, low) && close(got.1, high), "{text}");
        }
    }

    #[test]
    fn no_success_has_the_closed_form() {
        for trials in [1, 7, 30_720, u64::from(u32::MAX)] {
            let (low, high) = binomial_interval(0, trials, 0.95).unwrap();
            let expected = 1.0 - 0.025_f64.powf(1.0 / trials as f64);
            assert!(
                low == 0.0 && (high - expected).abs() < 1e-15,
                "{high}, not {expected}"
            );
        }
    }

    #[test]
    fn senseless_counts_are_refused() {
        assert!(matches!(
            binomial_interval(0, 0, 0.95),
            Err(Error::Empty { .. })
        ));
        for (successes, confidence) in [(11, 0.95), (3, 0.0), (3, 1.0), (3, f64::NAN)] {
            let result = binomial_interval(successes, 10, confidence);
            assert!(matches!(result, Err(Error::OutOfRange { .. })));
        }
    }

    /// The probability that the interval contains `p`, over all outcomes of `trials`.
    fn coverage(trials: u64, p: f64, confidence: f64) -> f64 {
        let probability = |k: u64| {
            let tails = binomial_tails(k, trials, p);
            tails.at_most + tails.at_least - 1.0
        };
        let holds = |k: u64| {
            let (low, high) = binomial_interval(k, trials, confidence).unwrap();
            low <= p && p <= high
        };
        (0..=trials).filter(|&k| holds(k)).map(probability).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn intervals_cover_at_least_as_promised(
            trials in 1_u64..40, p in 0.01_f64..0.99, confidence in 0.5_f64..0.99,
        ) {
            prop_assert!(coverage(trials, p, confidence) >= confidence - 1e-9);
        }

        #[test]
        fn intervals_hold_the_share_mirror_and_grow(
            trials in 1_u64..5000, share in 0.0_f64..=1.0, confidence in 0.5_f64..0.98,
        ) {
            let successes = (share * trials as f64) as u64;
            let (low, high) = binomial_interval(successes, trials, confidence).unwrap();
            let (wider_low, wider_high) = binomial_interval(successes, trials, confidence + 0.01).unwrap();
            let mirrored = binomial_interval(trials - successes, trials, confidence).unwrap();
            let observed = successes as f64 / trials as f64;
            prop_assert!(0.0 <= low && low <= observed && observed <= high && high <= 1.0);
            prop_assert!(wider_low <= low && high <= wider_high);
            prop_assert!((1.0 - mirrored.1 - low).abs() < 1e-9 && (1.0 - mirrored.0 - high).abs() < 1e-9);
        }

        #[test]
        fn more_successes_move_the_interval_up(trials in 2_u64..300, successes in 0_u64..300) {
            prop_assume!(successes < trials);
            let fewer = binomial_interval(successes, trials, 0.95).unwrap();
            let more = binomial_interval(successes + 1, trials, 0.95).unwrap();
            prop_assert!(fewer.0 < more.0 && fewer.1 < more.1);
        }

        #[test]
        fn ranks_and_quantiles_are_monotone(
            values in prop::collection::vec(-1e3_f64..1e3, 1..40), a in 0.0_f64..=1.0, b in 0.0_f64..=1.0,
        ) {
            let (low, high) = (quantile(&values, a.min(b)).unwrap(), quantile(&values, a.max(b)).unwrap());
            prop_assert!(low <= high);
            prop_assert!(percentile_rank(low, &values) <= percentile_rank(high, &values));
        }
    }

    #[test]
    fn ranks_count_ties_by_half() {
        let population = [2.0, 1.0, 2.0, 3.0];
        let ranks = [0.0, 1.0, 2.0, 2.5, 4.0].map(|value| percentile_rank(value, &population));
        assert_eq!(ranks, [0.0, 12.5, 50.0, 75.0, 100.0]);
        assert!(percentile_rank(1.0, &[]).is_nan());
        assert!(percentile_rank(f64::NAN, &population).is_nan());
    }
}
