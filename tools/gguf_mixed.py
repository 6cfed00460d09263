#!/usr/bin/env python3
"""Writes tests/fixtures/gguf/{llama,qwen2,qwen3}-mixed.gguf with their references: the matrices of a small model, each in a type
of its own, taken from files that have all of them in one type, and cut: fewer tokens, heads and features of the MLP.

    tools/gguf_mixed.py FOLDER

FOLDER holds llama-{f16,q4_0,...}.gguf, qwen2-{bf16,q8_0,q4_k_m}.gguf and qwen3-{q4_k_m,q6_k}.gguf, and `.expected.safetensors`
beside each: logits and greedy tokens by transformers in f32. The references of the mixed files are those of the forward pass below,
which is first compared with all of FOLDER's. What is cut is whole rows, and whole blocks of rows. Needs `gguf`, `numpy` and
`safetensors`.
"""

import pathlib
import sys

import gguf
import numpy
from safetensors.numpy import load_file, save_file

MATRICES = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
# The file that each layer's matrices are from. Those that are cut to columns are in types of short blocks; `file:type` is
# requantised.
LLAMA = [
    ["q4_0", "q4_1", "q5_0", "q5_1", "iq4_xs", "iq4_nl", "q8_0"],
    ["q6_k", "q4_k_m", "q3_k_m", "q8_0", "q2_k", "q3_k_m", "f16"],
]
QWEN2 = [
    ["q4_k_m", "bf16", "bf16", "q8_0", "q4_k_m", "bf16", "f32"],
    ["q8_0", "f32", "q4_k_m", "bf16", "q4_k_m", "q8_0", "bf16"],
]
QWEN3 = [
    ["q4_k_m", "q4_k_m", "q6_k", "q6_k:Q5_0", "q4_k_m", "q4_k_m", "q6_k:Q4_1"],
    ["q4_k_m", "q4_k_m", "q4_k_m", "q6_k:Q4_0", "q4_k_m", "q4_k_m", "q6_k:Q8_0"],
]
# What is left: tokens (those of single bytes first, then one for each merge), heads, features of the MLP.
TOKENS, BYTES, HEADS, KV_HEADS, MLP = 288, 258, 2, 1, 32
PROMPT, LOGITS = 24, 12


def numbers(tensor):
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float64)


class Model:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        key = lambda name: reader.fields[name].contents()
        self.arch = key("general.architecture")
        size = lambda name: key(f"{self.arch}.{name}")
        self.heads, self.kv_heads = size("attention.head_count"), size("attention.head_count_kv")
        self.layers, self.dim = size("block_count"), size("attention.key_length")
        self.epsilon, self.theta = size("attention.layer_norm_rms_epsilon"), size("rope.freq_base")
        self.tensors = {tensor.name: numbers(tensor) for tensor in reader.tensors}

    def norm(self, x, name):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * self.tensors[name]

    def linear(self, x, name):
        return x @ self.tensors[name + ".weight"].T + self.tensors.get(name + ".bias", 0.0)

    def turn(self, x):
        """Pairs of neighbours as architecture `llama` stores them, else pairs half a head apart."""
        half = self.dim // 2
        angles = numpy.arange(len(x))[:, None] * self.theta ** (-numpy.arange(half) / half)
        cos, sin = numpy.cos(angles)[:, None], numpy.sin(angles)[:, None]
        if self.arch == "llama":
            a, b = x[..., 0::2], x[..., 1::2]
        else:
            a, b = x[..., :half], x[..., half:]
        return numpy.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def logits(self, ids):
        x = self.tensors["token_embd.weight"][ids]
        length = len(ids)
        for layer in range(self.layers):
            block = f"blk.{layer}."
            h = self.norm(x, block + "attn_norm.weight")
            q, k, v = (
                self.linear(h, block + name).reshape(length, heads, self.dim)
                for name, heads in [("attn_q", self.heads), ("attn_k", self.kv_heads), ("attn_v", self.kv_heads)]
            )
            if self.arch == "qwen3":
                q, k = self.norm(q, block + "attn_q_norm.weight"), self.norm(k, block + "attn_k_norm.weight")
            q, k = self.turn(q), self.turn(k)
            k, v = (t.repeat(self.heads // self.kv_heads, 1) for t in (k, v))
            scores = numpy.einsum("ihd,jhd->hij", q, k) / numpy.sqrt(self.dim)
            scores[:, numpy.triu(numpy.ones((length, length), bool), 1)] = -numpy.inf
            weights = numpy.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            x = x + self.linear(numpy.einsum("hij,jhd->ihd", weights, v).reshape(length, -1), block + "attn_output")
            h = self.norm(x, block + "ffn_norm.weight")
            gate = self.linear(h, block + "ffn_gate")
            x = x + self.linear(gate / (1 + numpy.exp(-gate)) * self.linear(h, block + "ffn_up"), block + "ffn_down")
        head = "output" if "output.weight" in self.tensors else "token_embd"
        return self.linear(self.norm(x, "output_norm.weight"), head)


def expected(model, input_ids, steps):
    ids, margins = list(input_ids[:PROMPT]), []
    for _ in range(steps):
        last = model.logits(ids)[-1]
        best = numpy.sort(last)
        margins.append(best[-1] - best[-2])
        ids.append(int(last.argmax()))
    return {
        "input_ids": numpy.array(input_ids, numpy.int32),
        "logits": model.logits(input_ids)[:LOGITS].astype(numpy.float32),
        "greedy_from_first_24": numpy.array(ids[PROMPT:], numpy.int32),
        "greedy_margins": numpy.array(margins, numpy.float32),
    }


def check(folder):
    for path in sorted(folder.glob("*.gguf")):
        there = load_file(path.with_suffix(".expected.safetensors"))
        found = Model(path).logits(there["input_ids"])[:LOGITS]
        print(f"{path.name}: differs by {abs(found - there['logits']).max():.1e} from transformers")


def cut(tensor, data, of, dim):
    """Fewer rows of a tensor, or columns of one that takes what was cut."""
    rows = {
        "token_embd": TOKENS, "output.": TOKENS, "attn_q.": HEADS * dim, "attn_k.": KV_HEADS * dim, "attn_v.": KV_HEADS * dim,
        "ffn_gate": MLP, "ffn_up": MLP,
    }
    columns = {"attn_output": HEADS * dim, "ffn_down": MLP}
    data = data[: next((most for part, most in rows.items() if part in tensor.name), len(data))]
    for part, most in columns.items():
        if part in tensor.name:
            if data.dtype == numpy.uint8:
                block, size = gguf.GGML_QUANT_SIZES[of]
                most = most // block * size
            data = data[:, :most]
    return numpy.ascontiguousarray(data)


def cut_keys(arch, name, contents):
    sizes = {
        f"{arch}.feed_forward_length": MLP, f"{arch}.attention.head_count": HEADS, f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.vocab_size": TOKENS,
    }
    lists = {"tokens": TOKENS, "token_type": TOKENS, "merges": TOKENS - BYTES}
    return sizes.get(name, contents[: lists[name.split(".")[-1]]] if isinstance(contents, list) else contents)


def mix(folder, arch, base, layers, out):
    reader = gguf.GGUFReader(folder / f"{arch}-{base}.gguf")
    dim, others = reader.fields[f"{arch}.attention.key_length"].contents(), {}
    writer = gguf.GGUFWriter(out, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, cut_keys(arch, name, field.contents()), field.types[0], inner)
    for tensor in reader.tensors:
        data, of = tensor.data, tensor.tensor_type
        for layer, files in enumerate(layers):
            for module, source in zip(MATRICES, files):
                if tensor.name != f"blk.{layer}.{module}.weight":
                    continue
                file, _, to = source.partition(":")
                if file == "f32":
                    data, of = numbers(tensor).astype(numpy.float32), gguf.GGMLQuantizationType.F32
                else:
                    if file not in others:
                        others[file] = {t.name: t for t in gguf.GGUFReader(folder / f"{arch}-{file}.gguf").tensors}
                    data, of = others[file][tensor.name].data, others[file][tensor.name].tensor_type
                if to:
                    of, full = gguf.GGMLQuantizationType[to], numbers(others[file][tensor.name])
                    data = gguf.quants.quantize(full.astype(numpy.float32), of)
        writer.add_tensor(tensor.name, cut(tensor, data, of, dim), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    there = load_file(folder / f"{arch}-{base}.expected.safetensors")
    ids = there["input_ids"] % TOKENS
    reference = expected(Model(out), ids, len(there["greedy_from_first_24"]))
    save_file(reference, pathlib.Path(out).with_suffix(".expected.safetensors"))
    types = {t.tensor_type.name for t in gguf.GGUFReader(out).tensors if any(m in t.name for m in MATRICES)}
    print(f"{out}: {sorted(types)}")


def main():
    folder = pathlib.Path(sys.argv[1])
    target = pathlib.Path(__file__).parent.parent / "tests/fixtures/gguf"
    check(folder)
    mix(folder, "llama", "q4_k_m", LLAMA, target / "llama-mixed.gguf")
    mix(folder, "qwen2", "q8_0", QWEN2, target / "qwen2-mixed.gguf")
    mix(folder, "qwen3", "q4_k_m", QWEN3, target / "qwen3-mixed.gguf")


if __name__ == "__main__":
    main()
