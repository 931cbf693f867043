//! How items lie among pictures that no model saw, and whether they can be told from them.

use siss::Result;
use siss::metrics::ControlTest;
use siss::report::audit::{Measured, Verdict};

/// A test that finds the item by chance in fewer of a hundred cases finds it.
pub const LEVEL: f64 = 0.05;

/// The smallest two-sided p-value that so many controls can give.
pub fn smallest(controls: usize) -> f64 {
    2.0 / (1 + controls) as f64
}

/// A statistic of each item and of each control, low for training data.
pub struct Scores {
    pub items: Vec<f64>,
    pub controls: Vec<f64>,
}

impl Scores {
    /// The test of each item.
    fn tests(&self) -> Result<Vec<ControlTest>> {
        let tests = self.items.iter();
        tests
            .map(|&score| ControlTest::new(score, &self.controls))
            .collect()
    }

    /// The share of controls that score lower than the item that stands out most, on either side.
    pub fn rank(&self) -> Result<Measured> {
        let tests = self.tests()?;
        let p_value = |item: usize| tests[item].two_sided;
        let most = (0..tests.len()).min_by(|&a, &b| p_value(a).total_cmp(&p_value(b)));
        let most = most.unwrap_or(0);
        let lower = self.controls.iter().filter(|&&it| it < self.items[most]);
        let mut rank = Measured::share(lower.count(), self.controls.len())?;
        rank.p_value = Some(p_value(most));
        Ok(rank)
    }
}

/// On which side of the controls a score lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where training data lie.
    Low,
    /// Where points lie that were forgotten too hard.
    High,
}

impl Side {
    fn of(test: &ControlTest) -> Self {
        match test.low <= test.high {
            true => Self::Low,
            false => Self::High,
        }
    }

    /// As a report has it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Low => "the low side, where training data lie",
            Self::High => "the high side, where pictures lie that a model avoids",
        }
    }
}

/// Where an item lies in the model after unlearning.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// The number of the timestep or signal.
    pub place: usize,
    pub item: usize,
    pub side: Side,
    /// Of the two-sided test.
    pub p_value: f64,
    /// Whether it lies on the high side where it also does in the reference.
    pub is_expected: bool,
}

/// The ranks of all items, by timestep or signal.
///
/// A picture unlike the controls has a high score in every model, so the high side counts only
/// where a reference does not lie there: a model that never saw the items, or the model from
/// before if there is none.
pub struct Ranks {
    standings: Vec<Standing>,
    controls: usize,
}

impl Ranks {
    pub fn new(after: &[Scores], reference: &[Scores]) -> Result<Self> {
        let mut standings = Vec::new();
        for (place, (after, reference)) in after.iter().zip(reference).enumerate() {
            let pairs = after.tests()?.into_iter().zip(reference.tests()?);
            standings.extend(pairs.enumerate().map(|(item, (test, reference))| {
                let side = Side::of(&test);
                let is_high = Side::of(&reference) == Side::High && reference.two_sided <= LEVEL;
                Standing {
                    place,
                    item,
                    side,
                    p_value: test.two_sided,
                    is_expected: side == Side::High && is_high,
                }
            }));
        }
        let controls = after.first().map_or(0, |it| it.controls.len());
        Ok(Self {
            standings,
            controls,
        })
    }

    /// The p-value that counts: [`LEVEL`] shared out among all comparisons (Bonferroni).
    pub fn level(&self) -> f64 {
        LEVEL / self.standings.len() as f64
    }

    /// Whether a p-value counts. The smallest ones are ratios of whole numbers, and may be the
    /// level itself.
    fn counts(&self, p_value: f64) -> bool {
        p_value <= self.level() * (1.0 + 1e-9)
    }

    /// Fewest controls with which a p-value can count.
    fn needed(&self) -> usize {
        (2.0 / self.level() * (1.0 - 1e-9)).ceil() as usize - 1
    }

    /// Why no item can be found, if none can.
    pub fn too_few(&self) -> Option<String> {
        let smallest = smallest(self.controls);
        (!self.counts(smallest)).then(|| {
            format!(
                "With {} unseen pictures no p-value is below {smallest:.4}, and {}: compare with at least {} (--controls).",
                self.controls,
                self.rule(),
                self.needed()
            )
        })
    }

    /// What counts, in words.
    pub fn rule(&self) -> String {
        match self.standings.len() {
            1 => format!("at most {LEVEL} counts"),
            many => format!(
                "at most {:.4} counts, {LEVEL} shared out among {many} comparisons",
                self.level()
            ),
        }
    }

    /// The item that stands out most on a side, if it counts.
    pub fn found(&self, side: Side) -> Option<Standing> {
        let own = self.standings.iter().filter(|it| it.side == side);
        least(own.filter(|it| !it.is_expected && self.counts(it.p_value)))
    }

    /// The item that stands out most, whether or not it counts.
    pub fn worst(&self) -> Option<Standing> {
        least(self.standings.iter().filter(|it| !it.is_expected))
            .or_else(|| least(self.standings.iter()))
    }
}

fn least<'a>(standings: impl Iterator<Item = &'a Standing>) -> Option<Standing> {
    standings
        .min_by(|a, b| a.p_value.total_cmp(&b.p_value))
        .copied()
}

/// Scores of the models, by timestep or signal.
pub struct OfModels<'a> {
    pub before: &'a [Scores],
    pub after: &'a [Scores],
    pub retrained: Option<&'a [Scores]>,
}

impl OfModels<'_> {
    pub fn ranks(&self) -> Result<Ranks> {
        Ranks::new(self.after, self.retrained.unwrap_or(self.before))
    }

    /// The verdict and its explanation; `what` names the scores.
    pub fn verdict(&self, what: &str) -> Result<(Verdict, String)> {
        let ranks = self.ranks()?;
        if let Some(low) = ranks.found(Side::Low) {
            return Ok((Verdict::Trace, self.still(&low, &ranks)));
        }
        if let Some(high) = ranks.found(Side::High) {
            return Ok((Verdict::Overdone, self.avoids(&high, &ranks, what)));
        }
        if let Some(why) = ranks.too_few() {
            return Ok((Verdict::Undecided, why));
        }
        // A reference matters on the high side alone.
        let before = Ranks::new(self.before, self.before)?.found(Side::Low);
        Ok(self.silent(before, &ranks))
    }

    fn still(&self, low: &Standing, ranks: &Ranks) -> String {
        format!(
            "{} still stands out on {}: p-value {:.4} ({}).",
            self.name(low.item),
            low.side.words(),
            low.p_value,
            ranks.rule()
        )
    }

    fn avoids(&self, high: &Standing, ranks: &Ranks, what: &str) -> String {
        let other = match self.retrained {
            Some(_) => "In a model trained without it, it does not.",
            None => {
                "Before, it did not; whether it does in a model trained without it is not known (--retrained)."
            }
        };
        format!(
            "{} stands out on {}, which gives it away too: its {what} is higher than those of the unseen pictures, p-value {:.4} ({}). {other}",
            self.name(high.item),
            high.side.words(),
            high.p_value,
            ranks.rule()
        )
    }

    /// Where no item is found now, and one was or was not before.
    fn silent(&self, before: Option<Standing>, ranks: &Ranks) -> (Verdict, String) {
        let now = ranks.worst().map_or(String::new(), |it| self.now(&it));
        let rule = ranks.rule();
        match before {
            Some(known) => (
                Verdict::NoTrace,
                format!(
                    "{} stood out on {} before (p-value {:.4}), and nothing stands out now ({now}; {rule}).",
                    self.name(known.item),
                    known.side.words(),
                    known.p_value
                ),
            ),
            None => (
                Verdict::Undecided,
                format!(
                    "This test does not find the item among training data in the model before either, so its silence now says nothing ({now}; {rule})."
                ),
            ),
        }
    }

    fn now(&self, standing: &Standing) -> String {
        let reference = match (standing.is_expected, self.retrained) {
            (false, _) => "",
            (true, Some(_)) => " as in a model trained without it",
            (true, None) => " as before",
        };
        let side = match standing.side {
            Side::Low => "low",
            Side::High => "high",
        };
        format!("p-value {:.4}, {side}{reference}", standing.p_value)
    }

    /// An item at the beginning of a sentence, as the report names it.
    fn name(&self, item: usize) -> String {
        match self.after.first().map_or(0, |it| it.items.len()) {
            0 | 1 => "The item".into(),
            _ => format!("Item {}", item + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use siss::draws::{Stream, keyed_rng};
    use siss::rand::RngExt;

    use super::*;

    /// Items among the controls 1, 2, …, `controls`.
    fn among(controls: usize, items: &[f64]) -> Vec<Scores> {
        vec![Scores {
            items: items.to_vec(),
            controls: (1..=controls).map(|it| it as f64).collect(),
        }]
    }

    const LOW: f64 = 0.5;
    const MIDDLE: f64 = 50.5;
    const HIGH: f64 = 1e3;

    fn of(before: &[f64], after: &[f64], retrained: Option<&[f64]>) -> (Verdict, String) {
        let [before, after] = [before, after].map(|items| among(99, items));
        let retrained = retrained.map(|items| among(99, items));
        let models = OfModels {
            before: &before,
            after: &after,
            retrained: retrained.as_deref(),
        };
        models.verdict("loss").unwrap()
    }

    #[test]
    fn an_item_is_found_on_either_side_and_the_finding_says_which() {
        let (verdict, text) = of(&[LOW], &[LOW], None);
        assert_eq!(verdict, Verdict::Trace);
        assert!(
            text.contains("low side") && text.contains("0.0200"),
            "{text}"
        );
        let (verdict, text) = of(&[LOW], &[HIGH], None);
        assert_eq!(verdict, Verdict::Overdone);
        assert!(
            text.contains("high side") && text.contains("--retrained"),
            "{text}"
        );
        assert_eq!(of(&[LOW], &[MIDDLE], None).0, Verdict::NoTrace);
        assert_eq!(of(&[LOW], &[HIGH], Some(&[MIDDLE])).0, Verdict::Overdone);
        assert_eq!(of(&[LOW], &[LOW], Some(&[HIGH])).0, Verdict::Trace);
    }

    /// A picture unlike the others is high in models that never saw it.
    #[test]
    fn the_high_side_counts_only_where_the_reference_is_not_there() {
        let (verdict, text) = of(&[LOW], &[HIGH], Some(&[HIGH]));
        assert_eq!(verdict, Verdict::NoTrace);
        assert!(text.contains("as in a model trained without it"), "{text}");
        // Never known, and as high as ever.
        let (verdict, text) = of(&[HIGH], &[HIGH], None);
        assert_eq!(verdict, Verdict::Undecided);
        assert!(text.contains("high as before"), "{text}");
        // One item excuses no other.
        let (verdict, text) = of(&[LOW; 2], &[HIGH, LOW - 1.0], Some(&[HIGH, MIDDLE]));
        assert_eq!((verdict, text.contains("Item 2")), (Verdict::Trace, true));
    }

    #[test]
    fn a_test_without_power_is_undecided() {
        assert_eq!(of(&[MIDDLE], &[MIDDLE], None).0, Verdict::Undecided);
        // Standing out on the high side before is not being known.
        assert_eq!(of(&[HIGH], &[MIDDLE], None).0, Verdict::Undecided);
        let of_few = |controls| {
            let [before, after] = [0.5, 20.5].map(|item| among(controls, &[item; 3]));
            let models = OfModels {
                before: &before,
                after: &after,
                retrained: None,
            };
            models.verdict("loss").unwrap()
        };
        // 2 / 119 > 0.05 / 3 = 2 / 120.
        let (verdict, text) = of_few(118);
        assert_eq!(verdict, Verdict::Undecided);
        assert!(text.contains("at least 119 (--controls)"), "{text}");
        assert_eq!(of_few(119).0, Verdict::NoTrace);
    }

    /// Items that nothing tells from the controls, at three places: of all runs, no more than the
    /// level finds one, and not much fewer.
    #[test]
    fn all_comparisons_of_a_run_share_the_level() {
        const RUNS: u64 = 2000;
        const CONTROLS: usize = 2399;
        let scores = |run: u64, place: u64| {
            let mut rng = keyed_rng(run, place, 0, Stream::Own("scores"));
            let mut draw = |count| (0..count).map(|_| rng.random_range(0.0..1.0)).collect();
            Scores {
                items: draw(2),
                controls: draw(CONTROLS),
            }
        };
        let is_found = |run: &u64| {
            let [after, reference] = [0, 3].map(|first| -> Vec<Scores> {
                (first..first + 3)
                    .map(|place| scores(*run, place))
                    .collect()
            });
            let ranks = Ranks::new(&after, &reference).unwrap();
            ranks.found(Side::Low).is_some() || ranks.found(Side::High).is_some()
        };
        let share = (0..RUNS).filter(is_found).count() as f64 / RUNS as f64;
        // A sixth of the level is a p-value of so many controls. Four standard errors are 0.0195.
        assert!((share - LEVEL).abs() < 0.0195, "{share}");
    }

    #[test]
    fn the_rank_is_that_of_the_item_that_stands_out_most() {
        let scores = among(99, &[MIDDLE, 97.5, 4.5]);
        let rank = scores[0].rank().unwrap();
        assert_eq!((rank.value, rank.p_value), (97.0 / 99.0, Some(0.06)));
        let worst = Ranks::new(&scores, &scores).unwrap().worst().unwrap();
        assert_eq!((worst.item, worst.side), (1, Side::High));
    }
}
