"""LoRA: nothing changes at the start, only adapters train, merged equals adapted, and adapters travel alone."""

import pytest
import torch

from stripedhyena2 import CheckpointError, Config, ConfigError, StripedHyena2, save_model
from stripedhyena2.checkpoints import build, open_checkpoint
from stripedhyena2.initialization import new_model, prepare_for_training
from stripedhyena2.layers.lora import adapter_tensors, add_lora, merge_adapter, merged_tensors, save_adapter

TINY = Config(layout="SDH*", d_model=16, n_heads=2, d_mlp=24, se_groups=2, mr_groups=2, context=64)
IDS = torch.randint(65, 85, (2, 40), generator=torch.Generator().manual_seed(0))


def adapted(trainable=True, seed=0, **options):
    model = new_model(TINY, seed)
    model = prepare_for_training(model) if trainable else model
    return add_lora(model, 3, 6.0, **options)


def train_a_little(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for _ in range(3):
        model(IDS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_an_untrained_adapter_changes_nothing():
    plain = prepare_for_training(new_model(TINY, 0))
    torch.testing.assert_close(adapted()(IDS), plain(IDS), rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_for_trains():
    names = {n.rpartition(".")[2] for n, p in adapted().named_parameters() if p.requires_grad}
    assert names == {"lora_a", "lora_b"}
    linear = [n for n, m in new_model(TINY, 0).named_modules() if isinstance(m, torch.nn.Linear)]
    assert {n.rpartition(".")[0] for n in adapter_tensors(adapted())} == set(linear)
    chosen = adapter_tensors(adapted(targets=("blocks.3.mixer.*",), also=("norms", "filters", "biases")))
    assert {n for n in chosen if "lora" in n} == {
        f"blocks.3.mixer.{w}.lora_{x}" for w in ("qkv_proj", "out_proj") for x in "ab"
    }
    others = {n.split(".", 2)[2] for n in chosen if n.startswith("blocks.") and "lora" not in n}
    filters = {f"mixer.{n}" for n in ("featurizer", "h", "skip", "log_poles", "residues")}
    assert others == filters | {"norm1.scale", "norm2.scale", "mixer.out_proj.bias"}
    assert "norm.scale" in chosen
    assert not any(n.endswith("weight") for n in chosen)


def test_merged_equals_adapted():
    model = train_a_little(adapted(also=("norms", "filters")))
    plain = StripedHyena2(TINY)
    plain.load_state_dict(dict(merged_tensors(model)))
    assert torch.allclose(plain(IDS), model(IDS), atol=1e-5)
    base = new_model(TINY, 0)
    assert not torch.allclose(plain(IDS), base(IDS), atol=1e-2)


def test_an_adapter_travels_alone(tmp_path):
    also = ("norms", "filters")
    model = train_a_little(adapted(also=also))
    about = {"rank": 3, "alpha": 6.0, "targets": ["*.in_proj", "*.qkv_proj", "*.out_proj", "*.mlp.w?"], "also": also}
    save_adapter(model, tmp_path / "adapter", about | {"base": "tiny"})
    size = sum(f.stat().st_size for f in (tmp_path / "adapter").iterdir())
    assert size < 4 * sum(t.numel() for t in adapter_tensors(model).values()) + 20_000
    save_model(new_model(TINY, 0), tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    loaded = build(merge_adapter(base, tmp_path / "adapter"))
    assert torch.allclose(loaded(IDS), model(IDS), atol=1e-5)
    assert loaded.source.checksum != build(base).source.checksum
    save_model(new_model(Config(**(TINY.to_dict() | {"d_mlp": 32})), 0), tmp_path / "other")
    with pytest.raises(CheckpointError, match="adapter for another model"):
        merge_adapter(open_checkpoint(tmp_path / "other"), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        merge_adapter(base, tmp_path)


def test_wrong_targets_are_said():
    with pytest.raises(ConfigError, match="no linear layer matches"):
        adapted(targets=("*.nothing",))
    with pytest.raises(ConfigError, match="embeddings cannot be trained"):
        adapted(also=("embeddings",))
