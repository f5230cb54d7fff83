"""Figures that papers print, to stand beside ours."""

from dataclasses import replace

from lmjax.models.config import ModelConfig
from lmjax.models.feedforward import Dense
from lmjax.models.norms import LayerNorm
from lmjax.plan.counts import flops_per_token, params, three_digits, used_params

# GPT-3 (arXiv:2005.14165), table D.1: exact N (V = 50,257, T = 2,048) -> name, millions, FLOPs, PF-days as printed
GPT3 = {
    125_226_240: ("Small", "125", "2.25e20", "2.60"),
    355_871_744: ("Medium", "356", "6.41e20", "7.42"),
    760_300_032: ("Large", "760", "1.37e21", "15.8"),
    1_315_723_264: ("XL", "1,320", "2.38e21", "27.5"),
    2_651_553_280: ("2.7B", "2,650", "4.77e21", "55.2"),
    6_658_404_352: ("6.7B", "6,660", "1.20e22", "139"),
    12_853_386_240: ("13B", "12,850", "2.31e22", "268"),
    174_604_259_328: ("175B", "174,600", "3.14e23", "3,640"),
}

# nanoGPT, transformer_sizing.ipynb: GPT-2 124M without biases and without its position table
NANOGPT_PARAMS, NANOGPT_FLOPS = 123_551_232, 875_062_886_400


def beside(cfg: ModelConfig) -> list[str]:
    """Lines for a model whose figures are in print."""
    lines = []
    if row := GPT3.get(params(cfg)):
        name, millions, flops, days = row
        lines.append(
            f"GPT-3 {name}: table D.1 prints {millions} million parameters and from that {flops} FLOPs, {days} PF-days"
        )
    plain = without_biases(cfg)
    if plain is not None and used_params(plain) == NANOGPT_PARAMS and cfg.context == 1024:
        sequence = flops_per_token(plain) * cfg.context
        lines.append(
            f"nanoGPT's sizing of GPT-2 without biases prints {NANOGPT_FLOPS:,} FLOPs a sequence; "
            f"the formula here gives {sequence:,} for it"
        )
    return lines


def without_biases(cfg: ModelConfig) -> ModelConfig | None:
    """The model as nanoGPT has it; None for what is no GPT-2."""
    if not isinstance(cfg.feedforward, Dense) or not isinstance(cfg.norm, LayerNorm):
        return None
    return replace(
        cfg, bias=False, feedforward=replace(cfg.feedforward, bias=False), norm=replace(cfg.norm, bias=False)
    )


def paper_line(name: str, n: int, flops: float, days: float) -> str:
    return f"{name}: {n:,} parameters, {three_digits(flops)} FLOPs, {three_digits(days)} PF-days"
