"""A BERT-like encoder in PyTorch, so that a model can be hosted where TensorRT is not installed.

A copy of this file lies in an entry's version folder, beside those of ``headrace_launcher.hosted``
and what :mod:`headrace_bench.gpu.torchentry` has written: ``weights.npz`` and ``geometry.json``.
There it is the engine ``torchbert``, and imports torch, NumPy and its neighbours alone.

The encoder is Devlin et al.'s (2018, https://arxiv.org/abs/1810.04805), as Hugging Face
transformers computes it in ``models/{bert,roberta}/modeling_*.py``.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- as everybody calls it
from numpy.typing import NDArray

if TYPE_CHECKING or __package__ == "headrace_bench.gpu":
    from headrace_launcher.hosted.engine import Answer
    from headrace_launcher.hosted.gpu import Buffers, GpuEngine
else:
    from .engine import Answer
    from .gpu import Buffers, GpuEngine

WEIGHTS_FILE = "weights.npz"
GEOMETRY_FILE = "geometry.json"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# exp() of it is 0 for every score that occurs, and it is finite in fp16, so that a row without a
# single token gets evenly spread attention instead of NaN.
_MASKED = -3e4
_WAITING = 2  # batches at the CPU: one computed, one next


def load(folder: Path, settings: dict[str, Any], device: int) -> CpuEngine | TorchEngine:
    """Returns the engine of the weights in ``folder``: on the GPU of that number, or on the CPU.

    The CPU it is where the settings name no ``capability``.
    """
    if settings["capability"]:
        return TorchEngine(folder, settings, device)
    return CpuEngine(folder, settings)


class Encoder:
    """From token ids to vectors.

    Args:
        folder: where the weights and the geometry lie.
        settings: the model's headrace settings.
        device: where to compute.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], device: torch.device) -> None:
        geometry = json.loads((folder / GEOMETRY_FILE).read_text())
        self._layers = int(geometry["layers"])
        self._heads = int(geometry["heads"])
        self._epsilon = float(geometry["epsilon"])
        self._pad_offset: int | None = geometry["pad_offset"]
        self._pooling: str = settings["pooling"]
        self._dimension = int(settings["dimension"])
        self._normalized: bool = settings["normalized"]
        dtype = _DTYPES[settings["precision"]]
        with np.load(folder / WEIGHTS_FILE) as arrays:
            self._weights = {
                name: torch.from_numpy(arrays[name]).to(device, dtype) for name in arrays.files
            }

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the vectors of a batch, float32[rows, dimension].

        Args:
            ids: int32[rows, length].
            mask: int32[rows, length]; 1 for a token, 0 for padding on the right.
        """
        x = F.embedding(ids, self._weights["words"])
        x = self._norm("norm", x + self._positions(ids))
        bias = ((1 - mask).to(x.dtype) * _MASKED)[:, None, None, :]
        for layer in range(self._layers):
            x = self._norm(f"{layer}.attention_norm", x + self._attention(layer, x, bias))
            wide = F.gelu(self._linear(f"{layer}.up", x))
            x = self._norm(f"{layer}.norm", x + self._linear(f"{layer}.down", wide))
        vectors = self._pool(x, mask)[:, : self._dimension]
        return F.normalize(vectors, dim=1) if self._normalized else vectors

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the positions' part of the embeddings, [length or rows x length, hidden]."""
        table = self._weights["positions"]
        if self._pad_offset is None:
            return table[: ids.shape[1]]
        # create_position_ids_from_input_ids of modeling_roberta.py.
        token = (ids != self._pad_offset).int()
        return F.embedding(token.cumsum(1) * token + self._pad_offset, table)

    def _attention(self, layer: int, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        rows, length, hidden = x.shape
        # [3, rows, heads, length, size]
        parts = self._linear(f"{layer}.qkv", x)
        parts = parts.view(rows, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self._linear(f"{layer}.out", mixed.transpose(1, 2).reshape(rows, length, hidden))

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Returns LayerNorm over the last axis; torch sums in fp32, whatever the type."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self._epsilon)

    def _pool(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns sentence-transformers' ``mean`` or ``cls`` of the states, fp32[rows, hidden]."""
        if self._pooling == "cls":
            return x[:, 0].float()
        kept = mask[:, :, None].float()
        return (x.float() * kept).sum(1) / kept.sum(1).clamp(min=1e-9)


class CpuEngine:
    """The encoder on the CPU: one batch after the other, each with torch's own threads.

    Args:
        folder: where the weights and the geometry lie.
        settings: the model's headrace settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._encoder = Encoder(folder, settings, torch.device("cpu"))
        self._dtype = np.dtype(settings["dtype"])
        self._free = threading.Semaphore(_WAITING)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="torch")

    def submit(self, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer) -> None:
        """See :meth:`Engine.submit`."""
        self._free.acquire()
        self._pool.submit(self._compute, ids.copy(), mask.copy(), answer)

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self._pool.shutdown()

    def _compute(self, ids: NDArray[np.int32], mask: NDArray[np.int32], answer: Answer) -> None:
        try:
            try:
                with torch.inference_mode():
                    vectors = self._encoder(torch.from_numpy(ids), torch.from_numpy(mask))
                found = vectors.numpy().astype(self._dtype, copy=False)
            except Exception as error:  # noqa: BLE001 -- whatever it was, the client must hear of it
                answer(None, error)
            else:
                answer(found, None)
        finally:
            self._free.release()


class TorchEngine(GpuEngine):
    """The encoder on a GPU, on the stream of :class:`GpuEngine`.

    torch shares the GPU's primary context with the driver's bindings, so that an address of the one
    is one of the other.

    Args:
        folder: where the weights and the geometry lie.
        settings: the model's headrace settings.
        device: number of the GPU in this process.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], device: int) -> None:
        super().__init__(settings, device)
        self._device = torch.device("cuda", device)
        self._encoder: Encoder | None = Encoder(folder, settings, self._device)
        # They were copied on another stream, which the one that reads them does not wait for.
        torch.cuda.synchronize(self._device)

    def enqueue(self, buffers: Buffers, rows: int, length: int, stream: int) -> None:
        """See :meth:`GpuEngine.enqueue`.

        What torch allocates meanwhile belongs to that stream: it may be used again by what is
        enqueued next, but by nothing else (torch, "CUDA semantics", memory management).
        """
        assert self._encoder is not None
        streams: Any = torch.cuda  # of its parts only some have types
        ours = streams.ExternalStream(stream, device=self._device)
        with torch.inference_mode(), torch.cuda.stream(ours):
            ids, mask = (
                tensor_at(address, (rows, length), np.dtype(np.int32), self._device)
                for address in (buffers.ids, buffers.mask)
            )
            shape = (rows, self._dimension)
            vectors = tensor_at(buffers.vectors, shape, self._dtype, self._device)
            vectors.copy_(self._encoder(ids, mask))

    def release(self) -> None:
        """See :meth:`GpuEngine.release`."""
        self._encoder = None
        torch.cuda.empty_cache()


class _Array:
    """Shows a GPU's memory to torch (numba.readthedocs.io, "CUDA Array Interface", version 3)."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, False),  # not only to be read
            "strides": None,  # C order
            "version": 3,
        }


def tensor_at(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device
) -> torch.Tensor:
    """Returns a tensor that is the array at an address of a GPU's memory; nothing is copied."""
    return torch.as_tensor(_Array(address, shape, dtype), device=device)
