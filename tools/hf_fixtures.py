#!/usr/bin/env python3
"""Writes what a folder in tests/fixtures/hf is expected to give, by Hugging Face transformers in float32.

    hf_fixtures.py FOLDER...                  writes expected.safetensors anew, for the input_ids that it has
    hf_fixtures.py --narrow WIDTH FOLDER...   first cuts the MLP of each layer down to its first WIDTH channels
    hf_fixtures.py --check FOLDER...          writes nothing, and prints how far the file is off

expected.safetensors: input_ids [96], logits [96, vocab], hidden_after_2_layers [96, hidden], greedy_from_first_32 [48].
Needs: pip install torch transformers==5.23.0 safetensors
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

# Which dimension of each matrix of an MLP is its width.
WIDTH_OF = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}


def narrow(folder, width):
    """Cuts the MLPs in every file of weights, and says so in config.json and in the index, if there is one."""
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            dimension = WIDTH_OF.get(name.split(".")[-2])
            if dimension is not None and name.endswith("weight"):
                tensors[name] = tensor.narrow(dimension, 0, width).contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = width
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        tensors = [tensor for path in folder.glob("model-*.safetensors") for tensor in load_file(path).values()]
        content["metadata"]["total_size"] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if "total_parameters" in content["metadata"]:
            content["metadata"]["total_parameters"] = sum(tensor.numel() for tensor in tensors)
        index.write_text(json.dumps(content, indent=2) + "\n")


@torch.no_grad()
def expected(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = load_file(folder / "expected.safetensors")["input_ids"]
    output = model(ids[None], output_hidden_states=True)
    text = ids[:32].tolist()
    greedy = []
    while len(greedy) < 48:
        greedy.append(int(model(torch.tensor([text + greedy])).logits[0, -1].argmax()))
    return {
        "greedy_from_first_32": torch.tensor(greedy),
        "input_ids": ids,
        "hidden_after_2_layers": output.hidden_states[2][0].contiguous(),
        "logits": output.logits[0].contiguous(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--narrow", type=int, metavar="WIDTH")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    for folder in args.folders:
        if args.narrow and not args.check:
            narrow(folder, args.narrow)
        found, path = expected(folder), folder / "expected.safetensors"
        if args.check:
            stored = load_file(path)
            off = {name: float((found[name].float() - stored[name].float()).abs().max()) for name in found}
            print(folder.name, off)
        else:
            save_file(found, path)


if __name__ == "__main__":
    main()
