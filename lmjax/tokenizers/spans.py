"""Which characters of a text each of its tokens stands for."""

import numpy as np

from lmjax.tokenizers import CharacterTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer


def spans(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """(T, 2): token t of `tokenizer.encode(text)` stands for text[first:end]. Each token that has a part of a character
    has all of it; one that stands for nothing in the text has an empty span."""
    match tokenizer:
        case CharacterTokenizer():
            first_T = np.arange(len(text))
            return np.stack([first_T, first_T + 1], axis=1)
        case SentencePieceTokenizer():
            return _of_pieces(tokenizer, text)
        case HuggingFaceTokenizer():
            return np.array(tokenizer.encoding(text).offsets, np.int64).reshape(-1, 2)
    return _of_bytes(text)


def _of_bytes(text: str) -> np.ndarray:
    sizes = np.array([len(character.encode()) for character in text], np.int64)
    first_T = np.repeat(np.arange(len(text)), sizes)
    return np.stack([first_T, first_T + 1], axis=1)


def _of_pieces(tokenizer: SentencePieceTokenizer, text: str) -> np.ndarray:
    from sentencepiece.sentencepiece_pb2 import SentencePieceText

    found, at = [], 0
    for i, part in enumerate(tokenizer.parts(text)):
        if i:
            found += [(at - 1, at)] * len(tokenizer.meta_ids)
        # bytes are what both its older and its newer versions count in
        serialised = tokenizer.processor.encode(part, out_type="serialized_proto")
        pieces = SentencePieceText.FromString(serialised).pieces
        # character c of the part begins at byte begins[c]
        begins = np.cumsum([0, *(len(character.encode()) for character in part)])
        bounds = np.array([(piece.begin, piece.end) for piece in pieces], np.int64).reshape(-1, 2)
        is_byte = np.array([tokenizer.processor.is_byte(piece.id) for piece in pieces], bool)
        first_T, end_T = _whole(bounds, is_byte).T
        first_T, end_T = np.searchsorted(begins, first_T, "right") - 1, np.searchsorted(begins, end_T)
        found += zip(at + first_T, at + end_T, strict=True)
        at += len(part) + 1
    return np.array(found, np.int64).reshape(-1, 2)


def _whole(bounds_T2: np.ndarray, is_byte_T: np.ndarray) -> np.ndarray:
    """SentencePiece gives a character of several byte pieces to the last of them, and the others nothing."""
    for place in range(len(bounds_T2) - 2, -1, -1):
        first, end = bounds_T2[place]
        if is_byte_T[place] and first == end:
            bounds_T2[place] = bounds_T2[place + 1]
    return bounds_T2
