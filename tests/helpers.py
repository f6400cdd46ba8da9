"""How close is close enough, and the plain oracles that answers are held against."""

import torch

import retrograde as rg

# What accumulates over a few dozen sums and products, in units of what one of them may lose.
SLACK = 64


def tolerance(dtype, conditioning=1.0, solver=None, solved=True):
    """The relative error allowed: what the solver stops at (or, unsolved, what the dtype resolves), amplified."""
    least = (solver or rg.FixedPoint()).tolerance(dtype) if solved else torch.finfo(dtype).eps
    return SLACK * float(conditioning) * least


def difference_step(dtype):
    """The step of a central difference of sixth order at which its error is least."""
    return 0.5 * torch.finfo(dtype).eps ** (1 / 7)


def difference_tolerance(dtype, conditioning=1.0):
    """The relative error of such a difference of what a solver found: its tolerance, divided by the step."""
    return tolerance(dtype, conditioning) / difference_step(dtype)


def assert_close(got, want, conditioning=1.0, solver=None, solved=True, within=None):
    """`got` is `want`, of the same shape and dtype, to the tolerance above, relative to the length of the whole."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    assert got.dtype == want.dtype, f"{got.dtype}, expected {want.dtype}"
    allowed = tolerance(want.dtype, conditioning, solver, solved) if within is None else within
    got, want = got.detach().double(), want.detach().double()
    error, size = float((got - want).norm()), float(want.norm())
    assert error <= allowed * size, f"off by {error:.1e} of {size:.1e}, where {allowed * size:.1e} is allowed"


def assert_all_close(got, want, **how):
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, **how)


def slopes(W, f, x, b):
    """f'(Wx + b)."""
    return f.slope_at(x @ W.dense().detach().T + b).detach()


def conditioning(W, f, x, b):
    """The largest norm of (I - DW)⁻¹ over the batch: what amplifies every residual."""
    D, M = slopes(W, f, x, b), W.dense().detach()
    A = torch.eye(M.shape[0], dtype=M.dtype) - D[..., :, None] * M
    return float(torch.linalg.matrix_norm(torch.linalg.inv(A), 2).max().clamp(min=1))


def dense_adjoint(W, f, x, b, g):
    """s from (I - DWᵀ) s = D g as one matrix a sample."""
    D, M = slopes(W, f, x, b), W.dense().detach()
    return torch.linalg.solve(torch.eye(M.shape[0], dtype=M.dtype) - D[..., :, None] * M.T, D * g)


def through_dense(W, dM):
    """dR/d weights from dR/d(dense matrix), by autograd through `dense` alone."""
    leaves = tuple(w.detach().clone().requires_grad_() for w in W.weights)
    return torch.autograd.grad(W.bind(*leaves).dense(), leaves, dM)


def outer_sum(s, x):
    """Σ s xᵀ over all leading axes, by its definition."""
    return torch.einsum("ki,kj->ij", s.reshape(-1, s.shape[-1]), x.reshape(-1, x.shape[-1]))


def difference(R, tensors, directions):
    """The derivative of R(*tensors) along directions, by central differences of sixth order."""
    h = difference_step(tensors[0].dtype)

    def moved(k):
        return R(*(t.detach() + k * h * d for t, d in zip(tensors, directions, strict=True)))

    with torch.no_grad():
        return sum(c * (moved(k) - moved(-k)) for k, c in ((1, 45), (2, -9), (3, 1))) / (60 * h)


def assert_slope_along(R, tensors, gradients, seed=0):
    """<gradient, direction> is the difference quotient of R along two directions, one of them the gradient itself."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.cat([g.flatten() for g in gradients]).norm()
    random = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    length = torch.cat([r.flatten() for r in random]).norm()
    for directions in ([r / length for r in random], [g.detach() / size for g in gradients]):
        told = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        assert abs(float(told - difference(R, tensors, directions))) <= difference_tolerance(told.dtype) * float(size)


def gradient(R, tensors):
    """dR/d tensors by autograd, on fresh leaves."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(R(*leaves), leaves)


def count_products(monkeypatch, dtype):
    """How often W or Wᵀ was multiplied with a sample, those in a wider dtype twice."""
    count = [0]
    monkeypatch.setenv("RETROGRADE_PLAIN", "1")

    def counted(product):
        def multiply(self, x, W):
            count[0] += len(x) * (1 if W.dtype == dtype else 2)
            return product(self, x, W)

        return multiply

    for name in ("product", "transposed_product"):
        monkeypatch.setattr(rg.Dense, name, counted(getattr(rg.Dense, name)))
    return count
