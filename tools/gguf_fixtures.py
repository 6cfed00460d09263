#!/usr/bin/env python3
"""Writes tests/fixtures/gguf/blocks.bin and quantised.bin. Needs `gguf` and `numpy`, and llama.cpp's libggml-base:

    tools/gguf_fixtures.py LIBGGML_BASE.so

blocks.bin: random blocks of every type that the engine reads, each with the numbers that the package `gguf` makes of them
(five blocks of a type, then their elements in f32). quantised.bin: 24 rows of 256 numbers in f32, most of them the bundled
model's, then what Q8_0 and Q4_0 make of them by the package, Q4_K and Q6_K by the library.
"""

import ctypes
import json
import os
import pathlib
import sys

import gguf
import numpy

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Bytes of a block that are a scale or a minimum in f16: any bits might be no number.
FLOATS = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


ROWS = 24


def numbers(model, rng):
    """Rows of the bundled model's matrices, and some that are not like a model's."""
    data = model.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    rows = []
    for name in sorted(name for name in header if name.endswith(("down_proj.weight", "gate_proj.weight"))):
        start, end = header[name]["data_offsets"]
        stored = numpy.frombuffer(data[8 + length + start : 8 + length + end], dtype="<u2").astype(numpy.uint32) << 16
        rows.append(stored.view(numpy.float32)[256 * len(rows) :][:256])
    strange = [
        numpy.zeros(256),
        numpy.full(256, -0.75),
        numpy.abs(rng.standard_normal(256)) + 1,
        -numpy.abs(rng.standard_normal(256)) - 1,
        numpy.where(numpy.arange(256) == 77, 1000.0, rng.standard_normal(256)),
        rng.standard_normal(256) * 1e-4,
        numpy.arange(256) / 2 - 64,
        rng.standard_normal(256) * numpy.repeat(rng.uniform(0, 8, 16), 16),
    ]
    return numpy.array(rows[: ROWS - len(strange)] + strange, dtype="<f4")


def quantised(rows, of, library):
    """The rows in blocks, as the reference makes them."""
    if of in ("Q8_0", "Q4_0"):
        return gguf.quants.quantize(rows, gguf.GGMLQuantizationType[of]).tobytes()
    quantise = library[f"quantize_row_{of.lower().replace('k', 'K')}_ref"]
    out = ctypes.create_string_buffer(rows.size // 256 * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[of]][1])
    quantise(rows.ctypes.data_as(ctypes.c_void_p), out, ctypes.c_int64(rows.size))
    return out.raw


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    rng = numpy.random.default_rng(1)
    folder = pathlib.Path(__file__).parent.parent / "tests/fixtures/gguf"
    with open(folder / "blocks.bin", "wb") as out:
        for name in TYPES:
            of = gguf.GGMLQuantizationType[name]
            blocks = rng.integers(0, 256, (5, gguf.GGML_QUANT_SIZES[of][1]), dtype=numpy.uint8)
            for at in FLOATS.get(name, [0]):
                blocks[:, at : at + 2] = rng.standard_normal(5).astype(numpy.float16).view(numpy.uint8).reshape(5, 2)
            out.write(blocks.tobytes())
            out.write(gguf.quants.dequantize(blocks, of).astype("<f4").tobytes())
    rows = numbers(folder.parent.parent.parent / "models/pycode-4m/model.safetensors", rng)
    library = ctypes.CDLL(sys.argv[1], mode=os.RTLD_LAZY)
    with open(folder / "quantised.bin", "wb") as out:
        out.write(rows.tobytes())
        for of in ("Q8_0", "Q4_0", "Q4_K", "Q6_K"):
            out.write(quantised(rows, of, library))


if __name__ == "__main__":
    main()
