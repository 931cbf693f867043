//! What the examples, tests and fuzz targets of `siss` share: the jobs of the two main examples, and what they are made of.

#![forbid(unsafe_code)]

pub mod clock;
pub mod conformance;
pub mod curves;
pub mod digits;
pub mod files;
pub mod lines;
pub mod options;
pub mod page;
pub mod probe;
pub mod progress;
pub mod readers;
pub mod recipe;
pub mod resume;
pub mod run;
pub mod small;
pub mod target;
pub mod tshirt;
pub mod unlearn;
pub mod way;
