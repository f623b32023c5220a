"""`from evo2cli import Evo2`: the published interface, and right answers under padding."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evo2cli
from evo2cli import Evo2, api
from evo2cli.errors import UserError
from evo2cli.inference import stream
from stripedhyena2 import CheckpointError

DATA = Path(__file__).parent / "conformance" / "data"
SEQUENCES = ["GATTACA" * 9, "ACGTN", "TT", "GGGCATCA" * 4]


@pytest.fixture(scope="module")
def evo2_model():
    return Evo2(str(DATA / "sdh-attn-d64.pt"), config=str(DATA / "sdh-attn-d64.yml"), device="cpu")


@pytest.fixture(scope="module")
def exact_model():
    """In double precision, where what another batch rounds otherwise is too little to draw another token."""
    exact = Evo2(str(DATA / "sdh-attn-d64.pt"), config=str(DATA / "sdh-attn-d64.yml"), device="cpu")
    exact.model.double()
    return exact


@pytest.fixture(scope="module")
def published():
    return load_file(DATA / "sdh-attn-d64.safetensors")


def log_likelihood(model, text, prefix=b""):
    """By the definition: one sequence, run whole, all of its tokens."""
    ids = torch.tensor([list(prefix + text.encode())])
    with torch.inference_mode():
        logp = model.model(ids)[0, :-1].double().log_softmax(-1)
    return float(logp.gather(1, ids[0, 1:, None]).sum())


def test_models_by_name_as_notebooks_load_them():
    from evo2cli import load_model
    from evo2cli.models import Evo2

    model = Evo2("prok-mini", use_kernels=True, device="cpu")
    bundled = load_model("prok-mini", device="cpu")
    assert model.model.source.checksum == bundled.source.checksum
    with pytest.raises(AttributeError, match="Evo3"):
        evo2cli.models.Evo3  # noqa: B018


def test_the_package_exports_it_lazily():
    assert evo2cli.Evo2 is evo2cli.models.Evo2 is api.Evo2
    with pytest.raises(AttributeError, match="Evo3"):
        evo2cli.Evo3  # noqa: B018


@pytest.mark.parametrize("chunk", [4096, 10])
def test_forward_gives_the_published_numbers(evo2_model, published, monkeypatch, chunk):
    monkeypatch.setattr(stream, "chunk_length", lambda model, rows=1: chunk)
    ids = published["seq0.ids"].int()[None]
    names = ["blocks.3", "blocks.1", "blocks.2.mlp.l3", -1]
    outputs, embeddings = evo2_model(ids, return_embeddings=True, layer_names=names)
    torch.testing.assert_close(outputs[0][0], published["seq0.logits"], atol=5e-4, rtol=0)
    assert list(embeddings) == names
    for name, reference in (("blocks.3", "block3"), ("blocks.1", "block1"), (-1, "block3")):
        torch.testing.assert_close(embeddings[name][0], published[f"seq0.{reference}"], atol=5e-4, rtol=1e-4)
    assert embeddings["blocks.2.mlp.l3"].shape == (1, ids.shape[1], 64)
    outputs, embeddings = evo2_model(ids)
    assert embeddings is None
    assert not outputs[0].is_inference()  # a notebook may train on it


def test_embeddings_need_layers_that_exist(evo2_model):
    ids = torch.tensor([[65]])
    with pytest.raises(UserError, match="layer_names"):
        evo2_model(ids, return_embeddings=True)
    with pytest.raises(UserError, match=r"no layer blocks\.28\.mlp\.l3; there are 0 to 3"):
        evo2_model(ids, return_embeddings=True, layer_names=["blocks.28.mlp.l3"])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_score_does_not_depend_on_its_batch(evo2_model, batch_size):
    scores = evo2_model.score_sequences(SEQUENCES, batch_size=batch_size)
    expected = [log_likelihood(evo2_model, s) / (len(s) - 1) for s in SEQUENCES]
    assert scores == pytest.approx(expected, rel=1e-5)
    assert evo2_model.score_sequences([s.lower() for s in SEQUENCES], batch_size=batch_size) == scores


def test_scores_by_other_conventions(evo2_model, monkeypatch):
    model, s = evo2_model, SEQUENCES[0]
    assert model.score_sequences([s], reduce_method="sum") == pytest.approx([log_likelihood(model, s)], rel=1e-5)
    with_bos = model.score_sequences([s, "A"], prepend_bos=True)
    expected = [log_likelihood(model, s, b"\0") / len(s), log_likelihood(model, "A", b"\0")]
    assert with_bos == pytest.approx(expected, rel=1e-5)
    both = model.score_sequences(["GATTA"], average_reverse_complement=True)
    expected = (log_likelihood(model, "GATTA") + log_likelihood(model, "TAATC")) / 8
    assert both == pytest.approx([expected], rel=1e-5)
    tagged = model.score_sequences(["|d__B|GATTA"], reduce_method="sum", average_reverse_complement=True)
    tag = log_likelihood(model, "|d__B|")
    expected = (log_likelihood(model, "|d__B|GATTA") + log_likelihood(model, "|d__B|TAATC")) / 2 - tag
    assert tagged == pytest.approx([expected], rel=1e-5)
    mean = model.score_sequences(["|d__B|GATTA", "|d__B|", "|d__B|G"], batch_size=2)
    expected = [(log_likelihood(model, f"|d__B|{s}") - tag) / max(len(s), 1) for s in ("GATTA", "", "G")]
    assert mean == pytest.approx([expected[0], math.nan, expected[2]], rel=1e-5, nan_ok=True)
    whole = model.score_sequences(SEQUENCES, prepend_bos=True, average_reverse_complement=True)
    for module in (api, stream):
        monkeypatch.setattr(module, "chunk_length", lambda model, rows=1: 10)
    assert model.score_sequences(SEQUENCES, 2, True, "mean", True) == pytest.approx(whole, rel=1e-5)


def test_what_has_no_score_is_nan(evo2_model):
    scores = evo2_model.score_sequences(["", "A", "AC"], batch_size=3)
    assert [math.isnan(score) for score in scores] == [True, True, False]
    assert evo2_model.score_sequences([]) == []
    with pytest.raises(UserError, match="reduce_method"):
        evo2_model.score_sequences(["ACGT"], reduce_method="median")


def greedy(model, prompt, n):
    """The likeliest bytes, running everything again for each."""
    tokens = list(prompt.encode())
    with torch.inference_mode():
        for _ in range(n):
            tokens.append(int(model.model(torch.tensor([tokens]))[0, -1, :256].argmax()))
    return tokens[len(prompt) :]


def test_greedy_generation_takes_the_likeliest_tokens(exact_model):
    prompts = ["GATTACA" * 5, "ACGT"]
    options = {"n_tokens": 10, "temperature": 0.0, "verbose": 0}
    output = exact_model.generate(prompts, **options)
    for i, prompt in enumerate(prompts):
        expected = greedy(exact_model, prompt, 10)
        assert output.sequences[i] == exact_model.tokenizer.detokenize(expected)
        assert output.logits[i].shape == (1, 10, 512)
        assert output.logits[i][0, :, :256].argmax(-1).tolist() == expected
        logp = output.logits[i][0].log_softmax(-1)[range(10), expected]
        assert output.logprobs_mean[i] == pytest.approx(float(logp.mean()), abs=1e-5)
    assert exact_model.generate(prompts, batched=False, **options).sequences == output.sequences
    assert exact_model.generate(["A"], n_tokens=0, verbose=0).logits[0].shape == (1, 0, 512)


def test_equal_prompts_have_different_continuations_in_their_places(exact_model):
    prompts = ["ACGT", "GG", "ACGT", "GG", "ACGT"]
    options = {"n_tokens": 12, "verbose": 0, "seed": 1}
    output = exact_model.generate(prompts, **options)
    assert len(set(output.sequences)) == 5
    assert exact_model.generate(prompts, batched=False, force_prompt_threshold=1, **options).sequences == (
        output.sequences
    )
    alone = exact_model.generate(["GG", "GG"], **options)
    assert alone.sequences == output.sequences[1::2]


def test_without_a_seed_torchs_random_numbers_decide(evo2_model):
    def draw():
        return evo2_model.generate(["ACGT"], n_tokens=20, top_k=0, verbose=0).sequences

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert draw() == first != second


def test_wrong_requests(evo2_model, monkeypatch):
    def refuse(name):
        raise UserError(f"no network for {name}")

    with pytest.raises(UserError, match="prompt 1 is empty"):
        evo2_model.generate(["A", ""])
    monkeypatch.setattr("evo2cli.models.hub.find_cached", lambda name: None)
    monkeypatch.setattr("evo2cli.models.hub.pull", refuse)
    with pytest.raises(UserError, match="no network for evo2_7b"):
        Evo2()
    with pytest.raises(CheckpointError, match="does not fit"):
        Evo2("evo2_1b_base", local_path=str(DATA / "sdh-attn-d64.pt"))


def test_tokens_are_bytes(evo2_model):
    t = evo2_model.tokenizer
    assert t.tokenize("ACgt") == [65, 67, 103, 116]
    assert t.detokenize(t.tokenize("|d__Bacteria|ACgt")) == "|d__Bacteria|ACgt"
    assert t.detokenize(torch.tensor([65, 0, 67])) == "A C"
    assert t.detokenize_batch(t.tokenize_batch(["A", "CG"])) == ["A", "CG"]
    assert (t.eod_id, t.pad_id, t.vocab_size) == (0, 1, 512)
