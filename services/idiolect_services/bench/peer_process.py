"""A peer in a process of its own, with the Python of its own environment. It answers "ready", and then every line with
one line of JSON: {"seconds", "scores"}."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from idiolect.errors import ConfigurationError

STOP_SECONDS = 30.0


class PeerProcess:
    """Scores everything once whenever it is called. `seconds`: what that took in the peer, without the way there."""

    def __init__(self, python: Path, script: ModuleType, folder: Path, threads: int) -> None:
        assert script.__file__ is not None
        self.name = script.__name__.rpartition("_")[2]
        self.seconds = 0.0
        self._command = [str(python), script.__file__, str(folder)]
        # Neither this environment's packages nor its settings.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._environment = kept | {"OMP_NUM_THREADS": str(threads)}

    def __enter__(self) -> PeerProcess:
        """Raises ConfigurationError if it does not get ready."""
        self._process = subprocess.Popen(  # noqa: S603
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:  # libraries may talk as well
                if line.strip() == "ready":
                    return self
            raise self._stopped()
        except BaseException:
            self.__exit__()
            raise

    def __call__(self) -> Sequence[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("again\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise self._stopped() from error
        self.seconds = float(answer["seconds"])
        scores: list[float] = answer["scores"]
        return scores

    def _stopped(self) -> ConfigurationError:
        return ConfigurationError(f"the benchmark's peer, {self.name}, stopped.", mend="Run: make peers.")

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
