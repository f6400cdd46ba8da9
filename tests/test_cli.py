"""The command line: what it prints, which exit code, and what it leaves on the disk."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

import retrograde as rg
from retrograde.cli import check as check_module
from retrograde.cli.app import app
from retrograde.cli.train import columns
from retrograde.testing import Disagreement
from retrograde.training import Digits, Flipflop, Training

TINY = {
    "digits": ["--neurons", "10", "--batch", "512", "--epochs", "2"],
    "flipflop": ["--neurons", "6", "--steps", "6", "--batch", "4", "--epochs", "2"],
    "attractors": ["--neurons", "16", "--count", "2", "--batch", "4", "--epochs", "2"],
}


@pytest.fixture(autouse=True)
def _threads():
    """The commands choose a number of threads; the tests' own stays."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.exit_code, result.output)
    assert (code == 0 or "Traceback" not in result.output) or "--debug" in args
    return result.output


def text(output):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())


@pytest.fixture
def run(tmp_path):
    call("train", "flipflop", *TINY["flipflop"], "--out", tmp_path / "run")
    return tmp_path / "run"


# --- train


@pytest.mark.parametrize("task", TINY)
def test_training_leaves_a_complete_run_folder(task, tmp_path):
    folder = tmp_path / "a" / "run"
    output = call("train", task, *TINY[task], "--seed", 3, "--out", folder)
    assert "test accuracy" in output and "report.html" in output
    assert {path.name for path in folder.iterdir()} == {"config.toml", "metrics.csv", "checkpoint.pt", "report.html"}
    assert "seed = 3\n" in (folder / "config.toml").read_text()
    assert list(pd.read_csv(folder / "metrics.csv")["epoch"]) == [1, 2]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html") and task in page


def test_a_run_without_a_name_goes_to_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # within the same second, too
        call("train", "flipflop", *TINY["flipflop"][:-1], 1)
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(folders) == 2 and all(re.fullmatch(r"flipflop-\d{8}-\d{6}(-2)?", name) for name in folders)


def test_the_config_of_a_run_repeats_it(run, tmp_path):
    call("train", "flipflop", "--config", run / "config.toml", "--out", tmp_path / "again")
    one, two = (torch.load(path / "checkpoint.pt", weights_only=True)["model"] for path in (run, tmp_path / "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_is_the_run_never_stopped(run, tmp_path):
    call("train", "flipflop", "--resume", run, "--epochs", 4)
    call("train", "flipflop", *TINY["flipflop"], "--epochs", 4, "--out", tmp_path / "whole")
    assert "epochs = 4\n" in (run / "config.toml").read_text()
    one, two = (torch.load(path / "checkpoint.pt", weights_only=True)["model"] for path in (run, tmp_path / "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (pd.read_csv(path / "metrics.csv").drop(columns="seconds") for path in (run, tmp_path / "whole"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--epochs", "0"], "epochs: expected an integer of at least 1, got 0"),
        (["--rate", "2"], "rate: expected a number between 0 and 1, got 2.0"),
        (["--epochs", "many"], "Invalid value for '--epochs'"),
        (["--speed", "2"], "No such option: --speed"),
        (["--config", "nowhere.toml"], "nowhere.toml: No such file or directory"),
        (["--config", "bad.toml"], "bad.toml: epochs: expected an integer, got 'x'"),
        (["--config", "odd.toml"], "odd.toml: epoch: no such option; expected one of"),
        (["--config", "broken.toml"], "broken.toml: not TOML"),
        (["--resume", "."], "not a run folder"),
        (["--out", "bad.toml"], "bad.toml: File exists"),
        (["--out", "."], "exists and is not empty"),
    ],
)
def test_bad_input_is_said_and_exits_2(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {"bad": "epochs = 'x'", "odd": "epoch = 1", "broken": "epochs ="}.items():
        (tmp_path / f"{name}.toml").write_text(content)
    assert message in text(call("train", "digits", *args, code=2))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["flipflop", "--rate", "0.1"], "but for --epochs; got --rate"),
        (["flipflop", "--config", "x.toml"], "but for --epochs; got --config"),
        (["flipflop", "--epochs", "1"], "has 2 already, got 1"),
        (["digits"], "is a run of flipflop, not of digits"),
    ],
)
def test_what_cannot_be_resumed_is_said_and_changes_nothing(run, args, message):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert message in text(call("train", *args, "--resume", run, code=2))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_missing_patterns_leave_no_folder(tmp_path):
    output = call("train", "attractors", "--patterns", tmp_path / "p.csv", "--out", tmp_path / "run", code=2)
    assert "p.csv: No such file or directory" in text(output)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_exits_2_and_says_how_to_go_on(tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > 5:  # config, checkpoint and metrics at the start, then those of the first epoch
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    folder = tmp_path / "run"
    output = text(call("train", "flipflop", *TINY["flipflop"], "--out", folder, code=2))
    assert "checkpoint.pt: No space left on device" in output
    assert f"--resume {folder}" in output
    monkeypatch.undo()
    call("train", "flipflop", "--resume", folder)
    assert list(pd.read_csv(folder / "metrics.csv")["epoch"]) == [1, 2]


def test_numbers_that_fail_exit_1_and_keep_the_run(tmp_path, monkeypatch):
    epoch = Training.epoch

    def failing(self):
        yield from epoch(self)
        if len(self.metrics) == 2:
            raise rg.ConvergenceError("steady state: 3 of 5 samples failed", None)

    monkeypatch.setattr(Training, "epoch", failing)
    output = text(call("train", "flipflop", *TINY["flipflop"], "--out", tmp_path / "run", code=1))
    assert "steady state: 3 of 5 samples failed" in output
    assert list(pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"]) == [1]
    assert (tmp_path / "run" / "report.html").exists()


def test_ctrl_c_keeps_what_was_learned(tmp_path, monkeypatch):
    batches = Flipflop.batches

    def interrupted(self, generator):
        for number, batch in enumerate(batches(self, generator)):
            if number == 3 and generator.get_state().ne(first[0]).any():
                raise KeyboardInterrupt
            yield batch

    def one_epoch_first(self, generator):
        monkeypatch.setattr(Flipflop, "batches", interrupted)
        first.append(generator.get_state())
        return batches(self, generator)

    first = []
    monkeypatch.setattr(Flipflop, "batches", one_epoch_first)
    folder = tmp_path / "run"
    output = text(call("train", "flipflop", *TINY["flipflop"], "--out", folder, code=130))
    assert f"retrograde train flipflop --resume {folder}" in output
    assert list(pd.read_csv(folder / "metrics.csv")["epoch"]) == [1]
    assert (folder / "report.html").exists()
    monkeypatch.undo()

    call("train", "flipflop", "--resume", folder)
    call("train", "flipflop", *TINY["flipflop"], "--out", tmp_path / "whole")
    one, two = (torch.load(path / "checkpoint.pt", weights_only=True)["model"] for path in (folder, tmp_path / "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def listens():
    """A process that is started here listens to SIGINT, though the shell that started the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_a_real_sigint_exits_130_with_the_folder_complete(tmp_path, listens):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "retrograde.cli.main", "train", "flipflop", "--neurons", "8", "--epochs", "100000"]
    process = subprocess.Popen([*command, "--out", folder], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        metrics = folder / "metrics.csv"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "--resume" in errors and "Traceback" not in errors
    assert {path.name for path in folder.iterdir()} == {"config.toml", "metrics.csv", "checkpoint.pt", "report.html"}


@pytest.mark.parametrize("where", ["import", "call"])
def test_an_interrupt_before_the_command_begins_is_one_line(where):
    raising = {
        "import": "class Stop:\n def find_spec(self, name, *_):\n  if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n",
        "call": "import typer\ndef stop(*_): raise KeyboardInterrupt\ntyper.Typer.__call__ = stop\n",
    }
    code = f"import sys\n{raising[where]}from retrograde.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "interrupted\n", done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
@pytest.mark.parametrize("how", ["module", "script"])
def test_an_interrupt_while_torch_is_imported_is_one_line(tmp_path, how, listens):
    script = tmp_path / "retrograde"
    script.write_text(
        "import sys\nfrom retrograde.cli.main import main\nif __name__ == '__main__':\n sys.exit(main())\n"
    )
    run = {"module": ["-m", "retrograde"], "script": [str(script)]}[how]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *run, "check"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert any("torch._C" in line for line in process.stderr)  # of which there are many more to come
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    said = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 130 and said == ["interrupted"], errors


def test_a_program_that_imports_the_package_has_its_interrupts_as_they_were(tmp_path, listens):
    script = tmp_path / "study.py"
    script.write_text(
        "import signal, retrograde\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    assert subprocess.run([sys.executable, str(script)]).returncode == 0


def test_training_that_ends_with_states_that_do_not_converge_exits_1(tmp_path, monkeypatch):
    settle = Digits.health
    monkeypatch.setattr(
        Digits, "health", lambda self, state: ({**settle(self, state)[0], "converged": 0.5}, settle(self, state)[1])
    )
    output = text(call("train", "digits", *TINY["digits"], "--out", tmp_path / "run", code=1))
    assert "50.00%" in output and "Not every steady state converged." in output
    assert (tmp_path / "run" / "report.html").exists()


def test_the_progress_bar_fits_a_terminal_of_80_columns():
    console = Console(width=80, file=io.StringIO())
    with Progress(*columns(), console=console) as progress:
        progress.add_task(
            "digits", total=100, completed=100, reward="-12.3456", accuracy="100.0%", test="100.0%", steps="1000"
        )
    bar = console.file.getvalue().strip()
    assert len(bar) <= 80 and "…" not in bar and "━" in bar
    assert bar.startswith("100/100") and "steps 1000" in bar and bar.endswith("-:--:--")


# --- evaluate


def test_evaluate_prints_accuracy_and_health(tmp_path):
    call("train", "digits", *TINY["digits"], "--out", tmp_path / "run")
    output = call("evaluate", tmp_path / "run")
    accuracy = pd.read_csv(tmp_path / "run" / "metrics.csv")["test_accuracy"].iloc[-1]
    assert f"{accuracy:.2%}" in output
    for name in ("converged", "stable", "worst residual", "largest |eigenvalue| of DW"):
        assert name in output


def test_evaluate_exits_1_where_states_do_not_converge(tmp_path, monkeypatch):
    call("train", "digits", *TINY["digits"], "--out", tmp_path / "run")
    settle = Digits.health
    monkeypatch.setattr(
        Digits, "health", lambda self, state: ({**settle(self, state)[0], "converged": 0.5}, settle(self, state)[1])
    )
    assert "50.00%" in call("evaluate", tmp_path / "run", code=1)


def test_evaluate_without_a_run_exits_2(tmp_path):
    assert "not a run folder" in text(call("evaluate", tmp_path / "nothing", code=2))


def test_evaluate_of_a_broken_checkpoint_exits_2_and_debug_shows_the_traceback(run, capfd):
    (run / "checkpoint.pt").write_bytes(b"nonsense")
    assert "not a checkpoint of this run" in text(call("evaluate", run, code=2))
    assert "Traceback" not in capfd.readouterr().err
    assert "Traceback" in call("--debug", "evaluate", run, code=2) + capfd.readouterr().err


# --- check


def disagreements(worst):
    yield Disagreement("Dense", "tanh", "steady state", 1e-15, 2e-15, 3e-12)
    yield Disagreement("Dense", "tanh", "trajectory, leak", 1e-15, worst, 3e-12)


@pytest.mark.parametrize(("worst", "code"), [(9e-11, 0), (1.1e-10, 1), (float("nan"), 1)])
def test_check_exits_1_where_a_route_disagrees(monkeypatch, worst, code):
    monkeypatch.setattr(check_module, "gradient_disagreements", lambda: disagreements(worst))
    output = text(call("check", code=code))
    assert "Dense" in output and "trajectory, leak" in output and "dense solve" in output
    assert ("do not agree" in output) == (code == 1)


# --- the command itself


def test_version_and_help():
    assert rg.__version__ in call("--version")
    overview = call("--help")
    for command in ("train", "evaluate", "check"):
        assert command in overview
    for task in TINY:
        help = text(call("train", task, "--help"))
        assert f"retrograde train {task} --epochs 5" in help
        assert "--seed" in help and "--resume" in help and "--config" in help


def test_an_unknown_command_exits_2():
    assert "No such command" in text(call("trian", code=2))


def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from retrograde.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'retrograde[app]'" in done.stderr and "Traceback" not in done.stderr
