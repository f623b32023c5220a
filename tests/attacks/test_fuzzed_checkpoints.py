"""Thousands of mutated configurations, checkpoints and adapters: each is opened, or refused in one line."""

import pytest
from hostile import FUZZED, Checkpoints, fuzz

pytestmark = pytest.mark.slow

EXAMPLES = 250
NAMES = {
    "yaml_mapping": "published YAML with other fields and values",
    "yaml_text": "published YAML with other bytes",
    "native_json": "config.json with other fields and values",
    "native_text": "config.json with other bytes",
    "native_index": "index of shards with other fields and values",
    "native_weights": "safetensors with other bytes",
    "torch_bytes": ".pt file with other bytes",
    "torch_pickle": ".pt file with other bytes in its pickle",
    "adapter_json": "adapter.json with other fields and values",
    "adapter_dict": "adapter with other tensors",
    "vortex_dict": "published .pt with other keys and values",
    "savanna_dict": "training framework's .pt with other keys and values",
}


@pytest.mark.parametrize("what", FUZZED)
def test_mutated_files_are_opened_or_refused(what, tmp_path, tried):
    method, steps = FUZZED[what]
    call = getattr(Checkpoints(tmp_path), method)

    def attack(steps):
        tried(NAMES[what])
        call(steps)

    fuzz(EXAMPLES, attack, steps)
