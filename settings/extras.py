"""Which extra of the package has the library that is missing."""

from typing import Final

# The longest prefix of a connector's module that is listed counts, as several extras have the same libraries.
OF_CONNECTOR: Final = {
    "connectors.kafka": "kafka",
    "connectors.redis": "redis",
    "connectors.dodo": "dodo",
    "connectors.alert_webhook": "webhook",
    "connectors.alert_slack": "slack",
    "connectors.alert_mail": "smtp",
}
OF_LIBRARY: Final = {
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
