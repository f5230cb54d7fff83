"""What a tokenizer is trained on, and SentencePiece's training."""

from collections.abc import Iterable

from lmjax.errors import UserError

# what files call the token that hides others: RoBERTa's and ours, BERT's
MASKS = ("<mask>", "[MASK]")


def passages(texts: Iterable[str], limit: int):
    """Passages of about 4,000 characters, until `limit` bytes are given; NUL is left out, which the trainer refuses."""
    given = 0
    for text in texts:
        for start in range(0, len(text), 4000):
            passage = text[start : start + 4000].replace("\0", "")
            given += len(passage.encode("utf-8", errors="replace"))
            if given > limit:
                return
            if passage:
                yield passage


def trained_pieces(texts: Iterable[str], algorithm: str, vocab_size: int, sample_bytes: int, *, mask: bool) -> bytes:
    """A serialised SentencePiece model. mask: whether it has a control token that hides others. Raises UserError where
    there is too little text for it."""
    import io

    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=passages(texts, sample_bytes),
            model_writer=model,
            model_type=algorithm,
            vocab_size=vocab_size,
            control_symbols=list(MASKS[: int(mask)]),
            # what follows makes decode(encode(text)) == text for every text
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            hard_vocab_limit=False,
            max_sentence_length=1 << 20,
            num_threads=1,  # the same model on every machine
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error).strip().splitlines()[-1]
        raise UserError(f"tokenizer: SentencePiece could not be trained on this text: {message}") from None
    return model.getvalue()
