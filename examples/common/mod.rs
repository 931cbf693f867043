//! What the examples that unlearn images share.

pub mod curves;
pub mod files;
pub mod lines;
pub mod options;
pub mod page;
pub mod probe;
pub mod progress;
pub mod resume;
pub mod run;
pub mod target;
