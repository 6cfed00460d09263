#!/usr/bin/env python3
"""Cuts prompts for `eesd-run distill` out of source files.

    tools/prompts_from_code.py FOLDER COUNT [--seed S] [--suffix .py] [--corpus FILE.jsonl] > prompts.jsonl

A prompt is a piece of 40 to 240 characters that begins at the start of a line; files are taken at random, each equally
often. With --corpus, the text that follows each prompt's beginning (1,000 characters with it) goes to that file as
{"text": ...}: raw text of the same places, to compare self-written data with.
"""

import argparse
import json
import pathlib
import random
import sys


def pieces(files, count, rng):
    """Yields (prompt, text) pairs until there are `count`, or no file has a place for one."""
    files = list(files)
    while count and files:
        path = rng.choice(files)
        text = path.read_text(encoding="utf-8", errors="ignore")
        starts = [0] + [i + 1 for i, c in enumerate(text) if c == "\n"]
        starts = [s for s in starts if s + 240 < len(text) and not text[s].isspace()]
        if not starts:
            files.remove(path)
            continue
        start = rng.choice(starts)
        yield text[start : start + rng.randint(40, 240)], text[start : start + 1000]
        count -= 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default=".py")
    parser.add_argument("--corpus", type=argparse.FileType("w", encoding="utf-8"))
    args = parser.parse_args()
    files = sorted(p for p in args.folder.rglob("*" + args.suffix) if p.is_file() and p.stat().st_size > 1000)
    if not files:
        sys.exit(f"{args.folder}: no files ending in {args.suffix}")
    written = 0
    for written, (prompt, text) in enumerate(pieces(files, args.count, random.Random(args.seed)), 1):
        print(json.dumps({"prompt": prompt}))
        if args.corpus:
            print(json.dumps({"text": text}), file=args.corpus)
    if written < args.count:
        sys.exit(
            f"{args.folder}: {written} prompts, {args.count} asked for: no file ending in {args.suffix} has a line that begins "
            "at its margin with 240 characters after it"
        )


if __name__ == "__main__":
    main()
