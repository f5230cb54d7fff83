"""What a model can be trained for: each task is one file, with what it reads of a record, its loss and its scores.

on_records: whether it reads records by named fields (`data/records.py`), or documents as one stream of tokens.
ahead: of a task on documents, how many tokens behind each one its target stands.
has_source, has_types: whether its batches have those parts. outputs: numbers that it needs of the model's head.
"""

from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classification import Classification
from lmjax.tasks.masked_lm import MaskedLM

AnyTask = CausalLM | Classification | MaskedLM
