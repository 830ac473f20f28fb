"""Where the command `idiolect` starts. Imports nothing at first, because the client is installed without any of it."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from idiolect_services.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "idiolect").partition(".")[0].startswith("idiolect"):
            raise  # a broken install, not a smaller one
        sys.stderr.write(
            f"error: the command needs {error.name}, which the client alone does not bring. "
            "Run: pip install 'idiolect[server]'\n"
        )
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
