"""What lies in a run folder, and weights out of its checkpoints; needs no data and no GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.errors import RefusedInput
from training.checkpoint_marker import DamagedCheckpoint, look_into
from training.checkpoint_store import CheckpointStore
from training.run_folder import RunFolder

INSPECT = "--inspect"
EXPORT_ONLY = "--export-only"


def serve(argv: Sequence[str]) -> str | None:
    """Do what `--inspect RUN` or `--export-only RUN` asks for.

    Returns:
        What to print; None if the command line asks for neither.

    Raises:
        RefusedInput: The run folder is not given, not one, or has nothing to export.
    """
    asked = [word for word in (INSPECT, EXPORT_ONLY) if word in argv]
    if not asked:
        return None
    if len(argv) != 2 or argv[0] != asked[0]:
        raise RefusedInput(f"{asked[0]} takes one run folder and nothing else: {asked[0]} RUN")
    folder = RunFolder(Path(argv[1]))
    if not folder.is_used():
        raise RefusedInput(f"{folder.path} is no run folder: it has no status.json, no checkpoint")
    return "\n".join(inspect(folder)) if asked[0] == INSPECT else export_newest(folder)


def inspect(folder: RunFolder) -> Iterator[str]:
    """Lines on the run's status and each of its checkpoints, whose files are all checked."""
    status = folder.status()
    said = ", ".join(f"{key} {value}" for key, value in status.items() if key != "state")
    yield f"{folder.path}: {status.get('state', 'no status.json')}" + (f" ({said})" if said else "")
    found = look_into(folder.checkpoints)
    if not found:
        yield "no checkpoints"
    for path, looked in found:
        yield f"{path.name}  {_described(looked)}"
    if folder.finished():
        yield f"export/  weights of step {status['step']}"


def _described(looked: dict[str, Any] | DamagedCheckpoint) -> str:
    if isinstance(looked, DamagedCheckpoint):
        return f"does not count: {looked}"
    metadata = looked["metadata"]
    size = sum(facts["bytes"] for facts in looked["files"].values())
    words = [f"complete, {size / 1e9:.3f} GB in {len(looked['files'])} files"]
    if "zero_stage" in metadata:
        words.append(
            f"{metadata['world_size']} ranks, ZeRO {metadata['zero_stage']}, "
            f"{metadata['identity'].get('precision')}, {metadata['images_seen']:,} images seen"
        )
    return ", ".join(words)


def export_newest(folder: RunFolder) -> str:
    """Write export/ (and export-ema/) from the newest complete checkpoint; gives what to say.

    Raises:
        RefusedInput: There is none, or it is in another format.
    """
    from models.weights import save_weights, weights_sha256
    from models.weights_card import WeightsCard
    from models.zoo import Architecture
    from pretrain.state_files import AVERAGE, MASTER, SavedState, saved_weights, state_file

    found = CheckpointStore(folder.checkpoints).newest_complete()
    if found is None:
        raise RefusedInput(f"{folder.path} has no complete checkpoint (--inspect says why)")
    if "weights_card" not in found.metadata:
        raise RefusedInput(f"{found.folder} is not a pretraining checkpoint of this version")
    facts = _with_tuples(found.metadata["weights_card"])
    facts["architecture"] = Architecture(**_with_tuples(facts["architecture"]))
    saved = SavedState(
        found.folder / state_file(rank) for rank in range(found.metadata["world_size"])
    )
    told = []
    with folder.lock():
        for kind, to in ((MASTER, folder.export), (AVERAGE, folder.export_average)):
            if saved.has(kind):
                weights = saved_weights(saved, kind, facts["architecture"])
                digest = weights_sha256(weights)
                extra = {"steps": found.step, "weights_sha256": digest}
                save_weights(to, weights, WeightsCard(**facts, extra=extra))
                told.append(f"wrote {to}: weights of step {found.step}, sha256 {digest}")
    return "\n".join(told)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
