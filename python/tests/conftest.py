"""What the tests share: the small model of this repository, and `eesd-run` as the one to agree with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import eesd
import eesd.server
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "models" / "pycode-4m"
PROMPTS = [
    "def fibonacci(n):",
    "class Stack:\n    def push(self, item):",
    "import os\n\nfor name in os.listdir('.'):",
    "def test_addition():\n    assert",
    "for i in range(10):\n    print(",
]


@pytest.fixture(scope="session")
def model() -> Iterator[eesd.Model]:
    """The small model, four requests side by side."""
    with eesd.Model(FOLDER, slots=4, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a chat template, which writes roles and contents as comments and then a beginning of code."""
    folder = tmp_path_factory.mktemp("chat")
    for file in FOLDER.iterdir():
        (folder / file.name).symlink_to(file)
    template = "{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}def answer("
    (folder / "chat_template.jinja").write_text(template)
    return folder


def eesd_run(*arguments: Any, folder: Path = FOLDER, input: str | None = None) -> list[dict[str, Any]]:
    """The JSON lines that `eesd-run generate` prints."""
    command = [eesd.server.command(), "generate", "-q", "--json", "-m", folder, *arguments]
    run = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, input=input)
    return [json.loads(line) for line in run.stdout.splitlines()]


def flood(model: eesd.Model, requests: int = 200) -> list[eesd.Stream]:
    """Requests for much longer than a test takes. What is asked after them waits."""
    return [model.stream("def fibonacci(n):", max_tokens=4000, ignore_eos=True) for _ in range(requests)]
