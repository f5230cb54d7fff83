"""The token store: exact, made once, never half there."""

import numpy as np
import pytest

from lmjax import cache
from lmjax.data import store
from lmjax.data.sources import TextFiles, WholeDocuments
from lmjax.errors import UserError
from lmjax.tokenizers import Bytes, CharacterTokenizer, Policy, SentencePiece
from tests import tiny


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(tiny.text(50 + 7 * i, seed=i) + "é")
    return TextFiles(path=f"{tmp_path}/*.txt", held_out=WholeDocuments(share=0.2))


def decoded(stream, tokenizer):
    ids = stream.gather(np.arange(stream.size))
    return [tokenizer.decode(piece) for piece in np.split(ids, stream.starts[1:])]


@pytest.mark.parametrize("shard", [100, 1 << 28])
def test_holds_every_document_in_order(own_cache, source, shard, monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", shard)
    tokenizer = Bytes(eos=True).build(list)
    opened = store.open_store(source, tokenizer)
    for split in store.SPLITS:
        texts = [d.text for s, d in source.split() if s == split]
        stream = opened.stream(split)
        assert decoded(stream, tokenizer) == texts
        assert stream.text_bytes == sum(len(t.encode()) for t in texts)
        memory = store.stream_of(texts, tokenizer)
        assert (memory.starts == stream.starts).all()
        assert (memory.gather(np.arange(memory.size)) == stream.gather(np.arange(stream.size))).all()
    assert len(opened.stream("train").shards) > 1 or shard > 100


def test_is_made_once_and_again_for_other_text_or_tokenizer(own_cache, source, tmp_path):
    first = store.open_store(source, Bytes().build(list))
    assert not first.reused
    assert store.open_store(source, Bytes().build(list)).reused
    assert not store.open_store(source, Bytes(eos=True).build(list)).reused
    (tmp_path / "03.txt").write_text("another text")
    second = store.open_store(source, Bytes().build(list))
    assert not second.reused
    assert second.fingerprint != first.fingerprint


def test_ids_side_by_side_are_not_taken_for_others(source):
    names = [
        store.fingerprint(source, CharacterTokenizer("ab", Policy(bos=bos, eos=eos))) for bos, eos in ((1, 12), (11, 2))
    ]
    assert names[0] != names[1]


def test_nothing_half_made_is_left(own_cache, source, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._SplitWriter, "finish", full)
    with pytest.raises(OSError, match="No space"):
        store.open_store(source, Bytes().build(list))
    assert list((own_cache / "tokens").iterdir()) == []


def test_a_truncated_shard_is_an_error_that_names_it(own_cache, source):
    opened = store.open_store(source, Bytes().build(list))
    shard = opened.directory / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000\.bin: expected \d+ bytes; remove"):
        store.open_store(source, Bytes().build(list)).stream("train")


@pytest.mark.parametrize("name", ["manifest.json", "train-documents.npy"])
def test_a_damaged_file_is_named(own_cache, source, name):
    opened = store.open_store(source, Bytes().build(list))
    (opened.directory / name).write_bytes(b"{")
    with pytest.raises(UserError, match=f"{name}: damaged; remove"):
        store.open_store(source, Bytes().build(list)).stream("train")


def test_joined_streams_are_the_stream_of_all_texts():
    tokenizer = Bytes(eos=True).build(list)
    texts = ["one", "zwei", "drei é"]
    whole = store.stream_of(texts, tokenizer)
    parts = store.joined([store.stream_of(texts[:1], tokenizer), store.stream_of(texts[1:], tokenizer)])
    assert parts.starts.tolist() == whole.starts.tolist()
    assert parts.text_bytes == whole.text_bytes
    assert parts.gather(np.arange(whole.size)).tolist() == whole.gather(np.arange(whole.size)).tolist()


def test_ids_above_65535_fit(own_cache, source, monkeypatch):
    tokenizer = Bytes().build(list)
    monkeypatch.setattr(tokenizer, "vocab_size", 70_000)
    monkeypatch.setattr(tokenizer, "encode", lambda text: np.full(len(text), 69_999, np.int32))
    assert store.open_store(source, tokenizer).stream("train").gather(np.arange(3)).tolist() == [69_999] * 3


def test_the_slower_of_two_makers_keeps_the_others_result(own_cache):
    with cache.built_whole(own_cache / "x") as mine:
        (mine / "f").write_text("mine")
        with cache.built_whole(own_cache / "x") as theirs:
            (theirs / "f").write_text("theirs")
    assert (own_cache / "x" / "f").read_text() == "theirs"
    assert [p.name for p in own_cache.iterdir()] == ["x"]


def test_a_trained_tokenizer_is_the_same_each_time(source):
    texts = [d.text for _, d in source.split()] * 20
    one, two = (SentencePiece(vocab_size=320).build(lambda: iter(texts)) for _ in range(2))
    assert one.model == two.model
