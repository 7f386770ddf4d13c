"""ONNX -> TensorRT plan, for this machine's GPU or, with TensorRT for RTX, for one elsewhere.

A plan is bound to the version of TensorRT and to the compute capability of the GPU. Beside it lies
what made it: the graph, the command, the library's log, and the list of its layers.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from headrace.contract import Contract
from headrace.errors import MachineError, MissingDependencyError, UsageError
from headrace_launcher.engines import buildplan
from headrace_launcher.gpus import ORDER
from headrace_launcher.processes import die_with

PLAN_VERSION = 2
"""Part of what a plan is known by: raise it whenever the same graph is built otherwise."""
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
        remedy = {
            "tensorrt": "pip install tensorrt-cu12 (or -cu13), in NVIDIA's Triton container "
            "tensorrt-cu13-bindings==$TRT_VERSION",
            "tensorrt-rtx": "install it with: pip install 'headrace[launcher,rtx]'",
        }[engine]
        raise MissingDependencyError(
            f"the engine {engine} needs a library that is not installed here ({error}); {remedy}"
        ) from error


def check_capability(capability: str) -> None:
    """Checks that TensorRT for RTX builds for a GPU of this compute capability.

    Raises:
        UsageError: it does not.
    """
    known = [
        name.removeprefix("SM")
        for name in dir(buildplan.load("tensorrt-rtx").ComputeCapability)
        if name.startswith("SM")
    ]
    if capability.replace(".", "") not in known:
        names = ", ".join(f"{each[:-1]}.{each[-1]}" for each in sorted(known, key=int))
        raise UsageError(f"--capability {capability}: TensorRT for RTX builds for {names}")


def profiles(contract: Contract) -> list[Profile]:
    """Returns one profile a bucket: disjoint ranges of lengths, best for a full batch.

    Triton chooses among profiles by the shape, so that they must not overlap; and it may join
    requests of one length into as many rows as the model takes, so that each admits that many.
    """
    found, shorter = [], 0
    for bucket in contract.buckets:
        length = bucket.max_length
        found.append(
            Profile(
                least=(1, shorter + 1),
                best=(bucket.max_batch, length),
                most=(contract.max_batch, length),
            )
        )
        shorter = length
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBuilder:
    """Builds plans in a child process and leaves what made them beside them.

    Attributes:
        contract: the model's settings.
        elsewhere: whether the plan is for a GPU that is not here: one of the contract's
            capability. Only TensorRT for RTX builds such.
        timing_cache: where to keep how fast each kernel was; a later build of the same engine for
            the same kind of GPU takes it from there. None keeps nothing.
        failure_log: where to leave the library's log of a build that failed, or None.
        progress: told in a line what is being done; often.
        notice: told in a line what the user should know.
    """

    contract: Contract
    elsewhere: bool = False
    timing_cache: Path | None = None
    failure_log: Path | None = None
    progress: Callable[[str], None] = lambda _: None
    notice: Callable[[str], None] = lambda _: None

    def convert(self, graph: Path, folder: Path) -> dict[str, Any]:
        """Builds ``model.plan`` in ``folder``.

        Args:
            graph: a strongly typed ONNX file; moved into ``folder``.
            folder: where the plan goes.

        Returns:
            What the parser made of the graph: ``inputs`` and ``outputs``, each with ``name``,
            ``type`` and ``shape``, and ``layers``, their number.

        Raises:
            UsageError: the graph gives vectors of another length than the contract says.
            MachineError: the build failed; the message ends with the library's own.
        """
        contract = self.contract
        graph.replace(folder / GRAPH_FILE)
        for data in graph.parent.glob(f"{graph.name}.data"):
            data.replace(folder / data.name)
        options = {
            "--library": contract.engine,
            "--graph": GRAPH_FILE,
            "--plan": PLAN_FILE,
            "--layers": LAYERS_FILE,
            "--profiles": json.dumps(profiles(contract)),
        }
        if self.elsewhere:
            options["--capability"] = contract.capability
        command = ["-m", buildplan.__name__, *(word for pair in options.items() for word in pair)]
        (folder / COMMAND_FILE).write_text(
            f"#!/bin/sh\n# Repeats this build with {contract.engine} {contract.engine_version}; "
            f"run it in this folder, with headrace's Python (PYTHON=...).\n"
            f'exec "${{PYTHON:-python}}" {shlex.join(command)}\n'
        )
        if self.timing_cache is not None:
            command += ["--timing-cache", str(self.timing_cache.absolute())]
        try:
            found = _run(command, folder, contract.engine, self.progress)
        except MachineError as error:
            if self.failure_log is None:
                raise
            try:
                shutil.copyfile(folder / LOG_FILE, self.failure_log)
            except OSError:
                raise error from None  # that is what matters
            raise MachineError(f"{error}; all that it said is in {self.failure_log}") from error
        width = found["outputs"][0]["shape"][-1]
        if width != contract.dimension:
            raise UsageError(
                f"the model gives vectors of {width} numbers, its configuration says "
                f"{contract.dimension}; correct hidden_size in config.json"
            )
        if (folder / LAYERS_FILE).exists():  # a GPU could load the plan
            self._check_layers(json.loads((folder / LAYERS_FILE).read_text()))
        return found

    def _check_layers(self, layers: Any) -> None:
        if names := unfused(layers):
            self.notice(
                f"warning: {self.contract.engine} did not fuse all attention, so it will be slow; "
                f"layers: {', '.join(names)}"
            )


def unfused(layers: Any) -> list[str]:
    """Returns the softmax layers of a plan that are no part of a fused attention.

    Args:
        layers: the engine inspector's list, as JSON.
    """
    names = []
    for layer in layers["Layers"]:
        words = [layer] if isinstance(layer, str) else [str(one) for one in layer.values()]
        text = " ".join(words).lower()
        if "softmax" in text and not any(mark in text for mark in _FUSED):
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
            env=os.environ | ORDER,
            preexec_fn=partial(die_with, os.getpid()),  # noqa: PLW1509 -- takes no lock
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
        raise MachineError(
            f"{engine} cannot build the plan: {_reason((folder / LOG_FILE).read_text(), status)}"
        )
    return described


def _reason(log: str, status: int) -> str:
    """Returns why a build failed: what the library said last of errors, else the last line."""
    if status < 0:
        killer = signal.Signals(-status).name
        return f"it was ended by {killer} (if memory ran out, the kernel's log says so)"
    lines = log.strip().splitlines() or [f"it ended with status {status}"]
    errors = [line.partition("[E] ")[2] for line in lines if "[E] " in line]
    reason = errors[-1] if errors and buildplan.FAILED in lines[-1] else lines[-1]
    if "memory" in reason.lower():
        reason += "; smaller batches take less: --max-batch, --token-budget, --buckets"
    return reason
