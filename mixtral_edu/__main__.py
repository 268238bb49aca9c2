"""The command line: `python -m mixtral_edu COMMAND …`; each command has `--help`."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import mixtral_edu


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1; it must be at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: it must be a number of seconds above 0")
    return number


def _new_file(text: str) -> Path:
    """Return the path of a file that can be written, or raise an error before the work starts."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written; name another file")
    return path


def _train(arguments: argparse.Namespace) -> None:
    import torch

    from mixtral_edu.training.recipes import train_recipe

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train_recipe(
        arguments.recipe,
        arguments.out,
        steps=arguments.steps,
        tokenizer=arguments.tokenizer,
        cache=arguments.cache,
        device=arguments.device,
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from mixtral_edu import MixtralForCausalLM, MixtralTokenizer
    from mixtral_edu.training.corpus import PROBES
    from mixtral_edu.training.evaluation import evaluate
    from mixtral_edu.training.recipes import RECIPES

    # Weights and scales keep their stored values; arithmetic is in float32.
    model = MixtralForCausalLM.from_pretrained(arguments.model, quantization=arguments.quantization).float()
    tokenizer = MixtralTokenizer.from_pretrained(arguments.model)
    domains = arguments.domains or [*RECIPES["tiny"].domains, *PROBES]
    text = json.dumps(evaluate(model, tokenizer, domains, cache=arguments.cache), indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


def _convert(arguments: argparse.Namespace) -> None:
    try:
        mixtral_edu.convert_checkpoint(
            arguments.source,
            arguments.target,
            to=arguments.to,
            overwrite=arguments.overwrite,
            max_shard_size=arguments.max_shard_size,
        )
    except FileExistsError as error:
        raise FileExistsError(str(error).replace("overwrite=True", "--overwrite")) from error


def _benchmark(arguments: argparse.Namespace) -> None:
    from mixtral_edu.bench.command import as_table, benchmark

    if arguments.markdown:
        from mixtral_edu.bench.markdown import as_markdown
        from mixtral_edu.bench.results import runs_in

        print(as_markdown(runs_in(arguments.markdown)))
        return
    if arguments.picture:
        try:
            import matplotlib
        except ImportError:
            raise ValueError("--picture needs matplotlib: pip install matplotlib") from None
        matplotlib.use("Agg")  # draw to a file, not to a window
    results = benchmark(
        mixtral_edu.MixtralConfig.from_pretrained(arguments.config) if arguments.config else None,
        tasks=arguments.tasks,
        forms=arguments.forms,
        dtype=arguments.dtype,
        device=arguments.device,
        threads=arguments.threads,
        against=arguments.against,
        full_size=arguments.full_size,
        layers=arguments.layers,
        quick=arguments.quick,
        seconds=arguments.seconds,
        json_file=arguments.json,
        again=arguments.again,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(as_table(results))
    if arguments.picture:
        from mixtral_edu.viz.benchmark import attention_by_length, ratios_and_floors

        if results and all(result.task.startswith("attention-") for result in results):
            figure = attention_by_length(results, dtype=results[0].variant.split()[-1])
        else:
            figure = ratios_and_floors(results)
        figure.savefig(arguments.picture)


def _grade(arguments: argparse.Namespace) -> None:
    from mixtral_edu.exercises.marking import as_dict, as_table, mark

    try:
        marks = mark(arguments.submission, arguments.lesson, arguments.timeout)
        encoding = sys.stdout.encoding or "utf-8"  # messages quote students, and a terminal may lack their characters
        print(as_table(marks).encode(encoding, "backslashreplace").decode(encoding))
        if arguments.json:
            text = json.dumps(as_dict(arguments.submission, marks), indent=1, ensure_ascii=False)
            # UTF-8 cannot encode half of a surrogate pair. It becomes \udXXX, as JSON writes it.
            arguments.json.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except (ValueError, OSError) as error:
        print(f"python -m mixtral_edu grade: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if not all(marks.results.values()):
        raise SystemExit(1)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python -m mixtral_edu", description=mixtral_edu.__doc__)
    parser.add_argument("--version", action="version", version=mixtral_edu.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train one of the bundled models again")
    train.add_argument("--recipe", required=True, metavar="NAME", help="tiny (plain text) or tiny-instruct (answers)")
    train.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="where to write it; an interrupted run resumes"
    )
    train.add_argument("--steps", type=_count, metavar="N", help="number of steps instead of the recipe's")
    train.add_argument(
        "--tokenizer", metavar="NAME", help="use this tokenizer instead of training one: a name, folder or file"
    )
    train.add_argument("--cache", type=Path, metavar="FOLDER", help="folder of downloaded sources")
    train.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    train.add_argument("--threads", type=_count, metavar="N", help="processor threads")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="measure a trained model: bits per byte, answers, experts")
    evaluate.add_argument("model", help="tiny, tiny-instruct, or a checkpoint folder with a tokenizer")
    evaluate.add_argument("--quantization", choices=("int8", "int4"), help="round attention and experts first")
    evaluate.add_argument("--domains", nargs="+", metavar="DOMAIN", help="held-out texts to read (all by default)")
    evaluate.add_argument("--cache", type=Path, metavar="FOLDER", help="folder of downloaded sources")
    evaluate.add_argument("--json", type=_new_file, metavar="FILE", help="write the figures to this file too")
    evaluate.set_defaults(run=_evaluate)

    convert = commands.add_parser("convert", help="write a checkpoint in another layout")
    convert.add_argument("source", metavar="SOURCE", help="folder in Hugging Face's or Mistral's layout, or tiny")
    convert.add_argument("target", metavar="TARGET", help="the folder to write")
    convert.add_argument(
        "--to", choices=("hf", "mistral"), default="hf", help="Hugging Face's layout (default), or Mistral's own"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace the checkpoint in TARGET")
    convert.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest Hugging Face file (5GB)")
    convert.set_defaults(run=_convert)

    benchmark = commands.add_parser("benchmark", help="measure speed and memory, alone or against transformers")
    benchmark.add_argument("--against", choices=("transformers",), help="compare with this, in turns, on equal weights")
    benchmark.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="float32, or bfloat16 on a GPU")
    benchmark.add_argument("--threads", type=_count, metavar="N", help="processor threads")
    benchmark.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    benchmark.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="prefill, decode, train, loading, attention, or one task such as decode-8-4096 (all but attention)",
    )
    benchmark.add_argument(
        "--forms",
        nargs="+",
        metavar="NAME",
        help="forms of the model, such as 'plain float32', or first words of their names, such as int4 (all)",
    )
    benchmark.add_argument(
        "--full-size", action="store_true", help="Mixtral-8x7B, with weights made on the device: 93 GB, 27 GB in 4 bits"
    )
    benchmark.add_argument("--layers", type=_count, metavar="N", help="number of layers")
    benchmark.add_argument("--quick", action="store_true", help="fewer layers, shorter contexts: under 3 minutes")
    benchmark.add_argument("--seconds", type=_seconds, metavar="S", help="seconds per row (20, or 2 with --quick)")
    benchmark.add_argument("--config", type=Path, metavar="FILE", help="a config.json with other sizes")
    benchmark.add_argument(
        "--json", type=_new_file, metavar="FILE", help="write each row here; an interrupted run resumes"
    )
    benchmark.add_argument("--again", action="store_true", help="measure the rows in FILE again")
    benchmark.add_argument("--picture", type=_new_file, metavar="FILE.png", help="draw the rows to this file")
    benchmark.add_argument(
        "--markdown", type=Path, metavar="FILE", help="print the runs in FILE as tables in Markdown; measure nothing"
    )
    benchmark.set_defaults(run=_benchmark)

    grade = commands.add_parser("grade", help="check a student's exercises; exit status 0 if all passed, 1 if not")
    grade.add_argument("submission", type=Path, metavar="STUDENT.py", help="a script or a notebook (.ipynb)")
    grade.add_argument("--lesson", metavar="NN", help="lesson to grade (default: all whose functions it defines)")
    grade.add_argument("--json", type=_new_file, metavar="FILE", help="write a report to this file")
    grade.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="S", help="seconds per cell and per exercise (10)"
    )
    grade.set_defaults(run=_grade)

    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, MemoryError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a stopped command still deletes its temporary files
    main()
