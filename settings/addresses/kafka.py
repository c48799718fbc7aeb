"""What every address of Kafka has: brokers, topic, login, and whatever else librdkafka may be told."""

from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from tidegate.settings.addresses.address import MASK, Dsn
from tidegate.settings.problems import SettingsError

CONFIG = "config."
# https://github.com/apache/kafka/blob/trunk/clients/src/main/java/org/apache/kafka/common/internals/Topic.java
TOPIC = r"^[a-zA-Z0-9._-]{1,249}$"


class KafkaAddress(Dsn):
    """`kafka://broker-1:9092,broker-2:9092/topic?tls=true&config.ssl.ca.location=ca.pem`.

    `config.NAME=VALUE` sets any property of librdkafka but those that the connector's promises depend on; its values
    are shown nowhere, as some are secrets.
    """

    scheme: Literal["kafka"] = "kafka"
    path: str = Field(pattern=TOPIC, description="The topic.")
    tls: bool = Field(False, description="Encrypt, and check the brokers' certificates.")
    sasl: Literal["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"] | None = Field(
        None,
        description="How user and password log in; for `oauthbearer` they are the client's id and secret.",
    )
    config: dict[str, SecretStr] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        named = {name.removeprefix(CONFIG): value[name] for name in value if name.startswith(CONFIG)}
        rest = {name: value[name] for name in value if not name.startswith(CONFIG)}
        return rest | {"config": named} if named else rest

    @field_validator("path")
    @classmethod
    def _is_name(cls, path: str) -> str:
        if path in (".", ".."):
            raise ValueError("needs a topic's name")
        return path

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        if self.sasl not in (None, "oauthbearer") and not (self.user and self.password):
            raise ValueError(f"needs user and password before the host for sasl={self.sasl}")
        if self.sasl is None and (self.user or self.password):
            raise ValueError("needs sasl=plain, scram-sha-256, scram-sha-512 or oauthbearer with a user")
        if bool(self.user) != bool(self.password):
            raise ValueError("needs both user and password, or neither")
        return self

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        return tuple(name for name in super().choices() if name != "config")

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"config": {n: v.get_secret_value() for n, v in self.config.items()}}

    def open(self, **given: Any) -> Any:
        try:
            return super().open(**given)
        except ValueError as error:
            reason = str(error)
        raise SettingsError([f"kafka: {reason}"])

    def __str__(self) -> str:
        text = super().__str__()
        hidden = "&".join(f"{CONFIG}{name}={MASK}" for name in self.config)
        return f"{text}{'&' if '?' in text else '?'}{hidden}" if hidden else text
