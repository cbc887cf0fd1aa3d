"""Trains a text classifier on a CSV file of texts and labels, or on synthetic reviews.

    python examples/text_classification.py                                   synthetic data
    python examples/text_classification.py --train data.csv --test test.csv  columns "text" and "label"
    python examples/text_classification.py --train data.tsv --text 1 --label 0

Evaluates the model, explains a prediction, measures the latency of single predictions, and saves and reloads it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from torch_lsh.models import TextClassifier

OPINIONS = {
    "positive": ["wonderful", "charming", "clever", "moving", "a joy", "worth every minute", "not boring at all"],
    "negative": ["dull", "clumsy", "boring", "a waste of time", "not funny", "too long", "not clever at all"],
}
SUBJECTS = ["film", "story", "cast", "music", "script", "ending", "camera", "dialogue", "pace", "humour"]


def write_generated(path: Path, rows: int, seed: int) -> None:
    """Reviews of which each says a few things of its polarity, and now and then one of the other."""
    generator = random.Random(seed)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            label, other = generator.sample(sorted(OPINIONS), 2)
            said = [label] * generator.randint(2, 4) + [other] * (generator.random() < 0.3)
            generator.shuffle(said)
            parts = [f"the {generator.choice(SUBJECTS)} is {generator.choice(OPINIONS[side])}" for side in said]
            writer.writerow([", ".join(parts).capitalize() + ".", label])


def column(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="CSV file; default: synthetic data")
    parser.add_argument("--test", type=Path, help="CSV file")
    parser.add_argument("--text", type=column, default="text", help="column, by name or number")
    parser.add_argument("--label", type=column, default="label", help="column, by name or number")
    arguments = parser.parse_args()
    columns = {"text": arguments.text, "label": arguments.label}

    with tempfile.TemporaryDirectory() as folder:
        train, test = arguments.train, arguments.test
        if train is None:
            train, test = Path(folder) / "train.csv", Path(folder) / "test.csv"
            write_generated(train, 5000, seed=0)
            write_generated(test, 1000, seed=1)

        model = TextClassifier(progress=importlib.util.find_spec("tqdm") is not None)
        start = time.perf_counter()
        model.fit(train, **columns)
        print(f"trained in {time.perf_counter() - start:.1f} s, {len(model.classes_)} labels")
        for entry in model.history_:
            print("  " + "  ".join(f"{name} {value:.4g}" for name, value in entry.items()))
        if test is not None:
            print("test:", {name: round(value, 4) for name, value in model.evaluate(test, **columns).items()})

        text = "The story is not boring at all, the music is a joy, but the ending is too long."
        labels, probabilities = model.top_k([text], min(3, len(model.classes_)))
        print(f"\n{text}\n  {dict(zip(labels[0].tolist(), probabilities[0].round(3).tolist()))}")
        print("  because of", [f"{word} {weight:+.2f}" for word, weight in model.explain(text)[:4]])

        seconds = []
        for _ in range(1000):
            start = time.perf_counter()
            model.predict([text])
            seconds.append(time.perf_counter() - start)
        p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
        print(f"  one prediction from raw text: p50 {p50:.3f} ms, p99 {p99:.3f} ms")

        path = Path(folder) / "model.safetensors"
        model.save(path)
        assert TextClassifier.load(path).predict([text])[0] == model.predict([text])[0]
        print(f"saved and loaded again: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
