"""A model's token by the decoding kernels gives what the model itself gives, with states in and out.

On a GPU this file runs as it is; without one `test_interpreter.py` runs it in Triton's interpreter.
"""

import pytest
import torch

pytest.importorskip("triton")

from hyena_kernels import dispatch, tuned
from stripedhyena2 import Config, ModelState
from stripedhyena2.decode import PlainBlock, StaticStep
from stripedhyena2.initialization import new_model
from stripedhyena2.layers.int8 import Int8Linear
from stripedhyena2.layers.lora import add_lora

pytestmark = pytest.mark.skipif(
    not (dispatch.INTERPRETED or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = {"d_model": 32, "n_heads": 2, "d_mlp": 32, "se_groups": 4, "mr_groups": 8, "vocab_size": 96}
SHAPE |= {"se_len": 3, "mr_len": 4, "n_modes": 3}  # rings of 4 places


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Attention on two programs a head at most: the interpreter runs one after another."""
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setitem(tuned.TABLE, ("token_attention", dtype, 0, 8), {"block": 16, "programs": 12, "warps": 4})


def model_of(layout, dtype, **fields):
    model = new_model(Config(layout=layout, **(SHAPE | fields)), seed=0).eval()
    with torch.no_grad():  # filters as strong as a trained model's, so that a lost state would show
        for name, p in model.named_parameters():
            if name.endswith((".h", ".residues", "bias")):
                p.normal_(generator=torch.Generator().manual_seed(1))
    return model.to(DEVICE, dtype)


@torch.inference_mode()
def after_prompts(model, lengths):
    """The state after prompts of these lengths, one a row."""
    states = []
    for seed, length in enumerate(lengths):
        ids = torch.randint(65, 85, (1, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        states.append(model.extend(ids, model.initial_state(1))[1])
    return ModelState.join(states)


def assert_near(y, expected, tolerance):
    error = (y.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance, f"off by {error:.2g}"


@torch.inference_mode()
def assert_steps_equal_the_model(monkeypatch, model, lengths, n, tolerance, plain_blocks=0):
    """n tokens by both, and the states that they end in."""
    bfloat16 = model.embedding.weight.dtype == torch.bfloat16

    def run_on(backend):
        monkeypatch.setattr(dispatch, "forced", backend)

    run_on("cpu")
    state = after_prompts(model, lengths)
    run_on("triton")
    tokens = torch.randint(65, 85, (n, len(lengths), 1), generator=torch.Generator().manual_seed(9)).to(DEVICE)
    step = StaticStep(model, state.clone(), room=n)
    assert sum(isinstance(block, PlainBlock) for block in step._blocks) == plain_blocks
    step.ids.copy_(tokens[-1])
    step.run()
    step.reset()
    for token in tokens:
        run_on("triton" if bfloat16 else "cpu")  # in bfloat16 the model's own cores round as on a GPU
        wanted, state = model.extend(token, state)
        run_on("triton")
        step.ids.copy_(token)
        logits = step.run()
        assert logits.dtype == wanted.dtype
        assert_near(logits, wanted[:, 0], tolerance)
    ended = step.after(n)
    assert ended.position == state.position
    for name, t in state.tensors().items():
        assert ended.tensors()[name].shape == t.shape
        assert_near(ended.tensors()[name], t, tolerance)


# each kernel is within 1e-3 of its operator in bfloat16; over several layers roundings add up to half a unit, 2e-3
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)], ids=str)
def test_a_fused_step_is_the_models_token(monkeypatch, dtype, tolerance):
    model = model_of("SDH*", dtype, featurizer_bias=True)
    assert_steps_equal_the_model(monkeypatch, model, (9, 1, 5), 6, tolerance)


def test_one_row_alone(monkeypatch):
    assert_steps_equal_the_model(monkeypatch, model_of("D*", torch.float32, tie_embeddings=False), (9,), 4, 1e-5)


def test_more_rows_than_the_layers_kernels_take(monkeypatch):
    assert_steps_equal_the_model(monkeypatch, model_of("DH*", torch.float32), (3, *[5] * 16), 1, 1e-5)


def test_blocks_without_feed_forward_layers_and_of_other_activations(monkeypatch):
    assert_steps_equal_the_model(monkeypatch, model_of("SD", torch.float32, d_mlp=0), (4,), 2, 1e-5)
    silu = model_of("SD", torch.float32, evo2_activations=False, activation="silu")
    assert_steps_equal_the_model(monkeypatch, silu, (4,), 2, 1e-5)


def test_weights_of_one_byte(monkeypatch):
    model = model_of("S*", torch.float32)
    for block in model.blocks:
        for part in (block.mixer, block.mlp):
            for name, layer in list(part.named_children()):
                setattr(part, name, Int8Linear(layer))
    assert_steps_equal_the_model(monkeypatch, model, (4, 7), 2, 1e-5)


def test_blocks_that_the_kernels_do_not_know_run_as_they_are(monkeypatch):
    model = model_of("SPD", torch.float32)
    add_lora(model, 2, 1.0, targets=("blocks.2.mixer.out_proj",))
    torch.nn.init.ones_(model.blocks[2].mixer.out_proj.lora_b)
    assert_steps_equal_the_model(monkeypatch, model, (4, 20), 3, 1e-5, plain_blocks=2)
