"""Every strategy of every operator over N processes gives what one process gives: outputs, gradients and states."""

import numpy as np
import pytest
import torch
from cases import CASES, SHARD, arguments, strategies_of, weight_of, with_gradients

from stripedhyena2.operators import LOCAL
from stripedhyena2.parallel import KINDS, Layout, SplitOperators
from stripedhyena2.parallel.attention import RingGradients, RingOutputs
from stripedhyena2.parallel.comm import Communicator
from stripedhyena2.parallel.shards import Shards

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def on_ranks(op, strategy, kind, length, dtype, past):
    comm = Communicator()
    layout = Layout(kind, comm.size, comm.rank)
    shards = Shards(layout, comm)
    split, filters, before = arguments(op, length, dtype, past)
    split = {name: layout.take(t) for name, t in split.items()}
    weight = layout.take(weight_of(op, length, dtype))
    operators = SplitOperators(shards, strategies_of(op, strategy))
    y, state, gradients = with_gradients(operators, op, split, filters, before, weight)
    return {"y": y, "gradients": gradients, "state": state.gather(shards, None).tensors()}


def close(got, want, tolerance):
    want = want.detach().double().numpy()
    assert got.shape == want.shape
    return np.linalg.norm(got - want) <= tolerance * max(np.linalg.norm(want), 1e-30)


@pytest.mark.parametrize("past", [False, True], ids=["start", "continued"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("op", "strategy"), CASES)
def test_ranks_give_what_one_process_gives(processes, n, op, strategy, kind, dtype, past):
    layouts = [Layout(kind, n, rank) for rank in range(n)]
    length = SHARD * layouts[0].n_shards
    exact = torch.float64
    split, filters, before = arguments(op, length, exact, past)
    y, state, gradients = with_gradients(LOCAL, op, split, filters, before, weight_of(op, length, exact))
    results = processes(n).run(on_ranks, op, strategy, kind, length, dtype, past)

    tolerance = TOLERANCE[dtype]
    for layout, result in zip(layouts, results, strict=True):
        assert close(result["y"], layout.take(y), tolerance)
        assert result["state"].keys() == state.tensors().keys()
        for name, t in state.tensors().items():
            assert close(result["state"][name], t, tolerance), name
        for name in split:
            assert close(result["gradients"][name], layout.take(gradients[name]), tolerance), name
    for name in (*filters, *before):
        parts = [result["gradients"][name] for result in results]
        total = sum(part.astype(np.float64) for part in parts if part is not None)
        assert close(total, gradients[name], tolerance), name


def test_ring_attention_adds_up_many_bfloat16_blocks_in_float32():
    """As on many ranks: in bfloat16 every block would add a rounding of the sum so far."""
    blocks, g = 64, torch.Generator().manual_seed(0)
    q, dout = (torch.randn(2, 2, 8, 16, generator=g).bfloat16() for _ in range(2))
    kv = torch.randn(2, 8 * blocks, 2, 2, 16, generator=g).bfloat16()
    exact_q = q.double().requires_grad_()
    k, v = kv.double().transpose(1, 3).unbind(2)
    exact = torch.nn.functional.scaled_dot_product_attention(exact_q, k, v)
    exact.backward(dout.double())

    outputs = RingOutputs(q, 1)
    for block in kv.chunk(blocks, dim=1):
        outputs.attend(0, *block.transpose(1, 3).unbind(2), causal=False)
    y, lse = outputs.result()
    gradients = RingGradients(dout, q, y, lse, 1)
    for block in kv.chunk(blocks, dim=1):
        gradients.of(0, block, causal=False)

    assert y.dtype == torch.bfloat16
    assert close(y.double().numpy(), exact, 3e-3)
    assert close(gradients.dq.double().numpy(), exact_q.grad, 6e-3)
