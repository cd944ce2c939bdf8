"""Loss scaling for fp16, static or dynamic, with DeepSpeed's rules."""

from __future__ import annotations

from collections.abc import Mapping

from tpinit.runtime.errors import EngineError
from tpinit.runtime.settings import LossScaling

__all__ = ["LossScaler"]


class LossScaler:
    """The factor by which an fp16 loss is multiplied so that small gradients do not underflow; 1 for other dtypes.

    Static if the settings give a scale. Dynamic otherwise: the `hysteresis`-th overflow and each later one halve the
    scale, down to `min_loss_scale`. The scale doubles after `loss_scale_window` + 1 updates without an overflow,
    counted from the start or from the last overflow, and after every `loss_scale_window` further ones. A doubling
    restarts the count of overflows; with `consecutive_hysteresis` every update without an overflow restarts it.
    """

    def __init__(self, settings: LossScaling, active: bool) -> None:
        self.settings = settings
        self.active = active
        self.dynamic = active and settings.static == 0
        self.scale = (settings.static or 2.0**settings.initial_scale_power) if active else 1.0
        self._hysteresis_left = settings.hysteresis
        self._updates = 0
        self._last_overflow = -1

    def update(self, overflow: bool) -> None:
        """Adapt the scale after an update. Every rank must call this with the same `overflow`.

        Raises EngineError if gradients overflow at the least scale: training can't continue in fp16.
        """
        if not self.dynamic:
            return
        settings = self.settings
        if overflow:
            if self._hysteresis_left > 1:
                self._hysteresis_left -= 1
            elif self.scale <= settings.min_loss_scale:
                raise EngineError(
                    f"gradients overflow in fp16 at loss scale {self.scale}, and fp16.min_loss_scale is "
                    f"{settings.min_loss_scale}: train in bf16, or lower the learning rate"
                )
            else:
                self.scale = max(self.scale / 2, settings.min_loss_scale)
            self._last_overflow = self._updates
        else:
            if settings.consecutive_hysteresis:
                self._hysteresis_left = settings.hysteresis
            since_overflow = self._updates - self._last_overflow - 1
            if since_overflow > 0 and since_overflow % settings.loss_scale_window == 0:
                self._hysteresis_left = settings.hysteresis
                self.scale *= 2
        self._updates += 1

    def state_dict(self) -> dict[str, float | int]:
        """Return what `load_state_dict` needs."""
        return {
            "scale": self.scale,
            "hysteresis_left": self._hysteresis_left,
            "updates": self._updates,
            "last_overflow": self._last_overflow,
        }

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Continue with a saved scale and its counts; does nothing if the loss is not scaled, or by a fixed factor."""
        if self.dynamic:
            self.scale = float(state["scale"])
            self._hysteresis_left = int(state["hysteresis_left"])
            self._updates = int(state["updates"])
            self._last_overflow = int(state["last_overflow"])
