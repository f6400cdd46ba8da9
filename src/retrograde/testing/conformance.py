"""Conformance checks for your own structures, nonlinearities and solvers.

Each check raises AssertionError that says what is wrong, as scikit-learn's ``check_estimator`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import retrograde as rg


def _require(holds: bool | Tensor, what: str) -> None:
    if not bool(holds):
        raise AssertionError(what)


def _close(a: Tensor, b: Tensor, what: str) -> None:
    tolerance = 1e3 * torch.finfo(a.dtype).eps
    error = float((a - b).detach().abs().max()) if a.numel() else 0.0
    size = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
    _require(a.shape == b.shape, f"{what}: shape {tuple(a.shape)}, expected {tuple(b.shape)}")
    _require(error <= tolerance * size, f"{what}: off by {error:.1e} where {tolerance * size:.1e} is allowed")


def _raises(kinds: tuple[type[Exception], ...], call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except kinds:
        return
    except Exception as error:
        raise AssertionError(
            f"{what}: raised {type(error).__name__} ({error}), expected {kinds[0].__name__}"
        ) from error
    raise AssertionError(f"{what}: raised nothing, expected {kinds[0].__name__}")


def check_connectivity(W: rg.Connectivity, seed: int = 0) -> None:
    """W does what its dense matrix does: products both ways, `outer`, batches of any shape, and errors.

    Raises:
        AssertionError: saying which of it fails.

    >>> check_connectivity(rg.LowRank(torch.randn(5, 2), torch.randn(4, 2)))
    """
    n_out, n_in = W.shape
    like = W.weights[0]
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like)

    M = W.dense()
    _require(M.shape == (n_out, n_in), f"dense(): shape {tuple(M.shape)}, expected {(n_out, n_in)}")
    M = M.detach()
    for batch in ((), (3,), (2, 3), (0,), (0, 2)):
        x, s = random(*batch, n_in), random(*batch, n_out)
        with torch.no_grad():
            Wx, Ws = W @ x, W.T @ s
        _close(Wx, x @ M.T, f"W @ x of shape {tuple(x.shape)} against the dense matrix")
        _close(Ws, s @ M, f"W.T @ s of shape {tuple(s.shape)} against the dense matrix")
        _close((s * Wx).sum(), (Ws * x).sum(), "<s, Wx> against <W.T s, x>")
        outer = W.outer(s, x)
        _require(len(outer) == len(W.weights), f"outer: {len(outer)} tensors for {len(W.weights)} weights")
        # The oracle goes through the dense matrix, not through the structure's own product.
        leaves = tuple(w.detach().requires_grad_() for w in W.weights)
        sx = s.reshape(-1, n_out).T @ x.reshape(-1, n_in)
        for got, want in zip(outer, torch.autograd.grad(W.bind(*leaves).dense(), leaves, sx), strict=True):
            _close(got, want, f"outer of shapes {tuple(s.shape)} and {tuple(x.shape)} against d<s, Wx>/d weights")

    x, s = random(3, n_in), random(3, n_out)
    through = x.clone().requires_grad_()
    found = torch.autograd.grad(W @ through, (through, *(w for w in W.weights if w.requires_grad)), s)
    _close(found[0], s @ M, "autograd of W @ x in x")
    trained = [d for d, w in zip(W.outer(s, x), W.weights, strict=True) if w.requires_grad]
    for got, want in zip(found[1:], trained, strict=True):
        _close(got, want, "autograd of W @ x in the weights against outer")

    _check_differentiable(W, random(3, n_out), random(3, n_in))
    post, pre, weight = W.bind().entries()
    from_entries = torch.zeros_like(M).index_put((post, pre), weight.detach(), accumulate=True)
    _close(from_entries, M, "entries() against the dense matrix")
    _require(W.T.shape == (n_in, n_out), "W.T.shape is not W.shape turned round")
    wrong = (ValueError, TypeError)
    _raises(wrong, lambda: W @ random(n_in + 1), "W @ x with one neuron too many")
    _raises(wrong, lambda: W @ random(3, n_in).to(torch.float16), "W @ x of another dtype")
    _raises(wrong, lambda: W.outer(random(3, n_out), random(2, n_in)), "outer of two batch sizes")


def _check_differentiable(W: rg.Connectivity, s: Tensor, x: Tensor) -> None:
    """What second derivatives take: W x, Wᵀ s and `outer` follow all of their arguments, as the dense matrix says."""
    inputs = tuple(t.detach().clone().requires_grad_() for t in (s, x, *W.weights))
    s, x, *weights = inputs
    bound = W.bind(*weights)
    M, some = bound.dense(), tuple(w.detach().cos() for w in weights)
    slopes = torch.autograd.grad((s * (x @ M.T)).sum(), weights, create_graph=True)
    pairs = {
        "W @ x": ((s.detach() * (bound @ x)).sum(), (s.detach() * (x @ M.T)).sum()),
        "W.T @ s": ((x.detach() * (bound.T @ s)).sum(), (x.detach() * (s @ M)).sum()),
        "outer": tuple(
            torch.stack([(d * c).sum() for d, c in zip(outer, some, strict=True)]).sum()
            for outer in (bound.outer(s, x), slopes)
        ),
    }
    for name, (found, wanted) in pairs.items():
        _require(found.requires_grad, f"{name} is not differentiable")
        both = (torch.autograd.grad(R, inputs, retain_graph=True, materialize_grads=True) for R in (found, wanted))
        for d, want, of in zip(*both, ("s", "x", *["a weight"] * len(weights)), strict=True):
            _close(d, want, f"the derivative of {name} in {of}, against that of the dense matrix")


def check_nonlinearity(f: rg.Nonlinearity, seed: int = 0) -> None:
    """f is elementwise; its slope is its derivative, from the output and from the input; its inverse undoes it.

    Raises:
        AssertionError: saying which of it fails.

    >>> check_nonlinearity(rg.Softplus())
    """
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(200, generator=generator, dtype=torch.float64) * 2
    u = u[u.abs() > 1e-3]  # away from kinks at 0
    x = f(u)
    _require(x.shape == u.shape and x.dtype == u.dtype, "f(u): another shape or dtype than u")
    _close(f(u[:7].reshape(7, 1)).flatten(), x[:7], "f is not elementwise: f(u) of another shape")
    h = 1e-4
    difference = (8 * (f(u + h) - f(u - h)) - (f(u + 2 * h) - f(u - 2 * h))) / (12 * h)

    def check_slope(slope: Tensor, what: str) -> None:
        error = float((slope - difference).abs().max())
        _require(error <= 1e-9, f"{what}: off by {error:.1e} from finite differences")

    bend = (8 * (f.slope_at(u + h) - f.slope_at(u - h)) - (f.slope_at(u + 2 * h) - f.slope_at(u - 2 * h))) / (12 * h)

    def check_bend(slope: Callable[[Tensor], Tensor], what: str) -> None:
        v = u.clone().requires_grad_()
        found = slope(v).sum()  # of a piecewise linear f it may be a constant
        found = torch.autograd.grad(found, v)[0] if found.requires_grad else torch.zeros_like(u)
        error = float((found - bend).abs().max())
        _require(error <= 1e-9, f"the derivative of {what}: off by {error:.1e} from finite differences")

    check_slope(f.slope_at(u), "slope_at(u)")
    check_bend(f.slope_at, "slope_at(u)")
    if f.slope_from_output:
        check_slope(f.slope(x), "slope(f(u))")
        check_bend(lambda v: f.slope(f(v)), "slope(f(u))")
        y = x[f.slope(x) > 1e-3]  # where f is invertible, and not so flat that rounding decides
        _close(f(f.inverse(y)), y, "f(inverse(x)) against x")
        flat = f(torch.tensor([-800.0, 800.0], dtype=torch.float64))
        _require(f.slope(flat).isfinite().all() and (f.slope(flat) >= 0).all(), "slope far out is not finite and >= 0")
    else:
        _raises((ValueError,), lambda: f.slope(x), "slope(x), where the output does not tell it")
    _raises((ValueError,), lambda: f.inverse(x.new_tensor([float("nan")])), "inverse(NaN)")
    single = f(u.float())
    _require(single.dtype == torch.float32, "f(float32) is not float32")
    _require(f(u[:0]).shape == (0,), "f of an empty tensor is not empty")


def check_solver(solver: Any, seed: int = 0) -> None:
    """The solver finds steady states, if it can work forward, and solves adjoints, if it can, sample by sample.

    An approximation must call itself one: where the receipt says TRUNCATED, no more is asked than that its residual is
    right, and that it scales with the reward.

    Raises:
        AssertionError: saying which of it fails.

    >>> check_solver(rg.FixedPoint(damping=0.7))
    >>> check_solver(rg.Krylov("gmres"))
    """
    generator = torch.Generator().manual_seed(seed)
    n = 11

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    net = rg.Network(0.6 * random(n, n) / n**0.5, b=False)
    x = torch.tanh(random(5, n))
    b = net.input_for(x).detach()
    try:
        state = net.steady_state(b, solver=solver)
    except ValueError as refusal:
        _require("affine" in str(refusal), f"forward: refused with {refusal}")
    else:
        _require(state.converged.all(), "forward: has not converged on an easy problem")
        _require((state.x - x).abs().max() < 1e-9, "forward: another state than the manufactured one")
        residual = (net.step(state.x, b) - state.x).norm(dim=-1) / state.x.norm(dim=-1)
        _require(
            ((residual - state.residual).abs() <= 1e-15).all(), "forward: a residual other than |f(Wx + b) - x| / |x|"
        )
        alone = torch.stack([net.steady_state(row, solver=solver).x for row in b])
        _require((alone - state.x).abs().max() < 1e-12, "forward: a sample depends on its batch")
        _require(net.steady_state(b[:0], solver=solver).x.shape == (0, n), "forward: an empty batch is not empty")

    g = random(5, n)
    M = torch.diag_embed(1 / net.f.slope(x)) - net.W.dense().T.detach()
    exact = torch.linalg.solve(M, g)
    try:
        found = rg.recurrent_backpropagation(net, x, g, adjoint=solver)
    except ValueError as refusal:
        _require("affine" in str(refusal), f"adjoint: refused with {refusal}")
        return
    receipt = found.receipt
    assert receipt is not None  # a steady state's gradient has one
    truncated = receipt.status == rg.Status.TRUNCATED
    error = (found.s - exact).abs().amax(-1)
    _require((error[~truncated] < 1e-9).all(), "adjoint: another s than (D⁻¹ - Wᵀ)⁻¹ dR/dx")
    residual = (net.adjoint_step(found.s, x, g) - found.s).norm(dim=-1) / found.s.norm(dim=-1)
    _require(
        ((residual - receipt.residual).abs() <= 1e-13).all(), "adjoint: a residual other than |D(Wᵀs + g) - s| / |s|"
    )
    for scale in (2.0**-60, 2.0**60):
        scaled = rg.recurrent_backpropagation(net, x, scale * g, adjoint=solver).s
        _require(
            torch.equal(scaled, scale * found.s), f"adjoint: a reward scaled by {scale:.0e} has a gradient that is not"
        )
    _require((receipt.converged | truncated).all(), "adjoint: says that it has not converged")
