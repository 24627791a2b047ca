"""What holds for all tests: no example of hypothesis fails because the machine is busy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from fastllm.providers.vendors import VENDORS

settings.register_profile("fastllm", deadline=None)
settings.load_profile("fastllm")


@pytest.fixture
def own_vendors() -> Iterator[None]:
    """Vendors that a test registers are gone after it."""
    before = dict(VENDORS)
    yield
    VENDORS.clear()
    VENDORS.update(before)
