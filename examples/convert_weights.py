"""Converts the weights of a feature network to safetensors, as `siss::metrics::networks` reads them.

    pip install torch safetensors
    python convert_weights.py weights-inception-2015-12-05-6726825d.pth inception.safetensors
    python convert_weights.py sscd_disc_mixup.torchscript.pt sscd.safetensors
    python convert_weights.py RN50.pt clip.safetensors

Reads a state dictionary of PyTorch, or a TorchScript file. Names stay as they are, values become
float32. TorchScript runs code from the file: take it only from its authors.
"""

import argparse
import sys

import torch
from safetensors.torch import save_file


def state_dict(path):
    """The tensors of a file, by name."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as not_a_dictionary:  # PyTorch names no single error for this.
        print(f"not a state dictionary ({type(not_a_dictionary).__name__}), read as TorchScript", file=sys.stderr)
        return torch.jit.load(path, map_location="cpu").state_dict()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="the .pth or TorchScript file")
    parser.add_argument("target", help="the safetensors file to write")
    arguments = parser.parse_args()
    tensors = state_dict(arguments.source)
    tensors = tensors.get("state_dict", tensors)
    # Sizes that TorchScript keeps as buffers are integers; no network here has integer weights.
    kept = {
        name: tensor.detach().float().contiguous().clone()
        for name, tensor in tensors.items()
        if torch.is_tensor(tensor) and tensor.is_floating_point()
    }
    save_file(kept, arguments.target)
    print(f"{len(kept)} tensors written to {arguments.target}")


if __name__ == "__main__":
    main()
