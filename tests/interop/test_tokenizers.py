"""Tokenizers of checkpoint directories: ours written as Hugging Face files give the same ids, and bad files are named."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import sentencepiece
import tokenizers as hf

from lmjax.data.sources import PythonLibrary
from lmjax.errors import UserError
from lmjax.interop.tokenizer_export import hugging_face_files
from lmjax.interop.tokenizer_files import of_directory
from lmjax.interop.write import export
from lmjax.loaded import load_model
from lmjax.models.positions import Learned
from lmjax.tokenizers import Bytes, Characters, HuggingFace, SentencePiece, load
from lmjax.tokenizers.sides import prompt_ids
from tests import tiny
from tests.interop.directories import LLAMA, gpt2_tokenizer_files, params_of, roberta_tokenizer_files

HARD = ["", "a", "  two  spaces ", "\ttab\r\nlone\rreturn\n\n", "é 漢字 😀", "def f(x):\n        return x"]
SPELT = "<s> </s><unk><0x41><|endoftext|>"
KINDS = {
    "bytes": lambda texts: Bytes(bos=True, eos=True).build(list),
    "characters": lambda texts: Characters().build(lambda: [*texts, *HARD, SPELT, tiny.text(2000)]),
    "bytes with a mask": lambda texts: Bytes(bos=True, eos=True, mask=True).build(list),
    "characters with a mask": lambda texts: Characters(mask=True).build(
        lambda: [*texts, *HARD, SPELT, tiny.text(2000)]
    ),
    "bpe with a mask": lambda texts: SentencePiece(vocab_size=600, mask=True).build(lambda: texts),
    "bpe": lambda texts: SentencePiece(vocab_size=600).build(lambda: texts),
    "bpe without controls": lambda texts: SentencePiece(vocab_size=600, bos=False, eos=False).build(lambda: texts),
    "unigram": lambda texts: SentencePiece(vocab_size=600, algorithm="unigram").build(lambda: texts),
}


@pytest.fixture(scope="module")
def texts():
    return [document.text for document in islice(PythonLibrary().documents(), 12)]


@pytest.mark.parametrize("name", KINDS)
def test_written_as_tokenizer_json_and_read_back(name, texts, tmp_path):
    """The library gives the ids of a prompt; what is read back is what was written, ends of documents included.
    Source text has long runs of spaces, which a unigram model cuts in several ways of equal probability."""
    ours = KINDS[name](texts)
    for file, content in hugging_face_files(ours).items():
        (tmp_path / file).write_bytes(content)
    theirs, again = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), of_directory(tmp_path)
    kept = [(one.vocab_size, one.policy.bos, one.policy.eos, one.policy.mask) for one in (again, ours)]
    assert kept[0] == kept[1]
    for text in [tiny.text(2000), *HARD] if name == "unigram" else [tiny.text(2000), *texts, *HARD]:
        assert theirs.encode(text).ids == prompt_ids(text, ours).tolist()
        assert again.encode_document(text).tolist() == ours.encode_document(text).tolist()
        assert again.decode(ours.encode_document(text)) == text
    assert again.encode(SPELT).tolist() == ours.encode(SPELT).tolist()


def test_a_chat_template_goes_out_and_in(tmp_path):
    gpt2_tokenizer_files(tmp_path)
    settings = {"eos_token": "<|endoftext|>", "chat_template": "{{ messages[0].content }}{{ eos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    before, out = of_directory(tmp_path), tmp_path / "out"
    export(replace(LLAMA, vocab=300), params_of(replace(LLAMA, vocab=300)), before, out)
    after = of_directory(out)
    assert after.chat == before.chat and after.chat.names == {"eos_token": "<|endoftext|>"}
    assert after.policy == before.policy and after.encode("hello dog").tolist() == before.encode("hello dog").tolist()


def test_what_tokenizer_json_cannot_say_is_refused(texts):
    import io

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.text(20_000).splitlines()),
        model_writer=model,
        vocab_size=60,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    from lmjax.tokenizers import sentencepiece_tokenizer

    ours = sentencepiece_tokenizer(model.getvalue(), bos=True, eos=False, where="here")
    with pytest.raises(UserError, match="rewrites its text first"):
        hugging_face_files(ours)


def test_the_three_forms_in_which_byte_level_bpe_is_shipped(tmp_path):
    gpt2_tokenizer_files(tmp_path)
    pair = of_directory(tmp_path)
    assert (
        pair.policy.stops == ()
        and pair.encode("hello dog").tolist()
        == HuggingFace(path=str(tmp_path)).build(list).encode("hello dog").tolist()
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert of_directory(tmp_path).policy.stops == (263,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 263]}))
    assert of_directory(tmp_path).policy.stops == (3, 263)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2**40]}))
    assert of_directory(tmp_path).policy.stops == (263,)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))
    with pytest.raises(UserError, match=r"merges.txt of BartTokenizer; .* expected a tokenizer.json"):
        of_directory(tmp_path)


@pytest.mark.parametrize(
    "settings", [{}, {"tokenizer_class": "RobertaTokenizerFast", "mask_token": {"content": "<mask>"}}]
)
def test_an_old_directory_of_roberta_has_its_own_controls(settings, tmp_path):
    """Who it is may stand in config.json alone."""
    gpt2_tokenizer_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(UserError, match="vocab.json: no '</s>', which stands around a text"):
        of_directory(tmp_path)
    roberta_tokenizer_files(tmp_path)
    for found in (of_directory(tmp_path), HuggingFace(path=str(tmp_path), bos="<s>", eos="</s>").build(list)):
        assert (found.policy.bos, found.policy.eos, found.policy.mask) == (0, 2, 4)
        assert found.controls() == {0, 1, 2, 3, 4} and found.joins
        assert found.encode_document("hello dog").tolist() == [0, *found.encode("hello dog"), 2]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    if not settings:
        with pytest.raises(UserError, match="merges.txt of a model of the kind 'qwen2'; .* expected a tokenizer.json"):
            of_directory(tmp_path)


def test_a_sentencepiece_model_alone(tmp_path):
    ours = SentencePiece(vocab_size=320).build(lambda: [tiny.text(20_000)])
    (tmp_path / "tokenizer.model").write_bytes(ours.model)
    found = of_directory(tmp_path)
    assert (found.policy.bos, found.policy.eos, found.policy.stops) == (ours.policy.bos, None, (ours.policy.eos,))
    settings = {"add_bos_token": False, "add_eos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = of_directory(tmp_path)
    assert (found.policy.bos, found.policy.eos) == (None, ours.policy.eos)


def test_no_tokenizer_files_are_no_tokenizer(tmp_path):
    assert of_directory(tmp_path) is None


DEEP = "[" * 100_000
BAD = {
    "no JSON": ("tokenizer.json", "{", "not a tokenizer file"),
    "no model": ("tokenizer.json", "{}", "not a tokenizer file"),
    "another kind of JSON": ("tokenizer.json", "[]", "not a tokenizer file"),
    "very deep": ("tokenizer.json", DEEP, "not a tokenizer file"),
    "a huge id": ("tokenizer.json", json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 10**30}, "merges": []}}), "not a tokenizer file"),
    "a merge of nothing": ("tokenizer.json", json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "q"]]}}), "not a tokenizer file"),
    "settings of a list": ("tokenizer_config.json", "[1]", "expected an object of JSON"),
    "settings very deep": ("tokenizer_config.json", DEEP, "not JSON"),
    "not UTF-8": ("tokenizer.json", b"\xff\xfe", "not UTF-8 at byte 0"),
    "a template that is not UTF-8": ("chat_template.jinja", b"{{\xff", "not UTF-8 at byte 2"),
    "a template of numbers": ("tokenizer_config.json", '{"chat_template": 7}', "chat_template is no text"),
    "no SentencePiece": ("tokenizer.model", b"\0\1", "not a SentencePiece model"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(name, tmp_path):
    file, content, message = BAD[name]
    if "template" in name:
        gpt2_tokenizer_files(tmp_path)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        of_directory(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and file in str(caught.value)


def test_more_ids_than_the_vocabulary(tmp_path):
    export(LLAMA, params_of(LLAMA), None, tmp_path / "out")
    gpt2_tokenizer_files(tmp_path / "out")
    (tmp_path / "out" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(UserError, match="the tokenizer has 264 ids, more than config.json's vocab_size of 97"):
        load_model(tmp_path / "out")


def test_an_exported_model_knows_where_its_answers_end(tmp_path):
    """The tokenizer of a run says no EOS, and its chat template has a token of its own."""
    (tmp_path / "chat").mkdir()
    tokenizer = HuggingFace(path=str(tiny.chatml(tmp_path / "chat"))).build(list)
    assert tokenizer.policy.stops == ()
    cfg = replace(LLAMA, vocab=258)
    export(cfg, params_of(cfg), tokenizer, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 257
    again = of_directory(tmp_path / "out")
    assert again.chat.template == tokenizer.chat.template and again.policy.stops == (257,)


def bert_tokenizer_files(directory, **settings) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {name: i for i, name in enumerate([*names, *"abc", "?"])}
    built = hf.Tokenizer(hf.models.WordPiece(vocab, unk_token="[UNK]"))
    built.add_special_tokens(names)
    built.post_processor = hf.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    built.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


@pytest.mark.parametrize("labels", [None, ("a", "b")])
@pytest.mark.parametrize(("settings", "changes"), [({}, {}), ({"pad_token": {"content": "?"}}, {"pad_token": "?"})])
def test_what_an_encoder_reads_keeps_its_special_tokens(settings, changes, labels, tmp_path):
    """Of a run that goes on with BERT's tokenizer, for masked tokens and for labels."""
    (tmp_path / "bert").mkdir()
    bert_tokenizer_files(tmp_path / "bert", **settings)
    HuggingFace(path=str(tmp_path / "bert"), bos="[CLS]", eos="[SEP]").build(list).save(tmp_path / "run")
    cfg = tiny.bert(positions=Learned(), vocab=9)
    cfg = cfg if labels is None else replace(cfg, masked_head=None, outputs=2)
    export(cfg, params_of(cfg), load(tmp_path / "run"), tmp_path / "out", labels=labels)
    found, config = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("tokenizer_config", "config"))
    assert {name: found.get(name) for name in ROLES} == ROLES | changes
    assert config["pad_token_id"] == (8 if changes else 0)
    assert hf.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).encode("a").ids == [2, 5, 3]


ENCODER, DECODER = tiny.bert(positions=Learned(), vocab=600), replace(LLAMA, vocab=600)


@pytest.mark.parametrize(
    ("cfg", "labels", "kind", "pad"),
    [
        (ENCODER, False, "bpe with a mask", "<unk>"),
        (ENCODER, True, "bpe with a mask", "<unk>"),
        (ENCODER, True, "bytes with a mask", "</s>"),
        (replace(ENCODER, positions=Learned(offset=1)), False, "bpe with a mask", "<unk>"),
        (DECODER, False, "bpe", "absent"),
        (DECODER, True, "bpe", "<s>"),
        (DECODER, True, "bytes", "<s>"),
        (DECODER, True, "bytes with a mask", "<s>"),
        (DECODER, True, "characters", "absent"),
    ],
)
def test_what_fills_up_a_batch_and_where_a_text_ends(cfg, labels, kind, pad, texts, tmp_path):
    """A causal model for labels needs something that never is a text's last token; an encoder reads whole documents."""
    tokenizer = KINDS[kind](texts)
    cfg = replace(cfg, vocab=tokenizer.vocab_size)
    cfg = replace(cfg, masked_head=None, outputs=2) if labels else cfg
    export(cfg, params_of(cfg), tokenizer, tmp_path / "out", labels=("a", "b") if labels else None)
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings.get("pad_token", "absent") == pad
    theirs = hf.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    whole = labels or not cfg.causal
    expected = tokenizer.encode_document("a film") if whole else prompt_ids("a film", tokenizer)
    assert theirs.encode("a film").ids == expected.tolist()
    if labels:
        index = json.loads((tmp_path / "out/config.json").read_text())["pad_token_id"]
        assert index == (None if pad == "absent" else theirs.token_to_id(pad))
