"""Which extra of the package has the library that is missing."""

from importlib import import_module
from traceback import walk_tb
from typing import Final

# By how the name of the module that imports it begins, as several extras have the same libraries.
OF_CONNECTOR: Final = {
    "tidegate.connectors.kafka.": "kafka",
    "tidegate.connectors.redis.": "redis",
    "tidegate.connectors.dodo.": "dodo",
    "tidegate.connectors.alerts.webhook": "webhook",
    "tidegate.connectors.alerts.slack": "slack",
    "tidegate.connectors.alerts.mail": "smtp",
}
OF_LIBRARY: Final = {
    "bytewax": "flow",
    "confluent_kafka": "kafka",
    "redis": "redis",
    "hiredis": "redis",
    "standardwebhooks": "webhook",
    "jinja2": "smtp",
    "opentelemetry": "otel",
    "uvicorn": "serve",
    "starlette": "serve",
    "httptools": "serve",
    "uvloop": "serve",
    "zstandard": "serve",
    "httpx": "serve",
}


def missing(error: ImportError) -> str | None:
    """Return what to install, where `error` is that a library of an extra is missing; None for others."""
    library = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or library not in OF_LIBRARY:
        return None
    importer = _importer(error)
    extra = next((name for prefix, name in OF_CONNECTOR.items() if importer.startswith(prefix)), None)
    extra = extra or OF_LIBRARY[library]
    return f"needs the library {library}, which is not installed; pip install 'tidegate[{extra}]'"


def _importer(error: ImportError) -> str:
    """Return the module of ours that needs what could not be imported; empty where that is none of ours."""
    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return next((name for name in reversed(names) if name.startswith("tidegate.")), "")


def engine_missing() -> str | None:
    """Return what to install where the flows cannot run, as Bytewax is not installed; None where they can."""
    try:
        import_module("bytewax")
    except ModuleNotFoundError as error:
        return missing(error)
    return None
