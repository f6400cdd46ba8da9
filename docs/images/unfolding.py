"""Draws unfolding.svg, beside this file: one equation, and the two networks that it runs backwards through."""

import re
from pathlib import Path

WIDTH, HEIGHT = 1000, 520
INK, SOFT, FORWARD, BACKWARD = "#22262b", "#6b737c", "#2566b0", "#c2501c"
ABOVE, BELOW, RADIUS = 236, 352, 27  # where the activity is, where the adjoint is, and the size of a neuron


def math(x, y, formula, colour=INK, size=19):
    """A formula, centred: letters in italics, W^T raised, s_next lowered."""
    parts, back = [], 0.0
    for mark, word, letters, rest in re.findall(r"([_^])(\w+)|([A-Za-z∂]+)|([^A-Za-z∂_^]+)", formula):
        move = {"^": -0.36, "_": 0.24}.get(mark, 0.0) * size
        small = f' font-size="{0.66 * size:.1f}"' if mark else ""
        slant = ' font-style="italic"' if letters or mark == "_" else ""
        parts.append(f'<tspan dy="{move - back:.1f}"{small}{slant}>{word or letters or rest}</tspan>')
        back = move
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle" fill="{colour}" xml:space="preserve">'
        f"{''.join(parts)}</text>"
    )


def words(x, y, text, colour=INK, size=17, weight=600):
    """Plain words, centred."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="middle" fill="{colour}" '
        f'class="words">{text}</text>'
    )


def neuron(x, y, label, colour):
    """A circle with its name."""
    return (
        f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{colour}" fill-opacity="0.09" stroke="{colour}" '
        'stroke-width="2"/>' + math(x, y + 6, label, size=18)
    )


def arrow(path, colour):
    """A line that ends in a point."""
    head = "forward" if colour == FORWARD else "backward"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" marker-end="url(#{head})"/>'


def column(x, activity, adjoint, b, reward, slope):
    """A neuron, its adjoint below, what enters each, and the slope that joins them."""
    gap = RADIUS + 6
    return [
        f'<path d="M{x} {ABOVE + gap}V{BELOW - gap}" stroke="{SOFT}" stroke-width="1.5" stroke-dasharray="2 5"/>',
        math(x + (16 if slope == "D" else 26), (ABOVE + BELOW) / 2 + 6, slope, SOFT, 16),
        neuron(x, ABOVE, activity, FORWARD),
        neuron(x, BELOW, adjoint, BACKWARD),
        math(x, ABOVE - 62, b, FORWARD, 17),
        arrow(f"M{x} {ABOVE - 54}V{ABOVE - gap}", FORWARD),
        math(x, BELOW + 72, reward, BACKWARD, 17),
        arrow(f"M{x} {BELOW + 54}V{BELOW + gap}", BACKWARD),
    ]


def steady_state(x):
    """The network itself: a loop, and the same loop run backwards."""
    loop = "M{0} {1}C{2} {3} {2} {4} {5} {6}"
    out, far, lift, spread = x + 24, x + 118, 20, 58
    return [
        words(x - 4, 112, "steady state"),
        math(x + 106, 112, "s_next = s", BACKWARD),
        math(x + 35, 142, "x = f(Wx + b)"),
        *column(x, "x", "s", "b", "∂R/∂x", "D"),
        arrow(loop.format(out, ABOVE - lift, far, ABOVE - spread, ABOVE + spread, out + 5, ABOVE + lift + 2), FORWARD),
        math(far - 6, ABOVE + 6, "W", FORWARD),
        arrow(loop.format(out, BELOW + lift, far, BELOW + spread, BELOW - spread, out + 5, BELOW - lift - 2), BACKWARD),
        math(far, BELOW + 6, "W^T", BACKWARD),
        math(x + 35, 462, "s = D (W^T s + ∂R/∂x)"),
        math(x + 35, 496, "∂R/∂W = s x^T"),
    ]


def trajectory(left, step):
    """The network unfolded in time: a chain, and the same chain run backwards."""
    gap, middle = RADIUS + 6, left + 2 * step
    parts = [
        words(middle - 68, 112, "trajectory"),
        math(middle + 52, 112, "s_next = s(t+1)", BACKWARD),
        math(middle, 142, "x(t) = f(W x(t−1) + b(t))"),
        neuron(left, ABOVE, "x(0)", FORWARD),
        math(left + 4 * step, BELOW + 6, "0", BACKWARD),
        math(middle, 462, "s(t) = D(t) (W^T s(t+1) + ∂R/∂x(t))"),
        math(middle, 496, "∂R/∂W = Σ_t s(t) x(t−1)^T"),
    ]
    for t in (1, 2, 3):
        x = left + t * step
        parts += column(x, f"x({t})", f"s({t})", f"b({t})", f"∂R/∂x({t})", f"D({t})")
        parts += [
            arrow(f"M{x - step + RADIUS + 3} {ABOVE}H{x - gap}", FORWARD),
            math(x - step / 2, ABOVE - 9, "W", FORWARD),
            arrow(f"M{x + step - (RADIUS + 3 if t < 3 else 12)} {BELOW}H{x + gap}", BACKWARD),
            math(x + step / 2 + 2, BELOW - 9, "W^T", BACKWARD),
        ]
    return parts


def picture():
    """All of it."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="7" refY="5" markerWidth="6.5" markerHeight="6.5" '
        f'orient="auto-start-reverse"><path d="M0 0.8L9 5L0 9.2L2.2 5z" fill="{colour}"/></marker>'
        for name, colour in (("forward", FORWARD), ("backward", BACKWARD))
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'role="img" aria-labelledby="title" '
            "font-family=\"'STIX Two Text','Latin Modern Roman',Cambria,Georgia,'Times New Roman',serif\">",
            '<title id="title">One equation, s = D (Wᵀ s_next + ∂R/∂x), runs backwards through a recurrent network: '
            "round its loop at a steady state, where s_next is s, and along the chain of the network unfolded in time, "
            "where s_next is s(t+1).</title>",
            "<style>.words { font-family: system-ui, 'Helvetica Neue', Arial, sans-serif }</style>",
            f"<defs>{heads}</defs>",
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="16" fill="#fff" stroke="#e2e4e7" '
            'stroke-width="1.5"/>',
            f'<path d="M350 96V{HEIGHT - 22}" stroke="#e2e4e7" stroke-width="1.5"/>',
            '<rect x="262" y="20" width="476" height="50" rx="25" fill="#fbf1ec"/>',
            words(345, 51, "one equation:", BACKWARD),
            math(570, 52, "s = D (W^T s_next + ∂R/∂x)", size=24),
            *steady_state(140),
            *trajectory(420, 128),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
