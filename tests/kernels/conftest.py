"""Triton's interpreter, where the tests run in it, without its slowest habit, and rounding to bfloat16 as GPUs do."""

import os
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """The interpreter patches the whole language anew at every call of a device function; here, once and for all.

    It cuts numbers off to bfloat16 where a GPU rounds to the nearest: errors twice as large, and all to one side.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    def call(self, *args, **kwargs):
        return self.rewrite()(*args, **kwargs)

    convert = interpreter._convert_float

    def rounded(x, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(x, source, target, mode)

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    with (
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call),
        mock.patch.object(interpreter, "_convert_float", rounded),
    ):
        yield
