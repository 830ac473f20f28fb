"""LoRAs that were trained elsewhere with plain PEFT, over the API: registered, served as PEFT itself scores them, kept
apart, swapped, revoked and forgotten like any other version.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from client_world import client_of
from lora_world import (
    PAIRS,
    plain_peft_scores,
    read,
    rows_under,
    served_by,
    trained_elsewhere,
    upload,
    upload_body,
)
from serving_world import DOCUMENTS, World, assert_problem, scores, some_weights

from idiolect.client.errors import ApiInvalidInputError
from idiolect.errors import IdiolectError, NotFoundError, UnavailableError
from idiolect.registry.manifest import manifest_bytes
from idiolect.tenancy import Scope
from idiolect_services.gateway.schemas.adapters import AdapterUpload
from tiny_models import save_tiny


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone") / "bert", "bert", num_hidden_layers=3)


@pytest.fixture
def world(tmp_path: Path, empty_database: Path, backbone: Path) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with served_by(tmp_path, backbone) as made:
        yield made


@pytest.fixture
def elsewhere(backbone: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder as plain PEFT saves it."""
    return lambda name="lora", **changes: trained_elsewhere(backbone, tmp_path / name, **changes)


def of(answer: dict[str, Any]) -> list[float]:
    """The scores, in the order of the documents."""
    found = scores(answer)
    return [found[index] for index in range(len(DOCUMENTS))]


def bare(world: World) -> list[float]:
    found: list[float] = world.model.project(PAIRS)[:, 0].tolist()
    return found


def close(found: Sequence[float], expected: Sequence[float]) -> bool:
    return bool(np.allclose(found, expected, rtol=1e-5, atol=1e-5))


def test_a_domains_lora_scores_as_plain_peft_does_and_nobody_else_sees_it(
    world: World, backbone: Path, elsewhere: Callable[..., Path]
) -> None:
    folder = elsewhere()
    api, other = world.api(world.key()), world.api(world.key("other"))
    version = upload(world, api, folder, domain="chat")
    assert (version["kind"], version["epsilon"], version["scope"]) == ("lora", None, "domain")
    answer = api.rerank(domain="chat")
    assert answer["personalization"]["domain"] == version["id"]
    assert close(of(answer), plain_peft_scores(backbone, folder))
    assert not close(of(answer), bare(world))
    for unaffected in (api.rerank(), api.rerank(domain="news"), other.rerank(domain="chat")):
        assert of(unaffected) == bare(world)
        assert unaffected["personalization"]["domain"] is None


def test_domain_and_person_are_one_exact_stack_with_strengths(
    world: World, backbone: Path, elsewhere: Callable[..., Path]
) -> None:
    """Against one row and one adapter at a time, through the whole model."""
    domain, person = elsewhere("d", seed=1), elsewhere("p", seed=2, target_modules=["key", "score"], r=3)
    world.opt_in("ann", strength=0.5)
    api = world.api(world.key())
    upload(world, api, domain, domain="chat")
    mine = upload(world, api, person, user="ann")
    answer = api.rerank("ann", domain="chat", explain=True)
    said = answer["personalization"]
    assert (said["applied"], said["adapter"], said["strength"]) == (True, mine["id"], 0.5)
    slow = rows_under(backbone, [(read(world, domain), 1.0), (read(world, person), 0.5)])
    assert close(of(answer), slow[:, 0].tolist())
    for result in answer["results"]:
        parts = result["parts"]
        assert result["score"] == (parts["global"] + parts["domain"]) + parts["user"]
        assert parts["global"] == bare(world)[result["index"]]
        assert result["directions"]["user"] == result["directions"]["domain"] == []


def test_a_head_adapter_reads_the_features_that_the_domains_lora_made(
    world: World, backbone: Path, elsewhere: Callable[..., Path]
) -> None:
    folder = elsewhere(target_modules=["query", "output.dense"])
    world.opt_in("ann")
    version = world.publish_user("ann")
    api = world.api(world.key())
    upload(world, api, folder, domain="chat")
    answer = api.rerank("ann", domain="chat")
    slow = rows_under(backbone, [(read(world, folder), 1.0)])
    weights_K = np.array(some_weights("ann", world.model.user_rank), np.float32).astype(np.float64)
    expected = slow[:, 0] + slow[:, 1 : 1 + world.model.user_rank] @ weights_K
    assert answer["personalization"]["adapter"] == version.id
    assert close(of(answer), expected.tolist())


def test_a_persons_lora_moves_what_the_domains_head_reads(
    world: World, backbone: Path, elsewhere: Callable[..., Path]
) -> None:
    folder = elsewhere()
    world.opt_in("ann")
    world.publish_domain("chat")
    api = world.api(world.key())
    upload(world, api, folder, user="ann")
    slow = rows_under(backbone, [(read(world, folder), 1.0)])
    weights_M = np.array(some_weights("chat", world.model.domain_rank), np.float32).astype(np.float64)
    expected = slow[:, 0] + slow[:, 1 + world.model.user_rank :] @ weights_M
    answer = api.rerank("ann", domain="chat", explain=True)
    assert close(of(answer), expected.tolist())
    for result in answer["results"]:
        assert result["score"] == (result["parts"]["global"] + result["parts"]["domain"]) + result["parts"]["user"]


def test_a_warm_answer_needs_no_model(world: World, elsewhere: Callable[..., Path]) -> None:
    api = world.api(world.key())
    upload(world, api, elsewhere(), domain="chat")
    first = api.rerank(domain="chat")
    runs: list[int] = []
    hook = world.model.backbone.encoder.register_forward_hook(lambda *_: runs.append(1))
    assert of(api.rerank(domain="chat")) == of(first)
    assert not runs
    hook.remove()


def test_requests_of_different_stacks_share_one_forward(world: World, elsewhere: Callable[..., Path]) -> None:
    """They come while another forward is held up, so they are all there when the next one begins."""
    api, batcher = world.api(world.key()), world.app.state.gateway.batcher
    for number, domain in enumerate(("chat", "news")):
        upload(world, api, elsewhere(domain, seed=number, layers_to_transform=[2]), domain=domain)
        api.rerank(domain=domain, documents=["this loads the adapter"])
    go_on, rows_by_layer = threading.Event(), {0: list[int](), 2: list[int]()}

    def note(number: int) -> Any:
        return lambda _module, _inputs, output: rows_by_layer[number].append(len(output))

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    async def all_three() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(world.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=api._headers) as client:

            def ask(domain: str, documents: list[str]) -> asyncio.Task[httpx.Response]:
                body = {"query": "q", "documents": documents, "domain": domain}
                return asyncio.create_task(client.post("/v1/rerank", json=body))

            before = batcher.stats().forwards
            held = world.model.backbone.encoder.register_forward_pre_hook(lambda *_: void(go_on.wait(60)))
            first = ask("nothing", ["the one that is held up"])
            await until(lambda: batcher.stats().forwards == before + 1)
            others = [ask(domain, DOCUMENTS[:3]) for domain in ("chat", "news", "nothing")]
            await until(lambda: batcher.stats().waiting == 9)
            layers = world.model.backbone.encoder.encoder.layer
            hooks = [layers[number].register_forward_hook(note(number)) for number in rows_by_layer]
            held.remove()
            go_on.set()
            answers = [await answer for answer in (first, *others)]
            for hook in hooks:
                hook.remove()
            assert batcher.stats().forwards == before + 2
            return [answer.json() for answer in answers]

    answers = asyncio.run(all_three())
    assert rows_by_layer[0][-1] == 3
    assert rows_by_layer[2][-1] == 9  # each text by the bare model, and under either LoRA
    found = [[scores(answer)[index] for index in range(3)] for answer in answers[1:]]
    assert found[2] == bare(world)[:3]
    assert found[0] == of(api.rerank(domain="chat"))[:3] != found[2]
    assert found[1] == of(api.rerank(domain="news"))[:3] != found[2]


def void(_value: object) -> None:
    """A hook must return nothing."""


def test_reset_forgets_a_persons_lora_everywhere(world: World, elsewhere: Callable[..., Path]) -> None:
    world.opt_in("ann")
    api = world.api(world.key())
    version = upload(world, api, elsewhere(r=16), user="ann")
    assert api.rerank("ann")["personalization"]["applied"]
    (sealed,) = world.blobs.walk()
    assert sealed.digest != version["weights_sha256"]
    kept = world.features.stats().entries
    receipt = api.post("/v1/users/ann/personalization/reset", {"scope": "adapter"}).json()
    assert receipt["erased"]["blobs"] == receipt["erased"]["versions"] == 1
    assert list(world.blobs.walk()) == []
    assert world.bank.stats().loras == 0
    assert world.engine.resident_bytes == 0
    assert world.features.stats().entries <= kept - len(DOCUMENTS)
    after = api.rerank("ann")
    assert after["personalization"]["reason"] == "no_adapter"
    assert of(after) == bare(world)
    assert api.get(f"/v1/adapters/{version['id']}").status_code == 404
    again = upload(world, api, elsewhere("again", r=16), user="ann")  # consent still stands
    assert again["generation"] == version["generation"] + 1


def test_pointers_rollback_revoke_history_and_lineage_know_it_as_any_version(
    world: World, elsewhere: Callable[..., Path]
) -> None:
    api = world.api(world.key())
    versions = [upload(world, api, elsewhere(f"v{n}", seed=n), domain="chat") for n in range(3)]
    expected = [of(api.rerank(domain="chat"))]
    path = "/v1/adapters/domain:chat"
    assert api.post(f"{path}/rollback", {"reason": "worse"}).status_code == 200
    answer = api.rerank(domain="chat")
    assert answer["personalization"]["domain"] == versions[1]["id"]
    expected.append(of(answer))
    assert api.put(f"{path}/pointers/live", {"version": versions[2]["id"], "reason": "better"}).status_code == 200
    assert of(api.rerank(domain="chat")) == expected[0] != expected[1]
    assert api.post(f"/v1/releases/{versions[2]['release']}/revoke", {"reason": "bad"}).status_code == 200
    fallen = api.rerank(domain="chat")
    assert fallen["personalization"]["domain"] == versions[1]["id"]
    assert of(fallen) == expected[1]
    moves = api.get(f"{path}/history").json()["moves"]
    assert [move["reason"] for move in moves][-3:] == ["a test"] * 3
    origin = api.get(f"/v1/adapters/{versions[1]['id']}/lineage").json()
    assert (origin["purpose"], origin["parents"]) == (None, [versions[0]["id"]])
    detail = api.get(f"/v1/adapters/{versions[1]['id']}").json()["manifest"]
    assert detail["privacy"] is None
    assert {target["name"] for target in detail["lora"]["targets"]} == set(detail["targets"])


def test_a_staged_lora_serves_nobody_until_it_is_promoted(world: World, elsewhere: Callable[..., Path]) -> None:
    api = world.api(world.key())
    version = upload(world, api, elsewhere(), domain="chat", staged=True)
    assert of(api.rerank(domain="chat")) == bare(world)
    api.put("/v1/adapters/domain:chat/pointers/live", {"version": version["id"], "reason": "go"})
    assert of(api.rerank(domain="chat")) != bare(world)


def test_a_rollout_tries_a_staged_lora_on_a_share_of_people_first(world: World, elsewhere: Callable[..., Path]) -> None:
    api, people = world.api(world.key()), [f"person {number}" for number in range(40)]
    for person in people:
        world.opt_in(person)
    old = upload(world, api, elsewhere("old", seed=1), domain="chat")
    before = of(api.rerank(domain="chat"))
    new = upload(world, api, elsewhere("new", seed=2), domain="chat", staged=True)
    plan = {"candidate": {"kind": "release", "id": new["release"]}, "steps": [0.5, 1.0], "reason": "a test"}
    assert api.post("/v1/rollouts", plan).status_code == 201
    answers = [api.rerank(person, domain="chat") for person in people]
    named = [answer["personalization"]["domain"] for answer in answers]
    assert set(named) == {old["id"], new["id"]}
    for version, answer in zip(named, answers, strict=True):
        assert (of(answer) == before) == (version == old["id"])
    assert of(api.rerank(domain="chat")) == before


def test_a_persons_export_holds_their_lora_for_plain_peft(
    world: World, backbone: Path, elsewhere: Callable[..., Path], tmp_path: Path
) -> None:
    world.opt_in("ann")
    api = world.api(world.key())
    upload(world, api, elsewhere(r=32, rank_pattern={"value": 2}, use_rslora=True), user="ann")
    served = of(api.rerank("ann"))
    archive = zipfile.ZipFile(io.BytesIO(api.post("/v1/users/ann/exports").content))
    archive.extractall(tmp_path / "export")
    adapter = tmp_path / "export" / "adapters" / "1"
    assert (adapter / "adapter.safetensors").stat().st_size > 16 << 10
    assert close(plain_peft_scores(backbone, adapter / "peft"), served)


def test_only_who_opted_in_can_have_a_lora(world: World, elsewhere: Callable[..., Path]) -> None:
    api = world.api(world.key())
    body = upload_body(world, elsewhere()) | {"user": "stranger"}
    assert_problem(api.post("/v1/adapters", body), 409, "personalization_unavailable")


def test_registering_needs_its_scope(world: World, elsewhere: Callable[..., Path]) -> None:
    body = upload_body(world, elsewhere()) | {"domain": "chat"}
    assert_problem(world.api(world.key("acme", Scope.INFER)).post("/v1/adapters", body), 404, "not_found")


def test_sent_again_with_its_key_it_is_registered_once(world: World, elsewhere: Callable[..., Path]) -> None:
    api = world.api(world.key())
    body = upload_body(world, elsewhere()) | {"domain": "chat"}
    key = {"Idempotency-Key": "upload-1"}
    first, second = (api.post("/v1/adapters", body, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert len(world.store.versions("acme", domain="chat")) == 1
    other = api.post("/v1/adapters", body | {"reason": "other"}, headers=key)
    assert_problem(other, 422, "idempotency_key_reused")


def test_a_next_version_is_posted_to_its_adapter(world: World, elsewhere: Callable[..., Path]) -> None:
    api = world.api(world.key())
    first = upload(world, api, elsewhere("a", seed=1), domain="chat")
    response = api.post("/v1/adapters/domain:chat/versions", upload_body(world, elsewhere("b", seed=2)))
    assert response.status_code == 201
    listed = api.get("/v1/adapters/domain:chat/versions").json()["adapters"]
    assert {one["id"] for one in listed} == {first["id"], response.json()["id"]}
    assert_problem(api.post("/v1/adapters/nobody/versions", upload_body(world, elsewhere("c"))), 404, "not_found")


# --- hostile uploads --------------------------------------------------------------------------------------------------

Spoil = Callable[[dict[str, Any]], None]


def config(**changes: Any) -> Spoil:
    return lambda body: body["adapter_config"].update(changes)


def bytes_of(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(body: dict[str, Any]) -> None:
        body["weights"] = base64.b64encode(change(base64.b64decode(body["weights"]))).decode()

    return spoil


def tensors_of(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Spoil:
    return bytes_of(lambda data: safetensors.torch.save(change(safetensors.torch.load(data))))


def renamed(old: str, new: str) -> Spoil:
    return tensors_of(lambda found: {name.replace(old, new): tensor for name, tensor in found.items()})


def first_set_to(value: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = min(found)
        found[name][0, 0] = value
        return found

    return change


def only(ending: str) -> Spoil:
    return tensors_of(lambda found: {name: tensor for name, tensor in found.items() if name.endswith(ending)})


def huge_rank(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.ones((10_000, tensor.shape[1]) if "lora_A" in name else (len(tensor), 10_000))
        for name, tensor in found.items()
        if "layer.0.attention.self.query" in name
    }


def still(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in found.items()}


HOSTILE: dict[str, tuple[Spoil, int, str]] = {
    "truncated": (bytes_of(lambda data: data[:-7]), 422, "adapter_refused"),
    "no safetensors": (bytes_of(lambda _data: b"\x80\x04pickle"), 422, "adapter_refused"),
    "a header that promises terabytes": (
        bytes_of(lambda data: (1 << 62).to_bytes(8, "little") + data[8:]),
        422,
        "adapter_refused",
    ),
    "not base64": (lambda body: body.update(weights="%%%%"), 422, "invalid_input"),
    "NaN": (tensors_of(first_set_to(float("nan"))), 422, "adapter_refused"),
    "infinite": (tensors_of(first_set_to(float("inf"))), 422, "adapter_refused"),
    "over the norm": (tensors_of(first_set_to(1e30)), 422, "adapter_refused"),
    "another base": (lambda body: body.update({"global": "f" * 64}), 409, "wrong_base"),
    "a rank of ten thousand": (
        lambda body: (config(r=10_000, target_modules=["query"])(body), tensors_of(huge_rank)(body))[0],
        422,
        "adapter_refused",
    ),
    "a rank that the weights don't have": (config(r=5), 422, "adapter_refused"),
    "an alpha beyond reason": (config(lora_alpha=1e9), 422, "adapter_refused"),
    "an infinite alpha": (config(lora_alpha="inf"), 422, "adapter_refused"),
    "a pattern as target": (config(rank_pattern={"(a+)+$": 2}), 422, "adapter_refused"),
    "DoRA": (config(use_dora=True), 422, "adapter_refused"),
    "another type": (config(peft_type="IA3"), 422, "adapter_refused"),
    "an unknown option": (config(do_this_too="rm -rf"), 422, "adapter_refused"),
    "names that lead elsewhere": (renamed("encoder.encoder", "../../etc"), 422, "adapter_refused"),
    "layers that are not there": (renamed("layer.0", "layer.77"), 422, "adapter_refused"),
    "A without B": (only("lora_A.weight"), 422, "adapter_refused"),
    "nothing changed": (tensors_of(still), 422, "changes_nothing"),
    "no reason": (lambda body: body.pop("reason"), 422, "invalid_input"),
    "nobody's": (lambda body: body.pop("domain"), 422, "invalid_input"),
    "a domain that is a path": (lambda body: body.update(domain="../other"), 422, "invalid_input"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_upload_is_refused_before_anything_is_touched(
    world: World, elsewhere: Callable[..., Path], what: str
) -> None:
    spoil, status, code = HOSTILE[what]
    api = world.api(world.key())
    body = upload_body(world, elsewhere(r=16)) | {"domain": "chat"}
    spoil(body)
    before = world.store.audit_head("acme")
    problem = assert_problem(api.post("/v1/adapters", body), status, code)
    assert "Traceback" not in json.dumps(problem)
    assert world.store.audit_head("acme") == before
    assert world.store.releases("acme") == world.store.versions("acme") == []
    assert list(world.blobs.walk()) == []
    world.engine.free_unused()
    assert world.engine.resident_bytes == 0
    assert of(api.rerank(domain="chat")) == bare(world)


def test_too_many_bytes_are_refused_while_they_arrive(
    tmp_path: Path, empty_database: Path, backbone: Path, elsewhere: Callable[..., Path]
) -> None:
    shutil.copy(empty_database, tmp_path / "x.db")
    with served_by(tmp_path, backbone, max_adapter_bytes=4096) as world:
        api, body = world.api(world.key()), upload_body(world, elsewhere(r=16)) | {"domain": "chat"}
        assert_problem(api.post("/v1/adapters", body), 413, "too_large")
        body["weights"] += "A" * (2 << 20)
        assert_problem(api.post("/v1/adapters", body), 413, "too_large")
        assert world.store.versions("acme") == []


def test_a_scrape_shows_the_shelf_and_what_the_runtime_holds(
    tmp_path: Path, empty_database: Path, backbone: Path, elsewhere: Callable[..., Path]
) -> None:
    shutil.copy(empty_database, tmp_path / "x.db")
    with served_by(tmp_path, backbone, metrics_token="a-long-enough-token") as world:

        def shown() -> dict[str, float]:
            lines = world.api("a-long-enough-token").get("/metrics").text.splitlines()
            return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

        assert {shown()[f"idiolect_lora_resident{part}"] for part in ("s", "_shapes", "_bytes")} == {0}
        world.opt_in("ann")
        api = world.api(world.key())
        upload(world, api, elsewhere("a", seed=1, r=16), user="ann")
        upload(world, api, elsewhere("b", seed=2, r=4), domain="chat")
        assert api.rerank("ann", domain="chat")["personalization"]["applied"]
        busy = shown()
        assert busy["idiolect_lora_residents"] == busy["idiolect_lora_resident_shapes"] == 2
        assert busy["idiolect_lora_resident_bytes"] > 0
        assert busy['idiolect_bank_entries{tier="lora"}'] == 2
        assert busy['idiolect_bank_evictions_total{tier="lora"}'] == busy["idiolect_bank_loading"] == 0
        api.post("/v1/users/ann/personalization/reset", {"scope": "adapter"})
        after = shown()
        assert after["idiolect_lora_residents"] == after['idiolect_bank_entries{tier="lora"}'] == 1
        assert after["idiolect_lora_resident_bytes"] < busy["idiolect_lora_resident_bytes"]


# --- what goes wrong at load ------------------------------------------------------------------------------------------


def test_a_lora_that_was_damaged_in_memory_is_noticed(world: World, elsewhere: Callable[..., Path]) -> None:
    upload(world, world.api(world.key()), elsewhere(), domain="chat")
    world.api(world.key()).rerank(domain="chat")
    world.bank.check_integrity()
    (family,) = world.engine._runtime.residents._families.values()
    with torch.inference_mode():
        next(iter(family.shared.values()))[0, 0] = torch.nan
    with pytest.raises(IdiolectError, match="weights are damaged"):
        world.bank.check_integrity()


def test_a_damaged_blob_is_quarantined_and_the_version_before_serves(
    world: World, elsewhere: Callable[..., Path]
) -> None:
    api = world.api(world.key())
    first = upload(world, api, elsewhere("a", seed=1, r=16), domain="chat")
    good = of(api.rerank(domain="chat"))
    second = upload(world, api, elsewhere("b", seed=2, r=16), domain="chat")
    (path,) = (world.root / "blobs").rglob(second["weights_sha256"])
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    answer = api.rerank(domain="chat")
    assert answer["personalization"]["domain"] == first["id"]
    assert of(answer) == good
    assert api.get(f"/v1/adapters/{second['id']}").json()["withheld"].startswith("quarantined")
    assert world.scorer.quarantine.count == 1


def test_a_blob_that_is_gone_takes_the_part_away_and_condemns_nothing(
    world: World, elsewhere: Callable[..., Path]
) -> None:
    world.opt_in("ann")
    api = world.api(world.key())
    version = upload(world, api, elsewhere(r=16), user="ann")
    shutil.rmtree(world.root / "blobs")
    answer = api.rerank("ann")
    assert answer["personalization"]["reason"] == "adapter_invalid"
    assert of(answer) == bare(world)
    assert api.get(f"/v1/adapters/{version['id']}").json()["withheld"] is None


def test_a_version_that_does_not_do_what_its_proof_says_is_quarantined(
    world: World, elsewhere: Callable[..., Path]
) -> None:
    """Signed with the right key, whole, and with a scale that is not the one that was proved."""
    api = world.api(world.key())
    uploaded = upload(world, api, elsewhere(), domain="chat")
    stored = world.store.with_weights(world.store.version("acme", uploaded["id"]))
    layout = stored.template.lora
    louder = replace(layout, targets=tuple(replace(target, alpha=target.alpha + 1.0) for target in layout.targets))
    template = replace(stored.template, lora=louder)
    version = replace(stored.version, id="louder", release="r-louder")
    signed = replace(version, signature=world.signer.sign(manifest_bytes(template, version)))
    world.store.publish("r-louder", template, [signed], world.clock.now(), reason="t", actor="t")
    answer = api.rerank(domain="chat")
    assert answer["personalization"]["domain"] == uploaded["id"]
    assert "score here as it did" in api.get("/v1/adapters/louder").json()["withheld"]


def test_a_machine_that_computes_otherwise_blames_no_version(world: World, elsewhere: Callable[..., Path]) -> None:
    api = world.api(world.key())
    version = upload(world, api, elsewhere(), domain="chat")
    world.engine._bare_probes[0] += 1.0  # the bare model's own score of a probe
    answer = api.rerank(domain="chat")
    assert answer["personalization"]["domain"] is None
    assert of(answer) == bare(world)
    assert api.get(f"/v1/adapters/{version['id']}").json()["withheld"] is None


def test_two_that_replace_the_same_layer_leave_the_domains_alone(world: World, elsewhere: Callable[..., Path]) -> None:
    world.opt_in("ann")
    api = world.api(world.key())
    saved = {"modules_to_save": ["score"]}
    upload(world, api, elsewhere("d", seed=1, **saved), domain="chat")
    upload(world, api, elsewhere("p", seed=2, **saved), user="ann")
    answer = api.rerank("ann", domain="chat")
    assert answer["personalization"]["reason"] == "adapter_invalid"
    assert of(answer) == of(api.rerank(domain="chat"))
    assert api.rerank("ann")["personalization"]["applied"]


def test_a_store_that_goes_down_while_it_is_read_leaves_the_global_ranking(
    world: World, elsewhere: Callable[..., Path]
) -> None:
    api = world.api(world.key())
    upload(world, api, elsewhere(), domain="chat")
    world.bank.unload(*world.named("domain", "chat"))

    def away(_tenant: str, _version: str) -> None:
        raise UnavailableError("down.")

    world.bank._load = away
    answer = api.rerank(domain="chat")
    assert answer["personalization"]["domain"] is None
    assert of(answer) == bare(world)


# --- swaps under traffic ----------------------------------------------------------------------------------------------


def test_every_answer_under_swaps_loads_and_evictions_is_of_exactly_the_version_it_names(
    tmp_path: Path, empty_database: Path, backbone: Path, elsewhere: Callable[..., Path]
) -> None:
    """Room for one LoRA at a time, no room for features, and versions that are swapped all the while."""
    shutil.copy(empty_database, tmp_path / "x.db")
    with served_by(tmp_path, backbone, lora_cache_bytes=20_000, feature_cache_bytes=0) as world:
        world.opt_in("ann")
        api = world.api(world.key())
        versions: dict[str, list[str]] = {"chat": [], "news": []}
        expected: dict[str | None, list[float]] = {None: bare(world)}
        for number in range(4):
            domain = ("chat", "news")[number % 2]
            uploaded = upload(world, api, elsewhere(f"l{number}", seed=number), domain=domain)
            versions[domain].append(uploaded["id"])
            expected[uploaded["id"]] = of(api.rerank(domain=domain))
        assert len({tuple(one) for one in expected.values()}) == 5
        assert world.bank.stats().loras == 1
        rng = random.Random(0)

        async def ask(client: httpx.AsyncClient) -> set[str | None]:
            named: set[str | None] = set()
            for _ in range(12):
                domain = rng.choice(("chat", "news", "nothing"))
                sent = {"query": "q", "documents": DOCUMENTS, "domain": domain}
                answer = (await client.post("/v1/rerank", json=sent)).json()
                version = answer["personalization"]["domain"]
                assert version in (*versions.get(domain, ()), *([] if domain in versions else [None]))
                assert of(answer) == expected[version]
                named.add(version)
            return named

        async def swap(stop: asyncio.Event) -> None:
            while not stop.is_set():
                domain = rng.choice(("chat", "news"))
                version, now = rng.choice(versions[domain]), world.clock.now()
                await asyncio.to_thread(world.store.promote, "acme", version, now, reason="swap", actor="t")

        async def all_at_once() -> set[str | None]:
            stop = asyncio.Event()
            transport = httpx.ASGITransport(world.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=api._headers) as client:
                swapping = asyncio.create_task(swap(stop))
                named = await asyncio.gather(*(ask(client) for _ in range(6)))
                stop.set()
                await swapping
            return set().union(*named)

        assert asyncio.run(all_at_once()) == set(expected)
        world.bank.check_integrity()
        world.features.check_integrity()


def test_the_client_registers_a_folder(world: World, elsewhere: Callable[..., Path]) -> None:
    folder = elsewhere()
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = (folder / "adapter_model.safetensors").read_bytes()
    client = client_of(world, world.key())
    digest = client.rerank("q", DOCUMENTS).personalization.global_
    version = client.register_lora(config, weights, global_digest=digest, reason="a test", domain="chat")
    assert (version.kind, version.epsilon, version.domain) == ("lora", None, "chat")
    assert client.rerank("q", DOCUMENTS, domain="chat").personalization.domain == version.id
    with pytest.raises(ApiInvalidInputError) as caught:
        client.register_lora(config, weights[:-1], global_digest=digest, reason="a test", domain="chat")
    assert caught.value.code == "adapter_refused"
    folder = elsewhere("next", seed=2)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    key = {"global_digest": digest, "reason": "better", "idempotency_key": "next-1"}
    second = client.register_lora_version(version.adapter, config, weights, **key)
    assert client.register_lora_version(version.adapter, config, weights, **key) == second
    assert client.pointers(version.adapter).live.version == second.id
    assert [entry.id for entry in client.adapter_versions(version.adapter).adapters] == [version.id, second.id]
    with pytest.raises(ApiInvalidInputError):
        client.register_lora_version(version.adapter, config, weights, **key | {"reason": "another"})
    with pytest.raises(NotFoundError):
        client.register_lora_version("nobody", config, weights, global_digest=digest, reason="r")


def test_an_explanation_of_a_persons_lora_has_no_directions(world: World, elsewhere: Callable[..., Path]) -> None:
    world.opt_in("ann")
    api = world.api(world.key())
    version = upload(world, api, elsewhere(), user="ann")
    told = api.get("/v1/users/ann/explanation").json()["adapter"]
    assert told["version"] == version["id"]
    assert (told["directions"], told["norm"], told["privacy"]) == ([], None, None)


def test_the_description_of_the_api_shows_an_upload(world: World) -> None:
    described = world.api().get("/openapi.json").json()
    schema = described["components"]["schemas"][AdapterUpload.__name__]
    assert set(schema["required"]) == {"global", "adapter_config", "weights", "reason"}
    assert schema["properties"]["adapter_config"]["examples"]
    assert "201" in described["paths"]["/v1/adapters"]["post"]["responses"]
