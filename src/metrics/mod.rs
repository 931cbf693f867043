//! Metrics of forgetting and of quality, each with its sample size and a 95 % interval.
//!
//! | question | metric |
//! |---|---|
//! | Can a member be told from a non-member? | [`MembershipSignal`], [`ControlTest`], [`LikelihoodRatio`], [`Roc`] |
//! | How likely is a point under the model? | [`Likelihood`] |
//! | Are the samples still good? | [`frechet_distance`], [`kernel_distance`], [`SlicedDistance`], [`inception_score`], [`precision_recall`] |
//! | Is the model as a retrained one would be? | [`ratio_to_floor`], [`RelativeTest`], [`bidirectional_loss`] |
//! | Are samples copies? | [`share_within`], [`relative_distances`], [`tiled_distances`], [`CopySimilarity`] |
//! | Does the point come back? | [`Relearning`], [`pair_attack`] |
//! | Which samples belong together? | [`KMeans`] |
//!
//! Quality is measured on [`Features`], which say how they were made: published numbers with the
//! same name differ in network, layer and resize ([`Resize`]), and are not one metric.

mod closeness;
mod copies;
mod estimate;
mod features;
mod frechet;
mod inception_score;
mod kernel_distance;
mod kmeans;
mod likelihood;
mod membership;
pub mod networks;
mod pair_attack;
mod precision_recall;
mod relative_test;
mod relearning;
mod resize;
mod roc;
mod sliced_distance;

pub use crate::quantile::quantile;
pub use crate::statistics::{binomial_interval, percentile_rank};
pub use closeness::{BidirectionalLoss, bidirectional_loss, ratio_to_floor};
pub use copies::{
    CopyProtocol, CopySimilarity, PictureSimilarity, nearest_distances, relative_distances,
    share_within, tiled_distances,
};
pub use estimate::{CONFIDENCE, Estimate};
pub use features::{Features, Moments};
pub use frechet::{frechet_distance, frechet_distance_of_moments};
pub use inception_score::{InceptionScore, inception_score};
pub use kernel_distance::kernel_distance;
pub use kmeans::{Clusters, KMeans};
pub use likelihood::{Likelihood, NoiseScale, PointLikelihood};
pub use membership::{ControlTest, LikelihoodRatio, MembershipSignal};
pub use pair_attack::pair_attack;
pub use precision_recall::{PrecisionRecall, precision_recall};
pub use relative_test::{RelativeCloseness, RelativeTest};
pub use relearning::{Relearning, RelearningCurve};
pub use resize::Resize;
pub use roc::{OperatingPoint, Roc};
pub use sliced_distance::SlicedDistance;
