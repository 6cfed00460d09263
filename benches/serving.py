#!/usr/bin/env python3
"""Load on the server over loopback, beside `generate -b` on the same requests; see docs/serving.md.

    cargo build --release && benches/serving.py [--requests 2000] [--clients 64] [--batch 8] [--threads 1]

One process asks: 64 clients, streams all of them. First all requests to their ends, for throughput; then a third of them cancelled
at random, while 200 connections say nothing and `/health` and `/metrics` are asked ten times a second; and in the end a SIGTERM
under load. Every answer is compared with the one that `generate` gives alone. Times are those that a client sees. The clients
need a core of the same machine, so leave them one.
"""

import argparse
import asyncio
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/eesd-run"
PROMPTS = ROOT / "models/pycode-4m/prompts.jsonl"
URL = "/v1/completions"


def requests(count):
    """Different prompts of the bundled model, lengths and settings, the same each time."""
    dice = random.Random(1)
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines() if line.strip()]
    return [
        {"prompt": dice.choice(texts), "max_tokens": dice.randrange(8, 64), "temperature": dice.choice([0, 0.8]), "seed": number}
        for number in range(count)
    ]


def generated(asked, batch, threads):
    """What `generate` answers, and tokens a second without the model's loading."""
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "in.jsonl"
        lines.write_text("".join(json.dumps(request) + "\n" for request in asked))
        command = [PROGRAM, "generate", "--input", lines, "-b", str(batch), "-t", str(threads)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
    answers = sorted(map(json.loads, ran.stdout.splitlines()), key=lambda answer: answer["index"])
    seconds = float(ran.stderr.rsplit(" failed in ", 1)[1].split(" s", 1)[0])
    return [answer["text"] for answer in answers], sum(answer["stats"]["generated"] for answer in answers) / seconds


class Client:
    """Asks, and notes what it sees."""

    def __init__(self, port):
        self.port, self.first, self.between, self.tokens = port, [], [], 0

    async def ask(self, request, cancel_after=None):
        """The text of a stream; `None` where it was cancelled after so many events."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(request | options).encode()
        head = f"POST {URL} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        last, text, events = time.perf_counter(), "", 0
        try:
            status = await reader.readline()
            assert b" 200 " in status, status + await reader.read()
            async for line in reader:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    return text
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                now = time.perf_counter()
                (self.between if events else self.first).append(now - last)
                last, events = now, events + 1
                if events == cancel_after:
                    return None
                if chunk["choices"]:
                    text += chunk["choices"][0]["text"]
                else:
                    self.tokens += chunk["usage"]["completion_tokens"]
            raise AssertionError("a stream without its end")
        finally:
            writer.close()

    async def all(self, asked, clients, cancels=None):
        """The answers to all requests, so many at a time."""
        answers, left = [None] * len(asked), iter(range(len(asked)))

        async def work():
            for number in left:
                answers[number] = await self.ask(asked[number], cancels and cancels[number])

        await asyncio.gather(*(work() for _ in range(clients)))
        return answers


async def get(port, path):
    """Seconds until a page is there."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    page = await reader.read()
    writer.close()
    assert b" 200 " in page.split(b"\r\n", 1)[0], page
    return time.perf_counter() - begun


async def watch(port, times):
    """Asks for both pages ten times a second, until it is cancelled."""
    while True:
        for path in times:
            times[path].append(await get(port, path))
        await asyncio.sleep(0.1)


def memory(process):
    """Resident bytes of a process, in MiB."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] * 1e3


def start(batch, clients, threads):
    flags = ["serve", "--port", "0", "-b", str(batch), "-t", str(threads), "--max-waiting", str(clients), "--shutdown-timeout", "600"]
    process = subprocess.Popen([PROGRAM, *flags], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("serving "):
            return process, int(line.split("http://127.0.0.1:")[1].split(",")[0])
    sys.exit("the server ended")


async def measured(options):
    asked = requests(options.requests)
    rows = []
    expected, alone = generated(asked, options.batch, options.threads)
    process, port = start(options.batch, options.clients, options.threads)
    try:
        client = Client(port)
        begun = time.perf_counter()
        answers = await client.all(asked, options.clients)
        rate = client.tokens / (time.perf_counter() - begun)
        assert answers == expected, "answers differ from those of generate"
        # Once more, as whatever else the machine does comes and goes.
        _, again = generated(asked, options.batch, options.threads)
        share = 2 * rate / (alone + again)
        rows.append(("tokens a second, `generate -b` before and after", f"{alone:.0f}, {again:.0f}"))
        rows.append(("tokens a second, served", f"{rate:.0f} ({share:.2f} of their mean)"))
        for name, values in [("first event", client.first), ("between events", client.between)]:
            rows.append((f"{name}, p50 and p99", f"{quantile(values, 0.5):.1f} ms, {quantile(values, 0.99):.1f} ms"))

        dice = random.Random(2)
        cancels = [dice.randrange(1, 8) if dice.random() < 1 / 3 else None for _ in asked]
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        times = {"/health": [], "/metrics": []}
        watching, before = asyncio.create_task(watch(port, times)), memory(process)
        answers = await client.all(asked, options.clients, cancels)
        watching.cancel()
        after = memory(process)
        kept = [number for number, answer in enumerate(answers) if answer is not None]
        assert all(answers[number] == expected[number] for number in kept), "answers differ from those of generate"
        assert all(cancels[number] for number, answer in enumerate(answers) if answer is None), "an answer was lost"
        rows.append(("answered, cancelled, lost", f"{len(kept)}, {len(asked) - len(kept)}, 0"))
        rows += [(f"{path}, longest of {len(t)}", f"{max(t) * 1e3:.1f} ms") for path, t in times.items()]
        rows.append(("memory before and after", f"{before:.0f} MiB, {after:.0f} MiB"))
        for _, writer in silent:
            writer.close()

        last = asyncio.gather(*(client.ask(request) for request in asked[: options.clients]))
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        answers = await last
        assert answers == expected[: options.clients], "what was taken was not answered"
        assert await asyncio.to_thread(process.wait) == 0
        rows.append(("SIGTERM under load", f"{len(answers)} of {options.clients} answered, exit code 0"))
    finally:
        process.kill()
    print("| | |\n|---|---|")
    for row in rows:
        print("| {} | {} |".format(*row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    asyncio.run(measured(parser.parse_args()))


if __name__ == "__main__":
    main()
