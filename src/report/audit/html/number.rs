//! Numbers as a reader wants them.

use super::element::{Html, element, text};
use crate::report::audit::{Measured, Unit};

/// A measured number with its interval and sample size. Lines do not break next to a sign.
pub(super) fn measured(measured: &Measured, unit: &Unit) -> Html {
    let number = element("span", "number", text(value(measured.value, unit)));
    let mut certainty = Vec::new();
    if let Some([low, high]) = measured.interval {
        let [low, high] = [low, high].map(|end| without_unit(end, unit));
        let sign = if *unit == Unit::Share { "\u{a0}%" } else { "" };
        certainty.push(format!("95\u{a0}% interval {low} to\u{a0}{high}{sign}"));
    }
    if let Some(p_value) = measured.p_value {
        certainty.push(format!("p\u{a0}=\u{a0}{}", significant(p_value, 2)));
    }
    certainty.push(format!("n\u{a0}=\u{a0}{}", samples(&measured.samples)));
    certainty.extend(measured.note.clone());
    let certainty = element("span", "certainty", text(certainty.join("; ")));
    [number, certainty].into_iter().collect()
}

/// A number with its unit.
fn value(value: f64, unit: &Unit) -> String {
    let number = without_unit(value, unit);
    match unit {
        Unit::Share => format!("{number}\u{a0}%"),
        Unit::Named(_) => number,
    }
}

fn without_unit(value: f64, unit: &Unit) -> String {
    match unit {
        Unit::Share => significant(100.0 * value, 3),
        Unit::Named(_) => significant(value, 3),
    }
}

/// Sizes of samples: `256`, or `1 and 1,000`.
fn samples(sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(|&size| grouped(size as u64)).collect();
    sizes.join(" and ")
}

/// A whole number with its thousands separated.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with some significant digits, whole numbers up to a million in full.
pub(super) fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs();
    if value.fract() == 0.0 && size < 1e6 {
        let sign = if value < 0.0 { "−" } else { "" };
        return format!("{sign}{}", grouped(size as u64));
    }
    let text = if (1e-4..1e6).contains(&size) {
        let decimals = (digits - 1 - size.log10().floor() as i32).max(0) as usize;
        format!("{value:.decimals$}")
    } else {
        format!("{value:.*e}", (digits - 1).max(0) as usize)
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_no_more() {
        for (number, text) in [
            (0.0, "0"),
            (0.012_345, "0.0123"),
            (3.0, "3"),
            (2048.0, "2,048"),
            (99.95, "100.0"),
            (-1.2345, "−1.23"),
            (123_456.7, "123457"),
            (1.234e-7, "1.23e−7"),
            (4.5e9, "4.50e9"),
        ] {
            assert_eq!(significant(number, 3), text, "{number}");
        }
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
