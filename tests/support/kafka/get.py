"""Gets Apache Kafka's jars from Maven Central, once, into a folder of the user's cache.

`python -m tests.support.kafka.get` does it ahead of the tests and prints the folder. Maven does the resolving, as it
is set up on the machine.
"""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

VERSION = "4.4.0"
SECONDS = 300

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>tidegate</groupId><artifactId>kafka</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies>
</project>
"""


class NotToBeHad(Exception):
    """There is no Kafka to run here, and why."""


def cache() -> Path:
    """Where what tests download is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tidegate"


def jars() -> Path:
    """The folder of the jars, which are downloaded if they are not there; NotToBeHad where they can't be."""
    if not shutil.which("java"):
        raise NotToBeHad("no java")
    folder = cache() / f"kafka-{VERSION}"
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _download(folder)
    return folder


def _download(folder: Path) -> None:
    maven = shutil.which("mvn")
    if not maven:
        raise NotToBeHad("no Maven to get Kafka's jars with")
    with TemporaryDirectory(dir=folder.parent) as made:
        pom, new = Path(made) / "pom.xml", Path(made) / "jars"
        pom.write_text(POM)
        command = [maven, "-B", "-q", "-f", str(pom), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={new}"]
        try:
            subprocess.run(
                command, check=True, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = (error.stdout or b"").decode(errors="replace").strip().splitlines()
            raise NotToBeHad(f"Maven got no jars ({said[0][:200] if said else error})") from None
        new.rename(folder)


if __name__ == "__main__":
    print(jars())
