"""The texts that a trained model writes for records."""

from dataclasses import replace

import numpy as np

from lmjax.compilation import fast_jit
from lmjax.data.packing import next_tokens
from lmjax.data.sources import Record
from lmjax.errors import UserError
from lmjax.evaluate.outputs import of_examples
from lmjax.experiment import Experiment
from lmjax.generate.beam import way
from lmjax.generate.many import write_all
from lmjax.models import transformer
from lmjax.tasks.answer_metrics import AnswerFigures, answer_figures
from lmjax.tasks.translation_metrics import TranslationFigures, translation_figures
from lmjax.tokenizers import Tokenizer

ROWS = 32
CHARACTERS = 200


class Writer:
    """`predictors.Predictor` of the task Seq2Seq: the text of a search, and how probable the model finds it."""

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer):
        self.experiment, self.tokenizer = experiment, tokenizer
        self._score = fast_jit(lambda params, batch: experiment.task.log_probabilities(experiment.model, params, batch))

    def __call__(self, params, records: list[Record]) -> list[dict]:
        """The text, and the sum of its tokens' log-probabilities, EOS included."""
        task, cfg, tokenizer = self.experiment.task, self.experiment.model, self.tokenizer
        both = [task.prompt(record, tokenizer, cfg) for record in records]
        prompts, sources = [prompt for prompt, _ in both], [source for _, source in both]
        room = cfg.context - max(map(len, prompts))
        if room < 1:
            longest = records[int(np.argmax([len(prompt) for prompt in prompts]))]
            raise UserError(f"{longest.where}: a source as long as model.context, {cfg.context}; no text follows it")
        room = min(room, self.experiment.length)
        how = way(beams=task.beams, length_penalty=task.length_penalty)
        news = write_all(
            cfg, transformer.apart(params), prompts, how, sources=sources if cfg.encoder_layers else None, rows=ROWS,
            max_new_tokens=room, stops=tokenizer.policy.stops, known=tokenizer.vocab_size,
        )  # fmt: skip
        scores = self._log_probabilities(params, prompts, sources, news)
        return [
            {"text": tokenizer.decode(new), "log_probability": float(score)}
            for new, score in zip(news, scores, strict=True)
        ]

    def _log_probabilities(self, params, prompts, sources, news) -> np.ndarray:
        examples, eos = [], self.tokenizer.policy.eos
        for prompt, source, new in zip(prompts, sources, news, strict=True):
            whole = np.concatenate([prompt, new, [eos]]).astype(np.int32)
            examples.append(next_tokens(whole, np.arange(len(whole)) >= len(prompt), source))
        # rows as in training, where the texts are not longer
        experiment, data = self.experiment, self.experiment.data
        length = max(experiment.length, *(len(example.tokens) for example in examples))
        source_length = max(experiment.source_length, *(len(source) for source in sources if source is not None), 0)
        longer = replace(experiment, data=replace(data, length=length, source_length=source_length))
        log_p = of_examples(longer, self._score, params, examples)
        return np.array(
            [
                (log_p_T * example.weights).sum(dtype=np.float64)
                for log_p_T, example in zip(log_p, examples, strict=True)
            ]
        )

    def figures(self, records: list[Record], predictions: list[dict]) -> TranslationFigures | AnswerFigures:
        """Raises UserError where a record has no reference."""
        task = self.experiment.task
        references = [task.references(record) for record in records]
        texts = [prediction["text"] for prediction in predictions]
        return (translation_figures if task.figures == "translation" else answer_figures)(texts, references)

    def told(self, record: Record, prediction: dict) -> str:
        """What was read, what is right, what was written."""
        task = self.experiment.task
        source, right = (text[:CHARACTERS] for text in task.texts(record))
        return f"{source!r}: {prediction['text']!r}; right is {right!r}"
