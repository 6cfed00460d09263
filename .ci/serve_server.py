"""A server to try clients on: started at a free port, and asked to end when it has been used."""

import contextlib
import pathlib
import signal
import subprocess
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/eesd-run"
SMOLLM2 = next((ROOT / "models/smollm2-135m-instruct").glob("*.gguf"), None)


class Server:
    """`eesd-run serve` with more flags; `address` is where it is."""

    def __init__(self, *flags):
        # One thread: what else is checked meanwhile has the other core.
        command = [PROGRAM, "serve", "--port", "0", "--threads", "1", *map(str, flags)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said = []
        self.address = self.wait_for("loading the model for ").strip()
        self.wait_for("serving ")

    def wait_for(self, begin):
        """The rest of the line that begins so."""
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith(begin):
                return line[len(begin):]
        raise SystemExit("the server ended: " + "".join(self.said))

    def metric(self, name, key=None):
        """One number of the page of metrics."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(self.address + "/metrics", headers=headers)
        page = urllib.request.urlopen(request).read().decode()
        return next(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + " "))

    def end(self):
        """Asks it to end, which it has to do well."""
        self.process.send_signal(signal.SIGTERM)
        said = "".join(self.said) + self.process.stderr.read()
        assert self.process.wait() == 0 and "panicked" not in said, said


@contextlib.contextmanager
def served(*flags):
    """A server for as long as it is needed."""
    server = Server(*flags)
    try:
        yield server
        server.end()
    finally:
        server.process.kill()
