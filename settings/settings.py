"""Tidegate's settings: read once, from the environment, `.env` and a TOML file, the first that has it.

A name that nobody knows is an error wherever it stands, as a misspelt setting is a default in disguise.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tidegate.settings.addresses.alerts import Alerts, AlertStdout, Secrets
from tidegate.settings.addresses.sinks import Billing, BillingFile, DeadLetterFile, DeadLetters
from tidegate.settings.addresses.sources import Source
from tidegate.settings.addresses.stores import Sqlite, Store
from tidegate.settings.durations import Duration, between
from tidegate.settings.layers import ELSEWHERE, PREFIX, Environment, check_env_file, origin_of, toml_layer
from tidegate.settings.problems import SettingsError, did_you_mean, explain

KIB: Final = 1024
MIB: Final = 1024 * KIB
Branch = Literal["store", "alerts", "billing"]


def _parted(value: Any) -> Any:
    """Return the names in `a,b`, each once, in the order of `Branch`."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if not isinstance(value, list | tuple):
        return value
    known = get_args(Branch)
    # What is unknown stays, at the end, for the message about it.
    return [name for name in known if name in value] + [name for name in value if name not in known]


Branches = Annotated[tuple[Branch, ...], BeforeValidator(_parted), Field(min_length=1)]


def _listened(value: Any) -> Any:
    """`HOST:PORT` as its two parts."""
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    if not (host and colon and port.isdigit() and int(port) < 65536):
        raise ValueError("needs HOST:PORT, such as 127.0.0.1:9464")
    return host.strip("[]"), int(port)


HostPort = Annotated[tuple[str, int], BeforeValidator(_listened)]


class Settings(BaseSettings):
    """Everything that may be chosen about a flow. Addresses are text: `scheme:path?option=value`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        # Others keep their variables in the same file; ours are told by the prefix.
        dotenv_filtering="match_prefix",
        # Compose files pass on `X=${X}`, empty where it is not set.
        env_ignore_empty=True,
        enable_decoding=False,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    config: Path | None = Field(None, description="The TOML file, if it is not ./tidegate.toml.")
    source: Source = Field(description="Where events come from, such as file:events.ndjson or demo:.")
    store: Store = Field(Sqlite(path="data/tidegate.db"), description="Where totals are kept.")
    alerts: Alerts = Field(
        (AlertStdout(),), description="Where alerts go: one address, or several separated by spaces."
    )
    webhook_secrets: SecretStr | None = Field(
        None,
        description="The secrets that webhook: signs with: whsec_…, separated by spaces, the newest first.",
    )
    slack_url: SecretStr | None = Field(None, description="The incoming webhook that slack: posts to.")
    dead_letters: DeadLetters = Field(
        DeadLetterFile(path="data/dead-letters.ndjson"), description="Where refused events go."
    )
    billing: Billing = Field(BillingFile(path="data/billing/"), description="Where usage is billed.")
    dodo_api_key: SecretStr | None = Field(
        None, description="The API key of Dodo Payments, for dodo: billing."
    )
    branches: Branches = Field(
        ("store", "alerts"),
        description="The branches that run here: store, alerts, billing. Dead letters always run.",
    )
    catalog: Path = Field(Path("catalog.yaml"), description="Meters, plans, caps and customers, in YAML.")
    data_dir: Path = Field(Path("data"), description="The folder of the recovery store and the journal.")
    recovery: bool = Field(True, description="Keep state across restarts.")
    recovery_parts: int = Field(
        1, ge=1, le=1024, description="Parts of the recovery store: at least as many as there are processes."
    )
    epoch: Annotated[Duration, between("1s", "10m")] = Field(
        timedelta(seconds=10),
        description="The time between two snapshots, which a restart reads again.",
    )
    lateness: Annotated[Duration, between("0", "35d")] = Field(
        timedelta(hours=24),
        description="How late an event may arrive; its identity is remembered for as long.",
    )
    future: Annotated[Duration, between("0", "1d")] = Field(
        timedelta(minutes=5),
        description="How far an event may be ahead of its receipt, and how far one event can move now.",
    )
    clock: Literal["auto", "wall", "event"] = Field(
        "auto",
        description="What now is: `wall`, the time at which the transport took an event, or `event`, the latest"
        " event's; `auto` chooses by the source.",
    )
    shards: int = Field(
        16, ge=1, le=1024, description="Parts of the state, a power of two. Fixed at the first start."
    )
    poll_bytes: ByteSize = Field(
        ByteSize(16 * MIB), ge=4 * KIB, le=16 * MIB, description="How many bytes a source reads at once."
    )
    payload_bytes_max: ByteSize = Field(
        ByteSize(MIB), ge=KIB, le=16 * MIB, description="The longest payload; longer ones are dead letters."
    )
    coalesce: Annotated[Duration, between("0", "10s")] = Field(
        timedelta(milliseconds=10),
        description="The shortest time between two writes of one shard to the store.",
    )
    store_aside: int = Field(
        20_000,
        ge=0,
        description="From this many totals at once, an asynchronous writer process writes to sqlite: (0: never).",
    )
    metrics: HostPort | None = Field(
        None,
        description="Where /metrics, /healthz and /readyz are served, as HOST:PORT; process 1 has the next port.",
    )
    stall: Annotated[Duration, between("1s", "1h")] = Field(
        timedelta(seconds=30),
        description="After this time with input but without progress, the process is not ready.",
    )
    peer_timeout: Annotated[Duration, between("1s", "1d")] = Field(
        timedelta(minutes=5),
        description="How long a process waits at its start for the others of its cluster; then it exits with 1.",
    )
    log: Literal["text", "json"] = Field("text", description="The format of log lines: text, or JSON.")
    traces: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="The OpenTelemetry collector that traces go to, such as http://127.0.0.1:4318.",
    )
    sync: bool = Field(True, description="Force the journal to disk at snapshots (fsync).")

    @model_validator(mode="before")
    @classmethod
    def _pass_over(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Leave out the service's settings, which stand in the same files."""
        return {
            name: value
            for name, value in given.items()
            if name in cls.model_fields or name.lower() not in ELSEWHERE
        }

    @field_validator("shards")
    @classmethod
    def _is_power_of_two(cls, shards: int) -> int:
        if shards & (shards - 1):
            raise ValueError("needs a power of two")
        return shards

    @field_validator("epoch")
    @classmethod
    def _is_whole_seconds(cls, epoch: timedelta) -> timedelta:
        # Bytewax takes no fraction from its command line or variables.
        if epoch % timedelta(seconds=1):
            raise ValueError("needs whole seconds")
        return epoch

    @property
    def delivery_secrets(self) -> Secrets:
        """What alerts are signed and posted with."""
        return Secrets(self.webhook_secrets, self.slack_url)

    @property
    def now(self) -> Literal["wall", "event"]:
        """What `clock` comes to: `auto` is the wall clock for live sources, else event time."""
        if self.clock != "auto":
            return self.clock
        return "wall" if self.source.live else "event"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        environment = Environment(settings_cls)
        named = {**dotenv_settings(), **environment(), **init_settings()}.get("config")
        return init_settings, environment, dotenv_settings, toml_layer(settings_cls, named)


S = TypeVar("S", bound=Settings)


def load_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """Return the flow's settings, with `overrides` (names of fields, values as text or typed) before all else.

    SettingsError has one line per problem: the setting, what was expected, what came. No line shows an
    address, as there may be a password in it.
    """
    return load_settings_of(Settings, overrides)


def load_settings_of(model: type[S], overrides: Mapping[str, object] | None = None) -> S:
    """As `load_settings`, of a program that has settings of its own beside the flow's."""
    arguments = dict(overrides or {})
    check_env_file()
    try:
        return model(**arguments)  # type: ignore[arg-type]
    except ValidationError as error:
        found = error.errors(include_url=False)
    # Outside of the except block, so that no traceback drags the values along.
    raise SettingsError([_problem(model, line, arguments) for line in found])


def _problem(model: type[Settings], line: ErrorDetails, arguments: Mapping[str, object]) -> str:
    field, *inside = (str(part) for part in line["loc"] if isinstance(part, str))
    name = ".".join(part.upper() for part in (PREFIX + field, *inside))
    origin = origin_of(field, arguments, model.model_fields)
    known = model.model_fields.get(field)
    if not known:
        fields = [other.upper() for other in model.model_fields]
        hint = did_you_mean(field.upper(), fields, PREFIX)
        return f"{name}{origin}: is unknown{hint or '; choices: ' + PREFIX + f', {PREFIX}'.join(fields)}"
    if line["type"] == "missing":
        return f"{name}: is missing: {known.description}"
    return f"{name}{origin}: {explain(line)}"
