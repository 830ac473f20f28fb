"""vLLM on the CPU, with a LoRA for every row. Run by the peer's own Python, so it imports nothing of Idiolect.

Argument: a folder with `model` (a decoder that classifies, one label), `adapters/<n>` in PEFT's format, and
`rows.json`: {"ids": [token ids], "adapters": [n]} by row. For every line on standard input all rows are scored once,
and a line of JSON says {"seconds", "scores"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

# In one process: what travels between two would only slow it down.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


def main(folder: Path) -> None:
    from vllm import LLM, PoolingParams  # type: ignore[import-not-found,unused-ignore]
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]

    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    count = len({*rows["adapters"]})
    model = LLM(
        model=str(folder / "model"),
        runner="pooling",
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,  # the same texts come again: they must not be remembered
        enable_lora=True,
        max_loras=count,
        max_cpu_loras=count,
        max_lora_rank=8,
        max_num_seqs=len(rows["ids"]),
        disable_log_stats=True,
    )
    prompts = [{"prompt_token_ids": ids} for ids in rows["ids"]]
    loras = [LoRARequest(f"a{n}", n + 1, str(folder / "adapters" / str(n))) for n in rows["adapters"]]
    raw = PoolingParams(use_activation=False)

    def score() -> tuple[float, list[float]]:
        began = time.perf_counter()
        found = model.classify(prompts, pooling_params=raw, lora_request=loras, use_tqdm=False)
        return time.perf_counter() - began, [float(one.outputs.probs[0]) for one in found]

    score()
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds, scores = score()
        print(json.dumps({"seconds": seconds, "scores": scores}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
