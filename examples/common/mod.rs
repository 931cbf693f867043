//! What the examples that unlearn images share.

pub mod checkpoint;
pub mod curves;
pub mod lines;
pub mod page;
pub mod probe;
pub mod progress;
pub mod resume;
pub mod run;
pub mod target;
