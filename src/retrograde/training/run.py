"""The run folder: config.toml, metrics.csv, checkpoint.pt, report.html. A write that fails leaves what was there."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

import retrograde as rg
from retrograde.training.config import Config, InputError, read_config, read_toml
from retrograde.training.loop import Epoch, Training
from retrograde.training.tasks import TASKS


class Run:
    """A run folder and its configuration. Make a new one with `create`, find an old one with `open`."""

    def __init__(self, folder: Path, config: Config):
        self.folder = folder
        self.config = config

    @classmethod
    def create(cls, folder: Path, config: Config) -> Self:
        """A new folder with the configuration, and the files that it names, in it.

        Raises:
            InputError: the folder exists and is not empty.
            OSError: it cannot be written.
        """
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder}: exists and is not empty; resume it, or write elsewhere with --out")
        # Files that the configuration names are copied, so that the folder is enough to repeat the run.
        named = {key: value for key, value in config.as_dict().items() if isinstance(value, Path)}
        contents = {folder / f"{key}{path.suffix}": path.read_bytes() for key, path in named.items()}
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in contents.items():
            write_whole(path, data)
        own: dict[str, Any] = dict(zip(named, contents, strict=True))
        run = cls(folder, replace(config, **own))
        run.write_config()
        return run

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The run in this folder.

        Raises:
            InputError: there is none, or its config.toml is not right.
        """
        path = folder / "config.toml"
        if not path.is_file():
            raise InputError(f"{folder}: not a run folder, as there is no config.toml in it")
        task = read_toml(path).get("task")
        if not isinstance(task, str) or task not in TASKS:
            raise InputError(f"{path}: task: expected one of {', '.join(TASKS)}, got {task!r}")
        return cls(folder, read_config(TASKS[task].config_class, path))

    def training(self) -> Training:
        """The training as the checkpoint has it, or a fresh one where there is none yet.

        Raises:
            InputError: the checkpoint cannot be read, or is not of this configuration.
        """
        training = Training(TASKS[self.config.task](self.config))
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return training
        try:
            training.load(torch.load(path, weights_only=True))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except (
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            EOFError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            reason = next(iter(str(error).splitlines()), "it ends too soon")
            raise InputError(f"{path}: not a checkpoint of this run: {reason}") from error
        return training

    def save(self, training: Training) -> None:
        """Write checkpoint.pt, then metrics.csv, each as a whole.

        Raises:
            OSError: it cannot be written; what was there is unharmed.
        """
        buffer = io.BytesIO()
        torch.save(training.state(), buffer)
        write_whole(self.folder / "checkpoint.pt", buffer.getvalue())
        self.write_metrics(training)

    def write_metrics(self, training: Training) -> None:
        """Write metrics.csv as a whole. The checkpoint holds the metrics too, so this can always be done again.

        Raises:
            OSError: it cannot be written.
        """
        write_whole(self.folder / "metrics.csv", metrics_table(training).to_csv(index=False).encode())

    def lasting(self, epochs: int) -> Self:
        """The same run, but with this many epochs; `write_config` makes it so in the folder.

        Raises:
            InputError: not a number of epochs.
        """
        return type(self)(self.folder, replace(self.config, epochs=epochs))

    def write_config(self) -> None:
        """Write config.toml as a whole. It names the folder's own files without the folder, which may be moved.

        Raises:
            OSError: it cannot be written.
        """
        own: dict[str, Any] = {
            key: Path(value.name) for key, value in self.config.as_dict().items() if isinstance(value, Path)
        }
        head = f"# retrograde {rg.__version__}. To repeat: retrograde train {self.config.task} --config config.toml\n"
        write_whole(self.folder / "config.toml", (head + replace(self.config, **own).to_toml()).encode())

    def write_report(self, html: str) -> None:
        """Write report.html as a whole.

        Raises:
            OSError: it cannot be written.
        """
        write_whole(self.folder / "report.html", html.encode())


def metrics_table(training: Training) -> pd.DataFrame:
    """A row an epoch."""
    return pd.DataFrame([vars(row) for row in training.metrics], columns=list(Epoch.__dataclass_fields__))


def write_whole(path: Path, data: bytes) -> None:
    """Write the file, or leave what was there: a crash or a full disk at any moment never leaves half of it.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    temporary: Any = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as temporary:
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
        os.chmod(temporary.name, 0o666 & ~_umask())  # a temporary file is its owner's alone
        os.replace(temporary.name, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            Path(temporary.name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """So that the new name outlives a crash too; only POSIX lets a folder be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
