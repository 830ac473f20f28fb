"""Where a benchmark ran, and with what."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "transformers", "idiolect")
CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """`cores` are those that this process may use. What the system does not tell is None or empty."""
    cpu = _cpu_fields()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu.get("model name") or platform.processor() or None,
        "gpu": _gpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "avx": sorted(flag for flag in cpu.get("flags", "").split() if flag.startswith("avx")),
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def commit() -> str | None:
    """The commit of the checkout that this code runs from, with `-dirty` if it was changed since. None elsewhere."""
    root = Path(__file__).resolve().parents[3]
    git = shutil.which("git")
    # Installed packages may lie inside somebody else's repository, whose commit would say nothing.
    if git is None or not (root / ".git").exists():
        return None
    command = [
        git,
        "-C",
        str(root),
        "--no-optional-locks",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  a fixed command
    return done.stdout.strip() or None


def _cpu_fields() -> dict[str, str]:
    """Of the first processor."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gpu() -> str | None:
    """None where torch was not needed: a benchmark of other things must not have to load it."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
