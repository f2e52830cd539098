"""A Transformers model saved to an s3:// URL as sharded safetensors, and loaded without a local copy.

python examples/huggingface_models.py s3://bucket/folder
"""

import sys
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import fsspec_csx


def main(root: str) -> None:
    """Save a small model with random weights; load it completely, and then only one layer."""
    url = f"{root}/gpt2"
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=32, n_layer=2, n_head=2, n_positions=16))
    # If you add the files of config.save_pretrained, from_pretrained can read a local copy of this folder.
    fsspec_csx.save(model.state_dict(), url, format="huggingface", max_shard_size="50KB")

    again: Any = GPT2LMHeadModel(model.config)
    again.load_state_dict(fsspec_csx.load(url))
    print("equal:", all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)))

    part = fsspec_csx.load(url, keys=["transformer.ln_f"])  # reads only the shard of these tensors
    print("part:", *part)


if __name__ == "__main__":
    main(sys.argv[1])
