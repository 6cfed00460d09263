#!/usr/bin/env python3
"""Draws some rounds of a trace of `eesd-run bench --trace` as a picture.

    tools/draw_trace.py trace.json "goodput-ts on prompts 0 to 0" --rounds 12 > rounds.svg

The second argument is the name of a range of the trace: the rounds are the first ones inside it, after --skip of them.
One line per range that is open at a time; above each round, what its first sequence drafted and what was accepted.
"""

import argparse
import html
import json
import sys

COLOURS = {"prefill": "#8d99ae", "round": "#dfe3ea", "draft step": "#3a7ca5", "draft loop": "#3a7ca5", "verify": "#2f9e6e"}
OTHER = "#c8553d"
WIDTH, LINE, MARGIN = 960, 34, 70


def inside(event, outer):
    start, end = outer["ts"], outer["ts"] + outer["dur"]
    return event["tid"] == outer["tid"] and start <= event["ts"] and event["ts"] + event["dur"] <= end + 0.001


def label(event):
    sequences = event["args"].get("sequences")
    if event["name"] != "round" or not sequences:
        return ""
    return f"{sequences[0]['drafted']} → {sequences[0]['accepted']}"


def box(event, begin, scale, top, height):
    x, width = MARGIN + (event["ts"] - begin) * scale, max(event["dur"] * scale, 0.6)
    colour = COLOURS.get(event["name"], OTHER)
    title = html.escape(f"{event['name']}: {event['dur'] / 1000:.3f} ms")
    return f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" fill="{colour}"><title>{title}</title></rect>'


def picture(rounds, events):
    begin, end = rounds[0]["ts"], rounds[-1]["ts"] + rounds[-1]["dur"]
    scale = (WIDTH - MARGIN - 10) / (end - begin)
    top, shapes = 40, []
    for event in rounds:
        shapes.append(box(event, begin, scale, top, LINE - 6))
        x = MARGIN + (event["ts"] + event["dur"] / 2 - begin) * scale
        shapes.append(f'<text x="{x:.1f}" y="{top - 8}" text-anchor="middle">{html.escape(label(event))}</text>')
        shapes += [box(part, begin, scale, top + LINE, LINE - 6) for part in events if part is not event and inside(part, event)]
    names = [("round", top), ("parts", top + LINE)]
    shapes += [f'<text x="8" y="{y + 19}">{name}</text>' for name, y in names]
    bottom = top + 2 * LINE + 8
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 500, 1e9) if (end - begin) / 1000 / s <= 10)
    for i in range(int((end - begin) / 1000 / step) + 1):
        x = MARGIN + i * step * 1000 * scale
        shapes.append(f'<path d="M{x:.1f} {bottom - 8}v6" stroke="#555"/>')
        shapes.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{i * step:g}</text>')
    shapes.append(f'<text x="8" y="{bottom + 14}">ms</text>')
    used = [name for name in ("draft step", "draft loop", "verify", "accept") if any(e["name"] == name for e in events)]
    for i, name in enumerate(used):
        x = MARGIN + 130 * i
        shapes.append(f'<rect x="{x}" y="{bottom + 28}" width="12" height="12" fill="{COLOURS.get(name, OTHER)}"/>')
        shapes.append(f'<text x="{x + 18}" y="{bottom + 38}">{name}</text>')
    shapes.append(f'<text x="{MARGIN + 130 * len(used)}" y="{bottom + 38}">above a round: drafted → accepted</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 52}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=argparse.FileType(encoding="utf-8"))
    parser.add_argument("within")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--skip", type=int, default=0)
    args = parser.parse_args()
    events = json.load(args.trace)["traceEvents"]
    outer = [event for event in events if event["name"] == args.within]
    if not outer:
        names = sorted({event["name"] for event in events if " on prompts " in event["name"]})
        sys.exit(f"{args.trace.name}: no range {args.within!r} (there are {', '.join(names)})")
    within = sorted((event for event in events if inside(event, outer[0])), key=lambda event: event["ts"])
    rounds = [event for event in within if event["name"] == "round"][args.skip :][: args.rounds]
    if not rounds:
        sys.exit(f"{args.trace.name}: {args.within!r} has no rounds after the first {args.skip}")
    parts = [event for event in within if event["name"] not in (args.within, "round")]
    print(picture(rounds, parts))


if __name__ == "__main__":
    main()
