#!/usr/bin/env python3
"""Speed-ups of a traced `bench` as if the machine had never stood still.

    eesd-run bench -m MODEL --controllers goodput-ts --input a.jsonl,b.jsonl -r 1 --trace trace.json
    tools/without_stalls.py trace.json

A virtual machine may stop for a tenth of a second, on which a short answer's ratio then hangs. A round that took more than five times the
median of its answer's rounds counts as that median here, of plain decoding and of speculation alike; prompts are left out.
"""

import json
import math
import re
import statistics
import sys

STALL = 5
PLAY = re.compile(r"(.+) on prompts (\d+) to \d+ of (.+)")


def plays(events):
    """By set, prompt and who decoded: milliseconds of its rounds, in order."""
    rounds = [(event["ts"], event["dur"] / 1000) for event in events if event["name"] == "round"]
    found = {}
    for event in events:
        if match := PLAY.fullmatch(event["name"]):
            who, prompt, of = match.groups()
            begin, end = event["ts"], event["ts"] + event["dur"]
            found.setdefault((of, prompt), {})[who] = [took for at, took in rounds if begin <= at < end]
    return found


def without_stalls(rounds):
    """Milliseconds of an answer, and how many of its rounds were stalls."""
    usual = statistics.median(rounds)
    stalls = sum(took > STALL * usual for took in rounds)
    return sum(took if took <= STALL * usual else usual for took in rounds), stalls


def main(path):
    try:
        with open(path, encoding="utf-8") as file:
            trace = json.load(file)
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error} (expected a trace of `bench`)")
    found = plays(trace["traceEvents"] if isinstance(trace, dict) else trace)
    sets = list(dict.fromkeys(of for of, _ in found))
    if not sets or any("off" not in plays or len(plays) < 2 for plays in found.values()):
        sys.exit(f"{path}: no answers of plain decoding beside others (expected a trace of `bench` with --input and -r 1)")
    for who in next(iter(found.values())).keys() - {"off"}:
        logs, all_stalls = 0.0, 0
        for name in sets:
            answers = [[without_stalls(plays[by]) for by in ("off", who)] for (of, _), plays in found.items() if of == name]
            plain, own = (sum(answer[side][0] for answer in answers) for side in (0, 1))
            slowest = min(plain / own for (plain, _), (own, _) in answers)
            all_stalls += sum(stalls for answer in answers for _, stalls in answer)
            logs += math.log(plain / own)
            print(f"{name}: {who} {plain / own:.2f}x, slowest answer {slowest:.2f}x")
        print(f"geometric mean: {math.exp(logs / len(sets)):.2f}x; {all_stalls} rounds were stalls")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
