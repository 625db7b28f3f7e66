"""Runs tests on a copy of the code, in a process that has imported none of it before."""

import os
import sys
from pathlib import Path

# Third-party packages that take long to import; processes are forked from one that has them.
PRELOADED = [
    "PIL.Image",
    "fsspec",
    "hypothesis",
    "numpy",
    "pyarrow.parquet",
    "pydantic",
    "pytest",
    "requests",
    "torch",
    "torchvision.io",
]


def run_tests(folder: Path, tests: list[str], log: Path, environment: dict[str, str]) -> None:
    """End this process with pytest's exit code for `tests`, which lie in `folder`."""
    os.environ.clear()  # whoever needed worker processes first gave them his
    os.environ.update(environment)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    original = Path(__file__).parents[2]
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".") != original)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    import pytest

    # Plain: told in full, as pytest does where CI is set, a megabyte that differs takes minutes.
    options = ["-q", "-x", "--assert=plain", "-p", "no:cacheprovider", "--basetemp=.tests"]
    code = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(int(code))  # whatever a mutation left running
