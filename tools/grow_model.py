#!/usr/bin/env python3
"""Grows a small Llama model deeper and trains it on, with PyTorch on the processor.

    tools/grow_model.py SOURCE OUTPUT --data FOLDER [FOLDER ...] [--layers 32] [--keep 3] [--hours 1.5] [--eesd-run PATH]

The first KEEP layers stay as they are. The new layers are spread over the others: each is a copy of the layer before it
whose two output projections are zero, so that the grown model says at first exactly what the source says. Then all but the
embedding (which is the head too) and the first KEEP layers are trained: what a draft is made from is left as it was.

Data are the files under the folders with the suffix, each text once; 1 in 200 is held out by the hash of its text. The
model is saved (bfloat16, shards of at most 16 MB) at each report, so the run can be ended at any time. The learning rate
follows the clock: it warms up, and falls to a tenth as a cosine over the hours; with `--hours 0` nothing is trained. With
--eesd-run (the program, to ask for the grown model's fingerprint) exit blocks of the source come along whose layers were
kept: good to start `eesd-run distill --init-from` from. Needs `torch`, `safetensors`, `tokenizers`.
"""

import argparse
import hashlib
import json
import math
import pathlib
import random
import shutil
import subprocess
import time

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

CONTEXT = 256
SHARD_BYTES = 16_000_000
ZEROED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def plan(source, total, keep):
    """For each grown layer, the source layer it is copied from, and whether it is a new one."""
    tail, extra = source - keep, total - source
    layers = [(i, False) for i in range(keep)]
    for i in range(tail):
        new = extra * (i + 1) // tail - extra * i // tail
        layers += [(keep + i, False)] + [(keep + i, True)] * new
    return layers


def grow(weights, layers):
    """The weights of the grown model, float32."""
    grown = {name: w.float() for name, w in weights.items() if ".layers." not in name}
    for index, (source, new) in enumerate(layers):
        prefix = f"model.layers.{source}."
        for name, w in weights.items():
            if name.startswith(prefix):
                suffix = name[len(prefix) :]
                w = torch.zeros_like(w) if new and suffix in ZEROED else w
                grown[f"model.layers.{index}.{suffix}"] = w.float().clone()
    return grown


def norm(x, weight, eps):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Model:
    """A Llama over a dictionary of Hugging Face's names: every head dimension, norm and projection as they are there."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        dim = config["head_dim"]
        angles = torch.outer(torch.arange(CONTEXT), config["rope_theta"] ** (-torch.arange(0, dim, 2) / dim))
        self.cos, self.sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    def layer(self, x, index):
        """[batch, tokens, hidden] to the same."""
        c, w = self.config, lambda name: self.weights[f"model.layers.{index}.{name}.weight"]
        batch, tokens, _ = x.shape
        heads = lambda y: y.view(batch, tokens, -1, c["head_dim"]).transpose(1, 2)
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        y = norm(x, w("input_layernorm"), c["rms_norm_eps"])
        q, k, v = (heads(F.linear(y, w(f"self_attn.{p}_proj"))) for p in "qkv")
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        x = x + F.linear(y.transpose(1, 2).reshape(batch, tokens, -1), w("self_attn.o_proj"))
        y = norm(x, w("post_attention_layernorm"), c["rms_norm_eps"])
        return x + F.linear(F.silu(F.linear(y, w("mlp.gate_proj"))) * F.linear(y, w("mlp.up_proj")), w("mlp.down_proj"))

    def loss(self, ids):
        """Mean nats a token of [batch, CONTEXT + 1] ids."""
        x = F.embedding(ids[:, :-1], self.weights["model.embed_tokens.weight"])
        for index in range(self.config["num_hidden_layers"]):
            x = self.layer(x, index)
        x = norm(x, self.weights["model.norm.weight"], self.config["rms_norm_eps"])
        logits = F.linear(x, self.weights["model.embed_tokens.weight"])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def read(folders, suffix, tokenizer, config, limit, rng):
    """Training and held-out ids of at most `limit` characters, each text between bos and eos."""
    files = sorted({p for folder in folders for p in folder.rglob("*" + suffix) if p.is_file()})
    rng.shuffle(files)
    seen, parts, characters = set(), ([], []), 0
    for path in files:
        text = path.read_text(encoding="utf-8", errors="ignore")
        digest = hashlib.sha256(text.encode()).digest()
        if not 500 < len(text) < 200_000 or digest in seen:
            continue
        seen.add(digest)
        held_out = int.from_bytes(digest[:4], "big") % 200 == 0
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        parts[held_out].extend([config["bos_token_id"], *ids, config["eos_token_id"]])
        characters += len(text)
        if characters > limit:
            break
    return [torch.tensor(part, dtype=torch.long) for part in parts]


def batch(ids, starts):
    return torch.stack([ids[s : s + CONTEXT + 1] for s in starts])


def put(path, text):
    """Replaces a file whole."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def save(output, weights, config):
    """Shards in the order of the names, with their index.

    At every moment the folder holds a whole model: new shards have other names than those of the index, which is replaced
    once they are all there, and then the old ones go.
    """
    path = output / "model.safetensors.index.json"
    old = set(json.loads(path.read_text())["weight_map"].values()) if path.exists() else set()
    series = "b" if any("-a-" in name for name in old) else "a"
    shards, size = [{}], 0
    for name in sorted(weights):
        tensor = weights[name].detach().to(torch.bfloat16).contiguous()
        if size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    index = {"metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())}, "weight_map": {}}
    for number, shard in enumerate(shards):
        name = f"model-{series}-{number + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, output / name, {"format": "pt"})
        index["weight_map"].update({tensor: name for tensor in shard})
    put(output / "config.json", json.dumps(config, indent=2) + "\n")
    put(path, json.dumps(index, indent=1) + "\n")
    for name in old - set(index["weight_map"].values()):
        (output / name).unlink()


def take_exit_blocks(source, output, keep, program):
    """Copies the exit blocks after at most `keep` layers, as blocks of the grown model."""
    report = subprocess.run([program, "inspect", "-m", output, "--json"], check=True, capture_output=True, text=True)
    fingerprint = json.loads(report.stdout)["fingerprint"]
    for path in sorted(source.glob("exit-*.safetensors")):
        with safe_open(path, "pt") as block:
            metadata = dict(block.metadata(), base_fingerprint=fingerprint)
            if int(metadata["exit_layer"]) <= keep:
                save_file({name: block.get_tensor(name) for name in block.keys()}, output / path.name, metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--suffix", default=".py")
    parser.add_argument("--characters", type=int, default=60_000_000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--hours", type=float, default=1.5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the new layers; the others get a quarter of it")
    parser.add_argument("--report-every", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eesd-run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = random.Random(args.seed)

    for path in (args.source / "config.json", args.source / "model.safetensors", args.source / "tokenizer.json"):
        if not path.is_file():
            parser.error(f"{path}: there is no such file (expected a model folder with its weights in one file)")
    for folder in args.data:
        if not folder.is_dir():
            parser.error(f"--data: {folder} (expected a folder)")
    config = json.loads((args.source / "config.json").read_text())
    if not 0 <= args.keep < config["num_hidden_layers"] <= args.layers:
        parser.error(
            f"--keep {args.keep}, --layers {args.layers}: the source has {config['num_hidden_layers']} layers "
            "(expected to keep fewer and to grow to as many or more)"
        )
    layers = plan(config["num_hidden_layers"], args.layers, args.keep)
    config["num_hidden_layers"] = args.layers
    weights = grow(load_file(args.source / "model.safetensors"), layers)
    model = Model(config, weights)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(args.source / name, args.output)

    groups = {True: [], False: []}
    for index in range(args.keep, args.layers):
        groups[layers[index][1]] += [w for name, w in weights.items() if name.startswith(f"model.layers.{index}.")]
    groups[False].append(weights["model.norm.weight"])
    trained = [w.requires_grad_() for group in groups.values() for w in group]
    optimiser = torch.optim.AdamW(
        [{"params": groups[True], "scale": 1.0}, {"params": groups[False], "scale": 0.25}],
        betas=(0.9, 0.95), weight_decay=0.01, foreach=True,
    )

    tokenizer = Tokenizer.from_file(str(args.source / "tokenizer.json"))
    ids, held_out = read(args.data, args.suffix, tokenizer, config, args.characters, rng)
    if min(len(ids), len(held_out)) < CONTEXT + 2:
        parser.error(
            f"--data: {len(ids)} tokens of files *{args.suffix} to train on and {len(held_out)} held out "
            f"(expected {CONTEXT + 2} or more of each)"
        )
    windows = batch(held_out, range(0, min(len(held_out) - CONTEXT - 1, 96 * CONTEXT), CONTEXT))
    print(f"{len(ids)} tokens, {len(held_out)} held out ({windows.numel()} measured)", flush=True)

    begun, step, recent = time.monotonic(), 0, []
    while True:
        done = (time.monotonic() - begun) / (args.hours * 3600) if args.hours > 0 else 1.0
        if step % args.report_every == 0 or done >= 1:
            with torch.no_grad():
                loss = sum(model.loss(part).item() * len(part) for part in windows.split(16)) / len(windows)
            save(args.output, weights, config)
            mean = sum(recent) / max(len(recent), 1)
            recent.clear()
            print(f"step {step}, {done:.1%}: held-out {loss:.4f}, training {mean:.4f} nats a token", flush=True)
            if step == 0 and args.eesd_run:
                take_exit_blocks(args.source, args.output, args.keep, args.eesd_run)
            if done >= 1:
                break
        rate = args.lr * min(1.0, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        loss = model.loss(batch(ids, [rng.randrange(len(ids) - CONTEXT - 1) for _ in range(args.batch)]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        recent.append(loss.item())
        step += 1


if __name__ == "__main__":
    main()
