"""Backprop for recurrent networks: a lecture by H. S. Seung, as a text that runs.

Each section is an equation, then the code that says the same. Everything is small, dense and float64, and uses NumPy
alone: it is here to be read, and to be compared with. The library computes the same numbers by other means.

    W[i, j]   the connection from neuron j to neuron i
    f         a function of one number, applied to each entry
    b         the input (or the bias: they only ever appear as a sum)
    x         the activity
    R         the reward, a number that depends on x. We want to make it larger.

The algorithm for steady states is due to L. B. Almeida and to F. J. Pineda, both in 1987; the one for trajectories is
backpropagation through time. ``python examples/lecture.py`` prints the numbers that ought to agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Function:
    """f, its derivative f' and its inverse f⁻¹, each applied entry by entry."""

    value: Callable[[Array], Array]
    prime: Callable[[Array], Array]
    inverse: Callable[[Array], Array]

    def __call__(self, u: Array) -> Array:
        """f(u)."""
        return self.value(u)


TANH = Function(np.tanh, lambda u: 1 - np.tanh(u) ** 2, np.arctanh)


def example() -> tuple[Array, Array]:
    """W and b of three neurons. W is not symmetric: a symmetric one would hide every confusion of W with Wᵀ."""
    W = np.array([[0.1, -0.6, 0.4], [0.7, 0.2, -0.3], [-0.2, 0.8, 0.1]])
    b = np.array([0.5, -0.3, 0.2])
    return W, b


# ----------------------------------------------------------------------------------------------------------------------
# PART ONE: STEADY STATES
# ----------------------------------------------------------------------------------------------------------------------

# --- 1. The steady state              x = f(Wx + b)


def steady_state(W: Array, b: Array, x0: Array | None = None, f: Function = TANH, steps: int = 100_000) -> Array:
    """Run the network, x ← f(Wx + b), until x no longer changes.

    It need not come to rest: this raises RuntimeError if it does not. Where it comes to rest may depend on x0.

    >>> W, b = example()
    >>> x = steady_state(W, b)
    >>> np.allclose(x, np.tanh(W @ x + b))
    True
    """
    x = np.zeros_like(b) if x0 is None else x0
    for _ in range(steps):
        old, x = x, f(W @ x + b)
        if np.linalg.norm(x - old) <= 1e-14 * np.linalg.norm(x):
            return x
    raise RuntimeError(f"the network has not come to rest in {steps} steps")


# --- 2. The reward                    R(x), any differentiable function

# W and b determine x, and x determines R. So R is a function of W and b, and that is the function to be climbed. All
# that the algorithm asks of R is its gradient at x. Ours is largest where x is the target; replace it by any other.


def reward(x: Array, target: Array) -> float:
    """R(x) = -½ |x - target|²."""
    return -0.5 * float(np.sum((x - target) ** 2))


def reward_gradient(x: Array, target: Array) -> Array:
    """dR/dx."""
    return target - x


# --- 3. Recurrent backpropagation     (D⁻¹ - Wᵀ) s = dR/dx,  D = diag f'(Wx + b)
#                                      dR/db = s,  dR/dW = s xᵀ


def slopes(W: Array, b: Array, x: Array, f: Function = TANH) -> Array:
    """The diagonal matrix D = diag f'(Wx + b)."""
    return np.diag(f.prime(W @ x + b))


def recurrent_backpropagation(
    W: Array, b: Array, x: Array, dR_dx: Array, f: Function = TANH
) -> tuple[Array, Array, Array]:
    """(s, dR/dW, dR/db) at a steady state x.

    D⁻¹ does not exist where f' = 0, at a saturated neuron say. Multiplied by D the equation needs no inverse of D:
    (I - DWᵀ) s = D dR/dx. Or, as a network would run it: s = D (Wᵀs + dR/dx).

    >>> W, b = example()
    >>> x, target = steady_state(W, b), np.array([0.2, 0.4, -0.1])
    >>> s, dW, db = recurrent_backpropagation(W, b, x, reward_gradient(x, target))
    >>> np.allclose(db, finite_differences(lambda b: reward(steady_state(W, b), target), b))
    True
    >>> np.allclose(dW, finite_differences(lambda W: reward(steady_state(W, b), target), W))
    True
    """
    D = slopes(W, b, x, f)
    s = np.linalg.solve(np.eye(len(x)) - D @ W.T, D @ dR_dx)
    return s, np.outer(s, x), s


def finite_differences(R: Callable[[Array], float], z: Array, h: float = 1e-5) -> Array:
    """The gradient of R at z, one entry at a time: slow, approximate, and ignorant of everything said here.

    >>> finite_differences(lambda z: z[0] * z[1], np.array([2.0, 3.0])).round(6)
    array([3., 2.])
    """
    gradient = np.zeros_like(z)
    for place in np.ndindex(z.shape):
        change = np.zeros_like(z)
        change[place] = h
        gradient[place] = (R(z + change) - R(z - change)) / (2 * h)
    return gradient


# --- 4. The sensitivity lemma         dR/dW_ij = dR/db_i x_j

# Neuron i sees only its total input, sum_j W_ij x_j + b_i. Whether W_ij grows by ε, or b_i by ε x_j, is the same to it,
# and so to all the rest. So n derivatives tell all n² of them. The proof looks at neither f nor R; here both sides are
# measured.


def sensitivity_lemma(W: Array, b: Array, R: Callable[[Array], float], f: Function = TANH) -> tuple[Array, Array]:
    """Both sides of the lemma, dR/dW_ij and dR/db_i x_j, by finite differences.

    >>> W, b = example()
    >>> left, right = sensitivity_lemma(W, b, lambda x: np.sin(x).prod())
    >>> np.allclose(left, right)
    True
    """
    left = finite_differences(lambda W: R(steady_state(W, b, f=f)), W)
    right = np.outer(finite_differences(lambda b: R(steady_state(W, b, f=f)), b), steady_state(W, b, f=f))
    return left, right


# --- 5. Input as a function of output b = f⁻¹(x) - Wx

# How does dR/db come about? x may be no function of b: one input may have many steady states. But b is a function of x,
# and one we can write down. So turn the problem round.


def input_for(W: Array, x: Array, f: Function = TANH) -> Array:
    """The one input b for which x is a steady state.

    >>> W, b = example()
    >>> np.allclose(input_for(W, steady_state(W, b)), b)
    True
    """
    return f.inverse(x) - W @ x


def bistable() -> tuple[Array, Array]:
    """One neuron that excites itself, w = 2, and its three steady states for the input 0.

    One input has three outputs; each of the three has the one input. Started above zero the network settles at the
    upper one, below zero at the lower. It leaves the middle one, where w f' = 2 is more than 1: steady, not stable.

    >>> W, states = bistable()
    >>> states.round(4)
    array([-0.9575,  0.    ,  0.9575])
    >>> all(abs(input_for(W, np.array([x]))[0]) < 1e-14 for x in states)
    True
    >>> steady_state(W, np.zeros(1), np.array([0.01])).round(4)
    array([0.9575])
    """
    W, b = np.array([[2.0]]), np.zeros(1)
    up, down = np.array([0.5]), np.array([-0.5])
    return W, np.concatenate([steady_state(W, b, down), [0.0], steady_state(W, b, up)])


# --- 6. The Jacobian                  db/dx = D⁻¹ - W


def jacobian(W: Array, x: Array, f: Function = TANH) -> Array:
    """db_i/dx_j. The derivative of f⁻¹ is 1/f', whence D⁻¹; here it must exist.

    >>> W, b = example()
    >>> x = steady_state(W, b)
    >>> columns = [finite_differences(lambda x, i=i: input_for(W, x)[i], x) for i in range(3)]
    >>> np.allclose(jacobian(W, x), columns)
    True
    """
    D = slopes(W, input_for(W, x, f), x, f)
    return np.linalg.inv(D) - W


# --- 7. The chain rule                dR/dx_j = sum_i dR/db_i db_i/dx_j,  that is,  dR/dx = (D⁻¹ - Wᵀ) dR/db


def chain_rule(W: Array, x: Array, dR_db: Array, f: Function = TANH) -> Array:
    """dR/dx from dR/db. Read from right to left it is section 3: solve it for dR/db, and call that s.

    >>> W, b = example()
    >>> x, g = steady_state(W, b), np.array([1.0, -2.0, 3.0])
    >>> s, _, _ = recurrent_backpropagation(W, b, x, g)
    >>> np.allclose(chain_rule(W, x, s), g)
    True
    """
    return jacobian(W, x, f).T @ dR_db


# ----------------------------------------------------------------------------------------------------------------------
# PART TWO: TRAJECTORIES
# ----------------------------------------------------------------------------------------------------------------------

# --- 8. The trajectory                x(t) = f(W x(t-1) + b(t)),  t = 1, ..., T

# Arrays that have a time, such as x and b, have it first: row t - 1 is x(t).


def trajectory(W: Array, b: Array, x0: Array, f: Function = TANH) -> Array:
    """x(1), ..., x(T), an array (T, n), for the inputs b (T, n) and the start x0 = x(0).

    >>> W, b = example()
    >>> x = trajectory(W, np.tile(b, (200, 1)), np.ones(3))  # a constant input
    >>> np.allclose(x[-1], steady_state(W, b))
    True
    """
    x = np.zeros_like(b)
    now = x0
    for t in range(len(b)):
        x[t] = now = f(W @ now + b[t])
    return x


def before(x: Array, x0: Array) -> Array:
    """x(0), ..., x(T-1): what each x(t) was made from."""
    return np.concatenate([x0[None], x[:-1]])


# --- 9. Unfolding time into space     layer t of a multilayer perceptron computes x(t); all layers have the same W


def perceptron(weights: list[Array], biases: Array, x0: Array, f: Function = TANH) -> Array:
    """The activities of an ordinary multilayer perceptron, layer by layer. Each layer has weights of its own.

    >>> W, b = example()
    >>> b, x0 = np.tile(b, (4, 1)), np.ones(3)
    >>> np.array_equal(perceptron([W, W, W, W], b, x0), trajectory(W, b, x0))
    True
    """
    layers = [x0]
    for W, b in zip(weights, biases, strict=True):
        layers.append(f(W @ layers[-1] + b))
    return np.array(layers[1:])


def unfold(W: Array, b: Array, x0: Array) -> tuple[Array, Array]:
    """The same perceptron as one network of T n neurons: W one block below the diagonal, and x(0) an input of layer 1.

    Its steady state is the trajectory. So all that part one says of steady states, it says of trajectories.

    >>> W, b = example()
    >>> b, x0 = np.tile(b, (4, 1)), np.ones(3)
    >>> np.allclose(steady_state(*unfold(W, b, x0)), trajectory(W, b, x0).ravel())
    True
    """
    inputs = b.copy()
    inputs[0] += W @ x0
    return np.kron(np.eye(len(b), k=-1), W), inputs.ravel()


# --- 10. Backpropagation through time s(t) = D(t) (Wᵀ s(t+1) + dR/dx(t)),  s(T+1) = 0,  D(t) = diag f'(W x(t-1) + b(t))
#                                      dR/db(t) = s(t),  dR/dW = sum_t s(t) x(t-1)ᵀ,  dR/dx(0) = Wᵀ s(1)


def backpropagation_through_time(
    W: Array, b: Array, x0: Array, x: Array, dR_dx: Array, f: Function = TANH
) -> tuple[Array, Array, Array]:
    """(s, dR/dW, dR/dx(0)); s is (T, n), and is dR/db.

    It is section 3 for the unfolded network, where the equation s = D (Wᵀs + dR/dx) needs no solving: s(t) depends on
    s(t+1) alone. As the layers share W, its gradient is the sum of theirs, and the sum over t is one matrix product.

    >>> W, b = example()
    >>> b, x0, g = np.tile(b, (4, 1)), np.ones(3), np.arange(12.0).reshape(4, 3)
    >>> x = trajectory(W, b, x0)
    >>> s, dW, dx0 = backpropagation_through_time(W, b, x0, x, g)
    >>> R = lambda x: np.sum(g * x)
    >>> np.allclose(s, finite_differences(lambda b: R(trajectory(W, b, x0)), b))
    True
    >>> np.allclose(dW, finite_differences(lambda W: R(trajectory(W, b, x0)), W))
    True
    >>> np.allclose(dx0, finite_differences(lambda x0: R(trajectory(W, b, x0)), x0))
    True
    >>> same, _, _ = recurrent_backpropagation(*unfold(W, b, x0), x.ravel(), g.ravel())
    >>> np.allclose(s.ravel(), same)
    True
    """
    x_before = before(x, x0)
    s, s_next = np.zeros_like(x), np.zeros_like(x0)
    for t in reversed(range(len(x))):
        D = slopes(W, b[t], x_before[t], f)
        s[t] = s_next = D @ (W.T @ s_next + dR_dx[t])
    return s, s.T @ x_before, W.T @ s[0]


# --- 11. Input as a function of output b(t) = f⁻¹(x(t)) - W x(t-1)


def input_for_trajectory(W: Array, x: Array, x0: Array, f: Function = TANH) -> Array:
    """The one input (T, n) that drives the network along x. Any x will do, as long as f can reach it.

    >>> W, b = example()
    >>> x0, wish = np.zeros(3), np.array([[0.5, -0.5, 0.9], [0.0, 0.1, -0.9]])
    >>> np.allclose(trajectory(W, input_for_trajectory(W, wish, x0), x0), wish)
    True
    """
    return f.inverse(x) - before(x, x0) @ W.T


# --- 12. The Jacobian                 db(t)/dx(t) = D⁻¹(t),  db(t)/dx(t-1) = -W,  all else 0


def jacobian_trajectory(W: Array, x: Array, x0: Array, f: Function = TANH) -> Array:
    """db/dx, (T n, T n), block bidiagonal: D⁻¹(t) on the diagonal and -W one block below it.

    It is section 6 for the unfolded network.

    >>> W, b = example()
    >>> x0 = np.ones(3)
    >>> x = trajectory(W, np.tile(b, (4, 1)), x0)
    >>> big, _ = unfold(W, x, x0)
    >>> np.allclose(jacobian_trajectory(W, x, x0), jacobian(big, x.ravel()))
    True
    """
    T, n = x.shape
    b, x_before = input_for_trajectory(W, x, x0, f), before(x, x0)
    J = np.zeros((T, n, T, n))
    for t in range(T):
        J[t, :, t, :] = np.linalg.inv(slopes(W, b[t], x_before[t], f))
        if t > 0:
            J[t, :, t - 1, :] = -W
    return J.reshape(T * n, T * n)


# --- 13. The chain rule               dR/dx_j(t) = sum over i and t' of dR/db_i(t') db_i(t')/dx_j(t)
#                                      dR/dx(t) = D⁻¹(t) s(t) - Wᵀ s(t+1)


def chain_rule_trajectory(W: Array, x: Array, x0: Array, dR_db: Array, f: Function = TANH) -> Array:
    """dR/dx (T, n) from dR/db (T, n). x(t) is in b(t), by f⁻¹, and in b(t+1), by W: two terms of the sum are left.

    Multiplied by D(t) and read backwards in time, it is section 10.

    >>> W, b = example()
    >>> b, x0, g = np.tile(b, (4, 1)), np.ones(3), np.arange(12.0).reshape(4, 3)
    >>> x = trajectory(W, b, x0)
    >>> s, _, _ = backpropagation_through_time(W, b, x0, x, g)
    >>> np.allclose(chain_rule_trajectory(W, x, x0, s), g)
    True
    >>> np.allclose(jacobian_trajectory(W, x, x0).T @ s.ravel(), g.ravel())
    True
    """
    b, x_before = input_for_trajectory(W, x, x0, f), before(x, x0)
    s_next = np.concatenate([dR_db[1:], np.zeros_like(dR_db[:1])])
    D = f.prime(x_before @ W.T + b)  # the diagonals, row by row
    return dR_db / D - s_next @ W


# --- 14. The leak                     x(t) = (1-a) x(t-1) + a f(W x(t-1) + b(t)),  0 < a <= 1
#                                      l(t) = dR/dx(t) + (1-a) l(t+1) + Wᵀ s(t+1),  s(t) = a D(t) l(t)

# A neuron with time constant τ, in steps of dt, goes only a = dt/τ of the way. Its activity then reaches the future by
# two roads, W and its own persistence, and l(t), all that the reward owes to x(t), comes back along both. For a = 1
# nothing is new. At a steady state x(t) = x(t-1), and a drops out: part one does not depend on it.


def leaky_trajectory(W: Array, b: Array, x0: Array, a: float, f: Function = TANH) -> Array:
    """x(1), ..., x(T) with the leak a.

    >>> W, b = example()
    >>> x = leaky_trajectory(W, np.tile(b, (500, 1)), np.ones(3), a=0.2)
    >>> np.allclose(x[-1], steady_state(W, b))
    True
    """
    x = np.zeros_like(b)
    now = x0
    for t in range(len(b)):
        x[t] = now = (1 - a) * now + a * f(W @ now + b[t])
    return x


def leaky_backpropagation_through_time(
    W: Array, b: Array, x0: Array, x: Array, dR_dx: Array, a: float, f: Function = TANH
) -> tuple[Array, Array, Array]:
    """(s, dR/dW, dR/dx(0)) with the leak a.

    >>> W, b = example()
    >>> b, x0, g = np.tile(b, (4, 1)), np.ones(3), np.arange(12.0).reshape(4, 3)
    >>> R = lambda x: np.sum(g * x)
    >>> s, dW, dx0 = leaky_backpropagation_through_time(W, b, x0, leaky_trajectory(W, b, x0, 0.3), g, 0.3)
    >>> np.allclose(s, finite_differences(lambda b: R(leaky_trajectory(W, b, x0, 0.3)), b))
    True
    >>> np.allclose(dW, finite_differences(lambda W: R(leaky_trajectory(W, b, x0, 0.3)), W))
    True
    >>> np.allclose(dx0, finite_differences(lambda x0: R(leaky_trajectory(W, b, x0, 0.3)), x0))
    True
    """
    x_before = before(x, x0)
    s, s_next, l_next = np.zeros_like(x), np.zeros_like(x0), np.zeros_like(x0)
    for t in reversed(range(len(x))):
        D = slopes(W, b[t], x_before[t], f)
        l_next = dR_dx[t] + (1 - a) * l_next + W.T @ s_next
        s[t] = s_next = a * D @ l_next
    return s, s.T @ x_before, (1 - a) * l_next + W.T @ s_next


# --- 15. Gradient ascent              dW = η s xᵀ,  db = η s

# The change of W_ij is a product of what its two neurons have: x_j, the activity of the one before the synapse, and
# s_i, the sensitivity of the one behind it. Along a trajectory both changes are summed over t.


def gradient_ascent(
    W: Array, b: Array, target: Array, eta: float = 0.1, steps: int = 20, f: Function = TANH
) -> tuple[Array, Array, list[float]]:
    """W and b after some steps up the gradient of `reward` at the steady state, and the reward before each.

    >>> W, b, rewards = gradient_ascent(*example(), target=np.array([0.2, 0.4, -0.1]))
    >>> bool(np.all(np.diff(rewards) > 0))
    True
    """
    x, rewards = None, []
    for _ in range(steps):
        x = steady_state(W, b, x, f)  # from where it was, so as to stay on the same branch
        rewards.append(reward(x, target))
        _, dW, db = recurrent_backpropagation(W, b, x, reward_gradient(x, target), f)
        W, b = W + eta * dW, b + eta * db
    return W, b, rewards


# ----------------------------------------------------------------------------------------------------------------------
# THREE SLIPS IN THE LECTURE'S NOTES
# ----------------------------------------------------------------------------------------------------------------------

# Who reads the notes beside this text will find three differences. What stands here is what was meant, and what the
# finite differences confirm.
#
# - For the unfolded network the notes write D(t) with f. Its diagonal holds slopes: f'(W x(t-1) + b(t)). (Section 10.)
# - There they also write the sum of the chain rule over the wrong index. It runs over all inputs: over i, and over the
#   time of b. Two times are left, and s carries first t, then t+1. (Section 13.)
# - For steady states they give the update of W and not that of b, which is db = η s. (Section 15.)


def main() -> None:
    """Print numbers that ought to agree."""
    W, b = example()
    target = np.array([0.2, 0.4, -0.1])

    def show(what: str, one: Array, other: Array) -> None:
        print(f"{what:<66} {np.abs(one - other).max():.0e}")

    print("Two ways to each number, and the largest difference between them.")

    print("\nSteady states")

    def R(W: Array, b: Array) -> float:
        return reward(steady_state(W, b), target)

    x = steady_state(W, b)
    g = reward_gradient(x, target)
    s, dW, db = recurrent_backpropagation(W, b, x, g)
    show("  3  dR/db: recurrent backpropagation, finite differences", db, finite_differences(lambda b: R(W, b), b))
    show("  3  dR/dW: recurrent backpropagation, finite differences", dW, finite_differences(lambda W: R(W, b), W))
    left, right = sensitivity_lemma(W, b, lambda x: reward(x, target))
    show("  4  dR/dW_ij and dR/db_i x_j, both by finite differences", left, right)
    show("  5  b, and the input for which x is steady", b, input_for(W, x))
    show("  7  dR/dx, and (D⁻¹ - Wᵀ) dR/db", g, chain_rule(W, x, s))

    print("\nTrajectories")
    rng = np.random.default_rng(0)
    b, x0, targets = rng.normal(size=(5, 3)), rng.normal(size=3), rng.uniform(-0.5, 0.5, size=(5, 3))

    def R_T(W: Array, x0: Array, a: float = 1.0) -> float:
        return reward(leaky_trajectory(W, b, x0, a), targets)

    x = trajectory(W, b, x0)
    g = reward_gradient(x, targets)
    s, dW, dx0 = backpropagation_through_time(W, b, x0, x, g)
    big_W, big_b = unfold(W, b, x0)
    big_s, _, _ = recurrent_backpropagation(big_W, big_b, x.ravel(), g.ravel())
    show("  9  the trajectory, and the steady state of the unfolded network", x.ravel(), steady_state(big_W, big_b))
    show(" 10  dR/dW: backprop through time, finite differences", dW, finite_differences(lambda W: R_T(W, x0), W))
    show(" 10  dR/dx(0): the same two", dx0, finite_differences(lambda x0: R_T(W, x0), x0))
    show(" 10  s, and recurrent backpropagation through the unfolded network", s.ravel(), big_s)
    show(" 11  b, and the input that drives the network along x", b, input_for_trajectory(W, x, x0))
    show(" 13  dR/dx(t), and D⁻¹(t) s(t) - Wᵀ s(t+1)", g, chain_rule_trajectory(W, x, x0, s))
    x = leaky_trajectory(W, b, x0, 0.3)
    _, dW, _ = leaky_backpropagation_through_time(W, b, x0, x, reward_gradient(x, targets), 0.3)
    show(" 14  dR/dW with a leak: the same two", dW, finite_differences(lambda W: R_T(W, x0, 0.3), W))

    print("\nGradient ascent: the reward at a steady state, every fourth step")
    _, _, rewards = gradient_ascent(*example(), target)
    print(" 15 ", " ".join(f"{r:.4f}" for r in rewards[::4]))


if __name__ == "__main__":
    main()
