"""Every fault of faults.yaml has a test that fails when its handling is removed."""

import multiprocessing
import os
import queue
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

import pytest
import yaml

from data_pipeline.worker_processes import num_usable_cores
from tests.mutations.run_test import PRELOADED, run_tests

ROOT = Path(__file__).parents[2]
PACKAGES = ("configs", "data_pipeline", "models", "pretrain", "training", "tracking", "tests")
TESTS_FAILED = 1  # pytest's exit code; others are errors of the table, such as no such test
UNCHANGED_SECONDS = 900.0
CHANGED_SECONDS = 240.0
HANGING_SECONDS = 20.0


@dataclass(frozen=True)
class Mutation:
    """A row of the table; `hangs`: without its handling nothing ends."""

    fault: str
    file: str
    text: str
    instead: str
    test: str
    hangs: bool = False


MUTATIONS = [
    Mutation(**row) for row in yaml.safe_load(Path(__file__).with_name("faults.yaml").read_text())
]
each_mutation = pytest.mark.parametrize(
    "mutation", [pytest.param(mutation, id=mutation.fault) for mutation in MUTATIONS]
)


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended; `code` None: it had to be ended."""

    code: int | None
    output: str


def test_the_table_names_code_and_tests_that_are_there() -> None:
    """Quick, so that who changes the code meets it at once."""
    assert len({mutation.fault for mutation in MUTATIONS}) == len(MUTATIONS)
    for mutation in MUTATIONS:
        assert (ROOT / mutation.file).read_text().count(mutation.text) == 1, mutation
        assert mutation.instead != mutation.text
        file, _, name = mutation.test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), mutation


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> dict[Mutation, Outcome]:
    """Outcomes of the mutations whose tests were collected; a process for each core at a time."""
    asked = [item.callspec.params["mutation"] for item in request.session.items if is_asked(item)]
    folder = tmp_path_factory.mktemp("code")
    copies = [folder / str(number) for number in range(min(num_usable_cores(), 4))]
    copy_code(ROOT, copies[0])
    tests = sorted({mutation.test for mutation in asked})
    unchanged = run(copies[0], tests, UNCHANGED_SECONDS)
    assert unchanged.code == 0, f"without any change they must pass:\n{unchanged.output}"
    for copy in copies[1:]:  # with what Python has compiled meanwhile
        copy_code(copies[0], copy)
    idle: queue.Queue[Path] = queue.Queue()
    for copy in copies:
        idle.put(copy)

    def outcome(mutation: Mutation) -> Outcome:
        copy = idle.get()
        with mutated(copy / mutation.file, mutation):
            seconds = HANGING_SECONDS if mutation.hangs else CHANGED_SECONDS
            ended = run(copy, [mutation.test], seconds)
        idle.put(copy)
        return ended

    with ThreadPoolExecutor(len(copies)) as threads:
        return dict(zip(asked, threads.map(outcome, asked), strict=True))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@each_mutation
def test_without_its_handling_a_test_fails(mutation: Mutation, outcomes) -> None:
    ended = outcomes[mutation]
    assert ended.code == (None if mutation.hangs else TESTS_FAILED), ended.output


def is_asked(item: pytest.Item) -> bool:
    return getattr(item, "originalname", "") == test_without_its_handling_a_test_fails.__name__


def copy_code(source: Path, copy: Path) -> None:
    copy.mkdir()
    for package in PACKAGES:
        compiled = shutil.ignore_patterns("__pycache__") if source == ROOT else None
        shutil.copytree(source / package, copy / package, ignore=compiled)
    shutil.copy2(ROOT / "pyproject.toml", copy)


@contextmanager
def mutated(path: Path, mutation: Mutation) -> Iterator[None]:
    """A file with the replacement."""
    original, compiled = path.read_text(), Path(cache_from_source(str(path)))
    path.write_text(original.replace(mutation.text, mutation.instead))
    # Python tells versions apart by size and second.
    compiled.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.write_text(original)
        compiled.unlink(missing_ok=True)


def run(folder: Path, tests: list[str], seconds: float) -> Outcome:
    """Run tests in a copy; ended after some seconds, as a mutation may well hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    log = folder / "log.txt"
    arguments = (folder, tests, log, dict(os.environ))
    process = context.Process(target=run_tests, args=arguments, daemon=False)
    process.start()
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return Outcome(code, log.read_text(errors="replace")[-6000:])
