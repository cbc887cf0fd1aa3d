"""HashedText and its operators against their twins in plain Python."""

from __future__ import annotations

import importlib.util
import itertools
import math
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_lsh import ops
from torch_lsh.data import HashedText
from torch_lsh.text.hashed_text import pack_texts

UNICODE = Path(__file__).resolve().parents[2] / "csrc" / "unicode"
TABLES = "14.0.0"  # Unicode version of the C++ tables

# Where Python has another version of Unicode, only code points that both have are compared: those of Unicode 3.2.
SAME_VERSION = unicodedata.unidata_version == TABLES


def is_known(character):
    return SAME_VERSION or unicodedata.ucd_3_2_0.category(character) != "Cn"


texts = st.lists(
    st.one_of(
        st.text(st.characters().filter(is_known)),
        st.text("aàAÀİıΣσςЖ北京 .'\ud800e\u0301"),
        st.text("北京市a1カナー々〇ก็ที่ລາວကျ ", max_size=20),
        st.binary(),
        st.binary().map(lambda tail: "naïve café 北京 🙂".encode() + tail),
    ),
    max_size=6,
)

arguments = st.tuples(
    st.sampled_from([1, 5, 11, 12, 20, 22, 23, 31]),
    st.integers(0, 4),
    st.sampled_from([(0, 0), (1, 1), (1, 4), (3, 5), (2, 9)]),
    st.booleans(),
    st.sampled_from(["count", "log", "binary"]),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(texts, arguments)
def test_hash_text_is_its_twin(texts, arguments):
    bits, word_ngrams, char_ngrams, *rest = arguments
    text, offsets = pack_texts(texts)
    result = ops.hash_text(text, offsets, bits, word_ngrams, *char_ngrams, *rest)
    wanted = twins.hash_text(text, offsets, bits, word_ngrams, *char_ngrams, *rest)
    for ours, theirs in zip(result, wanted):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=50)
@given(texts, arguments, st.integers(0, 5))
def test_score_text_is_its_twin(texts, arguments, classes):
    _, word_ngrams, char_ngrams, is_signed, tf, _, *rest = arguments
    generator = torch.Generator().manual_seed(classes)
    model = torch.rand(256, classes + 1, generator=generator), torch.randn(classes, generator=generator)
    call = (*pack_texts(texts), 8, word_ngrams, *char_ngrams, is_signed, tf, *rest, *model)
    torch.testing.assert_close(ops.score_text(*call), twins.score_text(*call))


@settings(deadline=None)
@given(texts)
def test_word_spans_are_their_twin(texts):
    for text in texts:
        packed, _ = pack_texts([text])
        for split in (False, True):
            assert torch.equal(ops.word_spans(packed, split), twins.word_spans(packed, split))


def test_long_texts_are_sorted_by_digits():
    """More features than the small sort takes, in one to three digits."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(3000, (2, 1000), generator=generator).tolist()
    text, offsets = pack_texts([" ".join(map(str, row)) for row in numbers])
    for bits in (3, 11, 12, 22, 23, 31):
        arguments = (text, offsets, bits, 2, 3, 5, True, "log", True, 7, True, False)
        for ours, theirs in zip(ops.hash_text(*arguments), twins.hash_text(*arguments)):
            assert torch.equal(ours, theirs)


def test_symbols_are_words():
    def count(text, **settings):
        return HashedText(bits=20, norm=None, tf="count", **settings).csr([text])[2].sum()

    assert count("很好!!", word_ngrams=1) == 2 + 1
    assert count("很好!!", word_ngrams=1, symbols=True) == 4 + 3  # pairs of letters and symbols, too
    assert count("it's", symbols=True, word_ngrams=3) == 3 + 2 + 1
    assert count("it's", symbols=True, word_ngrams=0, char_ngrams=(1, 1)) == count(
        "it's", word_ngrams=0, char_ngrams=(1, 1)
    )


def test_the_number_of_threads_does_not_matter():
    some = [f"text {i} " * (i % 97 + 1) for i in range(500)] + [""] * 20 + ["one long text " * 20_000]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(HashedText(bits=18, char_ngrams=(3, 5), signed=True).csr(some))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other):
            assert torch.equal(ours, theirs)


def test_every_code_point_is_classified_and_lower_cased():
    """Against unicodedata, one code point after the other, each as a text of its own."""
    step = 1 if SAME_VERSION else 7
    codes = [c for c in range(0, sys.maxunicode + 1, step) if not 0xD800 <= c <= 0xDFFF and is_known(chr(c))]
    crow, col, _ = HashedText(bits=31, word_ngrams=1, norm=None).csr([chr(code) for code in codes])
    words = [code for code, count in zip(codes, crow.diff().tolist()) if count]
    assert words == [code for code in codes if unicodedata.category(chr(code))[0] in "LMN"]
    lower = HashedText(bits=31, word_ngrams=1, norm=None).csr([chr(code).lower()[0] for code in words])[1]
    # The lower case of a lower case may differ again in no script, so both hash alike.
    assert torch.equal(col, lower)
    # ... and nothing that lower() keeps apart is merged, but for collisions in 31 bits.
    distinct = len({chr(code).lower()[0] for code in words})
    assert distinct - 20 < len(set(col.tolist())) <= distinct


@pytest.mark.skipif(not UNICODE.is_dir() or not SAME_VERSION, reason="other Unicode than the tables, or no sources")
def test_the_tables_are_what_the_generator_writes():
    result = subprocess.run([sys.executable, UNICODE / "generate.py"], capture_output=True, text=True, check=True)
    assert result.stdout == (UNICODE / "ranges.h").read_text()


def test_the_features_of_a_release_are_those_of_the_next():
    """Saved models hold weights of columns: hashes must never change."""
    crow, col, values = HashedText(char_ngrams=(3, 4)).csr(["Tōkyō is fine, fine!"])
    assert crow.tolist() == [0, 25]
    assert col[:4].tolist() == FROZEN_COLUMNS
    assert [round(value, 6) for value in values.unique().tolist()] == FROZEN_VALUES


FROZEN_COLUMNS = [22586, 43728, 76268, 112904]
FROZEN_VALUES = [0.158245, 0.267931]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("北京 is 大", ["北", "京", "is", "大"]),
        ("a北b", ["a", "北", "b"]),
        ("カナー", ["カ", "ナ", "ー"]),
        ("ที่", ["ที่"]),  # one letter with two marks
        ("한국어 Жук", ["한국어", "Жук"]),  # scripts with blanks
    ],
)
def test_letters_of_scripts_without_blanks_are_words(text, words):
    packed, _ = pack_texts([text])
    raw = text.encode()
    assert [raw[begin:end].decode() for begin, end in ops.word_spans(packed, True)] == words
    separated, joined = HashedText(word_ngrams=2).csr([" ".join(words)]), HashedText(word_ngrams=2).csr([text])
    assert all(torch.equal(*both) for both in zip(separated, joined))


def test_pairs_of_letters_are_features_without_pairs_of_words():
    def count(text, **settings):
        return len(HashedText(word_ngrams=1, **settings).csr([text])[1])

    assert count("北京市") == 3 + 2
    assert count("北京市", split_characters=False) == 1
    assert count("to be") == 2


def test_invalid_bytes_separate_words():
    hashed = HashedText()
    for bytes_ in (b"good\xfffilm", b"good\xc0\xaffilm", b"good\xed\xa0\x80film", b"good\xf5film", b"good\xe4\xbdfilm"):
        assert torch.equal(hashed([bytes_]).to_dense(), hashed(["good film"]).to_dense())
    assert torch.equal(hashed(["good\ud800film"]).to_dense(), hashed(["good film"]).to_dense())


def test_values_are_weights_of_counts():
    def values(**settings):
        return HashedText(word_ngrams=1, **settings).csr(["a b b b"])[2].sort().values

    assert torch.equal(values(tf="count", norm=None), torch.tensor([1.0, 3.0]))
    assert torch.equal(values(tf="binary", norm=None), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(values(tf="log", norm=None), torch.tensor([1.0, 1 + math.log(3)]))
    torch.testing.assert_close(values(tf="count").norm(), torch.tensor(1.0))


def test_signs_are_balanced_and_opposite_occurrences_cancel():
    many = " ".join(f"w{i}" for i in range(20_000))
    values = HashedText(bits=31, word_ngrams=1, signed=True, norm=None).csr([many])[2]
    assert abs(values.mean()) < 0.05
    _, col, values = HashedText(bits=1, word_ngrams=1, signed=True, norm=None, tf="count").csr([many])
    assert len(col) <= 2
    assert values.abs().sum() < 1000


def test_seeds_give_other_columns():
    columns = [set(HashedText(seed=seed).csr(["a fine film and a dull one"])[1].tolist()) for seed in range(5)]
    assert all(not first & second for first, second in itertools.combinations(columns, 2))


@pytest.mark.parametrize("texts", [[], [""], ["", "!?", "..."], [b""]])
def test_nothing_to_hash(texts):
    features = HashedText()(texts)
    assert features.shape == (len(texts), 2**20)
    assert features.values().numel() == 0


def test_ten_megabytes_in_one_text():
    assert HashedText().csr(["x" * 10_000_000])[1].numel() == 1
    assert HashedText(bits=10, char_ngrams=(3, 5)).csr([b"\xff" * 10_000_000])[1].numel() == 0
    assert HashedText(bits=10, char_ngrams=(3, 5)).csr(["good film " * 1_000_000])[0].tolist()[1] > 10


def test_collates_texts_and_pairs():
    hashed = HashedText(bits=10)
    features, targets = hashed([("good", 1), ("bad", 0)])
    assert torch.equal(features.to_dense(), hashed(["good", "bad"]).to_dense())
    assert targets.tolist() == [1, 0]
    assert hashed([("good", torch.tensor([1.0, 2.0]))])[1].tolist() == [[1.0, 2.0]]
    assert hashed([("good", ["a", "b"])])[1] == [["a", "b"]]


def test_in_the_workers_of_a_data_loader():
    hashed = HashedText(bits=12)
    rows = [(f"text {i}", i) for i in range(20)]
    loader = torch.utils.data.DataLoader(rows, 6, collate_fn=hashed, num_workers=2)
    batches = list(loader)
    assert torch.cat([targets for _, targets in batches]).tolist() == list(range(20))
    dense = torch.cat([features.to_dense() for features, _ in batches])
    assert torch.equal(dense, hashed([text for text, _ in rows]).to_dense())


def test_pickles():
    hashed = HashedText(bits=12, char_ngrams=(3, 5), signed=True, seed=5)
    assert pickle.loads(pickle.dumps(hashed)) == hashed
    assert hashed != HashedText(bits=12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 0}, "bits is 0; wanted 1 to 31"),
        ({"bits": 32}, "bits is 32"),
        ({"bits": "20"}, "bits is '20'"),
        ({"word_ngrams": -1}, "word_ngrams is -1"),
        ({"word_ngrams": True}, "word_ngrams is True"),
        ({"word_ngrams": 0}, "some features"),
        ({"char_ngrams": 3}, "char_ngrams is 3"),
        ({"char_ngrams": (5, 3)}, r"char_ngrams is \(5, 3\)"),
        ({"char_ngrams": (0, 3)}, r"char_ngrams is \(0, 3\)"),
        ({"signed": 1}, "signed is 1"),
        ({"tf": "idf"}, "tf is 'idf'"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        HashedText(**settings)
    hashed = HashedText(bits=9)
    with pytest.raises(ValueError, match=words):
        hashed.set_params(**settings)
    assert hashed == HashedText(bits=9)


@pytest.mark.parametrize("value", [None, 3, float("nan"), ["a"]])
def test_what_is_not_text_is_named_by_its_row(value):
    with pytest.raises(TypeError, match=r"text 1 is .* wanted str"):
        HashedText().csr(["fine", value])
    with pytest.raises(TypeError, match="wanted a list"):
        HashedText()("one text")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.zeros(3)}, "text has dtype Float; wanted Byte"),
        ({1: torch.tensor([], dtype=torch.int64)}, "offsets is empty"),
        ({1: torch.tensor([0, 4])}, "offsets runs from 0 to 4; wanted 0 to 3"),
        ({1: torch.tensor([0, 2, 1, 3])}, "offsets decreases at 2"),
        ({1: torch.tensor([0, 9, 3])}, "offsets decreases at 2"),
        ({2: 32}, "bits is 32"),
        ({3: -1}, "word_ngrams is -1"),
        ({4: 4, 5: 3}, "char_min and char_max are 4 and 3"),
        ({7: "tf"}, "tf is 'tf'"),
    ],
)
def test_bad_arguments_of_the_operator(change, words):
    settings = 10, 1, 3, 5, False, "log", True, 0, True, False
    arguments = [torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 3]), *settings]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=words):
        ops.hash_text(*arguments)


# --- scikit-learn -----------------------------------------------------------------------------------------------------


def test_transforms_to_scipy():
    hashed = HashedText(bits=12)
    matrix = hashed.fit(["a"]).transform(iter(["good film", ""]))
    assert matrix.shape == (2, 4096)
    assert matrix.has_canonical_format
    assert torch.equal(torch.from_numpy(matrix.toarray()), hashed(["good film", ""]).to_dense())
    assert (hashed.fit_transform(["good film", ""]) != matrix).nnz == 0


def test_parameters():
    hashed = HashedText(bits=12)
    assert hashed.set_params(tf="count").get_params()["tf"] == "count"
    with pytest.raises(ValueError, match="has no tff"):
        hashed.set_params(tff="count")


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not here")
def test_in_a_pipeline_of_scikit_learn():
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    rows = [(f"a {word} film number {i}", word) for i in range(40) for word in ("good", "bad")]
    X, y = zip(*rows)
    hashed = HashedText(bits=12, char_ngrams=(3, 5))
    assert clone(hashed) == hashed
    pipeline = make_pipeline(hashed, LogisticRegression())
    search = GridSearchCV(pipeline, {"hashedtext__word_ngrams": [1, 2]}, cv=2).fit(list(X), list(y))
    assert search.score(list(X), list(y)) == 1.0
