"""Where alerts go: one address or several, each with the kinds and customers that it wants."""

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from tidegate.settings.addresses.address import BY_SCHEME, Address, Dsn, Host, load
from tidegate.settings.addresses.sinks import FilePlace, KafkaSinkAddress
from tidegate.settings.addresses.webhook_secrets import read_webhook_secrets
from tidegate.settings.problems import SettingsError

KINDS: Final = (
    "threshold", "cap_reached", "cap_released", "overage_started", "overage_ended", "correction", "drift",
    "unmetered",
)  # fmt: skip
_WEBHOOK_URL: Final = re.compile(r"https?://[A-Za-z0-9.:-]+/[!-~]*")


def _listed(value: Any) -> Any:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


Listed = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Routed(Address):
    """`kinds` and `customers` narrow what goes there; a customer that ends in `*` stands for all that begin so."""

    kinds: Listed = Field((), description="Kinds of alerts that go there, by commas; all if not given.")
    customers: Listed = Field(
        (), description="Customers whose alerts go there, by commas; acme* takes all so named."
    )

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"needs kinds out of {', '.join(KINDS)}; got {unknown[0]}")
        return kinds

    def arguments(self) -> dict[str, Any]:
        return {
            name: value for name, value in super().arguments().items() if name not in ("kinds", "customers")
        }

    def wants(self, kind: str, customer: str) -> bool:
        """Whether an alert goes there."""
        if self.kinds and kind not in self.kinds:
            return False
        return not self.customers or any(
            customer.startswith(name[:-1]) if name.endswith("*") else customer == name
            for name in self.customers
        )


class AlertFile(Routed, FilePlace):
    """`file:data/alerts.ndjson`: one alert a line, appended."""

    connector: ClassVar[str] = "tidegate.connectors.files.ndjson:FileSink"
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The file that alerts are appended to.")


class AlertStdout(Routed):
    """`stdout:`: one alert a line on standard output."""

    connector: ClassVar[str] = "tidegate.connectors.files.stdout:StdoutSink"
    scheme: Literal["stdout"] = "stdout"


class AlertKafka(Routed, KafkaSinkAddress):
    """`kafka://broker:9092/alerts`: one alert a message, keyed by customer."""

    connector: ClassVar[str] = "tidegate.connectors.kafka.sinks:AlertSink"


class Delivered(Routed):
    """What goes through the queue of deliveries: tried again for three days, and never in the flow's way."""

    connector: ClassVar[str] = "tidegate.connectors.alerts.sink:DeliverySink"
    needs: ClassVar[frozenset[str]] = frozenset({"queue", "secrets"})
    deliverer: ClassVar[str]

    @property
    def target(self) -> str:
        """What the queue and the log call it."""
        raise NotImplementedError

    def open_deliverer(self, secrets: "Secrets") -> Callable[[], Any]:
        """Return a function that opens the way out; SettingsError where a secret is missing."""
        raise NotImplementedError

    def open(self, **given: Any) -> Any:
        """Return the sink; `given` are the `queue`, a file, and the `secrets`."""
        return load(self.connector)(self.target, given["queue"], self.open_deliverer(given["secrets"]))


class AlertWebhook(Delivered, Dsn):
    """`webhook://example.com/hook`: a signed POST for each alert, as Standard Webhooks; over HTTPS."""

    deliverer: ClassVar[str] = "tidegate.connectors.alerts.webhook:WebhookDeliverer"
    scheme: Literal["webhook"] = "webhook"
    hosts: tuple[Host, ...] = Field(min_length=1, max_length=1)
    path: str = Field("", description="The path of the URL.")
    tls: bool = Field(True, description="Speak HTTPS.")
    private: bool = Field(
        False, description="Also to addresses that are not public, such as 10.0.0.1 or localhost."
    )

    @property
    def target(self) -> str:
        return f"{self.scheme}://{self.hosts[0]}/{self.path.lstrip('/')}"

    def open_deliverer(self, secrets: "Secrets") -> Callable[[], Any]:
        text = secrets.webhook.get_secret_value() if secrets.webhook is not None else ""
        keys = read_webhook_secrets("TIDEGATE_WEBHOOK_SECRETS", text)
        url = f"{'https' if self.tls else 'http'}://{self.hosts[0]}/{self.path.lstrip('/')}"
        return partial(load(self.deliverer), url, keys, private=self.private)


class AlertSlack(Delivered):
    """`slack:`: a chat room, by the incoming webhook in TIDEGATE_SLACK_URL."""

    deliverer: ClassVar[str] = "tidegate.connectors.alerts.slack:SlackDeliverer"
    scheme: Literal["slack"] = "slack"

    @property
    def target(self) -> str:
        return "slack"

    def open_deliverer(self, secrets: "Secrets") -> Callable[[], Any]:
        if secrets.slack is None:
            raise SettingsError(["TIDEGATE_SLACK_URL: is missing: slack: posts to an incoming webhook's URL"])
        url = secrets.slack.get_secret_value()
        if not _WEBHOOK_URL.fullmatch(url):
            raise SettingsError(
                ["TIDEGATE_SLACK_URL: needs the URL of an incoming webhook, https://HOST/PATH"]
            )
        return partial(load(self.deliverer), url)


class AlertMail(Delivered, Dsn):
    """`smtp://user:password@host:587?sender=tidegate@example.com&to=ops@example.com`: e-mail."""

    deliverer: ClassVar[str] = "tidegate.connectors.alerts.mail:MailDeliverer"
    scheme: Literal["smtp"] = "smtp"
    hosts: tuple[Host, ...] = Field(min_length=1, max_length=1)
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", description="The mail's From.")
    to: Listed = Field(min_length=1, description="Who gets it, by commas.")
    tls: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection is encrypted."
    )

    @model_validator(mode="after")
    def _hides_its_password(self) -> Self:
        if self.password is not None and self.tls == "none":
            raise ValueError("needs tls where there is a password")
        return self

    @property
    def target(self) -> str:
        return f"{self.scheme}://{self.hosts[0]}/{','.join(self.to)}"

    def open_deliverer(self, secrets: "Secrets") -> Callable[[], Any]:
        host = self.hosts[0]
        return partial(
            load(self.deliverer),
            host.name,
            host.port or (465 if self.tls == "tls" else 587),
            self.sender,
            self.to,
            tls=self.tls,
            user=self.user and self.user.get_secret_value(),
            password=self.password and self.password.get_secret_value(),
        )


class Secrets:
    """What deliveries sign and post with; no part of it is ever shown."""

    def __init__(self, webhook: SecretStr | None, slack: SecretStr | None) -> None:
        self.webhook = webhook
        self.slack = slack


Alert = Annotated[AlertFile | AlertStdout | AlertKafka | AlertWebhook | AlertSlack | AlertMail, BY_SCHEME]


def _several(value: Any) -> Any:
    """Addresses parted by white space, which none has inside."""
    if isinstance(value, str):
        return value.split() or value
    return value if isinstance(value, list | tuple) else (value,)


Alerts = Annotated[tuple[Alert, ...], BeforeValidator(_several), Field(min_length=1)]
