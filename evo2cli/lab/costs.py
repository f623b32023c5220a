"""What a model costs: time and memory of training, and of decoding. Models are measured in turns, so that a machine
that is busy now and then is busy for all of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from evo2cli.lab.loop import Learner
from evo2cli.measure.memory import kept_for_backward
from evo2cli.measure.time import timed
from stripedhyena2 import StripedHyena2

ROUNDS = 5
DECODED = 64


@dataclass(frozen=True)
class Costs:
    """Of one model; medians over the rounds."""

    training_tokens_per_second: float
    training_megabytes: float
    decode_tokens_per_second: float
    state_megabytes: float


def training_bytes(learner: Learner) -> int:
    """The memory of a step: on a GPU its peak; elsewhere weights, gradients, both moments, and what autograd keeps."""
    weights = [p for p in learner.model.parameters() if p.requires_grad]
    device = weights[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        learner.one_step()
        return torch.cuda.max_memory_allocated(device)
    return 4 * sum(p.nbytes for p in weights) + kept_for_backward(lambda: learner.loss(learner.step), weights)


@torch.inference_mode()
def decode(model: StripedHyena2, prompt: Tensor) -> tuple[float, int]:
    """Seconds a token after prompt (1, L), and the bytes of the state there."""
    _, state = model.extend(prompt, model.initial_state(1))
    nbytes = state.nbytes()

    def run() -> None:
        current = state
        for i in range(DECODED):
            _, current = model.extend(prompt[:, i % prompt.shape[1], None], current)

    return timed(run, prompt.device) / DECODED, nbytes


def measure(learners: Iterable[Learner], context: int) -> list[Costs]:
    """The costs of learners whose models are StripedHyena2; they take a few steps more."""
    learners = list(learners)
    device = next(learners[0].model.parameters()).device
    prompt = torch.full((1, context), ord("A"), device=device)
    steps: list[list[float]] = [[] for _ in learners]
    tokens: list[list[float]] = [[] for _ in learners]
    memory = [training_bytes(learner) for learner in learners]
    states = [0] * len(learners)
    for learner in learners:
        learner.one_step()
    for _ in range(ROUNDS):
        for i, learner in enumerate(learners):
            learner.model.train()
            steps[i].append(timed(learner.one_step, device))
            assert isinstance(learner.model, StripedHyena2)
            per_token, states[i] = decode(learner.model.eval(), prompt)
            tokens[i].append(per_token)
    return [
        Costs(
            learner.recipe.batch_size * context / statistics.median(steps[i]),
            memory[i] / 1e6,
            1 / statistics.median(tokens[i]),
            states[i] / 1e6,
        )
        for i, learner in enumerate(learners)
    ]
