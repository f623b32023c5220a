"""Every kernel is launched on the GPU that its arguments lie on, and nowhere but in `launch.py`."""

import ast
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hyena_kernels
from hyena_kernels.launch import launch

PACKAGE = Path(hyena_kernels.__file__).parent


def tensor_on(gpu: int):
    """What the launcher asks of a tensor, of one on a GPU that this machine need not have."""
    tensor = SimpleNamespace(get_device=lambda: gpu, device=f"cuda:{gpu}", is_contiguous=lambda: True)
    tensor.contiguous = lambda: tensor
    return tensor


class Machine:
    """Two GPUs, the first of which is current; remembers which was current at every launch and what was launched."""

    def __init__(self, monkeypatch):
        self.current, self.switches, self.launches = 0, 0, []
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self.device)

    @contextmanager
    def device(self, gpu):
        before, self.current = self.current, gpu
        self.switches += 1
        yield
        self.current = before

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((self.current, args))


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.mark.parametrize("gpu", [0, 1])
def test_a_kernel_runs_where_its_arguments_are(machine, gpu):
    x, y = tensor_on(gpu), tensor_on(gpu)
    launch(machine, (3, 1), (x, None), (y,), (7,), num_warps=4)
    assert machine.launches == [(gpu, (x, x, y, 7))]
    assert machine.current == 0
    assert machine.switches == gpu  # where the device is current already, no context is entered


def test_arguments_on_two_devices_are_refused(machine):
    with pytest.raises(ValueError, match="different devices: cuda:0 and cuda:1"):
        launch(machine, (1,), (tensor_on(0),), (tensor_on(1),))
    assert not machine.launches


def test_an_empty_grid_launches_nothing(machine):
    launch(machine, (3, 0, 2), (tensor_on(0),), (tensor_on(0),))
    assert not machine.launches


def launches_in(source: str) -> list[int]:
    """The lines on which something of the form kernel[grid](...), or a method that launches, is called."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    methods = {"run", "warmup", "__getitem__"}
    return [
        node.lineno
        for node in calls
        if isinstance(node.func, ast.Subscript) or (isinstance(node.func, ast.Attribute) and node.func.attr in methods)
    ]


def test_nothing_else_launches_kernels():
    found = {path.relative_to(PACKAGE).as_posix(): launches_in(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert found.pop("launch.py")
    assert not {name: lines for name, lines in found.items() if lines}
