"""The shared library, and its failures as exceptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from ._abi import ffi as _ffi
from .errors import Error, error_of

#: The types of `include/eesd.h`.
ffi: Any = _ffi

#: Its functions. Each call lets other Python threads run.
lib: Any = ffi.dlopen(str(Path(__file__).with_name("libeesd.so")))

if lib.eesd_abi_version() != lib.EESD_ABI_VERSION:
    raise ImportError(
        f"libeesd.so has interface {lib.eesd_abi_version()} (expected {lib.EESD_ABI_VERSION}): build eesd anew"
    )

__all__ = ["check", "failure", "ffi", "lib", "text", "versioned", "written"]


def failure(status: int, message: str | None = None) -> Error:
    """The exception of a status, by default with the message of this thread's last call."""
    name = ffi.string(lib.eesd_status_name(status)).decode()
    if message is None:
        message = ffi.string(lib.eesd_last_error()).decode()
        # What is handed over in JSON are keywords here.
        message = message.removeprefix("json: ")
    return error_of(name.removeprefix("EESD_STATUS_"), message)


def check(status: int) -> None:
    """Raises where a call failed."""
    if status != lib.EESD_STATUS_OK:
        raise failure(status)


def versioned(name: str) -> Any:
    """A structure for the library to fill."""
    structure = ffi.new(f"{name} *")
    structure.struct_size = ffi.sizeof(name)
    return structure


def text(view: Any) -> str:
    """What an `eesd_text` points to."""
    return bytes(ffi.buffer(view.data, view.length)).decode() if view.length else ""


def written(kind: str, write: Callable[[Any, int, Any], int]) -> Any:
    """What `write` writes into an array of `kind`, asked twice: for its length, and for itself."""
    needed = ffi.new("size_t *")
    status = write(ffi.NULL, 0, needed)
    if status != lib.EESD_STATUS_BUFFER_TOO_SMALL:
        check(status)
    buffer = ffi.new(f"{kind}[]", needed[0])
    check(write(buffer, needed[0], needed))
    return buffer
