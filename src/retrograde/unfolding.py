"""Time unfolded into space: T steps of a recurrence as the T layers of one multilayer perceptron."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from retrograde.checks import broadcast_shapes, check_last_axis, check_like
from retrograde.connectivity import Connectivity
from retrograde.nonlinearity import Nonlinearity
from retrograde.recurrence import Recurrence


class Layer(nn.Module):
    """x(t) = f(W x(t-1) + b + input(t)): one layer, whose W and b are the network's own."""

    def __init__(self, W: Connectivity, b: Tensor | None, f: Nonlinearity, leak: float | Tensor | None):
        super().__init__()
        self.W, self.b, self.f = W, b, f
        if isinstance(leak, Tensor) and not isinstance(leak, nn.Parameter):
            self.register_buffer("leak", leak)  # so that `to` moves it
        else:
            self.leak = leak

    def forward(self, x: Tensor, input: Tensor | None = None) -> Tensor:
        """The activity of the next layer, (..., n)."""
        b = x.new_zeros(x.shape[-1]) if self.b is None else self.b
        return Recurrence(self.W, self.f, self.leak).advance(x, b if input is None else b + input)


class Unfolded(nn.Sequential):
    """T layers that share W and b: a multilayer perceptron that PyTorch's own autograd differentiates.

    Layer t is ``mlp[t - 1]``. It keeps what every layer computed, as autograd does; `Network.trajectory` is the same
    function with the gradient taken by back-substitution.
    """

    def forward(self, x0: Tensor, input: Tensor | None = None) -> Tensor:  # type: ignore[override]  # of one input
        """x(T), the activity of the last layer.

        Args:
            x0: (..., n), the activity of the input layer.
            input: None, or (T, ..., n), what is added to the bias of each layer.
        """
        return self.activities(x0, input)[-1]

    def activities(self, x0: Tensor, input: Tensor | None = None) -> Tensor:
        """x(1), ..., x(T), the activities of all layers, (T, ..., n). The arguments are those of a call."""
        W = cast(Layer, self[0]).W.bind()
        check_last_axis("x0", check_like("x0", x0, W.like), W.shape[0])
        if input is not None:
            check_last_axis("input", check_like("input", input, W.like), W.shape[0])
            if input.ndim < 2 or len(input) != len(self):
                raise ValueError(
                    f"input: expected shape ({len(self)}, ..., n), one input a layer, got {tuple(input.shape)}"
                )
            broadcast_shapes("input and x0", input=input.shape[1:], x0=x0.shape)
        x, path = x0, []
        for t, layer in enumerate(self):
            x = layer(x, None if input is None else input[t])
            path.append(x)
        return torch.stack(path)
