"""Traces and log lines as other systems read them."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.flows.conftest import SCENARIOS, Place
from tests.flows.meter.test_control_source import FOLLOWED, eventually, has_totals


class _Collector(BaseHTTPRequestHandler):
    spans: list[Any]

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        self.spans += [
            span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans
        ]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_collector_gets_a_span_for_each_stage(place: Place) -> None:
    _Collector.spans = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place.append("first.jsonl")
        place.run(TRACES=f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
    assert {"decode", "store.write", "snapshot"} <= {span.name for span in _Collector.spans}
    (decode, *_) = [span for span in _Collector.spans if span.name == "decode"]
    attributes = {one.key: one.value.int_value for one in decode.attributes}
    assert attributes["bytes"] == (SCENARIOS / "first.jsonl").stat().st_size


def test_a_collector_that_is_away_stops_nothing(place: Place) -> None:
    place.append("first.jsonl")
    place.run(TRACES="http://127.0.0.1:9")
    assert has_totals(place)


def test_log_lines_are_objects_if_so_chosen(place: Place) -> None:
    """A log system finds level and words without guessing."""
    catalog = place.folder / "catalog.yaml"
    shutil.copy(SCENARIOS / "catalog.yaml", catalog)
    place.append("first.jsonl")
    with place.running(**FOLLOWED, CATALOG="catalog.yaml", LOG="json") as process:
        eventually(lambda: has_totals(place))
        catalog.write_text("meters: [")
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
    assert (line["level"], line["logger"]) == ("ERROR", "tidegate.catalog")
    assert "the catalog stays as it is" in line["message"] and line["time"]
