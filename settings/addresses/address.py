"""Connectors chosen by address: `scheme:path?option=value`, or `scheme://user:password@host:port/path`.

Each scheme is one model, and a role's union of models is its registry: whoever adds a connector writes
a class and names it there. The class says what it opens as text, imported on `open()`, so that the
client library of one system is no burden to the users of another.

    class Nats(SourceAddress, Dsn):
        \"\"\"`nats://host:4222/usage?durable=meter`: a JetStream subject.\"\"\"
        connector: ClassVar[str] = "tidegate.connectors.nats.source:NatsSource"
        scheme: Literal["nats"] = "nats"
        durable: str = "tidegate"

    Source = Annotated[File | Demo | Nats, BY_SCHEME]
"""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, get_args
from urllib.parse import quote, unquote

from pydantic import Field, GetCoreSchemaHandler, SecretStr, ValidationError
from pydantic_core import CoreSchema, core_schema

from tidegate.operators.model.dead_letters import DeadLetterPlace
from tidegate.settings.addresses.extras import missing
from tidegate.settings.durations import format_duration
from tidegate.settings.problems import SettingsError, Strict, did_you_mean, final

# What a URL says before its options; a model takes the parts that it has fields for.
PARTS: Final = ("scheme", "user", "password", "hosts", "path")
HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
LOGIN: Final = "user and password need to be percent-encoded where they hold one of :/?#@%"
MASK: Final = "***"
OFFERED: Final = frozenset(
    {
        "api_key",
        "catalog",
        "data_dir",
        "lineage",
        "open_store",
        "own",
        "parts",
        "poll_bytes",
        "queue",
        "secrets",
        "starts",
        "sync",
    }
)
"""What a flow can give to a connector: docs/connectors.md says of each what it is."""


class Host(NamedTuple):
    """A machine's name or address, and the port where one was given."""

    name: str
    port: int | None

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


class Address(Strict):
    """Where one connector reads or writes: `scheme`, the parts of its URL and its options, all typed.

    A field of type `SecretStr` is shown neither by `str` and `repr` nor by any error.
    """

    secretive: ClassVar[bool] = True
    connector: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """What of the flow the connector is given by name, out of OFFERED, beside what the address says."""

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        return tuple(name for name in cls.model_fields if name not in PARTS)

    @property
    def place(self) -> str:
        """What positions are positions in: partitions of one name in one place are the same partition."""
        return f"{type(self).model_fields['scheme'].default}:"

    def written(self) -> tuple[Path, ...]:
        """Return the files and folders of this machine that the connector writes and others might read."""
        return ()

    def open_letters(self, data_dir: Path) -> DeadLetterPlace | None:
        """Return the dead letters that lie there, for who deals with them; None where none can be read there."""
        return None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the connector by name: every field but the scheme, secrets in the clear."""
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self
            if name != "scheme"
        }

    def open(self, **given: Any) -> Any:
        """Build the connector from this address and what else is `given` to it.

        SettingsError where it cannot be imported.
        """
        return load(self.connector)(**self.arguments(), **given)

    def open_in_flow(self, offers: Mapping[str, Callable[[], Any]]) -> Any:
        """Return the connector, given what it needs of the flow. `offers` has a way to make each of OFFERED.

        SettingsError where it cannot be imported.
        """
        return self.open(**{name: offers[name]() for name in sorted(self.needs)})

    def __str__(self) -> str:
        """Return the address as it may be written and logged: reads back the same but for its secrets."""
        parts = {name: getattr(self, name) for name in type(self).model_fields}
        hosts, path = parts.get("hosts"), quote(parts.get("path") or "", safe="/*[]{},:=!~")
        if hosts:
            login = f"{MASK}@" if parts.get("user") or parts.get("password") else ""
            path = f"//{login}{','.join(map(str, hosts))}" + (f"/{path}" if path else "")
        elif path.startswith("//"):
            path = f"//{path}"
        options = "&".join(
            f"{name}={_written(parts[name])}"
            for name in self.choices()
            if parts[name] != type(self).model_fields[name].default
        )
        return f"{parts['scheme']}:{path}" + (f"?{options}" if options else "")


class Dsn(Address):
    """An address on the network. Login and password are percent-encoded where they hold `:/?#@%`."""

    hosts: tuple[Host, ...] = Field(min_length=1)
    user: SecretStr | None = None
    password: SecretStr | None = None


class _ByScheme:
    """Marks a union of addresses: its text is read by the member that the scheme names."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        members = {m.model_fields["scheme"].default: m for m in get_args(source) or (source,)}
        union = core_schema.tagged_union_schema(
            {scheme: handler(member) for scheme, member in members.items()}, discriminator="scheme"
        )
        return core_schema.no_info_before_validator_function(partial(_read, members), union)


BY_SCHEME: Final = _ByScheme()


def load(spec: str) -> Any:
    """Return the object that `package.module:Name` names; SettingsError where it cannot be imported."""
    module, _, name = spec.partition(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        if words := missing(error):
            raise SettingsError([f"{module}: {words}"]) from None
        reason = str(error)
    except AttributeError as error:
        reason = str(error)
    raise SettingsError([f"{spec}: cannot be loaded ({reason}); install what this connector needs"])


def _read(members: Mapping[str, type[Address]], value: Any) -> Any:
    """Return the parts and options of an address as a mapping. Errors do not have the text: it holds secrets."""
    if isinstance(value, Address):
        return value
    try:
        return _parts(members, value)
    except ValueError as error:
        refused = final(str(error))
    raise ValidationError.from_exception_data("address", [refused])


def _parts(members: Mapping[str, type[Address]], value: object) -> dict[str, Any]:
    scheme, colon, rest = value.strip().partition(":") if isinstance(value, str) else ("", "", "")
    scheme = scheme.lower()
    if scheme not in members:
        known = " or ".join(f"{name}:" for name in members)
        hint = did_you_mean(scheme, list(members)) if colon else ""
        raise ValueError(f"needs an address that begins with {known}{hint}")
    before, _, query = rest.partition("?")
    parts = {"scheme": scheme, **_located(before)}
    for part, word in (("hosts", "host: nothing stands behind //"), ("path", "path")):
        if part in parts and part not in members[scheme].model_fields:
            raise ValueError(f"{scheme}: takes no {word}")
    options = [_option(option) for option in query.split("&") if option]
    found = parts | dict(options)
    if len(found) != len(parts) + len(options) or any(name in PARTS for name, _ in options):
        raise ValueError("needs each option once, and none with the name of a part of the address")
    return found


def _located(text: str) -> dict[str, Any]:
    authority, slash, path = text[2:].partition("/") if text.startswith("//") else ("", "", text)
    if not authority:
        return {"path": _plain(slash + path)} if text else {}
    if "@" in path:
        # A password with a bare slash ends up here, and a path is shown.
        raise ValueError(f"{LOGIN}, and a @ in the path always")
    login, _, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")
    texts = {"user": user, "password": password, "path": path}
    found = {name: _plain(text) for name, text in texts.items() if text}
    return {"hosts": tuple(_host(host) for host in hosts.split(",")), **found}


def _host(text: str) -> Host:
    found = HOST.fullmatch(text)
    port = int(found[2]) if found and found[2] else None
    if not found or (port is not None and not 1 <= port <= 65535):
        raise ValueError(f"needs HOST or HOST:PORT after the //; {LOGIN}")
    return Host(found[1], port)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("needs every option written as name=value, parted by &")
    return _plain(name), _plain(value)


def _plain(text: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        plain = "\0"
    if CONTROL.search(plain):
        raise ValueError("needs UTF-8 text without control characters behind its percent signs")
    return plain


def _written(value: Any) -> str:
    match value:
        case SecretStr():
            return MASK
        case bool():
            return str(value).lower()
        case timedelta():
            return format_duration(value)
        case _:
            return quote(str(value), safe="/*,:@~")
