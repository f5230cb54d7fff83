"""Byte-level BPE (Radford et al. 2019): a letter for each byte, then merges."""

from pathlib import Path

from lmjax.errors import UserError, path_text
from lmjax.json_files import object_if_there
from lmjax.tokenizers.chat import special_names

SIZE_LIMIT = 10_000_000
# transformers' classes of tokenizers that the two files are all of; and the kinds of models that have them
GPT2, ROBERTA = "GPT2Tokenizer", "RobertaTokenizer"
OF_MODELS = {"": GPT2, "gpt2": GPT2, "roberta": ROBERTA}
# their special tokens, by their fields of tokenizer_config.json
CONTROLS = {
    GPT2: {"eos_token": "<|endoftext|>"},
    ROBERTA: {
        "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
    },
}  # fmt: skip


def byte_level_bpe(path: Path) -> str:
    """GPT-2's tokenizer, or RoBERTa's (<s> text </s>), from vocab.json and merges.txt, as tokenizer.json. Which of
    them it is say tokenizer_config.json and config.json. Raises UserError where it is another one."""
    import tokenizers
    from tokenizers.processors import RobertaProcessing

    settings = object_if_there(path / "tokenizer_config.json", SIZE_LIMIT, "a tokenizer's settings")
    kind = _kind(path, settings)
    try:
        model = tokenizers.models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"tokenizer: {path}: vocab.json and merges.txt cannot be read: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    space = settings.get("add_prefix_space") is True
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    named = special_names(settings) if kind == ROBERTA else {}
    controls = {field: named.get(field, name) for field, name in CONTROLS[kind].items()}
    known = [name for name in controls.values() if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in known])
    if kind == ROBERTA:
        around = [controls["sep_token"], controls["cls_token"]]
        if missing := [name for name in around if name not in known]:
            raise UserError(
                f"{path_text(path / 'vocab.json')}: no {missing[0]!r}, which stands around a text of RoBERTa's"
            )
        ends = [(name, tokenizer.token_to_id(name)) for name in around]
        tokenizer.post_processor = RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=space)
    return tokenizer.to_str()


def _kind(path: Path, settings: dict) -> str:
    """As transformers finds it: the class that the tokenizer's settings name, or config.json, or its model's."""
    config = object_if_there(path / "config.json", SIZE_LIMIT, "a model's configuration")
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    model = config.get("model_type", "")
    kind = str(named).removesuffix("Fast") if named else OF_MODELS.get(model) if isinstance(model, str) else None
    kind = GPT2 if kind == "PreTrainedTokenizer" else kind
    if kind not in (GPT2, ROBERTA):
        whose = named or f"a model of the kind {model!r}"
        raise UserError(
            f"{path_text(path)}: vocab.json and merges.txt of {whose}; these two say "
            "all of a tokenizer of GPT-2's or RoBERTa's only: expected a tokenizer.json, or the tokenizer_class "
            f"{GPT2} in tokenizer_config.json"
        )
    return kind


def byte_letters() -> list[str]:
    """The letter that stands for each byte: the byte's own where that is printable, else one from 256 up (GPT-2's
    encoder.py, bytes_to_unicode)."""
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]
