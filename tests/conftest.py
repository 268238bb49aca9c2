"""What all tests share: reproducible numbers, a small model's configuration, a JupyterLab in a browser."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from jupyterlab_browser import JupyterLab, find_chromium, open_jupyterlab
from mixtral_edu import MixtralConfig
from mixtral_edu.api import models

REPOSITORY = Path(__file__).resolve().parents[1]

# A shared machine makes deadlines fail at random; and the same examples each time, so that a failure is there to stay.
hypothesis.settings.register_profile("mixtral_edu", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("mixtral_edu")


# Set by `dev.py test --processors`: models are built without the engine, and must give the same.
TEXTBOOK = bool(os.environ.get("MIXTRAL_EDU_TEXTBOOK"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if TEXTBOOK and is_about_the_engine(item):
        pytest.skip("is about the engine")


def is_about_the_engine(item: pytest.Item) -> bool:
    """Whether a test is marked so, lies in its room, or has a form among its parameters that only the engine has."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    forms = any(value in ("grouped", "flash_attention_2") for value in values if isinstance(value, str))
    return forms or item.get_closest_marker("engine") is not None or item.path.parent.name == "fast"


@pytest.fixture(autouse=True, scope="session")
def textbook() -> Iterator[None]:
    """Build models of the textbook's parts alone, if that is to be tested."""
    with pytest.MonkeyPatch.context() as patch:
        if TEXTBOOK:
            patch.setattr(models, "install", lambda model: model)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., MixtralConfig]:
    """A function that returns the configuration of a small model; keyword arguments replace its fields.

    No two sizes but Hkv and K agree, so a swapped axis shows: V=101, D=44, F=37, L=3, Hq=4, Hkv=2, Dh=14 (Hq*Dh=56 is
    not D), E=5, K=2, W=7.
    """

    def make(**changes) -> MixtralConfig:
        sizes = {
            "vocab_size": 101, "hidden_size": 44, "intermediate_size": 37, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14, "num_local_experts": 5,
            "num_experts_per_tok": 2, "sliding_window": 7, "max_position_embeddings": 128,
        }
        return MixtralConfig(**sizes | changes)

    return make


@pytest.fixture(scope="session")
def to_transformers() -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """A function that renames published tensors (weights or gradients) to what a transformers 5 model holds.

    There the experts of a layer are stacked, and w1 and w3 are one matrix.
    """

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed, experts = {}, {}
        for name, tensor in tensors.items():
            if match := re.fullmatch(r"(.*)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight", name):
                layer, expert_idx, matrix = match.groups()
                experts.setdefault(layer, {})[int(expert_idx), matrix] = tensor
            else:
                renamed[name.replace("block_sparse_moe", "mlp")] = tensor
        for layer, parts in experts.items():
            indices = range(len(parts) // 3)
            gate_up = [torch.cat((parts[e, "w1"], parts[e, "w3"])) for e in indices]
            renamed[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack(gate_up)
            renamed[f"{layer}.mlp.experts.down_proj"] = torch.stack([parts[e, "w2"] for e in indices])
        return renamed

    return rename


@pytest.fixture(scope="session")
def transformers_twin(to_transformers) -> Callable[[torch.nn.Module], torch.nn.Module]:
    """A function that builds transformers' model of the same class name with the same weights, in the same mode.

    Its attention and experts are the plain ("eager") ones, which return attention weights and work for odd sizes.
    """
    import transformers

    def twin(model: torch.nn.Module) -> torch.nn.Module:
        config = transformers.MixtralConfig(**model.config.to_dict(), attn_implementation="eager",
                                            experts_implementation="eager")
        twin = getattr(transformers, type(model).__name__)(config)
        twin.load_state_dict(to_transformers(model.state_dict()))
        return twin.train(model.training)

    return twin


@pytest.fixture(scope="module")
def jupyterlab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterLab]:
    """A real JupyterLab on a copy of `notebooks/`, with a headless Chromium to work in it.

    Of a module's scope: while playwright runs, the thread's event loop is busy, and other tests may need it.
    """
    chromium = find_chromium()
    if chromium is None:
        stop = pytest.fail if request.config.getoption("--require-browser") else pytest.skip
        stop("no Chromium or Chrome found; on Debian or Ubuntu: sudo apt install chromium")
    with open_jupyterlab(REPOSITORY / "notebooks", tmp_path_factory.mktemp("jupyterlab"), chromium) as lab:
        yield lab
