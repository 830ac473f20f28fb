"""Who gets the candidate: a stable function of the rollout's salt and the person's pseudonym, and nothing else.

    place = first 64 bits of HMAC-SHA256(salt, pseudonym);  candidate  <=>  place < share * 2^64

Nothing is stored per person to decide it, so a restart can't reassign anybody. A larger share only adds people, because
the places stay. Two rollouts have different salts, so who is in one says nothing about who is in the other.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Literal

Arm = Literal["control", "candidate"]
ARMS: tuple[Arm, Arm] = ("control", "candidate")

_PLACES = 1 << 64


def new_salt() -> bytes:
    """From the system's generator, never from a caller: who could choose the salt could choose the people."""
    return secrets.token_bytes(32)


def place_of(salt: bytes, subject: str) -> int:
    """Uniform in [0, 2^64)."""
    return int.from_bytes(hmac.digest(salt, subject.encode(), hashlib.sha256)[:8])


def arm_of(salt: bytes, subject: str, share: float) -> Arm:
    """`share` in [0, 1]; 0 is nobody and 1 is everybody, exactly."""
    return "candidate" if place_of(salt, subject) < int(share * _PLACES) else "control"
