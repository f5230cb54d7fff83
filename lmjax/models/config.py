"""What a Transformer is, as data. Each member of a union carries only its own parameters."""

from dataclasses import dataclass, replace
from typing import Literal

from lmjax.models.attention import Auto, Kernel
from lmjax.models.autoencoder import Autoencoder
from lmjax.models.feedforward import Activation, Dense, Experts, FeedForward
from lmjax.models.norms import LayerNorm, Norm
from lmjax.models.positions import Learned, Positions, Rotary
from lmjax.models.quantised import Products

Remat = Literal["nothing", "products", "attention", "everything", "offload"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """What the attention of one layer sees. window: so many tokens, its own included; None: all before it. rotary:
    where this layer turns by other angles than model.positions says."""

    window: int | None = None
    rotary: Rotary | None = None

    def __post_init__(self):
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; expected a positive number")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Transformer of one stack of blocks: a decoder (GPT-2, Llama), or an encoder (BERT, RoBERTa); or of two: a
    decoder that attends to an encoder (T5).

    encoder_layers: layers of an encoder, otherwise as the decoder, that every layer of the decoder attends to; 0: there
    is none. Source, target and, where tied, output share one embedding (arXiv:1706.03762, section 3.4).
    causal: a token sees what came before it; False: all of its segment. norm_first: x + f(norm(x)) (GPT-2, section
    2.3), and a norm after the last block; False: norm(x + f(x)) (arXiv:1706.03762, section 3.1). embedding_norm: the
    sum of embeddings is normalised (BERT). token_types: how many there are, each with an embedding of its own (BERT's
    sentences A and B); 0: none. masked_head: the activation of the layer that stands before the unembedding for
    predicting masked tokens; pooler: a layer over the first token (BERT, arXiv:1810.04805; models/heads.py). outputs:
    of a linear layer on hidden vectors, behind the pooler where there is one, as the task needs them; 0: there is none.
    autoencoder: one beside the model, which computes nothing for it; where there is one, nothing else is trained.

    pattern: what each layer's attention sees, repeated over the layers: (Span(window=4096), Span()) alternates.
    out_bias: of the projection after attention; None: as bias, which is that of queries, keys and values.
    score_scale: of the attention scores; None: 1 / sqrt(head width). scale_by_layer: divides it by 1, 2, 3, ... in
    successive layers. score_cap, logit_cap: x becomes cap x tanh(x / cap). parallel: attention and feed-forward
    read the same x (GPT-J; PaLM, arXiv:2204.02311, section 2). post_norms: what each adds to the residual
    stream is normalised too (Gemma 2, arXiv:2408.00118). scaled_embedding: embeddings times sqrt(width).
    scaled_output: the vectors from which tokens are predicted are divided by sqrt(width) (T5 v1.0).

    vocab: None takes the tokenizer's size. kv_heads: None takes `heads`; fewer is grouped-query attention
    (arXiv:2305.13245), 1 multi-query (arXiv:1911.02150). head_dim: None takes width / heads. bias: of the attention
    projections. init_std: of every matrix, divided by sqrt(2 layers) for the two of a layer that write to the residual
    stream (GPT-2, section 2.3), by sqrt(3 layers) where there are three. equal_keys: the matrix of keys begins equal to
    that of queries (as in arXiv:2305.09828, section 3): a token sees its own repeats best before anything is learned.
    dtype: of the computation; parameters, softmax, norms and loss are float32 always. unroll: layers that one turn of
    the scan over layers holds; more compile longer and run faster on CPU. products: the numbers of the blocks' matrix
    products with weights, see models/quantised.py; not of experts, attention or the unembedding.

    remat: what the backward pass of a block computes again (arXiv:1604.06174), from most memory to least. "nothing":
    all is kept but, in bfloat16, what is made element by element inside a norm or a gate. "products": what the matrix
    products with weights and attention gave is kept; norms, activations and scores come again. "attention": the
    block's input and what attention gave are kept; projections and the feed-forward layer come again, fused attention
    kernels for TPU do not. "everything": the input alone is kept. "offload": as everything, with the inputs of all
    blocks in the host's memory, where XLA reaches it.
    """

    layers: int
    width: int
    heads: int
    context: int
    encoder_layers: int = 0
    vocab: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    feedforward: FeedForward = Dense()
    positions: Positions = Learned()
    norm: Norm = LayerNorm()
    bias: bool = True
    out_bias: bool | None = None
    qk_norm: bool = False
    pattern: tuple[Span, ...] = (Span(),)
    causal: bool = True
    norm_first: bool = True
    embedding_norm: bool = False
    token_types: int = 0
    masked_head: Activation | None = None
    pooler: bool = False
    outputs: int = 0
    autoencoder: Autoencoder | None = None
    score_scale: float | None = None
    scale_by_layer: bool = False
    score_cap: float | None = None
    logit_cap: float | None = None
    parallel: bool = False
    post_norms: bool = False
    scaled_embedding: bool = False
    scaled_output: bool = False
    tied: bool = True
    dropout: float = 0.0
    init_std: float = 0.02
    equal_keys: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    kernel: Kernel = Auto()
    products: Products = "plain"
    remat: Remat = "nothing"
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
        if self.equal_keys and self.n_kv_heads != self.heads:
            raise ValueError(f"equal_keys needs as many kv_heads as heads, {self.heads}; kv_heads is {self.kv_heads}")
        if not self.pattern:
            raise ValueError("pattern is empty; expected at least one Span")
        for rotary in dict.fromkeys(self.rotaries):
            if (
                isinstance(rotary, Rotary)
                and not 0 < 2 * len(rotary.frequencies(self.head_width)[0]) <= self.head_width
            ):
                raise ValueError(f"rotary positions turn pairs: head width {self.head_width} is not even")
            if rotary is not None and not isinstance(self.positions, Rotary):
                raise ValueError("a Span has a rotary, and positions are not Rotary")
        if self.products != "plain" and isinstance(self.feedforward, Experts):
            raise ValueError(f"products is {self.products}, and those of experts are plain only")
        if not self.causal and any(span.window is not None for span in self.pattern):
            raise ValueError("causal is False, and a Span has a window, which counts back from a token")
        if not self.norm_first and (self.parallel or self.post_norms):
            raise ValueError("norm_first is False; expected parallel and post_norms to be False too")
        self._check_encoder()
        if self.autoencoder is not None and self.autoencoder.layer >= self.layers:
            raise ValueError(f"autoencoder.site is {self.autoencoder.site}; expected a block below {self.layers}")
        for name in ("token_types", "outputs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.masked_head and self.logit_cap is not None:
            raise ValueError("masked_head has no logit_cap")
        for name in ("score_scale", "score_cap", "logit_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; expected a positive number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a number from 0 to below 1")

    def _check_encoder(self):
        if self.encoder_layers < 0:
            raise ValueError(f"encoder_layers is {self.encoder_layers}; expected 0 or more")
        if not self.encoder_layers:
            return
        wrong = {
            "causal=False": not self.causal, "parallel=True": self.parallel, "token_types": self.token_types > 0,
            "masked_head": self.masked_head, "pooler": self.pooler, "Experts": isinstance(self.feedforward, Experts),
            "a window": any(span.window is not None for span in self.pattern),
        }  # fmt: skip
        if found := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise ValueError(f"encoder_layers is {self.encoder_layers}; expected a model without {', '.join(found)}")

    @property
    def encoder(self) -> "ModelConfig":
        """The encoder alone; its embedding is the decoder's."""
        if not self.encoder_layers:
            raise ValueError("encoder_layers is 0: there is no encoder")
        changes = {"causal": False, "scaled_output": False, "tied": True}
        return replace(self, layers=self.encoder_layers, encoder_layers=0, **changes)

    @property
    def n_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def has_out_bias(self) -> bool:
        return self.bias if self.out_bias is None else self.out_bias

    @property
    def hidden(self) -> int:
        """Width F of the feed-forward layer."""
        return self.feedforward.width or self.feedforward.default_width(self.width)

    @property
    def rotaries(self) -> tuple[Rotary | None, ...]:
        """For each Span of the pattern, how it turns queries and keys; None: not at all."""
        own = self.positions if isinstance(self.positions, Rotary) else None
        return tuple(span.rotary or own for span in self.pattern)

    @property
    def residual_std(self) -> float:
        return self.init_std / ((3 if self.encoder_layers else 2) * self.layers) ** 0.5
