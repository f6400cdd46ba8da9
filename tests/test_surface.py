"""The public names, pinned: a change here is a change of the interface, and belongs in CHANGELOG.md."""

import inspect

import retrograde as rg

NAMES = [
    "Cascade",
    "Connectivity",
    "ConvergenceError",
    "Convolution",
    "Dense",
    "Direct",
    "Equilibrium",
    "FixedPoint",
    "Gradients",
    "Identity",
    "Krylov",
    "LowRank",
    "Network",
    "Newton",
    "Nonlinearity",
    "Pointwise",
    "ReLU",
    "Receipt",
    "Recurrence",
    "Sigmoid",
    "Softplus",
    "Sparse",
    "SpectralBall",
    "Status",
    "SteadyState",
    "Sum",
    "Tanh",
    "Trajectory",
    "backpropagation_through_time",
    "jacobian_penalty",
    "recurrent_backpropagation",
    "steady_state",
    "trajectory",
]


def test_the_public_names_are_these_and_sorted():
    assert rg.__all__ == sorted(rg.__all__) == sorted(NAMES)
    assert all(hasattr(rg, name) for name in NAMES)


def test_every_public_name_says_what_it_is():
    assert all((inspect.getdoc(getattr(rg, name)) or "").strip() for name in NAMES)


def test_the_signatures_that_callers_rely_on():
    def names(function):
        return list(inspect.signature(function).parameters)

    assert names(rg.Network.__init__) == ["self", "W", "f", "b", "leak"]
    assert names(rg.Network.steady_state) == ["self", "input", "x0", "solver", "adjoint", "throw"]
    assert names(rg.Network.trajectory) == ["self", "input", "x0", "steps", "adjoint"]
    assert names(rg.steady_state)[:3] == ["W", "b", "f"]
    assert names(rg.trajectory)[:4] == ["W", "b", "x0", "f"]
    assert names(rg.recurrent_backpropagation)[:3] == ["net", "x", "dR_dx"]
    assert names(rg.backpropagation_through_time)[:4] == ["net", "x", "x0", "dR_dx"]
    assert {"damping", "rtol", "max_steps"} == set(names(rg.FixedPoint))
