//! Variants of a prompt.

use std::collections::HashSet;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::draws::{Stream, keyed_rng};
use crate::error::{Error, Result, check_range};

const STREAM: Stream = Stream::Own("prompt variation");
/// Attempts per variant: two edits may undo each other, or lead to a variant that is known.
const ATTEMPTS: usize = 50;

/// Makes variants of a prompt by inserting, leaving out, replacing and swapping words.
///
/// A prompt that is memorised in part generates the memorised picture for some noises and other
/// pictures for the rest, which the paper needs of both sides; it found such prompts by hand. A
/// picture also has many triggers, and removing one leaves the others. This makes candidates;
/// [`TriggerTest`](crate::evaluate::TriggerTest) says which of them are memorised.
///
/// | field | [`new`](PromptVariation::new) | purpose | range |
/// |---|---|---|---|
/// | `words` | given | what is inserted, and what replaces a word; may be empty | |
/// | `count` | 32 | most variants | ≥ 1 |
/// | `most_edits` | 2 | a variant has 1 to so many edits | ≥ 1 |
/// | `seed` | 0 | key of the edits | |
///
/// # Example
/// ```
/// use siss::models::PromptVariation;
///
/// let words = ["red", "small", "dog"].map(String::from).to_vec();
/// let variation = PromptVariation { count: 4, ..PromptVariation::new(words) };
/// let variants = variation.variants("a face with a hat")?;
/// assert_eq!(variants.len(), 4);
/// assert!(!variants.contains(&"a face with a hat".to_string()));
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptVariation {
    /// What is inserted, and what replaces a word.
    pub words: Vec<String>,
    /// Most variants.
    pub count: usize,
    /// A variant has 1 to so many edits.
    pub most_edits: usize,
    /// Key of the edits.
    #[serde(default)]
    pub seed: u64,
}

#[derive(Debug, Clone, Copy)]
enum Edit {
    Insert,
    LeaveOut,
    Replace,
    Swap,
}

impl PromptVariation {
    /// At most 32 variants of one or two edits. The words can be those of the tokenizer, with the
    /// feature `text` (`ClipTokenizer::words`).
    pub fn new(words: Vec<String>) -> Self {
        Self {
            words,
            count: 32,
            most_edits: 2,
            seed: 0,
        }
    }

    /// Variants of a prompt, each different from it and from the others; upper and lower case and
    /// white space make no difference.
    ///
    /// The same settings give the same variants. There are fewer than `count` if the prompt and the
    /// words do not yield more.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a setting outside its range; [`Error::InvalidSetting`] if nothing
    /// can be changed: fewer than two words, and none to insert.
    pub fn variants(&self, prompt: &str) -> Result<Vec<String>> {
        let (count, edits) = (self.count, self.most_edits);
        check_range("count", count as f64, count >= 1, "at least 1")?;
        check_range("most_edits", edits as f64, edits >= 1, "at least 1")?;
        let original: Vec<&str> = prompt.split_whitespace().collect();
        if self.legal(original.len()).is_empty() {
            return Err(Error::InvalidSetting {
                what: format!(
                    "the prompt `{prompt}` has fewer than two words, and there are none to insert"
                ),
                remedy: "give words",
            });
        }
        let mut known = HashSet::from([original.join(" ").to_lowercase()]);
        let mut variants = Vec::new();
        for attempt in 0..count.saturating_mul(ATTEMPTS) as u64 {
            if variants.len() == count {
                break;
            }
            let mut rng = keyed_rng(self.seed, 0, attempt, STREAM);
            let variant = self.edited(original.clone(), &mut rng).join(" ");
            if known.insert(variant.to_lowercase()) {
                variants.push(variant);
            }
        }
        Ok(variants)
    }

    /// The edits that so many words allow.
    fn legal(&self, words: usize) -> Vec<Edit> {
        let mut legal = Vec::new();
        if words >= 2 {
            legal.extend([Edit::LeaveOut, Edit::Swap]);
        }
        if !self.words.is_empty() {
            legal.push(Edit::Insert);
            if words >= 1 {
                legal.push(Edit::Replace);
            }
        }
        legal
    }

    fn edited<'a>(&'a self, mut words: Vec<&'a str>, rng: &mut impl Rng) -> Vec<&'a str> {
        for _ in 0..rng.random_range(1..=self.most_edits) {
            let legal = self.legal(words.len());
            // One word and none to insert: an earlier edit left out the rest.
            if legal.is_empty() {
                break;
            }
            let place = |rng: &mut dyn Rng, places: usize| rng.random_range(0..places);
            match legal[place(rng, legal.len())] {
                Edit::Insert => {
                    let word = &self.words[place(rng, self.words.len())];
                    words.insert(place(rng, words.len() + 1), word);
                }
                Edit::Replace => {
                    let word = &self.words[place(rng, self.words.len())];
                    let place = place(rng, words.len());
                    words[place] = word;
                }
                Edit::LeaveOut => {
                    words.remove(place(rng, words.len()));
                }
                Edit::Swap => {
                    let first = place(rng, words.len());
                    let apart = 1 + place(rng, words.len() - 1);
                    let second = (first + apart) % words.len();
                    words.swap(first, second);
                }
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Vec<String> {
        ["red", "old", "tree"].map(String::from).to_vec()
    }

    #[test]
    fn variants_are_the_same_every_time_and_never_the_original_or_twice() {
        let prompt = "A  face with a Hat";
        let variation = PromptVariation {
            count: 200,
            most_edits: 3,
            ..PromptVariation::new(words())
        };
        let variants = variation.variants(prompt).unwrap();
        assert_eq!(variants.len(), 200);
        assert_eq!(variants, variation.variants(prompt).unwrap());
        let other = PromptVariation {
            seed: 1,
            ..variation.clone()
        };
        assert_ne!(variants, other.variants(prompt).unwrap());
        let lower: HashSet<String> = variants.iter().map(|it| it.to_lowercase()).collect();
        assert_eq!(lower.len(), 200);
        assert!(!lower.contains("a face with a hat"));

        let lengths: HashSet<usize> = variants.iter().map(|it| it.split(' ').count()).collect();
        assert!(
            lengths.contains(&4) && lengths.contains(&5) && lengths.contains(&6),
            "{lengths:?}"
        );
        let has = |word: &str| {
            variants
                .iter()
                .any(|it| it.split(' ').any(|own| own == word))
        };
        assert!(words().iter().all(|word| has(word)));
        // A swap alone has the words of the prompt in another order.
        let sorted = |text: &str| {
            let mut words: Vec<_> = text.split_whitespace().map(String::from).collect();
            words.sort();
            words
        };
        assert!(variants.iter().any(|it| sorted(it) == sorted(prompt)));
    }

    /// Of two words: either alone, and both in the other order.
    #[test]
    fn a_short_prompt_without_words_has_few_variants() {
        let variation = PromptVariation::new(Vec::new());
        let mut variants = variation.variants("a hat").unwrap();
        variants.sort();
        assert_eq!(variants, ["a", "hat", "hat a"]);
        let error = variation.variants("hat").unwrap_err().to_string();
        assert!(
            error.contains("`hat`") && error.contains("give words"),
            "{error}"
        );
        let empty = PromptVariation::new(words()).variants("").unwrap();
        assert!(!empty.is_empty() && empty.iter().all(|it| !it.is_empty()));
        for (count, most_edits) in [(0, 1), (1, 0)] {
            let wrong = PromptVariation {
                count,
                most_edits,
                ..PromptVariation::new(words())
            };
            assert!(matches!(
                wrong.variants("a hat"),
                Err(Error::OutOfRange { .. })
            ));
        }
    }
}
