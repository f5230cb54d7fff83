"""Tokenizers give back any text they promise to, and text never becomes a control token."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax import tokenizers
from lmjax.errors import UserError
from lmjax.tokenizers import Bytes, Characters, HuggingFace, SentencePiece
from lmjax.tokenizers.pairs import encode_pair
from lmjax.tokenizers.pieces import filled
from lmjax.tokenizers.spans import spans
from tests import tiny

SAMPLE = tiny.text(30_000) + "\n  def f(x):\n    return x  # ü\n"


@pytest.fixture(scope="module")
def hf_directory(tmp_path_factory):
    """A byte-level BPE as GPT-2 ships it, and its tokenizer.json."""
    folder = tmp_path_factory.mktemp("hf")
    bpe = hf.ByteLevelBPETokenizer()
    bpe.train_from_iterator([SAMPLE], vocab_size=400, special_tokens=["<|endoftext|>"])
    bpe.save_model(str(folder))
    whole = tmp_path_factory.mktemp("hf-json")
    bpe.save(str(whole / "tokenizer.json"))
    return folder, whole


@pytest.fixture(scope="module")
def made(hf_directory):
    folder, whole = hf_directory
    return {
        "Bytes": Bytes(bos=True, eos=True).build(list),
        "SentencePiece": SentencePiece(vocab_size=400).build(lambda: [SAMPLE]),
        "unigram": SentencePiece(vocab_size=400, algorithm="unigram").build(lambda: [SAMPLE]),
        "vocab+merges": HuggingFace(path=str(folder), eos="<|endoftext|>").build(list),
        "tokenizer.json": HuggingFace(path=str(whole), bos="<|endoftext|>").build(list),
    }


KINDS = ["Bytes", "SentencePiece", "unigram", "vocab+merges", "tokenizer.json"]
HARD = [
    "", " ", "  two  spaces ", "\ttab\r\nlone\rreturn\n\n", "NUL\0inside", "é e\u0301 漢字 😀 \U0001f1e9\U0001f1ea", "\u2581meta\u2581\u2581 space",
    "<s></s><unk><pad><|endoftext|><0x41>", "\u202eright to left\u200d\ufeff", "x" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_of_hard_texts(made, kind):
    for text in HARD:
        assert made[kind].decode(made[kind].encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_round_trip_of_any_text(made, kind, text):
    assert made[kind].decode(made[kind].encode(text)) == text


def characters_of(tokenizer, ids):
    """(how many whole characters these ids are, whether a part of another one follows)."""
    text = tokenizer.decode(ids)
    whole = text.rstrip("\ufffd")
    return len(whole), whole != text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_spans_are_those_of_the_text_decoded_so_far(made, kind, text):
    """Token t begins where the decoded tokens before it end, and ends where those up to it do."""
    ids, found = made[kind].encode(text), spans(made[kind], text)
    ends = [characters_of(made[kind], ids[:t]) for t in range(len(ids) + 1)]
    first = [whole for whole, _ in ends[:-1]]
    assert found[:, 0].tolist() == first
    assert found[:, 1].tolist() == [whole + in_part for whole, in_part in ends[1:]]


def test_spans_of_characters_and_of_a_normalised_text():
    text = "Ünï  code"
    assert spans(Characters().build(lambda: [text]), text)[3].tolist() == [3, 4]
    tokenizer = hf.Tokenizer(hf.models.WordLevel({"[UNK]": 0, "uni": 1, "code": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = hf.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    made = tokenizers.HuggingFaceTokenizer(tokenizer.to_str(), tokenizers.Policy())
    assert made.encode(text).tolist() == [1, 2]
    assert spans(made, text).tolist() == [[0, 3], [5, 9]]


def test_two_texts_by_a_template_and_without_one(made):
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5}
    built = hf.Tokenizer(hf.models.WordLevel(words, unk_token="[UNK]"))
    built.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    plain = tokenizers.HuggingFaceTokenizer(built.to_str(), tokenizers.Policy(eos=2))
    built.post_processor = hf.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    bert = tokenizers.HuggingFaceTokenizer(built.to_str(), tokenizers.Policy())
    for tokenizer, ids, start in ((bert, [1, 3, 2, 4, 5, 2], 3), (plain, [3, 2, 4, 5, 2], 2)):
        pair = encode_pair(tokenizer, "a", "b c")
        assert pair.ids.tolist() == ids
        assert pair.types.tolist() == [0] * start + [1] * 3
        assert pair.second == slice(start, start + 2)
        empty = encode_pair(tokenizer, "a", "")
        assert not len(empty.ids[empty.second]) and len(empty.ids) == len(ids) - 2
    pair = encode_pair(made["Bytes"], "é", "bc")
    assert pair.ids.tolist() == [256, 195, 169, 257, 98, 99, 257]
    assert pair.ids[pair.second].tolist() == [98, 99]


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_yields_a_control_token(made, kind):
    tokenizer = made[kind]
    control = {i for i in (tokenizer.policy.bos, tokenizer.policy.eos) if i is not None}
    assert control
    assert not control & set(tokenizer.encode("<s></s><unk><|endoftext|> <s> </s>").tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_policy_puts_bos_and_eos_once_and_decode_leaves_them_out(made, kind):
    tokenizer = made[kind]
    ids, plain = tokenizer.encode_document("a text").tolist(), tokenizer.encode("a text").tolist()
    before = [] if tokenizer.policy.bos is None else [tokenizer.policy.bos]
    after = [] if tokenizer.policy.eos is None else [tokenizer.policy.eos]
    assert ids == before + plain + after
    assert tokenizer.decode(ids) == "a text"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(made, kind, tmp_path):
    made[kind].save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded.encode_document(SAMPLE).tolist() == made[kind].encode_document(SAMPLE).tolist()
    assert (loaded.policy, loaded.vocab_size) == (made[kind].policy, made[kind].vocab_size)


def test_huggingface_ids_are_the_librarys(hf_directory, made):
    theirs = hf.Tokenizer.from_file(str(hf_directory[1] / "tokenizer.json"))
    for kind in ("vocab+merges", "tokenizer.json"):
        assert made[kind].encode(SAMPLE).tolist() == theirs.encode(SAMPLE).ids


def test_sentencepiece_ids_are_the_librarys(made):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=made["SentencePiece"].model)
    assert made["SentencePiece"].encode(SAMPLE).tolist() == theirs.encode(SAMPLE)
    assert len(made["SentencePiece"].encode(SAMPLE)) < len(SAMPLE) / 2


def test_characters_are_in_order_and_a_strange_one_is_named():
    tokenizer = Characters().build(lambda: ["hello", "\nworld😀"])
    assert tokenizer.characters == "\ndehlorw😀"
    assert tokenizer.decode(tokenizer.encode("hello\n😀")) == "hello\n😀"
    with pytest.raises(UserError, match="character 'x' at position 2 is not among the 9"):
        tokenizer.encode("hexd")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HuggingFace(path="/nowhere"), "/nowhere: expected a tokenizer.json, or a directory with vocab.json"),
        (SentencePiece(path="/nowhere.model"), "/nowhere.model: No such file"),
    ],
)
def test_missing_files(config, message):
    with pytest.raises(UserError, match=message):
        config.build(list)


def test_damaged_files(tmp_path, made):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer file"):
        HuggingFace(path=str(tmp_path)).build(list)
    (tmp_path / "x.model").write_bytes(b"\x00\x01")
    with pytest.raises(UserError, match=r"x.model: not a SentencePiece model"):
        SentencePiece(path=str(tmp_path / "x.model")).build(list)
    made["Bytes"].save(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps({"kind": "Bytes"}))
    with pytest.raises(UserError, match="damaged tokenizer"):
        tokenizers.load(tmp_path)


def test_a_control_token_that_is_not_there_is_an_error(hf_directory):
    with pytest.raises(UserError, match=r"tokenizer.bos: '<nope>' is not in the vocabulary"):
        HuggingFace(path=str(hf_directory[0]), bos="<nope>").build(list)


def test_control_tokens_around_a_text_are_the_files_own(hf_directory, tmp_path):
    whole = hf.Tokenizer.from_file(str(hf_directory[1] / "tokenizer.json"))
    end, the = "<|endoftext|>", whole.encode("the").ids

    def policy(template, **settings):
        named = [(end, whole.token_to_id(end))]
        whole.post_processor = hf.processors.TemplateProcessing(single=template, special_tokens=named)
        whole.save(str(tmp_path / "tokenizer.json"))
        made = HuggingFace(path=str(tmp_path), **settings).build(list)
        assert made.encode("the").tolist() == the
        return made.policy.bos, made.policy.eos

    (id_of_end,) = whole.encode(end).ids
    assert policy(f"$A {end}") == (None, id_of_end) and policy(f"{end} $A") == (id_of_end, None)
    assert policy(f"{end} $A {end}", bos="") == (None, id_of_end)
    assert policy("$A", bos=end) == (id_of_end, None) and policy("$A") == (None, None)
    with pytest.raises(UserError, match=r'tokenizer.eos: .* puts 2 tokens there; expected the text of one, or ""'):
        policy(f"$A {end} {end}")
    assert policy(f"$A {end} {end}", eos=end) == (None, id_of_end)


def test_bytes_are_utf8():
    assert Bytes().build(list).encode("é😀").tolist() == list("é😀".encode())
    assert Bytes().build(list).decode(np.array([255, 65])) == "\ufffdA"


MASKED = {
    "Bytes": (Bytes(mask=True), 258),
    "Characters": (Characters(mask=True), len(set(SAMPLE))),
    "SentencePiece": (SentencePiece(vocab_size=400, mask=True), 3),
    "unigram": (SentencePiece(vocab_size=400, algorithm="unigram", mask=True), 3),
}


@pytest.mark.parametrize("kind", MASKED)
def test_a_mask_where_one_is_asked_for(kind, tmp_path):
    settings, mask = MASKED[kind]
    tokenizer = settings.build(lambda: [SAMPLE])
    assert tokenizer.policy.mask == mask and mask in tokenizer.controls() and mask < tokenizer.vocab_size
    ids = tokenizer.encode("the <mask> reads").tolist() if kind != "Characters" else tokenizer.encode("the").tolist()
    assert not tokenizer.controls() & {*ids}
    assert tokenizer.decode([ids[0], mask, *ids[1:]]) == tokenizer.decode(ids)
    tokenizer.save(tmp_path / "saved")
    again = tokenizers.load(tmp_path / "saved")
    assert (again.policy, again.vocab_size) == (tokenizer.policy, tokenizer.vocab_size)


def test_masks_of_files(tmp_path):
    """BERT's and RoBERTa's are found by their names; a model that has none is one line, and a stored policy that does
    not know of masks is read."""
    for name in ("[MASK]", "<mask>"):
        bare = hf.Tokenizer(hf.models.WordPiece({"[UNK]": 0, name: 1, "the": 2}, unk_token="[UNK]"))
        bare.add_special_tokens(["[UNK]", name])
        bare.save(str(tmp_path / "tokenizer.json"))
        found = HuggingFace(path=str(tmp_path)).build(list)
        assert found.policy.mask == 1 and found.controls() == {0, 1}
        assert HuggingFace(path=str(tmp_path), mask="the").build(list).policy.mask == 2
    with pytest.raises(UserError, match="tokenizer.mask: '<hole>' is not in the vocabulary"):
        HuggingFace(path=str(tmp_path), mask="<hole>").build(list)
    (tmp_path / "plain.model").write_bytes(SentencePiece(vocab_size=400).build(lambda: [SAMPLE]).model)
    with pytest.raises(UserError, match="tokenizer.mask: .*plain.model has no mask token"):
        SentencePiece(path=str(tmp_path / "plain.model"), mask=True).build(list)
    found.save(tmp_path / "saved")
    policy = json.loads((tmp_path / "saved" / "policy.json").read_text())
    (tmp_path / "saved" / "policy.json").write_text(json.dumps({k: v for k, v in policy.items() if k != "mask"}))
    assert tokenizers.load(tmp_path / "saved").policy.mask is None


def test_pieces_have_the_spaces_of_their_text(made):
    for tokenizer in made.values():
        ids = tokenizer.encode("the model reads what comes after them")
        assert filled(tokenizer, ids, [], [], "|") == tokenizer.decode(ids)
        shown = filled(tokenizer, ids, range(len(ids)), ids, "|")
        assert shown.replace("[", "").replace("]", "") == tokenizer.decode(ids)
    tokenizer = made["Bytes"]
    ids = tokenizer.encode("abc")
    assert filled(tokenizer, ids, [2, 0], [120, 97], " for ") == "[a]b[x for c]"
    assert filled(tokenizer, ids, [1], [257], ", not ") == "a[<257>, not b]c"
