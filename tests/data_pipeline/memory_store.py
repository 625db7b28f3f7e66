"""fsspec's memory files in place of a bucket."""

import fsspec
import pytest


@pytest.fixture
def memory():
    """An empty store of this process; gives its content by name."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield lambda: {path.lstrip("/"): files.cat_file(path) for path in files.find("/")}
    files.store.clear()
