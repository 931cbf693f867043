//! What a report holds besides measurements.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use siss::report::audit::{
    Attack, AuditReport, AuditedRun, NotTested, OldCopy, Request, Tester, Threat,
};

use crate::audit::options::RecordOptions;
use crate::audit::today::today;

/// The versions that this build was made with: examples are built in the workspace of this file.
const LOCKED: &str = include_str!("../../../../Cargo.lock");

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
            legal_basis: stated.legal_basis.clone(),
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
            ..AuditedRun::default()
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
    ["siss", "burn"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), locked(name, LOCKED)?.to_owned())))
        .collect()
}

/// The version of a package in a `Cargo.lock`.
fn locked<'a>(name: &str, lock: &'a str) -> Option<&'a str> {
    let mut lines = lock.lines();
    lines.find(|line| *line == format!("name = \"{name}\""))?;
    let version = lines.next()?.strip_prefix("version = \"")?;
    version.strip_suffix('"')
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

    /// The manifest requires burn by a version that the locked one is compatible with.
    #[test]
    fn versions_are_those_of_the_build() {
        let lock = "[[package]]\nname = \"burn-nn\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"burn\"\nversion = \"4.5.6\"\n";
        assert_eq!(locked("burn", lock), Some("4.5.6"));
        assert_eq!(locked("siss", lock), None);
        let versions = versions();
        assert_eq!(versions["siss"], env!("CARGO_PKG_VERSION"));
        let manifest = include_str!("../../../../Cargo.toml");
        let required = manifest.split_once("\nburn = { version = \"").unwrap().1;
        let required = required.split_once('"').unwrap().0;
        let minor = |version: &str| version.rsplit_once('.').unwrap().0.to_owned();
        assert_eq!(minor(&versions["burn"]), minor(required));
        assert_eq!(versions["burn"].split('.').count(), 3);
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
