//! The job of the example `audit`: tests on a model before and after unlearning, and the report.

pub mod attacks;
pub mod closeness;
pub mod cost;
pub mod facts;
pub mod job;
pub mod keep;
pub mod material;
pub mod options;
pub mod pictures;
pub mod ranks;
pub mod ratio;
pub mod returns;
pub mod summary;
pub mod today;
