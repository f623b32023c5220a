"""Files as nobody should write them: mutated configurations and checkpoints, and pickles that would run code."""

import copy
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evo2cli.errors import UserError
from stripedhyena2 import Config, ModelError
from stripedhyena2.checkpoints import build, native, open_checkpoint, running_tensors, savanna, torch_file, vortex
from stripedhyena2.checkpoints.vortex_config import config_text, read_config
from stripedhyena2.initialization import new_model
from stripedhyena2.layers import lora
from stripedhyena2.layers.lora import add_lora, merge_adapter, save_adapter

CONFIG = Config("SDH*", 16, 2, 24, 2, 2)

LIBRARIES = re.compile(r"pydantic|Input should|validation error|Traceback|\n")
"""Words of the libraries below, which say nothing to a user."""


def refused_or_fine(call: Callable[[], object]) -> bool:
    """Whether a call went well; if not, it ended with one line for the user."""
    message = ""
    try:
        call()
    except (ModelError, UserError) as error:
        message = str(error)
    assert not LIBRARIES.search(message), message
    assert len(message) < 2000
    return not message


def fuzz(examples: int, call: Callable[..., None], *strategies: Any) -> None:
    """Call with as many examples of what the strategies give: the same ones in every run."""
    settings(
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        derandomize=True,
        database=None,
    )(given(*strategies)(call))()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([10**9, -(10**9), 2**63, 10**400, 1e308, -1e308, float("inf"), float("nan"), 1e-320, 0.5]),
    st.text(max_size=8),
    st.sampled_from(["1e9", "SDH*", "\0", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "x" * 5000]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | SCALARS, inner, max_size=3),
    max_leaves=8,
)


def mutations(values: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[list[tuple[str, int, Any]]]:
    """Steps for `mutated`."""
    kinds = st.sampled_from(["replace", "replace", "replace", "delete", "add", "rename", "swap"])
    return st.lists(st.tuples(kinds, st.integers(0, 10**6), values), min_size=1, max_size=4)


def mutated(mapping: dict[Any, Any], steps: list[tuple[str, int, Any]]) -> Any:
    """A nested mapping after these steps, each at one of its keys, at any depth."""
    mapping = copy.copy(mapping)
    for kind, place, value in steps:
        keys = list(_keys(mapping))
        if not keys:
            return value
        inside, key = keys[place % len(keys)]
        match kind:
            case "replace":
                inside[key] = value
            case "delete":
                del inside[key]
            case "add":
                inside[value if isinstance(value, str) else f"new{place}"] = value
            case "rename":
                inside[value if isinstance(value, str) else f"{key}_"] = inside.pop(key)
            case "swap":
                other, its = keys[place // 7 % len(keys)]
                inside[key], other[its] = other[its], inside[key]
    return mapping


def _keys(mapping: dict[Any, Any], depth: int = 0) -> Iterator[tuple[dict[Any, Any], Any]]:
    for key, value in list(mapping.items()):
        yield mapping, key
        if isinstance(value, dict) and depth < 2:
            mapping[key] = value = dict(value)
            yield from _keys(value, depth + 1)


def flipped(data: bytes, steps: list[tuple[str, int, Any]]) -> bytes:
    """Bytes of which some were changed, cut out, doubled or appended."""
    out = bytearray(data)
    for kind, place, value in steps:
        at = place % max(len(out), 1)
        match kind:
            case "replace" | "swap":
                out[at : at + 1] = bytes([place % 251])
            case "delete":
                del out[at : at + 1 + place % 40]
            case "add":
                out[at:at] = repr(value).encode()[:50]
            case "rename":
                out = out[: max(at, 1)]
    return bytes(out)


TENSORS = st.one_of(
    st.builds(torch.zeros, st.lists(st.integers(0, 5), max_size=4)),
    st.builds(
        lambda dtype: torch.ones(16).to(dtype),
        st.sampled_from([torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64, torch.uint8]),
    ),
    st.just(torch.zeros(1).expand(10**12)),
    st.just(torch.full((16,), float("nan"))),
    st.just(torch.zeros(16).to_sparse()),
    st.just(torch.zeros(16, device="meta")),
    st.just(torch.nn.Parameter(torch.zeros(16))),
    st.builds(io.BytesIO, st.binary(max_size=20)),
)


class Checkpoints:
    """Small checkpoints of every format in a folder, to be mutated there."""

    def __init__(self, folder: Path):
        self.folder = folder
        tensors = dict(running_tensors(new_model(CONFIG, seed=0)))
        native.write(folder / "native", CONFIG, tensors, notes={"step": 3})
        vortex.write(folder / "whole.pt", CONFIG, tensors)
        torch_file.write(folder / "savanna.pt", savanna.from_vortex(vortex.vortex_tensors(CONFIG, tensors), CONFIG))
        self.about = json.loads((folder / "native" / native.CONFIG).read_text())
        adapted = add_lora(new_model(CONFIG, seed=0), rank=2, alpha=4.0)
        save_adapter(adapted, folder / "adapter", {"rank": 2, "alpha": 4.0, "base": "native"})
        self.adapter = load_file(folder / "adapter" / lora.ADAPTER)
        self.yaml = config_text(CONFIG)
        self.states = {
            "vortex": torch.load(folder / "whole.pt", weights_only=True),
            "savanna": {"module": torch.load(folder / "savanna.pt", weights_only=True), "step": 3},
        }

    def yaml_mapping(self, steps: Any) -> None:
        self._read_yaml(yaml.safe_dump(mutated(yaml.safe_load(self.yaml), steps), allow_unicode=True).encode())

    def yaml_text(self, steps: Any) -> None:
        self._read_yaml(flipped(self.yaml.encode(), steps))

    def _read_yaml(self, data: bytes) -> None:
        (self.folder / "c.yml").write_bytes(data)
        refused_or_fine(lambda: read_config(self.folder / "c.yml"))

    def native_json(self, steps: Any) -> None:
        self._open_native(native.CONFIG, _json(mutated(self.about, steps)))

    def native_text(self, steps: Any) -> None:
        self._open_native(native.CONFIG, flipped(json.dumps(self.about).encode(), steps))

    def native_index(self, steps: Any) -> None:
        index = {"metadata": {}, "weight_map": dict.fromkeys(list(self.about["sha256"])[:5], native.WEIGHTS)}
        self._open_native(native.INDEX, _json(mutated(index, steps)))

    def native_weights(self, steps: Any) -> None:
        self._open_native(native.WEIGHTS, flipped((self.folder / "native" / native.WEIGHTS).read_bytes(), steps))

    def _open_native(self, name: str, data: bytes) -> None:
        file = self.folder / "native" / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(data)
        try:
            refused_or_fine(lambda: build(open_checkpoint(file.parent)))
            refused_or_fine(lambda: list(native.damaged(file.parent)))
        finally:
            file.unlink()
            if before is not None:
                file.write_bytes(before)

    def adapter_json(self, steps: Any) -> None:
        about = mutated({"rank": 2, "alpha": 4.0, "base": "native"}, steps)
        (self.folder / "adapter" / lora.ABOUT).write_bytes(_json(about))
        self._merge()

    def adapter_dict(self, steps: Any) -> None:
        values = mutated(self.adapter, steps)
        kept = {
            k: v.clone() for k, v in values.items() if isinstance(k, str) and type(v) is torch.Tensor and _is_plain(v)
        }
        save_file(kept, self.folder / "adapter" / lora.ADAPTER)
        self._merge()

    def _merge(self) -> None:
        opened = open_checkpoint(self.folder / "native")
        refused_or_fine(lambda: build(merge_adapter(opened, self.folder / "adapter")))

    def vortex_dict(self, steps: Any) -> None:
        self._open_dict("vortex", steps)

    def savanna_dict(self, steps: Any) -> None:
        self._open_dict("savanna", steps)

    def _open_dict(self, kind: str, steps: Any) -> None:
        torch.save(mutated(self.states[kind], steps), self.folder / "m.pt")
        refused_or_fine(lambda: build(open_checkpoint(self.folder / "m.pt", CONFIG)))

    def torch_bytes(self, steps: Any) -> None:
        (self.folder / "m.pt").write_bytes(flipped((self.folder / "whole.pt").read_bytes(), steps))
        refused_or_fine(lambda: build(open_checkpoint(self.folder / "m.pt", CONFIG)))
        refused_or_fine(lambda: list(torch_file.damaged(self.folder / "m.pt")))

    def torch_pickle(self, steps: Any) -> None:
        """The pickle itself is mutated, in a zip file that is whole."""
        with zipfile.ZipFile(self.folder / "whole.pt") as whole, zipfile.ZipFile(self.folder / "m.pt", "w") as file:
            for name in whole.namelist():
                data = whole.read(name)
                file.writestr(name, flipped(data, steps) if name.endswith("data.pkl") else data)
        refused_or_fine(lambda: build(open_checkpoint(self.folder / "m.pt", CONFIG)))


FUZZED = {
    name: (name, mutations(values))
    for values, names in (
        (VALUES, ("yaml_mapping", "yaml_text", "native_json", "native_text", "native_index", "native_weights")),
        (VALUES, ("torch_bytes", "torch_pickle")),
        (VALUES, ("adapter_json",)),
        (TENSORS | VALUES, ("adapter_dict", "vortex_dict", "savanna_dict")),
    )
    for name in names
}
"""What is mutated: the method of `Checkpoints` that tries it, and the steps."""


def _is_plain(t: torch.Tensor) -> bool:
    return not t.is_meta and not t.is_sparse and t.is_contiguous() and not t.is_complex()


def _json(value: Any) -> bytes:
    return json.dumps(value, skipkeys=True).encode()
