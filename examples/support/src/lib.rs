//! Code shared by the examples, tests and fuzz targets of `siss`: the jobs of the two main
//! examples, and their parts.

#![forbid(unsafe_code)]

pub mod audit;
pub mod cases;
pub mod cast;
pub mod classifier;
pub mod clock;
pub mod closeness;
pub mod conformance;
pub mod curves;
pub mod digits;
pub mod emoji;
pub mod files;
pub mod lines;
pub mod network;
pub mod options;
pub mod page;
pub mod predictions;
pub mod probe;
pub mod process;
pub mod progress;
pub mod quick;
pub mod readers;
pub mod request;
pub mod resume;
pub mod run;
pub mod small;
pub mod subject;
pub mod survey;
pub mod target;
pub mod tiny;
pub mod trained;
pub mod triggers;
pub mod tshirt;
pub mod unlearn;
pub mod variants;
pub mod way;
