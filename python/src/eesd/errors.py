"""Exceptions: what went wrong in the engine's own words."""

from __future__ import annotations

__all__ = [
    "Closed",
    "DeviceFailed",
    "Error",
    "InvalidArgument",
    "IoFailed",
    "LoadFailed",
    "NotFinite",
    "OutOfMemory",
    "Overloaded",
    "TooLong",
    "Unsupported",
]


class Error(Exception):
    """Whatever fails in the engine. `status` is the C interface's name for it, as in `"TOO_LONG"`."""

    status = "INTERNAL"


class InvalidArgument(Error, ValueError):
    """A value is out of range or cannot be understood."""

    status = "INVALID_ARGUMENT"


class Unsupported(Error):
    """The model has no tokenizer, no chat template or no exit block, and the call needs one."""

    status = "UNSUPPORTED"


class LoadFailed(Error):
    """A model, tokenizer or exit block cannot be opened."""

    status = "LOAD_FAILED"


class TooLong(Error, ValueError):
    """The prompt does not fit the context, or prompt and answer the cache."""

    status = "TOO_LONG"


class OutOfMemory(Error, MemoryError):
    """Memory cannot be had, of the host or of the device."""

    status = "OUT_OF_MEMORY"


class DeviceFailed(Error):
    """The device, or a thread, failed."""

    status = "DEVICE_FAILED"


class NotFinite(Error):
    """The model's numbers for this request are not finite; others go on."""

    status = "NOT_FINITE"


class Overloaded(Error):
    """As many requests wait as may (`max_waiting`): try again when one has ended."""

    status = "OVERLOADED"


class IoFailed(Error, OSError):
    """A file could not be written."""

    status = "IO_FAILED"


class Closed(Error):
    """The model was closed, before the call or while it waited."""

    status = "CLOSED"


_KINDS: dict[str, type[Error]] = {
    kind.status: kind
    for kind in (
        InvalidArgument,
        Unsupported,
        LoadFailed,
        TooLong,
        OutOfMemory,
        DeviceFailed,
        NotFinite,
        Overloaded,
        IoFailed,
        Closed,
    )
}
_KINDS["INVALID_UTF8"] = InvalidArgument
_KINDS["INVALID_HANDLE"] = Closed


def error_of(status: str, message: str) -> Error:
    """The exception for a status of the C interface."""
    error = _KINDS.get(status, Error)(message)
    error.status = status
    return error
