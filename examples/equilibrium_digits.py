"""A small convolutional equilibrium model that reads handwritten digits.

    python examples/equilibrium_digits.py [--epochs 25] [--seed 0]

One convolution is applied to its own output until nothing changes: x = tanh(conv(x) + u), where u comes from the image.
The convolution's norm is kept below 1, so that each image has exactly one such x. The gradient is that of the
equilibrium, not of the steps that led there, and no step is stored. It needs scikit-learn and rich, of the extra `app`.
"""

import argparse
import time

import torch
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.parametrize import register_parametrization

import retrograde as rg

CHANNELS = 24


class Cell(nn.Module):
    """(x, u) -> tanh(conv(x) + u): one layer, of which the model is infinitely many."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        register_parametrization(self.conv, "weight", rg.SpectralBall(0.9))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The next x, (samples, channels, 8, 8)."""
        return torch.tanh(self.conv(x) + u)


class Reader(nn.Module):
    """Image -> u -> equilibrium -> one number a class."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.equilibrium = rg.Equilibrium(Cell())
        self.readout = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * CHANNELS, 10))

    def forward(self, images: Tensor, solver: rg.FixedPoint | None = None) -> tuple[Tensor, rg.SteadyState]:
        """The classes' numbers, and the state that they are read from. In training, three digits of it are enough."""
        state = self.equilibrium.steady_state(self.encoder(images), solver=solver, adjoint=solver)
        return self.readout(state.x), state


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and classes to train on, 4 in 5, and to test on."""
    images, classes = load_digits(return_X_y=True)
    parts = train_test_split(images / 8 - 1, classes, test_size=0.2, stratify=classes, random_state=0)
    train, test = (torch.tensor(part).float().view(-1, 1, 8, 8) for part in parts[:2])
    return train, torch.tensor(parts[2]), test, torch.tensor(parts[3])


def moved(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel each way, at random, for there to be more to learn from."""
    rows, columns = torch.randint(3, (2, len(images), 1)) + torch.arange(8)
    wide = pad(images, (1, 1, 1, 1), value=-1.0)
    return wide[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]


def main(arguments: list[str] | None = None) -> None:
    """Train, then test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    images, classes, test_images, test_classes = digits()
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    rough = rg.FixedPoint(rtol=1e-3)
    start = time.perf_counter()
    with Progress() as progress:
        task = progress.add_task("training", total=options.epochs * -(-len(images) // 64))
        for epoch in range(options.epochs):
            for rows in torch.randperm(len(images)).split(64):
                scores, state = model(moved(images[rows]), rough)
                loss = cross_entropy(scores, classes[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.update(
                    task,
                    advance=1,
                    description=f"epoch {epoch + 1}, loss {loss.item():.3f}, {int(state.steps.max())} steps forward, "
                    f"{int(state.receipt.steps.max())} back",
                )
            schedule.step()
    seconds = time.perf_counter() - start

    scores, state = model(test_images)
    accuracy = (scores.argmax(-1) == test_classes).double().mean()
    cross_entropy(scores, test_classes).backward()
    with torch.no_grad():
        size = rg.jacobian_penalty(model.equilibrium, state.x, model.encoder(test_images)).mean()
    print(f"trained for {options.epochs} epochs in {seconds:.0f} s")
    print(f"test accuracy {accuracy:.1%} on {len(test_images)} images")
    print(
        f"states: {int(state.converged.sum())} of {len(test_images)} converged in up to {int(state.steps.max())} steps"
    )
    print(f"residual at most {float(state.residual.max()):.1e}, tolerance {state.tolerance:.1e}")
    print(f"gradient: {state.receipt}")
    print(f"|J|² / n about {size:.2f}")


if __name__ == "__main__":
    main()
