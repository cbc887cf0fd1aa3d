"""Active sets that one operator draws, against those of its parts in turn, which a stopwatch asks for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from twins.samples import SAMPLES

from torch_lsh import FixedInterval, HashTableConfig, LSHConfig, LSHLinear, ops, optim

SETTINGS = {
    "default": {},
    "no carried rows": {"carry": 0.0},
    "sets of samples": {"scope": "sample"},
    "by shared buckets": {"index": HashTableConfig(selection="frequency", min_matches=2)},
    "first met": {"index": HashTableConfig(selection="vanilla")},
    "angles": {"index": HashTableConfig(mips=False)},
    "re-hashed": {"rehash": FixedInterval(2)},
    "codes of more than 8 bits": {"index": HashTableConfig(hashes_per_table=9)},
}


def losses(settings: dict, watched: bool, dtype: torch.dtype = torch.float32) -> list[float]:
    torch.manual_seed(0)
    layer = LSHLinear(8, 3_000, dtype=dtype, config=LSHConfig(active=64, **settings))
    layer.watch(watched)
    optimizer = optim.Adam(layer.parameters(), lr=1e-2)
    found = []
    for _ in range(4):
        x, y = torch.randn(7, 8, dtype=dtype), torch.randint(3_000, (7,))
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert layer.sampler.tables.simhash_tables is not None
    assert ("look-up" in layer.stats().milliseconds) == watched
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_as_its_parts(settings, dtype):
    assert losses(settings, watched=False, dtype=dtype) == losses(settings, watched=True, dtype=dtype)


@pytest.mark.parametrize("options", [{"hash": "dwta"}, {"probes": 2}, {"sketch_bits": 60}], ids=str)
def test_other_look_ups_have_no_simhash_tables(options):
    layer = LSHLinear(8, 3_000, config=LSHConfig(active=64, index=HashTableConfig(**options)))
    F.cross_entropy(layer(torch.randn(7, 8)), torch.arange(7))
    assert layer.sampler.tables.simhash_tables is None


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("projections", torch.zeros(5, 8), r"projections has shape \[5, 8\]; wanted hashes_per_table columns"),
        ("hashes_per_table", 1, r"projections has shape .*; wanted hashes_per_table columns"),
        ("labels", torch.zeros(9, 1, dtype=torch.int64), "first and every choose .* samples of x"),
        ("num_rows", 3, "ids holds row"),
        ("row_codes", torch.zeros(20, 0, dtype=torch.int32), r"row_codes has shape \[20, 0\]; wanted 3 in dimension 1"),
        ("row_codes", torch.zeros(20, 2, dtype=torch.int32), r"row_codes has shape \[20, 2\]; wanted 3 in dimension 1"),
    ],
)
def test_errors_name_the_argument(name, wrong, message):
    names = [argument.name for argument in torch.ops.torch_lsh.draw_hashed_rows.default._schema.arguments]
    arguments = dict(zip(names, SAMPLES["draw_hashed_rows"]()[1].arguments))
    arguments[name] = wrong
    with pytest.raises(RuntimeError, match=message):
        ops.draw_hashed_rows(**arguments)
