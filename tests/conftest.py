import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is computed here is a CPU's: the same bytes everywhere, in processes that may fork.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Evaluations are kept in a folder of the test run's own, which child processes find too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Torch's threads and forks do not go together: none for products, and none for backward passes.

    Those are started by the first backward pass that finds a GPU, which under CUDA builds can be one of fake tensors
    (DTensor makes some); a first pass before all else finds none.
    """
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).sum().backward()
