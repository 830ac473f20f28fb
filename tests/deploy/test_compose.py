"""The compose file: it fits the settings, the image and the script that makes its secrets."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from idiolect.settings import Settings, load_settings
from idiolect.upstreams import HostRules
from idiolect_services.secrets import KEY_FILES

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
VARIABLES = {f"IDIOLECT_{name.upper()}" for name in Settings.model_fields}
SECRET_SETTINGS = {f"idiolect_{name}" for name in Settings.model_fields}


def make_secrets(folder: Path) -> dict[str, bytes]:
    subprocess.run(["sh", str(DEPLOY / "make-secrets.sh"), str(folder)], check=True, timeout=60)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_servers_alike_but_for_their_volumes() -> None:
    one, two = ({**SERVICES[name]} for name in ("replica-1", "replica-2"))
    assert one.pop("volumes") != two.pop("volumes")
    assert one == two


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_is_valid(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = OURS[name]["environment"]
    ours = {variable for variable in environment if variable.startswith("IDIOLECT_")}
    assert ours <= VARIABLES
    assert {variable for variable in environment if variable not in ours} == {
        "AWS_ENDPOINT_URL",
        "AWS_ALLOW_HTTP",
        "AWS_REGION",
    }
    make_secrets(tmp_path / "secrets")
    for variable, value in environment.items():
        assert isinstance(value, str)
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("IDIOLECT_SECRETS_DIR", str(tmp_path / "secrets"))
    settings = load_settings()
    assert settings.sql_url.startswith("postgresql://idiolect:")
    assert (settings.redis_url or "").startswith("redis://:")
    assert settings.s3_access_key_id is not None
    HostRules.parse(settings.upstream_hosts)


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_write_to_their_volume_and_nothing_else(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # the image's, which is not root
    home = service["environment"]["IDIOLECT_HOME"]
    assert [volume.split(":")[1:] for volume in service["volumes"]] == [[home]]
    assert (
        f"install --directory --owner idiolect --group idiolect --mode 0700 {home}"
        in (DEPLOY / "Dockerfile").read_text()
    )


@pytest.mark.parametrize("name", OURS)
def test_every_secret_is_a_file_of_which_we_know_what_it_is(name: str) -> None:
    mounted = set(OURS[name]["secrets"])
    assert mounted <= SECRET_SETTINGS | set(KEY_FILES)
    assert set(KEY_FILES) | {"idiolect_database_url", "idiolect_keys_url"} <= mounted
    assert OURS[name]["environment"]["IDIOLECT_SECRETS_DIR"] == "/run/secrets"


def test_the_script_makes_exactly_the_secrets_that_are_mounted_and_never_replaces_one(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    assert {f"secrets/{name}" for name in made} == {secret["file"] for secret in COMPOSE["secrets"].values()}
    assert {name for service in SERVICES.values() for name in service.get("secrets", ())} == set(made)
    assert [len(made[name]) for name in KEY_FILES] == [32, 32]
    assert make_secrets(tmp_path) == made
    assert stat.S_IMODE(tmp_path.stat().st_mode) in (0o700, 0o755)  # a folder that is there keeps its mode
    identity = json.loads(made["s3.json"])["identities"][0]["credentials"][0]
    assert identity["accessKey"].encode() == made["idiolect_s3_access_key_id"]
    assert identity["secretKey"].encode() == made["idiolect_s3_secret_access_key"]


def test_new_secrets_lie_in_a_folder_that_keeps_others_out_and_differ_each_time(tmp_path: Path) -> None:
    one, two = make_secrets(tmp_path / "one"), make_secrets(tmp_path / "two")
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o700
    assert not {name for name in one if one[name] == two[name]}


def test_the_keys_of_people_lie_in_a_database_and_a_volume_of_their_own(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    assert made["idiolect_keys_url"] != made["idiolect_database_url"]
    assert SERVICES["keys"]["volumes"] != SERVICES["postgres"]["volumes"]
    assert made["keys_password"] in made["idiolect_keys_url"]


def test_secrets_are_never_in_the_file_nor_in_the_environment() -> None:
    variables = {name for service in SERVICES.values() for name in service.get("environment", {})}
    telling = {name for name in variables if re.search("PASSWORD|SECRET|KEY|TOKEN|DATABASE_URL|REDIS_URL", name)}
    assert telling == {"POSTGRES_PASSWORD_FILE", "IDIOLECT_SECRETS_DIR"}
    assert re.search(r"^/deploy/secrets/$", (DEPLOY.parent / ".gitignore").read_text(), re.MULTILINE)


def test_servers_start_after_the_migration_and_the_proxy_after_healthy_servers() -> None:
    replica = SERVICES["replica-1"]["depends_on"]
    assert replica["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["command"] == ["migrate"]
    for database in ("postgres", "keys"):
        assert SERVICES["migrate"]["depends_on"][database] == {"condition": "service_healthy"}
    assert SERVICES["migrate"]["depends_on"]["bucket"] == {"condition": "service_completed_successfully"}
    for name in ("replica-1", "replica-2"):
        assert SERVICES["proxy"]["depends_on"][name] == {"condition": "service_healthy"}
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES
            if how["condition"] == "service_healthy":
                assert needed in OURS or "healthcheck" in SERVICES[needed], f"{name} waits for the health of {needed}"


def test_every_image_is_pinned_to_a_release() -> None:
    for name, service in SERVICES.items():
        if name not in OURS:
            assert re.fullmatch(r"[a-z/]+:\d+\.\d+[\w.-]*", service["image"]), name


def test_only_the_proxy_is_reachable_and_only_from_this_machine() -> None:
    assert [name for name, service in SERVICES.items() if service.get("ports")] == ["proxy"]
    assert SERVICES["proxy"]["ports"] == ["127.0.0.1:${IDIOLECT_PORT:-8080}:8080"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "keys", "redis", "s3"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_the_proxy_sends_to_all_servers_asks_whether_they_can_serve_and_hides_metrics() -> None:
    caddyfile = (DEPLOY / "Caddyfile").read_text()
    assert "reverse_proxy replica-1:8080 replica-2:8080" in caddyfile
    assert "health_uri /readyz" in caddyfile
    assert "respond /metrics 404" in caddyfile


def test_the_database_belongs_to_an_ordinary_user_whom_row_level_security_binds() -> None:
    """What the script does is tried in tests/contracts/test_tenant_wall.py; the image runs it if it may."""
    postgres = SERVICES["postgres"]
    assert set(postgres["environment"]) == {"POSTGRES_PASSWORD_FILE"}  # so that the superuser is another one
    (mounted,) = [volume for volume in postgres["volumes"] if "initdb.d" in volume]
    assert mounted == "./postgres-role.sh:/docker-entrypoint-initdb.d/role.sh:ro"
    assert (DEPLOY / "postgres-role.sh").stat().st_mode & 0o111
