//! The data of a run: retained and forgotten points, their pairing into batches, and checks of
//! both.

mod batch;
pub(crate) mod check;
pub(crate) mod common;
pub(crate) mod distances;
mod dropping;
pub(crate) mod duplicates;
pub(crate) mod finite;
pub(crate) mod pairing;
mod pairs;
pub(crate) mod points;
pub(crate) mod side;
mod stream;

pub use batch::UnlearningBatch;
pub use check::{DataCheck, DataFinding};
pub use duplicates::{NearDuplicate, near_duplicates};
pub use pairing::{Pairing, Pairs};
pub use pairs::PairSampler;
pub use points::{PointLoader, Points};
pub use side::Side;
pub use stream::PairStream;
