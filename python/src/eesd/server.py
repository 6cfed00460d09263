"""`python -m eesd.server` is `eesd-run serve`, of the program that the wheel carries."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

__all__ = ["command", "main"]


def command() -> Path:
    """Where this installation's `eesd-run` is.

    Raises FileNotFoundError where the package was installed without it.
    """
    try:
        installed = files("eesd") or []
    except PackageNotFoundError:
        installed = []
    for file in installed:
        if file.name == "eesd-run":
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError("eesd-run: not among the files of the installed package eesd")


def main() -> None:
    """Becomes the server: signals reach it, and its exit code is this program's."""
    program = command()
    os.execv(program, [str(program), "serve", *sys.argv[1:]])


if __name__ == "__main__":
    main()
