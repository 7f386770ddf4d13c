"""ONNX -> OpenVINO IR, and what OpenVINO can do on this processor."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from headrace.errors import MissingDependencyError, UsageError
from headrace_launcher.processes import die_with

MODEL_FILE = "model.xml"
# Of memory that a conversion may take: bytes beside the graph's, and the graph's so often.
_LEAST_MEMORY = 4 << 30
_TIMES = 8


def version() -> str:
    """Returns OpenVINO's version.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingDependencyError(
            "OpenVINO is not installed, and the CPU engine needs it; "
            "install it with: pip install 'headrace[launcher,cpu]'"
        ) from error
    return str(ov.__version__).split("-", 1)[0]


def resolve_precision(wanted: str) -> str:
    """Returns ``fp32`` or ``bf16``: what ``auto`` means on this processor, or what was asked for.

    ``auto`` is bf16 where the processor computes it natively, else fp32.

    Raises:
        UsageError: fp16 was asked for, or bf16 and the processor does not have it.
    """
    if wanted == "fp16":
        raise UsageError("--precision fp16: OpenVINO has no fp16 on a CPU; use fp32, bf16 or auto")
    native = _native_bf16()
    if wanted == "auto":
        return "bf16" if native else "fp32"
    if wanted == "bf16" and not native:
        raise UsageError(
            "--precision bf16: this processor has no native bf16 (AVX512-BF16 or AMX); "
            "use --precision fp32 or auto"
        )
    return wanted


def _native_bf16() -> bool:
    version()
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def convert(graph: Path, folder: Path, *, dimension: int, foreign: bool = False) -> None:
    """Converts an fp32 ONNX file to ``model.xml`` and ``model.bin`` in ``folder``.

    The weights stay fp32; the precision of the computation is chosen when the model is loaded.

    Args:
        graph: the ONNX file.
        folder: where the two files go.
        dimension: length of the vectors that the graph must give.
        foreign: whether the graph is somebody else's: it is then converted in a process of its
            own, since what is wrong with it may end that process or take all of its memory.

    Raises:
        UsageError: the graph gives vectors of another length, or OpenVINO cannot convert it.
    """
    version()
    width = _convert_apart(graph, folder) if foreign else read(graph, folder)
    if width not in (None, dimension):
        raise UsageError(
            f"the model gives vectors of {width} numbers, its configuration says "
            f"{dimension}; correct hidden_size in config.json"
        )


def read(graph: Path, folder: Path) -> int | None:
    """Does the conversion; returns the length of the vectors where the graph says it."""
    import openvino as ov

    model = ov.Core().read_model(graph)
    width = model.output(0).partial_shape[1]
    ov.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    return int(width.get_length()) if width.is_static else None


def _convert_apart(graph: Path, folder: Path) -> int | None:
    size = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", __name__),
            *(str(graph.absolute()), str(folder.absolute()), str(_LEAST_MEMORY + _TIMES * size)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=partial(die_with, os.getpid()),
    )
    if done.returncode == 0:
        return json.loads(done.stdout)  # type: ignore[no-any-return]
    said = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
    if done.returncode < 0:
        said = [f"it was ended by {signal.Signals(-done.returncode).name}"]
    raise UsageError(
        f"OpenVINO cannot convert the model's ONNX file: {said[-1][:500]}; export the model again"
    )


def main(graph: str, folder: str, memory: str) -> int:
    """Converts a graph within ``memory`` bytes; tells the length of its vectors, or the fault."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        width = read(Path(graph), Path(folder))
        _try(Path(folder))
    except Exception as error:  # noqa: BLE001 -- OpenVINO's are many; whoever started this tells
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sys.stderr.write((lines or [type(error).__name__])[-1] + "\n")
        return 1
    sys.stdout.write(json.dumps(width))
    return 0


def _try(folder: Path) -> None:
    """Computes a row, so that what takes all memory does so here and not in a server."""
    import numpy as np
    import openvino as ov

    core = ov.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})
    row = np.ones((1, 2), np.int32)
    core.compile_model(folder / MODEL_FILE, "CPU")([row, row])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
