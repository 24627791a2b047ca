"""What holds for all tests: no example of hypothesis fails because the machine is busy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from fastllm.providers.vendors import VENDORS

settings.register_profile("fastllm", deadline=None)
settings.load_profile("fastllm")


@pytest.fixture(autouse=True, scope="session")
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of a test lies where the user's own keys, usage and batches do; processes that tests start go along."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture
def own_vendors() -> Iterator[None]:
    """Vendors that a test registers are gone after it."""
    before = dict(VENDORS)
    yield
    VENDORS.clear()
    VENDORS.update(before)
