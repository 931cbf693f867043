//! The numbers of a report in JSON: twelve significant digits, which every reader of JSON gives
//! back unchanged. Of more digits, some readers change the last.

use serde::{Serialize, Serializer};

pub(super) fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(significant(*value))
}

pub(super) fn optional<S: Serializer>(
    value: &Option<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.map(significant).serialize(serializer)
}

pub(super) fn interval<S: Serializer>(
    ends: &Option<[f64; 2]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    ends.map(|ends| ends.map(significant)).serialize(serializer)
}

pub(super) fn points<S: Serializer>(
    points: &[(f64, f64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let rounded = points
        .iter()
        .map(|&(x, y)| (significant(x), significant(y)));
    serializer.collect_seq(rounded)
}

fn significant(value: f64) -> f64 {
    format!("{value:.11e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_digits_are_left_and_read_back() {
        assert_eq!(significant(1.0 / 3.0), 0.333_333_333_333);
        assert_eq!(significant(-2.0e-20 / 3.0), -6.666_666_666_67e-21);
        for value in [0.0, 1.0, -0.05, 123_456_789_012.0, f64::MAX / 3.0] {
            let rounded = significant(value);
            assert_eq!(significant(rounded), rounded);
        }
        for index in 1..2000 {
            let text = serde_json::to_string(&significant(1.0 / f64::from(index))).unwrap();
            let read: f64 = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }
}
