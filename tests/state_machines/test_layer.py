"""A layer, its optimizer and its index under any order of what users do to them.

After everything, the layer's values are those of ``nn.Linear``, and its tables, once brought in step, hold every row in
the bucket of its hash code. ``make fuzz`` runs more and longer sequences.
"""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from state_machines.effort import EFFORT
from torch import nn

import torch_lsh
from torch_lsh import HashTableConfig, LSHConfig, LSHLinear, PartitionConfig, SignCodeConfig
from torch_lsh.index.hash_tables import HashTableIndex
from torch_lsh.rehash import Drift, ExponentialBackoff, FixedInterval

pytestmark = pytest.mark.filterwarnings("ignore:torch_lsh")  # of what the rules do on purpose

N, D, B = 60, 8, 4

# Buckets that have room for all rows: tables are the same after updates as after a build.
INDEXES = {
    "tables": HashTableConfig(hashes_per_table=2, num_tables=3, bucket_size=N),
    "fifo": HashTableConfig(hashes_per_table=2, num_tables=3, bucket_size=N, bucket_policy="fifo"),
    "dwta": HashTableConfig(hash="dwta", hashes_per_table=1, num_tables=3, bucket_size=N),
    "labels": HashTableConfig(hashes_per_table=2, num_tables=3, bucket_size=N, insert_labels=True),
    "partition": PartitionConfig(hashes_per_table=3),
    "sign codes": SignCodeConfig(),
}
SCHEDULES = {
    "every step": FixedInterval(1),
    "every third step": FixedInterval(3),
    "backoff": ExponentialBackoff(2),
    "drift": Drift(),
}
OPTIMIZERS = {
    "row-sparse Adam": lambda parameters: torch_lsh.optim.Adam(parameters, lr=0.05),
    "row-sparse SGD": lambda parameters: torch_lsh.optim.SGD(parameters, lr=0.1, momentum=0.5),
    "dense Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
}
BATCHES = st.integers(0, 2**16)


class Failed(Exception):
    """Raised on purpose in the middle of a step."""


class LayerMachine(RuleBasedStateMachine):
    @initialize(
        index=st.sampled_from(sorted(INDEXES)),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        scope=st.sampled_from(["batch", "sample"]),
        bias=st.booleans(),
        schedule=st.sampled_from(sorted(SCHEDULES)),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    )
    def make(self, index, optimizer, scope, bias, schedule, dtype):
        torch.manual_seed(0)
        self.dtype = dtype
        config = LSHConfig(active=20, scope=scope, index=INDEXES[index], rehash=SCHEDULES[schedule])
        self.layer = LSHLinear(D, N, bias=bias, config=config, dtype=dtype)
        self.make_optimizer = OPTIMIZERS[optimizer]
        self.optimizer = self.make_optimizer(self.layer.parameters())
        self.saved = None

    def teardown(self):
        torch.set_num_threads(1)

    def batch(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(B, D, generator=generator).to(self.dtype), torch.randint(N, (B,), generator=generator)

    # --- training ---

    @rule(seed=BATCHES)
    def step(self, seed):
        x, y = self.batch(seed)
        F.cross_entropy(self.layer(x), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @rule(seed=BATCHES)
    def backward_without_a_step(self, seed):
        x, y = self.batch(seed)
        F.cross_entropy(self.layer(x), y).backward()

    @rule()
    def step_without_a_backward(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    @rule(seed=BATCHES)
    def a_class_out_of_range(self, seed):
        x, y = self.batch(seed)
        y[1] = N
        with pytest.raises(IndexError, match=f"class {N}"):
            F.cross_entropy(self.layer(x), y)

    @rule(seed=BATCHES)
    def an_exception_in_the_backward_pass(self, seed):
        x, y = self.batch(seed)
        x.requires_grad_()

        def fail(grad):
            raise Failed

        x.register_hook(fail)
        loss = F.cross_entropy(self.layer(x), y)
        with pytest.raises(Failed):
            loss.backward()

    @rule(seed=BATCHES)
    def an_exception_in_a_step(self, seed):
        self.optimizer.zero_grad()
        x, y = self.batch(seed)
        F.cross_entropy(self.layer(x), y).backward()

        def fail(optimizer, args, kwargs):
            raise Failed

        handle = self.optimizer.register_step_post_hook(fail)
        with pytest.raises(Failed):
            self.optimizer.step()
        handle.remove()

    @rule(training=st.booleans())
    def train(self, training):
        self.layer.train(training)

    @rule(count=st.integers(1, 2))
    def threads(self, count):
        torch.set_num_threads(count)

    # --- the index ---

    @rule(seed=BATCHES)
    def draw(self, seed):
        x, y = self.batch(seed)
        rows = self.layer.sample(x, y).rows
        of_samples = rows if rows.dim() == 2 else rows.expand(B, -1)
        for label, mine in zip(y, of_samples):
            mine = mine[mine >= 0]
            assert label in mine
            assert (mine.diff() > 0).all()
            assert mine[-1] < N

    @rule(full=st.booleans())
    def rehash(self, full):
        self.layer.rehash(full=full)

    # --- weights ---

    @rule(row=st.integers(0, N - 1), seed=BATCHES)
    def edit_a_row(self, row, seed):
        with torch.no_grad():
            self.layer.weight[row] = self.batch(seed)[0][0]

    @rule(seed=BATCHES)
    def edit_unseen(self, seed):
        self.layer.weight.data.copy_(torch.randn(N, D, generator=torch.Generator().manual_seed(seed)))
        self.layer.rehash(full=True)
        self.layer.sampler.forget()

    @rule()
    def save(self):
        file = io.BytesIO()
        torch.save((self.layer.state_dict(), self.optimizer.state_dict()), file)
        self.saved = file.getvalue()

    @rule()
    def load(self):
        if self.saved is not None:
            of_layer, of_optimizer = torch.load(io.BytesIO(self.saved), weights_only=True)
            self.layer.load_state_dict(of_layer)
            self.optimizer.load_state_dict(of_optimizer)

    # --- other layers with the same weights ---

    def replace(self, layer):
        """Goes on with another layer, and the state of the optimizer."""
        state = self.optimizer.state_dict()
        self.layer = layer
        self.optimizer = self.make_optimizer(self.layer.parameters())
        self.optimizer.load_state_dict(state)

    @rule()
    def deep_copy(self):
        self.replace(copy.deepcopy(self.layer))

    @rule()
    def pickled(self):
        self.replace(pickle.loads(pickle.dumps(self.layer)))

    @rule()
    def densify_and_sparsify(self):
        config = self.layer.config
        dense = torch_lsh.densify_(self.layer)
        assert type(dense) is nn.Linear
        self.layer = torch_lsh.sparsify_(dense, config, filter_fn=lambda module, name: True)
        assert type(self.layer) is LSHLinear

    @rule(seed=BATCHES)
    def quantise_a_copy(self, seed):
        x, _ = self.batch(seed)
        quantised = torch_lsh.quantize_(copy.deepcopy(self.layer).eval(), filter_fn=lambda module, name: True)
        values, classes = quantised(x).topk(3)
        logits = F.linear(x.float(), quantised.weight, None if quantised.bias is None else quantised.bias.float())
        tolerance = 1e-4 if self.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(values.float(), logits.topk(3).values, rtol=tolerance, atol=tolerance)
        assert ((classes >= 0) & (classes < N)).all()

    # --- what always holds ---

    @rule(seed=BATCHES)
    def values_are_those_of_nn_linear(self, seed):
        x, y = self.batch(seed)
        training = self.layer.training
        with torch.no_grad():
            logits = F.linear(x, self.layer.weight, self.layer.bias)
            self.layer.eval()
            torch.testing.assert_close(self.layer(x) + 0, logits)
            torch.testing.assert_close(F.cross_entropy(self.layer(x), y), F.cross_entropy(logits, y))
            best = logits.topk(5)
            torch.testing.assert_close(self.layer.topk(x, 5, exact=False, candidates=N).values, best.values)
            self.layer.train(training)

    @rule(seed=BATCHES)
    def look_ups_of_several_threads(self, seed):
        x, _ = self.batch(seed)
        training = self.layer.training
        self.layer.eval()
        with torch.no_grad(), ThreadPoolExecutor(4) as threads:
            best = F.linear(x, self.layer.weight, self.layer.bias).topk(5).values
            found = threads.map(lambda _: self.layer.topk(x, 5, exact=False, candidates=N).values, range(8))
            for values in found:
                torch.testing.assert_close(values, best)
        self.layer.train(training)

    @rule()
    def tables_agree_with_weights(self):
        layer = self.layer
        layer.rehash()
        index = layer.sampler.tables
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        assert index.drift(weight, bias, torch.arange(N)) == 0
        if isinstance(index, HashTableIndex):
            state = index.state_dict()
            for table, buckets in enumerate(state["row_buckets"].T.tolist()):
                for row, bucket in enumerate(buckets):
                    held = state["ids"][table, bucket, : state["counts"][table, bucket]].tolist()
                    assert held.count(row) == 1

    @invariant()
    def nothing_is_broken(self):
        if hasattr(self, "layer"):
            assert all(parameter.isfinite().all() for parameter in self.layer.parameters())


LayerMachine.TestCase.settings = EFFORT
TestLayer = LayerMachine.TestCase
