"""Does a lone caller wait in Triton's queue for nothing, by the settings of the dynamic batcher?

One caller asks the null engine for one row after the other, some seconds with each setting of
``dynamic_batching``; counted are the answers that take more than a tenth of a second, where all
take about one thousandth. ``repository._WHY`` and docs/serving.md build on what this shows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from headrace.contract import ATTENTION_MASK, INPUT_IDS
from headrace_bench.command import add_places, run
from headrace_bench.options import positive, say
from headrace_launcher.build import build
from headrace_launcher.repository import CONFIG_FILE, read_config
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton

LONG_SECONDS = 0.1
SETTINGS = {
    "none": None,
    "plain": "",
    "a delay": "max_queue_delay_microseconds: 1000",
    "preferred sizes": "preferred_batch_size: [1, 2, 4, 8]",
    "a queue limit": "default_queue_policy { max_queue_size: 2048 }",
    "a time-out": (
        "default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 30000000 }"
    ),
    "priorities": "priority_levels: 2 default_priority_level: 1",
}
"""``dynamic_batching`` of the config by what is measured; None: without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a caller saw.

    Attributes:
        setting: see :data:`SETTINGS`.
        answers: how many came.
        stalls: those of them that took longer than :data:`LONG_SECONDS`.
        median: milliseconds until an answer.
        most: milliseconds until the slowest one.
    """

    setting: str
    answers: int
    stalls: int
    median: float
    most: float


def _ask(server: str, name: str, seconds: float) -> list[float]:
    ids = np.array([[101, 7592, 102]], np.int32)
    tensors = [triton.InferInput(each, ids.shape, "INT32") for each in (INPUT_IDS, ATTENTION_MASK)]
    for tensor in tensors:
        tensor.set_data_from_numpy(ids)
    times = []
    with triton.InferenceServerClient(server) as client:
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            client.infer(name, tensors)
            times.append(time.perf_counter() - start)
    return times


def measure(options: argparse.Namespace, folder: Path) -> list[Seen]:
    """Asks with each setting.

    Raises:
        HeadraceError: the model cannot be built or served.
    """
    entry = build(options.model, repository=folder, engine="null")
    config = read_config(entry.folder)
    assert config is not None
    found = []
    for setting, content in SETTINGS.items():
        say(setting)
        config.ClearField("dynamic_batching")
        if content is not None:
            config.dynamic_batching.CopyFrom(text_format.Parse(content, pb.ModelDynamicBatching()))
        (entry.folder / CONFIG_FILE).write_text(text_format.MessageToString(config))
        with Server(find_triton(), folder, [entry.contract.name]) as server:
            times = np.array(_ask(server.endpoints.grpc, entry.contract.name, options.seconds))
        found.append(
            Seen(
                setting=setting,
                answers=len(times),
                stalls=int((times > LONG_SECONDS).sum()),
                median=float(np.median(times) * 1000),
                most=float(times.max() * 1000),
            )
        )
    return found


def show(found: Sequence[Seen]) -> str:
    """Returns a table."""
    lines = [f"{'':16} {'answers':>8} {'stalls':>7} {'median ms':>10} {'most ms':>8}"]
    lines += [
        f"{each.setting:16} {each.answers:>8,} {each.stalls:>7} {each.median:>10.2f} "
        f"{each.most:>8.1f}"
        for each in found
    ]
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_bench.stalls", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--seconds", type=positive, default=6, help="for each setting")
    add_places(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = parse_arguments(arguments)
    return run(options, measure, show, lambda found: {"seen": [asdict(each) for each in found]})


if __name__ == "__main__":
    sys.exit(main())
