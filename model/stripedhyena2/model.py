"""StripedHyena 2: a stack of residual blocks, each a mixer and a gated MLP, over byte tokens.

A letter of the layout stands for a mixer (`MIXERS`), and everything that depends on the letter is asked of its class:
its state, its initial weights, its FLOPs, how far it reaches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from hyena_kernels.swr.state import BLOCK as SWR_BLOCK
from hyena_kernels.swr.state import REACH as SWR_REACH
from hyena_kernels.swr.state import start as swr_start
from stripedhyena2.attention import rotate
from stripedhyena2.errors import ConfigError
from stripedhyena2.layers.filters import Decayed, NegativeExp, mr_decay
from stripedhyena2.layers.linear import Linear, linear
from stripedhyena2.operators import LOCAL, Operators, hyena_state
from stripedhyena2.state import AttentionState, LayerState, ModelState, RecurrentState

if TYPE_CHECKING:  # the configuration asks MIXERS what its letters mean
    from stripedhyena2.checkpoints import Source
    from stripedhyena2.config import Config


class Mixer(nn.Module):
    """One kind of layer: `forward` maps (x, state) to (y, state), x and y (B, L, D).

    The state is of the kind that the installed `operators` take and return: a LayerState, unless others are installed.
    """

    name: ClassVar[str]
    strategy: ClassVar[str | None] = None
    """Which strategy of `parallel.Strategies` splits its sequences over ranks; None where it has no choice."""
    fp8_projection: ClassVar[str | None] = None
    """The linear layer that models with FP8 projections were trained with in FP8."""

    operators: Operators = LOCAL
    out_proj: Linear

    @classmethod
    def check(cls, c: Config) -> None:
        """Raise ConfigError unless such a layer can have this shape."""

    @classmethod
    def flops(cls, c: Config, length: int) -> dict[str, float]:
        """Forward FLOPs a token by operator, averaged over sequences of `length` tokens."""
        raise NotImplementedError

    @classmethod
    def reach(cls, c: Config) -> int | None:
        """How many tokens a shard of a sequence split over ranks must hold at least; None: it cannot be split."""
        return None

    @classmethod
    def channel_groups(cls, c: Config) -> tuple[int, str]:
        """Into how many parts the channels come apart, and what these are called."""
        return c.d_model, "channels"

    def initial_state(self, batch_size: int, room: int, like: Tensor) -> LayerState:
        """The state before the first token, of the device and dtype of `like`; `room` as in the model's."""
        raise NotImplementedError

    def initialize(self, c: Config, g: torch.Generator) -> None:
        """Draw the weights that do not start as those of any linear layer."""
        self.out_proj.weight.normal_(0, _residual_std(c), generator=g)

    def parametrize(self) -> None:
        """Register the parametrizations under which filters train."""


def _residual_std(c: Config) -> float:
    """Of the initial weights of what adds to the residual stream."""
    return 2 / (c.n_layers * math.sqrt(c.d_model))


class Hyena(Mixer):
    """out = core(x Wp) Wo + bo: the parts common to the three Hyena mixers."""

    fp8_projection = "in_proj"

    def __init__(self, c: Config):
        super().__init__()
        self.in_proj = Linear(c.d_model, 3 * c.d_model, bias=c.proj_bias)
        self.featurizer = nn.Parameter(torch.empty(3 * c.d_model, c.featurizer_len))
        self.featurizer_bias = nn.Parameter(torch.empty(3 * c.d_model)) if c.featurizer_bias else None
        self.out_proj = Linear(c.d_model, c.d_model, bias=c.hyena_out_bias)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.core(self.in_proj(x), state)
        return self.out_proj(y), state

    def core(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The gated convolution of the projections u (B, L, 3D)."""
        raise NotImplementedError

    @classmethod
    def flops(cls, c: Config, length: int) -> dict[str, float]:
        d = c.d_model
        return {"projections": 2 * d * 4 * d, "featurizer": 2 * c.featurizer_len * 3 * d}

    @classmethod
    def reach(cls, c: Config) -> int:
        return max(c.featurizer_len - 1 + cls.taps(c) - 1, 1)

    @classmethod
    def taps(cls, c: Config) -> int:
        """Inputs of the convolution that the state keeps, and one."""
        return 1

    def initial_state(self, batch_size: int, room: int, like: Tensor) -> RecurrentState:
        width, taps = self.featurizer.shape
        return hyena_state((like.new_zeros(batch_size, taps - 1, width), self.initial_conv_state(batch_size, like)))

    def initial_conv_state(self, batch_size: int, like: Tensor) -> Tensor:
        raise NotImplementedError

    def initialize(self, c: Config, g: torch.Generator) -> None:
        super().initialize(c, g)
        _uniform(self.featurizer, 3**-0.5, g)
        if self.featurizer_bias is not None:
            self.featurizer_bias.zero_()


def _uniform(t: Tensor, bound: float, g: torch.Generator) -> None:
    t.uniform_(-bound, bound, generator=g)


class HyenaFIR(Hyena):
    """Explicit filters h (G, K) in time order, shared in groups of channels: what SE and MR have in common."""

    strategy = "fir"
    h: Tensor

    def initial_conv_state(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, self.h.shape[1] - 1, self.featurizer.shape[0] // 3)


class HyenaSE(HyenaFIR):
    """Short explicit filters, 7 taps, shared in groups of channels."""

    name = "Hyena-SE"

    def __init__(self, c: Config):
        super().__init__(c)
        self.h = nn.Parameter(torch.empty(c.se_groups, c.se_len))

    def core(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.operators.hyena_se(u, self.featurizer, self.h, bias=self.featurizer_bias, state=state)

    @classmethod
    def taps(cls, c: Config) -> int:
        return c.se_len

    @classmethod
    def channel_groups(cls, c: Config) -> tuple[int, str]:
        return c.se_groups, "groups of filters"

    @classmethod
    def flops(cls, c: Config, length: int) -> dict[str, float]:
        return super().flops(c, length) | {"hyena_se": 2 * c.se_len * c.d_model + 2 * c.d_model}

    def initialize(self, c: Config, g: torch.Generator) -> None:
        super().initialize(c, g)
        _uniform(self.h, 3**-0.5, g)


class HyenaMR(HyenaFIR):
    """Medium filters, 128 taps, shared in groups of channels, with a skip. They start near zero: the layer starts as
    its skip."""

    name = "Hyena-MR"

    def __init__(self, c: Config):
        super().__init__(c)
        self.h = nn.Parameter(torch.empty(c.mr_groups, c.mr_len))
        self.skip = nn.Parameter(torch.empty(c.d_model))

    def core(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        filters = self.h, self.skip
        return self.operators.hyena_mr(u, self.featurizer, *filters, bias=self.featurizer_bias, state=state)

    @classmethod
    def taps(cls, c: Config) -> int:
        return c.mr_len

    @classmethod
    def channel_groups(cls, c: Config) -> tuple[int, str]:
        return c.mr_groups, "groups of filters"

    @classmethod
    def flops(cls, c: Config, length: int) -> dict[str, float]:
        return super().flops(c, length) | {"hyena_mr": 2 * c.mr_len * c.d_model + 4 * c.d_model}

    def initialize(self, c: Config, g: torch.Generator) -> None:
        super().initialize(c, g)
        self.h.normal_(0, 1e-5 * c.mr_len**-0.5, generator=g).mul_(mr_decay(c.mr_groups, c.mr_len))
        _uniform(self.skip, c.mr_len**-0.5, g)

    def parametrize(self) -> None:
        register_parametrization(self, "h", Decayed(mr_decay(*self.h.shape).to(self.h.device)))


class HyenaLI(Hyena):
    """Implicit filters as long as the sequence: sums of 16 decaying exponentials a channel, with a skip."""

    name = "Hyena-LI"
    strategy = "li"
    log_poles: Tensor

    def __init__(self, c: Config):
        super().__init__(c)
        self.log_poles = nn.Parameter(torch.empty(c.d_model, c.n_modes))
        self.residues = nn.Parameter(torch.empty(c.d_model, c.n_modes))
        self.skip = nn.Parameter(torch.empty(c.d_model))

    def core(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        filters = self.log_poles, self.residues, self.skip
        return self.operators.hyena_li(u, self.featurizer, *filters, bias=self.featurizer_bias, state=state)

    @classmethod
    def flops(cls, c: Config, length: int) -> dict[str, float]:
        return super().flops(c, length) | {"hyena_li": 4 * c.n_modes * c.d_model + 4 * c.d_model}

    def initial_conv_state(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch_size, *self.residues.shape, dtype=torch.promote_types(like.dtype, torch.float32))

    def initialize(self, c: Config, g: torch.Generator) -> None:
        super().initialize(c, g)
        gamma = torch.empty_like(self.log_poles).uniform_(0.01, 0.1, generator=g)
        self.log_poles.copy_(-math.exp(-1) * gamma)
        self.residues.normal_(0, 0.1 / 4, generator=g)
        _uniform(self.skip, c.context**-0.5, g)

    def parametrize(self) -> None:
        register_parametrization(self, "log_poles", NegativeExp())


class Attention(Mixer):
    """Causal multi-head attention with rotary positions (half-split form, angles in float32)."""

    name = "attention"
    strategy = "attention"

    def __init__(self, c: Config):
        super().__init__()
        self.n_heads, self.head_dim = c.n_heads, c.head_dim
        self.base, self.scale = c.rotary_base, c.rotary_scale
        self.qkv_proj = Linear(c.d_model, 3 * c.d_model, bias=c.proj_bias)
        self.out_proj = Linear(c.d_model, c.d_model, bias=c.attention_out_bias)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        B, L, D = x.shape
        qkv = self.qkv_proj(x).view(B, L, 3, self.n_heads, self.head_dim)
        columns, starts = self.operators.positions(state, L, x.device), None if state is None else state.starts
        positions = columns[None] if starts is None else columns - starts[:, None]
        qk = rotate(qkv[:, :, :2], positions / self.scale, self.base)
        kv = torch.stack([qk[:, :, 1], qkv[:, :, 2]], dim=2)
        y, state = self.operators.attention(qk[:, :, 0], kv, state)
        return self.out_proj(y.reshape(B, L, D)), state

    @classmethod
    def check(cls, c: Config) -> None:
        if c.head_dim % 2:
            raise ConfigError(f"the head size {c.head_dim} must be even")

    @classmethod
    def flops(cls, c: Config, length: int) -> dict[str, float]:
        d = c.d_model
        # a query meets (length + 1) / 2 keys on average; the rotation
        return {"projections": 2 * d * 4 * d, "attention": 2 * d * (length + 1) + 6 * d}

    @classmethod
    def reach(cls, c: Config) -> int:
        return 1

    @classmethod
    def channel_groups(cls, c: Config) -> tuple[int, str]:
        return c.n_heads, "heads"

    def initial_state(self, batch_size: int, room: int, like: Tensor) -> AttentionState:
        return AttentionState.within(like.new_empty(batch_size, room, 2, self.n_heads, self.head_dim))


class Phalanx(Mixer):
    """out = (swr(a, b v) c + v) Wo, with the decays a and the gates b and c functions of x: gates around a sliding
    window recurrence (arXiv:2512.13921).

    A head is 16 channels wide and has one decay a token. The gates are those of `kv_heads` heads; neighbouring heads
    share one: head h has gate h // (heads / kv_heads).
    """

    name = "Phalanx"
    head_dim = SWR_BLOCK

    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.kv_heads = self.heads_of(c)
        self.decay_proj = Linear(c.d_model, self.heads)
        self.in_gate_proj = Linear(c.d_model, self.kv_heads * self.head_dim)
        self.out_gate_proj = Linear(c.d_model, self.kv_heads * self.head_dim)
        self.value_proj = Linear(c.d_model, c.d_model, bias=False)
        self.out_proj = Linear(c.d_model, c.d_model, bias=False)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        # sigmoids near one, and their products, need more than bfloat16
        decays = self.decay_proj(x)
        a = torch.sigmoid(decays.to(torch.promote_types(decays.dtype, torch.float32)))
        b, c = torch.sigmoid(self.shared(self.in_gate_proj(x))), self.shared(self.out_gate_proj(x))
        v = self.value_proj(x).unflatten(-1, (self.heads, self.head_dim))
        y, state = self.operators.swr(a, b * v, state)
        return self.out_proj((y * c + v).flatten(2)), state

    def shared(self, gate: Tensor) -> Tensor:
        """A gate (B, L, kv_heads * 16) for every head (B, L, heads, 16)."""
        gate = gate.unflatten(-1, (self.kv_heads, self.head_dim))
        return gate.repeat_interleave(self.heads // self.kv_heads, dim=2)

    @classmethod
    def heads_of(cls, c: Config) -> tuple[int, int]:
        """How many heads such a layer has, and how many of them have gates of their own."""
        heads = c.d_model // cls.head_dim
        return heads, heads if c.phalanx_kv_heads is None else c.phalanx_kv_heads

    @classmethod
    def check(cls, c: Config) -> None:
        heads, kv_heads = cls.heads_of(c)
        if c.d_model % cls.head_dim:
            raise ConfigError(f"d_model {c.d_model} is not a multiple of {cls.head_dim}, as Phalanx layers (P) need")
        if kv_heads < 1 or heads % kv_heads:
            raise ConfigError(f"{heads} Phalanx heads cannot share {kv_heads} phalanx_kv_heads evenly")

    @classmethod
    def flops(cls, c: Config, length: int) -> dict[str, float]:
        heads, kv_heads = cls.heads_of(c)
        projections = 2 * c.d_model * (heads + 2 * kv_heads * cls.head_dim + 2 * c.d_model)
        # the recurrence within and into a block; gates and skip
        return {"projections": projections, "phalanx": 4 * c.d_model + 3 * c.d_model}

    @classmethod
    def reach(cls, c: Config) -> int:
        return SWR_REACH

    def initial_state(self, batch_size: int, room: int, like: Tensor) -> RecurrentState:
        return RecurrentState(swr_start(like.new_empty(batch_size, 0, self.heads, self.head_dim))._asdict())


MIXERS: dict[str, type[Mixer]] = {"S": HyenaSE, "D": HyenaMR, "H": HyenaLI, "*": Attention, "P": Phalanx}
"""The mixers by their letters in a layout."""


class RMSNorm(nn.Module):
    """s * x / (rms(x) + eps), in float32 or better; eps is added outside the square root."""

    def __init__(self, d: int, eps: float):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.empty(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        acc = torch.promote_types(x.dtype, torch.float32)
        rms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=acc) * x.shape[-1] ** -0.5
        return (x / (rms + self.eps)).to(x.dtype) * self.scale


class GatedMLP(nn.Module):
    """W3 (act(W1 x) * (W2 x))."""

    def __init__(self, c: Config, activation: str):
        super().__init__()
        self.activation = activation
        self.w1 = Linear(c.d_model, c.d_mlp, bias=False)
        self.w2 = Linear(c.d_model, c.d_mlp, bias=False)
        self.w3 = Linear(c.d_mlp, c.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.w1(x)
        if self.activation != "identity":
            gate = F.gelu(gate) if self.activation == "gelu" else F.silu(gate)
        return self.w3(gate * self.w2(x))

    def initialize(self, c: Config, g: torch.Generator) -> None:
        """Draw the weights that do not start as those of any linear layer."""
        self.w3.weight.normal_(0, _residual_std(c), generator=g)


class Block(nn.Module):
    """x = x + mixer(norm1(x)); x = x + mlp(norm2(x)), the second where the model has feed-forward layers."""

    def __init__(self, c: Config, layer: int):
        super().__init__()
        self.norm1, self.mixer = RMSNorm(c.d_model, c.eps), MIXERS[c.layout[layer]](c)
        self.mlp: GatedMLP | None = None
        if c.d_mlp > 0:
            self.norm2, self.mlp = RMSNorm(c.d_model, c.eps), GatedMLP(c, c.mlp_activation(layer))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.norm1(x), state)
        x = x + y
        return (x if self.mlp is None else x + self.mlp(self.norm2(x))), state


class StripedHyena2(nn.Module):
    """The backbone. Tokens are bytes; a sequence may be given whole (`forward`) or in pieces (`extend`)."""

    source: Source
    """Where the weights came from; only models that were loaded from a checkpoint have it."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # without values: drawing them on the meta device would import torch.compile's machinery, which takes seconds
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.d_model), freeze=False)
        self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(config, i) for i in range(config.n_layers)))
        self.norm = RMSNorm(config.d_model, config.eps)
        self.unembedding = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, L, vocab), float32 or better, of whole sequences ids (B, L), L >= 1."""
        return self.logits(self.hidden(ids, None)[0])

    def extend(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Logits (B, L, vocab) of the next tokens ids (B, L), and the state after them. `state` stays valid."""
        x, state = self.hidden(ids, state)
        return self.logits(x), state

    def initial_state(self, batch_size: int, room: int = 0) -> ModelState:
        """The state before the first token of `batch_size` sequences.

        `room` is a number of tokens that attention makes room for now, instead of growing on the way and holding old
        and new keys and values together each time. More tokens may come.
        """
        return ModelState([b.mixer.initial_state(batch_size, room, self.embedding.weight) for b in self.blocks], 0)

    def hidden(self, ids: Tensor, state: ModelState | None, n_blocks: int | None = None) -> tuple[Tensor, ModelState]:
        """The residual stream (B, L, D) after the last block, and the state; None is the start of a sequence.

        `n_blocks` runs only the first so many; the state is then one of these blocks alone.
        """
        x, layers = self.run_blocks(ids, None if state is None else state.layers, n_blocks)
        return x, ModelState(layers, ids.shape[1] + (0 if state is None else state.position))

    def run_blocks(
        self, ids: Tensor, states: Sequence[Any] | None, n_blocks: int | None = None
    ) -> tuple[Tensor, list[Any]]:
        """What `hidden` does, with states of the kind that the installed operators take and return."""
        x, after = self.embedding(ids), []
        blocks = self.blocks[:n_blocks]
        for block, state in zip(blocks, states or [None] * len(blocks), strict=True):
            x, state = block(x, state)
            after.append(state)
        return x, after

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, L, vocab), float32 or better, of the residual stream x (B, L, D) after the last block."""
        x = self.norm(x)
        y = linear(x, self.embedding.weight) if self.unembedding is None else self.unembedding(x)
        return y.to(torch.promote_types(y.dtype, torch.float32))

    def install(self, operators: Operators) -> None:
        """Let all mixers call these operators."""
        for block in self.blocks:
            block.mixer.operators = operators

    @contextmanager
    def using(self, operators: Operators) -> Iterator[None]:
        """While the context is open, all mixers call these operators."""
        before = [block.mixer.operators for block in self.blocks]
        self.install(operators)
        try:
            yield
        finally:
            for block, own in zip(self.blocks, before, strict=True):
                block.mixer.operators = own

    @contextmanager
    def recording(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """A dict that holds, while the context is open, what the submodules of these names last put out.

        `blocks.3` is the residual stream (B, L, D) after block 3, `blocks.3.mlp.w3` what its MLP adds to it.
        """
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

            return hook

        handles = [self.get_submodule(name).register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def skeleton(config: Config) -> StripedHyena2:
    """A model without weights: names and shapes on the meta device."""
    with torch.device("meta"):
        return StripedHyena2(config)


TRAINING_PASSES = 3
"""A training step costs three forward passes: the backward pass computes two products for each one forward."""


def flops_per_token(c: Config, length: int) -> dict[str, float]:
    """Forward FLOPs a token, averaged over sequences of `length` tokens, by operator.

    A multiply-add counts as two. It is what the mathematics needs, not what a kernel spends: a blocked FIR that
    multiplies Toeplitz matrices, or an attention kernel that visits masked pairs, does more, so that utilization
    computed from these numbers is never flattered.
    """
    total: Counter[str] = Counter()
    for letter in c.layout:
        total.update(MIXERS[letter].flops(c, length))
    total["mlp"] = c.n_layers * (3 * 2 * c.d_model * c.d_mlp + c.d_mlp)
    total["norms"] = (c.n_layers * (2 if c.d_mlp else 1) + 1) * 4 * c.d_model
    total["unembedding"] = 2 * c.d_model * c.vocab_size
    return dict(total)


def training_flops(c: Config, length: int) -> float:
    """FLOPs of a training step's forward and backward pass, a token, recomputation not counted."""
    return TRAINING_PASSES * sum(flops_per_token(c, length).values())
