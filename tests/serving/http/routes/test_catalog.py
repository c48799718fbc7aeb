"""The catalog over HTTP: nobody's change is lost, a wrong one changes nothing, a right one holds at once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.serving.http.local import local
from tests.serving.http.served import CATALOG, Served
from tidegate.serving.gate.arguments import UnknownMeter

YAML = {"content-type": "application/yaml"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[httpx.Client]:
    """Of a service whose catalog is this test's own."""
    with local(tmp_path) as here:
        yield here.client


def limit(customer: str, meter: str = "calls") -> str:
    return f"/v1/customers/{quote(customer, safe='')}/limits/{meter}"


def allowed(api: httpx.Client, customer: str, quantity: int) -> bool:
    answer = api.get("/v1/check", params={"customer": customer, "meter": "calls", "quantity": quantity})
    found: bool = answer.json()["allowed"]
    return found


def test_a_catalog_is_read_changed_and_remembered(api: httpx.Client) -> None:
    first = api.get("/v1/catalog")
    assert (first.headers["etag"], first.json()["number"], first.json()["text"]) == ('"1"', 1, CATALOG)
    text = api.get("/v1/catalog", headers={"accept": "application/yaml"})
    assert (text.headers["content-type"], text.text) == ("application/yaml", CATALOG)

    raised = CATALOG.replace("cap: 1000", "cap: 2000")
    put = api.put(
        "/v1/catalog?note=more+for+acme", content=raised, headers=YAML | {"if-match": first.headers["etag"]}
    )
    assert (put.status_code, put.headers["etag"]) == (200, '"2"')
    assert api.get("/v1/catalog").json()["text"] == raised
    assert api.get("/v1/catalog?version=1").json()["text"] == CATALOG
    versions = api.get("/v1/catalog/versions").json()["versions"]
    assert [(one["number"], one["origin"], one["note"]) for one in versions] == [
        (2, "api", "more for acme"),
        (1, "file", ""),
    ]
    # Who it was stands in the history: the key's name and id.
    assert versions[0]["by"].startswith("all (")


def test_who_comes_second_is_told_and_changes_nothing(api: httpx.Client) -> None:
    tag = api.get("/v1/catalog").headers["etag"]
    put = {"content": CATALOG + "# Mine.\n", "headers": YAML | {"if-match": tag}}
    assert api.put("/v1/catalog", **put).status_code == 200  # type: ignore[arg-type]
    second = api.put("/v1/catalog", content=CATALOG + "# Theirs.\n", headers=YAML | {"if-match": tag})
    assert (second.status_code, second.json()["version"], second.headers["etag"]) == (412, 2, '"2"')
    assert api.get("/v1/catalog").json()["text"].endswith("# Mine.\n")


@pytest.mark.parametrize(("tag", "status"), [(None, 428), ("", 428), ("*", 412), ("1", 412), ('W/"1"', 412)])
def test_without_saying_of_what_it_is_a_change_it_is_none(
    api: httpx.Client, tag: str | None, status: int
) -> None:
    headers = YAML if tag is None else YAML | {"if-match": tag}
    assert api.put("/v1/catalog", content=CATALOG + "#\n", headers=headers).status_code == status
    assert api.get("/v1/catalog").headers["etag"] == '"1"'


def test_a_wrong_catalog_is_refused_line_by_line(api: httpx.Client) -> None:
    wrong = CATALOG.replace("default_plan: free", "default_plan: none").replace("cap: 1000", "cap: -1")
    put = api.put("/v1/catalog", json={"text": wrong}, headers={"if-match": '"1"'})
    assert put.status_code == 422
    assert [error["line"] for error in put.json()["errors"]] == [
        CATALOG[: CATALOG.index(word)].count("\n") + 1 for word in ("default_plan", "cap: 1000")
    ]
    assert api.get("/v1/catalog").headers["etag"] == '"1"'


def test_a_raised_cap_lets_the_very_next_request_pass(api: httpx.Client) -> None:
    assert not allowed(api, "small", 101)
    tag = api.get(limit("small")).headers["etag"]
    put = api.put(limit("small"), json={"cap": 101}, headers={"if-match": tag})
    assert (put.json()["override"], put.json()["effective"]["cap"]) == ({"cap": "101"}, "101")
    assert allowed(api, "small", 101)
    delete = api.request("DELETE", limit("small"), headers={"if-match": put.headers["etag"]})
    assert (delete.json()["override"], delete.json()["effective"]["cap"]) == (None, "100")
    assert not allowed(api, "small", 101)


def test_who_changed_it_is_answered_when_this_process_decides_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate's memory may be a tenth of a second old; whoever raised a cap and tries at once must not meet that."""
    with local(tmp_path) as here:
        gate, seen = here.service.gate, list[int]()
        check = gate.check

        async def behind(*given: Any) -> Any:
            try:
                return await check(*given)
            except UnknownMeter as error:
                seen.append(error.catalog)
                # As if the news took three looks to come through.
                if len(seen) < 4:
                    error.catalog = 1
                raise

        monkeypatch.setattr(gate, "check", behind)
        put = {"content": CATALOG + "# Changed.\n", "headers": YAML | {"if-match": '"1"'}}
        assert here.client.put("/v1/catalog", **put).status_code == 200  # type: ignore[arg-type]
        assert len(seen) >= 4 and seen[-1] == 2


def test_what_is_left_out_of_a_limit_is_the_plans(api: httpx.Client) -> None:
    headers = {"if-match": api.get(limit("other")).headers["etag"]}
    put = api.put(limit("other"), json={"cap": "100.5", "grace_pct": "2.5", "shadow": True}, headers=headers)
    effective = put.json()["effective"]
    assert effective["thresholds"] == ["80%", "100%"]
    assert (effective["cap"], effective["grace_pct"], effective["shadow"]) == ("100.5", "2.5", True)
    headers = {"if-match": put.headers["etag"]}
    lifted = api.put(limit("other"), json={"cap": None, "thresholds": []}, headers=headers)
    assert (lifted.json()["effective"]["cap"], lifted.json()["override"]["cap"]) == (None, None)
    assert allowed(api, "other", 10**9)


def test_comments_and_everything_else_in_the_catalog_stay(api: httpx.Client) -> None:
    tag = api.get(limit("acme")).headers["etag"]
    assert api.put(limit("acme"), json={"cap": 7}, headers={"if-match": tag}).status_code == 200
    text = api.get("/v1/catalog").json()["text"]
    assert text == CATALOG.replace("{cap: 1000}", "{cap: 7}")


def test_a_change_elsewhere_is_none_of_this_limit(api: httpx.Client) -> None:
    """Two people raise two customers' caps at once, and both hold."""
    tag, other = (api.get(limit(name)).headers["etag"] for name in ("a", "b"))
    assert api.put(limit("b"), json={"cap": 2}, headers={"if-match": other}).status_code == 200
    assert api.put(limit("a"), json={"cap": 1}, headers={"if-match": tag}).status_code == 200
    assert [api.get(limit(name)).json()["effective"]["cap"] for name in ("a", "b")] == ["1", "2"]
    # But the same limit has changed by now.
    late = api.put(limit("b"), json={"cap": 3}, headers={"if-match": other})
    assert (late.status_code, api.get(limit("b")).json()["effective"]["cap"]) == (412, "2")


def test_many_at_once_are_all_kept(served: Served) -> None:
    """Each changes a limit of its own, and none has to try again because of the others."""
    answers: list[int] = []

    def change(number: int) -> None:
        client = served.client()
        tag = client.get(limit(f"many-{number}")).headers["etag"]
        put = client.put(limit(f"many-{number}"), json={"cap": number}, headers={"if-match": tag})
        answers.append(put.status_code)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
    client = served.client()
    caps = [client.get(limit(f"many-{number}")).json()["effective"]["cap"] for number in range(8)]
    assert caps == [str(number) for number in range(8)]


@pytest.mark.parametrize("customer", ["a/b", 'q"u: {o}te #', "Müller", "%41", "yes", "0x1", "-", "~"])
def test_any_customer_may_have_a_limit(api: httpx.Client, customer: str) -> None:
    tag = api.get(limit(customer)).headers["etag"]
    put = api.put(limit(customer), json={"cap": 5}, headers={"if-match": tag})
    assert (put.status_code, put.json()["customer"]) == (200, customer), put.text
    assert not allowed(api, customer, 6)
    usage = api.get(f"/v1/customers/{quote(customer, safe='')}/usage").json()
    assert (usage["customer"], usage["meters"][0]["overridden"]) == (customer, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"cap": -1}, 422),
        ({"cap": 0.5}, 422),
        ({"capp": 1}, 422),
        ({"thresholds": ["120%%"]}, 422),
        ({"tiers": [{"price": 1}, {"price": 2}]}, 422),
    ],
)
def test_a_limit_that_cannot_be_is_refused(api: httpx.Client, body: dict[str, object], status: int) -> None:
    tag = api.get(limit("acme")).headers["etag"]
    answer = api.put(limit("acme"), json=body, headers={"if-match": tag})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert api.get("/v1/catalog").headers["etag"] == '"1"'


def test_of_a_meter_that_there_is_not_there_is_no_limit(api: httpx.Client) -> None:
    assert api.get(limit("acme", "nothing")).status_code == 404


def test_without_a_catalog_the_first_can_be_applied(tmp_path: Path) -> None:
    served = Served(tmp_path, start=False)
    (tmp_path / "catalog.yaml").unlink()
    with local(tmp_path, served) as here:
        client = here.client
        assert client.get("/v1/catalog").status_code == 404
        put = client.put("/v1/catalog", content=CATALOG, headers=YAML | {"if-match": '"0"'})
        assert (put.status_code, put.headers["etag"]) == (200, '"1"')
        assert allowed(client, "acme", 1000) and not allowed(client, "acme", 1001)
