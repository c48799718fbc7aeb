"""Where alerts, dead letters and accepted events go."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from settings.address import BY_SCHEME, Address


class AlertFile(Address):
    """`file:data/alerts.ndjson`: one alert a line, appended."""

    connector: ClassVar[str] = "connectors.file:FileSink"
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The file that alerts are appended to.")


class AlertStdout(Address):
    """`stdout:`: one alert a line on standard output."""

    connector: ClassVar[str] = "connectors.stdout:StdoutSink"
    scheme: Literal["stdout"] = "stdout"


class DeadLetterFile(Address):
    """`file:data/dead-letters.ndjson`: one dead letter a line, appended."""

    connector: ClassVar[str] = "connectors.file:FileSink"
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The file that dead letters are appended to.")


class DeadLetterStdout(Address):
    """`stdout:`: one dead letter a line on standard output."""

    connector: ClassVar[str] = "connectors.stdout:StdoutSink"
    scheme: Literal["stdout"] = "stdout"


class BillingFile(Address):
    """`file:data/billing/`: a folder of accepted events, as they would be sent to the biller."""

    connector: ClassVar[str] = "connectors.file:DirSink"
    scheme: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The folder; it is made if need be.")

    def arguments(self) -> dict[str, Any]:
        return {"directory": self.path}


Alerts = Annotated[AlertFile | AlertStdout, BY_SCHEME]
DeadLetters = Annotated[DeadLetterFile | DeadLetterStdout, BY_SCHEME]
Billing = Annotated[BillingFile, BY_SCHEME]
