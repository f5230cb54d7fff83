"""The original implementation of a checkpoint, transformers' in PyTorch, at the same sites. Extra [parity]."""

from pathlib import Path

import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.interop.mapping import Entry, expand, parse
from lmjax.interop.read import Checkpoint, open_checkpoint


def original_activations(directory: Path, tokens_BT: np.ndarray) -> dict[str, np.ndarray]:
    """As `verify.activations`, of the sites that are a module's output there. No code of the checkpoint is run. Raises
    UserError where PyTorch and transformers are not installed."""
    found = open_checkpoint(directory)
    if not found.cfg.causal or found.cfg.encoder_layers or found.labels:
        kind = (
            "an encoder-decoder" if found.cfg.encoder_layers else "a model of labels" if found.labels else "an encoder"
        )
        raise UserError(
            f"transformers:{path_text(directory)} is {kind}; expected a model of the next token, of one stack"
        )
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError("transformers:PATH needs PyTorch: python -m pip install torch==2.13.0 '.[parity]'") from None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(directory), attn_implementation="eager", dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).train(False)
    modules, sites = dict(model.named_modules()), {}

    def keep(site, picked):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            x = output.detach().float().numpy()
            # a norm of heads gives (B, heads, T, H) in some models, (B, T, heads, H) in others
            x = x.swapaxes(1, 2) if x.ndim == 4 and x.shape[1] != tokens_BT.shape[1] else x
            sites[site] = picked(x)

        return hook

    for name, site, picked in _outputs(found):
        if name in modules:
            modules[name].register_forward_hook(keep(site, picked))
    with torch.no_grad():
        logits = model(torch.tensor(tokens_BT.astype(np.int64))).logits
    return sites | {"logits": logits.float().numpy()}


def _outputs(found: Checkpoint):
    """(name of a module, the site that its output is, how it lies there)."""
    cfg, family = found.cfg, found.family
    gated = any(entry.ours == "blocks/feedforward/gate/kernel" for entry in family.entries(cfg))
    places = {
        "attention/q": "attn.hook_q", "attention/k": "attn.hook_k", "attention/v": "attn.hook_v",
        "attention/q_norm": "attn.q_norm.hook_normalized", "attention/k_norm": "attn.k_norm.hook_normalized",
        "attention_norm": "ln1.hook_normalized", "feedforward_norm": "ln2.hook_normalized",
        "feedforward/gate": "mlp.hook_pre", "feedforward/up": "mlp.hook_pre_linear" if gated else "mlp.hook_pre",
        "attention_post_norm" if cfg.post_norms else "attention/out": "hook_attn_out",
        "feedforward_post_norm" if cfg.post_norms else "feedforward/down": "hook_mlp_out",
    }  # fmt: skip
    for entry in family.entries(cfg):
        path, _, leaf = entry.ours.removeprefix("blocks/").rpartition("/")
        if leaf not in ("kernel", "scale"):
            continue
        for place, name in expand(entry, cfg):
            module = family.exported(name).removesuffix(".weight")
            if entry.ours == "final_norm/scale":
                yield module, "ln_final.hook_normalized", _flat
            elif path in places and len(place) == 1:
                yield module, f"blocks.{place[0]}.{places[path]}", _part(found, entry)
    block = "h.{}" if family.embedding == "wte.weight" else "layers.{}"
    for i in range(cfg.layers):
        yield family.prefix + block.format(i), f"blocks.{i}.hook_resid_post", _flat


def _flat(output: np.ndarray) -> np.ndarray:
    return output.reshape(*output.shape[:2], -1)


def _part(found: Checkpoint, entry: Entry):
    """From the outputs of a fused matrix those that are this entry's; all where it is not fused."""
    groups, order = parse(entry.pattern)
    (axes,) = [group for group in groups if order[-1] in group]

    def picked(output):
        parted = next((i for i, axis in enumerate(axes) if axis.isdigit()), None)
        if parted is None:
            return _flat(output)
        x = output.reshape(*output.shape[:2], *(found.sizes.length(axis) for axis in axes))
        return _flat(np.take(x, entry.part, axis=2 + parted))

    return picked
