"""infinity-emb's reranker. Run by the peer's own Python, so it imports nothing of Idiolect.

Argument: a folder with `model` (an encoder that classifies, one label, with its tokenizer), and `rows.json`:
{"query", "texts"}. For every line on standard input all texts are scored once, without a server in between, and a line
of JSON says {"seconds", "scores"}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}


async def main(folder: Path) -> None:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found,unused-ignore]

    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=str(folder / "model"),
            engine="torch",
            device="cpu",
            dtype="float32",
            bettertransformer=False,
            model_warmup=False,
        )
    )
    async with engine:
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            began = time.perf_counter()
            found, _ = await engine.rerank(query=rows["query"], docs=rows["texts"], raw_scores=True)
            seconds = time.perf_counter() - began
            scores = [float(one.relevance_score) for one in sorted(found, key=lambda one: one.index)]
            print(json.dumps({"seconds": seconds, "scores": scores}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
