"""Places inside a model that can be looked at, by TransformerLens's names (github.com/TransformerLensOrg)."""

import flax.linen as nn
import jax

TAPS = "taps"
# our modules' names where TransformerLens has others
THEIRS = {
    "attention": "attn", "feedforward": "mlp", "attention_norm": "ln1", "feedforward_norm": "ln2",
    "cross_attention": "cross_attn", "cross_attention_norm": "ln_cross",
    "attention_post_norm": "ln1_post", "feedforward_post_norm": "ln2_post", "final_norm": "ln_final",
}  # fmt: skip


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """x itself. Where the caller captures (`transformer.captured`), x is kept too; otherwise this adds nothing."""
    module.sow(TAPS, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x


def by_site(tree: dict, prefix: str = "") -> dict[str, jax.Array]:
    """What the taps of a module kept, as {"attn.hook_q": x, ...}."""
    sites = {}
    for name, item in tree.items():
        name = prefix + THEIRS.get(name, name)
        sites |= by_site(item, f"{name}.") if isinstance(item, dict) else {name: item}
    return sites
