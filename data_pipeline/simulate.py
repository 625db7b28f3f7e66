"""`python -m data_pipeline.simulate`: what a run would read, before there is data or a cluster.

The numbers come from the sample order itself, at full scale; only sizes and speeds are taken as
given, and shards as equal.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from configs.errors import RefusedInput
from data_pipeline.class_mixing import Mixing, mixing
from data_pipeline.simulated_reading import Change, Reading, Simulation
from data_pipeline.simulation import Fleet, make_order
from data_pipeline.simulation_advice import advise, advise_on_ranks
from data_pipeline.simulation_report import describe, describe_change

# Bound memory; 14 million images take 0.3 GB.
_MAX_IMAGES, _MAX_STREAMS = 100_000_000, 1_000_000
_MOST = 10**12


def main(argv: Sequence[str]) -> int:
    """Print numbers, then advice."""
    options = vars(_parse(argv))
    new_world_size, as_json = options.pop("new_world_size"), options.pop("json")
    fleet = Fleet(**options)
    _check(fleet, new_world_size or fleet.world_size)
    order = make_order(fleet)
    simulation = Simulation(fleet, order)
    mixed = mixing(order, fleet.classes, fleet.batch_images)
    advice = list(advise(fleet, simulation.reading, mixed))
    change = None
    if new_world_size is not None:
        new = replace(fleet, world_size=new_world_size)
        change = simulation.change(fleet, new)
        later = advise_on_ranks(new, change.reading)
        advice += [f"with {new_world_size:,} ranks: {sentence}" for sentence in later]
    told = _as_json if as_json else _as_text
    print(told(fleet, simulation.reading, mixed, change, advice))  # noqa: T201
    return 0


def _as_text(
    fleet: Fleet, reading: Reading, mixed: Mixing, change: Change | None, advice: list[str]
) -> str:
    lines = list(describe(fleet, reading, mixed))
    if change is not None:
        lines += ["", *describe_change(fleet, change)]
    if advice:
        lines += ["", *(f"advice: {sentence}" for sentence in advice)]
    else:
        lines += ["", "advice: none, these settings fit together"]
    return "\n".join(lines)


def _as_json(
    fleet: Fleet, reading: Reading, mixed: Mixing, change: Change | None, advice: list[str]
) -> str:
    told = {
        "fleet": asdict(fleet),
        "reading": asdict(reading),
        "mixing": {kind: values._asdict() for kind, values in mixed._asdict().items()},
        "change": None if change is None else asdict(change),
        "advice": advice,
    }
    return json.dumps(told, indent=2)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.simulate",
        description="Work out what a run would read, and say what is poor about its settings. No "
        "data is needed: the numbers come from the sample order. Numbers may be written 14e6.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--images", type=_count, required=True, help="images of the dataset")
    add("--shards", type=_count, required=True, help="shards that they lie in")
    add("--world-size", type=_count, required=True, help="number of ranks")
    add("--streams", type=_count, default=768, help="the run's data.streams")
    add("--ranks-per-node", type=_count, default=8, help="ranks that share a node and its cache")
    add("--batch-images", type=_count, default=4096, help="the run's batch.global-images")
    add("--image-bytes", type=_amount, default=110e3, help="mean size of an image file")
    add("--classes", type=_count, default=1000, help="classes, taken to be of equal size")
    add("--images-per-second", type=_amount, default=1000.0, help="training speed of one rank")
    add("--sorted", action="store_true", help="the shards lie in order of class")
    add("--cache-bytes", type=_amount, help="size of each node's cache of shards")
    add("--new-world-size", type=_count, metavar="RANKS", help="what going on with so many costs")
    add("--seed", type=int, default=0, help="the run's seed")
    add("--json", action="store_true", help="print one JSON object, sizes in bytes")
    return parser.parse_args(argv)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return value


def _count(text: str) -> int:
    value = _amount(text)
    if value != int(value) or value > _MOST:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number up to {_MOST:.0e}")
    return int(value)


def _check(fleet: Fleet, new_world_size: int) -> None:
    if fleet.seed < 0:
        raise RefusedInput(f"--seed {fleet.seed}: give 0 or more")
    for name, value, bound in (
        ("--images", fleet.images, _MAX_IMAGES),
        ("--streams", fleet.streams, _MAX_STREAMS),
    ):
        if value > bound:
            raise RefusedInput(f"{name} {value:,}: at most {bound:,} can be simulated")
    for name, value in (
        ("--shards", fleet.shards),
        ("--classes", fleet.classes),
        ("--batch-images", fleet.batch_images),
    ):
        if value > fleet.images:
            raise RefusedInput(f"{name} {value:,}: more than --images {fleet.images:,}")
    for name, value in (("--world-size", fleet.world_size), ("--new-world-size", new_world_size)):
        if value > fleet.batch_images:
            raise RefusedInput(
                f"{name} {value:,}: more than --batch-images {fleet.batch_images:,}, so that ranks "
                f"would have no image; give at least --batch-images {value:,}"
            )


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
