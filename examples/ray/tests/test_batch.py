"""A data set over two actors: killed, gone on with, and equal to one machine's answers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import batch
import eesd
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import MODEL

BEGINNINGS = ["def fibonacci(n):", "class Stack:\n    def push(self, item):", "import os\n\nfor name in", "for i in range(10):"]


def prompts(count: int) -> list[dict[str, Any]]:
    """Greedy ones and sampled ones, each with a length of its own."""
    rows = [{"id": i, "prompt": f"# {i}\n{BEGINNINGS[i % 4]}", "max_tokens": 8 + i % 9} for i in range(count)]
    return [row | ({"temperature": 0.8, "seed": row["id"]} if row["id"] % 3 == 0 else {}) for row in rows]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in output.glob("*.jsonl") for line in part.read_text().splitlines()]


def on_one_machine(rows: list[dict[str, Any]]) -> dict[int, list[int]]:
    with eesd.Model(MODEL, threads=1) as model:
        several = model.map(batch.request({key: value for key, value in row.items() if key != "id"}) for row in rows)
        return {row["id"]: answer.tokens for row, answer in zip(rows, several)}


def actors() -> list[int]:
    """Processes of this program's Ray that hold an engine."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes().split(b"\0")[0]
            if title.startswith(b"ray::") and b"Answerer" in title and b"libeesd.so" in (process / "maps").read_bytes():
                found.append(int(process.name))
        except (OSError, ValueError):
            pass
    return found


def arguments(source: Path, output: Path) -> Any:
    return batch.parse([str(source), str(output), "--model", str(MODEL), "--actors", "2", "--batch", "20", "--context", "128"])


def test_a_thousand_prompts_are_answered_once_though_an_actor_is_killed(cluster: None, tmp_path: Path) -> None:
    rows = prompts(1000)
    source, output = written(tmp_path / "prompts.jsonl", rows), tmp_path / "answers"
    killed: list[int] = []

    def kill_half_way() -> None:
        while not killed:
            time.sleep(0.002)
            if len(list(output.glob("*.jsonl"))) >= 25 and (engines := actors()):
                os.kill(engines[0], signal.SIGKILL)
                killed.append(len(list(output.glob("*.jsonl"))))

    killer = threading.Thread(target=kill_half_way, daemon=True)
    killer.start()
    batch.run(arguments(source, output))
    assert killed and 25 <= killed[0] < 50, "no actor was killed while there was work"
    got = answers(output)
    assert sorted(line["id"] for line in got) == list(range(1000)), "each is answered once"
    assert {line["id"]: line["tokens"] for line in got} == on_one_machine(rows)


def test_what_has_answers_is_not_answered_again(cluster: None, tmp_path: Path) -> None:
    rows, output = prompts(100), tmp_path / "answers"
    assert batch.run(arguments(written(tmp_path / "some.jsonl", rows[:60]), output)) == (60, 0)
    before = {part.name: part.stat().st_mtime_ns for part in output.glob("*.jsonl")}
    source = written(tmp_path / "all.jsonl", rows)
    assert batch.run(arguments(source, output)) == (40, 0)
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    assert sorted(line["id"] for line in answers(output)) == list(range(100))
    assert batch.run(arguments(source, output)) == (0, 0)


def test_parquet_and_prompts_that_fail(cluster: None, tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": BEGINNINGS[0]}, {"id": "b", "prompt": None}, {"id": "c", "prompt": "x = 1\n" * 500}]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    assert batch.run(arguments(tmp_path / "prompts.parquet", tmp_path / "answers")) == (1, 2)
    errors = {line["id"]: line.get("error") for line in answers(tmp_path / "answers")}
    assert errors["a"] is None and "prompt: None" in errors["b"] and "context of 128" in errors["c"]


@pytest.mark.parametrize(("row", "message"), [({"prompt": "a"}, 'no "id"'), ({"id": 1, "temprature": 1}, "temprature .expected")])
def test_columns_that_are_wrong(cluster: None, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        batch.run(arguments(written(tmp_path / "prompts.jsonl", [row]), tmp_path / "answers"))
