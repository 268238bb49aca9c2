"""The reader's own Mixtral: right parts change nothing, wrong ones show what they cost, and no kept part is lost."""

import importlib
import itertools
import linecache
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import exercise_answers
from mixtral_edu import MixtralForCausalLM, RollingKVCache, rope, sampling
from mixtral_edu.exercises import Exercise, check, exercises
from mixtral_edu.exercises.own import (
    PARTS,
    PartFailed,
    compare,
    files,
    forget,
    keep,
    kept,
    my_mixtral,
    names_kept,
    try_out,
)
from mixtral_edu.exercises.own.adapters import put_in
from mixtral_edu.exercises.own.measuring import Measured, measure_own, package
from refresh_notebooks import NOTEBOOKS, execute, read
from tolerances import assert_forward, chain_error

for path in Path(exercise_answers.__file__).parent.glob("exercises_*.py"):
    importlib.import_module(path.stem)

REFERENCES = {name: exercises()[name].reference for name in PARTS}
# Of the planted mistakes one each, and what it changes.
SHOWING = {
    "rms_norm": "divided_by_the_length", "apply_rotary": "neighbours", "masked_softmax": "mask_forgotten",
    "one_head": "divided_by_dh", "grouped_attention": "keys_repeated_in_turns", "band_mask": "not_itself",
    "padded_window_mask": "padding_ignored", "slots_after": "newest_always_in_the_last_slot",
    "time_order": "newest_first", "write_chunk": "slots_of_the_first_row", "chunk_keys": "no_causal_rule",
    "route_tokens": "not_rescaled", "gated_expert": "sigmoid_alone", "dispatch_tokens": "first_choice_alone",
    "decoder_layer": "no_stream", "balancing_loss": "pads_counted", "causal_loss": "no_shift",
    "temperature_softmax": "multiplied_by_the_temperature", "top_p_filter": "as_many_as_the_first_row",
    "repetition_penalty": "always_divided",
}  # fmt: skip
ELSEWHERE = {
    "balancing_loss": "the balancing loss", "causal_loss": "the loss", "temperature_softmax": "a probability as drawn",
    "top_p_filter": "a probability as drawn", "repetition_penalty": "a probability as drawn",
}  # fmt: skip
# Additions on a number's way through the tiny model: D + Dh + S + Hq·Dh in attention, D + F + K in the experts and D in
# each norm, in 4 layers, and D in the head.
ROUNDINGS = 4 * (256 + 32 + 168 + 256 + 256 + 256 + 2 + 2 * 256) + 256
CELLS = itertools.count()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for kept parts, the usual one of this test."""
    monkeypatch.setenv(files.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


def cell(source: str, **names: object) -> Callable:
    """Define the last function of a notebook's cell, which may use what the set-up cell imports, and `names`."""
    file = f"/a/notebook/cell-{next(CELLS)}.py"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    namespace = {"torch": torch, "Tensor": Tensor, "__name__": "__main__", **names}
    exec(compile(source, file, "exec"), namespace)
    return [value for value in namespace.values() if getattr(value, "__module__", "") == "__main__"][-1]


def solution(name: str) -> Callable:
    return cell(exercises()[name].solution.replace("_solution(", "("))


NORM = """\
def rms_norm(x, weight, eps):
    x32 = x.float()
    return (x32 / (x32.square().mean(-1, keepdim=True) + {eps}).sqrt()).to(x.dtype) * weight
"""
RIGHT_NORM, WRONG_NORM = NORM.format(eps="eps"), NORM.format(eps="0")


def assert_the_packages(own: Measured | str) -> None:
    """Check that a model with the reader's parts computes what the package's does, but for rounding."""
    assert isinstance(own, Measured), own
    _, _, theirs = package("tiny")
    assert_forward(own.logits, theirs.logits, ROUNDINGS)
    off_by = theirs.logits.abs().max().item() * chain_error(ROUNDINGS)  # a logit
    assert_close(own.chances, theirs.chances, rtol=0, atol=2 * off_by / 0.7)  # p' - p = p (1 - p) dz, z divided by 0.7
    assert abs(own.loss - theirs.loss) <= 2 * off_by
    assert abs(own.balance - theirs.balance) <= 8 * off_by


@pytest.mark.numerics
@pytest.mark.parametrize("name", PARTS)
def test_a_right_part_changes_nothing(name: str):
    assert_the_packages(measure_own({name: REFERENCES[name]}, "tiny", 60, story=False))


@pytest.mark.parametrize("name", PARTS)
def test_a_wrong_part_shows(name: str):
    answers = {answer.__name__: answer for answer, _ in exercise_answers.WRONG[name]}
    own = measure_own({name: answers[SHOWING[name]]}, "tiny", 60, story=False)
    _, _, theirs = package("tiny")
    changes = own.changes(theirs)
    assert changes[ELSEWHERE.get(name, "a logit")] > 0.01
    if name in ELSEWHERE:
        assert changes["a logit"] == 0, "no logit depends on it"


@pytest.mark.numerics
def test_all_parts_together_write_the_packages_story():
    own = measure_own(REFERENCES, "tiny", 60, story=True)
    assert_the_packages(own)
    assert own.story == package("tiny")[2].story and len(own.story) > 100


@pytest.mark.numerics
@pytest.mark.parametrize("window", [7, None])
@pytest.mark.parametrize("experts", ["sorted", "reference"])
def test_parts_fit_models_of_other_sizes_without_a_window_too(make_config, window: int | None, experts: str):
    config = make_config(sliding_window=window, experts_implementation=experts, initializer_range=0.2)
    model = MixtralForCausalLM(config).eval()
    own = put_in(MixtralForCausalLM(config).eval(), REFERENCES)
    own.load_state_dict(model.state_dict())
    ids, mask = torch.randint(3, 101, (3, 17)), torch.ones(3, 17, dtype=torch.long)
    mask[0, :5] = mask[2, :9] = 0
    for real in (None, mask):
        outs = []
        for each in (model, own):
            cache, found = RollingKVCache(config, 3), []
            for start, end in ((0, 11), (11, 14), (14, 15), (15, 16), (16, 17)):
                piece = None if real is None else real[:, start:end]
                with torch.no_grad():
                    found.append(each(ids[:, start:end], attention_mask=piece, past_key_values=cache).logits)
            outs.append(torch.cat(found, 1)[mask == 1])
        assert_forward(outs[1], outs[0])
    given = torch.rand(3, 1, 17, 17) > 0.5  # a mask of the caller's own
    assert_forward(own(ids, attention_mask=given).logits, model(ids, attention_mask=given).logits)


@pytest.mark.numerics
def test_own_parts_learn_as_the_packages_do(make_config):
    config = make_config(output_router_logits=True, initializer_range=0.2)
    model = MixtralForCausalLM(config)
    own = put_in(MixtralForCausalLM(config), REFERENCES)
    own.load_state_dict(model.state_dict())
    ids, mask = torch.randint(3, 101, (3, 11)), torch.ones(3, 11, dtype=torch.long)
    mask[1, :4] = 0
    labels = ids.masked_fill(mask == 0, -100)
    theirs, mine = (each(ids, attention_mask=mask, labels=labels, use_cache=False) for each in (model, own))
    for out in (theirs, mine):
        out.loss.backward()
    assert_forward(mine.aux_loss, theirs.aux_loss)
    assert_forward(mine.loss, theirs.loss)
    for (name, weight), other in zip(model.named_parameters(), own.parameters(), strict=True):
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        found = torch.zeros_like(weight) if other.grad is None else other.grad
        off_by = model.lm_head.weight.grad.abs().max().item() * 6 * chain_error(3000)
        assert_close(found, wanted, rtol=0, atol=off_by, msg=name)


def test_a_kept_part_is_a_file_to_read_and_works_in_the_model(folder: Path):
    result = keep(cell(RIGHT_NORM))
    assert result.passed and f"{folder / 'rms_norm.py'}. 1 of 20 parts" in result.message
    text = (folder / "rms_norm.py").read_text(encoding="utf-8")
    assert text.endswith(f'"""\n\n{RIGHT_NORM}') and "import" not in text
    assert [file.name for file in folder.iterdir()] == ["rms_norm.py"]
    report = compare()
    assert "rms_norm" in report.text and report.package.story == report.own.story
    assert "what it wrote before" in report.text


def test_a_better_version_replaces_a_kept_one_and_a_wrong_one_does_not(folder: Path):
    keep(cell(RIGHT_NORM))
    result = keep(cell(WRONG_NORM))
    assert not result.passed and "try_out(rms_norm)" in result.message and "stays" in result.message
    assert RIGHT_NORM in (folder / "rms_norm.py").read_text()
    assert keep(cell(RIGHT_NORM.replace("x32", "wide"))).passed
    assert "wide" in (folder / "rms_norm.py").read_text()


def test_what_is_not_attempted_or_wrong_writes_nothing(folder: Path):
    result = keep(cell(exercises()["rms_norm"].stub))
    assert not result.attempted and "nothing to keep" in result.message
    assert "Not kept" in keep(cell(WRONG_NORM)).message
    assert not folder.exists()
    assert compare().text.startswith("0 of 20 parts are yours") and not folder.exists()


@pytest.mark.parametrize("name", PARTS)
def test_each_solution_can_be_kept(name: str):
    assert "Kept in" in keep(solution(name)).message
    assert list(kept()) == [name] and check.__getattr__(name)(kept()[name]).passed


MISSING = [
    ("EPS = 1\ndef rms_norm(x, weight, eps=EPS):\n    return helper(x, weight, eps)\n", {}, ["EPS", "helper"]),
    (RIGHT_NORM.replace("x.float()", "apply_rotary(x).float()"), {"apply_rotary": lambda x: x}, ["apply_rotary"]),
    (RIGHT_NORM.replace("x.float()", "rope.torch.Tensor.float(x)"), {"rope": rope}, ["rope"]),
    (f"@same\n{RIGHT_NORM}", {"same": lambda function: function}, ["same"]),
]


@pytest.mark.parametrize(("source", "names", "missing"), MISSING, ids=lambda value: " ".join(value)[:20])
def test_names_that_only_the_notebook_knows_are_named(folder: Path, source: str, names: dict, missing: list[str]):
    helper = {"helper": REFERENCES["rms_norm"]} if "helper" in source else {}
    result = keep(cell(source, **names, **helper))
    assert result.passed and f"it uses {' and '.join(missing)}, which" in result.message
    assert not folder.exists()


IMPORTS = {
    "torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)": "import torch\n",
    "(x32.square().mean(-1, keepdim=True) + eps) ** -float(np.sqrt(0.25))": "import numpy as np\n",
    "F.relu(x32.square().mean(-1, keepdim=True) + eps) ** -0.5": "import torch.nn.functional as F\n",
    "nn.ReLU()(x32.square().mean(-1, keepdim=True) + eps) ** -0.5": "from torch import nn\n",
    "(x32.square().mean(-1, keepdim=True) + eps) ** -root(0.25)": "from math import sqrt as root\n",
}


@pytest.mark.parametrize("factor", IMPORTS)
def test_a_file_imports_what_its_function_uses(folder: Path, factor: str):
    source = f"""\
def rms_norm(x: Tensor, weight, eps):
    def scale(x32):
        return {factor}
    return (x.float() * scale(x.float())).to(x.dtype) * weight
"""
    assert "Kept in" in keep(cell(source, np=np, F=F, nn=nn, root=math.sqrt, unused=rope)).message
    head, _, _ = (folder / "rms_norm.py").read_text().partition("def rms_norm")
    assert IMPORTS[factor] in head and "from torch import Tensor\n" in head and head.count("import") == 2


def test_what_passes_only_in_the_notebook_is_not_kept(folder: Path):
    source = RIGHT_NORM.replace("x32 = x.float()", 'x32 = globals()["wide"](x)')
    result = keep(cell(source, wide=lambda x: x.float()))
    assert "in a file of its own" in result.message and "KeyError" in result.message and not folder.exists()
    exec(RIGHT_NORM, names := {})
    assert "its source cannot be found" in keep(names["rms_norm"]).message


@pytest.mark.parametrize("when", ["at the end", "in the check"])
def test_an_interrupted_save_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch, when: str):
    def stop(*_):
        raise KeyboardInterrupt

    for old in (None, RIGHT_NORM):
        if old:
            keep(cell(old))
        with monkeypatch.context() as patch:
            patch.setattr("os.replace" if when == "at the end" else "mixtral_edu.exercises.own.load", stop)
            with pytest.raises(KeyboardInterrupt):
                keep(cell(RIGHT_NORM.replace("x32", "wide")))
        assert names_kept() == (["rms_norm"] if old else [])
        assert [file.name for file in folder.parent.rglob("*")] == (["kept", "rms_norm.py"] if old else [])
    assert "x32" in (folder / "rms_norm.py").read_text()


FAILING = {
    "changes x in place": ("x.mul_(2)\n    return x", "called  rms_norm(x=float32 (1, 136, 256)"),
    "changes weight in place": ("weight.data.zero_()\n    return x * weight.zero_()", "weight"),
    "raised ValueError: no": ("raise ValueError('no')", "line 2: raise ValueError('no')"),
    "raised SystemExit": ("raise SystemExit", "line 2"),
    "returned float32 (1, 136)": ("return x.mean(-1)", "needs float32 (1, 136, 256)"),
    "returned None": ("pass", "is there a return?"),
    "did not finish within 0.5 seconds": ("while True: pass", "every loop"),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_part_that_fails_is_reported_and_loses_nothing(folder: Path, what: str):
    keep(cell(RIGHT_NORM))
    body, detail = FAILING[what]
    broken = cell(f"def rms_norm(x, weight, eps):\n    {body}\n")
    before = (folder / "rms_norm.py").read_bytes(), torch.get_rng_state(), package("tiny")[0].state_dict()
    weights = {name: weight.clone() for name, weight in before[2].items()}
    report = try_out(broken, seconds=0.5 if "finish" in what else 60)
    assert "rms_norm does not work in the model" in report.text and report.own is None
    assert what in report.text and detail in report.text
    if "finish" not in what:  # its check would take 10 seconds
        assert not keep(broken).passed
    assert (folder / "rms_norm.py").read_bytes() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    for name, weight in package("tiny")[0].state_dict().items():
        assert torch.equal(weight, weights[name])


def test_a_trial_says_what_a_mistake_costs_and_keeps_nothing(folder: Path):
    def no_rotation(x, cos, sin):
        return x

    report = try_out(no_rotation, part="apply_rotary")
    assert report.own.loss > 2 + report.package.loss
    assert f"{report.package.loss:.4f} -> {report.own.loss:.4f} nats per token" in report.text
    assert report.own.story != report.package.story and not folder.exists()
    assert "Nothing changes but rounding" in try_out(REFERENCES["apply_rotary"]).text


def test_what_the_model_cannot_use_is_said():
    def route(logits, top_k):
        return torch.ones(len(logits), top_k), torch.full((len(logits), top_k), 99)

    assert "It chose expert 99; there are experts 0 to 7" in try_out(route, part="route_tokens").text
    slots = try_out(lambda positions: positions[positions >= 0].sort().values, part="time_order")
    assert "The model could not use what it returned" in slots.text
    assert "without a call of attention" in try_out(lambda x, *_: x + 0, part="decoder_layer").text
    report = try_out(lambda x, weight, eps: x * math.nan, part="rms_norm")
    assert "nan" in report.text


def test_a_model_of_kept_parts_says_what_failed_in_generate_and_stream(folder: Path):
    folder.mkdir()
    (folder / "top_p_filter.py").write_text("def top_p_filter(logits, p):\n    return logits[0]\n")
    model, tokenizer = my_mixtral(), package("tiny")[1]
    ids, options = torch.tensor([[1, 300]]), {"max_new_tokens": 3, "do_sample": True, "top_p": 0.9, "seed": 0}
    rules = sampling.RULES
    with pytest.raises(PartFailed, match=r"It returned float32 \(2048,\); the model needs float32 \(1, 2048\)"):
        model.generate(ids, **options)
    with pytest.raises(PartFailed):
        list(model.stream(ids, tokenizer=tokenizer, **options))
    assert sampling.RULES is rules
    assert "top_p_filter" in compare().text and "It returned float32" in compare().text


def test_stream_and_generate_use_own_sampling_and_nobody_else_does(folder: Path):
    for name in ("temperature_softmax", "top_p_filter", "repetition_penalty"):
        keep(solution(name))
    model, (theirs, tokenizer, _) = my_mixtral(), package("tiny")
    calls, rules = [], sampling.RULES
    model.own["top_p_filter"] = lambda logits, p: calls.append(p) or REFERENCES["top_p_filter"](logits, p)
    ids = torch.tensor([tokenizer.encode("Once upon a time")])
    options = {"max_new_tokens": 12, "do_sample": True, "top_p": 0.8, "repetition_penalty": 1.3, "seed": 3}
    text = tokenizer.decode(theirs.generate(ids, **options)[0, ids.shape[1] :])
    pieces = model.stream(ids, tokenizer=tokenizer, skip_special_tokens=False, **options)
    found = []
    for piece in pieces:
        found.append(piece)
        assert sampling.RULES is rules
    assert "".join(found) == text and calls == [0.8] * 12
    assert tokenizer.decode(model.generate(ids, **options)[0, ids.shape[1] :]) == text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda x: x, "no part '<lambda>'"),
        (3, "no part 'int'"),
        (exercises()["cost_of_parts"].reference, "cost_of_parts has no place in the model"),
        (cell("def rms_norm_solution(x): return x\n"), "given solution"),
    ],
)
def test_only_a_part_can_be_kept(given: object, words: str):
    for function in (keep, try_out, forget):
        with pytest.raises(ValueError, match=words):
            function(given)


def test_a_forgotten_part_is_the_packages_again(folder: Path):
    keep(cell(RIGHT_NORM))
    assert "is removed. 0 of 20" in forget("rms_norm").text and kept() == {}
    assert "not kept" in forget(cell(RIGHT_NORM)).text


@pytest.mark.parametrize("text", ["def rms_norm(x:\n", "1 / 0\n", "", "def other(): pass\n"])
def test_a_file_that_cannot_be_used_is_named(folder: Path, text: str):
    folder.mkdir()
    (folder / "rms_norm.py").write_text(text)
    with pytest.raises(ValueError, match=r"rms_norm\.py cannot be used .*forget"):
        my_mixtral()


def test_another_process_finds_what_was_kept_and_importing_runs_none_of_it(tmp_path: Path):
    keep(cell(RIGHT_NORM), tmp_path / files.FOLDER)
    trap = tmp_path / files.FOLDER / "band_mask.py"
    trap.write_text("print('run')\ndef band_mask(): pass\n")
    code = """
import torch, mixtral_edu, mixtral_edu.exercises.own as own, mixtral_edu.viz.own
print(own.names_kept(), flush=True)
own.forget("band_mask")
print(own.kept()["rms_norm"](torch.tensor([[3.0, 4.0]]), torch.ones(2), 12.5).tolist())
"""
    environment = {name: value for name, value in os.environ.items() if name != files.VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "['rms_norm', 'band_mask']" and "run" not in done.stdout, done.stderr
    assert done.stdout.splitlines()[1].startswith("[[0.6"), "the file that was forgotten is not run, the other is"


def test_while_a_submission_is_graded_nothing_is_kept_or_measured(folder: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    grader = Exercise.grader
    monkeypatch.setattr(Exercise, "grader", staticmethod(lambda *each: seen.append(each) or grader(*each)))
    assert keep(cell(RIGHT_NORM)).passed and len(seen) == 1 and not folder.exists()
    assert "graded" in try_out(cell(WRONG_NORM)).text and compare().own is None


@pytest.mark.slow
def test_an_exercise_notebook_keeps_what_passes_and_says_why_not(tmp_path: Path):
    (path,) = NOTEBOOKS.glob("exercises/02_*.ipynb")
    notebook = read(path)
    cells = {cell.id: cell for cell in notebook.cells}
    cells["rms_norm-stub"].source = RIGHT_NORM
    cells["apply_rotary-stub"].source = "HALF = 2\ndef apply_rotary(x, cos, sin):\n    return x[: HALF]\n"
    done = {cell.id: cell for cell in execute(notebook, tmp_path, 120).cells}
    shown = {name: str(done[name].outputs) for name in ("rms_norm-keep", "apply_rotary-keep", "my-mixtral-drawing")}
    assert "Kept in" in shown["rms_norm-keep"] and "Not kept: try_out(apply_rotary)" in shown["apply_rotary-keep"]
    assert "1 of 20 parts are yours: lesson 02 rms_norm" in shown["my-mixtral-drawing"]
    assert "what it wrote before" in shown["my-mixtral-drawing"]
    assert list(tmp_path.iterdir()) == []
