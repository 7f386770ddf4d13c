"""ONNX -> OpenVINO IR, and what OpenVINO can do on this processor."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import MissingDependencyError, UsageError

MODEL_FILE = "model.xml"


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


def convert(graph: Path, folder: Path, *, dimension: int) -> None:
    """Converts an fp32 ONNX file to ``model.xml`` and ``model.bin`` in ``folder``.

    The weights stay fp32; the precision of the computation is chosen when the model is loaded.

    Args:
        graph: the ONNX file.
        folder: where the two files go.
        dimension: length of the vectors that the graph must give.

    Raises:
        UsageError: the graph gives vectors of another length.
    """
    version()
    import openvino as ov

    model = ov.Core().read_model(graph)
    width = model.output(0).partial_shape[1]
    if width.is_static and width.get_length() != dimension:
        raise UsageError(
            f"the model gives vectors of {width.get_length()} numbers, its configuration says "
            f"{dimension}; correct hidden_size in config.json"
        )
    ov.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
