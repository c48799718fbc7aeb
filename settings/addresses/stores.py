"""Where totals are kept and read."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from tidegate.operators.model.ports import StoreError, StoreRefused
from tidegate.settings.addresses.address import BY_SCHEME, Address, Dsn, load
from tidegate.settings.durations import Duration, between
from tidegate.settings.problems import SettingsError


class StoreAddress(Address):
    """A store has four ends.

    `open()` is the writer, `open_reader()` the reader, `open_control()` the control log, `open_holds()` the gate's.
    """

    reader: ClassVar[str]
    control: ClassVar[str]
    holds: ClassVar[str]

    def open_writer(self, *, resumed: bool, numbers: Path | None = None, **given: Any) -> Any:
        """Open the flow's writer. `resumed` says that the flow has earlier totals, which the store should have too.

        `numbers` is a place for a file about this worker's writes, in a folder for the files of all workers.
        """
        return self.open(**given)

    def writer_process_opener(self) -> Callable[[], Any] | None:
        """Return what opens a second writer, in any process; None where a flow must have the only one."""
        return None

    def is_at_hand(self) -> bool:
        """Return whether it is known to be there without asking anybody over a network."""
        return False

    def make(self) -> None:
        """Make the store where there is none, or bring it to this release's version; for those who start.

        What opens it makes none: a store that goes away while something runs is never replaced by an empty one, which
        would let everybody through. StoreError where it cannot be made.
        """

    def check(self) -> None:
        """Raise StoreError where waiting cannot make a store of what is there; one that is away may come."""

    def require(self) -> Self:
        """Return the address of a store that can be read; SettingsError where it would be made first."""
        return self

    def open_reader(self, **given: Any) -> Any:
        """Open the reader of what the writer wrote; SettingsError where it cannot be imported."""
        return load(self.reader)(**self.arguments(), **given)

    def open_control(self, **given: Any) -> Any:
        """Open the control log and the catalog's versions; SettingsError where it cannot be imported."""
        return load(self.control)(**self.arguments(), **given)

    def open_holds(self, **given: Any) -> Any:
        """Open the accounts and holds that a gate works with; SettingsError where they cannot be imported."""
        return load(self.holds)(**self.arguments(), **given)


class Sqlite(StoreAddress):
    """`sqlite:data/tidegate.db`: a file on this machine, shared by the processes on it."""

    connector: ClassVar[str] = "tidegate.connectors.sqlite.store:SqliteWriter"
    reader: ClassVar[str] = "tidegate.connectors.sqlite.store:SqliteReader"
    control: ClassVar[str] = "tidegate.connectors.sqlite.control:SqliteControl"
    holds: ClassVar[str] = "tidegate.connectors.sqlite.holds:SqliteHolds"
    scheme: Literal["sqlite"] = "sqlite"
    path: str = Field(min_length=1, description="The database file; its folder is made if need be.")

    @field_validator("path")
    @classmethod
    def _is_shared(cls, path: str) -> str:
        if path == ":memory:":
            raise ValueError("needs a file, as what is in memory no other process can read")
        return path

    def written(self) -> tuple[Path, ...]:
        path = Path(self.path)
        return tuple(path.with_name(f"{path.name}{end}") for end in ("", "-wal", "-shm"))

    def make(self) -> None:
        load("tidegate.connectors.sqlite.store:make_store")(self.path)

    def open(self, **given: Any) -> Any:
        return super().open(create=False, **given)

    def open_control(self, **given: Any) -> Any:
        return super().open_control(create=False, **given)

    def is_at_hand(self) -> bool:
        return Path(self.path).is_file()

    def check(self) -> None:
        if Path(self.path).exists():
            self.open_reader().close()

    def require(self) -> Self:
        if not Path(self.path).exists():
            where = Path(self.path).absolute()
            advice = "run this in the flow's folder, or name its store with --store or TIDEGATE_STORE"
            raise SettingsError([f"store {self}: there is no such file ({where}); {advice}"])
        return self

    def writer_process_opener(self) -> Callable[[], Any]:
        return partial(load(self.connector), create=False, **self.arguments())


class RedisStore(StoreAddress, Dsn):
    """What all addresses of Redis have in common."""

    connector: ClassVar[str] = "tidegate.connectors.redis.writer:RedisWriter"
    reader: ClassVar[str] = "tidegate.connectors.redis.reader:RedisReader"
    control: ClassVar[str] = "tidegate.connectors.redis.control:RedisControl"
    holds: ClassVar[str] = "tidegate.connectors.redis.holds:RedisHolds"
    form: ClassVar[str]
    prefix: str = Field(
        "tidegate", pattern=r"^[^{}\s]{1,64}$", description="What all keys begin with, before a colon."
    )
    hours: Annotated[Duration, between("1d", "3660d")] = Field(
        timedelta(days=8), description="How long totals per hour are kept, at least."
    )
    days: Annotated[Duration, between("1d", "36600d")] = Field(
        timedelta(days=92), description="How long totals per day are kept, at least."
    )
    periods: Annotated[Duration, between("35d", "36600d")] = Field(
        timedelta(days=400),
        description="How long totals of billing periods are kept after their end, at least.",
    )
    timeout: Annotated[Duration, between("50ms", "5m")] = Field(
        timedelta(seconds=5), description="How long to wait for a connection, and for each answer."
    )
    wait: Annotated[Duration, between("0", "1h")] = Field(
        timedelta(seconds=60), description="How long to try again while servers are away or fail over."
    )

    def open_writer(self, *, resumed: bool, numbers: Path | None = None, **given: Any) -> Any:
        return self.open(resumed=resumed, numbers=numbers, **given)

    def check(self) -> None:
        log = self.model_copy(update={"wait": timedelta(0)}).open_control()
        try:
            log.catalog_number()
        except StoreRefused:
            raise
        except StoreError:
            # It is away, or not ready yet.
            pass
        finally:
            log.close()

    def arguments(self) -> dict[str, Any]:
        """Of the writer."""
        return self._servers() | {name: getattr(self, name) for name in ("hours", "days", "periods")}

    def open_reader(self, **given: Any) -> Any:
        return load(self.reader)(**self._servers(), **given)

    def open_control(self, **given: Any) -> Any:
        return load(self.control)(**self._servers(), **given)

    def open_holds(self, **given: Any) -> Any:
        return load(self.holds)(**self._servers(), **given)

    def _servers(self) -> dict[str, Any]:
        fields = super().arguments()
        kept = {
            name: value for name, value in fields.items() if name not in ("hours", "days", "periods", "path")
        }
        return kept | {"form": self.form}


class OneRedis(RedisStore):
    """One server, whose databases have numbers."""

    form: ClassVar[str] = "single"
    path: str = Field("", pattern="^[0-9]{0,4}$")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.hosts) > 1:
            raise ValueError("needs one host; for more there are redis+cluster: and redis+sentinel:")
        return self

    def _servers(self) -> dict[str, Any]:
        return super()._servers() | {"db": int(self.path or 0)}


class Redis(OneRedis):
    """`redis://host:6379`: one server; a path chooses a database of it by number, as in `redis://host/1`."""

    scheme: Literal["redis"] = "redis"


class RedisTls(OneRedis):
    """`rediss://host:6379`: one server, over TLS."""

    scheme: Literal["rediss"] = "rediss"
    ca: str | None = Field(None, description="A file of certificates to trust, if not those of the system.")
    cert: str | None = Field(None, description="A file with our own certificate, if the server asks for one.")
    key: str | None = Field(None, description="The file with its key.")

    def _servers(self) -> dict[str, Any]:
        return super()._servers() | {"tls": True}


class RedisSentinel(RedisStore):
    """`redis+sentinel://host:26379,host/service`: the primary that Sentinel names, also after a failover."""

    form: ClassVar[str] = "sentinel"
    scheme: Literal["redis+sentinel"] = "redis+sentinel"
    path: str = Field(min_length=1, description="The name that Sentinel knows the primary by.")
    db: int = Field(0, ge=0, le=9999, description="The database, by number.")
    sentinel_user: SecretStr | None = Field(None, description="The user at the Sentinels, if they want one.")
    sentinel_password: SecretStr | None = Field(None, description="The password at the Sentinels.")
    tls: bool = Field(False, description="Connect over TLS, also to the Sentinels.")
    ca: str | None = Field(None, description="A file of certificates to trust, if not those of the system.")
    cert: str | None = Field(None, description="A file with our own certificate, if the server asks for one.")
    key: str | None = Field(None, description="The file with its key.")

    def _servers(self) -> dict[str, Any]:
        return super()._servers() | {"service": self.path}


class RedisCluster(RedisStore):
    """`redis+cluster://host:6379,host:6379`: a cluster, by some of its nodes."""

    form: ClassVar[str] = "cluster"
    scheme: Literal["redis+cluster"] = "redis+cluster"
    tls: bool = Field(False, description="Connect over TLS.")
    ca: str | None = Field(None, description="A file of certificates to trust, if not those of the system.")
    cert: str | None = Field(None, description="A file with our own certificate, if the servers ask for one.")
    key: str | None = Field(None, description="The file with its key.")


Store = Annotated[Sqlite | Redis | RedisTls | RedisSentinel | RedisCluster, BY_SCHEME]
