"""A state that was saved and loaded is the same to the last bit, and goes on as if it had never left."""

import pytest
import torch

from stripedhyena2 import CheckpointError, Config, ModelState
from stripedhyena2.initialization import new_model

CONFIG = Config(layout="SDH*", d_model=32, n_heads=4, d_mlp=48, se_groups=4, mr_groups=8)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request):
    return new_model(CONFIG, seed=0).eval().to(request.param)


def ids_of(n, seed=0):
    return torch.randint(0, 256, (1, n), generator=torch.Generator().manual_seed(seed))


def demand_same(loaded, saved, model, suffix):
    """The states hold the same bits, and continue alike but for rounding: their tensors' places in memory differ."""
    loaded_tensors, saved_tensors = loaded.tensors(), saved.tensors()
    assert loaded_tensors.keys() == saved_tensors.keys()
    for name, t in saved_tensors.items():
        assert loaded_tensors[name].dtype == t.dtype, name
        assert torch.equal(loaded_tensors[name], t), name
    tolerance = 1e-5 if model.norm.scale.dtype == torch.float32 else 5e-2
    expected = model.extend(suffix, saved)[0]
    difference = model.extend(suffix, loaded)[0] - expected
    assert difference.norm() < tolerance * expected.norm()


@torch.inference_mode()
def test_a_loaded_state_goes_on_as_the_saved_one(model, tmp_path):
    _, state = model.extend(ids_of(150), model.initial_state(1))
    _, state = model.extend(ids_of(1), state)  # attention's buffer is now longer than what it holds
    state.save(tmp_path / "state")
    again = ModelState.load(tmp_path / "state")
    assert again.position == 151
    assert again.nbytes() == state.nbytes()
    assert (tmp_path / "state").stat().st_size < state.nbytes() + 4096
    demand_same(again, state, model, ids_of(9, 1))


@torch.inference_mode()
def test_rows_of_unequal_length_and_the_start_can_be_saved(model, tmp_path):
    states = [model.extend(ids_of(n), model.initial_state(1))[1] for n in (3, 40)]
    for state in (ModelState.join(states), model.initial_state(2)):
        state.save(tmp_path / "state")
        demand_same(ModelState.load(tmp_path / "state"), state, model, ids_of(5, 2).expand(2, -1))


def test_what_is_no_state_is_refused(model, tmp_path):
    (tmp_path / "text").write_text("ACGT")
    model.initial_state(1).save(tmp_path / "state")
    (tmp_path / "cut").write_bytes((tmp_path / "state").read_bytes()[:-1])
    for name in ("text", "cut", "none"):
        with pytest.raises(CheckpointError, match=f"{name} is not a saved state"):
            ModelState.load(tmp_path / name)


def test_a_state_that_cannot_be_written_leaves_the_old_one(model, tmp_path):
    state = model.initial_state(1)
    state.save(tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(Exception, match="str"):
        state.save(tmp_path / "state", metadata={"n": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == before
    with pytest.raises(OSError, match="state"):
        state.save(tmp_path / "state" / "below a file")
