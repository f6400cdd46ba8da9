"""The bifurcation diagram of two neurons that excite themselves and inhibit each other, drawn into bifurcation.png.

    python examples/bifurcation.py [file]

Each neuron alone is bistable, x = tanh(2x + b). Together, driven by the same input t, they decide: up, down, or one up
and the other down. The branches are followed from the stable states that a search finds at t = 0.
"""

import sys

import torch

import retrograde as rg


def main(file: str = "bifurcation.png") -> list[rg.SteadyBranch]:
    """Search at t = 0, follow, print, draw."""
    from matplotlib.figure import Figure

    net = rg.Network(torch.tensor([[2.0, -0.25], [-0.15, 2.0]], dtype=torch.float64), b=False)
    both = ("input", torch.ones(2, dtype=torch.float64))

    found = rg.find_steady_states(net)
    print("At t = 0:", found)

    branches: list[rg.SteadyBranch] = []
    for state in found.x[found.stable]:
        if any(near(branch, state) for branch in branches):
            continue  # it lies on a branch already drawn
        branches.append(rg.continue_steady_state(net, both, (-1.0, 1.0), start=0.0, x0=state))
    for branch in branches:
        for special in branch.special:
            print(special)

    ax = Figure(figsize=(6, 4), layout="constrained").subplots()
    for branch in branches:
        branch.plot(ax, measure=mean)
    ax.set(title="Two bistable neurons that inhibit each other", xlabel="input to both")
    ax.figure.savefig(file, dpi=150)
    print("Drawn into", file)
    return branches


def near(branch: rg.SteadyBranch, state: torch.Tensor) -> bool:
    """Whether the branch passes the state at t = 0."""
    t, x = branch.parameter, branch.x
    crossings = (t[1:] * t[:-1] <= 0).nonzero()[:, 0]
    return any(float((x[i] - state).norm()) < 0.1 for i in crossings)


def mean(x: torch.Tensor) -> torch.Tensor:
    """What is drawn: 2/3 of the first neuron and 1/3 of the second, which tells one up from the other up."""
    return (2 * x[:, 0] + x[:, 1]) / 3


if __name__ == "__main__":
    main(*sys.argv[1:2])
