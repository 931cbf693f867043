use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn open(attack: Attack) -> NotTested {
    NotTested {
        attack: Some(attack),
        what: attack.name().into(),
        why: "no time".into(),
    }
}

fn copies() -> AuditTest {
    let figure = Figure::new("copies", Unit::Share, Measured::share(0, 1024).unwrap());
    AuditTest {
        attack: Attack::DataReconstruction,
        signal: "L2 below 10".into(),
        question: "Does it generate the item?".into(),
        reading: "The upper end is the highest plausible rate.".into(),
        timesteps: vec![],
        fixed_in_advance: true,
        targets: 1,
        controls: 0,
        figures: vec![figure.before(Measured::share(18, 1024).unwrap())],
        verdict: Verdict::NoTrace,
        explanation: "None is a copy.".into(),
    }
}

/// A report in which every user's text is `text`.
fn report(text: &str) -> AuditReport {
    let own = || text.to_owned();
    let line = Line {
        name: own(),
        points: vec![(0.0, 1.0), (1.0, 0.5)],
    };
    let mut test = copies();
    test.signal = own();
    test.question = own();
    test.reading = own();
    test.explanation = own();
    test.figures[0].name = own();
    test.figures[0].unit = Unit::named(text);
    test.figures[0].after.note = Some(own());
    let named = [(own(), own())];
    AuditReport {
        request: Request {
            id: own(),
            received: own(),
            completed: own(),
            legal_basis: Some(own()),
        },
        subjects: vec![Subject {
            name: own(),
            sha256: hash('a'),
        }],
        tester: Tester {
            name: own(),
            relation: own(),
            tested: own(),
        },
        threats: vec![Threat {
            attacker: own(),
            is_tested: true,
        }],
        model: AuditedModel {
            name: own(),
            parents: vec![own()],
            parameters: 1_000_000,
            before_sha256: hash('b'),
            after_sha256: hash('c'),
            descendants: Some(vec![own()]),
            old_copies: Some(vec![OldCopy {
                place: own(),
                fate: own(),
            }]),
        },
        data: AuditedData {
            description: own(),
            retain_manifest_sha256: hash('d'),
            retained: 9_000,
            controls: 1_000,
        },
        run: AuditedRun {
            command: own(),
            configuration: named.clone().into(),
            seed: 7,
            versions: named.into(),
            device: own(),
            announced_seconds: Some(90.0),
            seconds: Some(100.0 / 3.0),
        },
        quality: test.figures.clone(),
        tests: vec![test],
        worst_case: Some(WorstCase {
            sha256: hash('a'),
            finding: own(),
        }),
        charts: vec![Chart {
            title: own(),
            caption: own(),
            x_label: own(),
            y_label: own(),
            log_y: false,
            lines: vec![line],
        }],
        pictures: vec![Picture {
            caption: own(),
            png: PIXEL.into(),
            shows_subject: false,
        }],
        rechecks: vec![Recheck {
            request: own(),
            sha256: hash('e'),
            verdict: Verdict::Undecided,
            finding: own(),
        }],
        not_tested: Attack::ALL.map(open).into(),
        residual_risk: own(),
        previous_entry_sha256: Some(hash('f')),
        disclaimer: own(),
        ..AuditReport::default()
    }
}

/// A PNG of one pixel.
const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";

fn fault(report: &AuditReport) -> (String, ReportFault) {
    let error = report.validate().unwrap_err();
    let also = report.to_html().unwrap_err();
    assert_eq!(error.to_string(), also.to_string());
    match error {
        Error::InvalidReport { place, fault } => (place, fault),
        other => panic!("{other}"),
    }
}

/// What a change of a valid report leads to.
fn fault_of(change: impl FnOnce(&mut AuditReport)) -> (String, ReportFault) {
    let mut changed = report("text");
    changed.validate().unwrap();
    change(&mut changed);
    fault(&changed)
}

#[test]
fn what_is_missing_or_impossible_is_named_with_its_place() {
    let after = |change: fn(&mut Measured)| {
        fault_of(|report| change(&mut report.tests[0].figures[0].after))
    };
    let place = "tests[0].figures[0].after".to_owned();
    let outside = ReportFault::OutsideInterval {
        value: 0.0,
        low: 0.1,
        high: 0.2,
    };
    assert_eq!(
        after(|it| it.interval = Some([0.1, 0.2])),
        (place.clone(), outside)
    );
    assert_eq!(
        after(|it| it.samples.clear()),
        (place.clone(), ReportFault::NoSample)
    );
    assert_eq!(
        after(|it| it.samples.push(0)),
        (place.clone(), ReportFault::NoSample)
    );
    let infinite = ReportFault::NotFinite(f64::INFINITY);
    assert_eq!(
        after(|it| it.value = f64::INFINITY),
        (place.clone(), infinite)
    );
    assert!(matches!(
        after(|it| it.value = f64::NAN).1,
        ReportFault::NotFinite(_)
    ));
    let bare = after(|it| (it.interval, it.note) = (None, None));
    assert_eq!(bare, (place.clone(), ReportFault::NoInterval));
    assert_eq!(
        after(|it| it.p_value = Some(1.5)),
        (place, ReportFault::NotAShare(1.5))
    );

    let percent = fault_of(|it| {
        it.quality[0].unit = Unit::Share;
        it.quality[0].before = Some(Measured::new(18.0, [17.0, 19.0], [1024]));
    });
    assert_eq!(
        percent,
        ("quality[0].before".into(), ReportFault::NotAShare(18.0))
    );
    let endless = fault_of(|it| it.run.seconds = Some(f64::INFINITY));
    assert_eq!(
        endless,
        ("run".into(), ReportFault::NotFinite(f64::INFINITY))
    );
    let unknown = fault_of(|it| it.worst_case.as_mut().unwrap().sha256 = hash('9'));
    assert_eq!(
        unknown,
        ("worst_case".into(), ReportFault::UnknownSubject(hash('9')))
    );
    let short = fault_of(|it| it.model.after_sha256 = "abc".into());
    assert_eq!(
        short,
        (
            "model.after_sha256".into(),
            ReportFault::NotAHash("abc".into())
        )
    );
    let upper = fault_of(|it| it.subjects[0].sha256 = hash('A'));
    assert_eq!(upper.1, ReportFault::NotAHash(hash('A')));
    let shown = fault_of(|it| it.pictures[0].shows_subject = true);
    assert_eq!(shown, ("pictures[0]".into(), ReportFault::ShowsSubject));
    for bytes in ["", "AAAA", "\" onerror=\"alert(1)"] {
        let other = fault_of(|it| it.pictures[0].png = bytes.into());
        assert_eq!(other, ("pictures[0]".into(), ReportFault::NotAPicture));
    }
    let chosen = fault_of(|it| it.tests[0].fixed_in_advance = false);
    assert_eq!(chosen, ("tests[0]".into(), ReportFault::ChosenAfterwards));
    let line = fault_of(|it| it.charts[0].lines[0].points[1].1 = f64::NAN);
    assert_eq!(line.0, "charts[0]");
    let format = fault_of(|it| it.format = 2);
    assert_eq!(format, ("the format".into(), ReportFault::UnknownFormat(2)));
}

#[test]
fn no_kind_of_attack_is_passed_over_in_silence() {
    for attack in Attack::ALL {
        if attack == Attack::DataReconstruction {
            continue; // tested
        }
        let silent =
            |it: &mut AuditReport| it.not_tested.retain(|open| open.attack != Some(attack));
        let expected = ReportFault::NotMentioned(attack.name());
        assert_eq!(fault_of(silent), ("the report".into(), expected));
    }
}

#[test]
fn required_texts_are_required() {
    type Text = fn(&mut AuditReport) -> &mut String;
    let texts: [(&str, Text); 7] = [
        ("request.id", |it| &mut it.request.id),
        ("tester.name", |it| &mut it.tester.name),
        ("run.command", |it| &mut it.run.command),
        ("residual_risk", |it| &mut it.residual_risk),
        ("disclaimer", |it| &mut it.disclaimer),
        ("tests[0].question", |it| &mut it.tests[0].question),
        ("not_tested[0].why", |it| &mut it.not_tested[0].why),
    ];
    for (place, text) in texts {
        let found = fault_of(|report| *text(report) = " \n".into());
        assert_eq!(found, (place.into(), ReportFault::Empty));
    }
    assert_eq!(fault_of(|it| it.subjects.clear()).0, "subjects");
    assert_eq!(fault_of(|it| it.tests.clear()).0, "tests");
    assert_eq!(
        fault_of(|it| it.tests[0].targets = 0).1,
        ReportFault::NoSample
    );
}

#[test]
fn json_is_read_back_and_another_json_is_refused() {
    let report = report("text");
    let json = report.to_json().unwrap();
    assert_eq!(
        AuditReport::from_json(&json).unwrap().to_json().unwrap(),
        json
    );
    let wrong = [
        json.replace("\"seed\": 7", "\"seed\": 7, \"surprise\": 1"),
        json.replace("\"no_trace\"", "\"proven_erased\""),
        json[..json.len() / 2].to_owned(),
        "[]".into(),
    ];
    for text in wrong {
        assert_ne!(text, json);
        let error = AuditReport::from_json(&text).unwrap_err();
        assert!(error.to_string().contains("not a report"), "{error}");
    }
    let outside = json.replace(
        "\"samples\": [\n              1024",
        "\"samples\": [\n              0",
    );
    assert_ne!(outside, json);
    let error = AuditReport::from_json(&outside).unwrap_err();
    assert!(error.to_string().contains("sample size"), "{error}");
}

#[test]
fn the_verdict_is_in_words_and_never_says_erased() {
    let mut report = report("text");
    report.disclaimer = DISCLAIMER.into();
    for (verdict, headline) in [
        (Verdict::NoTrace, "No trace was found by 1 test."),
        (Verdict::Trace, "1 of 1 test found a trace."),
        (Verdict::Overdone, "which gives it away too."),
        (Verdict::Undecided, "Undecided: 1 test, and no answer."),
    ] {
        report.tests[0].verdict = verdict;
        let page = report.to_html().unwrap();
        assert!(page.contains(headline), "{verdict:?}");
        assert!(page.contains(verdict.words()));
        for claim in ["proven", "guarantee", "compliant"] {
            assert!(!page.contains(claim), "{claim}");
        }
    }
}

/// Texts that would become markup, attributes, styles or another encoding if they were not escaped.
const HOSTILE: [&str; 14] = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "\"><img src=http://example.org/a.png>",
    "' onmouseover='alert(1)",
    "<a href=\"https://example.org\">here</a>",
    "javascript:alert(1)",
    "<!-- open",
    "]]><svg/onload=alert(1)>",
    "&lt;script&gt; &amp; &#60;",
    "<meta http-equiv=refresh content=0;url=https://example.org>",
    "a\u{202e}gnp.exe\u{0}\u{8}",
    "<iframe src=https://example.org></iframe><base href=//example.org>",
    "{{7*7}} ${7*7} \\ \u{2028} 日本",
];

/// The tags of a page, without their text.
fn tags(page: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag ends");
        tags.push(rest[start..=end].to_owned());
        rest = &rest[end..];
    }
    tags
}

/// The page of a hostile text has the same tags as that of a harmless one, apart from what pictures
/// and labels hold, which are checked on their own.
fn check_page(hostile: &str) {
    let shape = |page: &str| {
        let kinds = tags(page).into_iter().map(|tag| {
            let name = tag.split([' ', '>']).next().unwrap_or_default().to_owned();
            let attributes = tag.split('"').step_by(2).skip(1).collect::<Vec<_>>();
            format!("{name} {attributes:?}")
        });
        kinds.collect::<Vec<_>>()
    };
    let page = report(hostile).to_html().unwrap();
    assert_eq!(
        shape(&page),
        shape(&report("text").to_html().unwrap()),
        "{hostile}"
    );
    assert_eq!(page.matches("<script").count(), 0);
    assert_loads_nothing(&page);
    assert!(!page.contains(['\u{202e}', '\u{0}', '\u{2028}']));
}

fn assert_loads_nothing(page: &str) {
    let policy = "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"";
    assert!(page.contains(policy));
    for tag in tags(page) {
        let name = tag[1..].split([' ', '>', '/']).next().unwrap_or_default();
        let loads = [
            "script", "link", "iframe", "object", "embed", "base", "a", "form", "svg",
        ];
        assert!(!loads.contains(&name), "{tag:.200}");
        if let Some((_, source)) = tag.split_once(" src=\"") {
            assert!(source.starts_with("data:image/"), "{tag:.200}");
        }
        for attribute in ["href=", "srcset=", "style=", "onerror=", "background="] {
            assert!(
                !tag.contains(&format!(" {attribute}")) || tag.contains("alt=\""),
                "{tag:.200}"
            );
        }
    }
    let style = page
        .split("<style>")
        .nth(1)
        .unwrap()
        .split("</style>")
        .next()
        .unwrap();
    for loads in ["url(", "@import", "http"] {
        assert!(!style.contains(loads), "{loads}");
    }
}

#[test]
fn hostile_texts_stay_texts() {
    for hostile in HOSTILE {
        check_page(hostile);
    }
    let page = report("<b>https://example.org</b>").to_html().unwrap();
    assert!(page.contains("33.3 s (announced: 90 s)"));
    assert!(page.contains("&lt;b&gt;https://example.org&lt;/b&gt;"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_text_stays_a_text(text in "[<>\"'&a-z=/: \\PC]{1,40}[a-z]") {
        check_page(&text);
    }
}

#[test]
fn a_saved_report_is_two_files_and_the_hash_is_that_of_the_json() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/folder");
    let sha256 = report("text").save(&out).unwrap();
    let json = fs::read(out.join("report.json")).unwrap();
    assert_eq!(crate::files::sha256(&json), sha256);
    assert!(
        fs::read_to_string(out.join("report.html"))
            .unwrap()
            .ends_with("</html>\n")
    );
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
}

fn entry(request: &str, subjects: &[char]) -> LogEntry {
    LogEntry {
        time: "2026-11-21T10:00:00Z".into(),
        request: request.into(),
        subjects: subjects.iter().copied().map(hash).collect(),
        model_before: hash('b'),
        model_after: hash('c'),
        report: hash('d'),
    }
}

/// A log of three requests, and its lines.
fn three(folder: &Path) -> (std::path::PathBuf, Vec<String>) {
    let path = folder.join("log.jsonl");
    let mut log = AuditLog::open(&path).unwrap();
    log.append(entry("1", &['1', '2'])).unwrap();
    log.append(entry("2", &['3'])).unwrap();
    AuditLog::open(&path)
        .unwrap()
        .append(entry("3", &['2', '4']))
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    (path, text.lines().map(str::to_owned).collect())
}

fn broken(path: &Path) -> (usize, LogFault) {
    match AuditLog::open(path).unwrap_err() {
        Error::BrokenLog { line, fault, .. } => (line, fault),
        other => panic!("{other}"),
    }
}

#[test]
fn a_log_that_was_changed_names_its_first_wrong_line() {
    let folder = tempfile::tempdir().unwrap();
    let (path, lines) = three(folder.path());
    let whole = AuditLog::open(&path).unwrap();
    assert_eq!(whole.entries().len(), 3);
    assert_eq!(whole.head(), crate::files::sha256(lines[2].as_bytes()));
    let write = |lines: &[&str]| fs::write(&path, lines.join("\n") + "\n").unwrap();
    let [one, two, three] = [0, 1, 2].map(|index: usize| lines[index].as_str());

    let changed = one.replace("\"1\"", "\"9\"");
    for (changed, line) in [
        (vec![changed.as_str(), two, three], 2),
        (vec![one, three], 2),
        (vec![two, three], 1),
        (vec![one, one, two, three], 2),
        (vec![one, three, two], 2),
    ] {
        write(&changed);
        let (found, fault) = broken(&path);
        assert_eq!(found, line);
        assert!(
            matches!(fault, LogFault::AnotherPredecessor { .. }),
            "{fault}"
        );
    }
    write(&[one, "{}", three]);
    assert!(matches!(broken(&path), (2, LogFault::NotAnEntry(_))));
    write(&[one, "", two]);
    assert!(matches!(broken(&path), (2, LogFault::NotAnEntry(_))));
    fs::write(&path, [one.as_bytes(), b"\n\xff\n"].concat()).unwrap();
    assert!(matches!(broken(&path), (2, LogFault::NotAnEntry(_))));

    // A log that was cut at a line is whole; only the known head tells.
    write(&[one, two]);
    let cut = AuditLog::open(&path).unwrap();
    cut.check_head(cut.head()).unwrap();
    let error = cut.check_head(whole.head()).unwrap_err();
    let is_end = matches!(
        &error,
        Error::BrokenLog {
            line: 2,
            fault: LogFault::AnotherEnd { .. },
            ..
        }
    );
    assert!(is_end, "{error}");
}

#[test]
fn a_log_that_breaks_off_anywhere_says_how_to_mend_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, lines) = three(folder.path());
    let text = lines.join("\n") + "\n";
    let before = (lines[0].len() + lines[1].len() + 2) as u64;
    for length in [before as usize + 1, text.len() / 5 * 4, text.len() - 1] {
        fs::write(&path, &text[..length]).unwrap();
        assert_eq!(broken(&path), (3, LogFault::BreaksOff { keep: before }));
        let error = AuditLog::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("first {before} bytes")), "{error}");
        fs::write(&path, &text[..before as usize]).unwrap();
        AuditLog::open(&path)
            .unwrap()
            .append(entry("3", &['2', '4']))
            .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn earlier_items_are_tested_again_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = three(folder.path());
    let log = AuditLog::open(path).unwrap();
    let found = |current: &[char]| {
        let current: Vec<String> = current.iter().copied().map(hash).collect();
        let earlier = log.to_recheck(&current);
        let pair = |it: EarlierSubject| (it.request, it.sha256.chars().next().unwrap());
        earlier.into_iter().map(pair).collect::<Vec<_>>()
    };
    let pair = |request: &str, digit| (request.to_owned(), digit);
    assert_eq!(
        found(&[]),
        [
            pair("1", '1'),
            pair("1", '2'),
            pair("2", '3'),
            pair("3", '4')
        ]
    );
    assert_eq!(found(&['2', '4']), [pair("1", '1'), pair("2", '3')]);
}

#[test]
fn a_log_refuses_wrong_entries_and_a_second_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (path, lines) = three(folder.path());
    let mut one = AuditLog::open(&path).unwrap();
    let mut other = AuditLog::open(&path).unwrap();
    let mut wrong = entry("4", &['5']);
    wrong.report = "abc".into();
    assert!(matches!(
        one.append(wrong).unwrap_err(),
        Error::InvalidSetting { .. }
    ));
    assert!(matches!(
        one.append(entry("4", &[])).unwrap_err(),
        Error::Empty { .. }
    ));
    one.append(entry("4", &['5'])).unwrap();
    let late = other.append(entry("5", &['6'])).unwrap_err();
    assert!(late.to_string().contains("open it again"), "{late}");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), lines.len() + 1);
    // Requests are only text: nothing in them can end a line.
    one.append(entry("a\n{\"previous\":\"\"}\u{2028}", &['7']))
        .unwrap();
    assert_eq!(AuditLog::open(&path).unwrap().entries().len(), 5);
}

#[test]
fn a_manifest_is_what_sha256sum_writes() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b/two"), "hello\n").unwrap();
    fs::write(folder.path().join("b.txt"), "").unwrap();
    let manifest = Manifest::of(folder.path()).unwrap();
    // cd FOLDER; find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum
    let expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b.txt\n\
        5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03  b/two\n";
    assert_eq!(manifest.to_text(), expected);
    assert_eq!(manifest.sha256(), crate::files::sha256(expected.as_bytes()));
    let file = Manifest::of(folder.path().join("b/two")).unwrap();
    assert_eq!(
        (file.files()[0].name.as_str(), file.files()[0].bytes),
        ("two", 6)
    );
    fs::rename(folder.path().join("b/two"), folder.path().join("b/three")).unwrap();
    assert_ne!(
        Manifest::of(folder.path()).unwrap().sha256(),
        manifest.sha256()
    );
}

/// A run's folder, with everything that still holds the item.
fn run_folder(folder: &Path) -> RemainsOf {
    let write = |name: &str, contents: &str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    };
    write("checkpoints/step-10/model.bpk", "weights on the way");
    write("checkpoints/step-10/optimizer.bpk", "moments");
    write("data/copied under another name.bin", "the item");
    write("backup/unet.safetensors", "old weights");
    write(
        "model/unet/diffusion_pytorch_model.safetensors",
        "new weights",
    );
    write("latents/0.npy", "latent");
    write("before.png", "picture");
    write("samples/before/0.png", "picture");
    write("after.png", "picture");
    write("summary.json", "{}");
    RemainsOf {
        subjects: vec![crate::files::sha256(b"the item")],
        old_model: vec![crate::files::sha256(b"old weights")],
    }
}

fn listed(remains: &Remains, folder: &Path) -> Vec<(String, RemainderKind)> {
    let root = folder.canonicalize().unwrap();
    let files = remains.files().iter();
    files
        .map(|file| {
            let name = file.path.strip_prefix(&root).unwrap();
            (name.to_string_lossy().replace('\\', "/"), file.kind)
        })
        .collect()
}

#[test]
fn what_still_holds_the_item_is_listed_by_kind_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let of = run_folder(folder.path());
    let before = Manifest::of(folder.path()).unwrap();
    let remains = Remains::find(&[folder.path()], &of).unwrap();
    let expected = [
        ("backup/unet.safetensors", RemainderKind::OldModel),
        ("before.png", RemainderKind::Picture),
        ("checkpoints/step-10/model.bpk", RemainderKind::Checkpoint),
        (
            "checkpoints/step-10/optimizer.bpk",
            RemainderKind::OptimizerState,
        ),
        ("data/copied under another name.bin", RemainderKind::Subject),
        ("latents/0.npy", RemainderKind::Cache),
        ("samples/before/0.png", RemainderKind::Picture),
    ];
    let expected = expected.map(|(name, kind)| (name.to_owned(), kind));
    assert_eq!(listed(&remains, folder.path()), expected);
    let item = &remains.files()[4];
    assert_eq!((item.bytes, item.sha256.as_ref()), (8, of.subjects.first()));
    assert_eq!(Manifest::of(folder.path()).unwrap(), before);
    // A folder within another, or given twice, lists nothing twice.
    let inner = folder.path().join("samples");
    let folders = [inner.as_path(), folder.path(), folder.path()];
    let again = Remains::find(&folders, &of).unwrap();
    assert_eq!(listed(&again, folder.path()), expected);
}

#[test]
fn only_what_is_named_and_unchanged_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let of = run_folder(folder.path());
    let mut remains = Remains::find(&[folder.path()], &of).unwrap();
    let path = |name: &str| folder.path().join(name);
    let refused = |remains: &mut Remains, paths: &[std::path::PathBuf], reason: &str| {
        let before = Manifest::of(folder.path()).unwrap();
        let error = remains.remove(paths).unwrap_err();
        assert!(matches!(&error, Error::NotRemoved { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(Manifest::of(folder.path()).unwrap(), before);
    };
    let good = path("before.png");
    refused(
        &mut remains,
        &[good.clone(), path("summary.json")],
        "not in the list",
    );
    let other = tempfile::NamedTempFile::new().unwrap();
    refused(&mut remains, &[other.path().to_owned()], "not in the list");
    fs::write(path("latents/0.npy"), "another").unwrap();
    refused(
        &mut remains,
        &[good.clone(), path("latents/0.npy")],
        "has changed",
    );

    let item = path("data/../data/copied under another name.bin");
    let removed = remains
        .remove(&[good.clone(), item.clone(), good.clone()])
        .unwrap();
    assert_eq!(removed.len(), 3);
    assert!(!good.exists() && !item.exists() && path("after.png").exists());
    assert_eq!(remains.files().len(), 5);
}

#[cfg(unix)]
#[test]
fn links_are_listed_and_never_followed() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("cache")).unwrap();
    fs::write(outside.path().join("cache/0.bin"), "the item").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let of = run_folder(folder.path());
    symlink(outside.path(), folder.path().join("elsewhere")).unwrap();
    symlink(folder.path(), folder.path().join("latents/loop")).unwrap();
    symlink("/nowhere", folder.path().join("broken")).unwrap();
    let mut remains = Remains::find(&[folder.path()], &of).unwrap();
    let links = listed(&remains, folder.path());
    let links = links.into_iter().filter(|it| it.1 == RemainderKind::Link);
    let names: Vec<String> = links.map(|it| it.0).collect();
    assert_eq!(names, ["broken", "elsewhere", "latents/loop"]);

    // What lies behind the link is not in the list, whichever way it is named.
    let behind = folder.path().join("elsewhere/cache/0.bin");
    assert!(matches!(
        remains.remove(&[behind]).unwrap_err(),
        Error::NotRemoved { .. }
    ));
    // A folder that became a link after the search leads out of the folder.
    fs::rename(folder.path().join("latents"), folder.path().join("moved")).unwrap();
    symlink(outside.path().join("cache"), folder.path().join("latents")).unwrap();
    fs::write(outside.path().join("cache/0.npy"), "latent").unwrap();
    let swapped = remains
        .remove(&[folder.path().join("latents/0.npy")])
        .unwrap_err();
    assert!(matches!(swapped, Error::NotRemoved { .. }), "{swapped}");
    // Removing a link leaves what it leads to.
    remains.remove(&[folder.path().join("elsewhere")]).unwrap();
    assert!(!folder.path().join("elsewhere").exists());
    assert!(outside.path().join("cache/0.npy").exists());
    assert!(outside.path().join("cache/0.bin").exists());
}
