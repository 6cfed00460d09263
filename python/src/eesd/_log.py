"""The engine's messages in Python's `logging`, as those of the logger "eesd"."""

from __future__ import annotations

import atexit
import logging
from typing import Any

from ._library import check, ffi, lib

_logger = logging.getLogger("eesd")
_LEVELS = {
    lib.EESD_LOG_LEVEL_ERROR: logging.ERROR,
    lib.EESD_LOG_LEVEL_WARNING: logging.WARNING,
    lib.EESD_LOG_LEVEL_INFO: logging.INFO,
}
_listening = False


@ffi.callback("void(int32_t, const char *, void *)")  # type: ignore[untyped-decorator]
def _log(level: int, message: Any, _: Any) -> None:
    _logger.log(_LEVELS.get(level, logging.INFO), "%s", ffi.string(message).decode())


def listen() -> None:
    """Has the engine's messages logged, from the first call on to the end of the program."""
    global _listening
    if not _listening:
        _listening = True
        check(lib.eesd_set_log_callback(_log, ffi.NULL, lib.EESD_LOG_LEVEL_INFO))
        # Sessions were registered later, and so are freed before.
        atexit.register(lambda: check(lib.eesd_set_log_callback(ffi.NULL, ffi.NULL, lib.EESD_LOG_LEVEL_ERROR)))
