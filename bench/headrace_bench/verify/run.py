"""Are the vectors of a finished output those that sentence-transformers gives for its texts?

Every row of the output is looked at: rows without a vector are to be those that
``OUTPUT.errors.jsonl`` describes, and no others; the others are to have the length 1 where vectors
are normalized (where not, those of the sample the reference's). Every record of the input is
counted, and one that can be read is not to be described as bad. Of a random sample of the rows the
texts are embedded again by sentence-transformers in fp32 and compared: by cosine, and by the
nearest rows of the sample that both give; and their ids with those of their records. How the output
was made (model, prompt, length, dimension, bad rows) is told by ``OUTPUT.manifest.jsonl``.

Memory grows with the sample and with the number of bad rows alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from headrace.errors import UsageError
from headrace_bench.command import check_json, write_json
from headrace_bench.machine import describe, hardware, versions
from headrace_bench.options import number, positive, settings, whole
from headrace_bench.verify.judging import LEAST_COSINES, measure, own_files
from headrace_bench.verify.madeof import made_of
from headrace_bench.verify.reference import Asked, Opener, open_reference
from headrace_bench.verify.result import show
from headrace_bench.verify.written import open_written


def check_options(options: argparse.Namespace) -> None:
    """Checks, before anything is loaded, what can be checked.

    Raises:
        UsageError: the JSON file cannot be what it is to be.
    """
    path = options.json
    check_json(path)
    if path is None:
        return
    if path.resolve() in {*own_files(options.output), *(Path(x).resolve() for x in options.input)}:
        raise UsageError(f"--json {path} is what is to be looked at; name another file")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="headrace verify",
        description="Compares a finished output with sentence-transformers in fp32, on a random "
        "sample of its rows, and all of it with the number of records and with its errors file. "
        "Exit codes: 0 right, 1 wrong, 2 wrong usage, 4 something is missing or cannot be read.",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a .npy or .parquet file")
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="FILE",
        help="what it was made of; several in their order, each with its own --input",
    )
    parser.add_argument("--sample", type=positive, default=1000, help="rows to compare, at most")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the random sample")
    parser.add_argument(
        "--min-cosine",
        type=number(-1, 1),
        help="below this a row is wrong (default: "
        + ", ".join(f"{least} for {name}" for name, least in LEAST_COSINES.items())
        + ")",
    )
    parser.add_argument("--neighbours", type=positive, default=10, help="nearest rows to compare")
    parser.add_argument("--worst", type=whole(0), default=5, help="rows to show")
    parser.add_argument("--batch-size", type=positive, default=32, help="texts computed at once")
    parser.add_argument("--device", help="where torch computes (default: a GPU if it sees one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    told = parser.add_argument_group("in place of what OUTPUT.manifest.jsonl tells")
    told.add_argument("--model", help="as of headrace embed; its weights are to be the same")
    told.add_argument("--text-field")
    told.add_argument("--format", choices=["auto", "jsonl", "text", "parquet"])
    told.add_argument("--prompt", help="text in front of every row, '' for none")
    told.add_argument("--max-length", type=positive, metavar="TOKENS")
    told.add_argument("--truncate-dim", type=positive, metavar="DIMENSIONS")
    told.add_argument("--on-error", choices=["null", "skip", "fail"])
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, opener: Opener = open_reference) -> int:
    """Checks an output and prints what was found; returns 0 where it is right, 1 where it is not.

    Args:
        arguments: the command line.
        opener: gives the reference.

    Raises:
        UsageError: an option cannot be followed, or the output is not there or not finished.
        MachineError: a file cannot be read, or sentence-transformers is missing or fails.
    """
    options = parse_arguments(arguments)
    check_options(options)
    written = open_written(options.output)
    made = made_of(options.output, options)
    reference = opener(
        Asked(
            model=made.model,
            revision=made.revision,
            weights=made.weights,
            prompt=made.prompt,
            max_length=made.max_length,
            device=options.device,
            batch_size=options.batch_size,
        )
    )
    if options.truncate_dim is not None and options.truncate_dim > reference.dimension:
        raise UsageError(
            f"--truncate-dim {options.truncate_dim}: vectors of {reference.model} have only "
            f"{reference.dimension} dimensions"
        )
    result = measure(options, written, made, reference)
    machine, found = hardware(), versions()
    print("\n".join(describe(machine, found)))
    print(show(result))
    if options.json is not None:
        about = {"settings": settings(options), "machine": machine, "versions": found}
        write_json(options.json, about | result.to_json())
    return 1 if result.wrong else 0
