"""Our tokenizers as tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads.

Two things cannot be said there. U+2581 itself, in which SentencePiece writes a space, becomes a space. And where two
pieces make the same longer one in two ways that overlap, which way is taken: seen in long runs of spaces, with unigram
models only.
"""

import json

from lmjax.errors import UserError
from lmjax.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from lmjax.tokenizers.byte_level import byte_letters
from lmjax.tokenizers.passages import MASKS

SPACE = "\u2581"
# our own field of tokenizer_config.json: EOS ends a document. Theirs can say that only by ending prompts too
DOCUMENT_EOS = "document_eos"
# BERT's and RoBERTa's; RoBERTa's other two are no different from what stands around a text
USUAL = {
    "pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]",), "sep_token": ("[SEP]",),
}  # fmt: skip


def hugging_face_files(
    tokenizer: Tokenizer, *, whole: bool = False, pad: int | None = None, types: bool = False
) -> dict[str, bytes]:
    """The contents of the files by name. whole: every text that is read is a whole document, as an encoder's source is.
    pad: the id that fills up a batch; None: as the tokenizer has it. types: whether the model is told which of two
    texts a token is in. Raises UserError where tokenizer.json cannot say what the tokenizer does."""
    match tokenizer:
        case HuggingFaceTokenizer():
            built = _parsed(tokenizer.files["tokenizer.json"].decode())
        case ByteTokenizer():
            built = _bytes(tokenizer.policy.mask)
        case CharacterTokenizer():
            built = _characters(tokenizer.characters, tokenizer.policy.mask)
        case SentencePieceTokenizer():
            built = _sentencepiece(tokenizer)
        case _:
            raise UserError(f"a tokenizer of the kind {tokenizer.kind} has no Hugging Face form")
    policy = tokenizer.policy
    controls = roles(tokenizer) | {
        "bos_token": policy.bos,
        "eos_token": policy.eos if policy.eos is not None else next(iter(policy.stops), None),
        "mask_token": policy.mask,
    }
    if pad is not None:
        controls["pad_token"] = pad
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
    }  # fmt: skip
    if types:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if tokenizer.chat is not None:
        settings |= {**tokenizer.chat.names, "chat_template": tokenizer.chat.template}
    settings |= {key: built.id_to_token(index) for key, index in controls.items() if index is not None}
    if not isinstance(tokenizer, HuggingFaceTokenizer) or (policy.bos, policy.eos) != tuple(
        next(iter(side), None) for side in tokenizer.around()
    ):
        # a text begins as a prompt does and is left open: transformers would put EOS after every prompt
        built.post_processor = _around(built, policy.bos, policy.eos if whole else None)
        settings[DOCUMENT_EOS] = policy.eos is not None
    files = {
        "tokenizer.json": built.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
    return {name: text.encode() for name, text in files.items()}


def roles(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of special tokens that the policy does not know, by their fields of tokenizer_config.json: as the files
    name them that the tokenizer was read from; else those that are called as BERT's or RoBERTa's are, and what a
    tokenizer.json puts around a text and between two."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        found = {"pad_token": tokenizer.processor.pad_id(), "unk_token": tokenizer.processor.unk_id()}
        return {field: index for field, index in found.items() if index >= 0}
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return {}
    found, special = {}, tokenizer.special_tokens()
    for field, usual in USUAL.items():
        named = tokenizer.names.get(field)
        index = None if named is None else tokenizer.id_of(named)
        found[field] = next((special[name] for name in usual if name in special), None) if index is None else index
    if tokenizer.joins:
        ends = zip(("cls_token", "sep_token"), tokenizer.around(), strict=True)
        found |= {field: ids[0] for field, ids in ends if ids and found[field] is None}
    return {field: index for field, index in found.items() if index is not None}


def _parsed(serialised: str):
    import tokenizers

    return tokenizers.Tokenizer.from_str(serialised)


def _around(built, bos: int | None, eos: int | None):
    from tokenizers.processors import TemplateProcessing

    before, after = ([] if index is None else [built.id_to_token(index)] for index in (bos, eos))
    tokens = {index: built.id_to_token(index) for index in (bos, eos) if index is not None}
    pair = [*before, "$A", *after, "$B:1", *(f"{token}:1" for token in after)]
    return TemplateProcessing(
        single=[*before, "$A", *after], pair=pair, special_tokens=[(token, index) for index, token in tokens.items()]
    )


def _with_controls(built, names: list[str]):
    from tokenizers import AddedToken

    built.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return built


def _bytes(mask: int | None):
    """Each byte its own token, with the byte's number; then BOS and EOS, and the mask where there is one."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    letters = byte_letters()
    controls = ["<s>", "</s>", *([] if mask is None else [MASKS[0]])]
    vocab = {letters[byte]: byte for byte in range(256)} | {name: 256 + i for i, name in enumerate(controls)}
    built = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    return _with_controls(built, controls)


def _characters(characters: str, mask: int | None):
    import tokenizers
    from tokenizers import decoders, models

    built = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    built.decoder = decoders.Fuse()
    return built if mask is None else _with_controls(built, [MASKS[0]])


def _sentencepiece(tokenizer: SentencePieceTokenizer):
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, models, normalizers

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise UserError(
            "this SentencePiece model rewrites its text first (nmt_nfkc, extra spaces); tokenizer.json cannot"
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    unknown = pieces[trainer.unk_id][0]
    if trainer.model_type == trainer.UNIGRAM:
        model = models.Unigram(_unlikely_names(proto), unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    else:
        normal = {piece.piece for piece in proto.pieces if piece.type == piece.NORMAL}
        model = models.BPE(
            vocab=vocab, merges=_merges(pieces, vocab, normal), unk_token=unknown, fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )  # fmt: skip
    built = tokenizers.Tokenizer(model)
    prefix = normalizer.add_dummy_prefix
    before = [normalizers.Prepend(SPACE)] if prefix else []
    built.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    built.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    return _with_controls(
        built, [piece.piece for piece in proto.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    )


def _unlikely_names(proto) -> list[tuple[str, float]]:
    """(piece, score) of each. SentencePiece never reads the name of a control token or a byte out of a text; the
    tokenizers library has no such kinds, but takes the characters that spell it where these are the more probable."""
    text = (proto.SentencePiece.NORMAL, proto.SentencePiece.USER_DEFINED)
    least = min(piece.score for piece in proto.pieces if piece.type == piece.NORMAL)
    return [(piece.piece, piece.score if piece.type in text else least - 1000) for piece in proto.pieces]


def _merges(pieces: list[tuple[str, float]], vocab: dict[str, int], normal: set[str]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the piece of the best score first."""
    found = []
    for piece, score in pieces:
        if piece in normal:
            halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
            found += [(-score, vocab[piece], a, b) for a, b in halves if a in normal and b in normal]
    return [(a, b) for _, _, a, b in sorted(found)]
