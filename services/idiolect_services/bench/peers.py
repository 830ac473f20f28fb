"""Peers that are too heavy, or too old, to live beside Idiolect: each has an environment of its own under .peers."""

from __future__ import annotations

from pathlib import Path

from idiolect.errors import ConfigurationError

FOLDER = Path(__file__).resolve().parents[3] / ".peers"


def peer_python(name: str, folder: Path = FOLDER) -> Path:
    """The Python of the peer's environment. Raises ConfigurationError if it was not set up."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        raise ConfigurationError(
            f"this benchmark's peer, {name}, is not set up ({folder / name}).", mend="Run: make peers."
        )
    return python
