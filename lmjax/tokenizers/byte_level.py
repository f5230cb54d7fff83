"""Byte-level BPE (Radford et al. 2019): a letter for each byte, then merges."""

from pathlib import Path

from lmjax.errors import UserError


def byte_level_bpe(path: Path) -> str:
    """GPT-2's tokenizer from its two files, as tokenizer.json."""
    import tokenizers

    try:
        model = tokenizers.models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"tokenizer: {path}: vocab.json and merges.txt cannot be read: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer.to_str()


def byte_letters() -> list[str]:
    """The letter that stands for each byte: the byte's own where that is printable, else one from 256 up (GPT-2's
    encoder.py, bytes_to_unicode)."""
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]
