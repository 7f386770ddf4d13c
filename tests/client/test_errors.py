from __future__ import annotations

import inspect

import grpc
import pytest
import tritonclient.grpc as triton

from headrace import errors
from headrace.errors import HeadraceError, ServerError
from headrace.transport.base import server_errors


def test_every_error_has_an_exit_code_of_its_branch_and_stands_in_the_tree():
    tree = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, HeadraceError)]
    for kind in tree:
        assert kind.__name__ in errors.__doc__
        if kind is not HeadraceError:
            assert kind.exit_code in {2, 3, 4}


@pytest.mark.parametrize(
    "foreign",
    [
        *(
            triton.InferenceServerException("no luck", status=status)
            for status in ("StatusCode.UNAVAILABLE", "StatusCode.INVALID_ARGUMENT", None)
        ),
        grpc.RpcError("no luck"),
    ],
)
def test_what_the_client_libraries_raise_becomes_a_server_error(foreign):
    with pytest.raises(ServerError, match=r"asking: .*no luck") as caught, server_errors("asking"):
        raise foreign
    assert caught.value.__cause__ is foreign
