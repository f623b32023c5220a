"""Decoding at fixed addresses, as under a CUDA graph: the same logits as from state to state, whatever the rows do."""

import logging
from typing import Any

import pytest
import torch

from evo2cli.inference import decoding
from evo2cli.inference.decoding import STEADY_TOKENS, Decoder, recorder
from evo2cli.inference.engine import generate
from evo2cli.inference.sampling import Sampler
from evo2cli.inference.stream import prefill
from stripedhyena2 import Config, ModelState
from stripedhyena2.decode import ROOM_MULTIPLE, StaticStep
from stripedhyena2.initialization import new_model

LAYOUTS = ["SDH*", "*P*PS"]


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request):
    shape: dict[str, Any] = {"d_model": 32, "n_heads": 4, "d_mlp": 48, "se_groups": 4, "mr_groups": 8}
    model = new_model(Config(layout=request.param, **shape), seed=0).eval().double()
    with torch.no_grad():  # filters as strong as a trained model's, so that a lost state would show
        for name, p in model.named_parameters():
            if name.endswith((".h", ".residues")):
                p.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def unequal(model):
    """The state after prompts of different lengths."""
    return ModelState.join([prefill(model, prompt)[1] for prompt in (b"ACGT" * 5, b"GATTACA" * 30, b"T")])


class Replayed:
    """Stands in for CUDA graphs: runs the step itself, but at the addresses that it had when it was recorded."""

    def __init__(self, off: float = 0.0):
        self.off, self.recorded, self.ran = off, 0, 0

    @staticmethod
    def places(step: StaticStep) -> list[int]:
        return [t.data_ptr() for t in step.buffers()]

    def __call__(self, step: StaticStep):
        self.recorded += 1
        places = self.places(step)
        logits = torch.zeros(step.ids.shape[0], step.model.config.vocab_size, dtype=torch.float64)

        def replay():
            self.ran += 1
            assert self.places(step) == places
            logits.copy_(step.run() + self.off)
            return logits

        return replay


def tokens(rows, n, seed=0):
    return torch.randint(65, 85, (n, rows, 1), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def expected(model, state, ids):
    out = []
    for token in ids:
        logits, state = model.extend(token, state)
        out.append(logits[:, 0])
    return out, state


@torch.inference_mode()
def test_a_fixed_step_gives_what_extend_gives(model, unequal):
    ids = tokens(3, 40)
    wanted, end = expected(model, unequal.clone(), ids)
    step = StaticStep(model, unequal.clone(), room=40)
    assert (unequal.position + step.room) % ROOM_MULTIPLE == 0
    for _ in range(2):
        step.reset()
        for token, logits in zip(ids, wanted, strict=True):
            step.ids.copy_(token)
            torch.testing.assert_close(step.run(), logits, rtol=1e-9, atol=1e-9)
    after = step.after(40)
    assert after.position == end.position
    for name, t in end.tensors().items():
        torch.testing.assert_close(after.tensors()[name], t, rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_the_state_before_a_fixed_step_can_be_continued_otherwise(model, unequal):
    state, other = unequal.clone(), tokens(3, 5, seed=1)
    wanted, _ = expected(model, unequal.clone(), other)
    step = StaticStep(model, state, room=5)
    step.ids.fill_(65)
    step.run()
    for a, b in zip(expected(model, state, other)[0], wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_decoder_gives_the_same_with_graphs_and_when_their_room_ends(model, unequal, monkeypatch):
    monkeypatch.setattr(decoding, "LEAST_ROOM", 10)
    record, ids = Replayed(), tokens(3, 300)
    wanted, end = expected(model, unequal.clone(), ids)
    decoder = Decoder(model, record)
    decoder.start(unequal.clone())
    for i, (token, logits) in enumerate(zip(ids, wanted, strict=True)):
        torch.testing.assert_close(decoder.step(token), logits, rtol=1e-9, atol=1e-9)
        assert (record.recorded > 0) == (i >= STEADY_TOKENS)
    assert record.recorded >= 3
    assert record.ran == len(ids) - STEADY_TOKENS
    state = decoder.stop()
    for name, t in end.tensors().items():
        torch.testing.assert_close(state.tensors()[name], t, rtol=1e-9, atol=1e-9)


def test_samples_are_the_same_where_rows_come_and_go(model):
    prompts = [b"ACGT", b"GATTACA" * 9, b"T"]
    options: dict[str, Any] = {"sampler": Sampler(alphabet=b"ACGT"), "stop": [b"GC"]}

    def samples():
        return [bytes(s.tokens) for s in generate(model, prompts, 60, num_samples=4, batch_size=3, seed=3, **options)]

    without, record = samples(), Replayed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evo2cli.inference.engine.recorder", lambda model: record)
        assert samples() == without
        assert record.recorded > 1
        before = record.recorded
        [*generate(model, prompts, 60, cuda_graph=False)]
        assert record.recorded == before
    assert len({len(s) for s in without}) > 1


@pytest.mark.parametrize("what", ["cannot", "wrong", "nan"])
def test_a_graph_that_fails_or_lies_is_left_with_a_warning(model, unequal, caplog, what):
    def broken(step):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    record: Any = {"cannot": broken, "wrong": Replayed(off=1.0), "nan": Replayed(off=float("nan"))}[what]
    ids = tokens(3, 30)
    wanted, _ = expected(model, unequal.clone(), ids)
    decoder = Decoder(model, record)
    with caplog.at_level(logging.WARNING, "evo2"):
        for _ in range(2):
            decoder.start(unequal.clone())
            for token, logits in zip(ids, wanted, strict=True):
                torch.testing.assert_close(decoder.step(token), logits, rtol=1e-9, atol=1e-9)
    assert len(caplog.records) == 1
    assert ("not permitted when stream is capturing)" in caplog.text) == (what == "cannot")


def test_there_are_no_graphs_without_a_gpu(model):
    assert recorder(model) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_graph_gives_what_extend_gives(model, unequal, dtype):
    gpu = new_model(model.config, seed=0).eval().to("cuda", dtype)
    state = ModelState.join([prefill(gpu, prompt)[1] for prompt in (b"ACGT" * 5, b"GATTACA" * 30, b"T")])
    ids = tokens(3, 100).cuda()
    wanted, _ = expected(gpu, state.clone(), ids)
    decoder = Decoder(gpu, recorder(gpu))
    decoder.start(state)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for token, logits in zip(ids, wanted, strict=True):
        torch.testing.assert_close(decoder.step(token), logits, rtol=tolerance, atol=tolerance)
    assert decoder._graph is not None
