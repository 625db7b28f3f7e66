"""What a run is going to do, worked out and checked before torch is imported.

Everything a user can get wrong between a config, its data and the number of ranks is refused here,
on every rank alike, within a second or two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.batch_split import check_mixup, split_batch
from configs.errors import RefusedInput
from configs.schema import PretrainConfig
from pretrain.config_checks import check_config, check_profile
from training.schedule import Tail, fit_warmup, learning_rate

if TYPE_CHECKING:
    from data_pipeline.few_shot_images import FewShotImages
    from data_pipeline.index import ShardedDataset
    from data_pipeline.order import SampleOrder
    from data_pipeline.real_labels import RealLabels


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among its fellows."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and talks to people."""
        return self.rank == 0


@dataclass(frozen=True)
class Plan:
    """A config together with all that follows from it, its data and the number of ranks.

    Attributes:
        config: What the user asked for.
        ranks: This process among all.
        run_dir: Folder of everything the run writes.
        train: Training images.
        validation: Validation images, or None.
        real_labels: Classes that count as right for each of them, or None.
        few_shot: Tasks that linear probes are fit on meanwhile.
        order: Which training image stands at which position.
        num_classes: Outputs of the head.
        micro_images: Images of one forward pass of one rank.
        accumulation_steps: Forward passes of one step.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of the warmup, below total_steps.
        notices: Sentences the user should read at the start.
    """

    config: PretrainConfig
    ranks: Ranks
    run_dir: Path
    train: ShardedDataset
    validation: ShardedDataset | None
    real_labels: RealLabels | None
    few_shot: tuple[FewShotImages, ...]
    order: SampleOrder
    num_classes: int
    micro_images: int
    accumulation_steps: int
    total_steps: int
    warmup_steps: int
    notices: tuple[str, ...]

    def learning_rate(self, step: int) -> float:
        """Learning rate of the update that follows `step` updates."""
        schedule = self.config.schedule
        cooldown_steps = min(schedule.cooldown_steps, self.total_steps - self.warmup_steps)
        return learning_rate(
            step,
            kind=schedule.kind,
            peak=self.config.optim.lr,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            tail=Tail(schedule.timescale_steps, cooldown_steps),
        )

    def is_due(self, every_steps: int, step: int) -> bool:
        """Whether something done every so many steps is done after `step`; the last step always."""
        return step % every_steps == 0 or step == self.total_steps


def make_plan(config: PretrainConfig, ranks: Ranks, config_file: Path | None = None) -> Plan:
    """Work out a run from its config, its data and the number of ranks.

    Raises:
        RefusedInput: They do not fit together; the message names keys and values.
    """
    from data_pipeline.few_shot_images import open_few_shot_tasks
    from data_pipeline.order import SampleOrder
    from data_pipeline.subset import choice_told, class_images, shortage_told, training_images
    from tracking.run import check_settings

    check_settings(config.tracking)
    check_config(config)
    place = _train_place(config)
    micro_images, accumulation_steps = split_batch(config.batch, ranks.world_size)
    whole, validation = _open_images(config, place, ranks)
    train = training_images(whole, config.data, seed=config.seed)
    if validation is not None:
        validation = class_images(validation, config.data)
    num_classes = _agreed_classes(config, train)
    total_steps = count_steps(config, train.num_images)
    check_profile(config, total_steps, ranks.world_size)
    warmup_steps, warmup_told = fit_warmup(config.schedule.warmup_steps, total_steps)
    shortage = shortage_told(train, config.data.images_per_class)
    mixup_told = _mixup_told(config, ranks.world_size, micro_images)
    few_shot = open_few_shot_tasks(config.few_shot.tasks, config.few_shot)
    left_out = (task.notice for task in few_shot)
    notices = (choice_told(whole, train), shortage, warmup_told, mixup_told, *left_out)
    return Plan(
        config=config,
        ranks=ranks,
        run_dir=_run_dir(config, config_file),
        train=train,
        validation=validation,
        real_labels=_real_labels(config, validation),
        few_shot=few_shot,
        order=SampleOrder(train, num_streams=config.data.streams, seed=config.seed),
        num_classes=num_classes,
        micro_images=micro_images,
        accumulation_steps=accumulation_steps,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        notices=tuple(notice for notice in notices if notice),
    )


def _open_images(
    config: PretrainConfig, place: str, ranks: Ranks
) -> tuple[ShardedDataset, ShardedDataset | None]:
    """All training images, and all validation images if there are any."""
    from data_pipeline.index import open_dataset
    from data_pipeline.location import ShardAccess

    access = ShardAccess.from_config(config.data, ranks.local_world_size)
    train = open_dataset(place, access)
    validation = open_dataset(config.data.val, access) if config.data.val else None
    _check_same_classes(train, validation)
    _check_label_kind(config, train, validation)
    return train, validation


def _mixup_told(config: PretrainConfig, world_size: int, micro_images: int) -> str | None:
    """A notice where mixup's partners belong to this split; refuses mixup of single images."""
    from training.mixup import pairing

    check_mixup(config.augment, micro_images)
    if not config.augment.mixup_alpha:
        return None
    return pairing(config.batch.global_images, world_size, micro_images).notice()


def _train_place(config: PretrainConfig) -> str:
    if config.data.train is None:
        raise RefusedInput(
            "data.train is not set: give the folder of training shards with --data.train DIR "
            "(python -m data_pipeline.build makes one)"
        )
    return config.data.train


def _run_dir(config: PretrainConfig, config_file: Path | None) -> Path:
    if config.run_dir is not None:
        return config.run_dir
    if config_file is None:
        raise RefusedInput("run_dir is not set and no --config names the run: give --run-dir DIR")
    return Path("runs") / config_file.stem


def _agreed_classes(config: PretrainConfig, train: ShardedDataset) -> int:
    wanted = config.model.num_classes
    if wanted is not None and wanted != train.num_classes:
        raise RefusedInput(
            f"model.num_classes = {wanted}, but {train.place} has {train.num_classes} classes; "
            "leave model.num_classes out or correct data.train"
        )
    return train.num_classes


def _check_same_classes(train: ShardedDataset, validation: ShardedDataset | None) -> None:
    if validation is not None and validation.classes != train.classes:
        raise RefusedInput(
            f"data.val = {validation.place} does not have the classes of data.train = "
            f"{train.place}: {_first_difference(train.classes, validation.classes)}"
        )


def _check_label_kind(
    config: PretrainConfig, train: ShardedDataset, validation: ShardedDataset | None
) -> None:
    if validation is not None and validation.is_multi_label != train.is_multi_label:
        raise RefusedInput(
            f"data.train = {train.place} has {_label_kind(train)}, data.val = "
            f"{validation.place} has {_label_kind(validation)}; give two of a kind"
        )
    if not train.is_multi_label:
        return
    if config.loss.kind != "sigmoid":
        raise RefusedInput(
            f"loss.kind = {config.loss.kind}, but the images of data.train = {train.place} show "
            "several classes each; set --loss.kind sigmoid"
        )
    if config.loss.label_smoothing:
        raise RefusedInput(
            f"loss.label_smoothing = {config.loss.label_smoothing} spreads one label over all "
            f"classes, but data.train = {train.place} has label sets; set it to 0"
        )


def _label_kind(dataset: ShardedDataset) -> str:
    return "label sets" if dataset.is_multi_label else "one label an image"


def _real_labels(config: PretrainConfig, validation: ShardedDataset | None) -> RealLabels | None:
    from data_pipeline.real_labels import read_real_labels

    path = config.data.val_real_labels
    if path is None:
        return None
    if validation is None:
        raise RefusedInput(
            f"data.val_real_labels = {path} labels validation images, but data.val is not set"
        )
    return read_real_labels(path, validation, "data.val_real_labels")


def _first_difference(train: tuple[str, ...], validation: tuple[str, ...]) -> str:
    if len(train) != len(validation):
        return f"{len(validation)} classes instead of {len(train)}"
    number = next(i for i, (a, b) in enumerate(zip(train, validation, strict=True)) if a != b)
    return f"class {number} is {validation[number]!r} instead of {train[number]!r}"


def count_steps(config: PretrainConfig, num_images: int) -> int:
    """Optimizer steps of the whole run over a training set of `num_images`.

    Raises:
        RefusedInput: The length of the run is not set.
    """
    schedule = config.schedule
    if schedule.total_steps is not None:
        return schedule.total_steps
    if schedule.epochs is None:
        raise RefusedInput(
            "the length of the run is not set: give --schedule.total-steps N or --schedule.epochs E"
        )
    return max(1, math.ceil(schedule.epochs * num_images / config.batch.global_images))
