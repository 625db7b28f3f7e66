"""The factor that keeps small gradients from vanishing in fp16: DeepSpeed's, looked at and saved.

The loss is multiplied by it before the backward pass, the gradient divided afterwards. Where a
gradient overflows, the update is left out and the factor halved; after a thousand good updates it
is doubled (Micikevicius et al. 2018, arXiv:1710.03740).
"""

from __future__ import annotations

from typing import Any

# Of DeepSpeed's DynamicLossScaler (0.19): all that changes while it runs.
_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScale:
    """The loss scale of an engine; there is none outside fp16."""

    def __init__(self, engine: Any) -> None:
        """Take over from DeepSpeed what becomes of a scale that cannot fall any more."""
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        self._scaler = scaler if getattr(scaler, "dynamic", False) else None
        if self._scaler is not None:
            self._scaler.raise_error_at_min_scale = False

    @property
    def value(self) -> float | None:
        """Of the next backward pass; None outside fp16."""
        return None if self._scaler is None else float(self._scaler.cur_scale)

    @property
    def explains_overflow(self) -> bool:
        """Whether a gradient that is not finite is a matter of the scale, which has just fallen."""
        return self._scaler is not None and self._scaler.cur_scale > self._scaler.min_scale

    def to_json(self) -> dict[str, float] | None:
        """What a checkpoint keeps."""
        return self._scaler and {name: getattr(self._scaler, name) for name in _STATE}

    def take_over(self, saved: dict[str, float] | None) -> None:
        """Go on from what a checkpoint kept."""
        if self._scaler is not None and saved is not None:
            for name in _STATE:
                setattr(self._scaler, name, saved[name])
