"""Two processes, each with half of a batch, against one with all of it."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import torch_lsh
from torch_lsh import LSHConfig, LSHLinear
from torch_lsh.distributed import average_gradients
from torch_lsh.distributed.gradients import broadcast_parameters

from .processes import in_processes

D, N, B = 8, 500, 12


def make_model(active=1.0, dtype=torch.float32):
    torch.manual_seed(0)
    head = LSHLinear(D, N, config=LSHConfig(active=active, rehash=torch_lsh.FixedInterval(7)))
    return nn.Sequential(torch_lsh.EmbeddingBag(40, D, mode="sum"), nn.ReLU(), head).to(dtype)


def make_batches(count):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(0, 40, (B, 3), generator=generator), torch.randint(0, N, (B,), generator=generator))
        for _ in range(count)
    ]


def train(model, batches, average, optimizer=torch_lsh.optim.Adam):
    optimizer = optimizer(model.parameters(), lr=0.05)
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
        average(model.parameters())
        optimizer.step()
        optimizer.zero_grad()


def _work(rank):
    half = slice(rank * B // 2, (rank + 1) * B // 2)
    results = {}
    # Every row is active, with row-sparse gradients and with dense ones.
    for name, optimizer in (("ours", torch_lsh.optim.Adam), ("torch", torch.optim.Adam)):
        model = make_model()
        if rank == 1:
            with torch.no_grad():
                model[0].weight.zero_()
        broadcast_parameters(model)
        batches = [(x[half], y[half]) for x, y in make_batches(4)]
        train(model, batches, average_gradients, optimizer)
        results[name] = dict(model.named_parameters())
    for dtype in (torch.float32, torch.bfloat16):
        results[str(dtype)] = _train_sampled(dtype, [(x[half], y[half]) for x, y in make_batches(10)])
    results["kinds"] = _kinds(rank)
    different = [[torch.zeros(3)] * (1 + rank), [torch.zeros(2), torch.zeros(3 + rank)]]
    different.append([torch.zeros(3, dtype=torch.float64 if rank else torch.float32)])
    for parameters, message in zip(different, [r"\[1, 2\] tensors", r"parameters\[1\] is", r"parameters\[0\] is"]):
        with pytest.raises(RuntimeError, match=message):
            average_gradients(parameters)
    return results


def _train_sampled(dtype, batches):
    model, touched = make_model(active=60, dtype=dtype), []

    def average(parameters):
        average_gradients(parameters)
        touched.append(model[2].weight.grad._nnz())

    train(model, batches, average)
    model.eval()
    stats = model[2].stats()
    rehashes = torch.tensor([stats.rehashes, stats.stale_rows])
    return {**dict(model.named_parameters()), "touched": torch.tensor(touched), "rehashes": rehashes}


def _kinds(rank):
    """Gradients of which the processes have different kinds."""
    sparse = torch.sparse_coo_tensor([[1, 1 + rank]], torch.ones(2, 2, 3), (4, 2, 3))
    wants = [
        (None, None),
        (torch.ones(4, 2, 3), None),
        (sparse, None),
        (sparse, torch.ones(4, 2, 3)),
        (sparse, sparse),
        (torch.sparse_coo_tensor([[]], torch.ones(0), (4,)), torch.sparse_coo_tensor([[3]], [5.0], (4,))),
        (torch.sparse_coo_tensor([[2]], torch.ones(1, 0), (4, 0)), None),
    ]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in [(4, 2, 3)] * 5 + [(4,), (4, 0)]]
    for parameter, want in zip(parameters, wants):
        parameter.grad = want[rank]
    average_gradients(parameters)
    return [parameter.grad for parameter in parameters]


def test_two_processes(tmp_path):
    first, second = in_processes(_work, 2, tmp_path)
    for optimizer in ("ours", "torch"):
        alone = make_model()
        train(alone, make_batches(4), lambda parameters: None, (torch_lsh if optimizer == "ours" else torch).optim.Adam)
        for name, wanted in alone.named_parameters():
            torch.testing.assert_close(first[optimizer][name], wanted, rtol=1e-4, atol=1e-5)
    for part in ("ours", "torch", "torch.float32", "torch.bfloat16"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), (part, name)
    assert (first["torch.float32"]["rehashes"] > 0).all()
    before = make_model(active=60).state_dict()
    assert not torch.equal(first["torch.float32"]["2.weight"], before["2.weight"])
    assert (first["torch.float32"]["touched"] < N).all()  # row-sparse to the end
    assert (first["torch.float32"]["touched"] > 60).any()  # of both processes

    everywhere, rows = torch.ones(4, 2, 3), torch.eye(4)[:, :, None, None] * torch.ones(2, 3)
    expected = [
        (None, None),
        (torch.strided, 0.5 * everywhere),
        (torch.sparse_coo, rows[1]),
        (torch.strided, 0.5 * everywhere + rows[1]),
        (torch.sparse_coo, 1.5 * rows[1] + 0.5 * rows[2]),
        (torch.sparse_coo, torch.tensor([0.0, 0.0, 0.0, 2.5])),
        (torch.sparse_coo, torch.zeros(4, 0)),
    ]
    for gradients in (first["kinds"], second["kinds"]):
        for gradient, (layout, wanted) in zip(gradients, expected, strict=True):
            assert (None if gradient is None else gradient.layout) is layout
            assert gradient is None or torch.equal(gradient.to_dense(), wanted)


def test_one_process_and_updates_in_backward(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, (x, y) = make_model(active=60), make_batches(1)[0]
        versions = [parameter._version for parameter in model.parameters()]
        broadcast_parameters(model)
        assert all(parameter._version > version for parameter, version in zip(model.parameters(), versions))
        optimizer = torch_lsh.optim.Adam(model.parameters())
        F.cross_entropy(model(x), y).backward()
        before = copy.deepcopy([parameter.grad.to_dense() for parameter in model.parameters()])
        average_gradients(model.parameters())
        for parameter, wanted in zip(model.parameters(), before):
            assert parameter.grad.is_sparse
            assert torch.equal(parameter.grad.to_dense(), wanted)
        optimizer.param_groups[0]["in_backward"] = True
        with pytest.raises(RuntimeError, match=r"shape \(40, 8\) is updated in the backward pass"):
            average_gradients(model.parameters())
    finally:
        dist.destroy_process_group()
