//! Metrics of forgetting and of quality, each with its sample size and a 95 % interval.
//!
//! | question | metric |
//! |---|---|
//! | Can a member be told from a non-member? | [`MembershipSignal`], [`ControlTest`], [`LikelihoodRatio`], [`Roc`] |
//! | Are the samples still good? | [`frechet_distance`], [`kernel_distance`], [`inception_score`], [`precision_recall`] |
//! | Which samples belong together? | [`KMeans`] |
//!
//! Quality is measured on [`Features`], which say how they were made: published numbers with the
//! same name differ in network, layer and resize ([`Resize`]), and are not one metric.

mod estimate;
mod features;
mod frechet;
mod inception_score;
mod kernel_distance;
mod kmeans;
mod membership;
mod precision_recall;
mod resize;
mod roc;

pub use estimate::{CONFIDENCE, Estimate};
pub use features::{Features, Moments};
pub use frechet::{frechet_distance, frechet_distance_of_moments};
pub use inception_score::{InceptionScore, inception_score};
pub use kernel_distance::kernel_distance;
pub use kmeans::{Clusters, KMeans};
pub use membership::{ControlTest, LikelihoodRatio, MembershipSignal};
pub use precision_recall::{PrecisionRecall, precision_recall};
pub use resize::Resize;
pub use roc::{OperatingPoint, Roc};
