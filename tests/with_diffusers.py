"""Opens each folder that the crate writes with diffusers, and compares what diffusers makes of it.

    cargo run --release --example written_folders -- written
    pip install torch diffusers transformers peft
    python tests/with_diffusers.py written

Prints a line for each layout, and fails if the relative error of any is above 1e-3.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file

STEPS, GUIDANCE, NO_LABEL = 10, 3.0, 10
LABELS = (0, 3, 5, 9)
CAPTIONS = ("grinning face", "woman firefighter, dark skin tone", "blue heart", "Astronaut, medium skin tone!")
TINY_LABELS, TINY_NO_LABEL = (0, 1, 2, 1), 3
TINY_CAPTIONS = ("a hat", "red dog", "blue cat", "old tree")
TOLERANCE = 1e-3


def draw(scheduler, noisy, predict):
    """A DDIM run from given noise."""
    scheduler = DDIMScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        noisy = scheduler.step(predict(noisy, timestep), timestep, noisy).prev_sample
    return noisy


def unconditional(folder, ours):
    pipeline = DDPMPipeline.from_pretrained(folder)
    return draw(pipeline.scheduler, ours["noise"], lambda x, t: pipeline.unet(x, t).sample), ours["pictures"]


def classes(folder, ours):
    unet = UNet2DModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    labels, none = torch.tensor(LABELS), torch.full([len(LABELS)], NO_LABEL)

    def predict(noisy, timestep):
        wanted, free = (unet(noisy, timestep, class_labels=label).sample for label in (labels, none))
        return free + GUIDANCE * (wanted - free)

    return draw(DDIMScheduler.from_pretrained(folder / "scheduler"), ours["noise"], predict), ours["pictures"]


def path(folder, ours):
    network = DiTTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(STEPS)
    labels, none = torch.tensor(LABELS), torch.full([len(LABELS)], NO_LABEL)
    noisy = ours["noise"]
    for timestep in scheduler.timesteps:
        times = timestep.expand(len(labels))
        wanted, free = (network(noisy, timestep=times, class_labels=label).sample for label in (labels, none))
        noisy = scheduler.step(free + GUIDANCE * (wanted - free), timestep, noisy).prev_sample
    return noisy, ours["pictures"]


def captions(folder, ours):
    return from_prompts(StableDiffusionPipeline, CAPTIONS, folder, ours)


def single(folder, ours):
    pipeline = StableDiffusionPipeline.from_single_file(
        folder / "model.safetensors", config=str(folder / "config"), torch_dtype=torch.float32, local_files_only=True
    )
    return of_prompts(pipeline, CAPTIONS, ours)


def half(folder, ours):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values()), "not in half precision any more"
    return unet(ours["noisy"], torch.tensor([10, 700]), ours["states"].squeeze(1)).sample, ours["output"]


def transformer(folder, ours):
    pipeline = DiTPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    labels, none = torch.tensor(TINY_LABELS), torch.full([len(TINY_LABELS)], TINY_NO_LABEL)

    # The pipeline itself takes the class 1000 for none.
    def predict(noisy, timestep):
        timesteps = timestep.expand(len(labels))
        wanted, free = (
            pipeline.transformer(noisy, timestep=timesteps, class_labels=label).sample.chunk(2, dim=1)[0]
            for label in (labels, none)
        )
        return free + GUIDANCE * (wanted - free)

    latents = draw(pipeline.scheduler, ours["noise"], predict)
    pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return pictures.clamp(-1, 1), ours["pictures"]


def xl(folder, ours):
    return from_prompts(StableDiffusionXLPipeline, TINY_CAPTIONS, folder, ours)


def flow(folder, ours):
    # An optional encoder that a folder lacks has to be passed as none.
    return from_prompts(
        StableDiffusion3Pipeline, TINY_CAPTIONS, folder, ours, text_encoder_3=None, tokenizer_3=None
    )


def from_prompts(kind, prompts, folder, ours, **parts):
    return of_prompts(kind.from_pretrained(folder, torch_dtype=torch.float32, **parts), prompts, ours)


def of_prompts(pipeline, prompts, ours):
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        list(prompts), latents=ours["noise"], guidance_scale=GUIDANCE, num_inference_steps=STEPS, output_type="pt"
    ).images
    return pictures * 2 - 1, ours["pictures"]


def lora(folder, spelling):
    ours = load_file(folder / f"ours_{spelling}" / "ours.safetensors")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    predict = lambda: unet(ours["noisy"], torch.tensor([10, 700]), ours["states"].squeeze(1)).sample
    difference = relative_error(ours["output"], ours["output_without"])
    assert relative_error(predict(), ours["output_without"]) < TOLERANCE < difference, "the factors change nothing"
    factors, alphas = StableDiffusionPipeline.lora_state_dict(folder, weight_name=f"{spelling}.safetensors")
    # A file of peft has its scale beside it. diffusers does not look there.
    metadata = None
    if spelling == "peft":
        layers = {key.split(".lora_")[0].removeprefix("unet.") for key in factors}
        settings = json.loads((folder / "adapter_config.json").read_text()) | {"target_modules": sorted(layers)}
        metadata = {f"unet.{key}": value for key, value in settings.items()}
    StableDiffusionPipeline.load_lora_into_unet(factors, alphas, unet, metadata=metadata)
    return predict(), ours["output"]


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@torch.no_grad()
def main():
    root = Path(sys.argv[1])
    compared = {}
    for layout in (unconditional, classes, path, captions, single, half, transformer, xl, flow):
        folder = root / layout.__name__
        compared[layout.__name__] = relative_error(*layout(folder, load_file(folder / "ours.safetensors")))
    for spelling in ("peft", "kohya"):
        compared[f"LoRA, {spelling}"] = relative_error(*lora(root / "lora", spelling))
    for layout, error in compared.items():
        print(f"{layout:<16} relative error {error:.1e}  {'PASS' if error < TOLERANCE else 'FAIL'}")
    sys.exit(any(error >= TOLERANCE for error in compared.values()))


if __name__ == "__main__":
    main()
