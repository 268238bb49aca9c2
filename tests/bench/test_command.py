"""`bench.command` and the command line."""

import json
from pathlib import Path

import pytest
import torch

from mixtral_edu.__main__ import main
from mixtral_edu.bench.command import benchmark
from mixtral_edu.bench.markdown import as_markdown
from mixtral_edu.bench.results import runs_in


@pytest.mark.parametrize(
    "options",
    [{"against": "transformers"}, {"quick": True}, {"tasks": ["train-2-8"]}, {"tasks": ["loading"]}],
)
def test_all_layers_of_the_full_size_have_no_peer_no_quick_form_and_no_training(options):
    with pytest.raises(ValueError, match="full_size.*layers=8" if "against" in options else "full_size"):
        benchmark(full_size=True, **options)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"against": "llama"}, "against='llama'.*transformers"),
        ({"seconds": 0}, "seconds=0"),
        ({"threads": 0}, "threads=0"),
        ({"tasks": ["sleep"]}, "sleep"),
        ({"forms": ["packed"]}, "forms='packed'.*plain float32"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"device": "abacus"}, "device='abacus'"),
    ],
)
def test_arguments_without_meaning_are_named(config, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        benchmark(config, **arguments)


@pytest.mark.usefixtures("small_rates")
def test_the_command_measures_compares_draws_and_goes_on(config, tmp_path: Path, capsys: pytest.CaptureFixture):
    config.save_pretrained(tmp_path)
    json_file, picture = tmp_path / "results.json", tmp_path / "results.png"
    command = ["benchmark", "--config", str(tmp_path / "config.json"), "--against", "transformers", "--threads", "1",
               "--seconds", "0.01", "--json", str(json_file), "--picture", str(picture)]  # fmt: skip
    main([*command, "--tasks", "prefill-9", "train-2-5"])
    shown = capsys.readouterr()
    (run,) = json.loads(json_file.read_text())["runs"]
    assert {(row["task"], row["variant"]) for row in run["results"]} >= {
        ("prefill-9", "plain float32"), ("prefill-9", "int8 bfloat16"),
        ("prefill-9", "int4 float32"), ("train-2-5", "plain float32"),
    }  # fmt: skip
    assert all(len(row["theirs"]) == len(row["ours"]) >= 3 and row["floor"] > 0 for row in run["results"])
    assert all(min(row["tried"], key=row["tried"].get) + ", float32" == row["setting"] for row in run["results"])
    assert run["machine"].keys() >= {"processor", "kind", "capability", "torch", "transformers", "mixtral_edu"}
    assert run["settings"]["threads"] == 1 and run["settings"]["sizes"]["hidden_size"] == 64
    assert len(shown.out.splitlines()) == 1 + len(run["results"]) and "row 1 of 7: prefill-9" in shown.err
    assert f"torch {torch.__version__}" in shown.err and "threads 1, against transformers" in shown.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    main([*command, "--tasks", "prefill-9", "train-2-5"])
    again = capsys.readouterr()
    assert again.out == shown.out and "row" not in again.err


@pytest.mark.usefixtures("small_rates")
def test_the_command_measures_the_forms_that_are_named_and_prints_a_file(config, tmp_path: Path, capsys):
    config.save_pretrained(tmp_path)
    file = tmp_path / "results.json"
    command = ["benchmark", "--config", str(tmp_path / "config.json"), "--seconds", "0.01", "--json", str(file)]
    main([*command, "--tasks", "prefill-9", "decode-2-5", "--forms", "plain float32", "int8"])
    rows = {(row["task"], row["variant"]) for row in json.loads(file.read_text())["runs"][0]["results"]}
    forms = ("plain float32", "int8 bfloat16", "int8 float32")
    assert rows == {(task, form) for task in ("prefill-9", "decode-2-5") for form in forms}
    capsys.readouterr()
    main(["benchmark", "--markdown", str(file)])
    assert capsys.readouterr().out == as_markdown(runs_in(file)) + "\n"


def test_the_command_says_which_forms_there_are(config, tmp_path: Path, capsys: pytest.CaptureFixture):
    config.save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["benchmark", "--config", str(tmp_path / "config.json"), "--forms", "packed"])
    assert "forms='packed': it must be one of plain float32, compiled float32" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, '{"model_type": "mixtral"}'])
def test_a_file_without_runs_cannot_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture, text):
    file = tmp_path / "results.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit):
        main(["benchmark", "--markdown", str(file)])
    assert "results.json" in capsys.readouterr().err
