"""LoRA of PEFT: the head trained as a whole beside adapters, and the head left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from trainers import task

import torch_lsh
from torch_lsh import LSHLinear

peft = pytest.importorskip("peft")


def adapted(modules_to_save=("2",), **options):
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=list(modules_to_save))
    return peft.get_peft_model(task.make_model(**options), config)


def train(model, kind=task.ADAM):
    optimizer = kind[0](model.parameters(), **kind[1])
    task.train(model, optimizer)
    return optimizer


def test_path():
    model = adapted()
    train(model)
    original, head = (module for module in model.modules() if isinstance(module, LSHLinear))
    assert (original.sampler.draws, head.sampler.draws) == (0, task.STEPS)
    moved = (head.weight != original.weight).any(1)
    assert 0 < moved.sum() < task.CLASSES


def test_result():
    """With every row active, that of ``nn.Linear``."""
    model = adapted(active=task.CLASSES)
    train(model, task.SGD)
    torch.manual_seed(2)
    dense = peft.get_peft_model(torch_lsh.densify_(task.make_model()), model.peft_config["default"])
    train(dense, task.SGD)
    task.assert_close(model, dense)


def test_resume(tmp_path):
    """``save_pretrained`` writes adapters and head, with the state of its sampler."""
    whole = adapted()
    optimizer = train(whole)
    whole.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    task.train(whole, optimizer)

    resumed = peft.PeftModel.from_pretrained(task.make_model(), tmp_path, is_trainable=True)
    optimizer = task.make_optimizer(resumed)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    task.train(resumed, optimizer)
    task.assert_same(resumed, whole)


def test_a_head_that_is_left_alone():
    model = adapted(modules_to_save=())
    (head,) = (module for module in model.modules() if isinstance(module, LSHLinear))
    before = head.weight.detach().clone()
    train(model)
    assert head.sampler.draws == task.STEPS
    assert not head.weight.requires_grad
    assert torch.equal(head.weight, before)


def test_adapters_of_the_head_name_the_remedy():
    """LoRA adds dense logits of its own to those of the head."""
    model = peft.get_peft_model(task.make_model(), peft.LoraConfig(r=2, target_modules=["2"]))
    x, y = next(iter(task.batches()))
    with pytest.warns(UserWarning, match="all 2000 outputs of the layer are computed.*modules_to_save"):
        F.cross_entropy(model(x), y).backward()


def test_merging():
    model = adapted().eval()
    x = torch.randn(4, task.WIDTH)
    torch.testing.assert_close(model.merge_and_unload()(x).dense(), model(x).dense())
