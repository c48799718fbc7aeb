"""Alerts by e-mail over SMTP, as text and HTML; what comes together is one mail.

The subject names the alert, or how many there are. `Message-ID` is made from the alerts' ids, so that a mail that is
sent again after a lost answer is known for the same one.

Source: https://docs.python.org/3/library/smtplib.html, RFC 5322.
"""

import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate
from hashlib import sha256
from typing import Literal

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from tidegate.connectors.alerts.queue import Message, Refused
from tidegate.operators.model.alert_text import write_sentence, write_title
from tidegate.operators.model.errors import one_line

TIMEOUT = 20.0


class MailDeliverer:
    """Sends from `sender` to `to` through the server at `host` and `port`, logging in where `user` is given."""

    at_once = 50

    def __init__(
        self,
        host: str,
        port: int,
        sender: str,
        to: Sequence[str],
        *,
        tls: Literal["starttls", "tls", "none"] = "starttls",
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._sender, self._to = sender, tuple(to)
        self._user, self._password = user, password
        templates = Environment(
            loader=PackageLoader("tidegate.connectors.alerts"),
            autoescape=select_autoescape(("html.j2",)),
            undefined=StrictUndefined,
        )
        self._text, self._html = (templates.get_template(f"alerts.{kind}.j2") for kind in ("txt", "html"))

    def __repr__(self) -> str:
        return f"MailDeliverer({self._host}:{self._port})"

    def deliver(self, messages: Sequence[Message]) -> None:
        """One mail with all of them. Raises Refused where the server did not take it."""
        mail = self._mail(messages)
        try:
            with self._connected() as server:
                refused = server.send_message(mail)
        except smtplib.SMTPException as error:
            # Only the kind of a refused login, as a server may quote what it was given.
            words = "" if isinstance(error, smtplib.SMTPAuthenticationError) else f": {one_line(error)}"
            raise Refused(f"{self._host}: {type(error).__name__}{words}") from None
        if refused:
            raise Refused(f"{self._host}: refused {', '.join(sorted(refused))}")

    def _connected(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if self._tls == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self._host, self._port, timeout=TIMEOUT, context=context)
        else:
            server = smtplib.SMTP(self._host, self._port, timeout=TIMEOUT)
            if self._tls == "starttls":
                server.starttls(context=context)
        if self._user is not None:
            server.login(self._user, self._password or "")
        return server

    def _mail(self, messages: Sequence[Message]) -> EmailMessage:
        alerts = [msgspec.json.decode(message.body) for message in messages]
        entries = [
            {"title": write_title(alert), "sentence": write_sentence(alert), **alert} for alert in alerts
        ]
        subject = entries[0]["title"] if len(entries) == 1 else f"{len(entries)} alerts"
        ids = sha256("\n".join(message.id for message in messages).encode()).hexdigest()[:32]
        mail = EmailMessage()
        # A line break in a customer's name must not begin another header.
        mail["Subject"] = " ".join(f"[Tidegate] {subject}".split())
        mail["From"] = self._sender
        mail["To"] = ", ".join(self._to)
        mail["Date"] = formatdate()
        mail["Message-ID"] = f"<{ids}@{self._sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(self._text.render(alerts=entries))
        mail.add_alternative(self._html.render(alerts=entries), subtype="html")
        return mail
