"""What a Transformer is, as data. Each member of a union carries only its own parameters."""

from dataclasses import dataclass
from typing import Literal

from lmjax.models.attention import Auto, Kernel
from lmjax.models.feedforward import Dense, FeedForward
from lmjax.models.norms import LayerNorm, Norm
from lmjax.models.positions import Learned, Positions


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only Transformer with pre-normalisation (GPT-2, section 2.3; Llama, section 2.2).

    vocab: None takes the tokenizer's size. kv_heads: None takes `heads`; fewer is grouped-query
    attention (arXiv:2305.13245), 1 multi-query (arXiv:1911.02150). head_dim: None takes width / heads.
    bias: of the attention projections. init_std: of every matrix, divided by sqrt(2 layers) for the two that write
    to the residual stream (GPT-2, section 2.3). dtype: of the computation; parameters, softmax, norms
    and loss are float32 always. remat: what the backward pass recomputes instead of keeping.
    unroll: layers that one turn of the scan over layers holds; more compile longer and run faster on CPU.
    """

    layers: int
    width: int
    heads: int
    context: int
    vocab: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    feedforward: FeedForward = Dense()
    positions: Positions = Learned()
    norm: Norm = LayerNorm()
    bias: bool = True
    qk_norm: bool = False
    tied: bool = True
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"
    kernel: Kernel = Auto()
    remat: Literal["nothing", "products", "everything"] = "nothing"
    unroll: int = 1

    def __post_init__(self):
        for name in ("layers", "width", "heads", "context", "vocab", "kv_heads", "head_dim", "unroll"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a positive number")
        if self.context < 2:
            raise ValueError(f"context is {self.context}; a token and the one it predicts need 2")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}, and head_dim is not given")
        if self.heads % self.n_kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.n_kv_heads}")
        if self.positions.needs_even_heads and self.head_width % 2:
            raise ValueError(f"rotary positions turn pairs: head width {self.head_width} is not even")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a number from 0 to below 1")

    @property
    def n_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width F of the feed-forward layer."""
        return self.feedforward.width or self.feedforward.default_width(self.width)

    @property
    def residual_std(self) -> float:
        return self.init_std / (2 * self.layers) ** 0.5
