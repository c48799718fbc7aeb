"""Where settings come from: arguments, environment, `.env`, a TOML file; the first that has one wins."""

import os
import re
import tomllib
from collections.abc import Container
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values
from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource

from tidegate.settings.problems import SettingsError

PREFIX: Final = "TIDEGATE_"
ENV_FILE: Final = Path(".env")
TOML_FILE: Final = Path("tidegate.toml")
# fmt: off
ELSEWHERE: Final = frozenset({
    "listen", "auth", "keys", "ingest", "request_bytes_max", "batch_max", "rate_per_key", "rate_per_customer_key",
    "streams_max", "streams_per_key", "streams_per_customer", "connections_max", "connections_per_address",
    "max_lag", "check_timeout", "write_timeout", "cors", "frames", "reconcile_every", "reconcile_once",
    "reconcile_settle", "reconcile_repair", "reconcile_credits", "reconcile_periods", "reconcile_report",
    "dodo_webhook_secrets",
})
# fmt: on
"""Settings of the HTTP service (settings/serving.py) and of reconciliation, which the metering flow has no use for and
takes no offence at."""
# A line that sets one of ours; dotenv passes over what it cannot read, which must not go unseen.
OURS: Final = re.compile(rf"\s*(?:export\s+)?({PREFIX}\w*)\s*([=:]?)", re.IGNORECASE)


class Environment(EnvSettingsSource):
    """The environment, with the names that begin as ours do but are none, for the model to refuse."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        for name, value in os.environ.items():
            field = name[len(PREFIX) :].lower()
            if name.upper().startswith(PREFIX) and field not in self.settings_cls.model_fields:
                found[field] = value
        return found


def toml_layer(settings_cls: type[BaseSettings], named: object) -> TomlConfigSettingsSource:
    """Return the TOML file: `named`, which must exist, or `tidegate.toml`, which may; else SettingsError."""
    path = Path(str(named)) if named else TOML_FILE
    if named and not path.is_file():
        raise SettingsError([f"{PREFIX}CONFIG: there is no file {str(path)!r}; name a TOML file or none"])
    try:
        return TomlConfigSettingsSource(settings_cls, path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = f"{path}: needs TOML, UTF-8: {error}"
    raise SettingsError([problem])


def check_env_file() -> None:
    """SettingsError for lines of `.env` that are meant for us and set nothing."""
    try:
        lines = ENV_FILE.read_text("utf-8").splitlines() if ENV_FILE.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        lines, problems = [], [f"{ENV_FILE}: needs UTF-8 text: {error}"]
    else:
        found = [(number, OURS.match(line)) for number, line in enumerate(lines, 1)]
        problems = [
            f"{ENV_FILE}:{number}: {line[1]}: needs NAME=value on one line"
            for number, line in found
            if line and line[2] != "="
        ]
    if problems:
        raise SettingsError(problems)


def origin_of(field: str, arguments: Container[str], fields: Container[str]) -> str:
    """` (FILE)` where what is said of a field stands in a file, for the message about it."""
    name = PREFIX + field.upper()
    # An empty variable sets none of the known fields, and is wrong all the same if it is unknown.
    in_environment = (
        value or field not in fields for there, value in os.environ.items() if there.upper() == name
    )
    if field in arguments or any(in_environment):
        return ""
    if any(there.upper() == name for there in dotenv_values(ENV_FILE, interpolate=False)):
        return f" ({ENV_FILE})"
    return " (TOML)"
