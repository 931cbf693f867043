//! A record of erasure that a person can read and a program can check: what was asked for, what was
//! tested, how, with which result, and what was not tested.
//!
//! | part | does |
//! |---|---|
//! | [`AuditReport`] | the record: validated, written as one HTML file and as JSON |
//! | [`AuditLog`] | an append-only list of the requests, each entry bound to the one before |
//! | [`Remains`] | what in a folder still holds the item, and its removal |
//! | [`Manifest`] | the files of a folder by SHA-256 |
//!
//! A report is evidence of forgetting, not a proof of erasure, and not advice on law.

mod attack;
mod digits;
mod fault;
mod html;
mod log;
mod manifest;
mod parts;
mod remains;
mod style;
mod validate;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use attack::{Attack, AuditTest, Figure, Measured, Unit, Verdict};
pub use fault::{LogFault, ReportFault};
pub use log::{AuditLog, EarlierSubject, LogEntry};
pub use manifest::{Manifest, ManifestFile};
pub use parts::{
    AuditedData, AuditedModel, AuditedRun, Chart, Line, NotTested, OldCopy, Picture, Recheck,
    Request, Subject, Tester, Threat, WorstCase,
};
pub use remains::{Remainder, RemainderKind, Remains, RemainsOf};

/// The version of the report's JSON.
const FORMAT: u32 = 1;

/// What a report does not claim.
const DISCLAIMER: &str = "This report describes tests. Tests can find traces of an item; they \
    cannot prove that there are none. It is evidence for whoever has to judge a request, not a \
    proof of erasure, not a certificate and not legal advice. Whoever runs the tests can also run \
    others and leave them out; the hashes, the seed and the command are here so that another \
    person can repeat the tests.";

/// A record of erasure.
///
/// [`validate`](Self::validate) checks it, and everything that writes it does so first: every
/// number has a sample size and an interval (or says why not), every kind of
/// [`Attack`] is tested or listed as not tested, and pictures of the subject items are refused
/// unless they were asked for.
///
/// # Example
/// ```
/// use siss::report::audit::{
///     Attack, AuditReport, AuditTest, AuditedData, AuditedModel, AuditedRun, Figure, Measured,
///     NotTested, Request, Subject, Tester, Threat, Unit, Verdict,
/// };
///
/// # let hash = |digit: &str| digit.repeat(64);
/// let copies = Figure::new("generated copies", Unit::Share, Measured::share(0, 1024)?)
///     .before(Measured::share(18, 1024)?);
/// let test = AuditTest {
///     attack: Attack::DataReconstruction,
///     signal: "pictures within an L2 distance of 10".into(),
///     question: "Does the model still generate the item?".into(),
///     reading: "The upper end of the interval is the highest plausible rate.".into(),
///     timesteps: vec![],
///     fixed_in_advance: true,
///     targets: 1,
///     controls: 0,
///     figures: vec![copies],
///     verdict: Verdict::NoTrace,
///     explanation: "None of 1,024 pictures is a copy.".into(),
/// };
/// let others = Attack::ALL.into_iter().filter(|attack| *attack != Attack::DataReconstruction);
/// let not_tested = others.map(|attack| NotTested {
///     attack: Some(attack),
///     what: attack.name().into(),
///     why: "a short example".into(),
/// });
/// let report = AuditReport {
///     request: Request {
///         id: "2026-17".into(),
///         received: "2026-11-02".into(),
///         completed: "2026-11-20".into(),
///         legal_basis: None,
///     },
///     subjects: vec![Subject { name: "item 1".into(), sha256: hash("a") }],
///     tester: Tester {
///         name: "A. Tester".into(),
///         relation: "operator of the model".into(),
///         tested: "2026-11-21".into(),
///     },
///     threats: vec![Threat { attacker: "anyone who generates pictures".into(), is_tested: true }],
///     model: AuditedModel {
///         name: "digits-28".into(),
///         parameters: 1_000_000,
///         before_sha256: hash("b"),
///         after_sha256: hash("c"),
///         ..AuditedModel::default()
///     },
///     data: AuditedData {
///         description: "handwritten digits".into(),
///         retain_manifest_sha256: hash("d"),
///         retained: 9_000,
///         controls: 1_000,
///     },
///     run: AuditedRun { command: "unlearn --seed 0".into(), ..AuditedRun::default() },
///     tests: vec![test],
///     not_tested: not_tested.collect(),
///     residual_risk: "Old copies of the model may exist.".into(),
///     ..AuditReport::default()
/// };
/// let page = report.to_html()?;
/// assert!(page.contains("No trace was found by 1 test"));
/// let json = report.to_json()?;
/// assert_eq!(AuditReport::from_json(&json)?.to_json()?, json);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditReport {
    /// Version of this format.
    pub format: u32,
    /// What was asked for.
    pub request: Request,
    /// The items to be forgotten.
    pub subjects: Vec<Subject>,
    /// Who tested.
    pub tester: Tester,
    /// Who might want the items back.
    pub threats: Vec<Threat>,
    /// The model before and after.
    pub model: AuditedModel,
    /// The data of the run.
    pub data: AuditedData,
    /// How to repeat it.
    pub run: AuditedRun,
    /// The tests, in the order in which they are shown.
    pub tests: Vec<AuditTest>,
    /// The item with the strongest trace.
    #[serde(default)]
    pub worst_case: Option<WorstCase>,
    /// What the unlearning cost the rest of what the model does.
    #[serde(default)]
    pub quality: Vec<Figure>,
    /// Charts.
    #[serde(default)]
    pub charts: Vec<Chart>,
    /// Pictures.
    #[serde(default)]
    pub pictures: Vec<Picture>,
    /// Whether pictures may show subject items. Only if somebody asked for it.
    #[serde(default)]
    pub shows_subjects: bool,
    /// Items of earlier requests, tested again.
    #[serde(default)]
    pub rechecks: Vec<Recheck>,
    /// What was not tested.
    pub not_tested: Vec<NotTested>,
    /// What may still go wrong, for whoever uses the model.
    pub residual_risk: String,
    /// SHA-256 of the last entry of the [`AuditLog`] before this report's own.
    #[serde(default)]
    pub previous_entry_sha256: Option<String>,
    /// What the report does not claim.
    pub disclaimer: String,
}

impl Default for AuditReport {
    /// An empty report with a disclaimer, which is refused until its fields are filled in.
    fn default() -> Self {
        Self {
            format: FORMAT,
            request: Request::default(),
            subjects: Vec::new(),
            tester: Tester::default(),
            threats: Vec::new(),
            model: AuditedModel::default(),
            data: AuditedData::default(),
            run: AuditedRun::default(),
            tests: Vec::new(),
            worst_case: None,
            quality: Vec::new(),
            charts: Vec::new(),
            pictures: Vec::new(),
            shows_subjects: false,
            rechecks: Vec::new(),
            not_tested: Vec::new(),
            residual_risk: String::new(),
            previous_entry_sha256: None,
            disclaimer: DISCLAIMER.into(),
        }
    }
}

impl AuditReport {
    /// The report as JSON; its numbers have twelve significant digits.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn to_json(&self) -> Result<String> {
        self.validate()?;
        serde_json::to_string_pretty(self).map_err(not_a_report)
    }

    /// Reads and validates a report.
    ///
    /// # Errors
    /// [`Error::InvalidReport`].
    pub fn from_json(text: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(text).map_err(not_a_report)?;
        report.validate()?;
        Ok(report)
    }

    /// Writes `report.html` and `report.json` into a folder, and returns the SHA-256 of the JSON.
    /// A missing folder is created.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate) and [`to_html`](Self::to_html); [`Error::Io`].
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<String> {
        let (html, json) = (self.to_html()?, self.to_json()?);
        let folder = folder.as_ref();
        super::write_file(&folder.join("report.html"), html.as_bytes())?;
        super::write_file(&folder.join("report.json"), json.as_bytes())?;
        Ok(crate::files::sha256(json.as_bytes()))
    }
}

fn not_a_report(error: serde_json::Error) -> Error {
    let message = crate::files::shortened(error.to_string());
    Error::InvalidReport {
        place: "the report".into(),
        fault: ReportFault::NotAReport(message),
    }
}

#[cfg(test)]
mod tests;
