"""Forward-auth: what a proxy is told, and a real nginx in front of an application, where there is one."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.serving.http.served import Served, die_with
from tests.support.ports import free_ports
from tests.support.servers import lacking, ran

URL = "/v1/forward-auth"

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port};
        auth_request_set $retry_after $upstream_http_retry_after;
        error_page 403 = @over;
        location / {{
            set $quantity 100;
            auth_request /_gate;
            proxy_pass http://127.0.0.1:{app};
        }}
        location /dear {{
            set $quantity 101;
            auth_request /_gate;
            proxy_pass http://127.0.0.1:{app};
        }}
        location = /_gate {{
            internal;
            proxy_pass {gate}/v1/forward-auth?deny=403&meter=calls&quantity=$quantity;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Tidegate-Customer $http_x_signed_in_as;
            proxy_set_header Authorization "Bearer {token}";
            {when_away}
        }}
        location @open {{ internal; return 200; }}
        location @over {{
            add_header Retry-After $retry_after always;
            return 429;
        }}
    }}
}}
"""
NGINX_OPEN = "proxy_intercept_errors on; error_page 500 502 503 504 =200 @open;"

CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    @dear path /dear*
    forward_auth @dear {gate} {{
        uri /v1/forward-auth?meter=calls&quantity=101
        header_up X-Tidegate-Customer {{http.request.header.X-Signed-In-As}}
        header_up Authorization "Bearer {token}"
        copy_headers RateLimit RateLimit-Policy
    }}
    @cheap not path /dear*
    forward_auth @cheap {gate} {{
        uri /v1/forward-auth?meter=calls&quantity=100
        header_up X-Tidegate-Customer {{http.request.header.X-Signed-In-As}}
        header_up Authorization "Bearer {token}"
        copy_headers RateLimit RateLimit-Policy
    }}
    reverse_proxy 127.0.0.1:{app}
    {when_away}
}}
"""
CADDY_OPEN = """handle_errors {{
        @away expression {{err.status_code}} in [502, 503, 504]
        handle @away {{
            reverse_proxy 127.0.0.1:{app}
        }}
    }}"""


def test_let_through_with_what_is_left(api: httpx.Client) -> None:
    answer = api.get(URL, params={"customer": "proxied", "meter": "calls", "quantity": 40})
    assert answer.status_code == 200
    assert answer.headers["ratelimit-policy"] == '"calls";q=100'
    assert answer.headers["ratelimit"].startswith('"calls";r=100;t=')
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(("deny", "status"), [({}, 429), ({"deny": "403"}, 403)])
def test_turned_away_with_when_to_come_again(api: httpx.Client, deny: dict[str, str], status: int) -> None:
    params: dict[str, str | int] = {"customer": "proxied", "meter": "calls", "quantity": 101}
    answer = api.get(URL, params={**params, **deny})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert 0 < int(answer.headers["retry-after"]) <= 31 * 86_400
    assert answer.json()["decision"]["limit"] == "100"


def test_the_customer_may_be_in_a_header_of_the_proxy(api: httpx.Client) -> None:
    headers = {b"x-tidegate-customer": "Müller".encode()}
    answer = api.get(URL, params={"meter": "calls", "quantity": 101}, headers=headers)
    assert (answer.status_code, answer.json()["decision"]["customer"]) == (429, "Müller")


@pytest.mark.parametrize("headers", [{"x-tidegate-quantity": "0"}, {"x-tidegate-meter": "nothing"}])
def test_no_header_says_what_or_how_much(api: httpx.Client, headers: dict[str, str]) -> None:
    """A client may have sent it."""
    params: dict[str, str | int] = {"customer": "proxied", "meter": "calls", "quantity": 101}
    assert api.get(URL, params=params, headers=headers).status_code == 429


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize(
    "appended", ["/api/x", "/api/x?quantity=0", "/?&customer=other&meter=none", "/%2F/é"]
)
def test_what_a_proxy_appends_to_the_address_is_ignored(
    api: httpx.Client, method: str, appended: str
) -> None:
    """Envoy asks with the method of the request, and puts its path behind the prefix."""
    for quantity, status in ((100, 200), (101, 429)):
        url = f"{URL}?customer=proxied&quantity={quantity}&meter=calls{appended}"
        assert api.request(method, url).status_code == status


@pytest.mark.parametrize("query", ["", "?meter=calls", "?customer=a"])
def test_a_proxy_that_says_too_little_is_told(api: httpx.Client, query: str) -> None:
    assert api.get(URL + query).status_code == 422


def test_a_meter_that_there_is_not_is_no_yes(api: httpx.Client) -> None:
    """It could have no cap."""
    assert api.get(f"{URL}?customer=a&meter=cals").status_code == 404


def test_a_customer_who_is_there_twice_is_an_error(api: httpx.Client) -> None:
    headers = [("x-tidegate-customer", "client"), ("x-tidegate-customer", "proxy")]
    assert api.get(URL, params={"meter": "calls"}, headers=headers).status_code == 400


class Application(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the application")

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve_application() -> HTTPServer:
    application = HTTPServer(("127.0.0.1", 0), Application)
    Thread(target=application.serve_forever, daemon=True).start()
    return application


def command_of(name: str, configuration: Path) -> list[str]:
    """What runs the proxy in the foreground."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        lacking(f"needs {name} (Debian's {'nginx-light' if name == 'nginx' else name})")
    asked = ["-v"] if name == "nginx" else ["version"]
    found = subprocess.run([program, *asked], capture_output=True, text=True, check=True)
    ran(f"{name} {(found.stdout + found.stderr).rpartition('/')[2].strip()}")
    if name == "nginx":
        error_log = str(configuration.with_name("error.log"))
        return [program, "-p", str(configuration.parent), "-c", str(configuration), "-e", error_log]
    return [program, "run", "--adapter", "caddyfile", "--config", str(configuration)]


@contextmanager
def proxy(name: str, folder: Path, gate: str, token: str, *, is_open: bool = False) -> Iterator[str]:
    """nginx or Caddy as docs/api.md has it, between the test and an application."""
    application = serve_application()
    (port,) = free_ports(1)
    text, when_away = (NGINX, NGINX_OPEN) if name == "nginx" else (CADDY, CADDY_OPEN)
    given = {"folder": folder, "port": port, "app": application.server_port, "gate": gate, "token": token}
    configuration = folder / f"{name}.conf"
    away = when_away.format(**given) if is_open and name == "caddy" else when_away if is_open else ""
    configuration.write_text(text.format(**given, when_away=away))
    me, log = os.getpid(), (folder / "proxy.log").open("wb")
    process = subprocess.Popen(
        command_of(name, configuration),
        stdout=log,
        stderr=log,
        env=os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        preexec_fn=lambda: die_with(me),
    )
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            running = process.poll() is None and time.monotonic() < deadline
            assert running, (folder / "proxy.log").read_text()
            time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        log.close()
        application.shutdown()
        application.server_close()


PROXIES = pytest.mark.parametrize("name", ["nginx", "caddy"])


@PROXIES
def test_a_real_proxy_asks_and_obeys(served: Served, tmp_path: Path, name: str) -> None:
    with proxy(name, tmp_path, served.url, served.tokens["check"]) as url:
        who = {"x-signed-in-as": f"behind-{name}"}
        through = httpx.get(url, headers=who)
        assert (through.status_code, through.text) == (200, "the application")
        over = httpx.get(f"{url}/dear", headers=who)
        assert over.status_code == 429 and "the application" not in over.text
        assert int(over.headers["retry-after"]) > 0
        # What a client writes itself is not what the gate is asked.
        sly = who | {"x-tidegate-quantity": "0", "x-tidegate-meter": "seats", "x-tidegate-customer": "acme"}
        for address in (f"{url}/dear", f"{url}/dear?quantity=0&customer=acme", f"{url}/dear?&meter=seats"):
            assert httpx.get(address, headers=sly).status_code == 429


@PROXIES
@pytest.mark.parametrize("is_open", [False, True])
def test_a_proxy_whose_service_is_away_does_as_its_file_says(
    tmp_path: Path, name: str, is_open: bool
) -> None:
    (nobody,) = free_ports(1)
    with proxy(name, tmp_path, f"http://127.0.0.1:{nobody}", "tg_none", is_open=is_open) as url:
        answer = httpx.get(url, headers={"x-signed-in-as": "anybody"})
        assert (answer.text == "the application") == is_open
        assert (answer.status_code < 400) == is_open
