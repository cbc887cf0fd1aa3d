"""Settings of an index: checks, defaults, names."""

from __future__ import annotations

import pytest
import torch

from torch_lsh import HashTableConfig, LSHConfig, PartitionConfig, SignCodeConfig
from torch_lsh.index.config import INDEX_NAMES, named_index_config
from torch_lsh.index.hash_tables import HashTableIndex
from torch_lsh.index.partition import PartitionIndex
from torch_lsh.index.sign_codes import SignCodeIndex


@pytest.mark.parametrize("name", INDEX_NAMES)
def test_every_name_makes_an_index(name):
    config = named_index_config(name)
    assert config.name == name
    kinds = {"learned": PartitionIndex, "sign_codes": SignCodeIndex}
    index = config.make(300, 8, seed=5)
    assert type(index) is kinds.get(name, HashTableIndex)
    assert (index.num_rows, index.in_features, index.seed, index.is_built) == (300, 8, 5, False)
    assert LSHConfig.from_options(name, active=7) == LSHConfig(active=7, index=config)


def test_settings_reach_the_index():
    config = HashTableConfig(
        "dwta", 3, 7, 20, probes=2, selection="vanilla", min_matches=2, bucket_policy="fifo", mips=True
    )
    index = config.make(300, 8, seed=1)
    assert (index.hash, index.hashes_per_table, index.num_tables, index.bucket_size) == ("dwta", 3, 7, 20)
    assert (index.probes, index.selection, index.min_matches, index.bucket_policy) == (2, "vanilla", 2, "fifo")
    assert index.mips
    assert PartitionConfig(4, probes=2).make(300, 8, seed=0).examined == 38
    assert HashTableConfig(insert_labels=True).selection_mode == "frequency"
    assert HashTableConfig().selection_mode == "ranked"


def test_repr_names_what_is_not_the_default():
    assert repr(HashTableConfig(hash="dwta", probes=4)) == "HashTableConfig(hash='dwta', probes=4)"
    assert repr(SignCodeConfig()) == "SignCodeConfig()"


def test_which_inputs_are_kept():
    assert HashTableConfig().query_history == (4, 64, 64)
    assert HashTableConfig(mips=True, balance=True).query_history == (1, 512, 512)
    assert PartitionConfig().query_history == (4, 64, 1024)
    assert not PartitionConfig().insert_labels


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HashTableConfig(hash="md5"), "hash is 'md5'; wanted one of 'simhash', 'simhash_hadamard'"),
        (lambda: HashTableConfig(selection="best"), "selection is 'best'; wanted one of 'auto', 'ranked'"),
        (lambda: HashTableConfig(bucket_policy="lifo"), "bucket_policy is 'lifo'"),
        (lambda: HashTableConfig(num_tables=0), "num_tables is 0; wanted a positive int or None"),
        (lambda: HashTableConfig(hashes_per_table=-1), "hashes_per_table is -1"),
        (lambda: HashTableConfig(bucket_size=2.5), "bucket_size is 2.5"),
        (lambda: HashTableConfig(num_tables=True), "num_tables is True"),
        (lambda: HashTableConfig(num_tables=10**9), "num_tables is 1000000000; wanted at most 4096"),
        (lambda: HashTableConfig(hashes_per_table=31), "hashes_per_table is 31; wanted at most 30"),
        (lambda: HashTableConfig(bucket_size=2**31), "bucket_size is 2147483648; wanted at most 2147483647"),
        (lambda: HashTableConfig(probes=10**9), "probes is 1000000000; wanted at most 4096"),
        (lambda: HashTableConfig(sketch_bits=10**6), "sketch_bits is 1000000; wanted at most 65536"),
        (lambda: PartitionConfig(hashes_per_table=21), "hashes_per_table is 21; wanted at most 20"),
        (lambda: HashTableConfig(probes=0), "probes is 0; wanted a positive int"),
        (lambda: HashTableConfig(min_matches=1.5), "min_matches is 1.5; wanted a positive int"),
        (lambda: HashTableConfig(sketch_bits=-1), "sketch_bits is -1; wanted an int, 0 or more"),
        (lambda: HashTableConfig(balance=True), "balance is True and mips is False; wanted mips=True"),
        (lambda: HashTableConfig(selection="ranked", insert_labels=True), "which ignores inserted labels"),
        (lambda: HashTableConfig(mips="yes"), "mips is 'yes'; wanted True or False"),
        (lambda: HashTableConfig(mips=True, balance=1), "balance is 1"),
        (lambda: HashTableConfig(insert_labels=None), "insert_labels is None"),
        (lambda: PartitionConfig(hashes_per_table=0), "hashes_per_table is 0; wanted a positive int or None"),
        (lambda: PartitionConfig(probes=0), "probes is 0; wanted a positive int or None"),
        (lambda: PartitionConfig(num_tables=4), "unexpected keyword argument 'num_tables'"),
        (lambda: named_index_config("sha256"), "hash is 'sha256'; wanted one of 'simhash'"),
        (lambda: LSHConfig(index="simhash"), "index is 'simhash'; wanted a HashTableConfig, PartitionConfig"),
    ],
)
def test_settings_that_mean_nothing(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize(
    "config",
    [
        HashTableConfig(),
        HashTableConfig(hash="dwta", hashes_per_table=2, num_tables=50, bucket_size=100, mips=True, sketch_bits=64),
        PartitionConfig(hashes_per_table=6),
        SignCodeConfig(),
    ],
)
def test_bytes_are_known_before_an_index_is_made(config):
    index = config.make(2000, 32, seed=0)
    index.build(torch.randn(2000, 32))
    assert 0.5 * index.nbytes < config.nbytes(2000, 32) < 2 * index.nbytes
