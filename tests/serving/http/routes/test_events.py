"""Events over HTTP: every shape that senders have, each answered for, none taken that the flow would reject."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.conversion import to_binary, to_structured
from cloudevents.v1.http import CloudEvent as OldCloudEvent

from tests.reference.malformed import MALFORMED, dodo, plain_event
from tests.serving.http.served import CATALOG, Served
from tidegate.operators.events.decode import Decoder
from tidegate.operators.model.ports import Payloads
from tidegate.settings.catalog.file import parse_catalog

NOW = int(datetime.now(UTC).timestamp() * 1e6)
URL = "/v1/events"
JSON = {"content-type": "application/json"}


def event(id: str, **changed: Any) -> dict[str, Any]:
    return plain_event(id, "acme", NOW - 60_000_000) | {"type": "api.call"} | changed


def payloads(served: Served) -> list[bytes]:
    """All that is in the log."""
    segments = sorted((served.folder / "data" / "ingest" / "0").glob("*.ndjson"))
    return [line for segment in segments for line in segment.read_bytes().split(b"\n")[:-1]]


def lines(served: Served) -> list[dict[str, Any]]:
    # Some have more digits than Python reads into an integer.
    return [json.loads(payload, parse_int=Decimal) for payload in payloads(served)]


def taken(served: Served, id: str) -> dict[str, Any]:
    (found,) = [line for line in lines(served) if id in (line.get("id"), line.get("event_id"))]
    return found


def sdk_event(id: str, **attributes: Any) -> CloudEvent:
    """As an application makes it, with an extension and a customer that is no ASCII."""
    return CloudEvent(
        attributes={
            "id": id,
            "source": "/app/ü",
            "type": "api.call",
            "subject": "Müller & Søn %41",
            "time": datetime.now(UTC),
            "datacontenttype": "application/json",
            "region": "eu",
            **attributes,
        },
        data={"n": 1, "text": "à la\ncarte"},
    )


@pytest.mark.parametrize("convert", [to_structured_event, to_binary_event], ids=["structured", "binary"])
def test_what_the_sdk_sends_is_taken_whole(api: httpx.Client, served: Served, convert: Any) -> None:
    id = f"sdk-{convert.__name__}"
    message = convert(sdk_event(id))
    answer = api.post(URL, headers=message.headers, content=message.body)
    assert answer.status_code == 202, answer.text
    result = {"id": id, "status": "accepted", "metered_by": ["calls"]}
    assert answer.json() == {"accepted": 1, "rejected": 0, "results": [result]}
    found = taken(served, id)
    assert (found["source"], found["subject"], found["region"]) == ("/app/ü", "Müller & Søn %41", "eu")
    assert found["data"] == {"n": 1, "text": "à la\ncarte"}


@pytest.mark.parametrize("convert", [to_structured, to_binary], ids=["structured", "binary"])
def test_what_the_sdks_older_half_sends_is_taken_whole(
    api: httpx.Client, served: Served, convert: Any
) -> None:
    id = f"old-{convert.__name__}"
    attributes = {"id": id, "source": "/app", "type": "api.call", "subject": "acme"}
    headers, body = convert(OldCloudEvent(attributes, {"n": 1}))
    answer = api.post(URL, headers=headers, content=body)
    assert answer.status_code == 202, answer.text
    assert (taken(served, id)["subject"], taken(served, id)["data"]) == ("acme", {"n": 1})


def test_a_batch_of_what_the_sdk_makes_is_taken(api: httpx.Client, served: Served) -> None:
    bodies = [to_structured_event(sdk_event(f"batch-{i}")).body for i in range(3)]
    batch = b"[" + b",\n".join(bodies) + b"]"
    answer = api.post(URL, headers={"content-type": "application/cloudevents-batch+json"}, content=batch)
    assert (answer.status_code, answer.json()["accepted"]) == (202, 3)
    assert taken(served, "batch-2")["type"] == "api.call"


def test_binary_mode_needs_no_content_type_for_json(api: httpx.Client, served: Served) -> None:
    message = to_binary_event(sdk_event("untyped"))
    headers = {name: value for name, value in message.headers.items() if name.lower() != "content-type"}
    assert api.post(URL, headers=headers, content=message.body).status_code == 202


SHAPES: dict[str, tuple[str, Any]] = {
    "a CloudEvent": ("application/json", lambda one, other: one),
    "Dodo's": ("application/json", lambda one, other: dodo(one)),
    "a list of both": ("application/json", lambda one, other: [one, dodo(other)]),
    "Dodo's request": ("application/json", lambda one, other: {"events": [dodo(one), dodo(other)]}),
    "with a charset": ("application/json; charset=utf-8", lambda one, other: one),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_taken(api: httpx.Client, served: Served, shape: str) -> None:
    media, make = SHAPES[shape]
    body = make(event(f"{shape} 1"), event(f"{shape} 2"))
    # As people write it, with line breaks between tokens.
    answer = api.post(URL, headers={"content-type": media}, content=json.dumps(body, indent=2))
    assert answer.status_code == 202, answer.text
    assert taken(served, f"{shape} 1")


def test_lines_are_taken(api: httpx.Client, served: Served) -> None:
    content = "\r\n".join(json.dumps(event(f"line {i}")) for i in range(3)) + "\n\n"
    answer = api.post(URL, headers={"content-type": "application/x-ndjson"}, content=content)
    assert (answer.status_code, answer.json()["accepted"]) == (202, 3)
    assert taken(served, "line 2")


def test_of_a_mixed_batch_the_good_are_taken_and_each_is_answered_for(
    api: httpx.Client, served: Served
) -> None:
    bad = event("mixed bad", type="llm.tokens", data={"tokens": -1})
    answer = api.post(URL, json=[event("mixed good"), bad, 5, [event("mixed nested")]])
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [(result["id"], result["status"], result.get("reason")) for result in results] == [
        ("mixed good", "accepted", None),
        ("mixed bad", "rejected", "quantity_out_of_range"),
        ("", "rejected", "not_an_object"),
        ("", "rejected", "not_an_object"),
    ]
    ids = {line.get("id") for line in lines(served)}
    assert "mixed good" in ids and not ids & {"mixed bad", "mixed nested"}


def test_a_list_in_a_list_is_no_event_though_all_in_it_are_good(api: httpx.Client, served: Served) -> None:
    """As a line of its own the flow would take its elements for events that nobody was answered for."""
    answer = api.post(URL, json=[[event("hidden")], event("plain")])
    assert [result["status"] for result in answer.json()["results"]] == ["rejected", "accepted"]
    assert "hidden" not in {line.get("id") for line in lines(served) if isinstance(line, dict)}


def test_where_none_can_be_metered_it_is_a_problem_with_every_reason(api: httpx.Client) -> None:
    answer = api.post(URL, json=[event("no time", time=None), {"event_id": "x"}])
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [(error["pointer"], error["reason"]) for error in answer.json()["errors"]] == [
        ("/0", "time_invalid"),
        ("/1", "customer_invalid"),
    ]


def test_an_event_without_time_is_refused_as_a_repeat_could_not_be_told(api: httpx.Client) -> None:
    timeless = {name: value for name, value in event("timeless").items() if name != "time"}
    assert api.post(URL, json=timeless).json()["errors"][0]["reason"] == "time_missing"


def test_the_future_is_refused(api: httpx.Client) -> None:
    later = (datetime.now(UTC) + timedelta(minutes=6)).isoformat()
    assert api.post(URL, json=event("later", time=later)).json()["errors"][0]["reason"] == "future"


def test_too_many_and_too_much_are_refused(api: httpx.Client) -> None:
    many = api.post(URL, json=[event(str(i)) for i in range(1001)])
    much = api.post(URL, headers=JSON, content=b" " * (4 * 1024 * 1024 + 1))
    # Without Content-Length, in pieces.
    pieces = api.post(URL, headers=JSON, content=(b" " * 65536 for _ in range(65)))
    assert [many.status_code, much.status_code, pieces.status_code] == [413, 413, 413]


@pytest.mark.parametrize("media", ["text/plain", "application/xml", ""])
def test_other_bodies_are_refused(api: httpx.Client, media: str) -> None:
    headers = {"content-type": media} if media else {}
    assert api.post(URL, headers=headers, content=b"{}").status_code == 415


@pytest.mark.parametrize("body", [b"[", b"", b"{", b'{"a": "x\ny"}', b"\xff"])
def test_what_is_no_json_is_never_taken(api: httpx.Client, served: Served, body: bytes) -> None:
    before = len(lines(served))
    assert api.post(URL, headers=JSON, content=body).status_code in (400, 422)
    assert len(lines(served)) == before


FLOW = Decoder(parse_catalog(CATALOG), shards=16, clock="event")


def rejected_by_flow(line: bytes) -> list[str]:
    chunks = FLOW.decode(Payloads(line, NOW, None, "test"))
    return [reject.reason for _, chunk in chunks for reject in chunk.rejects]


def test_the_gate_and_the_flow_agree_about_all_that_is_malformed(api: httpx.Client, served: Served) -> None:
    """What the flow rejects is refused here for the same reason, and nothing that is taken is rejected there."""
    begin = len(payloads(served))
    disagreements = []
    for row in MALFORMED:
        line = row.make(event(f"malformed {row.name}", type="llm.tokens", data={"tokens": 1}))
        answer = api.post(URL, headers={"content-type": "application/x-ndjson"}, content=line)
        if row.name.startswith("event ") or b"\n" in line or line.lstrip().startswith(b"["):
            # A line is one event here; in a file it may be a list of them.
            continue
        flow = rejected_by_flow(line)
        ours = [error.get("reason") for error in answer.json().get("errors", [])]
        if answer.status_code != 413 and flow != ours:
            disagreements.append((row.name, flow, answer.status_code, ours))
    assert disagreements == []
    for payload in payloads(served)[begin:]:
        assert rejected_by_flow(payload) == []


def test_sent_again_it_is_taken_again_word_by_word(api: httpx.Client, served: Served) -> None:
    """The flow tells that it is a repeat by its identity and time, so neither may be changed on the way."""
    one = event("again")
    for _ in range(2):
        assert api.post(URL, json=one).status_code == 202
    found = [line for line in lines(served) if line.get("id") == "again"]
    assert found == [one, one]


def test_what_is_taken_and_not_metered_is_said_to_the_sender(api: httpx.Client, served: Served) -> None:
    """Event by event, and cause by cause with a bound; one meter's trouble does not hide what others read."""
    told = [
        event("m1"),
        event("m2", type="llm.tokens", data={"tokens": "900"}),
        event("m3", type="llm.tokens", data={"Tokens": 900}),
        event("m4", type="llm.tokens", data={"tokens": "901"}),
        *(event(f"n{i}", type=f"name {i}") for i in range(30)),
    ]
    answer = api.post(URL, json=told)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["accepted"], body["unmetered"], body["rejected"]) == (34, 33, 0)
    assert body["results"][:4] == [
        {"id": "m1", "status": "accepted", "metered_by": ["calls"]},
        {"id": "m2", "status": "unmetered", "unmetered": "text_number"},
        {"id": "m3", "status": "unmetered", "unmetered": "key_missing"},
        {"id": "m4", "status": "unmetered", "unmetered": "text_number"},
    ]
    assert len(body["warnings"]) == 20
    assert body["warnings"][0] == {
        "reason": "text_number",
        "detail": "'tokens' is a number written as text, which the meter 'tokens' does not read",
        "event_name": "llm.tokens",
        "meter": "tokens",
        "key": "tokens",
        "partly": False,
        "events": 2,
        "id": "m2",
    }
    assert {taken(served, id)["type"] for id in ("m2", "n29")} == {"llm.tokens", "name 29"}


def test_a_rejected_event_leaves_the_answers_of_others_as_they_are(api: httpx.Client) -> None:
    told = [
        event("r1", type="odd"),
        event("r2", time="never"),
        event("r3", type="seats.set", data={"seats": 1}),
    ]
    answer = api.post(URL, json=told)
    assert answer.status_code == 207
    assert [(each["status"], each.get("metered_by")) for each in answer.json()["results"]] == [
        ("unmetered", None),
        ("rejected", None),
        ("accepted", ["seats"]),
    ]
    assert [warning["event_name"] for warning in answer.json()["warnings"]] == ["odd"]
