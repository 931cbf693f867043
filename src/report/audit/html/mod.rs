//! The report as one HTML file that loads nothing: no script, no font, no picture from elsewhere.

mod element;
mod number;

use self::element::{
    Html, Image, cell, constant, element, figure, hash, list, paragraph, table, terms, text,
};
use self::number::{grouped, measured, significant};
use super::log::START;
use super::style::STYLE;
use super::{Attack, AuditReport, AuditTest, Chart, Figure, Unit, Verdict};
use crate::error::Result;
use crate::report::{Panel, Plot, Series};

/// Width and height of a chart, in pixels: two next to each other on a page, readable on a phone.
const CHART: [u32; 2] = [480, 280];

impl AuditReport {
    /// The report as one HTML file: a summary first, then the tests, then how to repeat them.
    ///
    /// The page has no script and loads nothing; a content security policy in it says so. It is
    /// made for wide and narrow screens, light and dark, and for paper.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); [`Error::Picture`](crate::Error::Picture) if a chart
    /// cannot be drawn.
    pub fn to_html(&self) -> Result<String> {
        self.validate()?;
        let title = format!("Report on a request to be forgotten: {}", self.request.id);
        let head = [
            constant("<meta charset=\"utf-8\">\n"),
            constant(
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n",
            ),
            constant("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"),
            constant("<meta name=\"color-scheme\" content=\"light dark\">\n"),
            element("title", "", text(title)),
            element("style", "", constant(STYLE)),
        ];
        let body = [
            self.heading(),
            self.summary(),
            self.asked(),
            self.attackers(),
            self.findings(),
            self.worst(),
            self.rest_of_the_model(),
            self.charts()?,
            self.shown(),
            self.earlier(),
            self.open_questions(),
            self.what_was_tested(),
            self.repeating(),
            glossary(),
            section(
                "What this report does not claim",
                paragraph(&self.disclaimer),
            ),
        ];
        let page = [
            constant("<!doctype html>\n<html lang=\"en\">\n"),
            element("head", "", head.into_iter().collect()),
            element("body", "", body.into_iter().collect()),
            constant("</html>\n"),
        ];
        Ok(page.into_iter().collect::<Html>().into_string())
    }

    fn heading(&self) -> Html {
        let line = format!(
            "Request {}, received {}, carried out {}. Tested {} by {} ({}).",
            self.request.id,
            self.request.received,
            self.request.completed,
            self.tester.tested,
            self.tester.name,
            self.tester.relation
        );
        let title = "Was it forgotten? Report on a request to a generative model";
        let pieces = [
            element("h1", "", text(title)),
            element("p", "quiet", text(line)),
        ];
        element("header", "", pieces.into_iter().collect())
    }

    fn summary(&self) -> Html {
        let said = [
            element("p", "headline", text(self.headline())),
            paragraph(self.introduction()),
            paragraph(
                "Tests can find a trace; no test can prove that there is none. How far the result \
                 reaches depends on the sample sizes (n), the intervals, and on what was not tested.",
            ),
        ];
        let rows = self.tests.iter().map(|test| self.summary_row(test));
        let heads = ["Test", "Result", "Before unlearning", "After unlearning"];
        let pieces = [
            element("div", "box", said.into_iter().collect()),
            table(&heads, rows),
        ];
        section("Summary", pieces.into_iter().collect())
    }

    /// The result in one sentence. It never says that the item is erased.
    fn headline(&self) -> String {
        let [traces, over, none, open] = [
            Verdict::Trace,
            Verdict::Overdone,
            Verdict::NoTrace,
            Verdict::Undecided,
        ]
        .map(|verdict| self.count(verdict));
        let all = match self.tests.len() {
            1 => "1 test".to_owned(),
            number => format!("{number} tests"),
        };
        let rest = match open {
            0 => String::new(),
            open => format!("; {open} gave no answer"),
        };
        match (traces, over, none) {
            (0, 0, 0) => format!("Undecided: {all}, and no answer."),
            (0, 0, _) => format!("No trace was found by {all}{rest}."),
            (0, over, _) => format!(
                "{over} of {all} found that the model avoids what it was to forget, which gives \
                 it away too{rest}."
            ),
            (traces, _, _) => format!("{traces} of {all} found a trace{rest}."),
        }
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.tests
            .iter()
            .filter(|test| test.verdict == verdict)
            .count()
    }

    fn introduction(&self) -> String {
        let items = match self.subjects.len() {
            1 => "one item of its training data".to_owned(),
            count => format!("{} items of its training data", grouped(count as u64)),
        };
        let open = match self.not_tested.len() {
            0 => String::new(),
            1 => " One question was left open; it is listed below.".to_owned(),
            count => format!(" {count} questions were left open; they are listed below."),
        };
        format!(
            "The request was that the model “{}” forget {items}. Its weights were changed for \
             that, and the changed model was compared with the one before{}.{open}",
            self.model.name,
            match self
                .tests
                .iter()
                .any(|test| test.figures.iter().any(|it| it.retrained.is_some()))
            {
                true => " and with a model that was trained without the item from the start",
                false => "",
            },
        )
    }

    fn summary_row(&self, test: &AuditTest) -> Html {
        let first = test.figures.first();
        let number = |of: fn(&Figure) -> Option<&super::Measured>| {
            let shown = first.and_then(|it| Some(measured(of(it)?, &it.unit)));
            shown.unwrap_or_default()
        };
        let name = format!("{}: {}", capital(test.attack.name()), test.signal);
        let what = text(first.map(label).unwrap_or_default());
        let name = [text(name), element("span", "certainty", what)];
        let cells = [
            element("th", "", name.into_iter().collect()),
            cell("Result", verdict(test.verdict)),
            cell("Before unlearning", number(|it| it.before.as_ref())),
            cell("After unlearning", number(|it| Some(&it.after))),
        ];
        cells.into_iter().collect()
    }

    fn asked(&self) -> Html {
        let rows = self.subjects.iter().map(|subject| {
            let cells = [
                element("th", "", text(&subject.name)),
                cell("SHA-256 of its file", hash(&subject.sha256)),
            ];
            cells.into_iter().collect()
        });
        let note = "The items themselves are not part of this report. Whoever holds the file can \
                    compute its SHA-256 and compare.";
        let basis = self.request.legal_basis.as_deref();
        let pieces = [
            basis.map(paragraph).unwrap_or_default(),
            paragraph(note),
            table(&["Item", "SHA-256 of its file"], rows),
        ];
        section("What was to be forgotten", pieces.into_iter().collect())
    }

    fn attackers(&self) -> Html {
        let rows = self.threats.iter().map(|threat| {
            let tested = if threat.is_tested { "yes" } else { "no" };
            let cells = [
                element("th", "", text(&threat.attacker)),
                cell("Covered by a test", text(tested)),
            ];
            cells.into_iter().collect()
        });
        let lead = "Whether something is forgotten depends on who looks for it, and with what.";
        let pieces = [
            paragraph(lead),
            table(&["Somebody who has", "Covered by a test"], rows),
        ];
        section("Who might look for it", pieces.into_iter().collect())
    }

    fn findings(&self) -> Html {
        let tests = self.tests.iter().map(test);
        section("The tests", tests.collect())
    }

    fn worst(&self) -> Html {
        let Some(worst) = &self.worst_case else {
            return Html::default();
        };
        let named = self.subjects.iter().find(|it| it.sha256 == worst.sha256);
        let name = named.map_or("", |it| it.name.as_str());
        let pieces = [
            paragraph("An average over items hides the one that fared worst, so it stands here."),
            terms([
                ("Item".to_owned(), text(name)),
                ("SHA-256".to_owned(), hash(&worst.sha256)),
                ("Finding".to_owned(), text(&worst.finding)),
            ]),
        ];
        section(
            "The item with the strongest trace",
            pieces.into_iter().collect(),
        )
    }

    fn rest_of_the_model(&self) -> Html {
        let inside = match self.quality.is_empty() {
            true => paragraph("Not measured."),
            false => {
                let lead = "Forgetting should cost the model nothing else. These numbers should be \
                            nearly the same before and after.";
                [paragraph(lead), figures(&self.quality)]
                    .into_iter()
                    .collect()
            }
        };
        section("What it cost the rest of the model", inside)
    }

    fn charts(&self) -> Result<Html> {
        if self.charts.is_empty() {
            return Ok(Html::default());
        }
        let drawn = |it: &Chart| {
            let svg = draw(it)?;
            Ok(figure("chart", Image::Svg(&svg), &it.title, &it.caption))
        };
        let charts: Html = self.charts.iter().map(drawn).collect::<Result<_>>()?;
        Ok(section("Charts", element("div", "charts", charts)))
    }

    fn shown(&self) -> Html {
        let withheld = "Pictures in which an item can be recognised are left out, because nobody \
                        asked for them.";
        let note = match self.shows_subjects {
            true => Html::default(),
            false => element("p", "quiet", text(withheld)),
        };
        let pictures = self
            .pictures
            .iter()
            .map(|picture| figure("picture", Image::Png(&picture.png), "", &picture.caption));
        let inside: Html = pictures.chain([note]).collect();
        section("Pictures", inside)
    }

    fn earlier(&self) -> Html {
        if self.rechecks.is_empty() {
            return Html::default();
        }
        let rows = self.rechecks.iter().map(|earlier| {
            let cells = [
                element("th", "", text(&earlier.request)),
                cell("SHA-256", hash(&earlier.sha256)),
                cell("Result", verdict(earlier.verdict)),
                cell("Finding", text(&earlier.finding)),
            ];
            cells.into_iter().collect()
        });
        let lead =
            "A new run changes the model again, so items of earlier requests were tested again.";
        let heads = ["Request", "SHA-256", "Result", "Finding"];
        let inside = [paragraph(lead), table(&heads, rows)];
        section(
            "Earlier requests, tested again",
            inside.into_iter().collect(),
        )
    }

    fn open_questions(&self) -> Html {
        let open = self.not_tested.iter().map(|open| {
            let what = format!("{}:", capital(&open.what));
            [element("strong", "", text(what)), text(&open.why)]
                .into_iter()
                .collect()
        });
        let open = match self.not_tested.is_empty() {
            true => paragraph("Every kind of test that this report knows was carried out."),
            false => list(open),
        };
        let pieces = [
            open,
            element("h3", "", text("What may still go wrong")),
            paragraph(&self.residual_risk),
        ];
        section(
            "What was not tested, and the risk that remains",
            pieces.into_iter().collect(),
        )
    }

    fn what_was_tested(&self) -> Html {
        let (model, data) = (&self.model, &self.data);
        let ratio = data.retained as f64 / model.parameters.max(1) as f64;
        let known = |names: Option<&Vec<String>>| match names {
            None => text("not looked for"),
            Some(names) if names.is_empty() => text("none known"),
            Some(names) => list(names.iter().map(text)),
        };
        let copies = model.old_copies.as_ref().map(|copies| {
            let copies = copies.iter();
            copies
                .map(|copy| format!("{}: {}", copy.place, copy.fate))
                .collect::<Vec<_>>()
        });
        let parents = list(model.parents.iter().map(text));
        let pairs = [
            ("Model", text(&model.name)),
            (
                "Made from",
                if model.parents.is_empty() {
                    text("not stated")
                } else {
                    parents
                },
            ),
            ("SHA-256 before", hash(&model.before_sha256)),
            ("SHA-256 after", hash(&model.after_sha256)),
            ("Parameters", text(grouped(model.parameters))),
            ("Models made from it", known(model.descendants.as_ref())),
            ("What still holds the item", known(copies.as_ref())),
            ("Data that were kept", text(&data.description)),
            (
                "SHA-256 of the list of their files",
                hash(&data.retain_manifest_sha256),
            ),
            (
                "Number of points kept",
                text(format!(
                    "{}, which is {} per parameter",
                    grouped(data.retained),
                    significant(ratio, 2)
                )),
            ),
            (
                "Points no model saw, to compare with",
                text(grouped(data.controls)),
            ),
        ];
        let pairs = pairs.map(|(term, inside)| (term.to_owned(), inside));
        section("The model and the data", terms(pairs))
    }

    fn repeating(&self) -> Html {
        let run = &self.run;
        let named = |name: &String, value: &String| (name.clone(), text(value));
        let versions = run.versions.iter().map(|(name, value)| named(name, value));
        let fixed = [
            ("Seed".to_owned(), text(run.seed.to_string())),
            ("Device".to_owned(), text(&run.device)),
        ];
        let seconds = |time| format!("{} s", significant(time, 3));
        let announced = run.announced_seconds.map(seconds);
        let announced = announced.map(|time| format!(" (announced: {time})"));
        let taken = run.seconds.map(|taken| {
            let time = seconds(taken) + &announced.unwrap_or_default();
            ("Time the tests took".to_owned(), text(time))
        });
        let chained = self.previous_entry_sha256.as_deref();
        let chained = match chained {
            Some(START) => paragraph("This report is the first in its log of requests."),
            Some(previous) => [
                paragraph("This report follows an entry of the log of requests with the SHA-256"),
                element("p", "", hash(previous)),
            ]
            .into_iter()
            .collect(),
            None => Html::default(),
        };
        let settings = run
            .configuration
            .iter()
            .map(|(name, value)| named(name, value));
        let pieces = [
            element("pre", "", text(&run.command)),
            terms(fixed.into_iter().chain(taken).chain(versions)),
            chained,
            element("h3", "", text("Settings")),
            terms(settings),
        ];
        section("How to repeat this", pieces.into_iter().collect())
    }
}

fn section(title: &str, inside: Html) -> Html {
    let pieces = [element("h2", "", text(title)), inside];
    element("section", "", pieces.into_iter().collect())
}

fn verdict(verdict: Verdict) -> Html {
    let class = match verdict {
        Verdict::Trace => "verdict trace",
        Verdict::Overdone => "verdict overdone",
        Verdict::NoTrace => "verdict no-trace",
        Verdict::Undecided => "verdict undecided",
    };
    element("span", class, text(verdict.words()))
}

fn test(test: &AuditTest) -> Html {
    let title = format!("{}: {}", capital(test.attack.name()), test.signal);
    let pieces = [
        element("h3", "", text(title)),
        paragraph(&test.question),
        element(
            "p",
            "",
            [verdict(test.verdict), text(&test.explanation)]
                .into_iter()
                .collect(),
        ),
        figures(&test.figures),
        element(
            "p",
            "quiet",
            text(format!("How to read it: {}", test.reading)),
        ),
        element("p", "quiet", text(circumstances(test))),
    ];
    element("div", "test", pieces.into_iter().collect())
}

/// How many points were compared with how many others, and where.
fn circumstances(test: &AuditTest) -> String {
    let items = match test.targets {
        1 => "One item".to_owned(),
        count => format!("{} items", grouped(count as u64)),
    };
    let controls = match test.controls {
        0 => String::new(),
        count => format!(
            ", compared with {} points that no model saw",
            grouped(count as u64)
        ),
    };
    let steps: Vec<String> = test.timesteps.iter().map(u64::to_string).collect();
    let noun = if steps.len() == 1 {
        "timestep"
    } else {
        "timesteps"
    };
    let steps = match (steps.as_slice(), test.fixed_in_advance) {
        ([], true) => "; settings fixed before any result was seen".to_owned(),
        ([], false) => "; settings chosen after results were seen".to_owned(),
        (_, true) => format!(
            "; {noun} {}, fixed before any result was seen",
            steps.join(", ")
        ),
        (_, false) => format!(
            "; {noun} {}, chosen after results were seen",
            steps.join(", ")
        ),
    };
    let name = match test.attack {
        Attack::MembershipInference | Attack::DataReconstruction => {
            " Name of the attack as in NIST AI 100-2."
        }
        _ => "",
    };
    format!("{items}{controls}{steps}.{name}")
}

/// Quantities as a table, without the columns that no quantity has.
fn figures(figures: &[Figure]) -> Html {
    type Column = (&'static str, fn(&Figure) -> Option<&super::Measured>);
    let columns: [Column; 4] = [
        ("Before", |it| it.before.as_ref()),
        ("After", |it| Some(&it.after)),
        ("Trained without it", |it| it.retrained.as_ref()),
        ("Second one trained without it", |it| it.floor.as_ref()),
    ];
    let is_used = |(_, of): &&Column| figures.iter().any(|it| of(it).is_some());
    let columns: Vec<&Column> = columns.iter().filter(is_used).collect();
    let heads: Vec<&str> = std::iter::once("Measured")
        .chain(columns.iter().map(|it| it.0))
        .collect();
    let rows = figures.iter().map(|figure| {
        let name = element("th", "", text(label(figure)));
        let cells = columns.iter().map(|(label, of)| {
            let number = of(figure).map(|number| measured(number, &figure.unit));
            cell(label, number.unwrap_or_default())
        });
        std::iter::once(name).chain(cells).collect()
    });
    table(&heads, rows)
}

/// The name of a quantity with its unit.
fn label(figure: &Figure) -> String {
    match &figure.unit {
        Unit::Named(unit) if !unit.is_empty() => format!("{} ({unit})", figure.name),
        _ => figure.name.clone(),
    }
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    match rest.next() {
        Some(first) => first.to_uppercase().chain(rest).collect(),
        None => String::new(),
    }
}

fn draw(chart: &Chart) -> Result<String> {
    let mut panel = Panel::new(&chart.title)
        .x_label(&chart.x_label)
        .y_label(&chart.y_label);
    if chart.log_y {
        panel = panel.log_y();
    }
    for line in &chart.lines {
        panel = panel.series(Series::new(&line.name, line.points.iter().copied()));
    }
    Plot::new().panel(panel).panel_size(CHART).to_svg()
}

/// Words that a reader may not know.
fn glossary() -> Html {
    let words = [
        (
            "Model",
            "A program with adjustable numbers (parameters, weights) that was trained on examples and generates new ones like them.",
        ),
        (
            "Unlearning",
            "Changing the weights of a trained model so that it behaves as if some examples had not been among its training data.",
        ),
        (
            "Trained without it",
            "A model of the same kind that never saw the item: what unlearning should arrive at. A second one, made with other random numbers, shows how much two such models differ anyway (the noise floor).",
        ),
        (
            "Loss",
            "How badly the model predicts a picture from a noisy version of it. A low loss on a picture, compared with pictures it never saw, shows that it knows the picture.",
        ),
        (
            "Timestep",
            "How much noise is in the noisy version: 0 is none, the highest number is nothing but noise.",
        ),
        (
            "n, 95 % interval",
            "How many were measured, and the range in which the true value lies with 95 % confidence. A result of 0 out of few does not mean never.",
        ),
        (
            "SHA-256",
            "A number computed from a file. Two different files do not have the same one.",
        ),
    ];
    let pairs = words.map(|(word, meaning)| (word.to_owned(), text(meaning)));
    section("Words used here", terms(pairs))
}
