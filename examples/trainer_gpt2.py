"""A small GPT-2, head tied to its embedding, in Trainer of transformers: what it was, and with the sampled head.

    pip install transformers accelerate
    python examples/trainer_gpt2.py
    python examples/trainer_gpt2.py --dense

Two lines differ: ``patch`` and the optimizer. The model is random, nothing is downloaded. The text is made here: every
token has a few tokens that may follow it.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch
import transformers
from torch import Tensor

import torch_lsh

LENGTH, WIDTH = 32, 128


def make_model(words: int) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=words, n_positions=LENGTH, n_embd=WIDTH, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )


def make_text(words: int, sequences: int, followers: int = 2, used: int = 500) -> Tensor:
    """Token numbers ``[sequences, LENGTH]``: each token is one of the ``followers`` of the one before."""
    generator = torch.Generator().manual_seed(0)
    used_words = torch.randperm(words, generator=generator)[:used]
    following = torch.randint(used, (used, followers), generator=generator)
    text = torch.randint(used, (sequences, LENGTH), generator=generator)
    choices = torch.randint(followers, (sequences, LENGTH), generator=generator)
    for place in range(1, LENGTH):
        text[:, place] = following[text[:, place - 1], choices[:, place]]
    return used_words[text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", action="store_true", help="the model as it was, with AdamW of PyTorch")
    parser.add_argument("--words", type=int, default=50_000, help="size of the vocabulary")
    parser.add_argument("--sequences", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    model, text = make_model(arguments.words), make_text(arguments.words, arguments.sequences + 64)
    optimizer = torch.optim.AdamW if arguments.dense else torch_lsh.optim.AdamW
    if not arguments.dense:
        torch_lsh.patch(model)  # 1

    def dataset(part: Tensor) -> list[dict[str, Tensor]]:
        return [{"input_ids": ids, "labels": ids} for ids in part]

    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                use_cpu=True,
                num_train_epochs=arguments.epochs,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=16,
                prediction_loss_only=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=dataset(text[64:]),
            eval_dataset=dataset(text[:64]),
            optimizer_cls_and_kwargs=(optimizer, {"lr": 3e-3}),  # 2
        )
        start = time.perf_counter()
        steps = trainer.train().global_step
        print(f"{(time.perf_counter() - start) / steps * 1e3:.0f} ms per step")
        print(f"loss of held-out text: {trainer.evaluate()['eval_loss']:.3f}")  # exact, over all tokens
    torch_lsh.explain(model)


if __name__ == "__main__":
    main()
