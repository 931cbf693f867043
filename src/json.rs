//! What JSON cannot say.

use serde::{Deserialize, Deserializer};

/// JSON has no NaN or infinity: they are written as `null` and read back as NaN.
pub(crate) fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
