"""How many steady states are found, and whether each is one: ``python -m benchmarks.robustness --help``.

Random networks of 1 to 500 neurons, gains 0 to 5, every nonlinearity, structure and both dtypes, each with inputs of
several sizes. What is claimed is checked: |f(Wx + b) - x| / |x| in float64, with W as a full matrix; and of each state
that was found the gradient of a random reward, by QR in float64 at the state that Newton's method leads to from
there: wrong is one that is said to have converged and is off by more than ten times the error that its receipt tells.
Where f is bounded a steady state exists; where it is not there may be none, and no rate can be 1.

The peers are given the same problems, in float64, from the same start, and are believed if that residual is at most
1e-6, whatever they say of themselves; Retrograde only if its own claim holds.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

import numpy as np
import scipy.optimize
import torch
import typer
from torch import Tensor

import retrograde as rg

F = {
    "tanh": rg.Tanh(),
    "sigmoid": rg.Sigmoid(),
    "sin": rg.Pointwise(torch.sin),
    "relu": rg.ReLU(),
    "softplus": rg.Softplus(),
    "identity": rg.Identity(),
}
BOUNDED = ("tanh", "sigmoid", "sin")
STRUCTURES = ("Dense", "Sparse", "LowRank", "Convolution", "Sum")
BELIEVED = 1e-6


@dataclass(frozen=True)
class Problem:
    """A network, several inputs, and in float64 what its W is as a full matrix, and with |weights| for its weights."""

    net: rg.Network
    f: str
    structure: str
    gain: float
    input: Tensor
    M: Tensor
    M_of_sizes: Tensor

    def residual(self, x: Tensor) -> Tensor:
        """|f(Mx + b) - x| / |x| in float64, one number a sample."""
        x, b = x.detach().double(), self.input.double()
        size = x.norm(dim=-1).clamp(min=1e-14)
        return (F[self.f](x @ self.M.T + b) - x).norm(dim=-1) / size

    def rounding(self, x: Tensor) -> Tensor:
        """What the rounding of one step may leave of it."""
        x, b = x.detach().double(), self.input.double()
        D = F[self.f].slope_at(x @ self.M.T + b).abs()
        sums = D * (x.abs() @ self.M_of_sizes.T + b.abs()) + x.abs()
        return torch.finfo(self.input.dtype).eps * sums.norm(dim=-1) / x.norm(dim=-1).clamp(min=1e-14)

    def exact(self, x: Tensor, g: Tensor) -> Tensor:
        """s of the steady state that Newton's method leads to from x, in float64; NaN where it leads to none."""
        f, b, one = F[self.f], self.input.double(), torch.eye(x.shape[-1], dtype=torch.float64)
        x, g = x.detach().double(), g.double()
        for _ in range(4):
            D = f.slope_at(x @ self.M.T + b)
            x = x + _solved(one - D[..., None] * self.M, f(x @ self.M.T + b) - x)
        D = f.slope_at(x @ self.M.T + b)
        A, l = one - self.M.T * D[:, None], torch.zeros_like(g)
        for _ in range(2):
            l = l + _solved(A, g - (A @ l[..., None])[..., 0])
        left = (g - (A @ l[..., None])[..., 0]).norm(dim=-1) / g.norm(dim=-1)
        known = (self.residual(x) < 1e-9) & (left < 1e-11)
        return torch.where(known[:, None], D * l, torch.nan)


def _solved(A: Tensor, r: Tensor) -> Tensor:
    """A⁻¹ r by QR: LU with partial pivoting loses all digits of some matrices far from singular, as of a ring."""
    Q, R = torch.linalg.qr(A)
    return torch.linalg.solve_triangular(R, Q.mT @ r[..., None], upper=True)[..., 0]


def problem(seed: int, samples: int, largest: int) -> Problem:
    """The random network of that seed."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = round(math.exp(uniform(0, math.log(largest))))
    gain, f = uniform(0, 5), list(F)[seed % len(F)]
    structure = STRUCTURES[seed // len(F) % len(STRUCTURES)]
    dtype = (torch.float32, torch.float64)[seed // len(F) // len(STRUCTURES) % 2]
    edges = min(10, n) * n
    ends = torch.randint(n, (2, edges), generator=generator)
    sparse = rg.Sparse.from_edges(ends[0], ends[1], normal(edges), n)
    rank = min(n, 3)
    W: rg.Connectivity
    if structure == "Dense":
        W = rg.Dense(normal(n, n))
    elif structure == "Sparse":
        W = sparse
    elif structure == "LowRank":
        W = rg.LowRank(normal(n, rank), normal(n, rank))
    elif structure == "Convolution":
        channels = 2 if n % 2 == 0 else 1
        W = rg.Convolution(normal(channels, channels, 3), grid=(n // channels,))
    else:
        W = rg.Sum(sparse, rg.LowRank(normal(n, 1), normal(n, 1)))
    with (
        torch.no_grad()
    ):  # |W| of Frobenius is gain √n, so that the eigenvalues of a full one fill a disc of that radius
        scale = gain * math.sqrt(n) / float(W.dense().norm().clamp(min=1e-9))
        for weight in W.weights[:: 2 if structure in ("LowRank", "Sum") else 1]:
            weight.mul_(scale)
        if structure == "Sum":
            W.weights[1].mul_(scale)
            W.weights[2].div_(scale)
    size = torch.exp(torch.linspace(math.log(0.1), math.log(3), samples, dtype=torch.float64))[:, None]
    input = (size * normal(samples, n)).to(dtype)
    exact = [weight.detach().to(dtype).double() for weight in W.weights]
    M, M_of_sizes = (W.bind(*weights).dense().detach() for weights in (exact, [weight.abs() for weight in exact]))
    return Problem(rg.Network(W.to(dtype), f=F[f], b=False), f, structure, gain, input, M, M_of_sizes)


# --- the peers: (f, M, b) -> x, for one sample of float64


def _hybr(f: rg.Nonlinearity, M: Tensor, b: Tensor) -> Tensor:
    def equation(x: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(x)
        return (x - f(x @ M.T + b)).numpy()

    def jacobian(x: np.ndarray) -> np.ndarray:
        D = f.slope_at(torch.from_numpy(x) @ M.T + b)
        return (torch.eye(len(b), dtype=M.dtype) - D[:, None] * M).numpy()

    return torch.from_numpy(scipy.optimize.root(equation, np.zeros(len(b)), jac=jacobian, tol=1e-12).x)


def _krylov(f: rg.Nonlinearity, M: Tensor, b: Tensor) -> Tensor:
    def equation(x: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(x)
        return (x - f(x @ M.T + b)).numpy()

    options = {"maxiter": 100, "fatol": 1e-9}
    return torch.from_numpy(
        np.asarray(scipy.optimize.root(equation, np.zeros(len(b)), method="krylov", options=options).x)
    )


def _torchdeq(solver: str) -> Callable[[rg.Nonlinearity, Tensor, Tensor], Tensor]:
    def solve(f: rg.Nonlinearity, M: Tensor, b: Tensor) -> Tensor:
        from torchdeq import get_deq

        deq = get_deq(ift=True, f_solver=solver, f_tol=1e-9, f_stop_mode="rel", f_max_iter=300)
        with torch.no_grad():
            return deq(lambda x: f(x @ M.T + b), torch.zeros_like(b)[None])[0][-1][0]

    return solve


def _optimistix(method: str) -> Callable[[rg.Nonlinearity, Tensor, Tensor], Tensor]:
    def solve(f: rg.Nonlinearity, M: Tensor, b: Tensor) -> Tensor:
        import jax
        import jax.numpy as jnp
        import optimistix

        jax.config.update("jax_enable_x64", True)
        names = {"ReLU": jax.nn.relu, "Softplus": jax.nn.softplus, "Sigmoid": jax.nn.sigmoid, "Tanh": jnp.tanh}
        f_jax = names.get(type(f).__name__, jnp.sin if isinstance(f, rg.Pointwise) else lambda u: u)
        A, c = jnp.asarray(M.numpy()), jnp.asarray(b.numpy())
        solver = getattr(optimistix, method)(rtol=1e-9, atol=1e-9)
        found = optimistix.root_find(
            lambda x, _: x - f_jax(A @ x + c), solver, jnp.zeros_like(c), max_steps=300, throw=False
        )
        x = torch.from_numpy(np.array(found.value))
        jax.clear_caches()  # each call has compiled a function of its own
        return x

    return solve


PEERS: dict[str, Callable[[rg.Nonlinearity, Tensor, Tensor], Tensor]] = {
    "scipy root, hybr": _hybr,
    "scipy root, krylov": _krylov,
}
if find_spec("torchdeq"):
    PEERS |= {f"torchdeq, {solver}": _torchdeq(solver) for solver in ("anderson", "broyden", "fixed_point_iter")}
if find_spec("optimistix"):
    PEERS |= {f"optimistix, {method}": _optimistix(method) for method in ("Newton", "Dogleg")}


def answer_of(name: str, f: rg.Nonlinearity, M: Tensor, b: Tensor) -> Tensor:
    """What the peer answers; NaN where it raises, whatever that is."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return PEERS[name](f, M, b)
        except Exception:
            return torch.full_like(b, torch.nan)


def _asked(name: str, given: Problem, sample: int) -> bool:
    """Whether the peer finds the steady state of that sample."""
    x = answer_of(name, F[given.f], given.M, given.input[sample].double())
    residual = given.residual(x[None].expand(len(given.input), -1))[sample]
    return bool(residual <= BELIEVED)


def main(
    networks: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    samples: Annotated[int, typer.Option(min=2, help="Inputs of each.")] = 10,
    largest: Annotated[int, typer.Option(min=1, help="The most neurons.")] = 500,
    peers: Annotated[int, typer.Option(min=0, help="Of so many networks the peers are asked for one sample each.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    minutes: Annotated[float, typer.Option(help="After so long no other network is begun.")] = math.inf,
) -> None:
    """Print, for each nonlinearity, what became of the samples, and what the peers find."""
    ended: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: list[str] = []
    gradients: Counter[str] = Counter()
    beside: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes
    with torch.no_grad():
        for count, given in enumerate(_problems(first, networks, samples, largest)):
            if time.monotonic() > end:
                break
            begun = time.perf_counter()
            with torch.enable_grad():
                b = given.input.clone().requires_grad_()
                state = given.net.steady_state(b, throw=False)
            seconds["retrograde"] += time.perf_counter() - begun
            residual, allowed = given.residual(state.x), state.tolerance + 4 * given.rounding(state.x)
            false = state.converged & ~(residual <= allowed)
            wrong += [f"seed {first + count}, sample {i}: {residual[i]:.1e}" for i in false.nonzero()[:, 0].tolist()]
            told = _of_gradients(given, b, state, gradients, first + count)
            wrong += [f"seed {first + count}, sample {i}: gradient, {how}" for i, how in told]
            for status in state.status.tolist():
                ended[given.f][rg.Status(status).name] += 1
            if count < peers:
                sample = count % samples
                group = "bounded" if given.f in BOUNDED else given.f
                beside["asked"][group] += 1
                beside["retrograde"][group] += int(state.converged[sample])
                beside["retrograde, or as near as rounding lets"][group] += int(residual[sample] <= BELIEVED)
                for name in PEERS:
                    begun = time.perf_counter()
                    beside[name][group] += _asked(name, given, sample)
                    seconds[name] += time.perf_counter() - begun
            if (count + 1) % 20 == 0:
                print(f"{count + 1} networks, {seconds['retrograde']:.0f} s, {len(wrong)} wrong", flush=True)
    _tell(ended, wrong, gradients, beside, seconds)
    raise typer.Exit(bool(wrong))


def _of_gradients(
    given: Problem, b: Tensor, state: rg.SteadyState, counted: Counter[str], seed: int
) -> Iterator[tuple[int, str]]:
    """Count what became of the gradients of a random reward in the states that were found; and which are wrong."""
    g = torch.randn(b.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(b.dtype)
    g = torch.where(state.converged[:, None], g, 0)
    with torch.enable_grad():
        (s,) = torch.autograd.grad((g * state.x).sum(), b)
    receipt = state.receipt
    assert receipt is not None  # of the backward just now
    exact = given.exact(state.x, g)
    error = (s.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    estimate = receipt.error_estimate.double()
    for i in state.converged.nonzero()[:, 0].tolist():
        counted["asked"] += 1
        if not bool(receipt.converged[i]):
            counted["said not to have converged"] += 1
        elif bool(error[i].isnan()):
            counted["not known, for Newton's method leads nowhere or the adjoint is 0"] += 1
        elif bool(error[i] <= 10 * estimate[i] + 1e-15):
            counted["off by at most ten times what the receipt tells"] += 1
            counted["of these, off by at most 1e-3"] += bool(error[i] <= 1e-3)
        else:
            yield i, f"off by {error[i]:.1e}, and the receipt tells {estimate[i]:.1e}"


def _problems(first: int, networks: int, samples: int, largest: int) -> Iterator[Problem]:
    return (problem(seed, samples, largest) for seed in range(first, first + networks))


def _tell(
    ended: dict[str, Counter[str]],
    wrong: list[str],
    gradients: Counter[str],
    beside: dict[str, Counter[str]],
    seconds: Counter[str],
) -> None:
    print("\n| f | samples | " + " | ".join(status.name for status in rg.Status) + " |")
    for f, counts in ended.items():
        print(f"| {f} | {counts.total()} | " + " | ".join(str(counts[status.name]) for status in rg.Status) + " |")
    print("\ngradients: " + "; ".join(f"{count} {what}" for what, count in gradients.items()))
    print(f"\nclaimed and wrong: {len(wrong)}", *wrong, sep="\n")
    if beside:
        groups = ["bounded", *(f for f in F if f not in BOUNDED)]
        print("\n| found of | " + " | ".join(groups) + " | seconds |")
        for name, counts in beside.items():
            print(f"| {name} | " + " | ".join(str(counts[g]) for g in groups) + f" | {seconds[name]:.0f} |")


if __name__ == "__main__":
    typer.run(main)
