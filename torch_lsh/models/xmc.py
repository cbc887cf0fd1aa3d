"""XMCClassifier: the SLIDE model, sparse features -> hidden ReLU layer -> very many labels."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from .. import optim
from ..config import LSHConfig
from ..data import XMCDataset, collate_xmc
from ..index.config import INDEX_CONFIGS
from ..metrics import PrecisionAtK
from ..nn import EmbeddingBag, LSHLinear, QuantizedLinear
from ..nn.logits.targets import as_target
from ..rehash import Drift, ExponentialBackoff, FixedInterval

FORMAT = "torch_lsh.XMCClassifier/1"
_POLICIES = {policy.__name__: policy for policy in (FixedInterval, ExponentialBackoff, Drift)}


class XMCClassifier(nn.Module):
    """Sparse features -> ``hidden`` ReLU units -> ``num_labels`` logits, trained with softmax cross entropy.

    The model of SLIDE (Chen et al., MLSys 2020) and of BOLT on Amazon-670K. The labels of a row share its target
    distribution equally.

    Args:
        num_features: F.
        num_labels: N.
        hidden: width of the hidden layer.
        config: of the output layer; default: ``LSHConfig()``.
        dense: an ``nn.Linear`` output layer, for comparison.

    >>> from torch_lsh.data import synthetic_xmc
    >>> train, test = synthetic_xmc(512, 64, num_features=2_000, num_labels=5_000)
    >>> model = XMCClassifier(2_000, 5_000, hidden=16)
    >>> history = model.fit(train, epochs=1, eval_dataset=test, progress=False)
    >>> sorted(history[0])
    ['epoch', 'loss', 'precision@1', 'precision@3', 'precision@5', 'samples_per_second', 'seconds']
    >>> scores, classes = model.predict(test, k=3)
    >>> classes.shape
    torch.Size([64, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_labels: int,
        hidden: int = 128,
        config: LSHConfig | None = None,
        dense: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("num_features", num_features), ("num_labels", num_labels), ("hidden", hidden)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; wanted a positive int")
        self.dense = dense
        self.input = EmbeddingBag(num_features, hidden, mode="sum")
        # Rows have some tens of features of length 1 in all, so unit outputs ask for this scale.
        nn.init.normal_(self.input.weight, std=hidden**-0.5)
        self.input_bias = nn.Parameter(torch.zeros(hidden))
        self.output: nn.Linear | QuantizedLinear
        self.output = nn.Linear(hidden, num_labels) if dense else LSHLinear(hidden, num_labels, config=config)

    @property
    def num_features(self) -> int:
        return self.input.num_embeddings

    @property
    def num_labels(self) -> int:
        return self.output.out_features

    def hidden(self, features: Tensor) -> Tensor:
        """The hidden activations ``[B, hidden]`` of a sparse CSR batch ``[B, num_features]``."""
        return F.relu(self.input(features) + self.input_bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[B, num_labels]`` (lazy, unless the model is dense) of a sparse CSR batch."""
        return self.output(self.hidden(features))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross entropy against labels ``[B, P]`` padded with -100, a mean over rows that have labels."""
        logits = self(features)
        if not self.dense:
            return F.cross_entropy(logits, labels)
        # The same without a dense target of the shape of the logits.
        target = as_target(labels, logits.shape[:1], self.num_labels, -100, logits.dtype)
        assert target is not None
        log_p = logits.gather(1, target.labels.clamp(min=0)) - logits.logsumexp(1, keepdim=True)
        return -(target.shares * log_p).sum() / target.shares.sum()

    # --- training ---

    def fit(
        self,
        train_dataset: XMCDataset,
        *,
        epochs: int,
        batch_size: int = 256,
        lr: float = 1e-3,
        eval_dataset: XMCDataset | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume: bool = True,
        max_steps: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        progress: bool = True,
        callbacks: Sequence[Callable[[], object]] = (),
    ) -> list[dict[str, float]]:
        """Trains with Adam.

        With a ``checkpoint`` path the state of the run is written there at the end of every epoch and every
        ``checkpoint_every`` steps, to a temporary file first. A run that finds the file goes on from it, with the same
        result as one that was never interrupted and has the same checkpoint schedule.

        Args:
            train_dataset: rows to train on; rows without labels add nothing.
            epochs: passes over the data.
            batch_size: rows per step.
            lr: Adam's learning rate.
            eval_dataset: rows on which precision@1/3/5 is measured after every epoch.
            checkpoint: file of the run's state.
            checkpoint_every: steps between checkpoints within an epoch.
            resume: whether to go on from ``checkpoint`` if it exists.
            max_steps: stop after so many steps in this call (the history then ends with the last whole epoch).
            num_workers: of the DataLoader.
            seed: of the order of the rows.
            progress: show a progress bar (needs tqdm).
            callbacks: called after every step (:class:`torch_lsh.StatsWriter`, ``scheduler.step``, ...); their time
                counts as training.

        Returns:
            A dict per epoch: epoch, loss, seconds (of training), samples_per_second, precision@k.

        Raises:
            ValueError: an argument does not fit, the data does not fit the model, or the checkpoint is damaged or
                belongs to another run (model, data or schedule); then nothing was trained.
            OSError: the checkpoint cannot be written.
        """
        # What would go wrong after an epoch of hours is looked at before it begins.
        self._check_dataset(train_dataset)
        if eval_dataset is not None:
            self._check_dataset(eval_dataset)
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ValueError(f"checkpoint_every is {checkpoint_every}; wanted at least 1")
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None:
            check_can_write(path)
            self._configuration()
        run = _Run(self, train_dataset, batch_size, lr, seed)
        if path is not None and resume and path.exists():
            run.load(path)
        steps, stop = 0, max_steps is not None and max_steps < 1
        while run.epoch < epochs and not stop:
            with _progress_bar(run, progress) as bar:
                for features, labels in run.batches(num_workers):
                    start = time.perf_counter()
                    run.step(features, labels)
                    for callback in callbacks:
                        callback()
                    run.seconds += time.perf_counter() - start
                    steps += 1
                    if run.position % 10 == 0:
                        bar.set_postfix_str(f"loss {run.loss_sum / run.position:.3f}")
                    bar.update()
                    stop = max_steps is not None and steps >= max_steps
                    last = run.position == run.steps_per_epoch
                    if path is not None and not last and checkpoint_every and run.position % checkpoint_every == 0:
                        run.save(path)
                    if stop and not last:
                        return run.history
            run.end_epoch(eval_dataset)
            if path is not None:
                run.save(path)
        return run.history

    # --- inference ---

    @torch.no_grad()
    def predict(self, rows: XMCDataset | Tensor, k: int = 5, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """The best ``k`` labels of each row, exactly: scores (logits) and label ids, both ``[rows, k]``.

        Args:
            rows: a dataset, or a sparse CSR tensor ``[rows, num_features]``.
        """
        if not 1 <= k <= self.num_labels:
            raise ValueError(f"k is {k}; wanted 1 to {self.num_labels}")
        results = [self(features).topk(k) for features, _ in self._inference_batches(rows, batch_size)]
        if not results:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        return torch.cat([result.values for result in results]), torch.cat([result.indices for result in results])

    @torch.no_grad()
    def evaluate(self, dataset: XMCDataset, ks: Sequence[int] = (1, 3, 5), batch_size: int = 256) -> dict[str, float]:
        """Exact precision@k over the rows that have labels, as ``{"precision@1": ...}``."""
        metric = PrecisionAtK(ks)
        found = min(max(ks), self.num_labels)
        for features, labels in self._inference_batches(dataset, batch_size):
            best = self(features).topk(found).indices
            metric.update(F.pad(best, (0, max(ks) - found), value=-1), labels)
        return {f"precision@{k}": value for k, value in metric.compute().items()}

    def _inference_batches(self, rows: XMCDataset | Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        self._check_dataset(rows)
        if isinstance(rows, Tensor):
            yield rows, torch.empty(rows.shape[0], 0, dtype=torch.int64)
            return
        training = self.training
        self.eval()
        try:
            yield from DataLoader(rows, batch_size, collate_fn=collate_xmc)
        finally:
            self.train(training)

    def _check_dataset(self, rows: XMCDataset | Tensor) -> None:
        if isinstance(rows, Tensor):
            if rows.layout is not torch.sparse_csr or rows.dim() != 2 or rows.shape[1] != self.num_features:
                raise ValueError(f"rows has shape {tuple(rows.shape)}; wanted sparse CSR [B, {self.num_features}]")
        elif rows.num_features != self.num_features or rows.num_labels > self.num_labels:
            raise ValueError(
                f"the data has {rows.num_features} features and {rows.num_labels} labels; "
                f"the model takes {self.num_features} and {self.num_labels}"
            )

    # --- files ---

    def _configuration(self) -> dict[str, Any]:
        config = None
        if isinstance(self.output, LSHLinear):
            config = asdict(self.output.config)
            policy = self.output.config.rehash
            if type(policy).__name__ not in _POLICIES:
                raise ValueError(f"rehash is {policy!r}; only {', '.join(_POLICIES)} can be written to a file")
            config["index"] = {"kind": type(self.output.config.index).__name__, **config["index"]}
            config["rehash"] = {"policy": type(policy).__name__, **asdict(policy)}  # type: ignore[call-overload]
        return {
            "num_features": self.num_features,
            "num_labels": self.num_labels,
            "hidden": self.input.embedding_dim,
            "dense": self.dense,
            "config": config,
            "quantized": isinstance(self.output, QuantizedLinear),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes configuration and weights to one file, by way of a temporary one."""
        content = {"format": FORMAT, "configuration": self._configuration(), "weights": self.state_dict()}
        _write(content, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> XMCClassifier:
        """Reads what :meth:`save` wrote. Nothing in the file is executed.

        Raises:
            ValueError: the file is damaged or not a model.
        """
        content = _read(Path(path), FORMAT)
        try:
            configuration = dict(content["configuration"])
            config = configuration.pop("config")
            quantized = configuration.pop("quantized", False)
            if config is not None:
                policy = dict(config.pop("rehash"))
                index = dict(config.pop("index"))
                config = LSHConfig(
                    **config,
                    rehash=_POLICIES[policy.pop("policy")](**policy),
                    index=INDEX_CONFIGS[index.pop("kind")](**index),
                )
            with torch.device("meta"):
                model = cls(**configuration, config=config)
            if quantized:
                model.output = QuantizedLinear(model.input.embedding_dim, model.num_labels)
                model.eval()
            model.load_state_dict(content["weights"], assign=True)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold a model that this version knows: {error}") from error
        return model


def check_can_write(path: Path) -> None:
    """Raises the OSError that writing the file would end in, where that can be told before.

    >>> check_can_write(Path("no/such/folder/model.pt"))
    Traceback (most recent call last):
    FileNotFoundError: no/such/folder/model.pt cannot be written: there is no folder no/such/folder
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder")


def _write(content: dict[str, Any], path: Path) -> None:
    check_can_write(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    except RuntimeError as error:  # torch's words for a full disk
        raise OSError(f"{path} could not be written (is the disk full?): {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_archive(path: Path) -> Any:
    """What ``torch.save`` wrote; nothing in the file is executed.

    Raises:
        ValueError: the file is damaged or holds more than tensors and settings.
    """
    with open(path, "rb") as file:  # an OSError is not about the content
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # torch.load does not look at the checksums
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            return torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:  # torch's words advise to execute what is in the file
            raise ValueError(f"{path} was not written by torch_lsh: it holds more than tensors and settings") from error
        except Exception as error:  # zipfile and torch raise many kinds
            raise ValueError(f"{path} is damaged or was not written by torch_lsh: {error}") from error


def _read(path: Path, wanted_format: str) -> dict[str, Any]:
    content = read_archive(path)
    if not isinstance(content, dict) or content.get("format") != wanted_format:
        raise ValueError(f"{path} is not of the format {wanted_format}")
    return content


class _Order(Sampler[list[int]]):
    """The batches of an epoch from a position on; the order is a function of seed and epoch."""

    def __init__(self, rows: int, batch_size: int, seed: int, epoch: int, position: int) -> None:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        self._batches = torch.randperm(rows, generator=generator).split(batch_size)[position:]

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _Run:
    """The state of a training run: everything that a checkpoint holds."""

    _FORMAT = "torch_lsh.XMCClassifier.fit/1"

    def __init__(self, model: XMCClassifier, dataset: XMCDataset, batch_size: int, lr: float, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; wanted at least 1")
        if len(dataset) == 0:
            raise ValueError("the training data has no rows")
        self.model, self.dataset = model, dataset
        self.optimizer = optim.Adam(model.parameters(), lr=lr)
        rows = dataset.rows
        self.schedule: dict[str, Any] = {
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "rows": len(dataset),
            "features": len(rows.features),
            "labels": len(rows.labels),
        }
        self.steps_per_epoch = -(-len(dataset) // batch_size)
        self.epoch = self.position = 0
        self.loss_sum = self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def batches(self, num_workers: int) -> DataLoader[Any]:
        order = _Order(len(self.dataset), self.schedule["batch_size"], self.schedule["seed"], self.epoch, self.position)
        return DataLoader(self.dataset, batch_sampler=order, collate_fn=collate_xmc, num_workers=num_workers)

    def step(self, features: Tensor, labels: Tensor) -> None:
        self.model.train()
        self.position += 1
        if labels.shape[1] == 0 or bool((labels < 0).all()):
            return  # no row of the batch has a label
        loss = self.model.loss(features, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss.item()

    def end_epoch(self, eval_dataset: XMCDataset | None) -> None:
        entry = {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / max(1, self.position),
            "seconds": self.seconds,
            "samples_per_second": self.schedule["rows"] / self.seconds,
        }
        if eval_dataset is not None:
            entry.update(self.model.evaluate(eval_dataset))
        self.history.append(entry)
        self.epoch, self.position = self.epoch + 1, 0
        self.loss_sum = self.seconds = 0.0

    def save(self, path: Path) -> None:
        content = {
            "format": self._FORMAT,
            "schedule": self.schedule,
            "configuration": self.model._configuration(),
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": [self.epoch, self.position, self.loss_sum, self.seconds],
            "history": self.history,
        }
        _write(content, path)

    def load(self, path: Path) -> None:
        content = _read(path, self._FORMAT)
        for name, here in (("schedule", self.schedule), ("configuration", self.model._configuration())):
            if content[name] != here:
                raise ValueError(f"{path} belongs to a run with {name} {content[name]}; this one has {here}")
        self.model.load_state_dict(content["weights"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.position, self.loss_sum, self.seconds = content["progress"]
        self.history = content["history"]


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        pass

    def set_postfix_str(self, text: str) -> None:
        pass


def _progress_bar(run: _Run, wanted: bool) -> Any:
    if not wanted:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False") from error
    batch_size = run.schedule["batch_size"]
    return tqdm(
        total=run.steps_per_epoch,
        initial=run.position,
        desc=f"epoch {run.epoch + 1}",
        unit="batch",
        postfix=f"batches of {batch_size}",
        mininterval=0.5,
    )
