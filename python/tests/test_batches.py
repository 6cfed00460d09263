"""Many requests side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

import eesd
import pytest
from conftest import PROMPTS


def test_answers_in_order_are_those_of_single_requests(model: eesd.Model) -> None:
    prompts = [PROMPTS[i % 5] for i in range(40)]
    answers = list(model.map(prompts, max_tokens=12, temperature=0.8, seed=3))
    alone = [model.generate(prompt, max_tokens=12, temperature=0.8, seed=3).tokens for prompt in PROMPTS]
    assert [answer.tokens for answer in answers] == [alone[i % 5] for i in range(40)]


def test_answers_as_they_come_have_their_numbers(model: eesd.Model) -> None:
    requests = [eesd.Request(PROMPTS[i % 5], max_tokens=1 + 40 * (i % 4 == 0), ignore_eos=True) for i in range(20)]
    ended = list(model.as_completed(requests))
    assert sorted(index for index, _ in ended) == list(range(20))
    for index, answer in ended:
        assert answer.tokens == model.generate(requests[index].prompt, **requests[index].settings).tokens


def test_a_request_has_settings_of_its_own(model: eesd.Model) -> None:
    requests: list[Union[eesd.Prompt, eesd.Request]] = [PROMPTS[0], eesd.Request(PROMPTS[0], max_tokens=3), eesd.Request(PROMPTS[0], seed=9)]
    several, few, seeded = model.map(requests, max_tokens=5, ignore_eos=True, temperature=0.5, seed=1)
    assert (len(several.tokens), len(few.tokens), len(seeded.tokens)) == (5, 3, 5)
    assert (several.seed, few.seed, seeded.seed) == (1, 1, 9)


def test_requests_are_taken_as_there_is_room(model: eesd.Model) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield PROMPTS[taken % 5]

    before = model.snapshot().totals
    answers = model.map(endless(), max_tokens=2)
    for _ in range(10):
        next(answers)
    assert taken <= 10 + 2 * 2 * model.engine.slots
    answers.close()  # type: ignore[attr-defined]
    after = model.snapshot().totals
    assert after.finished + after.cancelled - before.finished - before.cancelled == taken


def test_one_wrong_request_fails_alone_where_errors_are_returned(model: eesd.Model) -> None:
    cold_one = eesd.Request(PROMPTS[0], temperature=-1)
    requests: list[Union[eesd.Prompt, eesd.Request]] = [PROMPTS[0], cold_one, [1] * 10_000, PROMPTS[1]]
    first, cold, long, last = model.map(requests, max_tokens=4, errors="return")
    assert isinstance(first, eesd.Answer) and isinstance(last, eesd.Answer)
    assert isinstance(cold, eesd.InvalidArgument) and "temperature" in str(cold)
    assert isinstance(long, eesd.TooLong) and "10000 tokens" in str(long)
    with pytest.raises(eesd.InvalidArgument, match="temperature"):
        list(model.map(requests, max_tokens=4))


def test_an_error_of_the_requests_themselves_comes_through(model: eesd.Model) -> None:
    def broken() -> Iterator[str]:
        yield PROMPTS[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(model.map(broken(), max_tokens=4))
    assert model.generate(PROMPTS[0], max_tokens=2).finish == "length"


def test_nothing_comes_of_nothing(model: eesd.Model) -> None:
    assert list(model.map([])) == [] == list(model.as_completed([]))
