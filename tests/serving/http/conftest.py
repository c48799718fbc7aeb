from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.http.served import Served


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all tests that leave its catalog as it is, or use customers of their own."""
    served = Served(tmp_path_factory.mktemp("served"), rate_per_customer_key="10000")
    yield served
    assert served.stop() == 0, served.said()


@pytest.fixture
def api(served: Served) -> httpx.Client:
    """With a key that has every scope."""
    return served.client()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Served]:
    """A service for one test, which starts it and may do with it as it likes."""
    served = Served(tmp_path, start=False)
    yield served
    served.stop()
