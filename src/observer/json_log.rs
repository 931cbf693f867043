//! `JsonLog`: a log file of the steps' reports, which continues when its run is resumed.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Observer;
use super::report::StepReport;
use crate::error::{Error, Result};
use crate::files::invalid;

/// Writes each step's report as one line of JSON.
///
/// In a file ([`open`](JsonLog::open)), the log survives a resume: the lines of steps that are
/// taken again are cut off, so the log equals that of an uninterrupted run. Another writer
/// ([`new`](JsonLog::new)) is only appended to.
///
/// JSON has no NaN: a missing figure, such as the error of a term without rows, is `null`.
///
/// # Example
/// ```no_run
/// use siss::observer::JsonLog;
///
/// let log = JsonLog::open("metrics.jsonl")?;
/// // SissTrainer::builder(model, scheduler).observer(log)
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct JsonLog<W = File> {
    writer: W,
    /// The path, if the writer is a file.
    path: Option<PathBuf>,
}

impl JsonLog {
    /// Appends to a file, which is created if it does not exist.
    ///
    /// [`Checkpoints::resume`](crate::Checkpoints::resume) cuts the file back to the step where the
    /// run continues, and empties it if the run starts from the beginning.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        Ok(Self {
            writer: opened.map_err(Error::io("creating", &path))?,
            path: Some(path),
        })
    }
}

impl<W: Write> JsonLog<W> {
    /// Writes to `writer`, flushing after each line.
    pub fn new(writer: W) -> Self {
        Self { writer, path: None }
    }

    /// The writer.
    pub fn into_inner(self) -> W {
        self.writer
    }
}

impl<W: Write + Send + Debug> Observer for JsonLog<W> {
    fn observe(&mut self, report: &StepReport) -> Result<()> {
        let line =
            serde_json::to_string(report).map_err(|error| Error::Observer(error.to_string()))?;
        writeln!(self.writer, "{line}")
            .and_then(|()| self.writer.flush())
            .map_err(|error| Error::Observer(format!("writing the step log: {error}")))
    }

    fn persist(&mut self) -> Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let file = OpenOptions::new().append(true).open(path);
        file.and_then(|file| file.sync_all())
            .map_err(Error::io("writing", path))
    }

    fn rewind(&mut self, next_step: u64) -> Result<()> {
        match &self.path {
            Some(path) => cut_log(path, next_step).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// Cuts a log back to the steps before `next_step`, and returns the remaining text.
///
/// The log has one line per step from 0 on, a JSON object with the field `step`. A missing file
/// counts as an empty log.
///
/// The remaining lines are not rewritten: the file is only truncated.
///
/// # Errors
/// [`Error::InvalidFile`] if a line before the cut is missing or belongs to another step;
/// [`Error::Io`]. The log is then unchanged.
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

/// The lines of the steps before `next_step`, and the length of the whole log.
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
                    "the log ends before step {step}, but the run resumes at step {next_step}; restore the log from a backup, or start again"
                ),
            ));
        };
        let line: std::result::Result<Line, _> = serde_json::from_slice(&rest[..end]);
        if line.map(|line| line.step).ok() != Some(step) {
            return Err(invalid(
                path,
                format!(
                    "line {} does not belong to step {step}; restore the log from a backup, or start again",
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

#[cfg(test)]
mod tests {
    use super::super::report::example::report;
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
                "line 2 does not belong to step 1",
            ),
            (
                "{\"step\":0}\n\u{fffd}\n",
                2,
                "line 2 does not belong to step 1",
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

    #[test]
    fn json_lines_are_one_report_each_and_read_back() {
        let mut lines = JsonLog::new(Vec::new());
        for step in 0..3 {
            lines.observe(&report(step, 0.03, 0.01)).unwrap();
        }
        let text = String::from_utf8(lines.into_inner()).unwrap();
        let steps: Vec<StepReport> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(steps[2], report(2, 0.03, 0.01));

        let mut skipped = JsonLog::new(Vec::new());
        skipped
            .observe(&report(3, f64::NAN, f64::INFINITY))
            .unwrap();
        let back: StepReport = serde_json::from_slice(&skipped.into_inner()).unwrap();
        assert!(back.retain.unwrap().mean_squared_error.is_nan());
    }

    #[test]
    fn a_failing_writer_is_an_error_not_a_panic() {
        #[derive(Debug)]
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other("disk full"))
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = JsonLog::new(Full)
            .observe(&report(0, 1.0, 1.0))
            .unwrap_err();
        assert!(error.to_string().contains("disk full"), "{error}");
    }
}
