//! Numbers that JSON cannot represent: NaN, infinities, and exact floats.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Reads a number, with `null` as NaN: JSON has no NaN or infinity, which are written as `null`.
pub(crate) fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Serialises numbers as their bits, which JSON carries exactly.
pub(crate) mod exact {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<'a, S: Serializer>(
        numbers: impl IntoIterator<Item = &'a f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(numbers.into_iter().map(|number| number.to_bits()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, C: FromIterator<f64>>(
        deserializer: D,
    ) -> Result<C, D::Error> {
        let bits = Vec::<u64>::deserialize(deserializer)?;
        Ok(bits.into_iter().map(f64::from_bits).collect())
    }
}

/// The numbers that Python writes as bare words.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Parses a JSON object that Python wrote.
///
/// Its `NaN`, `Infinity` and `-Infinity` become strings with these letters: a reader that needs a
/// number refuses the string and names it, and a key that is not used does no harm.
pub(crate) fn python_object(text: &str) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_str(&words_in_quotes(text))
}

fn words_in_quotes(text: &str) -> Cow<'_, str> {
    if !WORDS.iter().any(|word| text.contains(word)) {
        return text.into();
    }
    let mut quoted = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|word| rest.starts_with(**word));
        let length = match word {
            _ if first == '"' => string_length(rest),
            Some(word) => word.len(),
            None => first.len_utf8(),
        };
        let (piece, after) = rest.split_at(length);
        // A word before a colon is a key; Python puts keys in quotes.
        if word.is_some() && !after.trim_start().starts_with(':') {
            quoted.extend(["\"", piece, "\""]);
        } else {
            quoted += piece;
        }
        rest = after;
    }
    quoted.into()
}

/// Length in bytes of the string at the beginning of `text`, including its quotes; the whole length
/// if the string does not end.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().enumerate().skip(1).find(|&(_, byte)| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or(text.len(), |(position, _)| position + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_to_the_bit() {
        #[derive(serde::Serialize, Deserialize)]
        struct Numbers(#[serde(with = "exact")] Vec<f64>);
        let values = vec![0.1, -0.0, f64::NAN, f64::INFINITY, 5e-324];
        let text = serde_json::to_string(&Numbers(values.clone())).unwrap();
        let Numbers(back) = serde_json::from_str(&text).unwrap();
        let bits = |numbers: Vec<f64>| numbers.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(back), bits(values));
    }

    /// The first is read with another last digit by a parser that takes the short way.
    #[test]
    fn finite_numbers_come_back_to_the_bit_without_help() {
        for value in [10.930_863_576_071_891, 0.1 + 0.2, 5e-324, f64::MAX] {
            let text = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<f64>(&text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn the_words_of_python_are_read_where_a_number_may_stand() {
        let object = python_object(
            r#"{"a": -Infinity, "b": [NaN, Infinity ,1], "c": "NaN, \"Infinity", "d\\": NaN}"#,
        )
        .unwrap();
        let expected = serde_json::json!({
            "a": "-Infinity", "b": ["NaN", "Infinity", 1], "c": "NaN, \"Infinity", "d\\": "NaN"
        });
        assert_eq!(Value::Object(object), expected);
    }

    #[test]
    fn other_words_are_none() {
        for text in [
            "{NaN: 1}",
            r#"{"a": nan}"#,
            r#"{"a": NaN1}"#,
            r#"{"a": xNaN}"#,
            r#"{"a": +Infinity}"#,
            r#"{"a": --Infinity}"#,
            r#"{"a": "NaN}"#,
            "NaN",
        ] {
            assert!(python_object(text).is_err(), "{text}");
        }
    }
}
