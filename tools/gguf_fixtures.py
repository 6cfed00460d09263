#!/usr/bin/env python3
"""Writes tests/fixtures/gguf/blocks.bin: random blocks of every type that the engine reads, each with the numbers that the
package `gguf` makes of them (five blocks of a type, then their elements in f32). Needs `gguf` and `numpy`.
"""

import pathlib

import gguf
import numpy

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Bytes of a block that are a scale or a minimum in f16: any bits might be no number.
FLOATS = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def main():
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


if __name__ == "__main__":
    main()
