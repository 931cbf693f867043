//! The names of factors in the spellings of kohya's scripts, and of peft and diffusers.

use std::fmt;

use super::Target;

/// The part of a pipeline that factors belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoraPart {
    /// The UNet.
    Unet,
    /// The transformer of a pipeline without UNet.
    Transformer,
    /// The first text encoder.
    TextEncoder,
    /// The second text encoder.
    TextEncoder2,
}

impl fmt::Display for LoraPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unet => "UNet",
            Self::Transformer => "transformer",
            Self::TextEncoder => "text encoder",
            Self::TextEncoder2 => "second text encoder",
        })
    }
}

/// How a file names its factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Spelling {
    /// `lora_unet_…_to_q.lora_down.weight`, with underscores for dots: the path of the layer in
    /// diffusers, or, as in most files for XL, in the first latent diffusion models.
    #[default]
    Kohya,
    /// `unet.….to_q.lora_A.weight`, of diffusers and peft.
    Diffusers,
    /// `unet.….to_q.lora.down.weight`, of diffusers before peft.
    DiffusersOld,
    /// `unet.….processor.to_q_lora.down.weight`, of the first versions of diffusers.
    Processor,
}

/// What peft puts before all names.
const PEFT: &str = "base_model.model.";
/// Tensors of other methods, which are not products of two factors.
const OTHER_METHODS: [(&str, &str); 7] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "a LoRA with a third factor"),
    ("diff_b", "differences of biases"),
    ("diff", "differences of weights"),
];

/// A key of a file, taken apart.
pub(super) struct Key {
    pub(super) stem: String,
    pub(super) spelling: Spelling,
    kind: Kind,
}

enum Kind {
    Down,
    Up,
    Alpha,
}

/// The keys of one layer.
#[derive(Default)]
pub(super) struct Factors {
    pub(super) spelling: Spelling,
    pub(super) down: Option<String>,
    pub(super) up: Option<String>,
    pub(super) alpha: Option<String>,
}

impl Factors {
    pub(super) fn add(&mut self, key: Key, name: &str) {
        let place = match key.kind {
            Kind::Down => &mut self.down,
            Kind::Up => &mut self.up,
            Kind::Alpha => &mut self.alpha,
        };
        *place = Some(name.into());
        // The name of `α` is the same in several spellings.
        if !matches!(key.kind, Kind::Alpha) {
            self.spelling = key.spelling;
        }
    }
}

/// Takes a key apart, or says why it is refused.
pub(super) fn key(name: &str) -> Result<Key, String> {
    let endings = [
        (".lora_down.weight", Spelling::Kohya, Kind::Down),
        (".lora_up.weight", Spelling::Kohya, Kind::Up),
        (".lora_A.weight", Spelling::Diffusers, Kind::Down),
        (".lora_B.weight", Spelling::Diffusers, Kind::Up),
        (".lora_A.default.weight", Spelling::Diffusers, Kind::Down),
        (".lora_B.default.weight", Spelling::Diffusers, Kind::Up),
        (".lora.down.weight", Spelling::DiffusersOld, Kind::Down),
        (".lora.up.weight", Spelling::DiffusersOld, Kind::Up),
        ("_lora.down.weight", Spelling::Processor, Kind::Down),
        ("_lora.up.weight", Spelling::Processor, Kind::Up),
        (".alpha", Spelling::Kohya, Kind::Alpha),
    ];
    for (ending, spelling, kind) in endings {
        if let Some(stem) = name.strip_suffix(ending) {
            return Ok(Key {
                stem: stem.into(),
                spelling,
                kind,
            });
        }
    }
    let last = name
        .rsplit('.')
        .find(|part| *part != "weight")
        .unwrap_or(name);
    let other = OTHER_METHODS
        .iter()
        .find(|(begin, _)| last.starts_with(begin));
    Err(match other {
        Some((_, method)) => format!(
            ": it is a tensor of {method}, which is not read; merge the file into the model in Python"
        ),
        None => ": it is not a factor of a LoRA".into(),
    })
}

impl Spelling {
    /// The keys of `A`, `B` and `α`.
    pub(super) fn keys(self, stem: &str) -> [String; 3] {
        let [down, up] = match self {
            Self::Kohya => [".lora_down.weight", ".lora_up.weight"],
            Self::Diffusers => [".lora_A.weight", ".lora_B.weight"],
            Self::DiffusersOld => [".lora.down.weight", ".lora.up.weight"],
            Self::Processor => ["_lora.down.weight", "_lora.up.weight"],
        };
        [down, up, ".alpha"].map(|ending| format!("{stem}{ending}"))
    }
}

impl LoraPart {
    /// What the names of a part begin with.
    pub(super) fn prefix(self, spelling: Spelling) -> &'static str {
        match (spelling, self) {
            (Spelling::Kohya, Self::Unet) => "lora_unet",
            (Spelling::Kohya, Self::Transformer) => "lora_transformer",
            (Spelling::Kohya, Self::TextEncoder) => "lora_te",
            (Spelling::Kohya, Self::TextEncoder2) => "lora_te2",
            (_, Self::Unet) => "unet",
            (_, Self::Transformer) => "transformer",
            (_, Self::TextEncoder) => "text_encoder",
            (_, Self::TextEncoder2) => "text_encoder_2",
        }
    }

    /// A layer's name after the prefix of this part; `None` for a layer of another part.
    fn inner(self, spelling: Spelling, stem: &str) -> Option<&str> {
        if spelling == Spelling::Kohya {
            let prefixes: &[&str] = match self {
                Self::TextEncoder => &["lora_te_", "lora_te1_"],
                Self::TextEncoder2 => &["lora_te2_"],
                Self::Unet => &["lora_unet_"],
                Self::Transformer => &["lora_transformer_", "lora_unet_"],
            };
            return prefixes.iter().find_map(|prefix| stem.strip_prefix(prefix));
        }
        let stem = stem.strip_prefix(PEFT).unwrap_or(stem);
        let of = |part: Self| stem.strip_prefix(part.prefix(spelling))?.strip_prefix('.');
        match of(self) {
            Some(inner) => Some(inner),
            // A folder of peft holds one network and does not name it.
            None if Self::ALL.into_iter().all(|part| of(part).is_none()) => Some(stem),
            None => None,
        }
    }

    /// All parts.
    pub(super) const ALL: [Self; 4] = [
        Self::Unet,
        Self::Transformer,
        Self::TextEncoder,
        Self::TextEncoder2,
    ];

    /// Whether a layer of the file belongs to this part.
    pub(super) fn has(self, spelling: Spelling, stem: &str) -> bool {
        self.inner(spelling, stem).is_some()
    }

    /// The weight that a layer of the file belongs to.
    ///
    /// kohya's underscores are ambiguous, so its names are compared with all those of the network.
    pub(super) fn target<'a>(
        self,
        targets: &'a [Target],
        spelling: Spelling,
        stem: &str,
    ) -> Option<&'a Target> {
        let inner = self.inner(spelling, stem)?;
        let is_same = |target: &Target| match spelling {
            Spelling::Kohya => target.underscored.iter().any(|name| name == inner),
            Spelling::Processor => {
                let (path, old) = (&target.path, inner.replace(".processor.", "."));
                *path == old || path.strip_suffix(".0") == Some(&old)
            }
            Spelling::Diffusers | Spelling::DiffusersOld => target.path == inner,
        };
        targets.iter().find(|target| is_same(target))
    }
}

/// Whether a path ends in these names.
pub(super) fn ends_in(path: &str, ending: &str) -> bool {
    let rest = path.strip_suffix(ending);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
