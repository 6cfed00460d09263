"""Answers as they come, to a thread that waits and to asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from queue import SimpleQueue
from typing import Optional, Union

from ._session import Happening, Session
from .answer import Answer, Token
from .errors import Error
from .request import PlainRequest

__all__ = ["AsyncStream", "Stream"]


class _Open:
    """A request that has been handed in, and is cancelled where nobody wants its answer any more."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._number: Optional[int] = None
        self._last: Union[Answer, Error, None] = None

    def cancel(self) -> None:
        """Ends the answer where it is. What was decoded by then still comes, and `finish` is "cancelled"."""
        if self._last is None and self._number is not None:
            self._session.cancel(self._number)

    def __del__(self) -> None:
        self.cancel()

    def _take(self, happening: Happening) -> Optional[Token]:
        """The token, or None at the end."""
        if isinstance(happening, Token):
            return happening
        self._last = happening
        self._answer()
        return None

    def _answer(self) -> Answer:
        """The answer, once it has ended; what it failed of is raised."""
        if isinstance(self._last, Error):
            raise self._last
        assert isinstance(self._last, Answer)
        return self._last


class Stream(_Open, Iterator[Token]):
    """Tokens as they become certain. Leaving it (`with`, `close`, `cancel`, Ctrl-C while it waits) cancels the request."""

    def __init__(self, session: Session, request: PlainRequest) -> None:
        super().__init__(session)
        self._events: SimpleQueue[Happening] = SimpleQueue()
        self._number = session.submit(request, self._events.put)

    def __next__(self) -> Token:
        if self._last is not None:
            raise StopIteration
        try:
            happening = self._events.get()
        except BaseException: # Ctrl-C
            self.cancel()
            raise
        token = self._take(happening)
        if token is None:
            raise StopIteration
        return token

    def answer(self) -> Answer:
        """The whole answer, waited for; tokens that nobody has taken are passed over."""
        for _ in self:
            pass
        return self._answer()

    def close(self) -> None:
        """Cancels."""
        self.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncStream(_Open, AsyncIterator[Token]):
    """The same for asyncio: `async for`. A task that is cancelled while it waits cancels the request."""

    def __init__(self, session: Session, request: PlainRequest) -> None:
        super().__init__(session)
        self._events: asyncio.Queue[Happening] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(happening: Happening, events: asyncio.Queue[Happening] = self._events) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, happening)
            except RuntimeError: # the loop has ended, and with it whoever waited
                pass

        self._number = session.submit(request, sink)

    async def __anext__(self) -> Token:
        if self._last is not None:
            raise StopAsyncIteration
        try:
            happening = await self._events.get()
        except BaseException: # asyncio.CancelledError
            self.cancel()
            raise
        token = self._take(happening)
        if token is None:
            raise StopAsyncIteration
        return token

    async def answer(self) -> Answer:
        """The whole answer, waited for; tokens that nobody has taken are passed over."""
        async for _ in self:
            pass
        return self._answer()

    async def aclose(self) -> None:
        """Cancels."""
        self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
