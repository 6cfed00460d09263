"""Builds the wheel: the hooks of PEP 517, maturin's but for what comes before it.

maturin compiles `eesd-run` and packs it with the Python files. The shared library and its declarations for cffi have to lie
beside those by then: `tools/install.sh` makes the one, as for C hosts, and the others come from its header.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cffi
import maturin
from maturin import get_requires_for_build_wheel, prepare_metadata_for_build_wheel  # noqa: F401: hooks as they are

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "src" / "eesd"


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Builds the wheel into a folder; returns its file name."""
    prepare()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """The same for `pip install --editable`, where changed Python files need no new wheel."""
    prepare()
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """There is none: the crate lies outside this folder."""
    raise NotImplementedError("eesd is built from its repository: `pip install ./python` there, or take a wheel")


def prepare() -> None:
    """Puts the shared library and what cffi has to know of it beside the Python files."""
    with TemporaryDirectory() as prefix:
        subprocess.run([ROOT / "tools" / "install.sh", prefix], check=True)
        shutil.copyfile(Path(prefix, "lib", "libeesd.so"), PACKAGE / "libeesd.so")
        header = Path(prefix, "include", "eesd.h")
        ffi = cffi.FFI()
        ffi.set_source("eesd._abi", None)
        ffi.cdef(_declarations(header))
        ffi.emit_python_code(str(PACKAGE / "_abi.py"))


def _declarations(header: Path) -> str:
    """What a C compiler would read of the header, and its constants. cffi knows the types of the standard headers itself."""
    with TemporaryDirectory() as empty:
        for name in ("stddef.h", "stdint.h"):
            Path(empty, name).touch()
        preprocess = ["cc", "-std=c99", "-E", "-P", "-nostdinc", "-I", empty, str(header)]
        plain = subprocess.run(preprocess, check=True, capture_output=True, text=True).stdout
    constants = re.findall(r"^#define EESD_\w+ -?\d+$", header.read_text(encoding="utf-8"), re.MULTILINE)
    return "\n".join([*constants, plain])
