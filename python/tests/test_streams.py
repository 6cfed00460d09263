"""Tokens as they come, cancelling, threads, asyncio."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable

import eesd
import pytest
from conftest import FOLDER, PROMPTS, flood


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Looks until `holds()`. A minute is no measure of speed but the end of all hope."""
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail(what)


def test_a_stream_spells_the_answer(model: eesd.Model) -> None:
    answer = model.generate(PROMPTS[1], max_tokens=40, stop="return")
    stream = model.stream(PROMPTS[1], max_tokens=40, stop="return")
    tokens = list(stream)
    assert [token.id for token in tokens] == answer.tokens
    assert "".join(token.text for token in tokens) == answer.text == stream.answer().text
    assert stream.answer().finish == answer.finish
    assert sum(token.drafted is not None for token in tokens) <= stream.answer().stats.accepted
    assert next(stream, None) is None, "nothing comes after the end"


def test_an_answer_is_waited_for_from_anywhere_in_its_stream(model: eesd.Model) -> None:
    stream = model.stream(PROMPTS[0], max_tokens=20)
    first = next(stream)
    assert stream.answer().tokens[0] == first.id and len(stream.answer().tokens) == 20


def test_leaving_a_stream_cancels_it() -> None:
    with eesd.Model(FOLDER, slots=1, threads=1) as own:
        streams = flood(own)
        cancelled = 0
        with streams.pop():
            cancelled += 1
        streams.pop().close()
        cancelled += 1
        streams.pop()
        gc.collect()
        cancelled += 1
        wait_until(lambda: own.snapshot().totals.cancelled == cancelled, "a stream that was left was not cancelled")
        last = streams.pop()
        last.cancel()
        assert last.answer().finish == "cancelled" and last.answer().tokens == []


def test_many_threads_share_a_model(model: eesd.Model) -> None:
    expected = [model.generate(prompt, max_tokens=16).tokens for prompt in PROMPTS]
    answers: list[list[list[int]]] = [[] for _ in range(6)]

    def ask(own: list[list[int]]) -> None:
        own.extend(model.generate(prompt, max_tokens=16).tokens for prompt in PROMPTS)

    threads = [threading.Thread(target=ask, args=(own,)) for own in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 6


def test_other_threads_run_while_one_waits() -> None:
    """Were the interpreter locked meanwhile, nobody could cancel the answer that is waited for."""
    with eesd.Model(FOLDER, slots=1, threads=1) as own:
        streams = flood(own)
        waited_for = own.stream(PROMPTS[0], max_tokens=4000, ignore_eos=True)
        canceller = threading.Timer(0.05, waited_for.cancel)
        canceller.start()
        assert waited_for.answer().finish == "cancelled"
        canceller.join()
        assert own.snapshot().totals.finished < len(streams)


def submitted(model: eesd.Model) -> int:
    """Requests that have been handed in so far, whatever became of them."""
    now = model.snapshot()
    ended = now.totals.finished + now.totals.failed + now.totals.cancelled
    return ended + now.waiting + now.prefilling + now.decoding + now.swapped_out


@pytest.mark.parametrize(("way", "requests"), [("generate", 1), ("stream", 1), ("map", 2)])
def test_ctrl_c_cancels(way: str, requests: int) -> None:
    ways: dict[str, Callable[[eesd.Model], object]] = {
        "generate": lambda model: model.generate(PROMPTS[0], max_tokens=1000),
        "stream": lambda model: next(model.stream(PROMPTS[0], max_tokens=1000)),
        "map": lambda model: next(model.map(PROMPTS, max_tokens=1000)),
    }
    with eesd.Model(FOLDER, slots=1, threads=1) as own:
        streams = flood(own)

        def interrupt() -> None:
            wait_until(lambda: submitted(own) == len(streams) + requests, "nothing was asked")
            os.kill(os.getpid(), signal.SIGINT)  # as a terminal does

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            ways[way](own)
            interrupter.join()  # an interrupt that comes a little late
        interrupter.join()
        wait_until(lambda: own.snapshot().totals.cancelled == requests, "Ctrl-C cancelled nothing")
        assert own.snapshot().waiting > 0, "others go on"


def test_closing_ends_what_waits() -> None:
    own = eesd.Model(FOLDER, slots=1, threads=1)
    streams = flood(own)
    closer = threading.Timer(0.05, own.close)
    closer.start()
    with pytest.raises(eesd.Closed):
        streams[-1].answer()
    closer.join()
    with pytest.raises(eesd.Closed, match="the model was closed"):
        own.generate(PROMPTS[0])
    with pytest.raises(eesd.Closed, match="the model was closed"):
        own.tokenize("a")
    own.close()


def test_nothing_is_left_of_a_model_that_nobody_holds() -> None:
    from eesd._library import lib

    before = lib.eesd_live_handles()
    own = eesd.Model(FOLDER, slots=1, threads=1, context=256)
    own.generate(PROMPTS[0], max_tokens=4)
    assert lib.eesd_live_handles() == before + 2
    del own
    gc.collect()
    assert lib.eesd_live_handles() == before


def test_asyncio(model: eesd.Model) -> None:
    async def all_at_once() -> list[eesd.Answer]:
        return await asyncio.gather(*(model.generate_async(prompt, max_tokens=16) for prompt in PROMPTS))

    async def streamed() -> list[int]:
        return [token.id async for token in model.stream_async(PROMPTS[0], max_tokens=16)]

    answers = asyncio.run(all_at_once())
    assert [answer.tokens for answer in answers] == [model.generate(prompt, max_tokens=16).tokens for prompt in PROMPTS]
    assert asyncio.run(streamed()) == answers[0].tokens


def test_a_cancelled_task_cancels_its_request() -> None:
    with eesd.Model(FOLDER, slots=1, threads=1) as own:
        streams = flood(own)

        async def impatient() -> None:
            await asyncio.wait_for(own.generate_async(PROMPTS[0], max_tokens=4000), 0.05)

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(impatient())
        wait_until(lambda: own.snapshot().totals.cancelled == 1, "the request of a cancelled task was not cancelled")
        assert streams


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_is_told_that_it_has_no_engine(model: eesd.Model) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            model.generate(PROMPTS[0])
            os.write(write, b"an answer")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read().startswith("Closed: the model was opened before this process was forked")
    assert model.generate(PROMPTS[0], max_tokens=2).finish == "length"
