//! The two sides of the data.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which of the two sides of a batch something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The points whose quality must stay.
    Retain,
    /// The points that must be forgotten.
    Forget,
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Side::Retain => "retain",
            Side::Forget => "forget",
        })
    }
}
