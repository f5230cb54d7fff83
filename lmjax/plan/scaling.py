"""How large a model, and how much text, for a budget of compute."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fit:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token."""

    source: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        return self.E + self.A / n**self.alpha + self.B / d**self.beta

    def best(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss with 6 N D = flops (arXiv:2203.15556, eq. 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return n, flops / 6 / n


CHINCHILLA = Fit(
    source="Chinchilla, approach 3 (arXiv:2203.15556, eq. 10)", E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28
)
REFITTED = Fit(
    source="the same data fitted again (arXiv:2404.10102)", E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658
)
TOKENS_PER_PARAMETER = 20


def lines(flops: float) -> list[str]:
    """The best sizes by each fit, and by the rule of thumb."""
    told = [f"compute {flops:.3g} FLOPs = 6 N D"]
    for fit in (CHINCHILLA, REFITTED):
        n, d = fit.best(flops)
        told.append(
            f"{fit.source}: N {_short(n)} parameters, D {_short(d)} tokens, loss {fit.loss(n, d):.4f} nats a token; "
            f"L = {fit.E} + {fit.A} / N^{fit.alpha} + {fit.B} / D^{fit.beta}"
        )
    n = (flops / 6 / TOKENS_PER_PARAMETER) ** 0.5
    told.append(
        f"rule of thumb, {TOKENS_PER_PARAMETER} tokens a parameter (the same paper, approaches 1 and 2): "
        f"N {_short(n)} parameters, D {_short(flops / 6 / n)} tokens"
    )
    told.append("the fits are of their authors' models and text; the first two differ by more than their own errors")
    return told


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
