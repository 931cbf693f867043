//! The prompts that bring a memorised picture back: tested, taken, and written for `unlearn`.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use siss::burn::tensor::Tensor;
use siss::draws::{Stream, keyed_rng};
use siss::evaluate::{DenoisingLoss, Memory, Trigger, TriggerTest};
use siss::models::PromptVariation;
use siss::rand::RngExt;
use siss::report::ImageGrid;

use crate::files;
use crate::probe::EVALUATION_SEED;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Prompts of random words, with which others are compared: one of them in twenty is the best by
/// chance.
const CONTROLS: usize = 19;
const NOISES: usize = 8;
/// Prompts of each picture that are listed.
const LISTED: usize = 20;
const STREAM: Stream = Stream::Own("control prompts");

/// A line of `metadata.jsonl`.
#[derive(Serialize)]
pub struct Entry<'a> {
    pub file_name: String,
    pub text: &'a str,
}

/// A prompt that was tested for a picture.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// The number of the memorised picture.
    pub picture: usize,
    pub prompt: String,
    /// Whether it is a caption or was given, not made.
    pub is_given: bool,
    #[serde(flatten)]
    pub trigger: Trigger,
}

/// The test of a model with so many timesteps.
pub fn test(num_timesteps: usize) -> TriggerTest {
    let last = num_timesteps as f64;
    TriggerTest {
        loss: DenoisingLoss {
            noises: NOISES,
            seed: EVALUATION_SEED,
            ..DenoisingLoss::at([0.1, 0.25, 0.4, 0.6].map(|share: f64| (share * last).floor()))
        },
    }
}

/// Prompts of random words, as long as those that they are compared with.
pub fn controls(variation: &PromptVariation, asked: &[String]) -> Result<Vec<String>> {
    let words = &variation.words;
    if words.is_empty() {
        return Err("there are no words for control prompts: the tokenizer has none of two letters; give --words".into());
    }
    let control = |(number, like): (u64, &String)| {
        let mut rng = keyed_rng(variation.seed, 1, number, STREAM);
        let count = like.split_whitespace().count().max(1);
        let chosen = (0..count).map(|_| words[rng.random_range(0..words.len())].as_str());
        chosen.collect::<Vec<_>>().join(" ")
    };
    let asked = asked.iter().cycle().take(CONTROLS);
    Ok((0..).zip(asked).map(control).collect())
}

/// Those that stand for a picture: what was given, and the best of what is memorised in part.
fn of_picture(found: &[Found], picture: usize, keep: usize) -> Vec<&Found> {
    let own = found.iter().filter(move |it| it.picture == picture);
    let (given, made): (Vec<_>, Vec<_>) = own.partition(|it| it.is_given);
    let in_part = made
        .into_iter()
        .filter(|it| it.trigger.memory == Memory::Partly);
    given.into_iter().chain(in_part.take(keep)).collect()
}

fn pictures(found: &[Found]) -> usize {
    found.iter().map(|it| it.picture + 1).max().unwrap_or(0)
}

/// The prompts under which pictures are generated.
pub fn taken(found: &[Found], keep: usize) -> Vec<String> {
    let all = (0..pictures(found)).flat_map(|picture| of_picture(found, picture, keep));
    let mut prompts: Vec<String> = all.map(|it| it.prompt.clone()).collect();
    prompts.sort();
    prompts.dedup();
    prompts
}

/// Writes each memorised picture once for each of its triggers, with the prompt as its caption: a
/// folder for `unlearn --forget`.
pub fn write(folder: &Path, found: &[Found], memorised: &Tensor<4>, keep: usize) -> Result<()> {
    files::create_folder(folder)?;
    let (mut listing, mut number) = (String::new(), 0);
    for picture in 0..pictures(found) {
        let image = memorised.clone().narrow(0, picture, 1);
        for own in of_picture(found, picture, keep) {
            if own.trigger.memory == Memory::Not {
                continue;
            }
            let entry = Entry {
                file_name: format!("{number:03}.png"),
                text: &own.prompt,
            };
            let grid = ImageGrid::new(image.clone())?.gap(0);
            grid.save(folder.join(&entry.file_name))?;
            writeln!(listing, "{}", serde_json::to_string(&entry)?)?;
            number += 1;
        }
    }
    files::write(&folder.join("metadata.jsonl"), listing)?;
    Ok(())
}

/// The best prompts of each picture; nothing if none was tested.
pub fn table(found: &[Found]) -> String {
    let mut text = String::new();
    for picture in 0..pictures(found) {
        let own: Vec<_> = found.iter().filter(|it| it.picture == picture).collect();
        let count = |memory| own.iter().filter(|it| it.trigger.memory == memory).count();
        text += &format!(
            "picture {picture}: of {} prompts {} are memorised, {} in part, {} not\n",
            own.len(),
            count(Memory::Memorised),
            count(Memory::Partly),
            count(Memory::Not),
        );
        text += "score  memorised  prompt\n";
        for Found {
            prompt,
            is_given,
            trigger,
            ..
        } in own.into_iter().take(LISTED)
        {
            let memory = match trigger.memory {
                Memory::Memorised => "yes",
                Memory::Partly => "in part",
                Memory::Not => "no",
            };
            let given = if *is_given { " (given)" } else { "" };
            text += &format!("{:>5.2}  {memory:<9}  {prompt}{given}\n", trigger.score);
        }
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use siss::burn::tensor::Device;
    use siss::images::{Annotations, ImageFiles};

    use super::*;

    fn found(picture: usize, prompt: &str, is_given: bool, memory: &str) -> Found {
        let trigger = serde_json::json!({"losses": [0.5], "score": 1.0, "memory": memory});
        Found {
            picture,
            prompt: prompt.into(),
            is_given,
            trigger: serde_json::from_value(trigger).unwrap(),
        }
    }

    /// The best first, of two pictures.
    fn all() -> Vec<Found> {
        vec![
            found(0, "a hat", true, "memorised"),
            found(0, "a red hat", false, "memorised"),
            found(0, "hat", false, "partly"),
            found(0, "one hat", false, "partly"),
            found(0, "a cat", false, "not"),
            found(1, "a house", true, "not"),
            found(1, "house", false, "partly"),
            found(1, "hat", false, "partly"),
        ]
    }

    #[test]
    fn given_prompts_and_the_best_that_are_memorised_in_part_are_taken() {
        assert_eq!(taken(&all(), 1), ["a hat", "a house", "hat", "house"]);
        assert_eq!(taken(&all(), 0), ["a hat", "a house"]);
        let all_of_them = ["a hat", "a house", "hat", "house", "one hat"];
        assert_eq!(taken(&all(), 9), all_of_them);
    }

    /// A prompt that brings nothing back is no caption to forget a picture under.
    #[test]
    fn each_picture_is_written_for_each_of_its_triggers() {
        let place = tempfile::tempdir().unwrap();
        let memorised = Tensor::<4>::zeros([2, 3, 4, 4], &Device::flex());
        write(place.path(), &all(), &memorised, 2).unwrap();
        let files = ImageFiles::find(place.path()).unwrap();
        let annotations = Annotations::of(&files).unwrap();
        let captions = files.pictures.iter();
        let captions = captions.map(|file| annotations.caption(file).unwrap());
        let expected = ["a hat", "hat", "one hat", "house", "hat"];
        assert_eq!(captions.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_table_counts_each_kind() {
        let table = table(&all());
        for line in [
            "picture 0: of 5 prompts 2 are memorised, 2 in part, 1 not",
            "picture 1: of 3 prompts 0 are memorised, 2 in part, 1 not",
            " 1.00  yes        a hat (given)",
        ] {
            assert!(table.contains(line), "{table}");
        }
    }
}
