"""Two texts as one: a sentence and another one, a question and what it is asked of."""

from typing import NamedTuple

import numpy as np

from lmjax.tokenizers import HuggingFaceTokenizer, Tokenizer


class Pair(NamedTuple):
    """types: as the tokenizer.json has them, else 0 in the first text, 1 in the second. second: its tokens are
    ids[second]; they are those that the text has alone."""

    ids: np.ndarray
    types: np.ndarray
    second: slice


def encode_pair(tokenizer: Tokenizer, first: str, second: str) -> Pair:
    """As a tokenizer.json puts two texts together ([CLS] A [SEP] B [SEP]), otherwise BOS A EOS B EOS with what the
    policy has of these."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.joins:
        both = tokenizer.encoding(first, second)
        count, place = both.sequence_ids.count(1), np.array(both.sequence_ids) == 1
        start = int(place.argmax()) if count else len(both.ids)
        return Pair(np.array(both.ids, np.int32), np.array(both.type_ids, np.int32), slice(start, start + count))
    policy = tokenizer.policy
    before = [] if policy.bos is None else [policy.bos]
    after = [] if policy.eos is None else [policy.eos]
    a, b = tokenizer.encode(first), tokenizer.encode(second)
    ids = np.concatenate([before, a, after, b, after]).astype(np.int32)
    start = len(before) + len(a) + len(after)
    types = (np.arange(len(ids)) >= start).astype(np.int32)
    return Pair(ids, types, slice(start, start + len(b)))
