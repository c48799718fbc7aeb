"""Which extra of the package has the library that is missing."""

from importlib import import_module
from typing import Final

# The longest prefix of a connector's module that is listed counts, as several extras have the same libraries.
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


def missing(error: ImportError, module: str = "") -> str | None:
    """Return what to install, in a sentence, where `error` is that a library of an extra is missing; None for others.

    `module` is the connector that was to be imported, if one was.
    """
    library = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or library not in OF_LIBRARY:
        return None
    extra = next((name for prefix, name in OF_CONNECTOR.items() if module.startswith(prefix)), None)
    extra = extra or OF_LIBRARY[library]
    return f"needs the library {library}, which is not installed; pip install 'tidegate[{extra}]'"


def engine_missing() -> str | None:
    """Return what to install where the flows cannot run, as Bytewax is not installed; None where they can."""
    try:
        import_module("bytewax")
    except ModuleNotFoundError as error:
        return missing(error)
    return None
