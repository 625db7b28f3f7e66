"""`python -m data_pipeline.merge`: parts that `build --part` wrote become one dataset.

Shards are renamed, not read; the result is, to the byte, what one build without parts would be.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from configs.errors import RefusedInput
from data_pipeline.build_summary import BuildSummary
from data_pipeline.join_shards import join_shards
from data_pipeline.manifest import MANIFEST_FILE, Manifest
from data_pipeline.output_folder import BuildDescription, building, discard_unfinished
from data_pipeline.output_store import OutputStore, open_store


def merge_parts(output: Path | str) -> BuildSummary:
    """Join the parts that lie in `output`; says so if that was done already.

    Raises:
        RefusedInput: Shards are missing, a part is being written, or no build was begun there.
    """
    started = time.perf_counter()
    there = open_store(output)
    finished = _finished(there, output)
    if finished is not None:
        return finished
    description = BuildDescription.load(there)
    if description is None:
        raise RefusedInput(
            f"{output} holds no parts; write them with `python -m data_pipeline.build --part "
            "1/N ... N/N`, all with this --output"
        )
    with building(output, None) as store:
        joined = join_shards(store, description)
    return BuildSummary(
        output=output,
        manifest=joined.manifest,
        skipped=joined.skipped,
        changes=joined.changes,
        num_duplicates=joined.num_duplicates,
        seconds=time.perf_counter() - started,
    )


def _finished(store: OutputStore, output: Path | str) -> BuildSummary | None:
    if MANIFEST_FILE not in store.sizes():
        return None
    manifest = Manifest.parse(store.read(MANIFEST_FILE), f"{output}/{MANIFEST_FILE}")
    discard_unfinished(store)
    return BuildSummary(output, manifest, already_built=True)


def main(argv: Sequence[str]) -> int:
    """Merge, then print the summary."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.merge",
        description="Join the parts that `data_pipeline.build --part I/N` wrote into one folder.",
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="DIR", help="the --output of all parts, a folder or URL")
    output = parser.parse_args(argv).output
    print(merge_parts(output if "://" in output else Path(output)).text())  # noqa: T201
    return 0


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
