//! Which retained point is paired with which forgotten point in each step, by index.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::draws::{Stream, keyed_rng, mixed};
use crate::error::{Error, Result, check_range};

/// Which retained point is paired with which forgotten point, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    /// Index into the retain set, for each row.
    pub retain: Vec<usize>,
    /// Index into the forget set, for each row.
    pub forget: Vec<usize>,
}

impl Pairs {
    /// The indices of the forgotten points as ids, for
    /// [`UnlearningBatch::with_forget_ids`](crate::UnlearningBatch::with_forget_ids).
    pub fn forget_ids(&self) -> Vec<u64> {
        self.forget.iter().map(|&index| index as u64).collect()
    }
}

/// Pairs retained with forgotten points by index; the same (seed, step) always gives the same
/// pairs.
///
/// [`PairStream`](crate::data::PairStream) uses it for data that do not fit in memory,
/// [`PairSampler`](crate::PairSampler) for data that do.
///
/// Each set is traversed in shuffled epochs: every point is used once before any is used again. The
/// pairs of a step follow from the step's number, so a resumed run needs nothing else. Their cost
/// does not depend on the size of the sets.
///
/// # Example
/// ```
/// use siss::data::Pairing;
///
/// let pairing = Pairing::new(1_000_000_000, 3, 0)?;
/// let pairs = pairing.pairs(12, 4)?;
/// assert_eq!(pairs, pairing.pairs(12, 4)?);
/// assert!(pairs.retain.iter().all(|&index| index < 1_000_000_000));
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pairing {
    retained: usize,
    forgotten: usize,
    seed: u64,
}

/// Largest batch that is accepted; a larger one is taken for a mistake.
const LARGEST_BATCH: usize = 1_000_000;

impl Pairing {
    /// Creates a pairing of this many retained and forgotten points.
    ///
    /// # Errors
    /// [`Error::Empty`] for a set without points.
    pub fn new(retained: usize, forgotten: usize, seed: u64) -> Result<Self> {
        for (what, count) in [("the retain set", retained), ("the forget set", forgotten)] {
            if count == 0 {
                return Err(Error::Empty {
                    what,
                    remedy: "give at least one point",
                });
            }
        }
        Ok(Self {
            retained,
            forgotten,
            seed,
        })
    }

    /// The same pairing with another seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The number of forgotten points.
    pub fn forgotten(&self) -> usize {
        self.forgotten
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The indices that are paired in optimiser step `step`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `batch_size` is from 1 to 1,000,000.
    pub fn pairs(&self, step: u64, batch_size: usize) -> Result<Pairs> {
        let legal = (1..=LARGEST_BATCH).contains(&batch_size);
        check_range(
            "batch_size",
            batch_size as f64,
            legal,
            "from 1 to 1,000,000",
        )?;
        let first = u128::from(step) * batch_size as u128;
        let indices = |size, set| shuffled_epochs(size, first, batch_size, self.seed, set);
        Ok(Pairs {
            retain: indices(self.retained, 0),
            forget: indices(self.forgotten, 1),
        })
    }
}

/// Positions `first .. first + count` of an endless sequence of shuffled passes over `0 .. size`.
fn shuffled_epochs(size: usize, first: u128, count: usize, seed: u64, set: u64) -> Vec<usize> {
    let mut current: Option<(u64, Shuffle)> = None;
    (first..first + count as u128)
        .map(|position| {
            let epoch = (position / size as u128) as u64;
            let shuffle = match current.take() {
                Some((of, shuffle)) if of == epoch => shuffle,
                _ => Shuffle::new(size as u64, keyed_rng(seed, epoch, set, Stream::Pairs)),
            };
            let index = shuffle.at((position % size as u128) as u64);
            current = Some((epoch, shuffle));
            index as usize
        })
        .collect()
}

/// Rounds of the shuffle.
///
/// Two points are separated after a few rounds, and all points of a set of 2⁶⁴ after about as many
/// rounds as a number has bits.
const ROUNDS: usize = 64;

/// A random order of `0 .. size` that is computed place by place, not stored.
///
/// The swap-or-not shuffle (Hoang, Morris and Rogaway, CRYPTO 2012). Each round has a random pivot
/// `k` and pairs `x` with `k − x` modulo the size. The two either stay or swap places, by a random
/// bit that belongs to the pair.
struct Shuffle {
    size: u64,
    /// The pivot of each round, and the key of its random bits.
    rounds: [(u64, u64); ROUNDS],
}

impl Shuffle {
    fn new(size: u64, mut rng: impl Rng) -> Self {
        let rounds = std::array::from_fn(|_| {
            // The upper half of the product is uniform below `size`.
            let pivot = (u128::from(rng.random::<u64>()) * u128::from(size)) >> 64;
            (pivot as u64, rng.random())
        });
        Self { size, rounds }
    }

    fn at(&self, place: u64) -> u64 {
        self.rounds.iter().fold(place, |place, &(pivot, key)| {
            let other = match pivot >= place {
                true => pivot - place,
                false => self.size - (place - pivot),
            };
            match mixed(key ^ place.max(other)) & 1 {
                1 => other,
                _ => place,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn orders(size: u64, epochs: u64) -> impl Iterator<Item = Vec<u64>> {
        (0..epochs).map(move |epoch| {
            let shuffle = Shuffle::new(size, keyed_rng(5, epoch, 0, Stream::Pairs));
            (0..size).map(|place| shuffle.at(place)).collect()
        })
    }

    #[test]
    fn a_shuffle_of_any_size_is_an_order_of_all() {
        for size in (1..200).chain([1 << 12, 9_973, 100_000]) {
            for order in orders(size, 3) {
                let distinct: HashSet<u64> = order.iter().copied().collect();
                assert_eq!(distinct.len() as u64, size);
                assert!(order.iter().all(|&index| index < size));
            }
        }
    }

    /// Chi-square minus its degrees of freedom, in standard deviations.
    fn deviation(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        let squares = counts
            .iter()
            .map(|&count| (count as f64 - expected).powi(2));
        let freedom = (counts.len() - 1) as f64;
        (squares.sum::<f64>() / expected - freedom) / (2.0 * freedom).sqrt()
    }

    /// Each place with each index (first order), two places with two indices (second order), and,
    /// for the smallest sets, every order.
    #[test]
    fn orders_are_uniform() {
        let epochs = 60_000;
        for size in [2_usize, 3, 4, 7, 16, 33] {
            let mut single = vec![0; size * size];
            let mut double = vec![0; size * size];
            let mut whole = std::collections::BTreeMap::new();
            for order in orders(size as u64, epochs) {
                for (place, &index) in order.iter().enumerate() {
                    single[place * size + index as usize] += 1;
                }
                // Two places: the first, and one in the middle.
                let [a, b] = [order[0], order[size / 2]].map(|index| index as usize);
                double[a * size + b] += 1;
                if size <= 4 {
                    *whole.entry(order).or_insert(0) += 1;
                }
            }
            for place in single.chunks(size) {
                assert!(deviation(place).abs() < 5.0, "{size}: {place:?}");
            }
            double.retain(|&count| count > 0);
            assert_eq!(double.len(), size * (size - 1));
            assert!(deviation(&double).abs() < 5.0, "{size}");
            if size <= 4 {
                let whole: Vec<u64> = whole.into_values().collect();
                assert_eq!(whole.len(), (1..=size).product::<usize>());
                assert!(deviation(&whole).abs() < 5.0, "{size}: {whole:?}");
            }
        }
    }

    /// Neighbouring indices are independent: the differences between them are as uniform as the
    /// indices.
    #[test]
    fn a_large_order_has_no_pattern() {
        let size = 1_000_003;
        let shuffle = Shuffle::new(size, keyed_rng(7, 0, 0, Stream::Pairs));
        let bin = |value: u64| (value * 100 / size) as usize;
        let (mut indices, mut steps) = (vec![0; 100], vec![0; 100]);
        for place in 0..50_000 {
            let (index, next) = (shuffle.at(place), shuffle.at(place + 1));
            indices[bin(index)] += 1;
            steps[bin((next + size - index) % size)] += 1;
        }
        assert!(deviation(&indices).abs() < 5.0, "{indices:?}");
        assert!(deviation(&steps).abs() < 5.0, "{steps:?}");
    }

    #[test]
    fn every_point_is_used_once_an_epoch_and_pairs_repeat() {
        let pairing = Pairing::new(10, 3, 5).unwrap();
        let steps: Vec<Pairs> = (0..10)
            .map(|step| pairing.pairs(step, 4).unwrap())
            .collect();
        let joined = |side: fn(&Pairs) -> &Vec<usize>| -> Vec<usize> {
            steps.iter().flat_map(|pairs| side(pairs).clone()).collect()
        };
        let (retained, forgotten) = (joined(|pairs| &pairs.retain), joined(|pairs| &pairs.forget));
        for epoch in retained.chunks(10) {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 10);
        }
        assert_ne!(retained[..10], retained[10..20]);
        for epoch in forgotten[..39].chunks(3) {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 3);
        }
        assert_eq!(pairing.pairs(7, 4).unwrap(), steps[7]);
        assert_ne!(pairing.with_seed(6).pairs(7, 4).unwrap(), steps[7]);
        assert_eq!(steps[7].forget_ids().len(), 4);
    }

    /// Sets too large for their order to be stored.
    #[test]
    fn the_size_of_a_set_costs_nothing() {
        let pairing = Pairing::new(usize::MAX, 1 << 40, 1).unwrap();
        let pairs = pairing.pairs(u64::MAX, 1000).unwrap();
        let distinct: HashSet<_> = pairs.retain.iter().collect();
        assert_eq!(distinct.len(), 1000);
        assert!(pairs.forget.iter().all(|&index| index < 1 << 40));
    }

    #[test]
    fn sets_of_the_same_size_are_shuffled_apart() {
        let pairs = Pairing::new(10, 10, 5).unwrap().pairs(0, 10).unwrap();
        assert_ne!(pairs.retain, pairs.forget);
    }

    #[test]
    fn empty_sets_and_batches_out_of_range_are_refused() {
        assert!(Pairing::new(0, 1, 0).is_err() && Pairing::new(1, 0, 0).is_err());
        let pairing = Pairing::new(10, 1, 0).unwrap();
        for bad in [0, LARGEST_BATCH + 1] {
            let error = pairing.pairs(0, bad).unwrap_err().to_string();
            assert!(error.contains(&format!("batch_size is {bad}")), "{error}");
        }
    }
}
