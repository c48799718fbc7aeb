"""`tidegate kafka`: the topics that the settings name."""

from collections.abc import Iterator
from typing import Annotated

import typer

from tidegate.serving.cli.output import AsJson, Failed, print_done
from tidegate.settings.addresses.address import load
from tidegate.settings.addresses.kafka import KafkaAddress
from tidegate.settings.serving import ServingSettings, load_serving_settings

app = typer.Typer(help="Kafka, as the settings use it.", no_args_is_help=True)


@app.command("create-topics")
def create_topics(
    partitions: Annotated[
        int,
        typer.Option(
            min=1, max=10_000, help="Of each topic; as many processes at most read a source at once."
        ),
    ] = 8,
    replicas: Annotated[int, typer.Option(min=1, max=100, help="Brokers that keep each partition.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Create the missing topics of source, ingest, dead letters and alerts; existing ones stay as they are."""
    found = list(_topics(load_serving_settings()))
    if not found:
        raise Failed("kafka: no setting names a topic; set TIDEGATE_SOURCE=kafka://HOST:9092/TOPIC")
    create_topic = load("tidegate.connectors.kafka.admin:create_topic")
    for address in found:
        topic, is_new = create_topic(**address.arguments(), partitions=partitions, replicas=replicas)
        words = f"created, {partitions} partitions" if is_new else "is there"
        print_done(as_json, f"{topic}: {words}", topic=topic, created=is_new)


def _topics(settings: ServingSettings) -> Iterator[KafkaAddress]:
    """Yield the Kafka addresses of the settings, each topic once."""
    seen: set[tuple[object, ...]] = set()
    for address in (settings.source, settings.ingest, settings.dead_letters, *settings.alerts):
        if isinstance(address, KafkaAddress) and (place := (address.place, address.path)) not in seen:
            seen.add(place)
            yield address
