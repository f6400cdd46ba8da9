"""Who is compared. The modules here have functions `trajectories` and `steady` that make a call ready to be timed.

They take W, b and g, what `options` adds, and if `tuned` a tolerance; the call answers dR/dW in float32. Every peer is
handed the cotangent g itself, so that none pays for computing the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A row of the tables.

    Attributes:
        name: as the tables show it.
        kind: "trajectories" or "steady".
        framework: the process it runs in, "torch" or "jax".
        package: what has to be installed.
        module: its file here.
        options: for its function there.
        tuned: whether it takes a tolerance. The loosest that holds the error is looked for.
        largest: the bytes of states above which it is left out.
    """

    name: str
    kind: str
    framework: str
    package: str
    module: str
    options: tuple[Any, ...] = ()
    tuned: bool = False
    largest: float = float("inf")

    @property
    def ours(self) -> bool:
        """Whether this is Retrograde."""
        return self.package == "retrograde"

    @property
    def installed(self) -> bool:
        """Whether it can be run here."""
        return find_spec(self.package) is not None


RETROGRADE = "Retrograde"
RETROGRADE_RNN = "retrograde.nn.RNN"
TORCH_RNN = "torch.nn.RNN"

PEERS = (
    Peer(RETROGRADE, "trajectories", "torch", "retrograde", "retrograde"),
    Peer(RETROGRADE_RNN, "trajectories", "torch", "retrograde", "rnn", ("retrograde.nn",)),
    Peer(TORCH_RNN, "trajectories", "torch", "torch", "rnn", ("torch.nn",)),
    Peer("autograd, loop", "trajectories", "torch", "torch", "loop", largest=2**26),
    Peer("jax.lax.scan", "trajectories", "jax", "jax", "scan"),
    Peer(RETROGRADE, "steady", "torch", "retrograde", "retrograde"),
    Peer("Retrograde, rtol", "steady", "torch", "retrograde", "retrograde", tuned=True),
    Peer("Retrograde, float64", "steady", "torch", "retrograde", "retrograde_in_float64"),
    Peer("loop by hand", "steady", "torch", "torch", "loop", tuned=True),
    Peer("torchdeq, fixed point", "steady", "torch", "torchdeq", "torchdeq", ("fixed_point_iter", 1000), tuned=True),
    Peer("torchdeq, Anderson", "steady", "torch", "torchdeq", "torchdeq", ("anderson", 1000), tuned=True),
    Peer("torchdeq, Broyden", "steady", "torch", "torchdeq", "torchdeq", ("broyden", 200), tuned=True),
    Peer("jaxopt, fixed point", "steady", "jax", "jaxopt", "jaxopt", ("FixedPointIteration",), tuned=True),
    Peer("jaxopt, Anderson", "steady", "jax", "jaxopt", "jaxopt", ("AndersonAcceleration",), tuned=True),
    Peer("optimistix, fixed point, GMRES", "steady", "jax", "optimistix", "optimistix", ("gmres",), tuned=True),
    Peer("optimistix, fixed point, LU", "steady", "jax", "optimistix", "optimistix", ("lu",), tuned=True),
    Peer("optimistix, Newton, LU", "steady", "jax", "optimistix", "optimistix", ("newton",), tuned=True),
)
