"""XMCClassifier: it learns, its files survive what happens to files, and an interrupted run ends as if it never was."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from torch_lsh import ExponentialBackoff, FixedInterval, HashTableConfig, LSHConfig
from torch_lsh.data import XMCDataset, XMCStream, synthetic_xmc
from torch_lsh.data.xmc import XMCRows, join_rows
from torch_lsh.io import load_safetensors, save_safetensors
from torch_lsh.models import XMCClassifier

F, N = 300, 600
# More active rows than a batch has labels, so that the tables decide; re-hashes fall due between checkpoints.
CONFIG = LSHConfig(active=360, rehash=ExponentialBackoff(initial=2, factor=1.5, maximum=7))


@pytest.fixture(scope="module")
def data():
    return synthetic_xmc(210, 60, F, N)  # 7 batches of 32 an epoch, the last one smaller


def make_model(dense=False, config=CONFIG):
    torch.manual_seed(0)
    return XMCClassifier(F, N, hidden=12, config=config, dense=dense)


def fit(model, train, **options):
    options = {"epochs": 2, "batch_size": 32, "lr": 1e-2, "progress": False, **options}
    history = model.fit(train, **options)
    # how long it took is no part of the result
    return [{k: v for k, v in entry.items() if k not in ("seconds", "samples_per_second")} for entry in history]


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same(model, other):
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def run_python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True], ids=["lsh", "dense"])
def test_learns(dense):
    train, test = synthetic_xmc(1500, 200, num_features=1500, num_labels=200)
    torch.manual_seed(0)
    model = XMCClassifier(1500, 200, 24, LSHConfig(active=50), dense=dense)
    before = model.evaluate(test)["precision@1"]
    history = fit(model, train, epochs=4, batch_size=64, neighbours=0, eval_dataset=test)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert model.evaluate(test) == {k: v for k, v in history[-1].items() if k.startswith("precision")}
    assert before < 0.2  # chance; a few popular labels are in many rows
    assert history[-1]["precision@1"] > 0.6


def test_with_every_row_active_dense_is_the_same_training(data):
    train, test = data
    models = [make_model(config=LSHConfig(active=1.0)), make_model(dense=True)]
    histories = [fit(model, train, eval_dataset=test) for model in models]
    for a, b in zip(*histories, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=0.02)
    for a, b in zip(*map(weights, models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dense", [False, True], ids=["lsh", "dense"])
def test_rows_without_labels_and_without_features(dense):
    """Both are legal in the format: without features the biases decide, without labels there is nothing to learn."""
    features = [[1, 5], [], [2], []]
    labels = [[3], [4, 5], [], []]

    def csr(lists):
        lengths = torch.tensor([len(row) for row in lists])
        start = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return start, torch.tensor([i for row in lists for i in row], dtype=torch.int32)

    feature_start, feature_ids = csr(features)
    dataset = XMCDataset.from_rows(
        XMCRows(feature_start, feature_ids, torch.ones(len(feature_ids)), *csr(labels), F, N)
    )
    model = make_model(dense)
    untouched = model.input.weight[2].clone()
    # a batch of two rows, then one in which nothing has a label
    history = fit(model, dataset, epochs=40, batch_size=2, lr=0.05)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert history[-1]["loss"] < history[0]["loss"]
    assert torch.equal(model.input.weight[2], untouched)
    scores, classes = model.predict(dataset, k=2)
    assert classes[0, 0] == 3
    assert set(classes[1].tolist()) == {4, 5}
    torch.testing.assert_close(scores[1], scores[3])  # neither has a feature
    assert model.evaluate(dataset) == {"precision@1": 1.0, "precision@3": 0.5, "precision@5": pytest.approx(0.3)}


def test_nothing_has_a_label(data):
    rows = data[0].rows
    unlabelled = rows._replace(label_start=torch.zeros_like(rows.label_start), labels=rows.labels[:0])
    model = make_model()
    before = weights(model)
    assert fit(model, XMCDataset.from_rows(unlabelled), epochs=1) == [{"epoch": 1, "loss": 0.0}]
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before))


# --- prediction -------------------------------------------------------------------------------------------------------


def test_predictions_are_the_best_of_the_dense_logits(data):
    _, test = data
    model = make_model()
    model.train()
    rows = test.rows
    features = torch.sparse_csr_tensor(rows.feature_start, rows.features.long(), rows.values, (len(test), F))
    expected = (model.hidden(features) @ model.output.weight.T + model.output.bias).topk(4)
    for scores, classes in (model.predict(test, 4, batch_size=13), model.predict(features, 4)):
        torch.testing.assert_close(scores, expected.values)
        assert torch.equal(classes, expected.indices)
        assert not scores.requires_grad
    assert model.training  # as it was before
    assert model.predict(test, N)[1].sort().values.equal(torch.arange(N).expand(len(test), N))


def test_predictions_for_no_rows():
    empty = synthetic_xmc(0, 0, F, N)[0]
    for rows in (empty, torch.zeros(0, F).to_sparse_csr()):
        scores, classes = make_model().predict(rows, 3)
        assert scores.shape == classes.shape == (0, 3)
        assert classes.dtype is torch.int64


@pytest.mark.parametrize("k", [0, -1, N + 1])
def test_k_out_of_range(data, k):
    with pytest.raises(ValueError, match=f"k is {k}; wanted 1 to {N}"):
        make_model().predict(data[1], k)


def test_fewer_labels_than_the_largest_k():
    train, test = synthetic_xmc(40, 20, F, num_labels=3)
    history = fit(XMCClassifier(F, 3, 4), train, epochs=1, eval_dataset=test)
    assert history[0]["precision@5"] == pytest.approx(0.6 * history[0]["precision@3"])  # all hits are in the first 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(2, F), r"rows has shape \(2, 300\); wanted sparse CSR \[B, 300\]"),
        (torch.zeros(2, F + 1).to_sparse_csr(), r"rows has shape \(2, 301\)"),
        (synthetic_xmc(3, 0, F + 1, N)[0], "the data has 301 features and 600 labels; the model takes 300 and 600"),
    ],
)
def test_data_of_another_width(rows, message):
    with pytest.raises(ValueError, match=message):
        make_model().predict(rows)


# --- the same result, however it is computed --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_workers_of_the_data_loader_change_nothing(data):
    train, test = data
    models = [make_model(), make_model()]
    histories = [fit(model, train, eval_dataset=test, num_workers=n) for model, n in zip(models, (0, 2))]
    assert histories[0] == histories[1]
    assert_same(*models)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_threads_change_nothing(scope):
    """Bit by bit, at sizes at which work is split."""
    train, _ = synthetic_xmc(600, 0, num_features=5_000, num_labels=20_000)
    models = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        models.append(XMCClassifier(5_000, 20_000, 64, LSHConfig(active=1000, scope=scope)))
        fit(models[-1], train, epochs=1, batch_size=200)
    assert_same(*models)


@pytest.mark.parametrize("seed", [0, -3, 2**62])
def test_the_seed_decides_the_order(data, seed):
    def train_with(seed):
        model = make_model()
        fit(model, data[0], epochs=1, seed=seed)
        return model.output.weight

    assert torch.equal(train_with(seed), train_with(seed))
    assert not torch.equal(train_with(seed), train_with(5))


# --- model files ------------------------------------------------------------------------------------------------------


def test_saved_models_predict_the_same(data, tmp_path):
    train, test = data
    config = LSHConfig(index=HashTableConfig(hash="dwta"), active=0.25, scope="sample", rehash=FixedInterval(9), seed=4)
    for model in (make_model(config=config), make_model(dense=True)):
        fit(model, train, epochs=1)
        model.save(tmp_path / "model.pt")
        loaded = XMCClassifier.load(tmp_path / "model.pt")
        assert loaded.configuration() == model.configuration()
        for a, b in zip(loaded.predict(test), model.predict(test), strict=True):
            assert torch.equal(a, b)


def test_a_loaded_model_trains_on_as_the_original_does(data, tmp_path):
    model = make_model()
    fit(model, data[0], epochs=1)
    model.save(tmp_path / "model.pt")
    loaded = XMCClassifier.load(tmp_path / "model.pt")
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    # neither has drawn anything since its tables were built from these weights
    fresh = make_model()
    fresh.mixture = copy.deepcopy(model.mixture)
    fresh.load_state_dict(model.state_dict())
    for other in (loaded, fresh):
        fit(other, data[0], epochs=1)
    assert_same(loaded, fresh)
    for a, b in zip(loaded.predict(data[1]), fresh.predict(data[1]), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pt"
    make_model().save(path)
    return path


def edited(path, edit):
    """Changes tensors and content of a saved model."""
    tensors, metadata = load_safetensors(path)
    content = json.loads(metadata["model"])
    edit(tensors, content, metadata)
    save_safetensors(tensors, path, {**metadata, "model": json.dumps(content)})


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("1 2 3\n0 1:0.5\n"),
    "beginning only": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "last byte missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    # the middle is inside of the weights, where a flipped bit would else just be another number
    "flipped bit": lambda path: path.write_bytes(
        (content := path.read_bytes())[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
    "other tensors": lambda path: torch.save({"weight": torch.zeros(3)}, path),
    "a module": lambda path: torch.save(torch.nn.Linear(1, 1), path),
    "other format": lambda path: edited(path, lambda t, c, m: m.update(format="torch_lsh.XMCClassifier/9")),
    "no content": lambda path: edited(path, lambda t, c, m: c.clear()),
    "unknown setting": lambda path: edited(path, lambda t, c, m: c["config"].update(colour="red")),
    "unknown policy": lambda path: edited(path, lambda t, c, m: c["config"]["rehash"].update(policy="x")),
    "a weight is missing": lambda path: edited(path, lambda t, c, m: t.pop("input_bias")),
    "a weight has another shape": lambda path: edited(path, lambda t, c, m: c.update(hidden=5)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_and_foreign_files_are_refused(saved, damage):
    damage(saved)
    with pytest.raises(ValueError, match=r"damaged|written|format|hold") as error:
        XMCClassifier.load(saved)
    assert str(saved) in str(error.value)
    assert "weights_only" not in str(error.value)  # PyTorch advises to execute what is in the file


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file"):
        XMCClassifier.load(tmp_path / "nothing.pt")
    with pytest.raises(IsADirectoryError):
        XMCClassifier.load(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_saving_leaves_the_old_file(saved, monkeypatch, error):
    before = saved.read_bytes()

    def fail_halfway(source, target):
        raise error

    monkeypatch.setattr(os, "replace", fail_halfway)
    with pytest.raises(type(error)):
        make_model(dense=True).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_full_disk_is_an_os_error_that_names_the_file(saved):
    """A limit on the size of files fails as a full disk does: in the middle of writing."""
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written") as error:
            make_model(dense=True).save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(saved) in str(error.value)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        make_model().save(tmp_path / "missing" / "model.pt")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        make_model().save(tmp_path)
    assert os.listdir(tmp_path) == []


# --- interrupted runs -------------------------------------------------------------------------------------------------

EVERY = 3  # steps between checkpoints


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """The run that never stopped: model and history."""
    train, test = data
    model = make_model()
    path = tmp_path_factory.mktemp("run") / "run.pt"
    history = fit(model, train, eval_dataset=test, checkpoint=path, checkpoint_every=EVERY)
    assert [entry["epoch"] for entry in history] == [1, 2]
    return model, history


# before the first checkpoint, at one, after one, in the last step of an epoch, in the second epoch, at the very end
@pytest.mark.parametrize("stops", [[2], [3], [5], [7], [11], [14], [1, 4, 4, 1]], ids=str)
def test_a_stopped_run_ends_as_one_that_never_stopped(data, tmp_path, uninterrupted, stops):
    train, test = data
    options = {"eval_dataset": test, "checkpoint": tmp_path / "run.pt", "checkpoint_every": EVERY}
    for steps in stops:
        fit(make_model(), train, max_steps=steps, **options)
    model = make_model()
    if (tmp_path / "run.pt").exists():
        with torch.no_grad():
            model.output.weight.zero_()  # nothing of the new model may matter
    history = fit(model, train, **options)
    assert history == uninterrupted[1]
    assert_same(model, uninterrupted[0])
    # a run that has ended goes on from there when more epochs are wanted
    assert fit(make_model(), train, **options) == history
    assert len(fit(make_model(), train, **{**options, "epochs": 3})) == 3


def test_a_stopped_dense_run_ends_as_one_that_never_stopped(data, tmp_path):
    models = [make_model(dense=True) for _ in range(3)]
    options = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": EVERY}
    expected = fit(models[0], data[0])
    fit(models[1], data[0], max_steps=5, **options)
    assert fit(models[2], data[0], **options) == expected
    assert_same(models[2], models[0])  # there are no tables, so checkpoints change nothing at all


INTERRUPTED_RUN = """
    import sys, time
    import torch
    from torch_lsh import ExponentialBackoff, LSHConfig
    from torch_lsh.data import synthetic_xmc
    from torch_lsh.models import XMCClassifier
    train, test = synthetic_xmc(210, 60, 300, 600)
    torch.manual_seed(0)
    config = LSHConfig(active=360, rehash=ExponentialBackoff(initial=2, factor=1.5, maximum=7))
    model = XMCClassifier(300, 600, hidden=12, config=config)
    loss, steps = model.loss, 0
    def announced(*batch):
        global steps
        steps += 1
        print(steps, flush=True)
        if steps == 9:
            time.sleep(60)  # to be interrupted here, in the second epoch, after two checkpoints within the first
        return loss(*batch)
    model.loss = announced
    model.fit(train, epochs=2, batch_size=32, lr=1e-2, eval_dataset=test, checkpoint=sys.argv[1], checkpoint_every=3,
              progress=False)
"""


def test_a_killed_run_ends_as_one_that_never_stopped(data, tmp_path, uninterrupted):
    train, test = data
    path = tmp_path / "run.pt"
    child = run_python(INTERRUPTED_RUN, path)
    for line in child.stdout:
        if line.strip() == "9":
            child.kill()
            break
    _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors
    assert sorted(os.listdir(tmp_path)) == [".run.pt.lock", "run.pt"]
    model = make_model()
    options = {"eval_dataset": test, "checkpoint": path, "checkpoint_every": EVERY}
    assert fit(model, train, **options) == uninterrupted[1]
    assert_same(model, uninterrupted[0])


def test_killed_while_a_checkpoint_is_written(data, tmp_path, uninterrupted):
    """What SIGKILL then leaves behind is a part of a temporary file, and the checkpoint of before."""
    train, test = data
    options = {"eval_dataset": test, "checkpoint": tmp_path / "run.pt", "checkpoint_every": EVERY}
    fit(make_model(), train, max_steps=4, **options)
    (tmp_path / ".run.0123456789abcdef.tmp.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:500])
    model = make_model()
    assert fit(model, train, **options) == uninterrupted[1]
    assert_same(model, uninterrupted[0])
    assert os.listdir(tmp_path) == ["run.pt"]


def test_resume_false_begins_anew(data, tmp_path, uninterrupted):
    train, test = data
    options = {"eval_dataset": test, "checkpoint": tmp_path / "run.pt", "checkpoint_every": EVERY}
    fit(make_model(), train, max_steps=8, **options)
    model = make_model()
    assert fit(model, train, resume=False, **options) == uninterrupted[1]
    assert_same(model, uninterrupted[0])


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
def test_fit_trains_where_gradients_are_disabled(data, tmp_path, uninterrupted, disabled):
    train, test = data
    model = make_model()
    with disabled():
        options = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": EVERY}
        assert fit(model, train, eval_dataset=test, **options) == uninterrupted[1]
    assert_same(model, uninterrupted[0])


def test_a_model_of_inference_mode_is_refused(data):
    with torch.inference_mode():
        model = make_model()
    with pytest.raises(RuntimeError, match=r"was made in torch\.inference_mode\(\); wanted one made outside"):
        fit(model, data[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 16}, "'batch_size': 32.*'batch_size': 16"),
        ({"seed": 1}, "'seed': 0.*'seed': 1"),
        ({"lr": 0.5}, "'lr': 0.01.*'lr': 0.5"),
        ({"rows": 200}, "'rows': 210.*'rows': 200"),
        ({"unlabelled": True}, "with schedule"),
        ({"other values": True}, r"with schedule {'checksum of rows': \d+}; this one has {'checksum of rows': \d+}"),
        ({"sample_weight": torch.arange(210) % 3}, "'checksum of rows'"),
        ({"class_weight": {3: 2.0}}, r"with schedule {'checksum of class_weight': 0}; this one has"),
        ({"config": dataclasses.replace(CONFIG, active=361)}, "'active': 360.*'active': 361"),
        ({"dense": True}, "'dense': False.*'dense': True"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused(data, tmp_path, change, message):
    train, _ = data
    path = tmp_path / "run.pt"
    fit(make_model(), train, max_steps=4, checkpoint=path, checkpoint_every=EVERY)
    before = path.read_bytes()
    rows = train.rows
    if "rows" in change:
        train = XMCDataset.from_rows(rows.take(torch.arange(change["rows"])))
    if "unlabelled" in change:  # as many rows, but other ones
        train = XMCDataset.from_rows(join_rows([rows.take(torch.arange(209)), rows.take(torch.tensor([0]))]))
    if "other values" in change:
        train = XMCDataset.from_rows(rows._replace(values=rows.values.flip(0)))
    model = make_model(change.get("dense", False), change.get("config", CONFIG))
    weights_before = weights(model)
    names = "batch_size", "seed", "lr", "sample_weight", "class_weight"
    options = {name: change[name] for name in names if name in change}
    with pytest.raises(ValueError, match=message) as error:
        fit(model, train, checkpoint=path, **options)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights_before))


@pytest.mark.parametrize("damage", ["empty", "beginning only", "flipped bit", "other tensors"])
def test_a_damaged_checkpoint_is_refused(data, tmp_path, damage):
    path = tmp_path / "run.pt"
    fit(make_model(), data[0], max_steps=4, checkpoint=path, checkpoint_every=EVERY)
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=r"damaged|format") as error:
        fit(make_model(), data[0], checkpoint=path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("end", "since_best", None, "since_best is None; wanted a number"),
        ("end", "since_best", {}, "since_best is {}; wanted a number"),
        ("end", "best", 0.5, "best is 0.5; wanted a list of numbers"),
        ("end", "best", ["x"], "wanted a list of numbers"),
        ("progress", "best", {"input_bias": torch.zeros(3)}, "best holds other parameters"),
        ("progress", "best", {"x": 1}, "does not hold a training run"),
        ("progress", "epoch", -1, "epoch is -1"),
    ],
)
def test_a_checkpoint_with_other_progress_is_refused(data, tmp_path, part, name, value, message):
    path = tmp_path / "run.pt"
    fit(make_model(), data[0], max_steps=4, checkpoint=path, checkpoint_every=EVERY)
    content = torch.load(path)
    content[part][name] = value
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        fit(make_model(), data[0], checkpoint=path)
    assert str(path) in str(error.value)


def test_a_model_is_no_checkpoint(data, saved):
    with pytest.raises(ValueError, match=r"has the format torch_lsh\.XMCClassifier/2; wanted torch_lsh\.fit/2"):
        fit(make_model(), data[0], checkpoint=saved)


class Policy:
    def interval(self, rehashes):
        return 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint": "missing/run.pt"}, FileNotFoundError, "there is no folder"),
        ({"checkpoint": "."}, IsADirectoryError, "it is a folder"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every is 0; wanted at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; wanted at least 1"),
        ({"lr": -1.0}, ValueError, "lr is"),
        ({"eval_dataset": synthetic_xmc(3, 0, F + 1, N)[0]}, ValueError, "the data has 301 features"),
        ({"train_dataset": synthetic_xmc(3, 0, F, N + 1)[0]}, ValueError, "the data has 300 features and 601 labels"),
        ({"train_dataset": synthetic_xmc(0, 0, F, N)[0]}, ValueError, "the training data has no rows"),
        (
            {"train_dataset": synthetic_xmc(1000, 0, F, N)[0], "validation_fraction": 0.9999},
            ValueError,
            "validation_fraction is 0.9999, which leaves no labelled row to train on; wanted less",
        ),
        (
            {
                "train_dataset": XMCStream(lambda: [synthetic_xmc(1000, 0, F, N)[0].rows], F, N),
                "validation_fraction": 0.9999,
            },
            ValueError,
            "validation_fraction is 0.9999, which leaves no labelled row to train on; wanted less",
        ),
        ({"config": LSHConfig(rehash=Policy()), "checkpoint": "run.pt"}, ValueError, "which files can hold"),
    ],
)
def test_bad_arguments_are_found_before_training(data, tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    options = dict(options)
    model = make_model(config=options.pop("config", CONFIG))
    before = weights(model)
    with pytest.raises(error, match=message):
        fit(model, options.pop("train_dataset", data[0]), **options)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("scale", "lr"), [(1e10, None), (1e29, None), (1, 1e30)])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_loss_out_of_bounds_stops_the_run(data, scale, lr, streamed):
    rows = data[0].rows
    rows = rows._replace(values=rows.values * scale)
    train = XMCStream(lambda: [rows], F, N) if streamed else XMCDataset.from_rows(rows)
    model = make_model()
    before = weights(model)
    with pytest.raises(ValueError, match=r"the loss of step \d+ is .*; wanted rows .* about unit length .*smaller lr"):
        fit(model, train, lr=lr)
    assert scale == 1 or all(torch.equal(a, b) for a, b in zip(weights(model), before))


def test_a_checkpoint_that_cannot_be_written_stops_the_run(data, tmp_path, monkeypatch):
    """A run that went on without checkpoints would be lost when it matters. The last good one is still there."""
    path = tmp_path / "run.pt"
    fit(make_model(), data[0], max_steps=4, checkpoint=path, checkpoint_every=EVERY)
    before = path.read_bytes()
    monkeypatch.setattr(
        torch, "save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(OSError, match=r"No space left on device"):
        fit(make_model(), data[0], checkpoint=path, checkpoint_every=EVERY)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.pt"]


@pytest.mark.parametrize("name", ["num_features", "num_labels", "hidden"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_bad_sizes(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; wanted a positive int"):
        XMCClassifier(**{"num_features": 3, "num_labels": 4, "hidden": 5, name: value})
