"""Forward-auth: what a proxy is told, and a real nginx in front of an application, where there is one."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.ports import free_ports
from tests.servers import lacking, ran
from tests.serving.service.served import Served, die_with

URL = "/v1/forward-auth"

CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            auth_request /_gate;
            auth_request_set $retry_after $upstream_http_retry_after;
            error_page 403 = @over;
            proxy_pass http://127.0.0.1:{app};
        }}
        location = /_gate {{
            internal;
            proxy_pass {gate}/v1/forward-auth?deny=403&meter=calls;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Tidegate-Customer $http_x_signed_in_as;
            proxy_set_header X-Tidegate-Quantity $http_x_cost;
            proxy_set_header Authorization "Bearer {token}";
        }}
        location @over {{
            add_header Retry-After $retry_after always;
            return 429;
        }}
    }}
}}
"""


def test_let_through_with_what_is_left(api: httpx.Client) -> None:
    answer = api.get(URL, params={"customer": "proxied", "meter": "calls", "quantity": 40})
    assert answer.status_code == 200
    assert answer.headers["ratelimit-policy"] == '"calls";q=100'
    assert answer.headers["ratelimit"].startswith('"calls";r=100;t=')
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(("deny", "status"), [({}, 429), ({"deny": "403"}, 403)])
def test_turned_away_with_when_to_come_again(api: httpx.Client, deny: dict[str, str], status: int) -> None:
    answer = api.get(URL, params={"customer": "proxied", "meter": "calls", "quantity": 101} | deny)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert 0 < int(answer.headers["retry-after"]) <= 31 * 86_400
    assert answer.json()["decision"]["limit"] == "100"


def test_headers_of_the_proxy_say_who_and_what(api: httpx.Client) -> None:
    headers = {
        "x-tidegate-customer": "Müller".encode(),
        "x-tidegate-meter": b"calls",
        "x-tidegate-quantity": b"101",
    }
    answer = api.get(URL, headers=headers)
    assert (answer.status_code, answer.json()["decision"]["customer"]) == (429, "Müller")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-tidegate-customer": "a"},
        {"x-tidegate-customer": "a", "x-tidegate-meter": "calls", "x-tidegate-quantity": "-1"},
    ],
)
def test_a_proxy_that_says_too_little_is_told(api: httpx.Client, headers: dict[str, str]) -> None:
    assert api.get(URL, headers=headers).status_code == 422


class Application(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the application")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def nginx(served: Served, tmp_path: Path) -> Iterator[str]:
    """nginx as docs/api.md has it, between the test and an application."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        lacking("needs nginx (Debian's nginx-light)")
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    ran(f"nginx {said.rpartition('/')[2].strip()}")
    application = HTTPServer(("127.0.0.1", 0), Application)
    Thread(target=application.serve_forever, daemon=True).start()
    (port,) = free_ports(1)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=tmp_path,
            port=port,
            app=application.server_port,
            gate=served.url,
            token=served.tokens["check"],
        )
    )
    me = os.getpid()
    process = subprocess.Popen(
        [program, "-p", str(tmp_path), "-c", str(configuration), "-e", str(tmp_path / "error.log")],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: die_with(me),
    )
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert process.poll() is None and time.monotonic() < deadline, (
                tmp_path / "error.log"
            ).read_text()
            time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)
    application.shutdown()
    application.server_close()


def test_a_real_nginx_asks_and_obeys(nginx: str) -> None:
    through = httpx.get(nginx, headers={"x-signed-in-as": "behind-nginx", "x-cost": "100"})
    assert (through.status_code, through.text) == (200, "the application")
    over = httpx.get(nginx, headers={"x-signed-in-as": "behind-nginx", "x-cost": "101"})
    assert over.status_code == 429 and "the application" not in over.text
    assert int(over.headers["retry-after"]) > 0
    # What a client writes itself is not what the gate is told.
    sly = {
        "x-signed-in-as": "behind-nginx",
        "x-cost": "101",
        "x-tidegate-quantity": "1",
        "x-tidegate-customer": "acme",
    }
    assert httpx.get(nginx, headers=sly).status_code == 429
