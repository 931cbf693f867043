//! What can be wrong with a report or a log.

/// Why a report is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportFault {
    /// A required text or list is empty.
    #[error("it is empty; a reader needs it")]
    Empty,
    /// A measured number comes from no sample, or from one of size 0.
    #[error("it has no sample size; state on how many points, samples or runs it was measured")]
    NoSample,
    /// A measured number is NaN or infinite.
    #[error("it is {0}; leave the number out and say why under what was not tested")]
    NotFinite(f64),
    /// An interval does not contain its own estimate.
    #[error("{value} is outside of its interval, {low} to {high}; give both from one estimate")]
    OutsideInterval {
        /// The estimate.
        value: f64,
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// A measured number has no interval, no p-value and no note.
    #[error(
        "it has no interval; give one, or a p-value, or a note that says how certain the number is"
    )]
    NoInterval,
    /// A probability or a share is not between 0 and 1.
    #[error("it is {0}; it must be from 0 to 1")]
    NotAShare(f64),
    /// A hash is not the SHA-256 of anything.
    #[error("`{0}` is not a SHA-256; it must have 64 digits from 0 to 9 and a to f")]
    NotAHash(String),
    /// The worst case is an item that was not asked to be forgotten.
    #[error("`{0}` is not the SHA-256 of a subject item; name one of them")]
    UnknownSubject(String),
    /// The report says nothing of an attack.
    #[error(
        "it says nothing of {0}; add the test, or list the attack under `not_tested` with the reason"
    )]
    NotMentioned(&'static str),
    /// A test gives its timesteps and does not say that they were fixed beforehand.
    #[error(
        "its timesteps were chosen after its scores were seen; such a test cannot find that there is no trace: fix them beforehand, or give the verdict `Undecided`"
    )]
    ChosenAfterwards,
    /// A picture shows a subject item and the report does not allow that.
    #[error("it shows a subject item; leave it out, or set `shows_subjects` if that was asked for")]
    ShowsSubject,
    /// A picture is not a PNG.
    #[error("it is not a PNG in base64")]
    NotAPicture,
    /// The report has a format of another version.
    #[error("the report has format {0}; this version reads format 1")]
    UnknownFormat(u32),
    /// The text is not a report.
    #[error("it is not a report: {0}")]
    NotAReport(String),
}

/// Why a log is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogFault {
    /// The last line has no end, as after a copy that was interrupted.
    #[error(
        "it breaks off; compare it with the report of that request, then cut the file to its first {keep} bytes and append the entry again"
    )]
    BreaksOff {
        /// Length of the whole lines before it.
        keep: u64,
    },
    /// A line is not an entry.
    #[error("it is not an entry of a log: {0}; restore the file from a copy")]
    NotAnEntry(String),
    /// An entry does not follow the line before it.
    #[error(
        "it follows a line with the SHA-256 {expected}, but the line before it has {found}: that line was changed, or lines were removed or added; restore the file from a copy"
    )]
    AnotherPredecessor {
        /// What the entry names.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The last entry is not the one that is known.
    #[error(
        "it has the SHA-256 {found}, but {expected} was recorded elsewhere: the end of the log was changed or removed; restore the file from a copy"
    )]
    AnotherEnd {
        /// What was recorded.
        expected: String,
        /// What is there.
        found: String,
    },
}
