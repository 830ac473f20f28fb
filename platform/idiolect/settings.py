"""All settings, each an environment variable IDIOLECT_<NAME>, or a file idiolect_<name> in IDIOLECT_SECRETS_DIR."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from idiolect.errors import ConfigurationError

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"

# An epsilon of one training and of a budget above these protects so little that it must be asked for.
MAX_EPSILON, MAX_BUDGET_EPSILON = 20.0, 50.0


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="IDIOLECT_", extra="ignore", frozen=True)

    home: Path = Field(Path("~/.idiolect"), description="The one folder that holds all state.")
    secrets_dir: Path | None = Field(
        None,
        description="Folder with the installation's keys, which servers never write to; may hold settings as files "
        "too. `secrets` in the home, made on first use, if not set.",
    )
    data_dir: Path | None = Field(None, description="Folder of real data sets; the demo then runs on its `polis`.")
    backbone: str = Field(DEFAULT_BACKBONE, description="Hugging Face id or local folder of the encoder or decoder.")
    precision: Precision = Field(
        "float32", description="What the next global model's backbone computes in: float32, bfloat16 or int8 (CPU)."
    )
    device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Where the backbone runs: cpu, cuda, or cuda:1 and so on."
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL of the store; a SQLite file under the home folder if not set."
    )
    keys_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the key store, never the database's own; a SQLite file under the home folder if "
        "not set.",
    )
    blob_url: str | None = Field(
        None, description="Where large weights lie: file:///DIR or s3://BUCKET/PREFIX; `blobs` in the home if not set."
    )
    s3_access_key_id: SecretStr | None = Field(
        None, description="Key id for s3://; as every tool of AWS finds it if not set."
    )
    s3_secret_access_key: SecretStr | None = Field(None, description="The secret that belongs to it.")
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8080, ge=1, le=65535, description="Port that the API listens on.")
    max_documents: int = Field(1000, ge=1, description="Most documents in one request.")
    max_text_chars: int = Field(20_000, ge=1, description="Longest query or document, in characters.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body, in bytes.")
    max_import_bytes: int = Field(
        64 << 20, ge=1024, le=1 << 34, description="Largest release that may be imported over the API, in bytes."
    )
    feature_cache_bytes: int = Field(256 << 20, ge=0, description="Memory for cached text features, in bytes.")
    lora_cache_bytes: int = Field(512 << 20, ge=0, description="Memory for LoRAs of inner layers, in bytes.")
    max_adapter_bytes: int = Field(
        64 << 20, ge=1024, le=1 << 30, description="Largest PEFT LoRA that may be registered, in bytes."
    )
    allow_weak_privacy: bool = Field(
        False, description="Allow an epsilon over 20 for a training, or over 50 for a budget; manifests then say so."
    )
    user_epsilon: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="Epsilon of one training of a user adapter (unit: comparison)."
    )
    user_budget_epsilon: float = Field(
        8.0, gt=0, allow_inf_nan=False, description="Epsilon that all trainings of one user adapter may reach."
    )
    domain_epsilon: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="Epsilon of one training of a domain adapter (unit: subject)."
    )
    domain_budget_epsilon: float = Field(
        12.0,
        gt=0,
        allow_inf_nan=False,
        description="Epsilon that all trainings of domains and of a private global model may reach for a subject.",
    )
    domain_sample_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Chance of each subject to be read in a step of a domain training; 1 reads everybody each time.",
    )
    global_epsilon: float = Field(
        4.0,
        gt=0,
        allow_inf_nan=False,
        description="Epsilon of one private training of the global model (unit: subject).",
    )
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Delta of trainings and budgets; if not set, 1e-5, and smaller in domains of over 10,000 people.",
    )
    budget_renewal_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="Days after which a charge no longer counts towards a budget, which then holds per so many days.",
    )
    local_epsilon: float | None = Field(
        None,
        ge=0.1,
        le=20,
        description="Epsilon of the randomised response that feedback passes before it is stored; off if not set.",
    )
    retrain_after: int = Field(3, ge=1, description="New comparisons of a person before they are trained again.")
    max_requests: int = Field(
        1000, ge=1, description="Most requests under way in one process; more are refused with 503 and Retry-After."
    )
    queue_texts: int = Field(8_000, ge=1, description="Most texts that wait for the model, of all tenants together.")
    tenant_queue_texts: int = Field(2_000, ge=1, description="Most texts of one tenant that wait for the model.")
    compute_seconds: float = Field(
        30.0, gt=0, le=600, description="Longest time that a request waits for the model, unless it says less itself."
    )
    metrics_token: SecretStr | None = Field(
        None, min_length=16, description="What a scraper of /metrics sends as its bearer token; not served if not set."
    )
    tenant_rate_limit: str | None = Field(
        None, description="Most calls of a tenant, such as 6000/minute; no limit if not set."
    )
    key_rate_limit: str | None = Field(None, description="Most calls with one key; no limit if not set.")
    redis_url: str | None = Field(
        None,
        description="Redis that counts calls for all replicas together, spares Postgres a part of most rankings, "
        "and hastens what replicas tell each other; each process is alone if not set.",
    )
    idempotency_hours: float = Field(
        24.0, gt=0, le=720, description="Hours for which a request sent again with its Idempotency-Key is recognised."
    )
    oidc_issuer: str | None = Field(
        None, description="OpenID Connect issuer at which administrators log in, an https address; off if not set."
    )
    oidc_audience: str | None = Field(None, description="What the issuer writes into `aud` of tokens for Idiolect.")
    oidc_roles: str = Field(
        "", description="What roles may do, such as ops=registry+admin, viewers=registry; nobody anything."
    )
    oidc_roles_claim: str = Field("roles", min_length=1, description="Claim with the roles: a list, or words.")
    oidc_tenant_claim: str = Field("tenant", min_length=1, description="Claim with the tenant that a token is for.")
    oidc_jwks_url: str | None = Field(
        None,
        description="Where the issuer's keys are, if on another host than the issuer; found by discovery if not set.",
    )
    retention_days: int = Field(
        365, ge=1, le=3_650, description="Days for which served texts are kept, where a tenant does not say otherwise."
    )
    operator_tenant: str | None = Field(
        None,
        description="Tenant whose admins may roll out a global model to all tenants; only the command line if not set.",
    )
    browser_origins: str = Field(
        "", description="Whose pages may call with their users' tokens (CORS), such as https://shop.example; none."
    )
    upstream_hosts: str = Field(
        "", description="Where tenants may have completions made: names, or origins like http://10.0.0.5:8000; none."
    )
    upstream_seconds: float = Field(
        60.0, gt=0, le=600, description="Time that an upstream may take for all candidates of one completion."
    )

    @field_validator("user_epsilon", "domain_epsilon", "global_epsilon", "user_budget_epsilon", "domain_budget_epsilon")
    @classmethod
    def _no_weak_privacy_by_accident(cls, epsilon: float, info: ValidationInfo) -> float:
        most = MAX_BUDGET_EPSILON if "budget" in (info.field_name or "") else MAX_EPSILON
        if epsilon > most and not info.data.get("allow_weak_privacy", False):
            raise ValueError(f"{epsilon:g} is over {most:g}, which needs IDIOLECT_ALLOW_WEAK_PRIVACY=true")
        return epsilon

    @property
    def root(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def secrets(self) -> Path:
        return self.root / "secrets" if self.secrets_dir is None else self.secrets_dir.expanduser().resolve()

    @property
    def sql_url(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'idiolect.db'}"

    @property
    def key_store_url(self) -> str:
        return self.keys_url or f"sqlite:///{self.root / 'keys' / 'people.db'}"


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment; `overrides` that are not None win. Raises ConfigurationError naming each bad
    one.
    """
    try:
        given = {key: value for key, value in overrides.items() if value is not None} | {"_secrets_dir": _mounted()}
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "IDIOLECT_" + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigurationError(f"{name} is not valid: {first['msg']}.", mend="Correct or unset it.") from error


def _mounted() -> Path | None:
    """Where settings that are secrets may lie as files, as containers mount them."""
    named = os.environ.get("IDIOLECT_SECRETS_DIR")
    if named is None:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ConfigurationError(
            f"IDIOLECT_SECRETS_DIR is {named[:200]!r}, which is no folder.",
            mend="Mount the installation's secrets there, or unset it.",
        )
    return folder
