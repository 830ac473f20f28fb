"""What the README says about settings, feedback, calls and data is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import httpx
import pytest
from pydantic import BaseModel

from idiolect.settings import Settings
from idiolect.signals.events import SignalKind
from idiolect.signals.importers import IMPORTERS
from idiolect.signals.importers.sample import load_sample
from idiolect_services.gateway.schemas.controls import ConsentRequest
from idiolect_services.gateway.schemas.feedback import SignalRequest
from idiolect_services.gateway.schemas.ranking import RerankRequest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BODIES: dict[str, type[BaseModel]] = {
    "/v1/rerank": RerankRequest,
    "/v1/feedback": SignalRequest,
    "/personalization": ConsentRequest,
}


def _rows(start: str) -> dict[str, list[str]]:
    """The rows of the table whose header line starts with `start`, by their first cell without backquotes."""
    lines = README[README.index(f"\n{start}") :].strip().splitlines()
    rows = [line.strip("|").split(" | ") for line in lines[2 : lines.index("") if "" in lines else None]]
    return {row[0].strip().strip("`"): [cell.strip().strip("`") for cell in row[1:]] for row in rows}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _check_body(path: str, body: str | bytes) -> None:
    (model,) = [model for ending, model in BODIES.items() if path.endswith(ending)]
    model.model_validate_json(body, strict=True)
    unknown = set(json.loads(body)) - set(model.model_fields)
    assert not unknown


def test_the_settings_table_is_exactly_the_settings() -> None:
    expected = []
    for name, field in Settings.model_fields.items():
        default = "not set" if field.default is None else f"`{field.default}`"
        expected.append(f"| `IDIOLECT_{name.upper()}` | {default} | {field.description} |")
    missing = [row for row in expected if row not in README.splitlines()]
    assert not missing, "add to the README:\n" + "\n".join(missing)
    assert list(_rows("| variable |")) == [f"IDIOLECT_{name.upper()}" for name in Settings.model_fields]


def test_the_feedback_table_names_every_kind() -> None:
    assert set(_rows("| kind |")) == set(get_args(SignalKind))


def test_the_data_table_names_every_format() -> None:
    assert set(_rows("| format |")) == set(IMPORTERS)


def test_the_curl_examples_send_what_the_api_accepts() -> None:
    calls = re.findall(r"curl .*?http://127\.0\.0\.1:8080(\S+).*?-d '(.*?)'", "".join(_blocks("bash")), re.DOTALL)
    assert len(calls) == 2
    for path, body in calls:
        _check_body(path, body)


def test_the_python_example_runs_and_sends_what_the_api_accepts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = _blocks("python")
    (tmp_path / ".idiolect" / "secrets").mkdir(parents=True)
    (tmp_path / ".idiolect" / "secrets" / "demo-api-key").write_text("idio_of_the_test")
    monkeypatch.setenv("HOME", str(tmp_path))
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer idio_of_the_test"
        _check_body(request.url.path, request.content)
        asked.append(request.url.path)
        order = [{"index": 1}, {"index": 0}]
        return httpx.Response(200, json={"id": "inference-1", "results": order, "personalization": {"applied": True}})

    client = httpx.Client

    def offline(**options: object) -> httpx.Client:
        return client(**options, transport=httpx.MockTransport(answer))  # type: ignore[arg-type]

    monkeypatch.setattr(httpx, "Client", offline)
    exec(compile(example, "README.md", "exec"), {})
    assert asked == ["/v1/rerank", "/v1/feedback"]
    assert "'applied': True" in capsys.readouterr().out


def test_the_python_example_has_ten_lines_and_names_a_person_and_domain_of_the_sample() -> None:
    (example,) = _blocks("python")
    sample = load_sample(ROOT / "deploy" / "sample")
    assert len([line for line in example.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    assert set(re.findall(r'"user": "([^"]+)"', example)) <= sample.new_people
    assert set(re.findall(r'"domain": "([^"]+)"', example)) <= {item.domain for item in sample.items}


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("deploy/*/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_paths_that_the_documents_name_exist() -> None:
    pages = [ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("deploy/decisions/*.md")]
    for page in pages:
        for path in re.findall(r"`((?:tests|deploy|platform|services|adapters)/[\w./-]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.relative_to(ROOT)} names {path}"


def test_folders_in_the_readme_of_each_top_folder_exist() -> None:
    roots = {"platform": "idiolect", "adapters": "idiolect_adapters", "services": "idiolect_services"}
    for top in ("platform", "adapters", "services", "deploy"):
        inside = ROOT / top / roots.get(top, "")
        rows = [
            line.split(" | ")[0] for line in (ROOT / top / "README.md").read_text().splitlines() if line[:3] == "| `"
        ]
        for name in [name for row in rows for name in re.findall(r"`([^`]+)`", row)]:
            found = (
                (inside / name).is_dir()
                if name.endswith("/")
                else (inside / f"{name}.py").is_file() or (inside / name).is_file()
            )
            assert found, f"{top}/README.md names {name}"


def test_every_part_of_a_package_is_in_the_readme_of_its_folder() -> None:
    folders = {"platform": "idiolect", "services": "idiolect_services", "adapters": "idiolect_adapters", "tests": ""}
    for top, package in folders.items():
        text = (ROOT / top / "README.md").read_text()
        for path in (ROOT / top / package).iterdir():
            if top != "tests" and path.suffix == ".py" and path.stem != "__init__":
                assert f"`{path.stem}`" in text, f"{top}/README.md lacks {path.stem}"
            if path.is_dir() and any(file.name != "__init__.py" for file in path.glob("*.py")):
                assert f"`{path.name}/`" in text, f"{top}/README.md lacks {path.name}/"
