"""Where totals are kept and read."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from settings.address import BY_SCHEME, Address, load


class StoreAddress(Address):
    """A store has four ends.

    `open()` is the writer, `open_reader()` the reader, `open_control()` the control log, `open_holds()` the gate's.
    """

    reader: ClassVar[str]
    control: ClassVar[str]
    holds: ClassVar[str]

    def open_reader(self, **given: Any) -> Any:
        """The reader of what the writer wrote; SettingsError where it cannot be imported."""
        return load(self.reader)(**self.arguments(), **given)

    def open_control(self, **given: Any) -> Any:
        """The control log and the catalog's versions; SettingsError where it cannot be imported."""
        return load(self.control)(**self.arguments(), **given)

    def open_holds(self, **given: Any) -> Any:
        """The accounts and holds that a gate works with; SettingsError where they cannot be imported."""
        return load(self.holds)(**self.arguments(), **given)


class Sqlite(StoreAddress):
    """`sqlite:data/tidegate.db`: a file on this machine, shared by the processes on it."""

    connector: ClassVar[str] = "connectors.sqlite:SqliteWriter"
    reader: ClassVar[str] = "connectors.sqlite:SqliteReader"
    control: ClassVar[str] = "connectors.sqlite_control:SqliteControl"
    holds: ClassVar[str] = "connectors.sqlite_holds:SqliteHolds"
    scheme: Literal["sqlite"] = "sqlite"
    path: str = Field(min_length=1, description="The database file; its folder is made if need be.")

    @field_validator("path")
    @classmethod
    def _is_shared(cls, path: str) -> str:
        if path == ":memory:":
            raise ValueError("needs a file, as what is in memory no other process can read")
        return path


# One member so far; the next makes it `Sqlite | Redis`.
Store = Annotated[Sqlite, BY_SCHEME]
