"""Suites in which the model chooses one of several texts by their likelihood: multiple choice, and classification."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.data.sources import Record
from lmjax.data.templates import filled
from lmjax.errors import UserError, at
from lmjax.evaluate import calibration
from lmjax.evaluate.averages import figure_of
from lmjax.evaluate.calibration import Answered, Judged, Scaling
from lmjax.evaluate.likelihood import encode_pair, log_likelihoods, protocol_of
from lmjax.evaluate.result import Figure, Result, share
from lmjax.evaluate.settings import Settings, follows
from lmjax.language_model import LanguageModel
from lmjax.tasks.text_metrics import confusion, label_f1, macro_f1, wilson

# of a choice, by which its log p is divided
MEASURES = {"acc": lambda text: 1, "acc_norm": len, "acc_bytes": lambda text: len(text.encode())}
QUESTION = "Question: {question}\nAnswer:"
TEXT = "{text}\nLabel:"


@dataclass(frozen=True)
class Item:
    """context: with what stands before it. answer: which of the choices is right."""

    where: str
    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def solved(self) -> str:
        return self.context + follows(self.context, self.choices[self.answer])


def _scored(model: LanguageModel, items: list[Item]) -> tuple[list[np.ndarray], int]:
    """(for each item log p of each of its choices, how many pairs were cut)."""
    pairs = []
    for item in items:
        with at(item.where):
            pairs += [encode_pair(model, item.context, follows(item.context, choice)) for choice in item.choices]
    found = log_likelihoods(model, pairs)
    return np.split(found.sums, np.cumsum([len(item.choices) for item in items])[:-1]), found.cut


def _items(settings: Settings, make: Callable[[Record], Item]) -> tuple[list[Item], list[Item]]:
    """(those that are reported on, those that a temperature is fitted on), with their shots. Raises UserError."""
    records, pool = settings.records()
    others = [make(record) for record in pool]

    def with_shots(records: list[Record]) -> list[Item]:
        return settings.with_shots([make(record) for record in records], others)

    return calibration.parted(settings, with_shots(records), with_shots)


def _judged(
    suite: "MultipleChoice | Classification",
    scores: list[np.ndarray],
    measures: dict[str, Callable],
    task: dict[str, Any],
) -> Judged:
    """Calibration of softmax over the choices. scores: of the items, then of those to fit on."""
    N, examples = len(suite.items), [[item.context, item.choices, item.answer] for item in suite.fit_items]
    return calibration.judge(
        _answered(suite.items, scores[:N], measures), _answered(suite.fit_items, scores[N:], measures), examples,
        task, suite.scaling, suite.settings.data, suite.settings.seed,
    )  # fmt: skip


def _answered(items: list[Item], scores: list[np.ndarray], measures: dict[str, Callable]) -> Answered:
    most, log_p = max((len(item.choices) for item in items), default=0), {}
    for name, size in measures.items():
        log_p[name] = np.full((len(items), most), -np.inf)
        for row, item, values in zip(log_p[name], items, scores, strict=True):
            row[: len(values)] = values / [size(choice) for choice in item.choices]
    return Answered(log_p, np.array([item.answer for item in items]))


@dataclass(frozen=True)
class MultipleChoice:
    """Lines with `question` or `context`, `choices` (two texts or more) and `answer` (an index from 0, or one of the
    choices). A context is continued as it is, a question stands in QUESTION; a template may say otherwise."""

    settings: Settings
    template: str
    items: list[Item]
    fit_items: list[Item]
    scaling: Scaling = Scaling()

    @staticmethod
    def of(settings: Settings) -> "MultipleChoice":
        """Raises UserError for lines that are not so."""
        template = settings.template or _usual(settings.records()[0][0])
        return MultipleChoice(settings, template, *_items(settings, lambda record: _choice(record, template)))

    def run(self, model: LanguageModel) -> Result:
        scores, cut = _scored(model, [*self.items, *self.fit_items])
        figures = {}
        for name, size in MEASURES.items():
            # the first of equals, as lm-eval's argmax
            chosen = [
                int(np.argmax(values / [size(choice) for choice in item.choices]))
                for values, item in zip(scores[: len(self.items)], self.items, strict=True)
            ]
            figures[name] = share([i == item.answer for i, item in zip(chosen, self.items, strict=True)])
        task = {"suite": "multiple-choice", "template": self.template, "shots": self.settings.shots}
        protocol = {
            "scored_by": "log p of each choice after the context; acc_norm: over its characters, acc_bytes: its bytes",
            "template": self.template,
            **self.settings.protocol(),
            **protocol_of(model, cut),
        }
        return _judged(self, scores, MEASURES, task).beside(
            Result("multiple-choice", len(self.items), protocol, figures)
        )


def _usual(record: Record) -> str:
    if {"question", "context"} <= record.fields.keys():
        raise record.wrong("'question' and 'context'; expected --template TEXT, which says how both are written")
    return QUESTION if record.one_of("question", "context") == "question" else "{context}"


def _choice(record: Record, template: str) -> Item:
    choices = record.texts("choices")
    if len(choices) < 2 or not all(choices):
        raise record.wrong(f"'choices' has {len(choices)} text(s); expected two or more, none of them empty")
    answer = record.field("answer")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    last = len(choices) - 1
    if type(answer) is not int or not 0 <= answer <= last:
        raise record.wrong(f"'answer' is {answer!r}; expected a number from 0 to {last}, or one of the choices")
    return Item(record.where, filled(template, record), choices, answer)


@dataclass(frozen=True)
class Classification:
    """Lines with `label` (a text or a whole number) and the fields of the template, `text` where none is given. words:
    for each label the word that is scored."""

    settings: Settings
    template: str
    words: dict[str, str]
    items: list[Item]
    fit_items: list[Item]
    scaling: Scaling = Scaling()

    @staticmethod
    def of(settings: Settings) -> "Classification":
        """Raises UserError for lines that are not so, and for labels that are not among those given."""
        records, pool = settings.records()
        template = settings.template or TEXT
        found = sorted({_label(record) for record in (*records, *pool)})
        words = _words(settings.labels) if settings.labels else {label: label for label in found}
        if len(words) < 2:
            raise UserError(f"one label, {next(iter(words))!r}; expected two or more, or --labels to name them")
        items = _items(settings, lambda record: _labelled(record, template, words))
        return Classification(settings, template, words, *items)

    def run(self, model: LanguageModel) -> Result:
        scores, cut = _scored(model, [*self.items, *self.fit_items])
        true_N = np.array([item.answer for item in self.items])
        predicted_N = np.argmax(np.stack(scores[: len(self.items)]), axis=1)
        names = list(self.words)
        counts_LL = confusion(true_N, predicted_N, len(names))
        figures = {"accuracy": share(true_N == predicted_N), "macro_f1": self._macro_f1(true_N, predicted_N)}
        task = {"suite": "classification", "template": self.template, "words": self.words, "shots": self.settings.shots}
        protocol = {
            "scored_by": "log p of each label's word after the text, summed",
            "template": self.template,
            "words": ", ".join(f"{label}: {word!r}" for label, word in self.words.items()),
            "intervals": "Wilson's; macro F1: bootstrap over the examples",
            **self.settings.protocol(),
            **protocol_of(model, cut),
        }
        tables = {
            "labels": _label_rows(names, counts_LL),
            "confusion": [
                {"true_label": name, **dict(zip(names, row, strict=True))}
                for name, row in zip(names, counts_LL.tolist(), strict=True)
            ],
        }
        return _judged(self, scores, {"accuracy": lambda word: 1}, task).beside(
            Result("classification", len(self.items), protocol, figures, tables)
        )

    def _macro_f1(self, true_N: np.ndarray, predicted_N: np.ndarray) -> Figure:
        def statistic(index_RN: np.ndarray) -> np.ndarray:
            return macro_f1(confusion(true_N[index_RN], predicted_N[index_RN], len(self.words)))

        return figure_of(statistic, len(true_N), self.settings.seed)


def _label_rows(names: list[str], counts_LL: np.ndarray) -> list[dict]:
    f1_L, rows = label_f1(counts_LL), []
    for i, name in enumerate(names):
        right, true, predicted = (int(n) for n in (counts_LL[i, i], counts_LL[i].sum(), counts_LL[:, i].sum()))
        rows.append(
            {
                "label": name, "examples": true, "predicted": predicted,
                "precision": right / predicted if predicted else None,
                "recall": right / true if true else None, "recall_interval_95": wilson(right, true) if true else None,
                "f1": float(f1_L[i]),
            }
        )  # fmt: skip
    return rows


def _label(record: Record) -> str:
    label = record.field("label")
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise record.wrong(f"'label' is {label!r}; expected a text or a whole number")
    return str(label)


def _labelled(record: Record, template: str, words: dict[str, str]) -> Item:
    label = _label(record)
    if label not in words:
        raise record.wrong(f"'label' is {label!r}; expected one of {', '.join(map(repr, words))}")
    return Item(record.where, filled(template, record), tuple(words.values()), list(words).index(label))


def _words(text: str) -> dict[str, str]:
    """Of "0=bad,1=good": {"0": "bad", "1": "good"}; a label without a word is its own."""
    words = {}
    for part in text.split(","):
        label, equals, word = (x.strip() for x in part.partition("="))
        word = word if equals else label
        if not word or label in words or word in words.values():
            raise UserError(f"--labels {text}: expected LABEL=WORD,LABEL=WORD with labels and words that differ")
        words[label] = word
    return words
