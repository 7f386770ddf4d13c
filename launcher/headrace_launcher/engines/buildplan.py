"""Builds a TensorRT plan from an ONNX file; runs in a process of its own.

A build takes minutes and all of a GPU's memory, and a fault in it must not take the launcher along.
:mod:`headrace_launcher.engines.tensorrt` starts it and leaves the command beside each plan.
Works with TensorRT 10.13 to 11 and with TensorRT for RTX: types come from the graph alone, which is
strongly typed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What the two libraries are called, with and without NVIDIA's wrapper package.
LIBRARIES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
PROGRESS = "progress "
FOUND = "found "
FAILED = "the build failed"


def load(library: str) -> Any:
    """Returns the Python module of a library.

    Raises:
        ImportError: it is not installed.
    """
    for name in LIBRARIES[library]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise ImportError(f"none of {', '.join(LIBRARIES[library])} is installed")


def build(trt: Any, options: argparse.Namespace) -> bytes:
    """Builds the plan and tells of it on standard output, a line of JSON each.

    Args:
        trt: the library.
        options: see :func:`main`.

    Raises:
        RuntimeError: the graph cannot be read, or the build failed; the library's log says why.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(options.graph)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise RuntimeError("the graph cannot be read: " + "; ".join(errors))
    _say(FOUND, _describe(network))
    config = builder.create_builder_config()
    # FP32 is to be FP32: by default its products have the 10-bit mantissa of TF32.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.capability:  # TensorRT for RTX alone builds for a GPU that is not here
        config.num_compute_capabilities = 1
        wanted = getattr(trt.ComputeCapability, f"SM{options.capability.replace('.', '')}")
        config.set_compute_capability(wanted, 0)
    if options.timing_cache is not None:
        kept = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        cache = config.create_timing_cache(kept)
        # One that is damaged or of another version is none: measured anew.
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    for least, best, most in json.loads(options.profiles):
        profile = builder.create_optimization_profile()
        for name in names:
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeError(f"the profile {least}, {best}, {most} was refused")
    if hasattr(config, "progress_monitor"):
        monitor = _monitor(trt)
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(FAILED)
    if options.timing_cache is not None:
        try:
            write(options.timing_cache, bytes(config.get_timing_cache().serialize()))
        except OSError as error:  # the plan is good all the same
            print(f"the timing cache cannot be kept: {error}", file=sys.stderr)
    return bytes(plan)


def layers(trt: Any, plan: bytes) -> Any | None:
    """Returns what the engine inspector says of a plan; None where no GPU can load it."""
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds a plan; returns 0, or 1 where that failed, with the reason on standard error."""
    parser = argparse.ArgumentParser(description="ONNX -> TensorRT plan")
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--graph", type=Path, required=True, help="a strongly typed ONNX file")
    parser.add_argument("--plan", type=Path, required=True, help="the file to write")
    parser.add_argument("--profiles", required=True, help="JSON: [[least, best, most shape]...]")
    parser.add_argument("--layers", type=Path, help="where to put the inspector's layer list")
    parser.add_argument("--timing-cache", type=Path, help="kept from one build to the next")
    parser.add_argument("--capability", help="compute capability of a GPU that is not here: 8.9")
    options = parser.parse_args(arguments)
    trt = load(options.library)
    try:
        plan = build(trt, options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    write(options.plan, plan)
    if options.layers is not None and not options.capability:
        try:
            found = layers(trt, plan)
        except (RuntimeError, ValueError) as error:  # the plan is good all the same
            print(f"the layers cannot be listed: {error}", file=sys.stderr)
        else:
            if found is not None:
                write(options.layers, (json.dumps(found, indent=1) + "\n").encode())
    return 0


def write(path: Path, data: bytes) -> None:
    """Writes a file anew, since another entry may share the one that is there."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


def _describe(network: Any) -> dict[str, Any]:
    """What the parser made of the graph: names, types, shapes, number of layers."""

    def tensor(found: Any) -> dict[str, Any]:
        kind = str(found.dtype).rsplit(".", 1)[-1]
        return {"name": found.name, "type": kind, "shape": list(found.shape)}

    return {
        "inputs": [tensor(network.get_input(index)) for index in range(network.num_inputs)],
        "outputs": [tensor(network.get_output(index)) for index in range(network.num_outputs)],
        "layers": network.num_layers,
    }


def _monitor(trt: Any) -> Any:
    """Returns a progress monitor that tells of the outermost phase; called from many threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self.steps.get(phase_name)
            if steps is not None:
                _say(PROGRESS, {"phase": phase_name, "done": step, "of": steps})
            return True

    return Monitor()


def _say(kind: str, what: dict[str, Any]) -> None:
    print(kind + json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
