"""ONNX -> TensorRT plan, for this machine's GPU or, with TensorRT for RTX, for one elsewhere.

A plan is bound to the version of TensorRT and to the compute capability of the GPU. Beside it lies
what made it: the graph, the command, the library's log, and the list of its layers.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from headrace.contract import Contract
from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_launcher.engines import buildplan

PLAN_FILE = "model.plan"
GRAPH_FILE = "model.onnx"
LAYERS_FILE = "layers.json"
COMMAND_FILE = "build.sh"
LOG_FILE = "build.log"
# What the names of a fused attention's kernels hold (NVIDIA/TensorRT#3243 and its documentation,
# "Multi-Head Attention Fusion").
_FUSED = ("mha", "flash", "attention_fused")


class Profile(NamedTuple):
    """The shapes, [batch, sequence], of one optimization profile.

    Attributes:
        least: smallest that is admitted.
        best: what kernels are chosen for.
        most: largest that is admitted.
    """

    least: tuple[int, int]
    best: tuple[int, int]
    most: tuple[int, int]


def version(engine: str) -> str:
    """Returns the library's version.

    Args:
        engine: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return str(buildplan.load(engine).__version__)
    except (ImportError, OSError) as error:
        extra = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}[engine]
        raise MissingDependencyError(
            f"the engine {engine} needs a library that is not installed here ({error}); "
            f"install it with: pip install 'headrace[launcher,{extra}]'"
        ) from error


def profiles(contract: Contract) -> list[Profile]:
    """Returns one profile a bucket: disjoint ranges of lengths, best for a full batch.

    Triton chooses among profiles by the shape, so that they must not overlap.
    """
    found, shorter = [], 0
    for bucket in contract.buckets:
        full = min(bucket.max_batch, max(1, contract.token_budget // bucket.max_length))
        found.append(
            Profile(
                least=(1, shorter + 1),
                best=(full, bucket.max_length),
                most=(bucket.max_batch, bucket.max_length),
            )
        )
        shorter = bucket.max_length
    return found


def convert(
    graph: Path,
    folder: Path,
    contract: Contract,
    *,
    capability: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Builds ``model.plan`` in ``folder`` in a child process, with its makings beside it.

    Args:
        graph: a strongly typed ONNX file; moved into ``folder``.
        folder: where the plan goes.
        contract: the model's settings.
        capability: compute capability of the GPU to build for, as ``8.9``; "" for the one here.
            Only TensorRT for RTX builds for another one.
        progress: called with a line for people now and then.

    Returns:
        What the parser made of the graph: ``inputs`` and ``outputs``, each with ``name``, ``type``
        and ``shape``, and ``layers``, their number.

    Raises:
        UsageError: TensorRT cannot build for a GPU that is not here.
        MachineError: the build failed; the message ends with the library's own.
    """
    if capability and contract.engine != "tensorrt-rtx":
        raise UsageError(
            f"{contract.engine} builds for the GPU of the machine that it runs on alone; build "
            "there, or use --engine tensorrt-rtx"
        )
    kept = folder / GRAPH_FILE
    graph.replace(kept)
    for data in graph.parent.glob(f"{graph.name}.data"):
        data.replace(folder / data.name)
    options = {
        "--library": contract.engine,
        "--graph": GRAPH_FILE,
        "--plan": PLAN_FILE,
        "--layers": LAYERS_FILE,
        "--profiles": json.dumps(profiles(contract)),
    }
    if capability:
        options["--capability"] = capability
    words = [word for pair in options.items() for word in pair]
    command = ["-m", buildplan.__name__, *words]
    (folder / COMMAND_FILE).write_text(
        f"#!/bin/sh\n# Repeats this build with {contract.engine} {contract.engine_version}; run it "
        f"in this folder.\nexec python {shlex.join(command)}\n"
    )
    found = _run(command, folder, contract.engine, progress)
    if (folder / LAYERS_FILE).exists():  # a GPU could load the plan
        for name in unfused(json.loads((folder / LAYERS_FILE).read_text())):
            progress(f"{contract.engine}: attention was not fused: {name}")
    return found


def unfused(layers: Any) -> list[str]:
    """Returns the softmax layers of a plan whose attention was not fused; none where it was.

    Args:
        layers: the engine inspector's list, as JSON.
    """
    names = []
    for layer in layers["Layers"]:
        words = [layer] if isinstance(layer, str) else [str(one) for one in layer.values()]
        text = " ".join(words).lower()
        if any(mark in text for mark in _FUSED):
            return []
        if "softmax" in text:
            names.append(layer if isinstance(layer, str) else str(layer.get("Name", layer)))
    return names


def _run(
    command: list[str], folder: Path, engine: str, progress: Callable[[str], None]
) -> dict[str, Any]:
    described: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as said, (folder / LOG_FILE).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                kind, _, what = line.partition(" ")
                if f"{kind} " == buildplan.FOUND:
                    described = json.loads(what)
                elif f"{kind} " == buildplan.PROGRESS:
                    step = json.loads(what)
                    progress(f"{engine}: {step['phase']}, {step['done'] + 1} of {step['of']}")
                else:
                    log.write(line)
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        said.seek(0)
        text = said.read()
        log.write(text)
    if status:
        last = text.strip().splitlines()[-1:] or [f"it ended with status {status}"]
        raise MachineError(f"{engine} cannot build the plan: {last[0]}")
    return described
