"""Suites in which the model writes: the text that it continues a prompt with, against references."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from lmjax.data.sources import Record
from lmjax.data.templates import filled
from lmjax.errors import UserError, at
from lmjax.evaluate.averages import drawn_mean, figure_of
from lmjax.evaluate.likelihood import prefix_ids, protocol_of
from lmjax.evaluate.progress import followed
from lmjax.evaluate.result import Figure, Result, share
from lmjax.evaluate.settings import SEPARATOR, Settings, follows
from lmjax.generate.consistency import extracted, pattern, vote
from lmjax.generate.many import write_all
from lmjax.generate.sampling import Choice, choice
from lmjax.language_model import LanguageModel
from lmjax.models.config import ModelConfig
from lmjax.tasks import text_metrics
from lmjax.tasks.calibration_metrics import Ece, Risk, bins, diagram, equal_widths
from lmjax.tokenizers import Tokenizer
from lmjax.tokenizers.sides import prompt_ids

NEW_TOKENS = 64
# of Wang et al. 2022, arXiv:2203.11171, section 3.1, for the largest of their models
SAMPLE_TEMPERATURE = 0.7


class WritingModel(NamedTuple):
    """As much of a LanguageModel as writing needs; layers as they lie."""

    cfg: ModelConfig
    params: dict
    tokenizer: Tokenizer


class Written(NamedTuple):
    """texts: what was written after each prompt, up to a stop. cut: how many prompts lost their beginning."""

    texts: list[str]
    cut: int


def ids_of(model: LanguageModel, prompt: str) -> np.ndarray:
    """A prompt as the beginning of a text; of an empty one the prefix alone. Raises UserError where that is nothing."""
    ids = prompt_ids(prompt, model.tokenizer) if prompt else prefix_ids(model)
    if not len(ids):
        raise UserError("an empty prompt, and the tokenizer has neither BOS nor EOS to begin with")
    return ids


def write_until(
    model: LanguageModel | WritingModel, ids: list[np.ndarray], stops: tuple[str, ...], max_new_tokens: int,
    how: Choice, seed: int = 0, *, ends: tuple[int, ...] | None = None, follow=followed,
) -> Written:  # fmt: skip
    """What the model writes after each prompt, up to the first of the stop strings, which is no part of it, or up to
    one of the tokens `ends`; None: the tokenizer's own. A prompt that leaves no room for max_new_tokens loses its
    beginning, as in lm-eval. follow: who shows how far it is. Raises UserError where the context has no room for any
    prompt."""
    room = model.cfg.context - max_new_tokens
    if room < 1:
        raise UserError(f"{max_new_tokens} new tokens leave no room for a prompt in a context of {model.cfg.context}")
    kept = [one[-room:] for one in ids]
    news = write_all(
        model.cfg, model.params, kept, how, max_new_tokens=max_new_tokens, seed=seed,
        stops=model.tokenizer.policy.stops if ends is None else ends, known=model.tokenizer.vocab_size,
        followed=partial(follow, total=len(kept), size=len),
    )  # fmt: skip
    texts = [_up_to(_decoded(model, before, new), stops) for before, new in zip(kept, news, strict=True)]
    return Written(texts, sum(len(one) > room for one in ids))


def _decoded(model: LanguageModel | WritingModel, before: np.ndarray, new: np.ndarray) -> str:
    """Decoded together, where the tokenizer would take a space at the beginning for its own."""
    whole, head = model.tokenizer.decode([*before, *new]), model.tokenizer.decode(before)
    return whole[len(head) :] if whole.startswith(head) else model.tokenizer.decode(new)


def _up_to(text: str, stops: tuple[str, ...]) -> str:
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


@dataclass(frozen=True)
class Task:
    """context: the prompt, with what stands before it."""

    where: str
    context: str
    references: tuple[str, ...]

    @property
    def solved(self) -> str:
        return self.context + follows(self.context, self.references[0])


@dataclass(frozen=True)
class Generation:
    """Lines with `prompt` (or what the template names) and `references`, or `reference`: a text or several."""

    settings: Settings
    template: str
    tasks: list[Task]

    @staticmethod
    def of(settings: Settings) -> "Generation":
        """Raises UserError for lines that are not so."""
        records, pool = settings.records()
        template = settings.template or "{prompt}"
        tasks, others = ([_task(record, template) for record in part] for part in (records, pool))
        for option in ("sample_temperature", "answer"):
            if settings.samples is None and getattr(settings, option) is not None:
                raise UserError(f"--{option}: expected --samples K too")
        pattern(settings.answer)
        return Generation(settings, template, settings.with_shots(tasks, others))

    def run(self, model: LanguageModel) -> Result:
        room = self.settings.max_new_tokens or NEW_TOKENS
        stops = (SEPARATOR,) if self.settings.stop is None else self.settings.stop
        prompts = []
        for task in self.tasks:
            with at(task.where):
                prompts.append(ids_of(model, task.context))
        if self.settings.samples is not None:
            return self._voted(model, prompts, stops, room)
        written = write_until(model, prompts, stops, room, choice())
        return self._scored(
            model, [text.strip() for text in written.texts], f"greedily, {_until(room, stops)}", written.cut
        )

    def _voted(self, model: LanguageModel, prompts: list[np.ndarray], stops: tuple[str, ...], room: int) -> Result:
        """Of each prompt's samples the answer of most, and how many agree as its confidence."""
        settings, K = self.settings, self.settings.samples
        temperature = SAMPLE_TEMPERATURE if settings.sample_temperature is None else settings.sample_temperature
        repeated = [ids for ids in prompts for _ in range(K)]
        written = write_until(model, repeated, stops, room, choice(temperature=temperature), settings.seed)
        answer = pattern(settings.answer)
        samples = [written.texts[i : i + K] for i in range(0, len(repeated), K)]
        answers = [[extracted(text, answer) for text in texts] for texts in samples]
        votes = [vote(one) for one in answers]
        how = f"{K} samples at temperature {temperature:g}, seed {settings.seed}, {_until(room, stops)}"
        result = self._scored(model, [one.answer for one in votes], how, written.cut // K)
        agreement_N = np.array([one.agreement for one in votes])
        single = [
            float(np.mean([text is not None and text_metrics.exact_match(text, task.references) for text in texts]))
            for texts, task in zip(answers, self.tasks, strict=True)
        ]
        right_N = np.array(
            [text_metrics.exact_match(one.answer, task.references) for one, task in zip(votes, self.tasks, strict=True)]
        )
        error, risk = Ece(agreement_N, right_N, equal_widths()), Risk(agreement_N, right_N)
        more = {
            "single_exact_match": drawn_mean(single, settings.seed),
            "agreement": drawn_mean(agreement_N, settings.seed),
        }
        for name, statistic in (("ece_of_agreement", error), ("aurc_of_agreement", risk)):
            more[name] = figure_of(statistic, len(votes), settings.seed)
        protocol = {
            "answer": settings.answer or "the whole text",
            "vote": "of answers that SQuAD's normalisation makes equal, the most frequent one; agreement: its share of "
            "the samples; single_exact_match: the mean of one sample",
        }
        drawn = {"reliability of agreement": diagram(bins(agreement_N, right_N, equal_widths()))}
        return replace(
            result, figures=result.figures | more, protocol=protocol | result.protocol, drawn=drawn,
            extra=result.extra | {"agreement": agreement_N.tolist(), "samples": samples},
        )  # fmt: skip

    def _scored(self, model: LanguageModel, texts: list[str], how: str, cut: int) -> Result:
        references = [task.references for task in self.tasks]
        both = list(zip(texts, references, strict=True))
        bleu, chrf = text_metrics.bleu(texts, references), text_metrics.chrf(texts, references)
        figures = {
            "exact_match": share([text_metrics.exact_match(*pair) == 1 for pair in both]),
            "f1": drawn_mean([text_metrics.f1(*pair) for pair in both], self.settings.seed),
            "bleu": Figure(bleu.score, bleu.stderr, bleu.interval),
            "chrf": Figure(chrf.score, chrf.stderr, chrf.interval),
        }
        protocol = {
            "written": how,
            "template": self.template,
            "exact_match_and_f1": "SQuAD v1.1's, the best of the references",
            "bleu": bleu.signature,
            "chrf": chrf.signature,
            "intervals": "exact match: Wilson's; the others: bootstrap over the examples",
            **self.settings.protocol(),
            **protocol_of(model, cut),
        }
        return Result("generation", len(self.tasks), protocol, figures, extra={"texts": texts})


def _until(room: int, stops: tuple[str, ...]) -> str:
    return f"up to {room} tokens, an end token or {', '.join(map(repr, stops)) or 'no string'}"


def _task(record: Record, template: str) -> Task:
    return Task(record.where, filled(template, record), record.texts("references", "reference"))
