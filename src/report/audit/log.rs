//! `AuditLog`: the requests one after another, each entry bound to the one before.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LogFault;
use super::validate::is_hash;
use crate::error::{Error, Result};
use crate::files::{Lock, is_there, replace, sha256, shortened};

/// What the first entry names as the hash before it.
pub(super) const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One request in a log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// When the entry was made, as ISO 8601 has it; the caller's clock.
    pub time: String,
    /// The request's id.
    pub request: String,
    /// SHA-256 of the items that were to be forgotten.
    pub subjects: Vec<String>,
    /// SHA-256 of the model before.
    pub model_before: String,
    /// SHA-256 of the model after.
    pub model_after: String,
    /// SHA-256 of the report's JSON.
    pub report: String,
}

/// An entry as it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// SHA-256 of the line before it, without its line break.
    previous: String,
    /// Flattened fields cannot be refused if they are unknown, so the entry is one field.
    entry: LogEntry,
}

/// An item of an earlier request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EarlierSubject {
    /// SHA-256 of the item.
    pub sha256: String,
    /// The request that asked for it first.
    pub request: String,
}

/// An append-only log of requests: a file of JSON Lines in which each entry holds the SHA-256 of
/// the line before it.
///
/// A line that was changed, removed or added is found when the log is opened, except at the end: an
/// end that was cut off leaves a log that is whole. So keep [`head`](Self::head) elsewhere as well,
/// for example in the next report (`previous_entry_sha256`), and compare it with
/// [`check_head`](Self::check_head).
///
/// # Example
/// ```
/// use siss::report::audit::{AuditLog, LogEntry};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("requests.jsonl");
/// # let hash = |digit: &str| digit.repeat(64);
/// let mut log = AuditLog::open(&path)?;
/// let before = log.head().to_owned();
/// log.append(LogEntry {
///     time: "2026-11-21T10:00:00Z".into(),
///     request: "2026-17".into(),
///     subjects: vec![hash("a")],
///     model_before: hash("b"),
///     model_after: hash("c"),
///     report: hash("d"),
/// })?;
///
/// // The next request: what was asked for earlier is tested again.
/// let log = AuditLog::open(&path)?;
/// assert_ne!(log.head(), before);
/// assert_eq!(log.to_recheck(&[])[0].request, "2026-17");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    /// The whole file.
    text: String,
    entries: Vec<LogEntry>,
    head: String,
}

impl AuditLog {
    /// Opens a log and verifies its chain. A missing file is an empty log.
    ///
    /// # Errors
    /// [`Error::BrokenLog`] with the first line that is wrong and a [`LogFault`]; [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let text = read(&path)?;
        let (entries, head) = verify(&path, &text)?;
        Ok(Self {
            path,
            text,
            entries,
            head,
        })
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// SHA-256 of the last line; 64 zeros if there is none.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// Compares the end of the log with a hash that was kept elsewhere.
    ///
    /// # Errors
    /// [`Error::BrokenLog`] if it is another.
    pub fn check_head(&self, expected: &str) -> Result<()> {
        if self.head == expected {
            return Ok(());
        }
        let fault = LogFault::AnotherEnd {
            expected: shortened(expected.into()),
            found: self.head.clone(),
        };
        Err(broken(&self.path, self.entries.len(), fault))
    }

    /// Appends an entry, and returns its SHA-256, the new [`head`](Self::head).
    ///
    /// The file is replaced as a whole: after a crash it is the old or the new one.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a hash that is not a SHA-256, no item, or a log that another
    /// process has changed since it was opened; [`Error::FolderInUse`] while another process
    /// appends; [`Error::Io`].
    pub fn append(&mut self, entry: LogEntry) -> Result<String> {
        check(&entry)?;
        let mut lock = self.path.as_os_str().to_owned();
        lock.push(".lock");
        let Some(_lock) = Lock::take(Path::new(&lock))? else {
            let folder = self.path.clone();
            return Err(Error::FolderInUse { folder });
        };
        if read(&self.path)? != self.text {
            return Err(Error::InvalidSetting {
                what: "the log has changed since it was opened".into(),
                remedy: "open it again",
            });
        }
        let line = Line {
            previous: self.head.clone(),
            entry,
        };
        let line_text = serde_json::to_string(&line).map_err(|error| Error::InvalidSetting {
            what: format!("the entry is not written: {error}"),
            remedy: "give texts",
        })?;
        let text = format!("{}{line_text}\n", self.text);
        replace(&self.path, |file| file.write_all(text.as_bytes()))?;
        self.text = text;
        self.head = sha256(line_text.as_bytes());
        self.entries.push(line.entry);
        Ok(self.head.clone())
    }

    /// The items of all requests so far, each once, without those of the request that is being
    /// carried out: a run that changes the model again tests them again.
    pub fn to_recheck(&self, current: &[String]) -> Vec<EarlierSubject> {
        let mut seen: HashSet<&str> = current.iter().map(String::as_str).collect();
        let mut earlier = Vec::new();
        for entry in &self.entries {
            for subject in &entry.subjects {
                if seen.insert(subject) {
                    earlier.push(EarlierSubject {
                        sha256: subject.clone(),
                        request: entry.request.clone(),
                    });
                }
            }
        }
        earlier
    }
}

fn read(path: &Path) -> Result<String> {
    if !is_there(path) {
        return Ok(String::new());
    }
    let bytes = fs::read(path).map_err(Error::io("reading", path))?;
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        broken(path, line, LogFault::NotAnEntry("it is not UTF-8".into()))
    })
}

/// The entries of a log, and the SHA-256 of its last line.
fn verify(path: &Path, text: &str) -> Result<(Vec<LogEntry>, String)> {
    let mut entries = Vec::new();
    let mut head = START.to_owned();
    let mut whole = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let number = index + 1;
        let Some(content) = line.strip_suffix('\n') else {
            return Err(broken(path, number, LogFault::BreaksOff { keep: whole }));
        };
        let parsed: Line = serde_json::from_str(content).map_err(|error| {
            let message = shortened(error.to_string());
            broken(path, number, LogFault::NotAnEntry(message))
        })?;
        if parsed.previous != head {
            let fault = LogFault::AnotherPredecessor {
                expected: shortened(parsed.previous),
                found: head,
            };
            return Err(broken(path, number, fault));
        }
        head = sha256(content.as_bytes());
        whole += line.len() as u64;
        entries.push(parsed.entry);
    }
    Ok((entries, head))
}

fn broken(path: &Path, line: usize, fault: LogFault) -> Error {
    Error::BrokenLog {
        path: path.into(),
        line,
        fault,
    }
}

fn check(entry: &LogEntry) -> Result<()> {
    if entry.subjects.is_empty() {
        let (what, remedy) = ("the list of items", "name what was to be forgotten");
        return Err(Error::Empty { what, remedy });
    }
    let hashes = [&entry.model_before, &entry.model_after, &entry.report];
    let wrong = hashes
        .into_iter()
        .chain(&entry.subjects)
        .find(|hash| !is_hash(hash));
    match wrong {
        None => Ok(()),
        Some(wrong) => Err(Error::InvalidSetting {
            what: format!("`{}` is not a SHA-256", shortened(wrong.clone())),
            remedy: "give 64 digits from 0 to 9 and a to f",
        }),
    }
}
