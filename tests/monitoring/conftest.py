"""The machine that tests run on is shared: a slow example is no wrong one. Times of day are UTC's."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("monitoring", deadline=None)
settings.load_profile("monitoring")


@pytest.fixture(autouse=True, scope="session")
def utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()
