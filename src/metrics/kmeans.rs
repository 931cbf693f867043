//! Clusters of feature vectors.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::features::Features;
use crate::draws::{Stream, keyed_rng};
use crate::error::{Result, check_range, check_shape};

/// k-means: Lloyd's algorithm from centres that k-means++ chooses.
///
/// | field | [`new`](KMeans::new) | purpose | range |
/// |---|---|---|---|
/// | `clusters` | given | number of clusters | 1 to the number of points |
/// | `restarts` | 10 | runs, of which the one with the smallest inertia counts | ≥ 1 |
/// | `iterations` | 300 | most updates of the centres in a run | ≥ 1 |
/// | `seed` | 0 | key of the random choices | |
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::metrics::{Features, KMeans};
///
/// let points = Tensor::<2>::from_data([[0.0], [0.1], [9.0], [9.1]], &Device::flex());
/// let clusters = KMeans::new(2).fit(&Features::of("pixels", points)?)?;
/// assert_eq!(clusters.labels[0], clusters.labels[1]);
/// assert_ne!(clusters.labels[0], clusters.labels[2]);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Arthur and Vassilvitskii 2007, *k-means++: The Advantages of Careful Seeding*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KMeans {
    /// Number of clusters.
    pub clusters: usize,
    /// Runs, of which the best counts.
    #[serde(default = "ten")]
    pub restarts: usize,
    /// Most updates of the centres in a run.
    #[serde(default = "three_hundred")]
    pub iterations: usize,
    /// Key of the random choices.
    #[serde(default)]
    pub seed: u64,
}

fn ten() -> usize {
    10
}

fn three_hundred() -> usize {
    300
}

/// Points divided into clusters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Clusters {
    /// The cluster of each point, that of the nearest centre.
    pub labels: Vec<usize>,
    /// The centre of each cluster, the mean of its points.
    pub centers: Vec<Vec<f64>>,
    /// Sum of the squared distances of the points from their centres.
    pub inertia: f64,
    /// Whether the labels stopped changing.
    pub converged: bool,
}

impl KMeans {
    /// This many clusters, the best of ten runs.
    pub fn new(clusters: usize) -> Self {
        Self {
            clusters,
            restarts: ten(),
            iterations: three_hundred(),
            seed: 0,
        }
    }

    /// Divides points into clusters.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a setting outside its range, as more
    /// clusters than points.
    pub fn fit(&self, points: &Features) -> Result<Clusters> {
        self.check(points)?;
        let run = |restart| self.lloyd(points, self.careful_seeding(points, restart));
        let mut best = run(0);
        for restart in 1..self.restarts {
            let next = run(restart as u64);
            if next.inertia < best.inertia {
                best = next;
            }
        }
        Ok(best)
    }

    /// Divides points into clusters, starting from given centres.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a setting outside its range,
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) unless there are `clusters` centres of
    /// the points' dimension.
    pub fn fit_from(&self, points: &Features, centers: Vec<Vec<f64>>) -> Result<Clusters> {
        self.check(points)?;
        let remedy = "give one centre for each cluster";
        check_shape(
            "the list of centres",
            &[self.clusters],
            &[centers.len()],
            remedy,
        )?;
        for center in &centers {
            let remedy = "give centres of the points' dimension";
            check_shape("a centre", &[points.dimension()], &[center.len()], remedy)?;
        }
        Ok(self.lloyd(points, centers))
    }

    fn check(&self, points: &Features) -> Result<()> {
        let (clusters, count) = (self.clusters, points.len());
        let legal = (1..=count).contains(&clusters);
        let requirement = "from 1 to the number of points";
        check_range("clusters", clusters as f64, legal, requirement)?;
        for (name, value) in [("restarts", self.restarts), ("iterations", self.iterations)] {
            check_range(name, value as f64, value >= 1, "at least 1")?;
        }
        Ok(())
    }

    /// The first centre at random, each further one with a probability proportional to the squared
    /// distance from the nearest centre so far.
    fn careful_seeding(&self, points: &Features, restart: u64) -> Vec<Vec<f64>> {
        let mut rng = keyed_rng(self.seed, restart, 0, Stream::Own("k-means++"));
        let center = |point: usize| points.row(point).iter().map(|&it| f64::from(it)).collect();
        let mut centers: Vec<Vec<f64>> = vec![center(rng.random_range(0..points.len()))];
        let mut nearest = vec![f64::INFINITY; points.len()];
        while let (Some(last), true) = (centers.last(), centers.len() < self.clusters) {
            for (point, nearest) in nearest.iter_mut().enumerate() {
                *nearest = nearest.min(squared_distance(points.row(point), last));
            }
            let total: f64 = nearest.iter().sum();
            let mut left = rng.random::<f64>() * total;
            let chosen = nearest.iter().position(|distance| {
                left -= distance;
                left < 0.0
            });
            // Without a distance, as many points as there are centres are the same.
            centers.push(center(chosen.unwrap_or(points.len() - 1)));
        }
        centers
    }

    /// Moves each centre to the mean of its points until no label changes.
    fn lloyd(&self, points: &Features, mut centers: Vec<Vec<f64>>) -> Clusters {
        let (mut labels, mut inertia) = assign(points, &centers);
        let mut converged = false;
        for _ in 0..self.iterations {
            move_to_means(points, &labels, &mut centers);
            let (next, spread) = assign(points, &centers);
            inertia = spread;
            converged = next == labels;
            labels = next;
            if converged {
                break;
            }
        }
        Clusters {
            labels,
            centers,
            inertia,
            converged,
        }
    }
}

/// The nearest centre of each point, and the sum of the squared distances.
fn assign(points: &Features, centers: &[Vec<f64>]) -> (Vec<usize>, f64) {
    let mut inertia = 0.0;
    let labels = (0..points.len()).map(|point| {
        let row = points.row(point);
        let (mut label, mut nearest) = (0, f64::INFINITY);
        for (index, center) in centers.iter().enumerate() {
            let distance = squared_distance(row, center);
            if distance < nearest {
                (label, nearest) = (index, distance);
            }
        }
        inertia += nearest;
        label
    });
    (labels.collect(), inertia)
}

/// A centre without points stays where it is.
fn move_to_means(points: &Features, labels: &[usize], centers: &mut [Vec<f64>]) {
    let mut sums = vec![vec![0.0; points.dimension()]; centers.len()];
    let mut counts = vec![0_usize; centers.len()];
    for (point, &label) in labels.iter().enumerate() {
        counts[label] += 1;
        for (sum, &value) in sums[label].iter_mut().zip(points.row(point)) {
            *sum += f64::from(value);
        }
    }
    for ((center, sum), count) in centers.iter_mut().zip(sums).zip(counts) {
        if count > 0 {
            *center = sum.into_iter().map(|sum| sum / count as f64).collect();
        }
    }
}

fn squared_distance(point: &[f32], center: &[f64]) -> f64 {
    let pairs = point.iter().zip(center);
    pairs.map(|(&x, c)| (f64::from(x) - c).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;
    use crate::error::Error;
    use burn::tensor::Tensor;

    /// Four groups on the corners of a square, each of 20 points.
    fn corners() -> Features {
        let corners = [[-5.0, -5.0], [5.0, -5.0], [-5.0, 5.0], [5.0, 5.0]];
        let groups = corners.map(|corner| {
            let corner = Tensor::<2>::from_data([corner], &burn::tensor::Device::flex());
            normal(corners.len() as u64, 20, 2) * 0.1 + corner
        });
        features(Tensor::cat(groups.to_vec(), 0))
    }

    #[test]
    fn separate_groups_are_found_for_every_seed() {
        for seed in 0..20 {
            let found = KMeans {
                seed,
                ..KMeans::new(4)
            }
            .fit(&corners())
            .unwrap();
            assert!(found.converged);
            for group in found.labels.chunks(20) {
                assert!(group.iter().all(|label| *label == group[0]));
            }
            assert!(found.inertia < 80.0 * 0.05, "{}", found.inertia);
        }
    }

    #[test]
    fn a_seed_decides_and_more_clusters_are_tighter() {
        let points = features(normal(3, 200, 4));
        let mut before = f64::INFINITY;
        for clusters in 1..8 {
            let fit = KMeans::new(clusters);
            let found = fit.fit(&points).unwrap();
            assert_eq!(found, fit.fit(&points).unwrap());
            assert!(found.inertia < before);
            before = found.inertia;
        }
    }

    #[test]
    fn equal_points_and_as_many_clusters_as_points_are_no_trouble() {
        let same = features(normal(1, 1, 3).repeat_dim(0, 5));
        let found = KMeans::new(5).fit(&same).unwrap();
        assert_eq!(found.inertia, 0.0);
        let all = features(normal(1, 6, 3));
        assert!(KMeans::new(6).fit(&all).unwrap().inertia < 1e-12);
        for clusters in [0, 7] {
            let error = KMeans::new(clusters).fit(&all).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        name: "clusters",
                        ..
                    }
                ),
                "{error}"
            );
        }
        let error = KMeans::new(1)
            .fit_from(&all, vec![vec![0.0; 2]])
            .unwrap_err();
        assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    }
}
