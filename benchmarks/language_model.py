"""Heads of a language model: full softmax, adaptive softmax, LSH-sampled softmax.

    python benchmarks/language_model.py --body lstm transformer --json out.jsonl

The data is wikitext-2, 33,278 words. All systems start from the same body and embedding and see the same batches; they
take turns. Adam trains the body and, by rows, the embedding; Adagrad trains the head. Perplexity is exact, over all
words (the adaptive softmax has exact probabilities of its own). Seconds per epoch are the median step times the number
of steps, without evaluation.

Adagrad, because the sampled head is then insensitive to the learning rate: 0.05 and 0.1 give the same perplexity. Under
Adam the rate matters, for the full softmax too, and the best rates may differ: a lazy optimizer steps a row only in the
batches that touch it. Give each system its own:

    python benchmarks/language_model.py --tokens 200000 --test-tokens 10000 --batch 10 --length 20 --epochs 2 \\
        --head-optimizer adam --head-lr 0.01 --systems full adaptive torch_lsh torch_lsh:lr=0.03,catch_up=1

On this short text, runs of the full softmax that differ in dropout alone are 6 % apart.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from corpora import DATA, Corpus
from language import LanguageModel, sequences
from torch import Tensor, nn

import torch_lsh
from torch_lsh.benchmarking import harness

KINDS = ("full", "adaptive", "torch_lsh")


class Trainee:
    """One system: its model, its clock and its perplexities."""

    def __init__(self, name: str, model: LanguageModel, lr: float, head_optimizer: str, head_lr: float) -> None:
        self.name = name
        self.model = copy.deepcopy(model)
        kind, options = parse_system(name)
        head_options: dict[str, Any] = {"lr": options.pop("lr", head_lr)}
        if "catch_up" in options:
            head_options["catch_up"] = bool(options.pop("catch_up"))
        head = self.model.head
        if kind == "adaptive":
            cutoffs = [head.out_features // 20, head.out_features // 4]
            self.model.head = nn.AdaptiveLogSoftmaxWithLoss(head.in_features, head.out_features, cutoffs)
        elif kind == "torch_lsh":
            config = torch_lsh.LSHConfig.from_options(**{"correction": "stratified", **options})
            torch_lsh.sparsify_(self.model, config, lambda module, name: name == "head")
        body = [parameter for key, parameter in self.model.named_parameters() if not key.startswith("head.")]
        make = {"adam": torch_lsh.optim.Adam, "adagrad": torch_lsh.optim.Adagrad}[head_optimizer]
        self.optimizers = [torch_lsh.optim.Adam(body, lr=lr), make(self.model.head.parameters(), **head_options)]
        self.state: Any = None
        self.seconds: list[float] = []
        self.epochs: list[dict[str, float]] = []

    def losses(self, words: Tensor, following: Tensor, reduction: str = "mean") -> Tensor:
        hidden, self.state = self.model.hidden(words, self.state)
        hidden, following = hidden.flatten(0, 1), following.flatten()
        if isinstance(self.model.head, nn.AdaptiveLogSoftmaxWithLoss):
            result = self.model.head(hidden, following)
            return result.loss if reduction == "mean" else -result.output.sum()
        return F.cross_entropy(self.model.head(hidden), following, reduction=reduction)

    def train(self, batches: list[tuple[Tensor, Tensor]], clip: float) -> None:
        self.model.train()
        for words, following in batches:
            start = time.perf_counter()
            self.losses(words, following).backward()
            torch_lsh.clip_grad_norm_(self.model.parameters(), clip)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def perplexity(self, tokens: Tensor, batch: int, length: int) -> float:
        self.model.eval()
        self.state = None
        total, count = 0.0, 0
        for words, following in sequences(tokens, batch, length):
            total += float(self.losses(words, following, reduction="sum"))
            count += following.numel()
        self.state = None
        return math.exp(total / count)


def parse_system(text: str) -> tuple[str, dict[str, Any]]:
    """``torch_lsh:random_fraction=0.5,lr=0.03`` -> kind and options: ``lr`` and ``catch_up`` (0 or 1) are of the head's
    optimizer, the others of LSHConfig.
    """
    kind, options = harness.parse_options(text)
    if kind not in KINDS:
        raise SystemExit(f"--systems names {kind!r}; wanted {', '.join(KINDS)}")
    return kind, options


def chunks(batches: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    while chunk := list(islice(batches, size)):
        yield chunk


def run(corpus: Corpus, body: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(arguments.seed)
    model = LanguageModel(len(corpus.words), arguments.width, body, arguments.length, arguments.dropout)
    trainees = [
        Trainee(name, model, arguments.lr, arguments.head_optimizer, arguments.head_lr) for name in arguments.systems
    ]
    tokens = corpus.train[: arguments.tokens]
    steps = math.ceil((len(tokens) - 1) // arguments.batch / arguments.length)
    evaluated = {split: getattr(corpus, split)[: arguments.test_tokens] for split in ("valid", "test")}
    print(f"\n{body}: {len(tokens):,} tokens, {steps} steps per epoch, {len(corpus.words):,} words", flush=True)
    records = []
    for epoch in range(1, arguments.epochs + 1):
        for trainee in trainees:
            trainee.state = None
        for chunk in chunks(sequences(tokens, arguments.batch, arguments.length), 25):
            seed = int(torch.randint(2**31, ()))
            for trainee in trainees:
                torch.manual_seed(seed)  # the same dropout
                trainee.train(chunk, arguments.clip)
        for trainee in trainees:
            record = {
                "body": body,
                "system": trainee.name,
                "epoch": epoch,
                "seconds_per_epoch": statistics.median(trainee.seconds) * steps,
                **{
                    f"{split}_perplexity": trainee.perplexity(part, arguments.batch, arguments.length)
                    for split, part in evaluated.items()
                },
            }
            trainee.epochs.append(record)
            records.append(record)
            print(
                f"epoch {epoch}  {trainee.name:>28}  {record['seconds_per_epoch']:7.1f} s/epoch  "
                f"valid {record['valid_perplexity']:7.2f}  test {record['test_perplexity']:7.2f}",
                flush=True,
            )
    report(trainees)
    return records


def report(trainees: list[Trainee]) -> None:
    reference = next((trainee for trainee in trainees if trainee.name == "full"), trainees[0]).epochs[-1]
    rows = []
    for trainee in trainees:
        last = trainee.epochs[-1]
        against = last["test_perplexity"] / reference["test_perplexity"]
        faster = reference["seconds_per_epoch"] / last["seconds_per_epoch"]
        rows.append(
            (trainee.name, last["test_perplexity"], f"{100 * (against - 1):+.1f} %", last["seconds_per_epoch"], faster)
        )
    print(harness.table(rows, ("system", "test perplexity", "against full", "s per epoch", "times faster")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--body", nargs="+", default=["lstm", "transformer"], choices=["lstm", "transformer"], help="of the model"
    )
    parser.add_argument(
        "--systems", nargs="+", default=["full", "adaptive", "torch_lsh:active=4096"], help="what to compare"
    )
    parser.add_argument("--data", type=Path, default=DATA / "wikitext-2", help="folder of the data")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training data")
    parser.add_argument("--tokens", type=int, help="train on the first tokens only")
    parser.add_argument("--test-tokens", type=int, help="evaluate on the first tokens only")
    parser.add_argument("--width", type=int, default=128, help="of the embedding and the hidden state")
    parser.add_argument("--batch", type=int, default=20, help="sequences per step")
    parser.add_argument("--length", type=int, default=35, help="words per sequence")
    parser.add_argument("--dropout", type=float, default=0.2, help="probability")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument(
        "--head-optimizer", default="adagrad", choices=["adagrad", "adam"], help="optimizer of the output layer"
    )
    parser.add_argument("--head-lr", type=float, default=0.05, help="learning rate of the output layer")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradients")
    parser.add_argument("--seed", type=int, default=1, help="of weights, order and hash functions")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    print(info)
    corpus = Corpus(arguments.data)
    records = [record for body in arguments.body for record in run(corpus, body, arguments)]
    harness.write_json([{"benchmark": "language_model", "machine": info, **r} for r in records], arguments.json)


if __name__ == "__main__":
    main()
