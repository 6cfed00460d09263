"""Answers a data set of prompts with Ray Data: an engine on each of several actors, on as many machines as the cluster has.

    python batch.py prompts.jsonl answers --model DIR --actors 4 --cpus 8

The input is JSON lines or Parquet: `id` (unique), `prompt` or `messages`, and settings by the names of `eesd.Settings`, which go before
the flags. The output is a folder that all machines see, with JSON lines in a file for each batch. A file appears when it is whole, and
the same batch always has the same name: what is answered twice because an actor died is there once. Run it again after a stop, or with
a longer input, and only what is missing is answered; failures of single prompts are answers too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import eesd
import pyarrow as pa
import ray
import ray.data


class Answerer:
    """An actor with an engine of its own."""

    def __init__(self, output: str, model: dict[str, Any], settings: eesd.Settings) -> None:
        self.output = Path(output)
        self.model = eesd.Model(**model)
        self.settings = settings

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers a batch, and writes the answers down; returns how many there are, and how many failed."""
        rows = [{key: value for key, value in row.items() if value is not None} for row in batch.to_pylist()]
        ids = [row.pop("id") for row in rows]
        answers = self.model.map(map(request, rows), errors="return", **self.settings)
        lines = [line(id, answer) for id, answer in zip(ids, answers)]
        name = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]
        with NamedTemporaryFile("w", dir=self.output, prefix=".", delete=False, encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        os.replace(file.name, self.output / f"{name}.jsonl")
        failed = sum("error" in line for line in lines)
        return pa.table({"answered": [len(lines) - failed], "failed": [failed]})


def request(row: dict[str, Any]) -> eesd.Request:
    """The request of a row. A row without prompt and messages fails as a request, alone."""
    prompt = row.pop("prompt", None)
    messages = row.pop("messages", None)
    return eesd.Request(messages if prompt is None else prompt, **row)


def line(id: Any, answer: eesd.Answer | eesd.Error) -> dict[str, Any]:
    """What is written of an answer."""
    if isinstance(answer, eesd.Error):
        return {"id": id, "error": str(answer)}
    return {"id": id, "text": answer.text, "tokens": answer.tokens, "finish": answer.finish, "seed": answer.seed}


def answered(output: Path) -> set[Any]:
    """The ids that have answers."""
    lines = (line for part in output.glob("*.jsonl") for line in part.read_text(encoding="utf-8").splitlines())
    return {json.loads(line)["id"] for line in lines}


def check(source: str, columns: set[str]) -> None:
    """Ends the program where an input has no ids, or asks for what there is not."""
    known = {"id", "prompt", "messages", *eesd.Settings.__annotations__}
    if "id" not in columns:
        raise SystemExit(f"{source}: no \"id\" (expected one for each prompt; found {', '.join(sorted(columns))})")
    if unknown := columns - known:
        raise SystemExit(f"{source}: {', '.join(sorted(unknown))} (expected some of {', '.join(sorted(known))})")


def run(arguments: argparse.Namespace) -> tuple[int, int]:
    """Answers what has no answer yet; returns how many were answered, and how many failed."""
    output = Path(arguments.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    read = ray.data.read_parquet if arguments.input.endswith(".parquet") else ray.data.read_json
    prompts = read(arguments.input)
    check(arguments.input, set(prompts.columns()))
    done = ray.put(answered(output))

    def missing(batch: pa.Table) -> pa.Table:
        ids = ray.get(done)
        return batch.filter(pa.array([id not in ids for id in batch["id"].to_pylist()], pa.bool_()))

    model = {"path": arguments.model, "slots": arguments.slots, "threads": arguments.cpus, "context": arguments.context}
    settings = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature, "seed": arguments.seed}
    answers = (
        # Many blocks, so that no actor is without work while another one has a lot.
        prompts.map_batches(missing, batch_format="pyarrow")
        .repartition(target_num_rows_per_block=arguments.batch)
        .map_batches(
            Answerer,
            fn_constructor_args=(
                str(output),
                {name: value for name, value in model.items() if value is not None},
                {name: value for name, value in settings.items() if value is not None},
            ),
            batch_size=arguments.batch,
            batch_format="pyarrow",
            num_cpus=arguments.cpus,
            compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        )
    )
    counts = [(row["answered"], row["failed"]) for row in answers.iter_rows()]
    return sum(answered for answered, _ in counts), sum(failed for _, failed in counts)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", help="JSON lines, or Parquet (.parquet)")
    parser.add_argument("output", help="folder for the answers, which all machines see")
    parser.add_argument("--model", help="folder or GGUF file, at the same place on all machines")
    parser.add_argument("--actors", type=int, default=2, help="engines [2]")
    parser.add_argument("--cpus", type=int, default=1, help="cores, and threads, of each [1]")
    parser.add_argument("--slots", type=int, default=8, help="prompts that one works on side by side [8]")
    parser.add_argument("--context", type=int, help="longest sequence in tokens")
    parser.add_argument("--batch", type=int, default=64, help="prompts in one file of answers [64]")
    parser.add_argument("--max-tokens", type=int, help="where a prompt does not say")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int)
    return parser.parse_args(words)


if __name__ == "__main__":
    now_answered, failed = run(parse())
    print(f"{now_answered} answered, {failed} failed")
