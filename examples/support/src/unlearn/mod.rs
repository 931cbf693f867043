//! The example `unlearn`: a diffusers model forgets a folder of images.

pub mod checks;
pub mod data;
pub mod evaluate;
pub mod job;
pub mod memory;
pub mod options;
pub mod pictures;
pub mod precision;
pub mod predicted;
pub mod published;
pub mod report;
pub mod resources;
pub mod stream;
pub mod trainer;
