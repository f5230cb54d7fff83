"""Perplexity by source or domain: which kinds of text a model can write, and which it cannot."""

from dataclasses import dataclass, replace

import numpy as np

from lmjax.errors import UserError, path_text
from lmjax.evaluate.records import opened
from lmjax.evaluate.result import Result
from lmjax.evaluate.rolling import Perplexity, Scored, as_bits, as_perplexity
from lmjax.evaluate.settings import Settings
from lmjax.evaluate.training_text import held_out_by, value_of
from lmjax.language_model import LanguageModel

FILE = "file"


@dataclass(frozen=True)
class Domains:
    """Texts as `rolling.Perplexity` reads them, each with the value of a field of its line, or its file's name; without
    data a run's held-out documents, by a field of their records or by the source that they are of."""

    settings: Settings
    whole: Perplexity | None
    domains: list[str]

    @staticmethod
    def of(settings: Settings) -> "Domains":
        """Raises UserError for lines without the field."""
        if settings.data is None:
            return Domains(settings, None, [])
        found = []
        for name, content, records in opened(settings.data, "--data"):
            if records is None:
                if settings.by != FILE:
                    raise UserError(f"--by {settings.by}: {name} has no fields; expected .jsonl, or --by {FILE}")
                found += [(name, name, content)] if content else []
                continue
            for record in records:
                domain = name if settings.by == FILE and FILE not in record.fields else value_of(record, settings.by)
                if text := record.text("text"):
                    found.append((record.where, domain, text))
        if not found:
            raise UserError(f"--data {path_text(settings.data)}: no text in it")
        places, domains, texts = map(list, zip(*found[: settings.limit], strict=True))
        return Domains(settings, Perplexity(settings, texts, places), domains)

    def run(self, model: LanguageModel) -> Result:
        whole, domains = self.whole, self.domains
        if whole is None:
            found = list(held_out_by(model.path, self.settings.by))[: self.settings.limit]
            if not found:
                raise UserError(f"--by {self.settings.by}: {path_text(model.path)} has no held-out document")
            domains, texts = map(list, zip(*found, strict=True))
            whole = Perplexity(self.settings, texts, [f"held-out document {i}" for i in range(1, len(texts) + 1)])
        scored, domain_N = whole.scored(model), np.array(domains)
        names, by = np.unique(domain_N), self.settings.by
        rows = [domain_row(whole, scored, name, domain_N == name, by) for name in names]
        result = whole.result(model, scored)
        of = "the run's held-out text" if self.settings.data is None else "the data"
        protocol = result.protocol | {"by": f"{by} of {of}, from the most to the least predictable"}
        tables = {"domains": sorted(rows, key=lambda row: row["bits_per_byte"])}
        return replace(result, protocol=protocol, tables=tables)


def domain_row(whole: Perplexity, scored: Scored, name: str, here_N: np.ndarray, title: str) -> dict:
    """Of some of the texts: how many, and the rates that all have."""
    part = scored.of(here_N)
    bits = whole.rate(part, "byte", as_bits)
    return {
        title: str(name), "texts": int(here_N.sum()), "bytes": int(part.sizes["byte"].sum()),
        "bits_per_byte": bits.value, "bits_per_byte_95": bits.interval,
        "token_perplexity": whole.rate(part, "token", as_perplexity).value if part.sizes["token"].sum() else None,
    }  # fmt: skip
