"""What the tests of training share."""

import pytest


class Clock:
    """Time that moves only when a test says so; starts at 100 s."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()
