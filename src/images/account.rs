//! The account of a folder: which files were read and how, and which were not.

use serde::{Serialize, Serializer};

use super::{Format, ImageFiles, Read, TakenOut, Transparency, UnreadFile};
use crate::files::path_text;

/// The account of a folder: how its files were read, and which were left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Account {
    /// Pictures that were read.
    pub read: usize,
    /// How many of these were cropped to their middle and resized.
    pub resized: usize,
    /// How many had transparent parts.
    pub transparent: usize,
    /// How many were the first of several in their file.
    pub first_of_several: usize,
    /// Files that were left out because they belong to another set.
    pub taken_out: Vec<TakenOut>,
    /// Files that were left out because their pixels equal those of an image of another set.
    pub copies_taken_out: usize,
    /// Files that were not read. In JSON, their number and the first few.
    #[serde(serialize_with = "first_few")]
    pub unread: Vec<UnreadFile>,
    /// Files that accompany pictures, such as captions. In JSON, their number and the first few.
    #[serde(serialize_with = "first_few_names")]
    pub companions: Vec<String>,
    /// Members of shards that accompany pictures.
    pub accompanying: usize,
    /// Files that programs leave in folders, and other hidden files that are not pictures.
    pub litter: usize,
    /// How transparent parts were treated.
    pub transparency: Transparency,
    size: [usize; 2],
}

/// Most files that are listed by name.
const NAMED: usize = 5;

#[derive(Serialize)]
struct Few<'a, T> {
    count: usize,
    first: &'a [T],
}

impl<'a, T> Few<'a, T> {
    fn of(all: &'a [T]) -> Self {
        Self {
            count: all.len(),
            first: &all[..all.len().min(NAMED)],
        }
    }
}

fn first_few<S: Serializer>(all: &[UnreadFile], serializer: S) -> Result<S::Ok, S::Error> {
    Few::of(all).serialize(serializer)
}

fn first_few_names<S: Serializer>(all: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    Few::of(all).serialize(serializer)
}

impl Account {
    pub(super) fn of(found: &ImageFiles, format: Format) -> Self {
        let name = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
        Self {
            read: 0,
            resized: 0,
            transparent: 0,
            first_of_several: 0,
            taken_out: found.taken_out.clone(),
            copies_taken_out: 0,
            unread: found.unread.clone(),
            companions: found.companions.iter().map(name).collect(),
            accompanying: found.accompanying,
            litter: found.litter,
            transparency: format.transparency,
            size: [format.height, format.width],
        }
    }

    /// Counts a picture that was read.
    pub(super) fn add(&mut self, read: &Read) {
        self.read += 1;
        self.resized += usize::from(read.is_resized);
        self.transparent += usize::from(read.is_transparent);
        self.first_of_several += usize::from(read.is_first_of_several);
    }

    /// What a user should know, one line per item; empty if every file was read unchanged.
    pub fn lines(&self) -> Vec<String> {
        let Self {
            read,
            resized,
            transparent,
            first_of_several,
            litter,
            accompanying,
            size: [height, width],
            ..
        } = *self;
        let of = |count: usize| format!("{count} of {}", counted(read, "image"));
        let mut lines = Vec::new();
        if resized > 0 {
            lines.push(format!(
                "{} cropped to the middle and resized to {height}x{width}",
                of(resized)
            ));
        }
        if transparent > 0 {
            let done = match self.transparency {
                Transparency::Drop => {
                    "dropped, so that hidden colours show, as diffusers' training scripts do"
                }
                Transparency::White => "laid over white",
                Transparency::Black => "laid over black",
            };
            lines.push(format!("{} with transparency: {done}", of(transparent)));
        }
        if first_of_several > 0 {
            lines.push(format!(
                "{} the first of several in the file (an animation, or pages); the others are not read",
                of(first_of_several)
            ));
        }
        for TakenOut { of, files } in &self.taken_out {
            lines.push(format!(
                "{} left out because {} also in {}",
                counted(*files, "file"),
                if *files == 1 { "it is" } else { "they are" },
                path_text(of)
            ));
        }
        if self.copies_taken_out > 0 {
            lines.push(format!(
                "{} left out because {} identical to an image of another side",
                counted(self.copies_taken_out, "file"),
                if self.copies_taken_out == 1 {
                    "it is"
                } else {
                    "they are"
                },
            ));
        }
        if !self.unread.is_empty() {
            let named = self.unread.iter().take(NAMED).map(ToString::to_string);
            lines.push(format!(
                "{} not read: {}",
                counted(self.unread.len(), "file"),
                few(named, self.unread.len())
            ));
        }
        if !self.companions.is_empty() {
            let named = self.companions.iter().take(NAMED).cloned();
            lines.push(format!(
                "{} skipped that {} pictures: {}",
                counted(self.companions.len(), "file"),
                if self.companions.len() == 1 {
                    "goes with"
                } else {
                    "go with"
                },
                few(named, self.companions.len())
            ));
        }
        if accompanying > 0 {
            lines.push(format!(
                "{} of shards that {} pictures",
                counted(accompanying, "member"),
                if accompanying == 1 {
                    "goes with"
                } else {
                    "go with"
                },
            ));
        }
        if litter > 0 {
            lines.push(format!(
                "{} skipped that {}, such as .DS_Store or Thumbs.db",
                counted(litter, "hidden file"),
                if litter == 1 {
                    "is not a picture"
                } else {
                    "are not pictures"
                }
            ));
        }
        lines
    }
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// The first few texts, joined, and how many more there are.
fn few(first: impl Iterator<Item = String>, count: usize) -> String {
    let mut text = first.collect::<Vec<_>>().join("; ");
    if count > NAMED {
        text += &format!("; and {} more", count - NAMED);
    }
    text
}
