"""One step against plain PyTorch."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from configs.subset import SubsetConfig
from data_pipeline.augment import normalise
from finetune.start import build_start, copy_of_weights
from finetune.state import TransferState, build_state, make_accelerator
from finetune.step import take_step
from finetune.task_data import open_task_data, prepare_shards
from models.zoo import build_model
from tests.finetune.toy_task import toy_config
from tracking.lineage import ResolvedWeights
from training.mixup import mixup_share
from training.rand_augment import RandAugment
from training.run_folder import RunFolder


def build(folder: Path, run: Path, **changes) -> TransferState:
    config = toy_config(data_dir=folder, **changes)
    data = open_task_data(
        prepare_shards("image-folder", folder),
        validation_fraction=0.1,
        subset=SubsetConfig(),
        seed=config.seed,
    )
    start = build_start(config, ResolvedWeights("scratch"), 3, "cpu")
    return build_state(config, make_accelerator(config), RunFolder(run), data, start)


@pytest.fixture
def steps(toy_folder, tmp_path):
    made = []

    def make(**changes) -> TransferState:
        made.append(build(toy_folder, tmp_path, **changes))
        return made[-1]

    yield make
    for state in made:
        state.loader.close()


@pytest.mark.parametrize("micro_images", [8, 2])
def test_a_step_is_one_sgd_update_of_the_global_batch(steps, micro_images):
    clip_norm = 0.5
    state = steps(
        batch={"global_images": 8, "micro_images": micro_images},
        warmup_steps=0,
        clip_norm=clip_norm,
    )
    rows = state.loader.order.rows_at(torch.arange(16).numpy())
    reference = build_model(state.start.architecture, seed=0)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    images = [next(state.loader) for _ in range(16 // micro_images)]
    assert torch.cat([batch.rows for batch in images]).tolist() == rows.tolist()
    state.loader.skip_to(0)
    for step in range(2):
        part = images[step * 8 // micro_images : (step + 1) * 8 // micro_images]
        inputs = normalise(torch.cat([batch.images for batch in part]))
        labels = torch.cat([batch.labels for batch in part])
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 6))
        loss = F.cross_entropy(reference(inputs), labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        outcome = take_step(state)
        assert outcome.learning_rate == optimizer.param_groups[0]["lr"]
        assert float(outcome.loss) == pytest.approx(loss.item(), rel=1e-5)
        assert outcome.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    ours, theirs = state.bare_model().state_dict(), reference.state_dict()
    for name in theirs:
        # Sums of micro batches round differently: fp32 to a few units in the last place.
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    assert state.progress.step == 2


def test_the_augment_group_mixes_and_distorts_here_too(steps):
    state = steps(
        batch={"global_images": 8},
        warmup_steps=0,
        augment={"crop": "none", "level": "strong1"},
    )
    model = build_model(state.start.architecture, seed=0)
    batch = next(state.loader)
    state.loader.skip_to(0)
    distorted = RandAugment(2, 20.0, state.config.seed)(batch.images, batch.positions.numpy())
    images, share = normalise(distorted), mixup_share(0.5, state.config.seed, 0)
    logits = model(share * images + (1 - share) * images.roll(4, dims=0))
    expected = share * F.cross_entropy(logits, batch.labels)
    expected = expected + (1 - share) * F.cross_entropy(logits, batch.labels.roll(4))
    assert float(take_step(state).loss) == pytest.approx(expected.item(), rel=1e-5)
    assert share < 1


def test_a_gradient_that_is_no_number_leaves_the_weights(steps):
    state = steps()
    take_step(state)  # the first step has learning rate 0
    with torch.no_grad():
        state.bare_model().head.bias.fill_(math.nan)
    before = copy_of_weights(state.bare_model())
    outcome = take_step(state)
    assert outcome.has_diverged
    after = state.bare_model().state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n != "head.bias")
    assert all(p.grad is None or not p.grad.any() for p in state.model.parameters())
