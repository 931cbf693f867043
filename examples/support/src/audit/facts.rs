//! What a report holds besides measurements.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use siss::report::audit::{
    Attack, AuditReport, AuditedRun, NotTested, OldCopy, Request, Tester, Threat,
};

use crate::audit::options::RecordOptions;
use crate::audit::today::today;

/// Versions of the crates that compute.
const BURN: &str = "0.22";

/// A report with what a person stated, and how to repeat the run.
pub fn frame(
    stated: &RecordOptions,
    settings: &impl Serialize,
    seed: u64,
    device: &str,
) -> serde_json::Result<AuditReport> {
    Ok(AuditReport {
        request: Request {
            id: stated.request.clone(),
            received: stated.received.clone(),
            completed: stated.completed.clone(),
            legal_basis: None,
        },
        tester: Tester {
            name: stated.tester.clone(),
            relation: stated.relation.clone(),
            tested: today(),
        },
        run: AuditedRun {
            command: command(std::env::args()),
            configuration: flattened(&serde_json::to_value(settings)?),
            seed,
            versions: versions(),
            device: device.into(),
        },
        shows_subjects: stated.show_forgotten,
        residual_risk: "A test with other samples, other noise or another attack may find what these did not. Copies of the model from before, models made from it, backups, and pictures that were generated earlier and passed on still hold what they held.".into(),
        ..AuditReport::default()
    })
}

/// Who might look for the items; those that a test stands for.
pub fn threats(tested: &[Attack]) -> Vec<Threat> {
    let has = |attack| tested.contains(&attack);
    [
        (
            "the pictures that the model generates",
            has(Attack::DataReconstruction),
        ),
        (
            "the model's weights, and the item or a guess of it",
            has(Attack::MembershipInference),
        ),
        (
            "the model's weights, and the means to train it further",
            has(Attack::Relearning),
        ),
        ("the model from before as well", has(Attack::PairAttack)),
        ("the training data, or records of the training", false),
    ]
    .map(|(attacker, is_tested)| Threat {
        attacker: attacker.into(),
        is_tested,
    })
    .into()
}

/// The kinds of attack that no test of the report stands for, each with the reason.
pub fn left_open(tested: &[Attack], why: &str) -> Vec<NotTested> {
    let open = Attack::ALL
        .into_iter()
        .filter(|attack| !tested.contains(attack));
    open.map(|attack| NotTested {
        attack: Some(attack),
        what: attack.name().into(),
        why: why.into(),
    })
    .collect()
}

/// What none of these programs tests.
pub fn never_tested() -> Vec<NotTested> {
    [
        (
            "attacks with many models trained for them (shadow models)",
            "they need dozens of training runs; they are the strongest known",
        ),
        (
            "models made from this one",
            "the tests look at one model; each descendant would have to be tested itself",
        ),
        (
            "features inside the network",
            "only what goes into the model and what comes out of it is compared",
        ),
        (
            "the quality of generated pictures (FID)",
            "it needs thousands of pictures; the loss of unseen pictures stands in for it",
        ),
    ]
    .map(|(what, why)| NotTested {
        attack: None,
        what: what.into(),
        why: why.into(),
    })
    .into()
}

/// The model from before is still where it was read from.
pub fn old_model(place: String) -> OldCopy {
    OldCopy {
        place,
        fate: "the model from before, read for this report; `audit purge` lists what else still holds the item".into(),
    }
}

fn versions() -> BTreeMap<String, String> {
    let siss = env!("CARGO_PKG_VERSION");
    [("siss", siss), ("burn", BURN)]
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .into()
}

/// A command line that a shell reads as it was.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let is_plain = |character: char| character.is_alphanumeric() || "-_./:=,".contains(character);
    let quoted = |argument: String| match !argument.is_empty() && argument.chars().all(is_plain) {
        true => argument,
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    };
    // The program without its folder, which is another on another machine.
    let mut arguments = arguments;
    let program = arguments.next().unwrap_or_default();
    let name = program
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or_default()
        .to_owned();
    let all = std::iter::once(name).chain(arguments).map(quoted);
    all.collect::<Vec<_>>().join(" ")
}

/// Settings as names and texts; those that are not set are left out.
fn flattened(settings: &Value) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    flatten(String::new(), settings, &mut flat);
    flat
}

fn flatten(name: String, value: &Value, flat: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (field, value) in fields {
                let inner = match name.as_str() {
                    "" => field.clone(),
                    name => format!("{name}.{field}"),
                };
                flatten(inner, value, flat);
            }
        }
        Value::String(text) => {
            flat.insert(name, text.clone());
        }
        other => {
            flat.insert(name, other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let arguments = [
            "/a/b/audit",
            "--tester",
            "A. O'Tester",
            "--out",
            "target/x",
            "",
        ];
        let command = command(arguments.into_iter().map(str::to_owned));
        assert_eq!(
            command,
            r"audit --tester 'A. O'\''Tester' --out target/x ''"
        );
    }

    #[test]
    fn settings_are_flat_and_unset_ones_are_left_out() {
        let settings = serde_json::json!({"a": {"b": 1, "c": null}, "d": "text", "e": [1, 2]});
        let flat = flattened(&settings);
        let pairs: Vec<(&str, &str)> = flat
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(pairs, [("a.b", "1"), ("d", "text"), ("e", "[1,2]")]);
    }

    #[test]
    fn every_attack_is_tested_or_left_open() {
        let tested = [Attack::PairAttack, Attack::Relearning];
        assert_eq!(
            left_open(&tested, "no").len() + tested.len(),
            Attack::ALL.len()
        );
    }
}
