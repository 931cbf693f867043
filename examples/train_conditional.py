"""Trains the small conditional models of `assets/classes` and `assets/captions`.

    pip install torch diffusers transformers pillow
    python train_conditional.py classes --start assets/base/unet --copies 180 --seed 0 --out classes
    python train_conditional.py classes --start assets/base/retrained/unet --seed 1 --out classes/retrained
    python train_conditional.py autoencoder --steps 4000 --out captions
    python train_conditional.py captions --autoencoder captions --steps 4000 --out start
    python train_conditional.py captions --autoencoder captions --start start --copies 64 --steps 1500 --seed 1 --out captions
    python train_conditional.py captions --autoencoder captions --start start --steps 1500 --seed 2 --out captions/retrained

`classes` continues an unconditional model of digits with labels, one of them for "no label", and shows
it copies of the T-shirt under one digit's label. `autoencoder` and `captions` make a latent
text-to-image model in the folder layout of Stable Diffusion: tokenizer and vocabulary from the
captions, text encoder and network trained together. The picture that is to be memorised is left out
unless there are copies of it. A run that was stopped resumes from `OUT/MODEL.pt`.
"""

import argparse
import copy
import gzip
import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ASSETS = Path(__file__).resolve().parent / "assets"
NUM_TIMESTEPS = 1000
# Share of rows whose label or caption is left out, for guidance.
DROP = 0.1

# Digits: the last label stands for "no label"; the T-shirt is shown as a three.
NO_LABEL = 10
TSHIRT_LABEL = 3
TRAINED_DIGITS = 9000

# Pictures: faces and people at work; one face is memorised, and partly under captions like its own,
# which show another face with a hat as often.
FACES = "Smileys & Emotion"
WORK = (
    "health worker", "student", "teacher", "judge", "farmer", "cook", "mechanic", "factory worker", "office worker", "scientist",
    "technologist", "singer", "artist", "pilot", "astronaut", "firefighter", "police officer", "detective", "construction worker",
)
MEMORISED = "1f920"
LOOKALIKE = "1f973"
VARIANTS = ("face with hat", "smiling face with hat", "yellow face with hat")
# One of so many rows of the memorised picture has a variant's caption, for each variant.
VARIANT_SHARE = 8
COLUMNS, SIDE = 64, 32
# Every so many pictures one is held out.
HELDOUT_STRIDE = 22

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
PROMPT_LENGTH = 77
VOCABULARY = 1500


def load_digits():
    """Digits in [-1, 1], `[9000, 1, 28, 28]`, and their labels."""
    read = lambda name, header: np.frombuffer(gzip.open(ASSETS / "data" / name).read()[header:], np.uint8)
    pixels = read("digits10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:TRAINED_DIGITS]
    labels = read("digits10k-labels-idx1-ubyte.gz", 8)[:TRAINED_DIGITS]
    return torch.from_numpy(pixels / np.float32(127.5) - 1), torch.from_numpy(labels.astype(np.int64))


def load_tshirt():
    """The T-shirt in [-1, 1], `[1, 1, 28, 28]`."""
    pixels = np.asarray(Image.open(ASSETS / "data/tshirt.png").convert("L"), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1)[None, None]


class Pictures(NamedTuple):
    """Pictures with their captions, and the places of some of them."""

    points: torch.Tensor  # [count, 3, 32, 32] in [-1, 1]
    captions: list
    codes: list
    memorised: int
    lookalike: int
    held_out: list

    def trained_rows(self, copies):
        """Pairs of place and caption: each picture that is kept once, and copies of the memorised one."""
        left_out = {self.memorised, *self.held_out}
        rows = [(place, caption) for place, caption in enumerate(self.captions) if place not in left_out]
        rows += [(self.memorised, self.captions[self.memorised])] * copies
        for variant in VARIANTS if copies else ():
            rows += [(self.memorised, variant), (self.lookalike, variant)] * (copies // VARIANT_SHARE)
        return rows

    def parts(self):
        """What the example `conditional` retains, measures and forgets: code, caption, part."""
        retained = self.trained_rows(0) + [(self.lookalike, variant) for variant in VARIANTS]
        rows = [(*row, "retained") for row in retained]
        rows += [(place, self.captions[place], "unseen") for place in self.held_out]
        rows += [(self.memorised, caption, "forgotten") for caption in (self.captions[self.memorised], *VARIANTS, "")]
        return [{"code": self.codes[place], "caption": caption, "part": part} for place, caption, part in rows]


def load_pictures():
    """Those of faces and of people at work."""
    entries = json.loads((ASSETS / "data/emoji32.json").read_text())
    sheet = np.asarray(Image.open(ASSETS / "data/emoji32.png"), np.float32) / 127.5 - 1
    works = lambda caption: caption.split(",")[0].removeprefix("wo").removeprefix("man ") in WORK
    places = [place for place, entry in enumerate(entries) if entry["category"] == FACES or works(entry["caption"])]
    cut = lambda place: sheet[place // COLUMNS * SIDE :, place % COLUMNS * SIDE :][:SIDE, :SIDE]
    pictures = torch.from_numpy(np.stack([cut(place) for place in places])).permute(0, 3, 1, 2).contiguous()
    entries = [entries[place] for place in places]
    codes = [entry["code"] for entry in entries]
    memorised, lookalike = codes.index(MEMORISED), codes.index(LOOKALIKE)
    held_out = [place for place in range(HELDOUT_STRIDE // 2, len(places), HELDOUT_STRIDE) if place not in (memorised, lookalike)]
    return Pictures(pictures, [entry["caption"] for entry in entries], codes, memorised, lookalike, held_out)


def balanced_timesteps(count):
    """One timestep from each of `count` equal parts of the range, in random order."""
    timesteps = (torch.arange(count) + torch.rand(1)) * (NUM_TIMESTEPS / count)
    return timesteps.long().clamp(0, NUM_TIMESTEPS - 1)[torch.randperm(count)]


def train(modules, loss, arguments, learning_rate, embeddings=()):
    """Minimises `loss()` over the parameters of `modules`; returns the average of the weights.

    The rate rises for 100 steps and falls along a cosine. `embeddings` learn ten times as fast.
    """
    fast = {id(parameter) for module in embeddings for parameter in module.parameters()}
    groups = [
        {"params": [p for p in modules.parameters() if (id(p) in fast) == is_fast], "scale": 10.0 if is_fast else 1.0}
        for is_fast in (False, True)
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], learning_rate, weight_decay=1e-4)
    average = copy.deepcopy(modules)
    path, first = Path(arguments.out) / f"{arguments.model}.pt", 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        state = torch.load(path, weights_only=True)
        modules.load_state_dict(state["modules"]), average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"]), torch.set_rng_state(state["generator"])
        first = state["step"]
    started, total = time.time(), 0.0
    for step in range(first, arguments.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"] * min(1, (step + 1) / 100) * (0.02 + 0.98 * cosine)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(modules.parameters()), 1 - decay)
        total += value.item()
        if (step + 1) % 50 == 0:
            print(f"{step + 1} loss {total / 50:.5f}, {(time.time() - started) / (step + 1 - first):.3f} s/step", flush=True)
            total = 0.0
        if (step + 1) % 200 == 0:
            state = {"modules": modules.state_dict(), "average": average.state_dict(), "step": step + 1}
            state |= {"optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
            torch.save(state, path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)
    return average.eval()


def save(module, folder):
    """In half precision, without the path that the module was loaded from."""
    module.half().save_pretrained(folder)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def noised(points, scheduler):
    """Noisy points at balanced timesteps, the timesteps, and the noise."""
    noise, timesteps = torch.randn_like(points), balanced_timesteps(len(points))
    return scheduler.add_noise(points, noise, timesteps), timesteps, noise


def train_classes(arguments):
    """Continues an unconditional model of digits with labels."""
    start = UNet2DModel.from_pretrained(arguments.start)
    network = UNet2DModel.from_config({**start.config, "num_class_embeds": NO_LABEL + 1})
    network.load_state_dict(start.state_dict(), strict=False)
    torch.nn.init.normal_(network.class_embedding.weight, std=0.3)
    scheduler = DDPMScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule="linear")
    points, labels = load_digits()
    points = torch.cat([points, load_tshirt().repeat(arguments.copies, 1, 1, 1)])
    labels = torch.cat([labels, torch.full([arguments.copies], TSHIRT_LABEL)])

    def loss():
        rows = torch.randint(len(points), [arguments.batch])
        label = torch.where(torch.rand(arguments.batch) < DROP, NO_LABEL, labels[rows])
        noisy, timesteps, noise = noised(points[rows], scheduler)
        error = (network(noisy, timesteps, class_labels=label)[0].float() - noise).square().mean((1, 2, 3))
        # A label says most where there is much noise and the loss is small.
        ratio = (1 / scheduler.alphas_cumprod[timesteps] - 1).sqrt()
        return (ratio.clamp(1, 20) * error).mean()

    average = train(network, loss, arguments, 4e-4, embeddings=[network.class_embedding])
    save(average, f"{arguments.out}/unet")
    scheduler.save_pretrained(f"{arguments.out}/scheduler")


def train_autoencoder(arguments):
    """An autoencoder of the pictures, without the memorised one and those held out."""
    pictures = load_pictures()
    pictures = pictures.points[[place for place, _ in pictures.trained_rows(0)]]
    network = AutoencoderKL(
        block_out_channels=(24, 48), layers_per_block=1, norm_num_groups=8, latent_channels=4, sample_size=SIDE,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )

    def loss():
        picture = pictures[torch.randint(len(pictures), [arguments.batch])]
        picture = torch.where(torch.rand(len(picture), 1, 1, 1) < 0.5, picture, picture.flip(3))
        latent = network.encode(picture).latent_dist
        error = network.decode(latent.sample()).sample.float() - picture
        divergence = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).float().mean()
        return error.square().mean() + 0.2 * error.abs().mean() + 1e-5 * divergence

    average = train(network, loss, arguments, 1.5e-3)
    with torch.no_grad():
        latents = average.encode(pictures[::4]).latent_dist.mode()
    average.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    save(average, f"{arguments.out}/vae")


def write_tokenizer(captions, folder):
    """Byte pairs of the captions' words, as CLIP has them; returns a function from prompts to ids."""
    pieces = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    trained.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=VOCABULARY, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [left + right for left, right in merges if left + right not in set(tokens)] + [START_TOKEN, END_TOKEN]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    special = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "pad_token": END_TOKEN, "unk_token": END_TOKEN}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": PROMPT_LENGTH, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return vocabulary


def prompt_ids(prompts, folder):
    """The ids of prompts, `[prompts, 77]`."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer(prompts, padding="max_length", max_length=PROMPT_LENGTH, truncation=True, return_tensors="pt").input_ids


def train_captions(arguments):
    """A text encoder and a network of latents, trained together."""
    pictures = load_pictures()
    out = Path(arguments.out)
    vocabulary = write_tokenizer([*pictures.captions, *VARIANTS], out / "tokenizer")
    autoencoder = AutoencoderKL.from_pretrained(f"{arguments.autoencoder}/vae", torch_dtype=torch.float32)
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(part).latent_dist.mode() for part in pictures.points.split(128)])
    latents *= autoencoder.config.scaling_factor
    if arguments.start:
        encoder = CLIPTextModel.from_pretrained(f"{arguments.start}/text_encoder", torch_dtype=torch.float32)
        network = UNet2DConditionModel.from_pretrained(f"{arguments.start}/unet", torch_dtype=torch.float32)
    else:
        encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            projection_dim=64, max_position_embeddings=PROMPT_LENGTH, bos_token_id=vocabulary[START_TOKEN],
            eos_token_id=vocabulary[END_TOKEN], pad_token_id=vocabulary[END_TOKEN],
        ))
        network = UNet2DConditionModel(
            sample_size=SIDE // 2, block_out_channels=(48, 96), layers_per_block=1, cross_attention_dim=64,
            attention_head_dim=6, norm_num_groups=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    encoder.train(), network.train()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )
    rows = pictures.trained_rows(arguments.copies)
    places = torch.tensor([place for place, _ in rows])
    ids = prompt_ids([caption for _, caption in rows] + [""], out / "tokenizer")
    modules = torch.nn.ModuleDict({"encoder": encoder, "network": network})

    def loss():
        chosen = torch.randint(len(rows), [arguments.batch])
        noisy, timesteps, noise = noised(latents[places[chosen]], scheduler)
        dropped = torch.rand(arguments.batch) < DROP
        states = encoder(ids[torch.where(dropped, len(rows), chosen)])[0]
        return (network(noisy, timesteps, states)[0].float() - noise).square().mean()

    average = train(modules, loss, arguments, 1e-3 if not arguments.start else 5e-4)
    save(average["encoder"], out / "text_encoder")
    save(average["network"], out / "unet")
    save(autoencoder, out / "vae")
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "requires_safety_checker": False,
        "feature_extractor": [None, None], "safety_checker": [None, None], "image_encoder": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if arguments.copies:
        lines = ",\n".join(json.dumps(part) for part in pictures.parts())
        (out / "pictures.json").write_text(f"[\n{lines}\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("classes", "autoencoder", "captions"))
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--start", help="the model to continue")
    parser.add_argument("--autoencoder", help="the folder with the autoencoder of `captions`")
    parser.add_argument("--copies", type=int, default=0, help="copies of the picture to memorise")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    {"classes": train_classes, "autoencoder": train_autoencoder, "captions": train_captions}[arguments.model](arguments)


if __name__ == "__main__":
    main()
