//! A log in a file, which goes on where its run does.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Observer;
use super::report::StepReport;
use crate::error::{Error, Result};
use crate::files::invalid;

/// [`JsonLines`] in a file: each step's report as a line. When a run is resumed, the lines of the steps that are taken again are
/// cut off, so that the log is that of a run which never ended.
///
/// # Example
/// ```no_run
/// let log = siss::observer::JsonLog::open("metrics.jsonl")?;
/// // SissTrainer::builder(model, scheduler).observer(log)
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct JsonLog {
    path: PathBuf,
    file: File,
}

impl JsonLog {
    /// Writes behind what is in the file, which is made if it is not there. [`Checkpoints::resume`](crate::Checkpoints::resume) cuts
    /// it back to where the run goes on, to nothing where the run begins.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        let file = opened.map_err(Error::io("creating", &path))?;
        Ok(Self { path, file })
    }
}

impl Observer for JsonLog {
    fn observe(&mut self, report: &StepReport) -> Result<()> {
        JsonLines::new(&mut self.file).observe(report)
    }

    fn persist(&mut self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(Error::io("writing", &self.path))
    }

    fn rewind(&mut self, next_step: u64) -> Result<()> {
        cut_log(&self.path, next_step).map(|_| ())
    }
}

/// Cuts a log back to the steps before `next_step`, and gives back what is left. The log has a line for each step from 0 on, a JSON
/// object with the field `step`. A log that is not there is one without a line.
///
/// What is left is not touched: the file is made shorter, and no more.
///
/// # Errors
/// [`Error::InvalidFile`] if a line before the cut is missing or is not that of its step; [`Error::Io`]. The log is as before.
pub fn cut_log(path: impl AsRef<Path>, next_step: u64) -> Result<String> {
    let path = path.as_ref();
    let (text, length) = first_lines(path, next_step)?;
    if text.len() < length {
        let cut = OpenOptions::new().write(true).open(path).and_then(|file| {
            file.set_len(text.len() as u64)?;
            file.sync_all()
        });
        cut.map_err(Error::io("cutting", path))?;
    }
    Ok(text)
}

/// The reports of the steps before `next_step`.
///
/// # Errors
/// As [`cut_log`]; nothing is changed.
pub(crate) fn read_log(path: &Path, next_step: u64) -> Result<Vec<StepReport>> {
    let (text, _) = first_lines(path, next_step)?;
    let reports = text.lines().map(serde_json::from_str);
    reports
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| invalid(path, format!("a line is no report of a step: {error}")))
}

/// The lines of the steps before `next_step`, and how long the whole log is.
fn first_lines(path: &Path, next_step: u64) -> Result<(String, usize)> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    let mut bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(Error::io("reading", path))?,
    };
    let (length, mut kept) = (bytes.len(), 0);
    for step in 0..next_step {
        let rest = &bytes[kept..];
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(invalid(
                path,
                format!(
                    "the log ends before step {step}, and the run goes on at step {next_step}; bring the log back from a copy, or start afresh"
                ),
            ));
        };
        let line: std::result::Result<Line, _> = serde_json::from_slice(&rest[..end]);
        if line.map(|line| line.step).ok() != Some(step) {
            return Err(invalid(
                path,
                format!(
                    "line {} is not that of step {step}; bring the log back from a copy, or start afresh",
                    step + 1
                ),
            ));
        }
        kept += end + 1;
    }
    bytes.truncate(kept);
    let text = String::from_utf8(bytes).map_err(|error| invalid(path, error.to_string()))?;
    Ok((text, length))
}

/// Writes each step's report as a line of JSON. [`JsonLog`](crate::observer::JsonLog) is one in a file that a resumed run goes on with.
///
/// # Example
/// ```
/// let lines = siss::observer::JsonLines::new(Vec::new());
/// // SissTrainer::builder(model, scheduler).observer(lines)
/// ```
#[derive(Debug)]
pub struct JsonLines<W> {
    writer: W,
}

impl<W: Write + Send + Debug> JsonLines<W> {
    /// Writes to `writer`, flushing after each line.
    pub fn new(writer: W) -> Self {
        Self { writer }
    }

    /// The writer.
    pub fn into_inner(self) -> W {
        self.writer
    }
}

impl<W: Write + Send + Debug> Observer for JsonLines<W> {
    fn observe(&mut self, report: &StepReport) -> Result<()> {
        let line =
            serde_json::to_string(report).map_err(|error| Error::Observer(error.to_string()))?;
        writeln!(self.writer, "{line}")
            .and_then(|()| self.writer.flush())
            .map_err(|error| Error::Observer(format!("writing the step log: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("log.jsonl");
        fs::write(&path, text).unwrap();
        path
    }

    const THREE: &str = "{\"step\":0}\n{\"a\":[1.5],\"step\":1}\n{\"step\":2}\n";

    #[test]
    fn a_log_is_cut_to_its_first_steps_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let two = THREE.len() - "{\"step\":2}\n".len();
        for length in two..=THREE.len() {
            let path = log(folder.path(), &THREE[..length]);
            assert_eq!(cut_log(&path, 2).unwrap(), THREE[..two]);
            assert_eq!(fs::read_to_string(&path).unwrap(), THREE[..two]);
        }
        let path = log(folder.path(), THREE);
        assert_eq!(cut_log(&path, 3).unwrap(), THREE);
        assert_eq!(cut_log(&path, 0).unwrap(), "");
        assert_eq!(cut_log(folder.path().join("none"), 0).unwrap(), "");
    }

    #[test]
    fn a_log_with_a_gap_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for (text, next_step, expected) in [
            ("", 1, "ends before step 0"),
            (&THREE[..THREE.len() - 1], 3, "ends before step 2"),
            (
                "{\"step\":0}\n{\"step\":2}\n",
                2,
                "line 2 is not that of step 1",
            ),
            (
                "{\"step\":0}\n\u{fffd}\n",
                2,
                "line 2 is not that of step 1",
            ),
            ("nothing\n", 1, "line 1"),
        ] {
            let path = log(folder.path(), text);
            let error = cut_log(&path, next_step).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("log.jsonl"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert!(cut_log(folder.path().join("none"), 1).is_err());
    }
}
