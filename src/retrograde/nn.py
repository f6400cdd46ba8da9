"""Modules that take the place of PyTorch's own: change the import, and the rest of a training script stays."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from retrograde.nonlinearity import Sigmoid, Tanh, as_nonlinearity
from retrograde.trajectories import hold_leak, trajectory


class RNN(torch.nn.RNN):
    """``torch.nn.RNN``, with the gradient by back-substitution: same arguments, parameters, ``state_dict`` and outputs.

    Each layer and direction is a trajectory x(t) = f(W_hh x(t-1) + b(t)) driven by b(t) = W_ih input(t) + b_ih + b_hh.

    Args:
        *args: those of ``torch.nn.RNN``: input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout,
            bidirectional.
        leak: a of x(t) = (1-a) x(t-1) + a f(...), a number or a tensor of hidden_size entries; None is 1.
        **kwargs: likewise; ``nonlinearity`` may be any name or Nonlinearity that `retrograde.Network` takes.

    Raises:
        ValueError, TypeError, RuntimeError: where ``torch.nn.RNN`` raises them; ValueError also for NaN or infinity in
            the input, and `ConvergenceError` where the activity becomes infinite.

    >>> rnn = RNN(10, 20, num_layers=2)
    >>> output, h_n = rnn(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    leak: float | Tensor | None

    def __init__(self, *args: Any, leak: float | Tensor | None = None, **kwargs: Any):
        nonlinearity = args[3] if len(args) > 3 else kwargs.pop("nonlinearity", "tanh")
        f = as_nonlinearity(nonlinearity)
        theirs = nonlinearity if nonlinearity in ("tanh", "relu") else "tanh"
        if len(args) > 3:
            super().__init__(*args[:3], theirs, *args[4:], **kwargs)
        else:
            super().__init__(*args, nonlinearity=theirs, **kwargs)
        self.nonlinearity, self.f = nonlinearity, f
        hold_leak(self, leak, self.hidden_size, next(self.parameters()), persistent=False)  # their state_dict has none

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """(output, h_n), of the shapes that ``torch.nn.RNN`` gives them."""
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        if hx is not None and hx.dim() != input.dim():
            raise RuntimeError(
                f"For {input.dim()}-D input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor"
            )
        batched, batch_dim = input.dim() == 3, 0 if self.batch_first else 1
        if not batched:
            input = input.unsqueeze(batch_dim)
            hx = None if hx is None else hx.unsqueeze(1)
        hx = self._start(hx, input, input.shape[batch_dim])
        self.check_forward_args(input, hx, None)
        if self.batch_first:
            input = input.transpose(0, 1)
        output, hidden = self._layers(input, hx, None)
        if self.batch_first:
            output = output.transpose(0, 1)
        return (output, hidden) if batched else (output.squeeze(batch_dim), hidden.squeeze(1))

    def _packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """Sequences of different lengths, padded to the longest; what lies behind an end comes to nothing."""
        data, batch_sizes, order, back = packed
        hx = self._start(None if hx is None else self.permute_hidden(hx, order), data, int(batch_sizes[0]))
        self.check_forward_args(data, hx, batch_sizes)
        padded, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        output, hidden = self._layers(padded, hx, lengths.to(data.device))
        data = pack_padded_sequence(output, lengths).data
        return PackedSequence(data, batch_sizes, order, back), self.permute_hidden(hidden, back)

    def _start(self, hx: Tensor | None, input: Tensor, batch: int) -> Tensor:
        if hx is not None:
            return hx
        return input.new_zeros(self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size)

    def _layers(self, x: Tensor, hx: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """All layers and directions: the last layer's output (T, B, ...), and where each of them ended."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            paths = []
            for direction in directions:
                turned = direction == "_reverse"
                suffix = f"l{layer}{direction}"
                path = self._path(_turned(x, lengths) if turned else x, hx[len(ends)], suffix, lengths)
                ends.append(path[-1] if lengths is None else path[lengths - 1, torch.arange(path.shape[1])])
                paths.append(_turned(path, lengths) if turned else path)
            x = torch.cat(paths, -1) if len(paths) > 1 else paths[0]
        return x, torch.stack(ends)

    def _path(self, input: Tensor, x0: Tensor, suffix: str, lengths: Tensor | None) -> Tensor:
        """One layer in one direction."""
        bias = getattr(self, f"bias_ih_{suffix}") + getattr(self, f"bias_hh_{suffix}") if self.bias else None
        W = getattr(self, f"weight_hh_{suffix}")
        b = F.linear(input, getattr(self, f"weight_ih_{suffix}"), bias).to(W.dtype)  # which autocast may have changed
        if lengths is None or isinstance(self.f, Tanh | Sigmoid):
            return trajectory(W, b, x0, self.f, leak=self.leak).x
        # Behind its end a sequence might grow without bound: go from one end to the next, with those that still run.
        pieces, first = [], 0
        for last in lengths.unique().tolist():
            running = int((lengths >= last).sum())  # the longest come first
            path = trajectory(W, b[first:last, :running], x0[:running], self.f, leak=self.leak).x
            pieces.append(F.pad(path, (0, 0, 0, b.shape[1] - running)))
            first, x0 = last, path[-1]
        return torch.cat(pieces)


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (T, B, ...) with each sequence backwards, from its own end; the padding stays behind it."""
    if lengths is None:
        return x.flip(0)
    time = torch.arange(len(x), device=x.device)[:, None]
    backwards = torch.where(time < lengths, lengths - 1 - time, time)
    return x.gather(0, backwards[:, :, None].expand_as(x))
