"""The texts that a trained model writes for records."""

from dataclasses import replace

import numpy as np

from lmjax.compilation import program
from lmjax.data.packing import Example, next_tokens
from lmjax.data.sources import Record
from lmjax.errors import UserError
from lmjax.evaluate.outputs import CHARACTERS, of_examples
from lmjax.experiment import Experiment
from lmjax.generate.beam import way
from lmjax.generate.decode import padded_length
from lmjax.generate.many import write_all
from lmjax.models import transformer
from lmjax.models.config import ModelConfig
from lmjax.tasks.answer_metrics import AnswerFigures, answer_figures
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tasks.translation_metrics import TranslationFigures, translation_figures
from lmjax.tokenizers import Tokenizer

ROWS = 32


class Writer:
    """`predictors.Predictor` of the task Seq2Seq: the text of a search, and how probable the model finds it."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer
        # a longer text's row need not be a multiple of the chunk that the task names
        self._score = program(_log_p, replace(experiment.task, loss_chunk="auto"), experiment.model)

    def __call__(self, params, records: list[Record]) -> list[dict]:
        """The text, up to the length of a row or as far as the model's context goes, and the sum of its tokens'
        log-probabilities, with that of EOS where the text ended before."""
        task, cfg, tokenizer = self.experiment.task, self.experiment.model, self.tokenizer
        both = [self._prompt(record) for record in records]
        prompts, sources = [prompt for prompt, _ in both], [source for _, source in both]
        limits = np.minimum([cfg.context - len(prompt) for prompt in prompts], self.experiment.length)
        how = way(beams=task.beams, length_penalty=task.length_penalty)
        news = write_all(
            cfg, transformer.apart(params), prompts, how, sources=sources if cfg.encoder_layers else None, rows=ROWS,
            max_new_tokens=limits, stops=tokenizer.policy.stops, known=tokenizer.vocab_size,
        )  # fmt: skip
        examples = [
            self._example(prompt, source, new, ended=len(new) < limit)
            for prompt, source, new, limit in zip(prompts, sources, news, limits, strict=True)
        ]
        return [
            {"text": tokenizer.decode(new), "log_probability": score}
            for new, score in zip(news, self._log_probabilities(params, examples), strict=True)
        ]

    def _prompt(self, record: Record) -> tuple[np.ndarray, np.ndarray | None]:
        """As `Seq2Seq.prompt`. Raises UserError where the model's context has no room for it and a text."""
        cfg = self.experiment.model
        prompt, source = self.experiment.task.prompt(record, self.tokenizer, cfg)
        if source is not None and len(source) > cfg.context:
            raise UserError(f"{record.where}: a source of {len(source)} tokens; model.context is {cfg.context}")
        if len(prompt) >= cfg.context:
            raise UserError(
                f"{record.where}: a source of {len(prompt)} tokens in a model.context of {cfg.context}; no text follows"
            )
        return prompt, source

    def _example(self, prompt: np.ndarray, source: np.ndarray | None, new: np.ndarray, *, ended: bool) -> Example:
        end = [self.tokenizer.policy.eos] if ended else []
        whole = np.concatenate([prompt, new, end]).astype(np.int32)
        return next_tokens(whole, np.arange(len(whole)) >= len(prompt), source)

    def _log_probabilities(self, params, examples: list[Example]) -> list[float]:
        # rows as in training, where the texts and sources are not longer
        rooms = []
        for usual, ids in (
            (self.experiment.length, [example.tokens for example in examples]),
            (self.experiment.source_length, [example.source for example in examples if example.source is not None]),
        ):
            rooms.append(padded_length(max(map(len, ids), default=0), self.experiment.model.context, shortest=usual))
        log_p = of_examples(self.experiment, self._score, params, examples, *rooms)
        return [
            float((log_p_T * example.weights).sum(dtype=np.float64))
            for log_p_T, example in zip(log_p, examples, strict=True)
        ]

    def truth(self, records: list[Record]) -> list[list[str]]:
        """The references of each. Raises UserError where a record has none."""
        return [self.experiment.task.references(record) for record in records]

    def figures(self, truth: list[list[str]], predictions: list[dict]) -> TranslationFigures | AnswerFigures:
        texts = [prediction["text"] for prediction in predictions]
        kind = translation_figures if self.experiment.task.figures == "translation" else answer_figures
        return kind(texts, truth)

    def told(self, record: Record, prediction: dict) -> str:
        """What was read, what is right, what was written."""
        task = self.experiment.task
        source, right = (text[:CHARACTERS] for text in task.texts(record))
        return f"{source!r}: {prediction['text']!r}; right is {right!r}"


def _log_p(task: Seq2Seq, cfg: ModelConfig, params, batch):
    return task.log_probabilities(cfg, params, batch)
