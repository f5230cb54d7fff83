"""What the command line says about a suite, and the examples that stand before an example."""

from dataclasses import dataclass, replace

import numpy as np

from lmjax.data.sources import Record
from lmjax.errors import UserError
from lmjax.evaluate.records import read

# between examples, and where lm-eval stops a text that is written: its fewshot_delimiter
SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """data: a file, a glob or a directory. shots: solved examples before each one, drawn by `seed` from shots_from, or
    from the other examples of data. limit: only the first so many examples are scored. template, labels,
    max_new_tokens, stop and those below: of the suites that have them; None where they are not given."""

    data: str | None
    shots: int = 0
    shots_from: str | None = None
    seed: int = 0
    limit: int | None = None
    template: str | None = None
    labels: str | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    vectors: str | None = None
    groups: str | None = None
    words: str | None = None
    classifier: str | None = None
    toxic_label: str | None = None
    samples: int | None = None
    fit_temperature: str | None = None
    uncalibrated: bool | None = None
    sample_temperature: float | None = None
    answer: str | None = None
    by: str | None = None
    prompt_tokens: int | None = None
    ngram: int | None = None

    def __post_init__(self):
        if self.shots_from and not self.shots:
            raise UserError("--shots_from: expected --shots N too")

    def records(self) -> tuple[list[Record], list[Record]]:
        """(those to score, those from which shots are drawn); without shots_from the first ones of the others."""
        all_of_them = read(self.data, "--data")
        pool = read(self.shots_from, "--shots_from") if self.shots_from else all_of_them
        have = len(pool) - bool({record.where for record in all_of_them} & {record.where for record in pool})
        if self.shots > have:
            raise UserError(f"--shots {self.shots}: there are {have} other examples")
        return all_of_them[: self.limit], pool if self.shots else []

    def with_shots(self, items: list, pool: list) -> list:
        """The items with shots out of the pool before their `context`, never an item itself. An item is a frozen
        dataclass with `where`, `context` and `solved`, the context with its answer."""
        if not self.shots:
            return items
        places, solved, found = {item.where: place for place, item in enumerate(pool)}, [one.solved for one in pool], []
        for i, item in enumerate(items):
            own = places.get(item.where)
            others = len(solved) - (own is not None)
            drawn = np.random.default_rng((self.seed, i)).choice(others, self.shots, replace=False)
            # without its own place the others move up
            drawn = drawn if own is None else drawn + (drawn >= own)
            before = "".join(solved[j] + SEPARATOR for j in drawn)
            found.append(replace(item, context=before + item.context))
        return found

    def protocol(self) -> dict[str, str | int | None]:
        source = self.shots_from or "the other examples"
        shots = f"{self.shots}, of {source}, seed {self.seed}" if self.shots else "0"
        return {"shots": shots, "limit": self.limit}


def follows(context: str, answer: str) -> str:
    """The answer as it stands after the context: after a space, unless one of them has white space there already."""
    apart = not context or context[-1].isspace() or answer[:1].isspace()
    return answer if apart else f" {answer}"
