"""Starts a worker for one version of the package, and exchanges requests with it."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .cases import Subject
from .package import CHECKOUT, copy_package

# The package comes from the copy of the side; the benchmark comes from this checkout.
START = (
    "import sys, radam_fused; sys.path.insert(0, sys.argv[1]); "
    "from bench.structure.worker import main; main()"
)


class Side:
    """A worker that runs a copy of a package.

    Each worker has its own copy: one of two identical files made a float16 step 20 % slower in
    every process that loaded it. With new copies, such a difference becomes part of the spread.

    Args:
        root: A checkout with the extension built in place, or a copy of its package.
    """

    def __init__(self, root: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        copy_package(root, Path(self._folder.name))
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(CHECKOUT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tempfile.gettempdir(),
            env={**os.environ, "PYTHONPATH": self._folder.name},
        )

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def send(self, what: str, subject: Subject | None = None) -> None:
        """Send a request without waiting for the answer."""
        request: dict[str, object] = {"what": what}
        if subject is not None:
            request |= {"recipe": subject.recipe, "event": subject.event}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # receive() raises
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """The answer to the earliest open request.

        Raises:
            RuntimeError: The worker has ended; its error is on the screen.
        """
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("a worker has ended")
        return json.loads(answer)

    def ask(self, what: str, subject: Subject | None = None) -> Any:
        """Send a request and return its answer."""
        self.send(what, subject)
        return self.receive()

    def check(self) -> None:
        """Wait until the worker has started.

        Raises:
            RuntimeError: It runs another package than its copy.
        """
        found = self.ask("package")
        if not Path(found).samefile(self._folder.name):
            raise RuntimeError(f"a worker runs the package of {found}, not its copy")
