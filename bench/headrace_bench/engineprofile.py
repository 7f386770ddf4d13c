"""Where does the CPU engine's time go, and could it go elsewhere? The profile behind the ceiling.

OpenVINO counts the time of each operation of the model, on ready batches in one stream on one core.
Beside it stands what a large matrix product in fp32 reaches on that core (NumPy's BLAS), and what
the products with the model's matrices come to: so it can be seen how much of the time these are,
how near they are to what the core can do, and what the rest costs, attention among it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headrace_bench import command, corpus
from headrace_bench.geometry import Geometry
from headrace_bench.options import positive, say
from headrace_bench.stats import spread
from headrace_bench.workload import Workload
from headrace_launcher.build import Entry, build
from headrace_launcher.hosted.cpu import PRECISIONS
from headrace_launcher.locate import locate
from headrace_launcher.repository import VERSION_FOLDER

PRODUCT = "FullyConnected"
"""What OpenVINO calls a product with one of the model's matrices on a CPU."""
SIZE, PRODUCT_RUNS = 1536, 5
_LARGE_PRODUCT = """
import json, sys, time
import numpy as np
size, runs = map(int, sys.argv[1:])
a, b = (np.random.default_rng(seed).random((size, size), np.float32) for seed in range(2))
a @ b
seconds = []
for _ in range(runs):
    start = time.perf_counter()
    a @ b
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was counted.

    Attributes:
        rows: texts.
        batches: of them.
        precision: what the engine computed in.
        seconds: of all operations together.
        shares: part of that, 0 to 1, by kind of operation, the largest first.
        flops: floating-point operations of the batches, see ``Geometry.flops``.
        flops_per_second: of the engine, all of its time counted.
        product_flops: those of the products with the model's matrices alone.
        product_flops_per_second: of these, by their own time.
        numpy_flops_per_second: of a large matrix product in fp32.
        of_numpy: the last but one over the last.
        if_products_alone: how many times as fast the engine would be without all the rest.
    """

    rows: int
    batches: int
    precision: str
    seconds: float
    shares: dict[str, float]
    flops: int
    flops_per_second: float
    product_flops: int
    product_flops_per_second: float
    numpy_flops_per_second: float
    of_numpy: float
    if_products_alone: float


def measure(options: argparse.Namespace, folder: Path) -> Profile:
    """Counts, on the first core that this process may use.

    Args:
        options: see :func:`parse_arguments`.
        folder: an empty folder for files.

    Raises:
        HeadraceError: the model cannot be built, or there are not so many texts.
        RuntimeError: OpenVINO calls the products otherwise.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    entry = build(
        options.model, repository=folder / "models", engine="openvino", precision=options.precision
    )
    work = Workload(corpus.take(options.rows), entry, folder / "texts.jsonl")
    say("numpy: matrix product")
    numpy = _numpy_flops()
    say(f"OpenVINO: {len(work.batches)} batches")
    times = _times(entry, work)
    seconds = sum(times.values())
    if not times[PRODUCT]:
        raise RuntimeError(
            f"OpenVINO {version('openvino')} tells of no {PRODUCT} but of {', '.join(times)}; "
            "this profile is made for versions that do"
        )
    geometry = _geometry(locate(options.model, revision=None).folder)
    padded = sum(batch.ids.size for batch in work.batches)
    squares = sum(len(batch.ids) * batch.ids.shape[1] ** 2 for batch in work.batches)
    flops, of_products = geometry.flops(padded, squares), geometry.flops(padded, 0)
    rate = of_products / times[PRODUCT]
    return Profile(
        rows=options.rows,
        batches=len(work.batches),
        precision=entry.contract.precision,
        seconds=seconds,
        shares={kind: spent / seconds for kind, spent in times.most_common()},
        flops=flops,
        flops_per_second=flops / seconds,
        product_flops=of_products,
        product_flops_per_second=rate,
        numpy_flops_per_second=numpy,
        of_numpy=rate / numpy,
        if_products_alone=seconds / times[PRODUCT],
    )


def show(found: Profile) -> str:
    """Returns the table."""
    shares = [f"  {kind:28}{share:>8.1%}" for kind, share in found.shares.items() if share >= 0.001]
    return "\n".join(
        [
            f"{found.rows:,} rows in {found.batches:,} batches, {found.precision}, one core; "
            f"{found.seconds:.1f} s in operations:",
            *shares,
            f"{PRODUCT}: {found.product_flops_per_second / 1e9:,.1f} GFLOP/s, {found.of_numpy:.2f} "
            f"of the {found.numpy_flops_per_second / 1e9:,.1f} of a large product in NumPy (fp32) "
            "on the same core",
            f"all together: {found.flops_per_second / 1e9:,.1f} GFLOP/s; with nothing but "
            f"{PRODUCT} it would be {found.if_products_alone:.2f} times as fast",
        ]
    )


def _times(entry: Entry, work: Workload) -> Counter[str]:
    """Returns seconds by kind of operation; a first pass prepares what each shape needs."""
    openvino: Any = importlib.import_module("openvino")
    precision = PRECISIONS[entry.contract.precision]
    settings = {
        "PERF_COUNT": True,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    model = openvino.Core().compile_model(
        entry.folder / VERSION_FOLDER / "model.xml", "CPU", settings
    )
    request = model.create_infer_request()
    times: Counter[str] = Counter()
    for counted in (False, True):
        for batch in work.batches:
            request.infer({"input_ids": batch.ids, "attention_mask": batch.mask})
            if counted:
                for each in request.profiling_info:
                    times[each.node_type] += each.real_time.total_seconds()
    return times


def _numpy_flops() -> float:
    """Returns FLOP/s of a large product on the core that this process is bound to.

    In a process of its own, since a BLAS decides how many threads it has when it is loaded.
    """
    one = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP")}
    done = subprocess.run(
        [sys.executable, "-c", _LARGE_PRODUCT, str(SIZE), str(PRODUCT_RUNS)],
        env=os.environ | one,
        capture_output=True,
        text=True,
        check=True,
    )
    return 2 * SIZE**3 / spread(json.loads(done.stdout)).median


def _geometry(folder: Path) -> Geometry:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Geometry(
        name=folder.name,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        wide=config["intermediate_size"],
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.engineprofile", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="a BERT-like encoder")
    parser.add_argument("--rows", type=positive, default=1_000)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    command.add_places(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    return command.run(parse_arguments(arguments), measure, show, asdict)


if __name__ == "__main__":
    sys.exit(main())
