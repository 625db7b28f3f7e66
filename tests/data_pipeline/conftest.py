"""What the tests of the data pipeline share."""

import pytest

from data_pipeline import build, foreign_index, stream_writer


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Let writers work in this process unless a test asks for workers by number.

    Each worker process imports torch to decode images, which takes seconds for the few images here.
    """
    for module in (build, foreign_index, stream_writer):
        monkeypatch.setattr(module, "num_usable_cores", lambda: 1)
