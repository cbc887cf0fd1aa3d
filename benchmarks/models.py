"""XMCClassifier and TextClassifier beside label trees, nearest neighbours and linear models, on wide label sets.

    python benchmarks/models.py citeulike-t delicious yso-en --peers peers/bin/python --json out.jsonl
    python benchmarks/models.py --file synthetic train.txt test.txt --rows 50000
    python benchmarks/models.py --file titles train.tsv test.tsv
    python benchmarks/models.py citeulike-t --dense 256    # TF-IDF reduced to dense rows by an SVD, as of embeddings

Lines of a .tsv file are ``label,label TAB text``; systems that take features get TF-IDF of the words of its texts.
Every system has its default settings and a process of its own. Rows without labels are left out. Reports precision@k
and propensity-scored precision@k (Jain et al., KDD 2016, with A=0.55 and B=1.5) for k = 1, 3, 5; CPU-seconds and
seconds of training; size of the saved model; p50 and p99 of finding the five best labels of a single row.

Peers are optional; the output names those that are missing. ``--peers`` names a Python that has them:
pip install "numpy<2" "scipy<1.14" scikit-learn napkinxc fasttext-wheel; pip install --no-deps libpecos
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

KS = (1, 3, 5)
_WORDS = re.compile(r"\w+")
SINGLE_ROWS = 500
LOGISTIC_LABELS = 5_000  # with more labels, one logistic regression for each takes hours


class Task(NamedTuple):
    """Training rows with their labels, and test rows; features are sparse CSR or a dense array."""

    rows: Any
    labels: scipy.sparse.csr_matrix
    test: Any
    titles: list[str] | None  # of the training rows
    test_titles: list[str] | None
    threads: int


class Trained(NamedTuple):
    """What a system returns: predict finds the five best labels ``[rows, 5]``, -1 where there are fewer."""

    predict: Callable[[Any], np.ndarray]
    size: Callable[[], int]  # saves the model, and returns its bytes
    by_title: bool = False


# --- systems ----------------------------------------------------------------------------------------------------------


def xmc_classifier(task: Task) -> Trained:
    import torch

    from torch_lsh.models import XMCClassifier

    torch.set_num_threads(task.threads)
    dense = isinstance(task.rows, np.ndarray)
    model = XMCClassifier(task.rows.shape[1], task.labels.shape[1], dense_input=dense)
    model.fit((task.rows, task.labels), progress=False)

    def predict(rows: Any) -> np.ndarray:
        return model.predict(rows if dense else _torch_csr(rows), 5)[1].numpy()

    return Trained(predict, lambda: _saved_size(lambda folder: model.save(folder / "model")))


def text_classifier(task: Task) -> Trained:
    import torch

    from torch_lsh.models import TextClassifier

    if task.titles is None:
        raise ImportError("the set has no texts")
    torch.set_num_threads(task.threads)
    start, columns = task.labels.indptr.tolist(), task.labels.indices.tolist()
    model = TextClassifier().fit(task.titles, [columns[begin:end] for begin, end in itertools.pairwise(start)])
    return Trained(
        lambda texts: model.top_k(texts, 5)[0],
        lambda: _saved_size(lambda folder: model.save(folder / "model")),
        by_title=True,
    )


def nearest_neighbours(task: Task, k: int = 50) -> Trained:
    """Sums of the cosines of the k nearest rows, on TF-IDF where rows are sparse."""
    weigh = _unit
    if not isinstance(task.rows, np.ndarray):
        counts = np.bincount(task.rows.indices, minlength=task.rows.shape[1])
        weight = np.log(task.rows.shape[0] / np.maximum(1, counts))

        def weigh(some: Any) -> Any:
            return _unit(some.multiply(weight).tocsr())

    rows = weigh(task.rows)
    columns = rows.T if isinstance(rows, np.ndarray) else rows.T.tocsr()

    def predict(queries: Any) -> np.ndarray:
        found = np.full((queries.shape[0], 5), -1)
        for begin in range(0, queries.shape[0], 64):
            near = scipy.sparse.csr_matrix(weigh(queries[begin : begin + 64]) @ columns)
            for i in range(near.shape[0]):
                run = slice(near.indptr[i], near.indptr[i + 1])
                cosines, at = near.data[run], near.indices[run]
                if len(at) > k:
                    best = np.argpartition(cosines, -k)[-k:]
                    cosines, at = cosines[best], at[best]
                votes = scipy.sparse.csr_matrix(cosines[None]) @ task.labels[at] if len(at) else task.labels[:0]
                found[begin + i] = _best(votes.indices, votes.data)
        return found

    return Trained(predict, lambda: 2 * rows.data.nbytes + 2 * task.labels.data.nbytes)


def pecos(task: Task) -> Trained:
    """PECOS' XR-Linear (Yu et al., JMLR 2022)."""
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    unit_rows = _unit(task.rows)
    embedded = LabelEmbeddingFactory.create(task.labels, scipy.sparse.csr_matrix(unit_rows))
    chain = Indexer.gen(embedded, threads=task.threads)
    model = XLinearModel.train(unit_rows, task.labels, C=chain, threads=task.threads)

    def predict(rows: Any) -> np.ndarray:
        found = model.predict(_unit(rows), only_topk=5, threads=task.threads).tocsr()
        return np.array([_best(row.indices, row.data) for row in found])

    return Trained(predict, lambda: _saved_size(lambda folder: model.save(str(folder))))


def napkinxc(task: Task) -> Trained:
    """napkinXC's probabilistic label tree (Jasinska-Kobus et al. 2020)."""
    from napkinxc.models import PLT

    folder = tempfile.TemporaryDirectory()  # the model reads it while it predicts
    model = PLT(folder.name, verbose=False, threads=task.threads)
    model.fit(task.rows, [row.indices.tolist() for row in task.labels])

    def predict(rows: Any, folder: Any = folder) -> np.ndarray:
        return np.array([(some + [-1] * 5)[:5] for some in model.predict(rows, top_k=5)])

    return Trained(predict, lambda: _folder_size(folder.name))


def fasttext(task: Task) -> Trained:
    """fastText (Joulin et al. 2017) with hierarchical softmax and 100 dimensions; features are words."""
    import fasttext as library

    if isinstance(task.rows, np.ndarray):
        raise ImportError("dense features are no words")

    def line(row: Any) -> str:
        return " ".join(map(str, row.indices))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        with open(path, "w") as file:
            for row, labels in zip(task.rows, task.labels):
                file.write(" ".join(f"__label__{one}" for one in labels.indices[:64]) + f" {line(row)}\n")
        model = library.train_supervised(str(path), dim=100, loss="hs", lr=0.5, thread=task.threads, verbose=0)

    def predict(rows: Any) -> np.ndarray:
        found = []
        for row in rows:
            pairs = model.f.predict(line(row) + "\n", 5, 0.0, "strict")
            found.append(([int(label.removeprefix("__label__")) for _, label in pairs] + [-1] * 5)[:5])
        return np.array(found)

    return Trained(predict, lambda: _saved_size(lambda folder: model.save_model(str(folder / "model"))))


def logistic_regression(task: Task) -> Trained:
    """A logistic regression for each label."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    if task.labels.shape[1] > LOGISTIC_LABELS:
        raise ImportError(f"one model for each of more than {LOGISTIC_LABELS} labels takes hours")
    model = OneVsRestClassifier(LogisticRegression(solver="liblinear"), n_jobs=task.threads)
    model.fit(_unit(task.rows), task.labels)

    def predict(rows: Any) -> np.ndarray:
        return np.argsort(-model.predict_proba(_unit(rows)), 1)[:, :5]

    return Trained(predict, lambda: len(pickle.dumps(model)))


#: What trains a system, and the modules whose import is not part of the training; optimizers import torch._dynamo.
SYSTEMS: dict[str, tuple[Callable[[Task], Trained], tuple[str, ...]]] = {
    "torch_lsh, features": (xmc_classifier, ("torch_lsh.models", "torch._dynamo")),
    "torch_lsh, texts": (text_classifier, ("torch_lsh.models", "torch._dynamo")),
    "TF-IDF + kNN, k=50": (nearest_neighbours, ("scipy.sparse",)),
    "PECOS XLinear": (pecos, ("pecos.xmc.xlinear.model",)),
    "napkinXC PLT": (napkinxc, ("napkinxc.models",)),
    "fastText": (fasttext, ("fasttext",)),
    "logistic regression": (logistic_regression, ("sklearn.multiclass",)),
}


def _best(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    best = labels[np.argsort(-scores, kind="stable")[:5]]
    return np.pad(best, (0, 5 - len(best)), constant_values=-1)


def _unit(rows: Any) -> Any:
    if isinstance(rows, np.ndarray):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    values = (rows.data / np.repeat(np.maximum(lengths, 1e-12), np.diff(rows.indptr))).astype(np.float32)
    return scipy.sparse.csr_matrix((values, rows.indices, rows.indptr), rows.shape)


def _torch_csr(rows: Any) -> Any:
    import torch

    parts = rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data
    return torch.sparse_csr_tensor(*map(torch.from_numpy, parts), rows.shape, check_invariants=False)


def _saved_size(save: Callable[[Path], Any]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return _folder_size(folder)


def _folder_size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


# --- one system in a process of its own -------------------------------------------------------------------------------


def run(system: str, folder: Path) -> None:
    """Trains a system on the task in the folder, and writes its predictions and timings there."""
    with open(folder / "task", "rb") as file:
        task = Task(**pickle.load(file))
    train, modules = SYSTEMS[system]
    for module in modules:
        importlib.import_module(module)
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    trained = train(task)
    result = {"train_s": time.perf_counter() - start, "train_cpu_s": sum(os.times()[:4]) - cpu}
    queries: Any = task.test_titles if trained.by_title else task.test
    predictions = trained.predict(queries)
    latencies = []
    for i in np.random.default_rng(0).integers(0, task.test.shape[0], SINGLE_ROWS):
        one = queries[i : i + 1]
        begin = time.perf_counter()
        trained.predict(one)
        latencies.append(time.perf_counter() - begin)
    p50, p99 = np.percentile(latencies[50:], [50, 99]) * 1e3
    np.save(folder / "predictions.npy", predictions)
    with open(folder / "result.json", "w") as file:
        json.dump({**result, "p50_ms": p50, "p99_ms": p99, "size_mb": trained.size() / 1e6}, file)


def measure(system: str, task: Task, test_labels: Any, python: str) -> dict[str, float] | str:
    """Quality and costs of a system; or why there are none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "task", "wb") as file:
            pickle.dump(task._asdict(), file)
        environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
        command = [python, __file__, "--run", system, str(folder)]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        predictions = np.load(folder / "predictions.npy")
        with open(folder / "result.json") as file:
            return {**quality(predictions, test_labels, task.labels), **json.load(file)}


def reduced(rows: Any, test: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Sparse rows as dense ones: the largest singular vectors of TF-IDF."""
    from sklearn.decomposition import TruncatedSVD

    weight = np.log(rows.shape[0] / np.maximum(1, np.bincount(rows.indices, minlength=rows.shape[1])))
    weighed = [_unit(some.multiply(weight).tocsr()) for some in (rows, test)]
    svd = TruncatedSVD(width, random_state=0).fit(weighed[0])
    found = [svd.transform(some).astype(np.float32) for some in weighed]
    return found[0], found[1]


def quality(predictions: np.ndarray, labels: Any, train_labels: Any) -> dict[str, float]:
    """Precision@k and propensity-scored precision@k."""
    import torch

    from torch_lsh.metrics import RankingMetrics, propensities

    counts = torch.from_numpy(np.asarray(train_labels.sum(0)).ravel())
    metric = RankingMetrics(("precision", "psp"), KS, propensities(counts, train_labels.shape[0]))
    wanted = np.full((len(predictions), max(1, np.diff(labels.indptr).max())), -100)
    for row, some in zip(wanted, labels):
        row[: len(some.indices)] = some.indices
    metric.update(torch.from_numpy(predictions.astype(np.int64)), torch.from_numpy(wanted))
    return metric.compute()


# --- data -------------------------------------------------------------------------------------------------------------


def read(train: Path, test: Path, rows: int | None) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Training and test matrices of features and labels, and which rows of the files they are."""
    from torch_lsh.data import XMCDataset

    matrices, kept = [], []
    for path, most in ((train, rows), (test, None)):
        some = XMCDataset(path).rows
        labelled = (some.label_start.diff() > 0).nonzero()[:, 0]
        some = some.take(labelled[labelled < most] if most else labelled)
        kept.append(labelled.numpy())
        for start, ids, values, width in (
            (some.feature_start, some.features, some.values.numpy(), some.num_features),
            (some.label_start, some.labels, np.ones(len(some.labels), np.float32), some.num_labels),
        ):
            matrix = scipy.sparse.csr_matrix((values, ids.numpy(), start.numpy()), (len(start) - 1, width))
            matrix.sum_duplicates()
            matrices.append(matrix)
    for labels in matrices[1::2]:
        labels.data[:] = 1
    return matrices, *kept


def read_texts(train: Path, test: Path, rows: int | None) -> tuple[list[Any], list[str], list[str]]:
    """Training and test matrices of TF-IDF and labels, and the texts."""
    from corpora import read_lines

    pairs = [[line.split("\t", 1) for line in read_lines(path)] for path in (train, test)]
    (train_labels, texts), (test_labels, test_texts) = (zip(*(pair for pair in some if pair[0])) for some in pairs)
    numbers = [[[int(label) for label in some.split(",")] for some in part] for part in (train_labels, test_labels)]
    num_labels = 1 + max(max(some) for part in numbers for some in part)
    words = [[Counter(_WORDS.findall(text.lower())) for text in part] for part in (texts, test_texts)]
    counts = Counter(word for some in words[0][:rows] for word in some)  # of rows that have a word
    number = {word: i for i, word in enumerate(counts)}
    rarity = np.log((1 + len(words[0][:rows])) / (1 + np.array(list(counts.values())))) + 1
    matrices = []
    for of_texts, of_labels in zip(words, numbers):
        known = [{number[word]: 1 + math.log(n) for word, n in some.items() if word in number} for some in of_texts]
        features = _matrix(known, len(number))
        features.data *= rarity[features.indices].astype(np.float32)
        matrices += [
            _unit(features)[:rows],
            _matrix([dict.fromkeys(some, 1.0) for some in of_labels], num_labels)[:rows],
        ]
        rows = None
    return matrices, list(texts[: matrices[0].shape[0]]), list(test_texts)


def _matrix(rows: list[dict[int, float]], width: int) -> scipy.sparse.csr_matrix:
    start = np.cumsum([0, *map(len, rows)])
    columns = np.array([column for row in rows for column in sorted(row)], np.int32)
    values = np.array([row[column] for row in rows for column in sorted(row)], np.float32)
    return scipy.sparse.csr_matrix((values, columns, start), (len(rows), width))


def titles(path: Path, kept: np.ndarray) -> list[str] | None:
    from corpora import read_lines

    if not path.exists():
        return None
    texts = [line.split("\t", 1)[-1] for line in read_lines(path)]
    return [texts[i] for i in kept] if len(texts) > kept.max() else None


def load(train: Path, test: Path, rows: int | None) -> tuple[list[Any], list[str] | None, list[str] | None]:
    """Training and test matrices of features and labels, and the texts where there are some."""
    if ".tsv" in train.suffixes:
        return read_texts(train, test, rows)
    matrices, kept, test_kept = read(train, test, rows)
    return matrices, titles(train.with_name("train.tsv.xz"), kept), titles(test.with_name("test.tsv.xz"), test_kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="data sets in the folder that TORCH_LSH_DATA names")
    parser.add_argument("--file", nargs=3, action="append", default=[], metavar=("NAME", "TRAIN", "TEST"))
    parser.add_argument("--rows", type=int, help="train on the first rows only")
    parser.add_argument("--dense", type=int, metavar="WIDTH", help="reduce the rows to so many dense features first")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--peers", default=sys.executable, help="Python that has the peers; default: this one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--run", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], Path(arguments.run[1]))
        return
    from corpora import DATA

    from torch_lsh.benchmarking import harness

    machine = harness.machine(arguments.threads)
    print(machine)
    files = {name: (DATA / name / "train.txt.xz", DATA / name / "test.txt.xz") for name in arguments.sets}
    files |= {name: (Path(train), Path(test)) for name, train, test in arguments.file}
    for name, (train, test) in files.items():
        (rows, labels, test_rows, test_labels), *texts = load(train, test, arguments.rows)
        if arguments.dense is not None:
            rows, test_rows = reduced(rows, test_rows, arguments.dense)
            name, texts = f"{name}, {arguments.dense} dense", [None, None]
        task = Task(rows, labels, test_rows, *texts, arguments.threads)
        print(
            f"\n{name}: {rows.shape[0]:,} training rows, {test_rows.shape[0]:,} test rows, {labels.shape[1]:,} labels"
        )
        table, header = [], ["system"]
        for system in arguments.systems:
            own = system.startswith("torch_lsh")
            result = measure(system, task, test_labels, sys.executable if own else arguments.peers)
            if isinstance(result, str):
                print(f"{system} is left out: {result}", flush=True)
                continue
            header = ["system", *result]
            table.append([system, *result.values()])
            record = {"set": name, "rows": rows.shape[0], "system": system, **result, **machine}
            harness.write_json([record], arguments.json)
        print(harness.table(table, header), flush=True)


if __name__ == "__main__":
    main()
