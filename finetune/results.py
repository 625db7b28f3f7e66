"""How a run ends: the chosen weights meet the test set, once, and everything is written down."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from finetune.candidates import put_weights
from finetune.part_scores import score
from finetune.scores import Scores, main_score, metrics_of, per_class_of, record_of, told
from finetune.start import StateDict
from finetune.state import TransferState
from models.weights import WeightsCard, save_weights, weights_sha256
from tracking.plots import confusion_matrix_png, curves_png
from tracking.provenance import git_state
from tracking.record import TrackingFiles
from tracking.run import TrackedRun
from training.evaluate import Evaluation

logger = logging.getLogger(__name__)

Result = dict[str, Any]


class TrainingDiverged(RuntimeError):
    """No learning rate came to an end."""


def finish(state: TransferState, tracked: TrackedRun) -> Result:
    """Score the chosen weights on the test part and write results, weights and plots; a collective.

    Raises:
        TrainingDiverged: No learning rate came to an end.
    """
    progress, chosen = state.progress, state.chosen
    if chosen is None:
        rates = ", ".join(f"{rate:g}" for rate in progress.learning_rates)
        raise TrainingDiverged(f"every learning rate diverged ({rates}); try lower ones")
    put_weights(state, chosen)
    scores = score(state, state.test, state.data.real_labels)
    result = _result(state, scores, weights_sha256(chosen))
    tracked.log_metrics(progress.total_steps, metrics_of("test", scores))
    if state.accelerator.is_main_process:
        _export(state, chosen, result, tracked)
        _draw(state, scores, tracked)
        state.folder.write_result(result)
        tracked.log_artifact(state.folder.path / "result.json")
        tracked.set_tags({"chosen_learning_rate": f"{result['learning_rate']:g}"})
        name, value = main_score(scores)
        tracked.link_transfer(state.start.tags, state.config.task, value, name)
        _tell(state, result)
    return result


def _result(state: TransferState, scores: Scores, sha256: str) -> Result:
    config, progress = state.config, state.progress
    assert progress.chosen is not None
    return {
        "task": config.task,
        "test": record_of(scores),
        "per_class": per_class_of(scores, state.data.test.classes),
        "validation": {
            f"{rate:g}": score
            for rate, score in zip(progress.learning_rates, progress.validation, strict=True)
        },
        "learning_rate": progress.learning_rates[progress.chosen],
        "seed": config.seed,
        "steps": config.steps,
        "images_seen": config.steps * config.batch.global_images,
        "seconds": state.seconds(),
        "train_images": state.data.train.num_images,
        "validation_images": state.data.validation.num_images,
        "broken_images": {"train": len(progress.broken), "validation": progress.validation_broken},
        "resolution": list(state.start.architecture.image_px),
        "pretrained": {
            "reference": config.pretrained,
            "source": state.start.source,
            **state.start.tags,
            "starting_weights_sha256": state.start.sha256,
        },
        "weights_sha256": sha256,
        "resumed_from_steps": progress.resumed_from_steps,
    }


def _export(state: TransferState, chosen: StateDict, result: Result, tracked: TrackedRun) -> None:
    facts = ("task", "test", "learning_rate", "seed", "steps", "pretrained")
    card = WeightsCard(
        architecture=state.start.architecture,
        mean=state.start.mean,
        std=state.start.std,
        classes=state.data.train.classes,
        data_digest=state.data.train.digest,
        commit=git_state()[0],
        extra={"stage": "finetune", **{fact: result[fact] for fact in facts}},
    )
    save_weights(state.folder.export, chosen, card)
    if register_as := state.config.tracking.register_as:
        shown = ("top1", "top5", "mean_average_precision")
        metrics = {f"test/{k}": v for k, v in result["test"].items() if k in shown}
        tracked.log_weights(state.folder.export, register_as=register_as, metrics=metrics)


def _draw(state: TransferState, scores: Scores, tracked: TrackedRun) -> None:
    plots = state.folder.path / "plots"
    drawn: list[Path] = [curves_png(TrackingFiles(state.folder.path).metrics, plots / "curves.png")]
    if isinstance(scores, Evaluation) and scores.confusion is not None:
        matrix, classes = scores.confusion.numpy(), state.data.test.classes
        drawn.append(confusion_matrix_png(matrix, classes, plots / "confusion.png"))
    for path in drawn:
        tracked.log_artifact(path, "plots")


def _tell(state: TransferState, result: Result) -> None:
    if len(state.progress.learning_rates) > 1:
        logger.info("learning rate %g was best on the validation part", result["learning_rate"])
    logger.info("test: %s", told(result["test"]))
    logger.info("results: %s", state.folder.path / "result.json")
