"""A finished job for each test to spoil."""

from __future__ import annotations

import pytest

from bench.verify.jobs import WIDE, Job


@pytest.fixture
def job(tmp_path, make_contract):
    def make(
        texts,
        name="out.npy",
        *,
        manifest=True,
        precision="bf16",
        normalized=True,
        ids="row numbers",
        **settings,
    ):
        contract = make_contract(dimension=WIDE, precision=precision, normalized=normalized)
        return Job(tmp_path, contract, list(texts), name, settings, manifest, ids)

    return make
