"""Replicas of `eesd-run serve` behind one address, by Ray Serve.

    python serve.py --replicas 4 --cpus 8 --port 8000 -- -m DIR -b 16

What follows `--` are flags of `eesd-run serve`. Each replica runs a server of its own on a free port of its machine, and passes requests
on as they are: all endpoints and fields are the server's. Who goes away from Ray's proxy is taken away from the server too, which
cancels their request at once.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
from collections.abc import AsyncIterator
from typing import IO

import aiohttp
import eesd.server
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

#: Headers of one connection, which say nothing of the next.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}


@serve.deployment
class Replica:
    """One server, and the way to it."""

    def __init__(self, flags: list[str]) -> None:
        command = [str(eesd.server.command()), "serve", *flags, "--host", "127.0.0.1", "--port", "0"]
        self.server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.server.stderr is not None
        self.address = address(self.server.stderr)
        # Whoever writes has to be read.
        threading.Thread(target=self.server.stderr.read, daemon=True).start()
        self.client: aiohttp.ClientSession | None = None

    async def __call__(self, request: Request) -> Response:
        """Passes a request on, and its answer back as it comes."""
        if self.client is None:
            # No limits but the server's own.
            limits = {"timeout": aiohttp.ClientTimeout(total=None), "connector": aiohttp.TCPConnector(limit=0)}
            self.client = aiohttp.ClientSession(self.address, auto_decompress=False, **limits)
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        # Cancelled where the client goes away before there is an answer; the connection is closed then.
        answer = await self.client.request(
            request.method, path, data=await request.body(), headers=passed_on(request.headers), allow_redirects=False
        )

        async def body() -> AsyncIterator[bytes]:
            # Left where the client goes away during it.
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        return StreamingResponse(body(), answer.status, passed_on(answer.headers))

    async def check_health(self) -> None:
        """Has the replica replaced where its server is gone."""
        if (code := self.server.poll()) is not None:
            raise RuntimeError(f"eesd-run serve has ended with code {code}")

    def __del__(self) -> None:
        """The server ends with its replica. Ray Serve has waited for the answers under way by then."""
        self.server.terminate()
        self.server.wait()


def address(notes: IO[str]) -> str:
    """The address that a server tells once it answers."""
    told = []
    for note in notes:
        told.append(note)
        if note.startswith("serving "):
            return next(word.rstrip(",") for word in note.split() if word.startswith("http://"))
    raise RuntimeError(f"eesd-run serve did not start: {''.join(told)}")


def passed_on(headers: object) -> dict[str, str]:
    """Headers for the other side."""
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}  # type: ignore[attr-defined]


def application(flags: list[str], replicas: int, cpus: int, side_by_side: int) -> serve.Application:
    """So many replicas.

    side_by_side: requests that each is given at a time; more wait in Ray's proxy.
    """
    options = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": cpus}, "max_ongoing_requests": side_by_side}
    return Replica.options(**options).bind([*flags, "--threads", str(cpus)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="cores, and threads, of each [1]")
    parser.add_argument("--side-by-side", type=int, default=32, help="requests that one is given at a time [32]")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("flags", nargs="*", help="flags of eesd-run serve, after --")
    arguments = parser.parse_args()
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    app = application(arguments.flags, arguments.replicas, arguments.cpus, arguments.side_by_side)
    serve.run(app, blocking=True)


if __name__ == "__main__":
    main()
