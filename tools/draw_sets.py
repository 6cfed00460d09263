#!/usr/bin/env python3
"""Draws what a benchmark over sets of prompts measured as a picture: tokens a second of each set, bar beside bar.

    eesd-run bench --input a.jsonl,b.jsonl --json > sets.json
    tools/draw_sets.py sets.json --beside "another engine=102,98" > sets.svg

Bars are plain decoding, then each of the others; --beside puts speeds measured elsewhere before them, one for each set in its order.
"""

import argparse
import html
import json
import sys

COLOURS = ["#8d99ae", "#2f9e6e", "#3a7ca5", "#c8553d", "#b08900"]
HEIGHT, BAR, GAP, MARGIN, TOP = 260, 30, 34, 50, 50


def beside(text):
    name, _, speeds = text.rpartition("=")
    try:
        return name, [float(speed) for speed in speeds.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} (expected a name and speeds, as in \"another engine=102,98\")")


def bars(rows, others):
    """Names of the sets, and for each bar of a set its name and speeds."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    names = list(dict.fromkeys(row["controller"] for row in rows))
    speeds = {(row["set"], row["controller"]): row["tokens_per_second"] for row in rows}
    measured = [("plain decoding" if name == "off" else name, [speeds[one, name] for one in sets]) for name in names]
    return sets, [*others, *measured]


def picture(sets, groups):
    most = max(max(speeds) for _, speeds in groups)
    step = next(step * 10**power for power in range(6) for step in (1, 2, 5) if most / (step * 10**power) <= 8)
    scale = HEIGHT / most
    bottom, width = TOP + HEIGHT, MARGIN + len(sets) * (len(groups) * BAR + GAP)
    shapes, left = [], MARGIN
    for g, (name, _) in enumerate([*groups, ("(tokens a second)", [])]):
        if g < len(groups):
            shapes.append(f'<rect x="{left}" y="10" width="12" height="12" fill="{COLOURS[g % len(COLOURS)]}"/>')
        shapes.append(f'<text x="{left + 18}" y="20">{html.escape(name)}</text>')
        left += 40 + 7 * len(name)
    width = max(width, left)
    for i in range(int(most / step) + 1):
        y = bottom - i * step * scale
        shapes.append(f'<path d="M{MARGIN} {y:.1f}H{width}" stroke="#ddd"/>')
        shapes.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{i * step}</text>')
    for s, name in enumerate(sets):
        left = MARGIN + GAP / 2 + s * (len(groups) * BAR + GAP)
        for g, (_, speeds) in enumerate(groups):
            x, height = left + g * BAR, speeds[s] * scale
            shapes.append(f'<rect x="{x}" y="{bottom - height:.1f}" width="{BAR - 3}" height="{height:.1f}" fill="{COLOURS[g % len(COLOURS)]}"/>')
            shapes.append(f'<text x="{x + (BAR - 3) / 2}" y="{bottom - height - 4:.1f}" text-anchor="middle" font-size="10">{speeds[s]:.0f}</text>')
        shapes.append(f'<text x="{left + len(groups) * BAR / 2}" y="{bottom + 18}" text-anchor="middle">{html.escape(name)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 30}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=argparse.FileType(encoding="utf-8"))
    parser.add_argument("--beside", type=beside, action="append", default=[], metavar="NAME=SPEEDS")
    args = parser.parse_args()
    try:
        rows = [row for row in json.load(args.results) if row.get("set") and "tokens_per_second" in row]
    except (ValueError, AttributeError):
        rows = []
    if not rows:
        sys.exit(f"{args.results.name}: no sets (expected what `eesd-run bench --input a.jsonl,b.jsonl --json` prints)")
    sets, groups = bars(rows, args.beside)
    for name, speeds in args.beside:
        if len(speeds) != len(sets):
            sys.exit(f"--beside {name}: {len(speeds)} speeds (expected {len(sets)}, one for each of {', '.join(sets)})")
    print(picture(sets, groups))


if __name__ == "__main__":
    main()
