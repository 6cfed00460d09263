"""`python -m eesd.server` is `eesd-run serve`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import eesd
from conftest import FOLDER, PROMPTS


def ask(address: str, body: dict[str, Any]) -> Any:
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/completions", data, headers)) as response:
        return json.load(response)


def test_the_server_answers_and_ends_as_eesd_run_serve(model: eesd.Model) -> None:
    command = [sys.executable, "-m", "eesd.server", "-m", str(FOLDER), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        notes = []
        for note in server.stderr:
            notes.append(note)
            if "serving" in note:
                break
        else:
            raise AssertionError("".join(notes))
        address = next(word for word in note.replace(",", " ").split() if word.startswith("http://"))
        answer = ask(address, {"prompt": PROMPTS[0], "max_tokens": 24})
        assert answer["choices"][0]["text"] == model.generate(PROMPTS[0], max_tokens=24).text
        server.send_signal(signal.SIGTERM)
        server.stderr.read()
    assert server.returncode == 0, "signals reach it: it has become the server"


def test_flags_are_those_of_eesd_run_serve() -> None:
    run = subprocess.run([sys.executable, "-m", "eesd.server", "--prot", "0"], capture_output=True, text=True)
    assert run.returncode == 2 and "--prot" in run.stderr and "--port" in run.stderr
