"""Configurations, tasks, the loop and the run folder."""

import dataclasses
import errno
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import retrograde as rg
from retrograde.spectrum import eigenvalues
from retrograde.training import (
    TASKS,
    AttractorsConfig,
    Config,
    DigitsConfig,
    FlipflopConfig,
    InputError,
    Run,
    Training,
    read_config,
)
from retrograde.training.run import write_whole
from retrograde.training.tasks.attractors import read_patterns
from retrograde.training.tasks.digits import shifted
from retrograde.training.tasks.flipflop import share_right, trials

TINY = {
    "digits": DigitsConfig(epochs=2, neurons=12, batch=512),
    "flipflop": FlipflopConfig(epochs=2, neurons=8, steps=6, batch=4),
    "attractors": AttractorsConfig(epochs=2, neurons=16, count=2, batch=4, steps=3),
}


def go(training: Training, epochs: int) -> Training:
    while len(training.metrics) < epochs:
        for _ in training.epoch():
            pass
    return training


def fresh(config: Config) -> Training:
    return Training(TASKS[config.task](config))


# --- configurations


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "epoch: no such option; expected one of seed, epochs"),
        ({"epochs": 0}, "epochs: expected an integer of at least 1, got 0"),
        ({"epochs": 2.5}, "epochs: expected an integer, got 2.5"),
        ({"epochs": True}, "epochs: expected an integer, got True"),
        ({"rate": "fast"}, "rate: expected a number, got 'fast'"),
        ({"rate": float("nan")}, "rate: expected a number between 0 and 1, got nan"),
        ({"shift": 1}, "shift: expected true or false, got 1"),
        ({"task": "flipflop"}, "task: expected \"digits\", got 'flipflop'"),
    ],
)
def test_a_wrong_option_says_which_what_was_expected_and_what_came(values, message):
    with pytest.raises(InputError) as error:
        DigitsConfig.from_mapping(values)
    assert str(error.value).startswith(message)


def test_a_config_comes_back_from_toml_as_it_was(tmp_path):
    config = AttractorsConfig(seed=3, rate=1e-5, patterns=tmp_path / 'odd "name"\\ü.csv')
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert read_config(AttractorsConfig, path) == config


def test_flags_win_over_the_file_and_its_paths_are_its_folders(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('epochs = 7\nseed = 5\npatterns = "p.csv"\n')
    config = read_config(AttractorsConfig, path, epochs=9)
    assert (config.epochs, config.seed, config.patterns) == (9, 5, tmp_path / "p.csv")
    assert read_config(AttractorsConfig, path, patterns=tmp_path / "q.csv").patterns == tmp_path / "q.csv"


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", b"epochs = 1\nepochs = 2"])
def test_malformed_toml_names_the_file(tmp_path, content):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.toml: not TOML"):
        read_config(DigitsConfig, path)


# --- tasks


def test_digits_are_split_once_and_for_all():
    one, two = (TASKS["digits"](DigitsConfig(seed=seed, neurons=3)) for seed in (0, 1))
    assert torch.equal(one.test_images, two.test_images)
    assert not torch.equal(one.net.W.weight, two.net.W.weight)
    assert (len(one.train_images), len(one.test_images)) == (1437, 360)
    assert one.test_classes.bincount().min() >= 34  # every class is in it in its share


def test_shifted_moves_every_image_by_at_most_one_pixel():
    image = torch.full((9, 6, 6), -1.0)
    image[:, 2, 3] = 1.0
    moved = shifted(image.repeat(20, 1, 1), torch.Generator().manual_seed(0))
    assert (moved.flatten(1).sum(1) == image[0].sum()).all()
    places = {tuple(place) for place in (moved == 1).nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (2, 3, 4)}


def test_flipflop_bits_are_the_signs_of_the_latest_pulses():
    pulses, bits = trials(4, 30, 0.3, torch.Generator().manual_seed(0))
    held = torch.zeros_like(bits[0])
    for t in range(30):
        held = torch.where(pulses[t] != 0, pulses[t], held)
        assert torch.equal(bits[t], held)
    assert 0 < (pulses == 0).float().mean() < 1


def test_share_right_counts_single_bits():
    bits = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert share_right(torch.tensor([[0.1, -3.0], [-0.1, 2.0]]), bits) == 0.75


def test_corruption_flips_that_share_of_the_entries():
    task = TASKS["attractors"](AttractorsConfig(neurons=400, count=3))
    rows = torch.arange(3).repeat(50)
    cues = task.corrupted(rows, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(cues.abs(), task.patterns[rows].abs())
    assert float((cues != task.patterns[rows]).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_attractors_are_stable_steady_states_at_the_patterns():
    training = go(fresh(AttractorsConfig(neurons=40, count=3, epochs=12)), 12)
    task = training.task
    found = task.examine()
    assert found.accuracy > 0.9
    assert found.health["converged"] == found.health["stable"] == 1
    assert found.health["largest |eigenvalue| of DW"] < 1
    state = task.settle(task.patterns)  # from each pattern, the dynamics stay at it
    assert (state.x - task.patterns).abs().max() < 0.1
    recall = found.recall.set_index("corruption")["recall"]
    assert recall[0.0] == 1 and recall[0.5] < 0.5  # half of the signs flipped say nothing of the pattern


def test_a_state_that_does_not_settle_is_not_recalled():
    task = TASKS["attractors"](AttractorsConfig(neurons=4, count=1))
    task.patterns = torch.full((1, 4), 0.001)
    with torch.no_grad():
        task.net.W.weight.copy_(-3.0 * torch.eye(4))  # 0 is unstable, and x goes to and fro
    assert task.examine().health["converged"] < 1
    assert task.held_out_accuracy() == 0


def test_patterns_from_a_file_are_taught(tmp_path):
    path = tmp_path / "patterns.csv"
    path.write_text("0.5, -0.5, 0.25, 0.1\n-0.5, 0.5, 0.1, 0.9\n")
    task = TASKS["attractors"](AttractorsConfig(patterns=path))
    assert torch.allclose(task.patterns[1], torch.tensor([-0.5, 0.5, 0.1, 0.9]))
    assert task.net.W.shape == (4, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0.5,1.5\n", "row 1, column 2: expected a number between -1 and 1"),
        ("0.5,0.5\n0.1,cat\n", "row 2, column 2.*got cat"),
        ("0.5,0.5\n0.1\n", "row 2, column 2"),
        ("", "expected a table of numbers"),
        ("0.1\n0.1,0.2,0.3\n", "expected a table of numbers"),
    ],
)
def test_a_wrong_pattern_file_says_where(tmp_path, content, message):
    path = tmp_path / "p.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_patterns(path)


@pytest.mark.parametrize("task", TINY)
def test_an_examination_has_the_shapes_that_it_promises(task):
    training = fresh(TINY[task])
    found = training.task.examine()
    n = TINY[task].neurons
    assert found.weights.shape == (n, n)
    assert found.eigenvalues.shape[1] == n and np.iscomplexobj(found.eigenvalues)
    assert set(found.health) == {"converged", "stable", "worst residual", "largest |eigenvalue| of DW"}
    assert found.accuracy == training.task.held_out_accuracy()
    assert all(example.activity.shape[-1] == n for example in found.examples) and found.examples
    if task == "digits":
        assert found.confusion.shape == (10, 10)
        right = np.trace(found.confusion.to_numpy()) / found.confusion.to_numpy().sum()
        assert right == pytest.approx(found.accuracy)


def test_eigenvalues_are_those_of_DW():
    W, D = torch.randn(5, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    found = eigenvalues(rg.Dense(W), D)
    assert found.shape == (3, 5)
    for d, values in zip(D, found, strict=True):
        exact = np.linalg.eigvals(torch.diag(d).numpy() @ W.numpy())
        assert np.abs(np.sort_complex(values.numpy()) - np.sort_complex(exact)).max() < 1e-12
    with pytest.raises(ValueError, match="D: expected shape"):
        eigenvalues(W, D[:, :4])


# --- the loop


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (DigitsConfig(epochs=8, neurons=60), 0.9),
        (FlipflopConfig(epochs=4, neurons=32, steps=20, batch=32, rate=0.01), 0.97),
    ],
)
def test_the_reward_climbs_and_the_task_is_learned(config, least):
    training = go(fresh(config), config.epochs)
    rewards = [row.reward for row in training.metrics]
    assert rewards[-1] > rewards[0]
    assert training.metrics[-1].test_accuracy > least


@pytest.mark.parametrize("task", TINY)
def test_the_first_step_is_up_the_gradient_of_the_reward(task):
    config = dataclasses.replace(TINY[task], rate=1e-4)
    training = fresh(config)
    batch = next(training.task.batches(torch.Generator().manual_seed(5)))
    before = training.task.outcome(batch)
    training._climb(before)
    assert training.task.outcome(batch).reward > before.reward


@pytest.mark.parametrize("task", TINY)
def test_a_long_gradient_is_shortened_to_1(task, monkeypatch):
    training = fresh(TINY[task])
    outcome = training.task.outcome

    def steep(batch):
        found = outcome(batch)
        return dataclasses.replace(found, reward=1e6 * found.reward)

    monkeypatch.setattr(training.task, "outcome", steep)
    next(training.epoch())
    gradient = torch.cat([p.grad.flatten() for p in training.task.model.parameters()])
    assert float(gradient.norm()) == pytest.approx(1, abs=1e-5)


def test_a_reward_that_is_not_finite_is_a_failure_of_the_numbers():
    training = fresh(TINY["flipflop"])
    with torch.no_grad():
        training.task.model.readout.fill_(1e30)
    with pytest.raises(rg.ConvergenceError, match="reward became -inf"):
        go(training, 1)


def bits(training: Training) -> list[tuple[str, torch.Tensor]]:
    return list(training.task.model.state_dict().items())


def without_times(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.folder / "metrics.csv").drop(columns="seconds")


@pytest.mark.parametrize("task", TINY)
def test_a_resumed_run_has_the_same_bits_as_one_never_stopped(task, tmp_path):
    config = dataclasses.replace(TINY[task], epochs=4)
    whole = Run.create(tmp_path / "whole", config)
    reference = go(whole.training(), 4)
    whole.save(reference)

    part = Run.create(tmp_path / "part", dataclasses.replace(config, epochs=2))
    part.save(go(part.training(), 2))
    resumed = Run.open(tmp_path / "part").lasting(4)
    training = resumed.training()
    assert len(training.metrics) == 2
    go(training, 4)
    resumed.save(training)

    for (name, a), (_, b) in zip(bits(reference), bits(training), strict=True):
        assert torch.equal(a, b), name
    pd.testing.assert_frame_equal(without_times(whole), without_times(resumed), check_exact=True)
    assert fresh(config).metrics == []
    other = go(fresh(dataclasses.replace(config, seed=1)), 4)
    assert not torch.equal(bits(other)[0][1], bits(reference)[0][1])


# --- the run folder


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "run", TINY["flipflop"])
    run.save(go(run.training(), 1))
    return run


def test_the_checkpoint_holds_data_alone_and_the_config_repeats_the_run(run):
    state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert {"model", "optimizer", "generator", "metrics"} <= set(state)
    again = go(fresh(read_config(FlipflopConfig, run.folder / "config.toml")), 1)
    for name, tensor in bits(again):
        assert torch.equal(tensor, state["model"][name])


def test_a_checkpoint_that_holds_code_is_refused_and_does_not_run(run):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(run.folder / "ran"),)

    torch.save({"model": Evil()}, run.folder / "checkpoint.pt", pickle_module=pickle)
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of this run"):
        run.training()
    assert not (run.folder / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04"])
def test_a_broken_checkpoint_is_named(run, content):
    (run.folder / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a checkpoint of this run"):
        run.training()


def test_a_checkpoint_of_another_configuration_is_refused(run):
    path = run.folder / "config.toml"
    path.write_text(path.read_text().replace("neurons = 8", "neurons = 9"))
    with pytest.raises(InputError, match="not a checkpoint of this run"):
        Run.open(run.folder).training()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(run, monkeypatch, fails):
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    training = go(run.training(), 2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match=r"No space left on device.*checkpoint\.pt"):
        run.save(training)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    assert len(run.training().metrics) == 1


def test_an_interrupted_write_leaves_no_litter(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_the_patterns_are_copied_so_that_the_folder_is_enough(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("0.5,-0.5\n")
    run = Run.create(tmp_path / "run", AttractorsConfig(patterns=path, batch=2))
    run.save(fresh(run.config))
    path.unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = Run.open(tmp_path / "moved")
    assert torch.allclose(moved.training().task.patterns, torch.tensor([[0.5, -0.5]]))
    moved.lasting(3).write_config()
    assert Run.open(tmp_path / "moved").training().task.config.epochs == 3


def test_a_folder_that_holds_something_is_not_written_over(run):
    with pytest.raises(InputError, match="exists and is not empty"):
        Run.create(run.folder, TINY["flipflop"])


def test_what_is_no_run_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        Run.open(tmp_path)
    (tmp_path / "config.toml").write_text('task = "chess"')
    with pytest.raises(InputError, match="task: expected one of digits, flipflop, attractors, got 'chess'"):
        Run.open(tmp_path)
