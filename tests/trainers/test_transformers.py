"""Trainer of transformers: any module that returns its loss, and a causal language model."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import nn
from trainers import language_model, task

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class WithLoss(nn.Module):
    """What Trainer expects of a model: called with the columns of the data set, it returns its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x, labels):
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer(folder, model, dataset, epochs, optimizer=task.ADAM, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=task.BATCH,
        num_train_epochs=epochs,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **{"max_grad_norm": 0, "save_strategy": "no", **options},
    )
    return transformers.Trainer(model, arguments, train_dataset=dataset, optimizer_cls_and_kwargs=optimizer)


def train(folder, epochs=1, resume=False, **options):
    model = task.make_model()
    dataset = [{"x": x, "labels": y} for x, y in task.samples()]
    trainer(folder, WithLoss(model), dataset, epochs, **options).train(resume_from_checkpoint=resume)
    return model


def test_path_and_result(tmp_path):
    model = train(tmp_path)
    task.assert_sampled(model)
    task.assert_same(model, task.trained_by_hand())


def test_resume(tmp_path):
    train(tmp_path, save_strategy="epoch")
    resumed = train(tmp_path, epochs=2, resume=True)
    task.assert_same(resumed, task.trained_by_hand(epochs=2))


def test_torch_compile(tmp_path):
    model = train(tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    task.assert_sampled(model)
    task.assert_same(model, task.trained_by_hand())


def test_the_default_optimizer_names_the_remedy(tmp_path):
    with pytest.warns(UserWarning, match=r"torch_lsh\.optim\.AdamW"):
        train(tmp_path, optimizer=None)


def train_language_model(folder, epochs=1, resume=False, active=100, **options):
    model = language_model.make(active)
    dataset = [{"input_ids": ids, "labels": ids} for ids in language_model.sequences()]
    trainer(folder, model, dataset, epochs, **options).train(resume_from_checkpoint=resume)
    return model


def test_language_model(tmp_path):
    """The head is tied to the embedding: both give one row-sparse gradient."""
    model = train_language_model(tmp_path)
    language_model.assert_sampled(model)
    task.assert_same(model, language_model.trained_by_hand())


def test_language_model_resumes(tmp_path):
    train_language_model(tmp_path, save_strategy="epoch")
    resumed = train_language_model(tmp_path, epochs=2, resume=True)
    task.assert_same(resumed, language_model.trained_by_hand(epochs=2))


def test_checkpoint_loads_without_patch(tmp_path):
    trained = train_language_model(tmp_path, save_strategy="epoch")
    (folder,) = tmp_path.glob("checkpoint-*")
    task.assert_same(transformers.GPT2LMHeadModel.from_pretrained(folder), trained)


def test_label_smoothing_and_clipping(tmp_path):
    """Trainer smooths by log_softmax, gather and sum; with every row active the result is that of ``nn.Linear``."""
    options = {"label_smoothing_factor": 0.1, "max_grad_norm": 0.5}
    language_model.assert_sampled(train_language_model(tmp_path, **options))
    every_row, dense = (
        train_language_model(tmp_path, active=active, optimizer=task.SGD, **options)
        for active in (language_model.VOCABULARY, None)
    )
    task.assert_close(every_row, dense)
