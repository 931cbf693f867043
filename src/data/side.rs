//! The two sides of the data: retained and forgotten.

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

/// A pair of values, one for each side.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sides<T> {
    pub(crate) retain: T,
    pub(crate) forget: T,
}

impl<T> Sides<T> {
    pub(crate) fn get(&self, side: Side) -> &T {
        match side {
            Side::Retain => &self.retain,
            Side::Forget => &self.forget,
        }
    }

    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> Sides<U> {
        Sides {
            retain: f(self.retain),
            forget: f(self.forget),
        }
    }

    pub(crate) fn as_ref(&self) -> Sides<&T> {
        Sides {
            retain: &self.retain,
            forget: &self.forget,
        }
    }
}
