"""What holds tensors, not copies of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Holder(ABC):
    """Knows whether a tensor that it holds was overwritten since, as an optimiser's step overwrites W."""

    _versions: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._now())

    @abstractmethod
    def held(self) -> Iterable[object]:
        """The tensors that count; whatever else is among them does not."""

    def _now(self) -> list[int]:
        return [t._version for t in self.held() if isinstance(t, Tensor) and not t.is_inference()]

    @property
    def changed(self) -> bool:
        """Whether one was."""
        return self._now() != self._versions
