"""Generated texts whose words tell their labels, for the tests of text models and of the command line."""

from __future__ import annotations

import random

WORDS = {
    "sport": ["goal", "match", "team", "league", "coach"],
    "food": ["soup", "bread", "oven", "sauce", "spice"],
    "law": ["court", "judge", "appeal", "ruling", "clause"],
}
NOISE = [f"noise{i}" for i in range(200)]


def generate(rows, seed=0, classes=WORDS):
    generator = random.Random(seed)
    texts, labels = [], []
    for _ in range(rows):
        label = generator.choice(list(classes))
        words = generator.choices(classes[label], k=2) + generator.choices(NOISE, k=6)
        generator.shuffle(words)
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def generate_several(rows, seed=0):
    generator = random.Random(seed)
    texts, labels = [], []
    for _ in range(rows):
        chosen = generator.sample(sorted(WORDS), generator.randint(1, 2))
        words = [word for label in chosen for word in generator.choices(WORDS[label], k=3)]
        texts.append(" ".join(words + generator.choices(NOISE, k=4)))
        labels.append(chosen)
    return texts, labels


def write_csv(path, texts, labels):
    cells = [";".join(label) if isinstance(label, list) else label for label in labels]
    path.write_text("text,label\n" + "".join(f"{text},{cell}\n" for text, cell in zip(texts, cells)))
    return path
