"""Two texts as one: a sentence and another one, a question and what it is asked of."""

import numpy as np

from lmjax.tokenizers import HuggingFaceTokenizer, Tokenizer


def encode_pair(tokenizer: Tokenizer, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids, types): as a tokenizer.json puts two texts together ([CLS] A [SEP] B [SEP]), otherwise BOS A EOS B EOS with
    what the policy has of these. types: 0 in the first text, 1 in the second."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and (joined := tokenizer.joined(first, second)) is not None:
        return joined
    policy = tokenizer.policy
    before = [] if policy.bos is None else [policy.bos]
    after = [] if policy.eos is None else [policy.eos]
    a, b = tokenizer.encode(first), tokenizer.encode(second)
    ids = np.concatenate([before, a, after, b, after]).astype(np.int32)
    types = (np.arange(len(ids)) >= len(before) + len(a) + len(after)).astype(np.int32)
    return ids, types
