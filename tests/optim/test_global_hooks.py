"""What importing the package changes in PyTorch, against the list in its docstring."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import torch
from torch import nn

import torch_lsh
from torch_lsh import optim
from torch_lsh.row_sparse.changed_rows import ChangedRows

IMPORT = """
import json, torch
from torch.optim import optimizer

def registered():
    kernels = set()
    for key in torch._C.DispatchKey.__members__:
        try:
            names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
        except RuntimeError:  # not a key of kernels
            continue
        kernels.update(f"{key} {name}" for name in names if name.startswith("aten::"))
    return kernels

def hooks():
    found = (
        optimizer._global_optimizer_pre_hooks,
        optimizer._global_optimizer_post_hooks,
        torch.nn.modules.module._global_module_registration_hooks,
    )
    return [sorted(hook.__name__ for hook in some.values()) for some in found]

before = registered(), hooks(), torch.get_num_threads(), torch.get_default_dtype()
import torch_lsh
after = registered(), hooks(), torch.get_num_threads(), torch.get_default_dtype()
assert before[2:] == after[2:]
print(json.dumps([sorted(after[0] - before[0]), before[1], after[1]]))
"""


def test_the_docstring_lists_all_changes():
    output = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout
    kernels, hooks_before, hooks_after = json.loads(output)
    assert hooks_before == [[], [], []]
    before, after = ["give_dense_gradients", "raise_versions", "transpose_state"], ["raise_versions"]
    assert hooks_after == [before, after, ["tell_replaced"]]
    listed = set(re.findall(r"``(aten::[\w.]+)``", torch_lsh.__doc__))
    assert {f"SparseCPU {name}" for name in listed} >= set(kernels)
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "SparseCPU") for name in listed)


def test_fused_steps_of_pytorch_raise_versions():
    moved, still = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    for fused in (True, False):
        optimizer = torch.optim.Adam([moved, still], fused=fused)
        moved.grad = torch.ones(3, 2)
        before = moved._version, still._version
        optimizer.step()
        assert moved._version > before[0]
        assert still._version == before[1]


def test_rows_are_known_after_a_step_of_our_optimizers_with_fused():
    weight, bias = nn.Parameter(torch.zeros(9, 2)), nn.Parameter(torch.zeros(2))
    changed, version = ChangedRows(weight), bias._version
    weight.grad, bias.grad = torch.sparse_coo_tensor([[3]], torch.ones(1, 2), (9, 2)), torch.ones(2)
    optim.Adam([weight, bias], fused=True).step()
    assert changed.take().tolist() == [3]
    assert bias._version > version
