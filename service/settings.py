"""Settings of the control plane: flags over environment over file over default."""

from __future__ import annotations

import ipaddress
import os
import sys
from enum import StrEnum
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from tide_core.contracts.placement import Purpose, labels_for
from tide_core.contracts.reporting import DEFAULT_SCORE_DEADLINE_SECONDS

ENV_CONFIG = "TIDE_CONFIG"
"""Environment variable that names the settings file (TOML or YAML)."""


class Authentication(StrEnum):
    """What clients must show."""

    OFF = "off"
    """Nothing: every process that reaches the port may do everything."""
    TOKENS = "tokens"
    """A token (`tide tokens`)."""


class Settings(BaseSettings):
    """Everything that can be configured; each field is also `TIDE_<FIELD>` and a key of the settings file."""

    model_config = SettingsConfigDict(
        env_prefix="TIDE_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address that the control plane listens on."""
    port: int = Field(default=8700, ge=0, le=65535)
    """Port that the control plane listens on; 0 picks a free one."""
    authentication: Authentication = Authentication.OFF
    """`tokens`: the REST interface and the page need a token (`tide tokens create`); `off`: they need none,
    for 127.0.0.1 alone."""
    allow_unauthenticated: bool = False
    """Listen on another address than loopback with `authentication` off: every process that reaches the port
    may do everything."""
    bootstrap_token: SecretStr | None = None
    """A first token, with the role editor, under the name `bootstrap`: `tide_` and 43 or more letters and
    digits."""
    data_dir: Path = Path(".tide")
    """Folder of the embedded default: database, storage, logs, token of the local Ray head."""
    database_url: str | None = None
    """SQLAlchemy URL; default: SQLite in `data_dir`. PostgreSQL: `postgresql+asyncpg://...`."""
    storage: str | None = None
    """Folder or fsspec URL for prepared data, checkpoints and models; default: `storage` in `data_dir`."""
    ray_address: str = "http://127.0.0.1:8265"
    """URL of the Ray dashboard (its Jobs and Serve REST interfaces)."""
    ray_auth_token: SecretStr | None = None
    """Bearer token of the Ray dashboard, when Ray's token authentication is on."""
    control_url: str | None = None
    """URL under which workers reach this control plane; default: `http://<host>:<port>`."""
    worker_python: str = sys.executable
    """Interpreter that runs the workers on the Ray nodes."""
    reconcile_interval_seconds: float = Field(default=1.0, gt=0)
    """Pause between two looks of the reconciler."""
    teacher_linger_seconds: float = Field(default=300.0, ge=0)
    """How long a teacher's pool stays up, loaded, after its last lease; then it is taken down to nothing."""
    teacher_queue_delay_seconds: float = Field(default=0.5, gt=0)
    """Mean wait of score requests above which a pool grows, where a job gives it room to
    (`resources.teacher_replicas_max`)."""
    teacher_grow_seconds: float = Field(default=30.0, ge=0)
    """How long requests must wait too long before a pool grows."""
    teacher_shrink_seconds: float = Field(default=300.0, ge=0)
    """How long a replica must be superfluous before a pool shrinks."""
    place_by_purpose: bool = False
    """Run teachers, trainers and preparation only on nodes that carry the label `tide.dev/purpose` with
    `teacher`, `trainer` or `preparation` (`ray start --labels`; the chart's worker groups do)."""
    teacher_start_timeout_seconds: float = Field(default=1800.0, gt=0)
    """How long a job waits for its teacher to become ready before it fails."""
    score_deadline_seconds: float = Field(default=DEFAULT_SCORE_DEADLINE_SECONDS, gt=0)
    """How long a trainer asks a teacher that does not answer, before its attempt ends and the job waits
    without holding trainers."""
    teacher_loss_timeout_seconds: float = Field(default=21_600.0, gt=0)
    """How long a job may continue after its teacher has stopped answering, before it fails; until then such
    losses use up none of its attempts."""
    pause_timeout_seconds: float = Field(default=120.0, gt=0)
    """How long a trainer may take to save and end when its job is paused."""
    max_active_jobs: int = Field(default=16, ge=1)
    """Jobs that are worked on at once; the others wait in the queue."""
    ray_num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of the embedded Ray head; default: the machine's cores, at least 4."""
    ray_num_gpus: int | None = Field(default=None, ge=0)
    """GPUs of the embedded Ray head; default: what Ray finds."""
    ray_object_store_bytes: int | None = Field(default=None, ge=80 << 20)
    """Object store of the embedded Ray head; default: a fifth of the memory, at most 1 GiB."""
    ray_dashboard_port: int = Field(default=0, ge=0, le=65535)
    """Dashboard port of the embedded Ray head; 0 picks a free one."""
    ray_temp_dir: Path | None = None
    """Session folder of the embedded Ray head; default: in `data_dir` where the path is short enough."""
    events_poll_seconds: float = Field(default=0.5, gt=0)
    """How often an event stream looks for new events."""
    events_heartbeat_seconds: float = Field(default=15.0, gt=0)
    """Pause after which an idle event stream sends a comment, so that proxies keep it open."""
    log_level: str = "INFO"
    """Least severe level that is logged."""
    tracing_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/]+")
    """Base URL of an OpenTelemetry collector, such as `http://collector:4318`; default: no traces."""
    migrate_on_start: bool = True
    """Bring the database to the newest schema at start; turn off where a deployment migrates on its own."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then the file that `TIDE_CONFIG` names."""
        return (init_settings, env_settings, *_file_sources(settings_cls))

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine's users may reach the control plane, and need no token."""
        return self.authentication == Authentication.OFF and not _is_loopback(self.host)

    @property
    def resolved_database_url(self) -> str:
        """The database URL with the default filled in."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.resolve() / 'tide.db'}"

    @property
    def resolved_storage(self) -> str:
        """The storage root with the default filled in; folders are absolute."""
        if self.storage is None:
            return str(self.data_dir.resolve() / "storage")
        return self.storage if "://" in self.storage else str(Path(self.storage).resolve())

    @property
    def resolved_control_url(self) -> str:
        """Where workers reach the control plane."""
        return (self.control_url or f"http://{self.host}:{self.port}").rstrip("/")

    def node_labels(self, purpose: Purpose) -> dict[str, str]:
        """Labels that a node must carry to run what is for this purpose; empty where any node will do."""
        return labels_for(purpose) if self.place_by_purpose else {}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file_sources(settings_cls: type[BaseSettings]) -> tuple[PydanticBaseSettingsSource, ...]:
    name = os.environ.get(ENV_CONFIG)
    if not name:
        return ()
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{ENV_CONFIG} names {path}, which is not a file")
    if path.suffix == ".toml":
        return (TomlConfigSettingsSource(settings_cls, toml_file=path),)
    return (YamlConfigSettingsSource(settings_cls, yaml_file=path),)
