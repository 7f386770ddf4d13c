"""Writes tests/data/families: a tiny model of each family, and what transformers computes with it.

Needs torch and transformers. Run from the repository: python tests/launcher/encoder/make_goldens.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2] / "data" / "families"
SEED = 20240501
LENGTHS = (9, 1, 17, 4, 24)  # tokens a row
VOCABULARY = 64

STANDARD: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}
# Each family with another activation, so that every one of them has a golden.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**STANDARD, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0},
    "roberta": {**STANDARD, "type_vocab_size": 1, "hidden_act": "gelu_new", "pad_token_id": 1},
    "xlm-roberta": {**STANDARD, "type_vocab_size": 1, "hidden_act": "gelu", "pad_token_id": 1},
    "camembert": {
        **STANDARD,
        "type_vocab_size": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "pad_token_id": 1,
    },
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
        "activation": "relu",
        "pad_token_id": 0,
    },
}


def batch(pad_id: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and mask, int32 [rows, longest], padded on the right."""
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)
    ids = rng.integers(2, VOCABULARY, mask.shape)
    return np.where(mask, ids, pad_id).astype(np.int32), mask


def main() -> None:
    """Writes every family's folder."""
    import torch
    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModel

    for family, settings in FAMILIES.items():
        rng = np.random.default_rng(SEED)
        folder = ROOT / family
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_type": family, **settings}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        model = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
        tensors = {}
        for name, tensor in sorted(model.state_dict().items()):
            if "pooler" in name:
                continue
            values = rng.normal(0, 0.2, tensor.shape)
            values += name.endswith(("LayerNorm.weight", "layer_norm.weight"))
            tensors[name] = values.astype(np.float32)
        state = {name: torch.from_numpy(values) for name, values in tensors.items()}
        model.load_state_dict(state, strict=False)
        save_file(tensors, folder / "model.safetensors")
        ids, mask = batch(settings["pad_token_id"], rng)
        with torch.no_grad():
            answer = model(
                input_ids=torch.from_numpy(ids).long(),
                attention_mask=torch.from_numpy(mask).long(),
            )
        hidden = answer.last_hidden_state.numpy() * mask[..., None]
        np.savez_compressed(folder / "golden.npz", ids=ids, mask=mask, hidden=hidden)


if __name__ == "__main__":
    main()
