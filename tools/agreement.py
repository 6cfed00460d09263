#!/usr/bin/env python3
"""Prints how often tokens that a source proposed were what the text went on with, taken or not, by what they rest on.

    eesd-run bench ... --trace trace.json && tools/agreement.py trace.json [SOURCE]

Reads what the choice among sources believed at the end of each repetition; SOURCE is lookup if left out.
"""

import json
import sys

MATCHED = ["1", "2", "3", "4, 5", "6 to 9", "10 and more"]
KINDS = ["fewer than .6 of places", "not all", "the only one", "all of several"]


def beliefs(trace, source):
    for event in trace if isinstance(trace, list) else trace["traceEvents"]:
        found = event.get("args", {}).get("choice", {}).get("agreement", {}).get(source)
        if event.get("name") == "round" and found:
            yield found


def tests(belief):
    return sum(sum(counts) for row in belief for counts in row)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        trace = json.load(file)
    sums, last = [[[0.0, 0.0] for _ in KINDS] for _ in MATCHED], None
    # A repetition begins knowing nothing.
    for belief in [*beliefs(trace, (sys.argv + ["lookup"])[2]), None]:
        if last and (belief is None or tests(belief) < tests(last) / 2):
            for row, of_last in zip(sums, last):
                for counts, (agreed, not_agreed) in zip(row, of_last):
                    counts[0] += agreed
                    counts[1] += not_agreed
        last = belief
    print("| tokens before it that match |", " | ".join(KINDS), "|")
    print("|---|" + "--:|" * len(KINDS))
    for matched, row in zip(MATCHED, sums):
        cells = [f"{a / (a + b):.2f} ({a + b:.0f})" if a + b else "-" for a, b in row]
        print(f"| {matched} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
