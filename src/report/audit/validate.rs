//! Whether a report holds what a reader needs.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{
    Attack, AuditReport, AuditTest, Chart, FORMAT, Figure, Measured, Picture, ReportFault, Unit,
    Verdict,
};
use crate::error::{Error, Result};

type Checked = std::result::Result<(), ReportFault>;

impl AuditReport {
    /// Checks the whole report.
    ///
    /// # Errors
    /// [`Error::InvalidReport`] with the first place that is wrong and its [`ReportFault`].
    pub fn validate(&self) -> Result<()> {
        at("the format", known_format(self.format))?;
        self.check_texts()?;
        self.check_hashes()?;
        for (index, test) in self.tests.iter().enumerate() {
            check_test(&format!("tests[{index}]"), test)?;
        }
        check_figures("quality", &self.quality)?;
        let times = [self.run.announced_seconds, self.run.seconds];
        at("run", finite(times.into_iter().flatten()))?;
        for (index, chart) in self.charts.iter().enumerate() {
            at(&format!("charts[{index}]"), check_chart(chart))?;
        }
        for (index, picture) in self.pictures.iter().enumerate() {
            let place = format!("pictures[{index}]");
            at(&place, check_picture(picture, self.shows_subjects))?;
        }
        self.check_coverage()
    }

    fn check_texts(&self) -> Result<()> {
        for (place, text) in [
            ("request.id", &self.request.id),
            ("request.received", &self.request.received),
            ("request.completed", &self.request.completed),
            ("tester.name", &self.tester.name),
            ("tester.relation", &self.tester.relation),
            ("tester.tested", &self.tester.tested),
            ("model.name", &self.model.name),
            ("data.description", &self.data.description),
            ("run.command", &self.run.command),
            ("residual_risk", &self.residual_risk),
            ("disclaimer", &self.disclaimer),
        ] {
            at(place, present(text))?;
        }
        for (place, is_empty) in [
            ("subjects", self.subjects.is_empty()),
            ("threats", self.threats.is_empty()),
            ("tests", self.tests.is_empty()),
        ] {
            at(
                place,
                if is_empty {
                    Err(ReportFault::Empty)
                } else {
                    Ok(())
                },
            )?;
        }
        for (index, open) in self.not_tested.iter().enumerate() {
            at(&format!("not_tested[{index}].what"), present(&open.what))?;
            at(&format!("not_tested[{index}].why"), present(&open.why))?;
        }
        Ok(())
    }

    fn check_hashes(&self) -> Result<()> {
        at("model.before_sha256", hash(&self.model.before_sha256))?;
        at("model.after_sha256", hash(&self.model.after_sha256))?;
        let manifest = &self.data.retain_manifest_sha256;
        at("data.retain_manifest_sha256", hash(manifest))?;
        if let Some(previous) = &self.previous_entry_sha256 {
            at("previous_entry_sha256", hash(previous))?;
        }
        for (index, subject) in self.subjects.iter().enumerate() {
            at(&format!("subjects[{index}].sha256"), hash(&subject.sha256))?;
        }
        for (index, earlier) in self.rechecks.iter().enumerate() {
            at(&format!("rechecks[{index}].sha256"), hash(&earlier.sha256))?;
        }
        if let Some(worst) = &self.worst_case {
            let is_known = self.subjects.iter().any(|it| it.sha256 == worst.sha256);
            let unknown =
                || ReportFault::UnknownSubject(crate::files::shortened(worst.sha256.clone()));
            at("worst_case", is_known.then_some(()).ok_or_else(unknown))?;
        }
        Ok(())
    }

    /// Each kind of attack is tested, or listed as not tested.
    fn check_coverage(&self) -> Result<()> {
        for attack in Attack::ALL {
            let tested = self.tests.iter().any(|test| test.attack == attack);
            let listed = self.not_tested.iter().any(|it| it.attack == Some(attack));
            if !tested && !listed {
                let fault = ReportFault::NotMentioned(attack.name());
                return at("the report", Err(fault));
            }
        }
        Ok(())
    }
}

fn at(place: &str, checked: Checked) -> Result<()> {
    checked.map_err(|fault| Error::InvalidReport {
        place: place.into(),
        fault,
    })
}

fn known_format(format: u32) -> Checked {
    match format {
        FORMAT => Ok(()),
        other => Err(ReportFault::UnknownFormat(other)),
    }
}

fn present(text: &str) -> Checked {
    match text.trim().is_empty() {
        true => Err(ReportFault::Empty),
        false => Ok(()),
    }
}

/// Whether a text is a SHA-256 in lower-case hexadecimal digits.
pub(super) fn is_hash(text: &str) -> bool {
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 64 && text.bytes().all(is_digit)
}

fn hash(text: &str) -> Checked {
    match is_hash(text) {
        true => Ok(()),
        false => Err(ReportFault::NotAHash(crate::files::shortened(text.into()))),
    }
}

fn check_test(place: &str, test: &AuditTest) -> Result<()> {
    for (name, text) in [
        ("signal", &test.signal),
        ("question", &test.question),
        ("reading", &test.reading),
        ("explanation", &test.explanation),
    ] {
        at(&format!("{place}.{name}"), present(text))?;
    }
    if test.targets == 0 {
        at(&format!("{place}.targets"), Err(ReportFault::NoSample))?;
    }
    if test.figures.is_empty() {
        at(&format!("{place}.figures"), Err(ReportFault::Empty))?;
    }
    if !test.fixed_in_advance && test.verdict == Verdict::NoTrace {
        at(place, Err(ReportFault::ChosenAfterwards))?;
    }
    check_figures(&format!("{place}.figures"), &test.figures)
}

fn check_figures(place: &str, figures: &[Figure]) -> Result<()> {
    for (index, figure) in figures.iter().enumerate() {
        let place = format!("{place}[{index}]");
        at(&format!("{place}.name"), present(&figure.name))?;
        for (model, measured) in figure.numbers() {
            let is_share = figure.unit == Unit::Share;
            at(
                &format!("{place}.{model}"),
                check_number(measured, is_share),
            )?;
        }
    }
    Ok(())
}

fn check_number(measured: &Measured, is_share: bool) -> Checked {
    let value = measured.value;
    if measured.samples.is_empty() || measured.samples.contains(&0) {
        return Err(ReportFault::NoSample);
    }
    finite([value])?;
    if is_share {
        share(value)?;
    }
    if let Some([low, high]) = measured.interval {
        finite([low, high])?;
        if !(low <= value && value <= high) {
            return Err(ReportFault::OutsideInterval { value, low, high });
        }
    }
    if let Some(p_value) = measured.p_value {
        share(p_value)?;
    }
    let note = measured.note.as_deref().unwrap_or_default();
    match (measured.interval, measured.p_value) {
        (None, None) if note.trim().is_empty() => Err(ReportFault::NoInterval),
        _ => Ok(()),
    }
}

fn finite(values: impl IntoIterator<Item = f64>) -> Checked {
    match values.into_iter().find(|value| !value.is_finite()) {
        Some(value) => Err(ReportFault::NotFinite(value)),
        None => Ok(()),
    }
}

fn share(value: f64) -> Checked {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(ReportFault::NotAShare(value)),
    }
}

fn check_chart(chart: &Chart) -> Checked {
    present(&chart.title)?;
    if chart.lines.is_empty() || chart.lines.iter().any(|line| line.points.is_empty()) {
        return Err(ReportFault::Empty);
    }
    let points = chart.lines.iter().flat_map(|line| &line.points);
    finite(points.flat_map(|&(x, y)| [x, y]))
}

fn check_picture(picture: &Picture, shows_subjects: bool) -> Checked {
    if picture.shows_subject && !shows_subjects {
        return Err(ReportFault::ShowsSubject);
    }
    present(&picture.caption)?;
    let bytes = BASE64_STANDARD.decode(&picture.png);
    match bytes {
        Ok(bytes) if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => Ok(()),
        _ => Err(ReportFault::NotAPicture),
    }
}
