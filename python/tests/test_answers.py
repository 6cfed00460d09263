"""Answers are those of `eesd-run generate`, token for token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import eesd
import pytest
from conftest import FOLDER, PROMPTS, eesd_run


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_those_of_eesd_run(model: eesd.Model, prompt: str) -> None:
    answer = model.generate(prompt, max_tokens=48)
    (line,) = eesd_run("-p", prompt, "-n", 48)
    assert answer.tokens == line["tokens"]
    assert answer.text == line["text"]
    assert answer.finish == line["finish"]


def test_settings_are_those_of_lines(model: eesd.Model) -> None:
    several: list[dict[str, Any]] = [
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.2, "seed": 7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.8, "seed": 1, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1},
        {"temperature": 0.8, "seed": 2, "verify": "coupled", "draft": "lookup", "draft_max": 3},
        {"logit_bias": {"10": 4.0, "11": -3.5}, "suppress_tokens": [12, 13], "bad_words": [[14], [15, 16]]},
        {"stop": ["return", "\n\n"], "min_tokens": 3},
        {"stop": "self"},
        {"stop_token_ids": [10, 200], "ignore_eos": True},
        {"speculate": False, "max_tokens": 9},
    ]
    lines = [{"prompt": PROMPTS[1], "max_tokens": 32, **settings} for settings in several]
    expected = eesd_run("--input", "-", input="".join(json.dumps(line) + "\n" for line in lines))
    assert len(expected) == len(several)
    for line, settings in zip(sorted(expected, key=lambda line: line["index"]), several):
        if "logit_bias" in settings:
            settings["logit_bias"] = {int(token): bias for token, bias in settings["logit_bias"].items()}
        answer = model.generate(PROMPTS[1], **{"max_tokens": 32, **settings})
        assert (answer.tokens, answer.text, answer.finish) == (line["tokens"], line["text"], line["finish"]), settings
        assert (answer.seed, answer.stop) == (line.get("seed"), line.get("stop")), settings


@pytest.mark.parametrize("exit_block", [1, 3, FOLDER / "exit-1.safetensors", None])
@pytest.mark.parametrize("drafts", [False, True])
def test_exit_blocks_change_no_token(exit_block: Any, drafts: bool) -> None:
    controller = "off" if not drafts else "fixed:4" if exit_block else None
    with eesd.Model(FOLDER, exit_block=exit_block, controller=controller, context=256, slots=1, threads=1) as other:
        answer = other.generate(PROMPTS[0], max_tokens=32)
    assert answer.tokens == eesd_run("-p", PROMPTS[0], "-n", 32)[0]["tokens"]
    assert (answer.stats.drafted > 0) <= drafts
    assert other.engine.exit_layer == {1: 1, 3: 3, None: 0}.get(exit_block, 1) * drafts
    assert sum(answer.stats.draft_lengths) == answer.stats.rounds


@pytest.mark.parametrize("quantize", ["q8", "q4"])
def test_quantised_answers_are_those_of_eesd_run(quantize: str) -> None:
    with eesd.Model(FOLDER, quantize=quantize, kv="q8", context=256, slots=1, threads=1) as other:
        assert other.info.quantized == quantize and other.engine.kv == "q8"
        answer = other.generate(PROMPTS[0], max_tokens=32)
    (line,) = eesd_run("-p", PROMPTS[0], "-n", 32, "--quantize", quantize, "--kv", "q8")
    assert answer.tokens == line["tokens"]


def test_the_model_that_comes_along_needs_no_folder(model: eesd.Model) -> None:
    with eesd.Model(slots=1, threads=1, context=256) as bundled:
        assert bundled.info.fingerprint == model.info.fingerprint
        assert bundled.generate(PROMPTS[0], max_tokens=8).tokens == model.generate(PROMPTS[0], max_tokens=8).tokens


def test_tokens_are_a_prompt_too(model: eesd.Model) -> None:
    tokens = model.tokenize(PROMPTS[0])
    assert model.generate(tokens, max_tokens=16).tokens == model.generate(PROMPTS[0], max_tokens=16).tokens
    assert model.detokenize(tokens) == PROMPTS[0]
    assert model.tokenize("") in ([], model.tokenize("a")[:1])


def test_conversations_go_through_the_template(chat_folder: Path) -> None:
    messages = [{"role": "system", "content": "Bé brief."}, {"role": "user", "content": "Add two numbers."}]
    with eesd.Model(chat_folder, slots=1, threads=1, context=256) as chat:
        assert chat.info.has_chat_template
        assert chat.apply_chat_template(messages) == "# system: Bé brief.\n# user: Add two numbers.\ndef answer("
        answer = chat.generate(messages, max_tokens=24)
    line = json.dumps({"messages": messages, "max_tokens": 24})
    assert answer.tokens == eesd_run("--input", "-", folder=chat_folder, input=line)[0]["tokens"]


def test_log_probabilities(model: eesd.Model) -> None:
    answer = model.generate(PROMPTS[0], max_tokens=6, logprobs=3)
    (line,) = eesd_run("-p", PROMPTS[0], "-n", 6, "--logprobs", 3)
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.tokens)
    for at, expected in zip(answer.logprobs, line["logprobs"]):
        assert at.logprob == pytest.approx(expected["logprob"])
        assert [token for token, _ in at.top] == [top["token"] for top in expected["top"]]
        assert at.top[0][1] == at.logprob, "greedy takes the most probable one"
    assert model.generate(PROMPTS[0], max_tokens=2).logprobs is None
    (token,) = model.stream(PROMPTS[0], max_tokens=1, logprobs=0)
    assert token.logprobs is not None and token.logprobs.logprob == answer.logprobs[0].logprob


def test_a_forbidden_token_does_not_come(model: eesd.Model) -> None:
    first = model.generate(PROMPTS[0], max_tokens=1).tokens[0]
    other = model.generate(PROMPTS[0], max_tokens=1, logit_bias={first: -math.inf})
    assert other.tokens != [first]


def test_statistics(model: eesd.Model) -> None:
    before = model.snapshot()
    answer = model.generate(PROMPTS[2], max_tokens=40)
    after = model.snapshot()
    stats = answer.stats
    assert stats.generated == len(answer.tokens) and stats.prompt_tokens == len(model.tokenize(PROMPTS[2]))
    assert stats.generated == stats.rounds + stats.accepted
    assert (sum(stats.drafted_at), sum(stats.accepted_at)) == (stats.drafted, stats.accepted)
    assert 0 < stats.first_token and 0 < stats.decode and 0 < stats.tokens_per_second
    assert after.totals.finished == before.totals.finished + 1
    assert after.totals.generated == before.totals.generated + stats.generated
    assert (after.waiting, after.prefilling, after.decoding) == (0, 0, 0)
    assert after.pages * 64 == model.engine.cache_tokens
    assert (model.info.layers, model.engine.slots) == (8, 4)
