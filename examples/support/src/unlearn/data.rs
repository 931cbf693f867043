//! The images of a run: to forget, to keep, and to compare with.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use siss::Condition;
use siss::draws::{Stream, keyed_rng};
use siss::files::path_text;
use siss::images::{Account, Format, ImageFiles, ImageReader, Images};
use siss::rand::seq::SliceRandom;

use crate::probe::EVALUATION_SEED;
use crate::progress::Progress;
use crate::subject::{ConditionOf, MOST_VALUES, Subject};
use crate::target::REFERENCES;
use crate::unlearn::options::{Augment, Options};
use crate::unlearn::stream::{self, MOST_HELD, MOST_NEAREST, RetainStream};
use crate::way::Way;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The control set is this fraction of the retained images, within the limits below.
const CONTROL_PART: usize = 10;
const LEAST_CONTROL: usize = 8;
const MOST_CONTROL: usize = 256;
/// Fewest retained images that answers are predicted from: 32 digits explain a third of the errors
/// of the bundled model, a thousand two thirds.
pub const LEAST_REFERENCES: usize = 32;

/// The images of a run. With `--augment flip` the images to forget and to keep include their mirror
/// images.
pub struct Data {
    pub forget: Images,
    /// Images to compare with. Never trained on.
    pub control: Images,
    /// Retained images to train on.
    pub retain: Images,
    /// The images that the steps draw from, if they are not held in memory; `retain` is a sample of
    /// them.
    pub stream: Option<RetainStream>,
    /// Number of retained images found, not all of which are needed.
    pub retain_found: usize,
    pub accounts: Accounts,
    /// The files that were found in the folders of each set.
    pub found: Found,
}

/// The files that were found in the folders of each set.
pub struct Found {
    pub forget: ImageFiles,
    pub retain: ImageFiles,
    /// Those of `--control`, or of the retained images.
    pub control: ImageFiles,
}

/// The accounts of the files of each folder.
#[derive(Debug, Clone, Serialize)]
pub struct Accounts {
    pub forget: Account,
    /// Account of the retained images, including the control images taken from them.
    pub retain: Account,
    /// Account of `--control`.
    pub control: Option<Account>,
}

impl Data {
    /// Reads the images in the format of the model.
    ///
    /// From the retained images, a control set and as many others as the steps use, or answers are
    /// predicted from, are taken at random. With `--control` the control set comes from that
    /// folder. All images to forget must be readable; they are removed from the other sets, by path
    /// and by content.
    ///
    /// If the model has a condition, too few retained images to predict answers from are accepted.
    pub fn load<S: Subject>(
        options: &Options,
        subject: &S,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let to_forget = ImageFiles::find(&options.forget)?;
        let format = subject.space().format(
            subject.input(),
            &to_forget,
            options.transparency,
            &options.model,
        )?;
        let (mut retained, mut controls) = others(options, &to_forget)?;
        let retain_found = retained.pictures.len();
        let (first, control_count) = match &mut controls {
            Some(controls) => (controls, MOST_CONTROL),
            None => {
                let part = retain_found / CONTROL_PART;
                (&mut retained, part.clamp(LEAST_CONTROL, MOST_CONTROL))
            }
        };
        // The order does not depend on the number of the others.
        let control_count = control_count.min(first.pictures.len());
        first.pictures[..control_count].sort();

        let found = Found {
            forget: to_forget.clone(),
            retain: retained.clone(),
            control: controls.as_ref().unwrap_or(&retained).clone(),
        };
        let copies = match options.augment {
            Augment::None => 1,
            Augment::Flip => 2,
        };
        let fit = MOST_VALUES / format.values() / copies;
        let needed = to_forget.pictures.len() + control_count;
        if needed + options.batch > fit {
            let (height, width) = (format.height, format.width);
            return Err(format!(
                "{}: {} images to forget, {control_count} to compare with and a step of {} are too many: at most {fit} of \
                 {height}x{width} pixels are kept in memory; give fewer, or unlearn them in several runs",
                path_text(&options.forget),
                to_forget.pictures.len(),
                options.batch
            )
            .into());
        }
        let used = options.steps.saturating_mul(options.batch);
        let used = match options.method {
            Way::Counterfactual => used.max(REFERENCES),
            Way::Method(_) | Way::SissToLevel => used,
        };
        let used = used.div_ceil(copies).max(options.batch);
        let held = MOST_HELD / format.values() / copies;
        let is_streamed = options.streaming.stream
            || subject.space().is_pixels() && used.min(retain_found) > held;
        let used = match is_streamed {
            true => sample_size(options, held, copies),
            false => used,
        };
        let used = used.min(fit - needed);
        let total = needed + used.min(retain_found);
        let tell = |before: usize| {
            move |done| progress.phase(&format!("reading images: {} of {total}", before + done))
        };

        let read = to_forget.pictures.len();
        let (forget, forget_account) = Images::read_all(to_forget, format, tell(0))?;
        let with_mirrors = |images: Images| match options.augment {
            Augment::None => images,
            Augment::Flip => images.with_mirrors(),
        };
        let forget = with_mirrors(forget);
        let mut retained = ImageReader::new(retained, format).without(&forget);
        let mut controls =
            controls.map(|controls| ImageReader::new(controls, format).without(&forget));
        let reader = controls.as_mut().unwrap_or(&mut retained);
        let control = reader.read(control_count, tell(read));
        let tell = tell(read + control.len());
        let (retain, stream, retain_account) = match is_streamed {
            false => (retained.read(used, tell), None, retained.account().clone()),
            true => {
                refuse_broken(options, retained.account(), &found.retain)?;
                let mut store = retained.into_store();
                if options.streaming.skip_broken {
                    store = store.skipping_unread();
                }
                let (sample, seconds_per_image) = stream::timed(&store, used, tell)?;
                if copies > 1 {
                    store = store.with_mirrors();
                }
                let account = store.account();
                let stream = RetainStream {
                    store: Arc::new(store),
                    seconds_per_image,
                    is_searched: options.streaming.search,
                };
                (sample, Some(stream), account)
            }
        };
        let data = Self {
            forget,
            control,
            retain: with_mirrors(retain),
            stream,
            retain_found,
            accounts: Accounts {
                forget: forget_account,
                retain: retain_account,
                control: controls.map(|reader| reader.account().clone()),
            },
            found,
        };
        let least = match options.method {
            Way::Counterfactual if ConditionOf::<S>::IS_EMPTY => LEAST_REFERENCES,
            _ => 0,
        };
        data.check_numbers(options, least)?;
        Ok(data)
    }

    /// Number of retained images to train on, without mirror images, and of mirror images.
    pub fn trained_on(&self) -> [usize; 2] {
        match &self.stream {
            Some(stream) => stream.counts(),
            None => [
                self.retain.len() - self.retain.mirrors(),
                self.retain.mirrors(),
            ],
        }
    }

    /// The accounts of the files, as far as they were read.
    pub fn accounts(&self) -> Accounts {
        let mut accounts = self.accounts.clone();
        if let Some(stream) = &self.stream {
            accounts.retain = stream.store.account();
        }
        accounts
    }

    /// Number of images in memory.
    pub fn count(&self) -> usize {
        [&self.forget, &self.control, &self.retain]
            .map(Images::len)
            .iter()
            .sum()
    }

    /// The format that all images were read in.
    pub fn format(&self) -> Format {
        self.forget.format()
    }

    /// The control set must be large enough, and the remaining images must fill a step.
    fn check_numbers(&self, options: &Options, least: usize) -> Result<()> {
        let retain = self.retain.len() - self.retain.mirrors();
        let (control, batch) = (self.control.len(), options.batch);
        let problem = match &options.control {
            None if control < LEAST_CONTROL || retain < batch => {
                let count = (self.retain_found / CONTROL_PART).clamp(LEAST_CONTROL, MOST_CONTROL);
                Some((
                    &options.retain,
                    &self.accounts.retain,
                    format!(
                        "it holds {}, but {} are needed: {count} to compare with, which are never trained on, and {batch} for a step; give \
                         more, or a smaller --batch",
                        images(control + retain),
                        count.saturating_add(batch)
                    ),
                ))
            }
            Some(folder) if control < LEAST_CONTROL => {
                let account = self.accounts.control.as_ref();
                let account = account.unwrap_or(&self.accounts.retain);
                let text = format!(
                    "it holds {}, but at least {LEAST_CONTROL} are needed",
                    images(control)
                );
                Some((folder, account, text))
            }
            Some(_) if retain < batch => Some((
                &options.retain,
                &self.accounts.retain,
                format!(
                    "it holds {}, but at least {batch} are needed",
                    images(retain)
                ),
            )),
            _ if retain < least => Some((
                &options.retain,
                &self.accounts.retain,
                format!(
                    "it holds {} to train on, but --method {} predicts answers from at least {least}; give more, or take --method siss",
                    images(retain),
                    options.method,
                ),
            )),
            _ => None,
        };
        let Some((folder, account, text)) = problem else {
            return Ok(());
        };
        let lines = account.lines().join("; ");
        let why = if lines.is_empty() {
            lines
        } else {
            format!(" ({lines})")
        };
        Err(format!("{}: {text}{why}", path_text(folder)).into())
    }
}

/// Number of images that stand for all those of a stream.
fn sample_size(options: &Options, held: usize, copies: usize) -> usize {
    let kept_free = match options.streaming.search {
        true => MOST_NEAREST,
        false => 0,
    };
    let sample = (REFERENCES - kept_free).div_ceil(copies).min(held);
    sample.max(options.batch)
}

/// Refuses a stream whose control images were found past some that cannot be read, unless these are
/// to be passed over.
fn refuse_broken(options: &Options, account: &Account, found: &ImageFiles) -> Result<()> {
    let broken = &account.unread[found.unread.len()..];
    if broken.is_empty() || options.streaming.skip_broken {
        return Ok(());
    }
    Err(stream::with_remedy(siss::Error::UnreadFiles {
        path: found.root().into(),
        files: broken.to_vec(),
    }))
}

fn images(count: usize) -> String {
    crate::unlearn::resources::images(count)
}

/// The files to keep and those of `--control`, in a random order that is the same in every run, so
/// that runs can be compared.
///
/// The images to forget are removed from both, and those of `--control` from the files to keep.
fn others(options: &Options, to_forget: &ImageFiles) -> Result<(ImageFiles, Option<ImageFiles>)> {
    let mut retained = ImageFiles::find(&options.retain)?;
    let mut controls = options
        .control
        .as_deref()
        .map(ImageFiles::find)
        .transpose()?;
    for (option, files) in [
        ("retain", Some(&mut retained)),
        ("control", controls.as_mut()),
    ] {
        let Some(files) = files else { continue };
        files.check_folders()?;
        let found = files.pictures.len();
        files.take_out(to_forget);
        refuse_nothing(option, files, found, "--forget", to_forget.root())?;
        files
            .pictures
            .shuffle(&mut keyed_rng(EVALUATION_SEED, 0, 0, Stream::Pairs));
    }
    if let Some(controls) = &controls {
        let found = retained.pictures.len();
        retained.take_out(controls);
        refuse_nothing("retain", &retained, found, "--control", controls.root())?;
    }
    Ok((retained, controls))
}

/// Rejects a set without images, whether it was empty or all of its images were removed.
fn refuse_nothing(
    option: &str,
    files: &ImageFiles,
    found: usize,
    other: &str,
    of: &Path,
) -> Result<()> {
    let root = path_text(files.root());
    match (files.pictures.is_empty(), found) {
        (false, _) => Ok(()),
        (true, 0) => {
            let unread = files.unread.iter().take(MOST_NAMED);
            let unread: String = unread.map(|file| format!("\n  {file}")).collect();
            Err(format!(
                "--{option} {root}: there is no image in it (png, jpeg, bmp, webp, gif, tiff, ppm){unread}"
            )
            .into())
        }
        (true, _) => Err(format!(
            "--{option} {root}: {} once the images of {other} {} are removed; give further images",
            match found {
                1 => "nothing is left of its 1 image".into(),
                _ => format!("none of its {found} images is left"),
            },
            path_text(of)
        )
        .into()),
    }
}

/// Most files that an error names.
const MOST_NAMED: usize = 5;
