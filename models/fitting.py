"""Putting weights into a model of another input size or another task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from timm.models.vision_transformer import VisionTransformer

from configs.errors import RefusedInput
from models.pos_embed import ResizeMethod, resize_position_embedding
from models.weights_card import StateDict, Weights
from models.zoo import build_model

_HEAD = ("head.weight", "head.bias")
_PRE_LOGITS = ("pre_logits.fc.weight", "pre_logits.fc.bias")


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        loaded: Names whose numbers are now in the model, as they were or resized.
        left_out: Names in the weights that the model has no place for, or that a new head replaces.
        added: Names in the model that the weights did not bring; they keep their initial values.
        resized: Names that were resized, with the old and the new grid.
        assumptions: What the weights did not say and was concluded.
    """

    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    added: tuple[str, ...]
    resized: dict[str, str]
    assumptions: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report in sentences, for a log."""
        lines = [f"loaded {len(self.loaded)} tensors"]
        lines += [f"assumed {assumption}" for assumption in self.assumptions]
        lines += [f"resized {name}: {how}" for name, how in self.resized.items()]
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        if self.added:
            lines.append(f"new, not from the weights: {', '.join(self.added)}")
        return lines


def load_into(
    model: VisionTransformer,
    weights: Weights,
    *,
    position_embedding: ResizeMethod = "linear",
    new_head: bool = False,
) -> LoadReport:
    """Copy weights into a model, resizing the position embedding to the model's grid.

    Args:
        model: Of the same width, depth and patch; input size and classes may differ.
        weights: What to copy.
        position_embedding: How to resize.
        new_head: Keep the model's own head, and leave the weights' pre-logits layer out. Otherwise
            the weights' head must fit.

    Returns:
        What became of every tensor.

    Raises:
        RefusedInput: Another patch, width or depth, a head that does not fit, or a part missing.
    """
    target = model.state_dict()
    state = dict(weights.state_dict)
    replaced = (*_PRE_LOGITS, *_HEAD) if new_head else ()
    dropped_head = [name for name in replaced if state.pop(name, None) is not None]
    _check_patch(state, target, weights.source)
    resized = _fit_positions(model, state, weights, position_embedding)
    _check_shapes(state, target, weights.source)
    fits = {name: tensor for name, tensor in state.items() if name in target}
    added = [name for name in target if name not in fits]
    unused = [name for name in state if name not in target]
    _check_nothing_essential(added, unused, weights.source, new_head)
    model.load_state_dict(fits, strict=False)
    return LoadReport(
        loaded=tuple(fits),
        left_out=(*dropped_head, *unused, *weights.left_out),
        added=tuple(added),
        resized=resized,
        assumptions=weights.assumptions,
    )


def model_from_weights(
    weights: Weights,
    *,
    image_px: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    position_embedding: ResizeMethod = "linear",
    stochastic_depth: float = 0.0,
    seed: int | None = None,
) -> tuple[VisionTransformer, LoadReport]:
    """Build the model that the weights are for, at another input size or with another head.

    Args:
        weights: Decide the architecture.
        image_px: Input side or (height, width); None keeps the weights'.
        num_classes: Outputs of a new head of zeros; None keeps the weights' head.
        position_embedding: How to resize position embeddings.
        stochastic_depth: Drop rate of the last block.
        seed: Seed of what the weights do not bring.

    Raises:
        RefusedInput: As `load_into`; or the image is not a multiple of the patch.
    """
    architecture = weights.architecture
    if image_px is not None:
        size = (image_px, image_px) if isinstance(image_px, int) else image_px
        architecture = replace(architecture, image_px=size)
    if num_classes is not None:
        architecture = architecture.with_new_head(num_classes)
    model = build_model(architecture, stochastic_depth=stochastic_depth, seed=seed)
    report = load_into(
        model,
        weights,
        position_embedding=position_embedding,
        new_head=num_classes is not None,
    )
    return model, report


def _fit_positions(
    model: VisionTransformer, state: StateDict, weights: Weights, method: ResizeMethod
) -> dict[str, str]:
    """Resize the position embedding in `state` where the grids differ; says what was done."""
    old_grid, new_grid = weights.architecture.grid, tuple(model.patch_embed.grid_size)
    if "pos_embed" not in state or old_grid == new_grid:
        return {}
    num_prefix = int(weights.architecture.class_token)
    state["pos_embed"] = resize_position_embedding(
        state["pos_embed"], old_grid, new_grid, num_prefix, method
    )
    (old_rows, old_columns), (rows, columns) = old_grid, new_grid
    return {"pos_embed": f"{old_rows}x{old_columns} to {rows}x{columns} patches, {method}"}


def _check_patch(state: StateDict, target: StateDict, source: str) -> None:
    theirs = state["patch_embed.proj.weight"].shape[-1]
    ours = target["patch_embed.proj.weight"].shape[-1]
    if theirs != ours:
        raise RefusedInput(
            f"{source} was trained with patches of {theirs} px, the model with {ours} px; "
            f"set model.patch_px to {theirs}, or choose other weights"
        )


def _check_shapes(state: StateDict, target: StateDict, source: str) -> None:
    for name, tensor in state.items():
        if name not in target or tensor.shape == target[name].shape:
            continue
        theirs, ours = tuple(tensor.shape), tuple(target[name].shape)
        if name in _HEAD:
            raise RefusedInput(
                f"{source} has a head for {theirs[0]} classes, the model one for {ours[0]}; "
                "ask for a new head, or for the same number of classes"
            )
        raise RefusedInput(f"{source} does not fit the model: {name} is {theirs} instead of {ours}")


def _check_nothing_essential(
    added: Iterable[str], unused: Iterable[str], source: str, new_head: bool
) -> None:
    """Only a head may be new, and no part of the network may stay behind, unless that was asked."""
    for name in added:
        if name in _HEAD and not new_head:
            raise RefusedInput(f"{source} has no head ({name}); ask for a new one")
        if name not in _HEAD:
            raise RefusedInput(f"{source} does not fit the model: it lacks {name}")
    for name in unused:
        if name.startswith("blocks.") or name in _PRE_LOGITS:
            raise RefusedInput(f"{source} does not fit the model, which has no place for {name}")
