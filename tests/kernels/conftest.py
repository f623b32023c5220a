"""Triton's interpreter, where the tests run in it, without its slowest habit."""

import os
from types import SimpleNamespace
from unittest import mock

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """The interpreter patches the whole language anew at every call of a device function; here, once and for all."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    def call(self, *args, **kwargs):
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    with mock.patch.object(interpreter.InterpretedFunction, "__call__", call):
        yield
