"""SFTTrainer of trl, which reads the head's weight and computes the loss itself."""

from __future__ import annotations

import pytest
from trainers import language_model, task

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")


def tokenizer():
    words = {f"w{number}": number for number in range(language_model.VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")),
        eos_token="w0",
        pad_token="w0",
    )


def train(folder, model, epochs=1, resume=False, optimizer=task.ADAM):
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        max_length=language_model.LENGTH,
        per_device_train_batch_size=task.BATCH,
        num_train_epochs=epochs,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = trl.SFTTrainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_dict({"input_ids": language_model.sequences().tolist()}),
        processing_class=tokenizer(),
        optimizer_cls_and_kwargs=optimizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_path(tmp_path):
    language_model.assert_sampled(train(tmp_path, language_model.make()))


def test_result(tmp_path):
    """With every row active, that of the model without a patch."""
    every_row, dense = (
        train(tmp_path, language_model.make(active), optimizer=task.SGD) for active in (language_model.VOCABULARY, None)
    )
    task.assert_close(every_row, dense)


def test_resume(tmp_path):
    whole = train(tmp_path / "whole", language_model.make(), epochs=2)
    train(tmp_path / "parts", language_model.make())
    resumed = train(tmp_path / "parts", language_model.make(), epochs=2, resume=True)
    task.assert_same(resumed, whole)
