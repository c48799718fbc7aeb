"""Traces of a flow process, sent to an OpenTelemetry collector over HTTP: polls decoded, stores written, snapshots.

A span stands for a batch, never for an event, so tracing costs the same whatever the rate. What can't be sent is
dropped by the exporter after its own bounded retries, and said in the log: a collector that is away stops no flow.

Source: https://opentelemetry.io/docs/specs/otlp/
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tidegate.settings.addresses.extras import missing
from tidegate.settings.problems import SettingsError

Span = Callable[..., AbstractContextManager[Any]]
"""Called with a name and attributes; what happens inside is in the span."""


def no_span(name: str, **attributes: int | str) -> AbstractContextManager[None]:
    """Traces nothing."""
    return nullcontext()


def open_spans(endpoint: str, process: str) -> Span:
    """Return spans that go to the collector at `endpoint`, such as http://127.0.0.1:4318.

    Raises: SettingsError where the libraries for it are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        if words := missing(error):
            raise SettingsError([f"TIDEGATE_TRACES: {words}"]) from None
        raise

    resource = Resource.create({"service.name": "tidegate", "service.instance.id": process})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("tidegate")

    def span(name: str, **attributes: int | str) -> AbstractContextManager[Any]:
        return tracer.start_as_current_span(name, attributes=attributes)

    return span
