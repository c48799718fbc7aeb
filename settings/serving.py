"""What may be chosen about the HTTP service, beside what it shares with the flow: store, catalog, billing."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, ValidationInfo, field_validator

from tidegate.settings.addresses.ingest import Ingest, IngestLog
from tidegate.settings.addresses.sources import File, Source
from tidegate.settings.durations import Duration, between
from tidegate.settings.settings import MIB, HostPort, Settings, load_settings_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _listed(value: Any) -> Any:
    """Return the origins in `https://a.example,https://b.example`."""
    if not isinstance(value, str):
        return value
    return tuple(origin.strip().rstrip("/") for origin in value.split(",") if origin.strip())


Origin = Annotated[str, Field(pattern=r"^https?://[a-zA-Z0-9.\[\]:-]{1,253}$")]
Origins = Annotated[tuple[Origin, ...], BeforeValidator(_listed), Field(max_length=100)]


class ServingSettings(Settings):
    """Everything that may be chosen about the service. It reads no source, so none need be named."""

    source: Source = Field(File(path="-"), description="Where the flow's events come from.")
    listen: HostPort = Field(("127.0.0.1", 8080), description="Where the HTTP service listens, as HOST:PORT.")
    auth: Literal["keys", "none"] = Field(
        "keys", description="Who may call: holders of an API key, or, on a loopback address only, everyone."
    )
    keys: Path = Field(Path("data/keys.db"), description="The file of API keys; `tidegate keys` writes it.")
    ingest: Ingest = Field(
        IngestLog(path="data/ingest/"), description="Where the service writes the events that it accepts."
    )
    request_bytes_max: ByteSize = Field(
        ByteSize(4 * MIB), ge=1024, le=64 * MIB, description="The longest body of a request."
    )
    batch_max: int = Field(1000, ge=1, le=10_000, description="The largest number of events in a request.")
    rate_per_key: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Requests per second and API key; the requests of one second may arrive at once.",
    )
    rate_per_customer_key: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="The same for a key or token of one customer, which is in that customer's browsers.",
    )
    streams_max: int = Field(1000, ge=1, le=100_000, description="The largest number of open streams (SSE).")
    streams_per_key: int = Field(
        500, ge=1, le=100_000, description="The largest number of streams with one API key."
    )
    streams_per_customer: int = Field(
        10,
        ge=1,
        le=100_000,
        description="The largest number of streams with all keys and tokens of one customer.",
    )
    connections_max: int = Field(
        2000,
        ge=10,
        le=200_000,
        description="The largest number of connections; twice `TIDEGATE_STREAMS_MAX` are always allowed.",
    )
    connections_per_address: int = Field(
        1500,
        ge=1,
        le=200_000,
        description="The largest number of connections of one address, which may be a proxy's.",
    )
    max_lag: Annotated[Duration, between("1s", "35d")] = Field(
        timedelta(seconds=5),
        description="How old totals may be before pages, /readyz, metrics and an alert say that the flow is behind.",
    )
    check_timeout: Annotated[Duration, between("1ms", "1m")] = Field(
        timedelta(milliseconds=50),
        description="How long a check may wait for the store; then the cap's `fail` decides.",
    )
    write_timeout: Annotated[Duration, between("10ms", "1m")] = Field(
        timedelta(seconds=1), description="The same for a reservation and what becomes of it."
    )
    cors: Origins = Field((), description="Origins whose pages may call the API from a browser.")
    frames: Origins = Field((), description="Origins whose pages may embed the dashboard.")

    @field_validator("auth")
    @classmethod
    def _is_guarded(cls, auth: str, info: ValidationInfo) -> str:
        host = info.data.get("listen", LOOPBACK)[0]
        if auth == "none" and host not in LOOPBACK:
            raise ValueError(f"needs keys, as TIDEGATE_LISTEN is no loopback address but {host}")
        return auth

    @property
    def connections(self) -> int:
        """The most connections: streams take no more than half of them, which leaves room for checks."""
        return max(self.connections_max, 2 * self.streams_max)


def load_serving_settings(overrides: Mapping[str, object] | None = None) -> ServingSettings:
    """As `load_settings`, for the service."""
    return load_settings_of(ServingSettings, overrides)
