"""The tokenizer of a Hugging Face checkpoint directory, in and out."""

from pathlib import Path

from lmjax.errors import UserError, path_text
from lmjax.interop.tokenizer_export import DOCUMENT_EOS
from lmjax.json_files import object_if_there, read_text
from lmjax.tokenizers import (
    HuggingFaceTokenizer,
    Policy,
    SentencePieceTokenizer,
    Tokenizer,
    sentencepiece_tokenizer,
)
from lmjax.tokenizers.byte_level import byte_level_bpe
from lmjax.tokenizers.chat import chat_of, special_names

SIZE_LIMIT = 200_000_000


def of_directory(directory: Path, *, model: Path | None = None) -> Tokenizer | None:
    """The tokenizer that gives the ids which transformers gives for this directory; None where it has no tokenizer
    files. Its policy is the files': the control tokens around a text, and those that end a generated one.
    model: where these are looked for next, of an adapter its base. Raises UserError for a damaged file."""
    settings = _json(directory / "tokenizer_config.json")
    stops = _stops(directory) or (() if model is None else _stops(model))
    if (directory / "tokenizer.json").is_file():
        file = directory / "tokenizer.json"
        return _from_json(file, read_text(file, SIZE_LIMIT, "a tokenizer's file"), settings, stops)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _from_json(directory / "vocab.json", byte_level_bpe(directory), settings, stops)
    # Llama's before, T5's behind a text
    for name, default in (("tokenizer.model", "bos"), ("spiece.model", "eos")):
        file = directory / name
        if not file.is_file():
            continue
        bos, eos = (settings.get(f"add_{token}_token", default == token) is True for token in ("bos", "eos"))
        bare = sentencepiece_tokenizer(file.read_bytes(), bos=bos, eos=eos, where=path_text(file))
        ids = {name: index if index >= 0 else None for name, index in bare.control_ids().items()}
        ends = () if ids["eos"] is None else (ids["eos"],)
        policy = Policy(bos=bare.policy.bos, eos=bare.policy.eos, other_stops=stops or ends, mask=ids["mask"])
        return SentencePieceTokenizer(bare.model, policy)
    return None


def named_controls(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The ids of bos and eos by the names in the files of a Hugging Face directory's tokenizer, whether they stand
    around texts or not; None for what has no name. Empty for tokenizers of our own."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        ids = tokenizer.control_ids()
        return {name: ids[name] if ids[name] >= 0 else None for name in ("bos", "eos")}
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return {}
    return {name: _named(tokenizer, name) for name in ("bos", "eos")}


def _from_json(file: Path, serialised: str, settings: dict, stops: tuple[int, ...]) -> HuggingFaceTokenizer:
    try:
        bare = HuggingFaceTokenizer(serialised, Policy(), names=special_names(settings))
        before, after = bare.around()
    except BaseException as error:  # the library raises bare Exception, and panics of Rust are none
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(f"{path_text(file)}: not a tokenizer file: {' '.join(str(error).split())[:200]}") from None
    if max(len(before), len(after)) > 1:
        raise UserError(
            f"{path_text(file)}: puts {len(before)} and {len(after)} tokens around a text; expected one each"
        )
    named = named_controls(bare)
    if not stops and named["eos"] is not None:
        stops = (named["eos"],)
    policy = {"bos": next(iter(before), None), "eos": next(iter(after), None)}
    mask = _named(bare, "mask")
    for name in policy:
        # what the settings say counts more than what tokenizer.json puts there, as in transformers 5
        asked = settings.get(f"add_{name}_token")
        if isinstance(asked, bool):
            policy[name] = named[name] if asked else None
    if settings.get(DOCUMENT_EOS) is True:
        policy["eos"] = named["eos"]
    policy["mask"] = bare.mask_id() if mask is None else mask
    return HuggingFaceTokenizer(serialised, Policy(**policy, other_stops=stops), chat_of(file.parent), bare.names)


def _named(tokenizer: HuggingFaceTokenizer, name: str) -> int | None:
    """The id of bos_token, eos_token or mask_token."""
    token = tokenizer.names.get(f"{name}_token")
    return None if token is None else tokenizer.id_of(token)


def _stops(directory: Path) -> tuple[int, ...]:
    """eos_token_id, a number or several, of generation_config.json or else of config.json."""
    for name in ("generation_config.json", "config.json"):
        given = _json(directory / name).get("eos_token_id")
        given = given if isinstance(given, list) else [given]
        if given and all(type(i) is int and 0 <= i < 2**31 for i in given):
            return tuple(given)
    return ()


def _json(file: Path) -> dict:
    return object_if_there(file, SIZE_LIMIT, "a tokenizer's file")
