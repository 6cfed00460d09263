"""An engine's session, and the thread that takes what happens in it to whoever waits for it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Callable, Union

from ._library import check, failure, ffi, lib, versioned
from .answer import Answer, Snapshot, Token, read_answer, read_snapshot, read_token
from .errors import Closed, Error
from .request import PlainRequest

__all__ = ["Happening", "Session", "Sink"]

#: What happens to a request: tokens, and one last thing, which is none.
Happening = Union[Token, Answer, Error]

#: Takes what happens to one request. It is called on the thread of events, and must be quick.
Sink = Callable[[Happening], None]


class _Routes:
    """Whose events are whose. Shared by a session and its thread, which keeps no session alive."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sinks: dict[int, Sink] = {}

    def deliver(self, request: int, happening: Happening) -> None:
        with self.lock:
            last = not isinstance(happening, Token)
            sink = self.sinks.pop(request, None) if last else self.sinks.get(request)
        if sink is not None:
            sink(happening)

    def close(self, error: Error) -> None:
        with self.lock:
            open_requests = list(self.sinks)
        for request in open_requests:
            self.deliver(request, error)


class Session:
    """Owns the session of the C interface."""

    def __init__(self, model: Any, params: Any) -> None:
        handle = ffi.new("eesd_session **")
        check(lib.eesd_session_create(model, params, handle))
        self._handle = handle[0]
        self._process = os.getpid()
        self._routes = _Routes()
        thread = threading.Thread(target=_pull, args=(self._handle, self._routes), name="eesd-events", daemon=True)
        #: Frees the session, once; also where nobody has a hold of it any more, and at the end of the program.
        self.close = weakref.finalize(self, _end, self._handle, thread, self._process)
        thread.start()

    def handle(self) -> Any:
        """The session, in the process that it belongs to."""
        if os.getpid() != self._process:
            raise Closed("the model was opened before this process was forked, where its threads stayed: open it here")
        if not self.close.alive:
            raise Closed("the model was closed")
        return self._handle

    def submit(self, request: PlainRequest, sink: Sink) -> int:
        """Hands in a request; returns its number."""
        number = ffi.new("uint64_t *")
        # Its first events may be there before its number is.
        with self._routes.lock:
            check(lib.eesd_submit(self.handle(), request.structure, number))
            self._routes.sinks[number[0]] = sink
        return int(number[0])

    def cancel(self, request: int) -> None:
        """Ends a request where it is, if it has not ended."""
        if self.close.alive and os.getpid() == self._process:
            lib.eesd_cancel(self._handle, request)

    def info(self) -> Any:
        """An `eesd_session_info`."""
        info = versioned("eesd_session_info")
        check(lib.eesd_session_get_info(self.handle(), info))
        return info

    def snapshot(self) -> Snapshot:
        """What it is doing."""
        snapshot = versioned("eesd_snapshot")
        check(lib.eesd_session_get_snapshot(self.handle(), snapshot))
        return read_snapshot(snapshot)


def _pull(session: Any, routes: _Routes) -> None:
    """The thread of events."""
    event = versioned("eesd_event")
    while True:
        status = lib.eesd_next_event(session, -1, event)
        if status != lib.EESD_STATUS_OK:
            return routes.close(failure(status))
        routes.deliver(event.request, _read(event))


def _read(event: Any) -> Happening:
    if event.kind == lib.EESD_EVENT_KIND_TOKEN:
        return read_token(event.token)
    if event.kind == lib.EESD_EVENT_KIND_DONE:
        return read_answer(event.completion)
    return failure(event.status, ffi.string(event.message).decode())


def _end(session: Any, thread: threading.Thread, process: int) -> None:
    if os.getpid() != process:
        return
    check(lib.eesd_session_free(session))
    if thread is not threading.current_thread():
        thread.join()
