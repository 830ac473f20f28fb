"""Production refuses noise that is not secret.

A training with deterministic noise is public to whoever knows the seed, and nothing in its weights shows it. So the
trainer takes another source than SecureNoise only inside a test that pytest is running at that moment: pytest names it
in PYTEST_CURRENT_TEST, for itself and for processes that the test starts, and takes the name away when the test ends.
No setting, file or argument of Idiolect's leads there.
"""

from __future__ import annotations

import os

from idiolect.errors import ConfigurationError
from idiolect_adapters.training.clip_noise import NoiseSource, SecureNoise


def checked_noise(noise: NoiseSource | None) -> NoiseSource:
    """`noise`, or SecureNoise if there is none. A subclass of SecureNoise can draw what it likes, so it is not one."""
    if noise is None:
        return SecureNoise()
    if type(noise) is not SecureNoise and "PYTEST_CURRENT_TEST" not in os.environ:
        raise ConfigurationError(
            f"{type(noise).__name__} is not a secure source of noise.",
            mend="Leave it out: training then draws from the operating system's randomness.",
        )
    return noise
