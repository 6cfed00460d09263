"""Two replicas behind one address."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import eesd
import pytest
import serve as example
from conftest import MODEL
from ray import serve

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]
ADDRESS = f"http://127.0.0.1:{PORT}"
PROMPT = "def fibonacci(n):"


@pytest.fixture(scope="module")
def served(cluster: None) -> Iterator[None]:
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    flags = ["-m", str(MODEL), "-b", "1"]
    serve.run(example.application(flags, replicas=2, cpus=1, side_by_side=64))
    yield
    serve.shutdown()


def post(body: dict[str, Any], path: str = "/v1/completions") -> Any:
    headers = {"Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(ADDRESS + path, json.dumps(body).encode(), headers))


def test_answers_are_the_engines(served: None) -> None:
    bodies = [{"prompt": f"# {i}\n{PROMPT}", "max_tokens": 12, "temperature": 0.8, "seed": i} for i in range(20)]
    with ThreadPoolExecutor(8) as clients:
        got = [json.load(answer)["choices"][0]["text"] for answer in clients.map(post, bodies)]
    with eesd.Model(MODEL, threads=1) as model:
        requests = (eesd.Request(**body) for body in bodies)  # type: ignore[arg-type]
        assert got == [answer.text for answer in model.map(requests)]


def test_streams_and_errors_come_as_they_are(served: None) -> None:
    with post({"prompt": PROMPT, "max_tokens": 8, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]" and len(events) > 1
    with pytest.raises(urllib.error.HTTPError) as raised:
        post({"prompt": PROMPT, "max_tokns": 8})
    assert raised.value.code == 400 and json.load(raised.value)["error"]["param"] == "max_tokns"


def requests_now() -> dict[str, dict[str, float]]:
    """What each replica says of its requests, by the time that it began."""
    seen: dict[str, dict[str, float]] = {}
    for _ in range(200):
        page = urllib.request.urlopen(ADDRESS + "/metrics").read().decode()
        (began,) = re.findall(r"^eesd_start_time_seconds(?:\{\})? (\S+)$", page, re.MULTILINE)
        counts = re.findall(r'^eesd_requests(?:_ended_total)?\{(?:state|outcome)="(\w+)"\} (\S+)$', page, re.MULTILINE)
        seen[began] = {name: float(count) for name, count in counts}
        if len(seen) == 2:
            break
    return seen


def total(name: str) -> float:
    return sum(counts[name] for counts in requests_now().values())


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_cancelled(served: None, stream: bool) -> None:
    """Forty answers of a thousand tokens, one at a time on each replica: most have not begun when their clients go."""
    before = total("cut_short")
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1000, "ignore_eos": True, "stream": stream})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(40)]
    for client in clients:
        client.sendall((head + body).encode())
    clients[0].recv(1)
    for client in clients:
        client.close()
    for _ in range(600):
        if total("cut_short") > before and total("waiting") + total("prefilling") + total("decoding") == 0:
            return
        time.sleep(0.1)
    pytest.fail(f"clients went away, and their requests stayed: {requests_now()}")
