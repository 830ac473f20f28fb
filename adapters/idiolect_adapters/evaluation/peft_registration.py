"""The peer of registering an adapter in a warm process: PEFT's own `add_adapter` and `set_adapter`."""

from __future__ import annotations

import time
from collections.abc import Callable

from peft import LoraConfig, get_peft_model

from idiolect_adapters.evaluation.random_model import random_backbone


def peft_registration_seconds(resident: int, more: int, progress: Callable[[int, int], None]) -> list[float]:
    """Seconds of each of `more` registrations beside `resident` adapters of rank 8 on queries and values.

    The encoder has two narrow layers; a real one has more modules to add to, so this favours the peer.
    """
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"])
    model = get_peft_model(random_backbone().encoder, config)
    for number in range(resident - 1):
        model.add_adapter(f"resident-{number}", config)
        progress(number + 2, resident)
    seconds = []
    for number in range(more):
        began = time.perf_counter()
        model.add_adapter(f"new-{number}", config)
        model.set_adapter(f"new-{number}")
        seconds.append(time.perf_counter() - began)
    return seconds
