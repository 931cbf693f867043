//! The job of `closeness`: how close the models that methods leave come to a retrained one, over
//! numbers of steps, seeds and numbers of forgotten points.

mod contender;
mod line;
mod options;
mod order;
mod plot;
mod request;
mod requests;
mod retained;
mod table;
mod thorough;
mod trial;

use std::error::Error;
use std::path::Path;

use crate::progress::Progress;
use crate::{files, lines};

use line::{Line, Setting};
use requests::RequestLine;
use trial::Trial;

pub use options::Options;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One line for each finished run.
pub const RUNS: &str = "runs.csv";
/// One line for each request of these runs.
pub const REQUESTS: &str = "requests.csv";
pub const TABLE: &str = "table.md";
pub const PLOT: &str = "plot.svg";
pub const COSTS: &str = "costs.svg";

/// Runs what the file of runs lacks, writes table and plots of all its runs, and returns the
/// tables.
pub fn run(options: &Options, progress: &dyn Progress) -> Result<String> {
    options.check()?;
    let mut runs = lines::read(&options.out.join(RUNS))?;
    if !runs.is_empty() {
        // Lines of an earlier version get the columns of this one.
        lines::write(&options.out.join(RUNS), &runs)?;
    }
    let failed = run_missing(options, &mut runs, progress)?;
    let requests: Vec<RequestLine> = lines::read(&options.out.join(REQUESTS))?;
    let table = format!("{}\n{}", table::table(&runs), requests::table(&requests));
    files::write(&options.out.join(TABLE), &table)?;
    plot::steps(&runs).save(options.out.join(PLOT))?;
    if let Some(plot) = plot::costs(&runs) {
        plot.save(options.out.join(COSTS))?;
    }
    match failed {
        0 => Ok(table),
        failed => Err(format!("{failed} runs failed; their messages are above").into()),
    }
}

/// Runs what is missing, adds each run to the file at once, and returns how many failed.
fn run_missing(options: &Options, runs: &mut Vec<Line>, progress: &dyn Progress) -> Result<usize> {
    let data = options
        .case
        .load(&options.assets, &options.device.device()?)?;
    let numbers = options.points(data.forget.dims()[0]);
    for &points in &numbers {
        // A number of points that is refused is refused before hours of runs with others.
        data.forgetting(0..points, options.case.copies())?;
    }
    let (mut trial, mut failed) = (None, 0);
    for points in numbers {
        let missing = missing(options, points, runs);
        if missing.is_empty() {
            continue;
        }
        let trial = match &trial {
            Some(trial) => trial,
            None => &*trial.insert(Trial::load(options, &data, progress)?),
        };
        let mut forgetting = trial.forgetting(points)?;
        for setting in missing {
            progress.phase(&setting.to_string());
            match forgetting.run(&setting, progress) {
                Ok((run, requests)) => {
                    keep_requests(&options.out.join(REQUESTS), requests)?;
                    progress.say(&run.summary());
                    keep(&options.out.join(RUNS), run, (&setting, runs))?;
                }
                Err(error) => {
                    progress.say(&format!("error: {setting}: {error}"));
                    failed += 1;
                }
            }
        }
    }
    Ok(failed)
}

/// Adds a run to the file and to the others, in place of one of the same setting that was measured
/// less thoroughly.
fn keep(path: &Path, run: Line, (setting, runs): (&Setting, &mut Vec<Line>)) -> Result<()> {
    let same = runs.iter().position(|known| known.is_run_of(setting));
    let Some(same) = same else {
        lines::append(path, &run)?;
        runs.push(run);
        return Ok(());
    };
    runs[same] = run;
    lines::write(path, runs)
}

/// Adds the requests of a run to the file, in place of those of the same run. Lines of an earlier
/// version get the columns of this one.
fn keep_requests(path: &Path, requests: Vec<RequestLine>) -> Result<()> {
    let mut lines: Vec<RequestLine> = lines::read(path)?;
    lines.retain(|line| !requests.iter().any(|request| request.is_again(line)));
    lines.extend(requests);
    lines::write(path, &lines)
}

/// The settings of the command line that no run has.
fn missing(options: &Options, points: usize, runs: &[Line]) -> Vec<Setting> {
    let settings = options.settings(points).into_iter();
    let is_missing = |setting: &Setting| !runs.iter().any(|run| run.is_of(setting));
    settings.filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use siss::backend::DeviceSpec;
    use siss::clipper::ClipperSpec;

    use super::line::{Measured, Subject};
    use super::requests::Moments;
    use super::thorough::Thorough;
    use super::*;

    fn options(words: &str) -> Options {
        let words = ["closeness"].into_iter().chain(words.split_whitespace());
        Options::try_parse_from(words).unwrap()
    }

    /// The run of a setting, as it is read back from a file.
    fn finished(setting: &Setting) -> Line {
        let run = Line::of(setting, DeviceSpec::Flex, &Measured::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(RUNS);
        lines::append(&path, &run).unwrap();
        let [read] = lines::read(&path).unwrap().try_into().unwrap();
        assert_eq!(read, run);
        read
    }

    #[test]
    fn only_what_the_file_lacks_is_run() {
        let words = "--methods siss,siss-to-level,counterfactual --steps 5,10 --seeds 0,1";
        let options = options(words);
        let mut runs = Vec::new();
        let all = missing(&options, 1, &runs);
        assert_eq!(all.len(), 3 + 3 * 2 * 2);
        for (done, setting) in all.iter().enumerate() {
            assert_eq!(missing(&options, 1, &runs).len(), all.len() - done);
            runs.push(finished(setting));
        }
        assert!(missing(&options, 1, &runs).is_empty());
        // Other points are other runs, the models that were not unlearned among them.
        assert_eq!(missing(&options, 4, &runs).len(), all.len());
        for (other, count) in [
            ("--methods siss --steps 5 --seeds 0", 0),
            ("--methods siss-no-is --steps 5 --seeds 0", 1),
            ("--methods siss --steps 6 --seeds 0", 1),
            ("--methods siss --steps 5 --seeds 2", 1),
            ("--methods siss --steps 5 --seeds 0 --batch 8", 1),
            (
                "--methods siss --steps 5 --seeds 0 --clipper fraction:0.5:1",
                1,
            ),
            ("--methods siss --steps 5 --seeds 0 --forget-prob 0.25", 1),
            ("--methods siss --steps 5 --seeds 0 --retained data", 0),
            ("--methods siss --steps 5 --seeds 0 --retained own", 1),
            // Even the models that were not unlearned were measured without.
            ("--methods siss --steps 5 --seeds 0 --thorough", 4),
            ("--methods siss --steps 5 --seeds 0 --order together", 0),
            ("--methods siss --steps 5 --seeds 0 --order in-turn", 1),
            (
                "--methods siss --steps 5 --seeds 0 --order together,in-turn,replay",
                2,
            ),
            ("--methods siss --steps 5 --seeds 0 --of-each 2", 0),
            ("--methods siss --steps 5 --seeds 0 --samples 8", 4),
            ("--methods siss --steps 5 --seeds 0 --case digits", 4),
        ] {
            let options = self::options(other);
            assert_eq!(missing(&options, 1, &runs).len(), count, "{other}");
        }
    }

    #[test]
    fn a_clipper_is_part_of_a_run() {
        let options = options("--methods siss --steps 5 --seeds 0 --clipper fraction:0.5:1");
        let settings = missing(&options, 1, &[]);
        let run = finished(&settings[3]);
        assert_eq!(
            run.clipper.parse::<ClipperSpec>().unwrap(),
            options.clipper.unwrap()
        );
        assert!(run.is_of(&settings[3]));
        // Neither the model before nor the retrained ones have one.
        assert_eq!(finished(&settings[0]).clipper, "");
        assert!(finished(&settings[0]).is_of(&settings[0]));
    }

    #[test]
    fn a_thorough_run_takes_the_place_of_one_that_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(RUNS);
        let words = "--methods siss,siss-no-is --steps 5 --seeds 0";
        let mut runs = Vec::new();
        for setting in options(words).settings(1) {
            let run = Line::of(&setting, DeviceSpec::Flex, &Measured::default());
            keep(&path, run, (&setting, &mut runs)).unwrap();
        }
        assert_eq!(runs.len(), 5);
        let setting = options(&format!("{words} --thorough")).settings(1)[3];
        let measured = Measured {
            answer: 0.5,
            thorough: Some(Thorough {
                likelihood: [1.0, 2.0],
                membership: 0.75,
                relearning: Some(20),
                sliced: None,
            }),
            ..Measured::default()
        };
        let run = Line::of(&setting, DeviceSpec::Flex, &measured);
        keep(&path, run.clone(), (&setting, &mut runs)).unwrap();
        assert!(run.is_of(&setting));
        assert_eq!((runs.len(), &runs[3]), (5, &run));
        assert_eq!(lines::read::<Line>(&path).unwrap(), runs);
        // The same columns in every row.
        let table = table::table(&runs);
        let counts: Vec<usize> = table.lines().map(|row| row.matches('|').count()).collect();
        assert!(counts.iter().all(|&count| count == 24), "{counts:?}");
        assert!(table.contains("| 1.000, 2.000 | 0.750 | 20 |"), "{table}");
        // Over the floor: of the retrained models, and of the run at twice their distance.
        for (place, run) in runs.iter_mut().enumerate() {
            run.answer = if place == 3 { 0.5 } else { 0.25 };
            (run.denoised_400, run.neighbourhood, run.loss) = (2.0, 0.1, 0.1);
        }
        let table = table::table(&runs);
        let ratios = |ratios: &str| table.matches(&format!("| {ratios} |")).count();
        assert_eq!(ratios("1.0, 1.0, 1.0, 1.0"), 3, "{table}");
        assert_eq!(ratios("2.0, 1.0, 1.0, 1.0"), 1, "{table}");
        assert!(
            table::table(&runs[3..]).contains("| 0.100 | – |"),
            "{table}"
        );
    }

    #[test]
    fn requests_of_a_run_that_is_run_again_are_not_there_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(REQUESTS);
        let requests = |words: &str, count: usize| -> Vec<RequestLine> {
            let setting = options(&format!("--methods siss --steps 5 {words}")).settings(1)[3];
            let Subject::Unlearned(run) = setting.subject else {
                panic!("the first three are not unlearned");
            };
            let numbers = (1..=count).map(|number| (number, 1));
            let line = |number| {
                let (moments, took) = (Moments::default(), Default::default());
                RequestLine::of((&setting, run), number, &moments, took, DeviceSpec::Flex)
            };
            numbers.map(line).collect()
        };
        let counts = [
            ("--seeds 0 --order in-turn", 2, 2),
            ("--seeds 0 --order in-turn --thorough", 2, 2),
            ("--seeds 0", 1, 3),
            ("--seeds 1", 1, 4),
            ("--seeds 0 --forget-prob 0.25", 1, 5),
            ("--seeds 0 --retained filtered", 1, 6),
            ("--seeds 0 --thorough", 1, 6),
        ];
        for (words, count, expected) in counts {
            keep_requests(&path, requests(words, count)).unwrap();
            let lines: Vec<RequestLine> = lines::read(&path).unwrap();
            assert_eq!(lines.len(), expected, "{words}");
        }
        // A file from before λ was an option.
        let text = std::fs::read_to_string(&path).unwrap();
        let without = |line: &str| line.rsplitn(3, ',').nth(2).unwrap().to_owned() + "\n";
        let earlier: String = text.lines().take(3).map(without).collect();
        std::fs::write(&path, earlier).unwrap();
        keep_requests(&path, requests("--seeds 2", 1)).unwrap();
        assert_eq!(lines::read::<RequestLine>(&path).unwrap().len(), 3);
    }

    #[test]
    fn bad_options_are_refused() {
        for words in [
            "--methods siss,ascent",
            "--methods counterfactual-to-level",
            "--case cats",
        ] {
            let words = ["closeness"].into_iter().chain(words.split_whitespace());
            assert!(Options::try_parse_from(words).is_err());
        }
        for (words, name) in [
            ("--steps 10,0", "--steps"),
            ("--batch 0", "--batch"),
            ("--of-each 0", "--of-each"),
            ("--forget-prob 0", "--forget-prob"),
            ("--forget-prob 1.5", "--forget-prob"),
            ("--clipper fraction:-1", "--clipper"),
        ] {
            let error = options(words).check().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
