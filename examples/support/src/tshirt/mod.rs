//! The example `mnist_tshirt`: a model of digits forgets the one T-shirt that it memorised.

pub mod evaluate;
pub mod job;
pub mod options;
pub mod pictures;
