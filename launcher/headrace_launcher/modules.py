"""Reads how sentence-transformers goes on after the encoder: pooling, dense layers, normalisation.

A model folder says it in ``modules.json``: a list of modules, each with a type and a folder of its
own. The older spellings (``sentence_transformers.models.Pooling``, ``pooling_mode_mean_tokens``)
are read, and the newer ones (``sentence_transformers....pooling.Pooling``, ``pooling_mode``).
What would change a vector and cannot be followed is refused, never skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrace.contract import MOST_NUMBERS
from headrace.errors import UsageError
from headrace_launcher.modelfiles import is_count, read_json, read_object, really_inside

Activation = Literal["identity", "tanh"]

# As in sentence-transformers' Pooling: the switches of old configurations, and their modes.
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A dense layer after pooling: activation(W x + b).

    Attributes:
        folder: where its ``model.safetensors`` lies, with ``linear.weight`` [out, in].
        activation: ``identity`` or ``tanh``.
        in_features: length of the vectors that it takes.
        out_features: length of the vectors that it gives.
        bias: whether there is a ``linear.bias`` [out].
    """

    folder: Path
    activation: Activation
    in_features: int
    out_features: int
    bias: bool

    @property
    def weights(self) -> Path:
        """The file with its tensors."""
        return self.folder / "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A model's modules.

    Attributes:
        encoder: folder of the encoder, with its ``config.json`` and tokenizer.
        pooling: ``mean``, ``cls`` or ``last``.
        dense: the layers between pooling and normalisation.
        normalized: whether the last module divides vectors by their L2 norm.
    """

    encoder: Path
    pooling: str = "mean"
    dense: tuple[Dense, ...] = ()
    normalized: bool = False


def read_chain(folder: Path) -> Chain:
    """Reads ``modules.json`` and the modules' own configurations.

    Without a ``modules.json`` pooling is the mean and nothing is normalised: what
    sentence-transformers does with a bare transformers model.

    Raises:
        UsageError: a module or a setting of one is not supported, or a file is malformed.
    """
    file = folder / "modules.json"
    modules = read_json(file)
    if modules is None:
        return Chain(encoder=folder)
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) for module in modules
    ):
        raise UsageError(f"{file} is not a list of modules; download or export the model again")
    steps = [
        (
            module["type"],
            really_inside(folder, str(module.get("path", "")), model=folder, named_in=file),
        )
        for module in modules
        if module["type"].rsplit(".", 1)[-1] != "Dropout"  # does nothing at inference
    ]
    kinds = [_kind(name, file) for name, _ in steps]
    dense = kinds.count("Dense")
    order = ["Transformer", "Pooling", *["Dense"] * dense, *["Normalize"] * ("Normalize" in kinds)]
    if kinds != order:
        raise UsageError(
            f"{file}: the modules {', '.join(kinds)} cannot be followed, only Transformer, "
            "Pooling, any Dense, at most one Normalize, in this order; choose another model"
        )
    folders = [path for _, path in steps]
    if kinds[-1] == "Normalize":
        _check_pooled(read_object(folders[-1] / "config.json"), folders[-1] / "config.json")
    return Chain(
        encoder=folders[0],
        pooling=_read_pooling(folders[1] / "config.json"),
        dense=tuple(_read_dense(path) for path in folders[2 : 2 + dense]),
        normalized=kinds[-1] == "Normalize",
    )


def _kind(name: str, file: Path) -> str:
    """Returns the class of a module type that is supported."""
    kind = name.rsplit(".", 1)[-1]
    if not name.startswith("sentence_transformers.") or kind not in KINDS:
        raise UsageError(
            f"{file}: module {name!r} is not supported, only sentence-transformers' "
            f"{', '.join(KINDS)}; choose another model"
        )
    return kind


def _read_pooling(file: Path) -> str:
    config = read_object(file)
    if not config:
        raise UsageError(f"{file} is missing; download or export the model again")
    mode = config.get("pooling_mode")
    if mode is None:
        # No switch turned on means the mean, as in sentence-transformers.
        mode = [name for key, name in OLD_MODES.items() if config.get(key)] or "mean"
    modes = mode if isinstance(mode, list) else [mode]
    if len(modes) != 1:
        raise UsageError(
            f"{file}: several pooling modes at once ({', '.join(map(str, modes))}) are not "
            "supported; choose a model with one"
        )
    if not isinstance(modes[0], str) or modes[0] not in MODES:
        raise UsageError(
            f"{file}: pooling mode {modes[0]!r} is not supported, only {', '.join(MODES)}; "
            "choose another model"
        )
    if config.get("include_prompt", True) is not True:
        raise UsageError(
            f"{file}: include_prompt is false, but a prompt's tokens cannot be left out of the "
            "pooling here; choose another model"
        )
    return MODES[modes[0]]


def _read_dense(folder: Path) -> Dense:
    file = folder / "config.json"
    config = read_object(file)
    _check_pooled(config, file)
    if config.get("use_residual"):
        raise UsageError(f"{file}: use_residual is not supported; choose another model")
    # Tanh is what sentence-transformers takes where nothing is said.
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UsageError(
            f"{file}: activation_function {activation!r} is not supported, only Identity and Tanh; "
            "choose another model"
        )
    sizes = [config.get(key) for key in ("in_features", "out_features")]
    if not all(is_count(size, most=MOST_NUMBERS) for size in sizes):
        raise UsageError(
            f"{file} lacks in_features or out_features, or one is no number from 1 to "
            f"{MOST_NUMBERS}; export the model again"
        )
    dense = Dense(
        folder=folder,
        activation=ACTIVATIONS[activation],
        in_features=int(config["in_features"]),
        out_features=int(config["out_features"]),
        bias=bool(config.get("bias", True)),
    )
    if not dense.weights.is_file():  # a FIFO or a device is none either
        raise UsageError(
            f"{folder} has no model.safetensors (a pytorch_model.bin is not read: it can run "
            "code); load the model with sentence-transformers and save_pretrained it again"
        )
    return dense


def _check_pooled(config: Mapping[str, Any], file: Path) -> None:
    """Refuses a module that works on anything else than the pooled vector."""
    for key in ("module_input_name", "module_output_name"):
        name = config.get(key) or "sentence_embedding"
        if name != "sentence_embedding":
            raise UsageError(
                f"{file}: {key} {name!r} is not supported, only 'sentence_embedding'; "
                "choose another model"
            )
