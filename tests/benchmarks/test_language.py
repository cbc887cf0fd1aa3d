"""The language model of the benchmarks and its text."""

from __future__ import annotations

import lzma

import pytest
import torch
import torch.nn.functional as F
from corpora import Corpus
from language import LanguageModel, sequences

import torch_lsh

WORDS, LENGTH = 50, 6


def test_corpus(tmp_path):
    for split, text in (("train", " b a b\n\n"), ("valid", "a c\n"), ("test", "d b\n")):
        with lzma.open(tmp_path / f"{split}.txt.xz", "wt") as out:
            out.write(text)
    corpus = Corpus(tmp_path)
    assert set(corpus.words[:2]) == {"b", "<eos>"}  # twice each
    assert corpus.words[2:] == ["a", "c", "d"]
    assert [corpus.words[i] for i in corpus.train] == ["b", "a", "b", "<eos>", "<eos>"]
    assert [corpus.words[i] for i in corpus.test] == ["d", "b", "<eos>"]


def test_sequences_go_on_where_the_last_ones_ended():
    parts = list(sequences(torch.arange(23), batch=2, length=4))
    assert torch.equal(torch.cat([words for words, _ in parts], 1), torch.arange(22).view(2, 11))
    assert all(torch.equal(words + 1, following) for words, following in parts)


@pytest.mark.parametrize("body", ["lstm", "transformer"])
def test_model_sees_no_later_word(body):
    model = LanguageModel(WORDS, 8, body, LENGTH).eval()
    words = torch.randint(WORDS, (3, LENGTH))
    changed = words.clone()
    changed[:, -1] = (changed[:, -1] + 1) % WORDS
    before, after = (model(part)[0] for part in (words, changed))
    assert before.shape == (3, LENGTH, WORDS)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_state_goes_on():
    model = LanguageModel(WORDS, 8, "lstm", LENGTH).eval()
    words = torch.randint(WORDS, (3, LENGTH))
    first, state = model(words[:, :2])
    second, _ = model(words[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), model(words)[0])


@pytest.mark.parametrize("body", ["lstm", "transformer"])
def test_sampled_head_with_every_word_active_gives_the_full_loss(body):
    model = LanguageModel(WORDS, 8, body, LENGTH, dropout=0.0)
    words, following = torch.randint(WORDS, (2, 3, LENGTH))
    expected = F.cross_entropy(model(words)[0].flatten(0, 1), following.flatten())
    torch_lsh.sparsify_(model, torch_lsh.LSHConfig(active=1.0), lambda module, name: name == "head")
    got = F.cross_entropy(model(words)[0].flatten(0, 1), following.flatten())
    torch.testing.assert_close(got, expected)


def test_bad_body():
    with pytest.raises(ValueError, match="body is 'gru'"):
        LanguageModel(WORDS, 8, "gru", LENGTH)
