"""What is said of IDIOLECT_REDIS_URL where it can't work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from idiolect.errors import ConfigurationError


@contextmanager
def redis_wanted() -> Iterator[None]:
    """Around what is made of the URL. Raises ConfigurationError if it can't be read or the client is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError("Redis needs the package redis.", mend="Install it: pip install redis.") from error
    except ValueError as error:
        mend = "Write it as redis://host:6379/0."
        raise ConfigurationError("IDIOLECT_REDIS_URL is not a Redis URL.", mend=mend) from error
