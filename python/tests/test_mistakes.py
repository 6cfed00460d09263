"""Mistakes are exceptions that say what was found and what was expected."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import eesd
import pytest
from conftest import FOLDER, PROMPTS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens: -1"),
        ({"max_tokens": "12"}, "max_tokens: '12'"),
        ({"temperature": "hot"}, "temperature: 'hot'"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"logprobs": 101}, "logprobs"),
        ({"logprobs": -1}, "logprobs: -1"),
        ({"logit_bias": {100_000: 1.0}}, "100000"),
        ({"suppress_tokens": [-1]}, "suppress_tokens"),
        ({"stop": 3}, "stop: 3"),
        ({"stop": [3]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"bad_words": [[]]}, "bad_words"),
        ({"verify": "never"}, "verify: 'never'"),
        ({"draft": "oracle"}, "draft"),
        ({"seed": 1.5}, "seed: 1.5"),
    ],
)
def test_wrong_settings(model: eesd.Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(eesd.InvalidArgument, match=message):
        model.generate(PROMPTS[0], **settings)
    assert isinstance(eesd.InvalidArgument(), ValueError)


def test_a_setting_that_there_is_not(model: eesd.Model) -> None:
    with pytest.raises(TypeError, match="temprature: there is no such setting .expected one of .*temperature"):
        model.generate(PROMPTS[0], temprature=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: .*expected a text, tokens, or messages"),
        (3, "prompt: 3"),
        (["a"], "prompt: "),
        ([100_000], "100000"),
        ([{"role": "user"}], r'^"messages"\[0\]: "content" is missing'),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 3}], r'^"messages"\[1\]: "content" is 3'),
        ([{"role": "user", "content": object()}], "messages: .* is a object .expected what JSON can say"),
    ],
)
def test_wrong_prompts(model: eesd.Model, prompt: Any, message: str) -> None:
    with pytest.raises(eesd.InvalidArgument, match=message):
        model.generate(prompt)


def test_a_model_without_a_template_continues_text(model: eesd.Model) -> None:
    with pytest.raises(eesd.Unsupported, match="no chat template") as raised:
        model.generate([{"role": "user", "content": "Hello"}])
    assert raised.value.status == "UNSUPPORTED"


def test_no_more_wait_than_may() -> None:
    with eesd.Model(FOLDER, slots=1, max_waiting=1, threads=1, context=4096) as small:
        assert small.engine.max_waiting == 1
        with contextlib.ExitStack() as streams, pytest.raises(eesd.Overloaded, match="expected 2 at most") as raised:
            for _ in range(3):
                streams.enter_context(small.stream(PROMPTS[0], max_tokens=4000, ignore_eos=True))
        assert raised.value.status == "OVERLOADED"
        # The engine answers after it has ended those. Batches leave as many waiting as may.
        assert small.snapshot().waiting == 0
        assert len(list(small.map(PROMPTS * 2, max_tokens=2))) == 2 * len(PROMPTS)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with eesd.Model(FOLDER, draft="shared", slots=1, threads=1, context=256) as sharing:
        sharing.generate(PROMPTS[0], max_tokens=8)
        with pytest.raises(eesd.IoFailed, match="nowhere") as raised:
            sharing.write_draft_index(tmp_path / "nowhere" / "index")
        assert raised.value.status == "IO_FAILED" and isinstance(raised.value, OSError)
        sharing.write_draft_index(tmp_path / "index")
    with eesd.Model(FOLDER, draft_index=tmp_path / "index", slots=1, threads=1, context=256) as later:
        assert later.generate(PROMPTS[0], max_tokens=8).finish == "length"


def test_too_long(model: eesd.Model) -> None:
    with pytest.raises(eesd.TooLong, match="the prompt has 10000 tokens"):
        model.generate([1] * 10_000)


@pytest.mark.parametrize(
    ("path", "settings", "kind", "message"),
    [
        ("nowhere", {}, eesd.LoadFailed, "nowhere"),
        (FOLDER, {"exit_block": 5}, eesd.LoadFailed, "exit_layer: 5"),
        (FOLDER, {"exit_block": 0}, eesd.InvalidArgument, "exit_block: 0"),
        (FOLDER, {"exit_block": "nothing.safetensors"}, eesd.LoadFailed, "nothing.safetensors"),
        (FOLDER, {"quantize": "q5"}, eesd.InvalidArgument, "quantize: .q5"),
        (FOLDER, {"slots": 0}, eesd.InvalidArgument, "slots"),
        (FOLDER, {"slots": -1}, eesd.InvalidArgument, "slots: -1"),
        (FOLDER, {"threads": "two"}, eesd.InvalidArgument, "threads"),
        (FOLDER, {"device": "tpu"}, eesd.Error, "tpu"),
        (FOLDER, {"controller": "none"}, eesd.InvalidArgument, "controller"),
        (FOLDER, {"kv": "q2"}, eesd.InvalidArgument, "kv"),
    ],
)
def test_what_cannot_be_opened(path: Any, settings: dict[str, Any], kind: type[eesd.Error], message: str) -> None:
    with pytest.raises(kind, match=message):
        eesd.Model(path, **settings)


def test_a_text_is_not_a_batch(model: eesd.Model) -> None:
    with pytest.raises(eesd.InvalidArgument, match="requests: a text"):
        list(model.map(PROMPTS[0]))
    with pytest.raises(eesd.InvalidArgument, match="errors: 'ignore'"):
        list(model.map(PROMPTS, errors="ignore"))  # type: ignore[call-overload]


def test_the_engines_messages_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in FOLDER.iterdir():
        (tmp_path / file.name).symlink_to(file)
    with caplog.at_level(logging.INFO, "eesd"):
        eesd.Model(tmp_path, slots=1, context=256).close()
    assert any("promises most" in record.message for record in caplog.records)
    assert all(record.name == "eesd" for record in caplog.records)
