"""What a model can be trained for: each task is one file, with what it reads of a record, its loss and its scores.

on_records: whether it reads records by named fields (`data/records.py`), or documents as one stream of tokens.
has_source, has_types: whether its batches have those parts. outputs: numbers that it needs of the model's head.
"""

from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.classification import Classification
from lmjax.tasks.span_qa import SpanQA

AnyTask = CausalLM | Classification | SpanQA
