//! What a data set says of its pictures: captions and labels.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::ImageFiles;
use super::shards::Members;
use crate::error::{Error, Result};
use crate::files::{invalid, open, path_text, read_configuration};

/// The file that lists the pictures of its folder.
const LISTING: &str = "metadata.jsonl";
/// The key of a picture's path in a listing, relative to the listing.
const FILE: &str = "file_name";
const CAPTION: &str = "text";
const LABEL: &str = "label";
/// The keys of a caption in an object next to a picture; the second is that of img2dataset.
const CAPTIONS: [&str; 2] = [CAPTION, "caption"];
/// Longest listing that is read.
const LONGEST: u64 = 256 << 20;

/// The captions and labels of pictures, for models that are conditioned on them.
///
/// They are found where diffusers' training scripts and the library datasets (`imagefolder`) have
/// them:
///
/// | | in `metadata.jsonl` | otherwise |
/// |---|---|---|
/// | caption | `{"file_name": "a.png", "text": "a hat"}` | `a.txt` next to `a.png`, or `text` or `caption` of an object in `a.json` |
/// | label | `{"file_name": "a.png", "label": 7}` | `a.cls` next to `a.png`, a folder named `7` above it, or `label` of an object in `a.json` |
///
/// In a tar shard, these files next to a picture are members, as in WebDataset.
///
/// Names in a listing are relative to its own folder.
///
/// # Example
/// ```
/// use siss::images::{Annotations, ImageFiles};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path();
/// # std::fs::create_dir(folder.join("7")).unwrap();
/// std::fs::write(folder.join("7/a.png"), "").unwrap();
/// std::fs::write(folder.join("7/a.txt"), "a hat\n").unwrap();
/// let found = ImageFiles::find(folder)?;
/// let annotations = Annotations::of(&found)?;
/// assert_eq!(annotations.caption(&found.pictures[0])?, "a hat");
/// assert_eq!(annotations.label(&found.pictures[0])?, 7);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Annotations {
    root: PathBuf,
    listed: HashMap<PathBuf, Map<String, Value>>,
    members: Arc<Members>,
}

impl Annotations {
    /// Reads the listings in the folders of the pictures that were found.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] for a listing that is not in this format, with the
    /// line.
    pub fn of(found: &ImageFiles) -> Result<Self> {
        let root = found.root();
        let mut annotations = Self {
            root: root.into(),
            listed: HashMap::new(),
            members: Arc::clone(&found.members),
        };
        let is_listing = |path: &&PathBuf| path.file_name().is_some_and(|name| name == LISTING);
        let mut listings: Vec<PathBuf> = found
            .companions
            .iter()
            .filter(is_listing)
            .cloned()
            .collect();
        // A single picture is listed in its folder.
        let beside = root.with_file_name(LISTING);
        if root.is_file() && beside.is_file() {
            listings.push(beside);
        }
        for listing in listings {
            annotations.add(&listing)?;
        }
        Ok(annotations)
    }

    /// Adds a listing with any name, whose entries replace earlier ones.
    ///
    /// # Errors
    /// Those of [`of`](Self::of).
    pub fn add(&mut self, listing: &Path) -> Result<()> {
        let (file, bytes) = open(listing)?;
        if bytes > LONGEST {
            return Err(invalid(
                listing,
                "it is longer than 256 MiB; split it into several folders",
            ));
        }
        let folder = listing.parent().unwrap_or(Path::new(""));
        for (index, line) in BufReader::new(file.take(LONGEST)).lines().enumerate() {
            let line = line.map_err(Error::io("reading", listing))?;
            if line.trim().is_empty() {
                continue;
            }
            let (name, entry) = entry(&line).map_err(|reason| {
                let number = index + 1;
                invalid(
                    listing,
                    format!("line {number} {reason}; write lines such as {{\"{FILE}\": \"a.png\", \"{CAPTION}\": \"a hat\"}}"),
                )
            })?;
            self.listed
                .entry(folder.join(name))
                .or_default()
                .extend(entry);
        }
        Ok(())
    }

    /// The caption of a picture, which may be empty.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] with the picture if it has none, or one that is not a text;
    /// [`Error::Io`].
    pub fn caption(&self, picture: &Path) -> Result<String> {
        if let Some(caption) = self.value(picture, CAPTION) {
            return text(picture, caption);
        }
        let beside = picture.with_extension("txt");
        if let Some(caption) = self.beside(&beside)? {
            return Ok(caption);
        }
        if let Some(caption) = self.in_object(picture, &CAPTIONS)? {
            return text(picture, &caption);
        }
        let message = format!(
            "it has no caption; write one into {}, or as `{CAPTION}` into a {LISTING} of its folder",
            path_text(&beside)
        );
        Err(invalid(picture, message))
    }

    /// The label of a picture: the number of its class.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] with the picture if it has none, or one that is not a whole number
    /// from 0 on.
    pub fn label(&self, picture: &Path) -> Result<usize> {
        if let Some(label) = self.value(picture, LABEL) {
            return number(picture, label);
        }
        let beside = picture.with_extension("cls");
        if let Some(label) = self.beside(&beside)? {
            let message = || {
                invalid(
                    &beside,
                    format!("the class is `{label}`; give its number, from 0 on"),
                )
            };
            return label.parse().map_err(|_| message());
        }
        if let Some(label) = self.folder_label(picture) {
            return Ok(label);
        }
        if let Some(label) = self.in_object(picture, &[LABEL])? {
            return number(picture, &label);
        }
        let message = format!(
            "it has no label; put it into a folder named by the number of its class, or write the number as `{LABEL}` into a {LISTING} of its folder"
        );
        Err(invalid(picture, message))
    }

    /// The text of a file beside a picture, without white space around it, if there is one.
    fn beside(&self, path: &Path) -> Result<Option<String>> {
        let text = match self.members.contains(path) {
            true => self.members.text(path)?,
            false if path.is_file() => read_configuration(path)?,
            false => return Ok(None),
        };
        Ok(Some(text.trim().into()))
    }

    /// The name of the innermost folder above a picture that is a number, down from the root.
    fn folder_label(&self, picture: &Path) -> Option<usize> {
        let outermost = match self.root.is_file() {
            true => self.root.parent()?,
            false => &self.root,
        };
        let mut folders = picture.ancestors().skip(1);
        let mut folders = folders
            .by_ref()
            .take_while(|folder| folder.starts_with(outermost));
        folders.find_map(|folder| folder.file_name()?.to_str()?.parse().ok())
    }

    /// What a listing says of a picture.
    fn value(&self, picture: &Path, key: &str) -> Option<&Value> {
        let value = self.listed.get(picture)?.get(key)?;
        (!value.is_null()).then_some(value)
    }

    /// What the object in a file beside a picture has under the first of the keys that it has.
    fn in_object(&self, picture: &Path, keys: &[&str]) -> Result<Option<Value>> {
        let path = picture.with_extension("json");
        let Some(object) = self.beside(&path)? else {
            return Ok(None);
        };
        let mut object: Map<String, Value> = serde_json::from_str(&object)
            .map_err(|error| invalid(&path, format!("it is not a JSON object ({error})")))?;
        let mut values = keys.iter().filter_map(|&key| object.remove(key));
        Ok(values.find(|value| !value.is_null()))
    }
}

fn text(picture: &Path, caption: &Value) -> Result<String> {
    let message = || format!("its caption is {caption}, which is not a text");
    let text = caption.as_str().map(str::to_owned);
    text.ok_or_else(|| invalid(picture, message()))
}

fn number(picture: &Path, label: &Value) -> Result<usize> {
    let message = || format!("its label is {label}; give the number of the class, from 0 on");
    let number = label.as_u64().and_then(|label| usize::try_from(label).ok());
    number.ok_or_else(|| invalid(picture, message()))
}

/// The path and the other values of a line.
fn entry(line: &str) -> std::result::Result<(String, Map<String, Value>), String> {
    let mut entry: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("is not a JSON object ({error})"))?;
    match entry.remove(FILE) {
        Some(Value::String(name)) => Ok((name, entry)),
        Some(other) => Err(format!("has the `{FILE}` {other}, which is not a text")),
        None => Err(format!("has no `{FILE}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    fn place(files: &[(&str, &str)]) -> TempDir {
        let place = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        place
    }

    fn of(path: &Path) -> Result<Annotations> {
        Annotations::of(&ImageFiles::find(path).unwrap())
    }

    #[test]
    fn captions_come_from_the_nearest_listing_and_then_from_a_text_beside() {
        let place = place(&[
            ("a.png", ""),
            ("more/b.png", ""),
            ("more/c.png", ""),
            ("more/d.png", ""),
            (
                "metadata.jsonl",
                "{\"file_name\": \"a.png\", \"text\": \"a hat\"}\n\n{\"file_name\": \"more/b.png\", \"text\": \"\"}",
            ),
            (
                "more/metadata.jsonl",
                "{\"file_name\": \"./c.png\", \"text\": \"a dog\", \"label\": 3}",
            ),
            ("more/c.txt", "not this one"),
            ("more/d.txt", " a cat \n"),
        ]);
        let at = |name: &str| place.path().join(name);
        let annotations = of(place.path()).unwrap();
        for (name, caption) in [
            ("a.png", "a hat"),
            ("more/b.png", ""),
            ("more/c.png", "a dog"),
            ("more/d.png", "a cat"),
        ] {
            assert_eq!(annotations.caption(&at(name)).unwrap(), caption, "{name}");
        }
        // A single picture has the listing and the texts of its folder.
        assert_eq!(
            of(&at("a.png")).unwrap().caption(&at("a.png")).unwrap(),
            "a hat"
        );
        assert_eq!(
            of(&at("more/d.png"))
                .unwrap()
                .caption(&at("more/d.png"))
                .unwrap(),
            "a cat"
        );
        // A further listing goes before.
        let mut annotations = annotations;
        fs::write(
            at("prompts.jsonl"),
            "{\"file_name\": \"more/d.png\", \"text\": \"a bird\"}",
        )
        .unwrap();
        annotations.add(&at("prompts.jsonl")).unwrap();
        assert_eq!(annotations.caption(&at("more/d.png")).unwrap(), "a bird");
    }

    #[test]
    fn labels_come_from_a_listing_or_from_the_name_of_a_folder() {
        let place = place(&[
            ("7/a.png", ""),
            ("7/more/b.png", ""),
            ("c.png", ""),
            ("metadata.jsonl", "{\"file_name\": \"c.png\", \"label\": 2}"),
            ("x/d.png", ""),
        ]);
        let at = |name: &str| place.path().join(name);
        let annotations = of(place.path()).unwrap();
        for (name, label) in [("7/a.png", 7), ("7/more/b.png", 7), ("c.png", 2)] {
            assert_eq!(annotations.label(&at(name)).unwrap(), label, "{name}");
        }
        for root in ["7", "7/a.png"] {
            assert_eq!(
                of(&at(root)).unwrap().label(&at("7/a.png")).unwrap(),
                7,
                "{root}"
            );
        }
        let error = annotations.label(&at("x/d.png")).unwrap_err().to_string();
        assert!(
            error.contains("x/d.png") && error.contains("no label"),
            "{error}"
        );
    }

    #[test]
    fn an_object_beside_a_picture_says_what_nothing_else_does() {
        let place = place(&[
            ("3/a.png", ""),
            (
                "3/a.json",
                r#"{"caption": "a hat", "label": 5, "url": "x"}"#,
            ),
            ("b.png", ""),
            ("b.json", r#"{"text": null, "caption": "a dog"}"#),
            ("b.txt", "a cat"),
            ("b.cls", "1"),
            ("f.png", ""),
            ("f.json", r#"{"caption": "a fish", "label": 6}"#),
            ("4/c.png", ""),
            ("4/c.json", r#"{"text": "a bird", "label": null}"#),
            ("d.png", ""),
            ("d.json", "[1]"),
            ("e.png", ""),
            ("e.json", r#"{"text": 5, "label": "two"}"#),
        ]);
        let at = |name: &str| place.path().join(name);
        let annotations = of(place.path()).unwrap();
        for (name, caption, label) in [
            ("3/a.png", "a hat", 3),
            ("f.png", "a fish", 6),
            ("b.png", "a cat", 1),
            ("4/c.png", "a bird", 4),
        ] {
            assert_eq!(annotations.caption(&at(name)).unwrap(), caption, "{name}");
            assert_eq!(annotations.label(&at(name)).unwrap(), label, "{name}");
        }
        let refusals = [
            (annotations.caption(&at("d.png")).unwrap_err(), "d.json"),
            (annotations.label(&at("d.png")).unwrap_err(), "JSON object"),
            (annotations.caption(&at("e.png")).unwrap_err(), "is 5"),
            (annotations.label(&at("e.png")).unwrap_err(), "is \"two\""),
        ];
        for (error, part) in refusals {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_missing_or_malformed_is_named_with_its_place() {
        for (line, parts) in [
            ("[1]", ["metadata.jsonl", "line 2", "JSON object"]),
            (
                "{\"text\": \"x\"}",
                ["metadata.jsonl", "line 2", "no `file_name`"],
            ),
            (
                "{\"file_name\": 3}",
                ["metadata.jsonl", "line 2", "`file_name` 3"],
            ),
        ] {
            let place = place(&[("a.png", ""), ("metadata.jsonl", &format!("\n{line}"))]);
            let error = of(place.path()).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let place = place(&[
            ("a.png", ""),
            (
                "metadata.jsonl",
                "{\"file_name\": \"a.png\", \"text\": 5, \"label\": -1}",
            ),
            ("b.png", ""),
        ]);
        let at = |name: &str| place.path().join(name);
        let annotations = of(place.path()).unwrap();
        let refusals = [
            annotations.caption(&at("a.png")).unwrap_err(),
            annotations.label(&at("a.png")).unwrap_err(),
            annotations.caption(&at("b.png")).unwrap_err(),
        ];
        for (error, parts) in
            refusals
                .iter()
                .zip([["a.png", "is 5"], ["a.png", "is -1"], ["b.png", "b.txt"]])
        {
            let error = error.to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
