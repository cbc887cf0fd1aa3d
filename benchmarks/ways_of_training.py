"""One small model with a wide head, trained in many ways: loops, compilers, trainers. The systems of everywhere.py.

A way takes a :class:`Setting`, trains on its batches, and leaves everything else to its tool. The batches note when
each was fetched: a step lasts from one fetch to the next, whatever the tool does in between. While a batch is fetched,
another system takes a step, so that both see the same machine.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import torch_lsh
from torch_lsh import LSHConfig

WARM_UP = 5  # steps


@dataclass
class Setting:
    """What is trained. ``lsh``: with torch_lsh's layer and optimizer, or with PyTorch's."""

    rows: int
    width: int
    batch: int
    active: int
    steps: int
    lsh: bool = True
    processes: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        self.config = LSHConfig(active=min(self.active, self.rows))
        self.batches = Batches(self)
        self.layout: torch.layout | None = None
        self.path: str | None = None

    def model(self) -> Model:
        torch.manual_seed(0)
        model = Model(self.width, nn.Linear(self.width, self.rows))
        return self.watch(self.sparsify(model))

    def sparsify(self, model: Any) -> Any:
        if self.lsh:
            torch_lsh.sparsify_(model, self.config, filter_fn=lambda module, name: name.endswith("head"))
        return model

    def watch(self, model: Any, head: nn.Module | None = None) -> Any:
        """Notes the layout of the head's gradients, and how its last loss was computed."""
        head = model.head if head is None else head

        def note(weight: Tensor) -> None:
            self.layout = weight.grad.layout if weight.grad is not None else None
            if hasattr(head, "paths"):
                self.path = head.paths.last
            elif hasattr(head, "sampler"):  # a row-sharded layer
                self.path = "sampled" if head.sampler.draws > 0 else "dense"
            else:
                self.path = "nn.Linear"

        head.weight.register_post_accumulate_grad_hook(note)
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        kind, options = self.kind_of_optimizer()
        return kind(model.parameters(), **options)

    def kind_of_optimizer(self) -> tuple[Any, dict[str, Any]]:
        if self.lsh:
            return torch_lsh.optim.Adam, {"lr": 1e-3}
        return torch.optim.Adam, {"lr": 1e-3, "fused": True}


class Model(nn.Module):
    """Inputs ``[B, width]`` to logits ``[B, rows]``; to a loss where labels are given, as Trainer wants it."""

    def __init__(self, width: int, head: nn.Linear) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = head

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.trunk(x))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels)}


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of activations and labels, labels drawn by Zipf's law; made beforehand, as workers make them."""

    def __init__(self, setting: Setting, distinct: int = 20) -> None:
        generator = torch.Generator().manual_seed(setting.rank)
        size = (distinct, setting.batch // setting.processes)
        self.x = torch.randn(*size, setting.width, generator=generator)
        ranks = torch.rand(*size, generator=generator).mul_(torch.log(torch.tensor(float(setting.rows)))).exp_()
        self.y = ranks.long().clamp_(1, setting.rows) - 1
        self.steps = setting.steps
        self.marks: list[Mark] = []
        self.other: Callable[[], object] = lambda: None
        self.seconds_of_other: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if number >= self.steps:
            raise IndexError
        self.mark()
        return self.x[number % len(self.x)], self.y[number % len(self.x)]

    def mark(self) -> None:
        """Between two steps: the other system takes one."""
        end, cpu_at_end = time.perf_counter(), time.process_time()
        with torch.enable_grad():
            self.other()
        begin = time.perf_counter()
        self.seconds_of_other.append(begin - end)
        self.marks.append(Mark(end, begin, cpu_at_end, time.process_time(), sent_over_loopback()))

    def spent(self) -> Spent:
        """What every step after the warm-up took."""
        first = min(WARM_UP, len(self.marks) // 3)
        pairs = list(zip(self.marks, self.marks[1:]))[first:]
        return Spent(
            [after.end - before.begin for before, after in pairs],
            [after.cpu_at_end - before.cpu_at_begin for before, after in pairs],
            [after.sent - before.sent for before, after in pairs],
            self.seconds_of_other[first:],
        )


class Mark(NamedTuple):
    """When a step ended, and when the next one began, by the clock and by the CPU time of this process; bytes sent."""

    end: float
    begin: float
    cpu_at_end: float
    cpu_at_begin: float
    sent: int


class Spent(NamedTuple):
    """Per step: seconds, CPU seconds of this process, bytes that all processes sent, seconds of the other system."""

    seconds: list[float]
    cpu: list[float]
    sent: list[int]
    of_other: list[float]


def sent_over_loopback() -> int:
    statistics = Path("/sys/class/net/lo/statistics/tx_bytes")
    return int(statistics.read_text()) if statistics.exists() else 0


def loop(
    loss_of: Callable[..., Tensor], optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]
) -> None:
    for x, y in batches:
        loss_of(x, y).backward()
        optimizer.step()
        optimizer.zero_grad()


# --- loops of one's own -----------------------------------------------------------------------------------------------


def eager(setting: Setting) -> None:
    model = setting.model()
    loop(lambda x, y: F.cross_entropy(model(x), y), setting.optimizer(model), setting.batches)


def eager_step(setting: Setting) -> Callable[[], None]:
    """A step of :func:`eager` per call."""
    model = setting.model()
    optimizer = setting.optimizer(model)
    batches = itertools.cycle(zip(setting.batches.x, setting.batches.y))
    return lambda: loop(lambda x, y: F.cross_entropy(model(x), y), optimizer, [next(batches)])


def compiled(setting: Setting) -> None:
    model = setting.model()
    graph = torch.compile(model)
    loop(lambda x, y: F.cross_entropy(graph(x), y), setting.optimizer(model), setting.batches)


def compiled_with_loss(setting: Setting) -> None:
    model = setting.model()
    loop(torch.compile(lambda x, y: F.cross_entropy(model(x), y)), setting.optimizer(model), setting.batches)


def compiled_whole(setting: Setting) -> None:
    model = setting.model()

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        h = model.trunk(x)
        return model.head.cross_entropy(h, y) if setting.lsh else F.cross_entropy(model.head(h), y)

    loop(torch.compile(loss_of, fullgraph=True), setting.optimizer(model), setting.batches)


def functional(setting: Setting) -> None:
    model = Model(setting.width, nn.Linear(setting.width, setting.rows))
    setting.watch(model)
    if setting.lsh:
        torch_lsh.sampler_of(model.head.weight, setting.config)
        from torch_lsh import linear_cross_entropy
    else:
        from torch.nn.functional import linear_cross_entropy  # PyTorch 2.13 or newer
    loop(
        lambda x, y: linear_cross_entropy(model.trunk(x), model.head.weight, y, linear_bias=model.head.bias),
        setting.optimizer(model),
        setting.batches,
    )
    if setting.lsh:
        setting.path = "sampled" if torch_lsh.sampler_of(model.head.weight).draws == setting.steps else "dense"


class TiedModel(nn.Module):
    """Scores items by the embedding of the same items; the mean embedding of some items is the input."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.body = Model(width, nn.Linear(width, rows))
        self.body.head.weight = self.embedding.weight

    def forward(self, items: Tensor) -> Tensor:
        return self.body(self.embedding(items).mean(1))


def tied(setting: Setting) -> None:
    torch.manual_seed(0)
    model = setting.sparsify(TiedModel(setting.rows, setting.width))
    setting.watch(model.body)
    items = itertools.cycle(torch.randint(setting.rows, (20, setting.batch, 8)))
    loop(lambda x, y: F.cross_entropy(model(next(items)), y), setting.optimizer(model), setting.batches)


def autocast(setting: Setting) -> None:
    model = setting.model()

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), y)

    loop(loss_of, setting.optimizer(model), setting.batches)


def bfloat16_weights(setting: Setting) -> None:
    model = setting.model().to(torch.bfloat16)
    loop(lambda x, y: F.cross_entropy(model(x.bfloat16()), y), setting.optimizer(model), setting.batches)


# --- trainers ---------------------------------------------------------------------------------------------------------


def lightning(setting: Setting) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = setting.model()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return setting.optimizer(self.model)

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(setting.batches, batch_size=None))


def accelerate(setting: Setting) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = setting.model()
    loader = DataLoader(setting.batches, batch_size=1, collate_fn=lambda batches: batches[0])
    model, optimizer, loader = accelerator.prepare(model, setting.optimizer(model), loader)
    for x, y in loader:
        accelerator.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def trainer(setting: Setting) -> None:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(folder, per_device_train_batch_size=1, **_SILENT)
        transformers.Trainer(
            setting.model(),
            arguments,
            data_collator=lambda batches: dict(zip(("x", "labels"), batches[0])),
            train_dataset=setting.batches,
            optimizer_cls_and_kwargs=setting.kind_of_optimizer(),
        ).train()


_SILENT = {
    "use_cpu": True,
    "num_train_epochs": 1,
    "max_grad_norm": 0,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "dataloader_pin_memory": False,
    "remove_unused_columns": False,
}


def language_model(setting: Setting) -> nn.Module:
    """A random GPT-2 of one layer, head tied to the embedding, for sequences of nine tokens."""
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": setting.rows, "n_positions": 9, "n_embd": setting.width, "n_layer": 1, "n_head": 4}
    config = transformers.GPT2Config(**size, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    if setting.lsh:
        torch_lsh.patch(model, setting.config)
    return setting.watch(model, model.lm_head).train()


def token_sequences(setting: Setting) -> Tensor:
    return torch.randint(1, setting.rows, (setting.steps, setting.batch // 8, 9))


def language_model_step(setting: Setting) -> Callable[[], None]:
    """A step of an eager loop per call."""
    model = language_model(setting)
    optimizer = setting.optimizer(model)
    sequences = itertools.cycle(token_sequences(setting))

    def step() -> None:
        ids = next(sequences)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainer_language_model(setting: Setting) -> None:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        options = {**_SILENT, "per_device_train_batch_size": setting.batch // 8}
        transformers.Trainer(
            language_model(setting),
            transformers.TrainingArguments(folder, **options),
            train_dataset=[{"input_ids": ids, "labels": ids} for ids in token_sequences(setting).flatten(0, 1)],
            optimizer_cls_and_kwargs=setting.kind_of_optimizer(),
            callbacks=[_marks(setting)],
        ).train()


def sft_trainer(setting: Setting) -> None:
    import datasets
    import tokenizers
    import transformers
    import trl

    words = {f"w{number}": number for number in range(setting.rows)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")),
        eos_token="w0",
        pad_token="w0",
    )
    with tempfile.TemporaryDirectory() as folder:
        options = {**_SILENT, "per_device_train_batch_size": setting.batch // 8, "remove_unused_columns": True}
        trl.SFTTrainer(
            language_model(setting),
            trl.SFTConfig(folder, bf16=False, activation_checkpointing=False, max_length=9, **options),
            train_dataset=datasets.Dataset.from_dict({"input_ids": token_sequences(setting).flatten(0, 1).tolist()}),
            processing_class=tokenizer,
            optimizer_cls_and_kwargs=setting.kind_of_optimizer(),
            callbacks=[_marks(setting)],
        ).train()


def _marks(setting: Setting) -> Any:
    import transformers

    class Marks(transformers.TrainerCallback):
        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            setting.batches.mark()

    return Marks()


@contextlib.contextmanager
def silence() -> Any:
    """Trainers print and log; dense systems are dense on purpose."""
    logging.disable(logging.WARNING)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
