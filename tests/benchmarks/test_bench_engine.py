from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from quiet import QuietStages

from idiolect.errors import ConfigurationError, IdiolectError
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.evaluation import engine_cases
from idiolect_adapters.evaluation.engine_cases import Case, Comparison, Registration, Sizes, load_mixed, mixed_case
from idiolect_services.bench import engine_bench, peer_infinity, peer_vllm
from idiolect_services.bench.engine_bench import (
    PEERS,
    Peer,
    against_peer,
    interleaved,
    measure,
    metrics,
    rates,
    registered,
)
from idiolect_services.bench.form import Measured, Missing
from idiolect_services.bench.peers import peer_python
from idiolect_services.bench.targets import target_of

TINY = Sizes(batches=((4, 16), (6, 16)), people=50, texts=5, lengths=(3, 40), decoder_hidden=32, decoder_layers=2)


# Both peers, as transformers and PEFT do what they do, on what lies in the folder.
STAND_IN = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = Path(sys.argv[1])
rows = json.loads((folder / "rows.json").read_text())

def model():
    return AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()

@torch.inference_mode()
def scores():
    if "texts" in rows:
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        pairs = [tokenizer(rows["query"], text, return_tensors="pt") for text in rows["texts"]]
        return [float(model()(**pair).logits[0, 0]) for pair in pairs]
    found = []
    for ids, number in zip(rows["ids"], rows["adapters"], strict=True):
        adapted = PeftModel.from_pretrained(model(), folder / "adapters" / str(number)).eval()
        found.append(float(adapted(input_ids=torch.tensor([ids])).logits[0, 0]))
    return found

print("loading", flush=True)
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 0.5, "scores": scores()}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "peer.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(engine_bench, "peer_python", lambda _name: Path(sys.executable))
    for peer in (peer_infinity, peer_vllm):
        monkeypatch.setattr(peer, "__file__", str(script))
    return script


def test_the_whole_benchmark_runs_on_a_tiny_model_and_peers_give_the_same_scores(
    tiny_bert: Path, stand_in: Path
) -> None:
    measured = [one for one in measure(tiny_bert, TINY, 2, QuietStages()) if isinstance(one, Measured)]
    assert sorted(one.metric for one in measured) == sorted(metrics(TINY))
    for one in measured:
        assert one.value > 0
        assert one.peer_value is not None
        assert one.peer_value > 0
    assert {one.peer for one in measured} == {
        "bare model",
        "PEFT mixed batch",
        "PEFT add_adapter",
        "transformers as shipped",
        "float32",
        "infinity",
        "vllm",
    }
    assert {one.peer_value for one in measured if one.peer in ("infinity", "vllm")} == {5 / 0.5, 4 / 0.5}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_that_is_not_set_up_or_stops_has_no_row_but_a_reason(
    tiny_bert: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch, peer: Peer, tmp_path: Path
) -> None:
    stand_in.write_text("raise SystemExit(1)")
    (stopped,) = against_peer(peer, tiny_bert, TINY, 1)
    assert stopped == Missing(peer.metric, f"the benchmark's peer, {peer.name}, stopped. Run: make peers.")
    monkeypatch.setattr(engine_bench, "peer_python", lambda name: peer_python(name, tmp_path))
    (missing,) = against_peer(peer, tiny_bert, TINY, 1)
    assert isinstance(missing, Missing)
    assert f"this benchmark's peer, {peer.name}, is not set up" in missing.why


def test_a_peer_that_gives_other_scores_is_no_peer(tiny_bert: Path, stand_in: Path) -> None:
    stand_in.write_text(STAND_IN.replace("float(adapted(", "1.1 * float(adapted("))
    with pytest.raises(IdiolectError, match="vllm and Idiolect differ by"):
        list(against_peer(PEERS[1], tiny_bert, TINY, 1))


def test_contenders_that_do_not_do_the_same_are_no_benchmark(tiny_bert: Path) -> None:
    mixed = load_mixed(lambda: Backbone.load(tiny_bert).encoder, 4)
    mixed_case("fair", mixed, 4, 16)
    weight = mixed.peft.base_model.model.encoder.layer[0].attention.self.query.lora_B["a2"].weight
    with torch.no_grad():
        weight += 1.0
    with pytest.raises(IdiolectError, match="'unfair' differ by"):
        mixed_case("unfair", mixed, 4, 16)


def test_people_are_drawn_anew_for_every_batch(tiny_bert: Path) -> None:
    case = engine_cases.people_case(lambda: Backbone.load(tiny_bert), 4, 16, 50)
    for name in ("head users", "core users"):
        first, second = case.contenders[name](), case.contenders[name]()
        assert isinstance(first, torch.Tensor)
        assert isinstance(second, torch.Tensor)
        assert not torch.equal(first.sort().values, second.sort().values)


def test_on_a_gpu_a_run_is_many_that_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    runs: list[int] = []
    case = Case("x", 10, {"ours": lambda: runs.append(len(waited))}, ())
    gpu = torch.device("cuda")
    measured = engine_cases._on(gpu, case)
    measured.contenders["ours"]()
    assert (measured.rows, runs, waited) == (10 * engine_cases.GPU_RUNS, [0] * engine_cases.GPU_RUNS, [gpu])
    assert engine_cases._on(torch.device("cpu"), case) is case


def test_a_gpu_that_is_not_there_is_named(tiny_bert: Path) -> None:
    with pytest.raises(ConfigurationError, match="torch sees no GPU, so 'cuda' can't be used"):
        list(measure(tiny_bert, TINY, 1, QuietStages(), "cuda"))


def test_every_contender_runs_once_in_every_round() -> None:
    runs: list[str] = []
    seconds = interleaved({name: lambda name=name: runs.append(name) for name in "ab"}, 2)
    assert runs == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_over_rounds_and_a_rate_has_its_spread() -> None:
    case = Case("x", 10, {}, (Comparison("x", "ours", "peer"),))
    (one,) = rates(case, {"ours": [1.0, 2.0, 5.0], "peer": [2.0, 2.0, 2.5]})
    assert (one.value, one.low, one.high) == (5.0, 2.0, 10.0)
    assert (one.peer, one.peer_value, one.ratio) == ("peer", 5.0, 1.0)


def test_registrations_are_compared_as_rates() -> None:
    one = registered(Registration(256, 2.0, 64.0))
    assert (one.value, one.peer_value) == (128.0, 4.0)


def test_the_targets_of_the_issue_are_there() -> None:
    bounds = {name: target_of("engine", name) for name in metrics()}
    assert {name: target.bound for name, target in bounds.items() if target is not None} == {
        "mixed_64x32_stacked": 0.90,
        "mixed_64x32_one_adapter": 1.3,
        "mixed_256x16_stacked": 0.90,
        "mixed_256x16_one_adapter": 1.3,
        "people_head": 0.97,
        "people_core": 0.97,
        "lengths_bare": 1.3,
        "lengths_infinity": 1.0,
        "decoder_vllm": 1.5,
    }
