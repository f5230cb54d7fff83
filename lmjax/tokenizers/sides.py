"""What an encoder reads of a text, and what a decoder reads and writes of another."""

import numpy as np

from lmjax.tokenizers import Policy, Tokenizer


def source_ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """What an encoder reads of a text: a whole document."""
    return tokenizer.encode_document(text)


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> np.ndarray:
    """A prompt as the beginning of a document: BOS first where the policy has it."""
    ids = tokenizer.encode(prompt)
    return ids if tokenizer.policy.bos is None else np.concatenate([[tokenizer.policy.bos], ids]).astype(ids.dtype)


def target_ids(text: str, tokenizer: Tokenizer, start: int) -> np.ndarray:
    """What a decoder reads and writes of a text: it begins with `start`, and ends with EOS where there is one."""
    end = [] if tokenizer.policy.eos is None else [tokenizer.policy.eos]
    return np.concatenate([[start], tokenizer.encode(text), end]).astype(np.int32)


def decoder_start(policy: Policy) -> int | None:
    """What the decoder of a model trained here begins with: BOS, or EOS where there is none, as T5's does."""
    return policy.eos if policy.bos is None else policy.bos
