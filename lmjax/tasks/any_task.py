"""What a model can be trained for: each task is one file, with what it reads of a record, its loss and its scores.

on_records: whether it reads records by named fields (`data/records.py`), or documents as one stream of tokens.
fields: of a record, what a task on records reads. ahead: of one on documents, how many tokens behind each one its
target stands. has_types: whether its batches have that part. outputs: numbers that it needs of the model's head.
predicted: of so many places of a row those whose tokens' probabilities are computed. check: of a model whose context
is the length of a row.
"""

from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.chat import Chat
from lmjax.tasks.classification import Classification
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.preferences import Preferences
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tasks.span_qa import SpanQA
from lmjax.tasks.sparse_autoencoder import SparseAutoencoder

AnyTask = CausalLM | Chat | Classification | MaskedLM | Preferences | Seq2Seq | SpanQA | SparseAutoencoder
