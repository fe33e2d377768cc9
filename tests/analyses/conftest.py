"""A cache of their own for the pretrained encoders that analyses make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
