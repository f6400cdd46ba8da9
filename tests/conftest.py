import importlib.util
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, max_examples=30, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _same_for_every_test():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # everything here is small, and on a busy machine threads wait for one another


@pytest.fixture(scope="session")
def lecture():
    """The lecture as plain NumPy: the oracle that shares no code with the library."""
    path = Path(__file__).parents[1] / "examples" / "lecture.py"
    spec = importlib.util.spec_from_file_location("lecture", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lecture"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
