"""WideNetwork: sparse or dense features -> hidden layer -> one logit per label, mixed with other sources of scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import LSHConfig
from ..nn import EmbeddingBag, LSHLinear, QuantizedLinear, SampledLogits
from ..nn.casts import without_cast
from ..nn.logits.targets import as_target
from .mixture import Mixture
from .ranker import LabelRanker
from .rows import DenseRows, Features, Source, SparseFeatures

ACTIVATIONS = ("relu", "none")
_MOST_SCORES = 1 << 24  # in memory at a time
_LENGTH = 6.0  # of dense rows: from 4 to 10 precision is about the same, at 1 (embeddings) far lower


class Network(nn.Module):
    """Features -> logits of labels, mixed with other sources of scores where there is a mixture.

    Attributes:
        mixture: Of the network's probabilities with other scores; None means the network alone.
        class_weight: Weight of each label in the loss, ``[N]``, while the network is trained; None means 1.
        binary: Whether every label is a decision of its own; else the labels share a softmax.
    """

    binary = False

    def __init__(self) -> None:
        super().__init__()
        self.mixture: Mixture | LabelRanker | None = None
        self.class_weight: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Network:
        mixture, self.mixture = self.mixture, None
        try:
            super()._apply(fn, recurse)
        finally:
            self.mixture = mixture
        if mixture is not None and recurse:
            mixture._apply(without_cast(fn))  # what ranks beside the network stays float32
        return self

    @property
    def dense_input(self) -> bool:
        """Whether rows are dense."""
        return False

    @property
    def num_features(self) -> int:
        raise NotImplementedError

    @property
    def num_labels(self) -> int:
        raise NotImplementedError

    def loss(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Computes the loss of a batch.

        Args:
            features: ``[B, num_features]``, sparse CSR or dense.
            labels: ``[B, P]`` int64, padded with -100; the labels of a row share its target equally.
            weights: Weight of each row ``[B]``; None means 1.
        """
        raise NotImplementedError

    def grow(self, num_features: int, num_labels: int) -> None:
        """Adds new features and labels behind those that there are."""
        raise NotImplementedError

    def complete(self, seed: int | None = None) -> None:
        """Initialises parameters that are on the meta device: of a network that is not trained, or not yet.

        Args:
            seed: Decides their numbers; None means that the sizes of the network do.
        """

    def adapt_to(self, source: Source) -> None:
        """Prepares for training on these rows."""

    def logits(self, features: Features) -> Tensor:
        """Computes the logits ``[B, num_labels]`` of the network alone, in memory."""
        raise NotImplementedError

    def logits_of(self, features: Features, labels: Tensor) -> Tensor:
        """Computes the logits ``[B, K]`` of the network alone for labels ``[B, K]``; any number for negative ones."""
        return self.logits(features).gather(1, labels.clamp(min=0))

    def best_of(self, features: Features, k: int) -> Tensor:
        """The labels ``[B, k]`` with the largest logits of the network alone; all where there are fewer."""
        return self(features).topk(min(k, self.num_labels)).indices

    def scores(self, features: Features) -> Tensor:
        """Computes logits ``[B, num_labels]`` in memory; with a mixture, the logarithms of its probabilities."""
        if self.mixture is None:
            return self.logits(features)
        return self.mixture(self.logits(features).float() if self.mixture.uses_logits else None, features)

    @property
    def independent(self) -> bool:
        """Whether every label has a probability of its own; else those of a row sum to 1."""
        return self.binary or (isinstance(self.mixture, LabelRanker) and self.mixture.calibration.independent)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities ``[B, K]`` of what :meth:`scores` returned of some labels or all."""
        if self.binary:
            return scores.sigmoid()
        return scores.exp() if self.independent else scores.softmax(1)

    @property
    def rows_at_a_time(self) -> int:
        """Rows whose :meth:`scores` take a moderate amount of memory."""
        return max(1, min(256, _MOST_SCORES // self.num_labels))


class WideNetwork(Network):
    """Features -> hidden layer -> logits of very many labels.

    The input layer is an embedding bag of sparse features, or a linear layer of dense ones.

    Args:
        num_features: F.
        num_labels: N.
        hidden: Width of the hidden layer.
        sampled: Whether the output is an :class:`LSHLinear` and not an ``nn.Linear``.
        config: Settings of the LSHLinear.
        dense_input: Whether rows are dense.
        activation: Of the hidden layer: ``"relu"``, or ``"none"`` as in fastText (Joulin et al. 2017).
        label_smoothing: Of the loss of rows with one label.
    """

    def __init__(
        self,
        num_features: int,
        num_labels: int,
        hidden: int,
        *,
        sampled: bool = True,
        config: LSHConfig | None = None,
        dense_input: bool = False,
        activation: str = "relu",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; wanted one of {', '.join(ACTIVATIONS)}")
        self.activation, self.label_smoothing = activation, label_smoothing
        self.input: EmbeddingBag | nn.Linear
        if dense_input:
            self.input = nn.Linear(num_features, hidden, bias=False)
            self.register_buffer("scale", torch.ones(()))
        else:
            self.input = EmbeddingBag(num_features, hidden, mode="sum")
            if not self.input.weight.is_meta:
                # Rows have unit length, so at this scale hidden vectors have about unit length, too.
                nn.init.normal_(self.input.weight, std=hidden**-0.5)
        self.input_bias = nn.Parameter(torch.zeros(hidden))
        self.output: nn.Linear | QuantizedLinear
        self.output = LSHLinear(hidden, num_labels, config=config) if sampled else nn.Linear(hidden, num_labels)

    @property
    def dense_input(self) -> bool:
        return isinstance(self.input, nn.Linear)

    def adapt_to(self, source: Source) -> None:
        """Scales dense rows so that their lengths are about those that training suits; unit length is far below."""
        rows = source.sample() if self.dense_input else None
        if isinstance(rows, DenseRows) and len(rows.features) > 0:
            length = float(rows.features.square().sum(1).mean().sqrt())
            if 0 < length < math.inf:
                self.scale = torch.tensor(_LENGTH / length)

    @property
    def num_features(self) -> int:
        return self.input.in_features if isinstance(self.input, nn.Linear) else self.input.num_embeddings

    @property
    def num_labels(self) -> int:
        return self.output.out_features

    def hidden(self, features: Features) -> Tensor:
        """Computes the hidden activations ``[B, hidden]`` of features ``[B, num_features]``, sparse CSR or dense."""
        self.complete()
        if isinstance(features, SparseFeatures):
            of_rows = features.crow_indices(), features.col_indices(), features.values()
            hidden = ops.embedding_bag(self.input.weight, *of_rows) + self.input_bias
        else:
            if self.dense_input:
                features = (features * self.scale).to(self.input.weight.dtype)
            hidden = self.input(features) + self.input_bias
        return F.relu(hidden) if self.activation == "relu" else hidden

    def forward(self, features: Tensor) -> Tensor:
        """Computes the logits ``[B, num_labels]`` of the network alone; lazy unless the output is an ``nn.Linear``."""
        hidden = self.hidden(features)  # first, as it may replace the output
        return self.output(hidden)

    def logits(self, features: Features) -> Tensor:
        hidden = self.hidden(features)
        if isinstance(self.output, nn.Linear):
            return F.linear(hidden, self.output.weight, self.output.bias)
        return self.output(hidden).dense()

    def logits_of(self, features: Features, labels: Tensor) -> Tensor:
        output = self.output
        if not isinstance(output, nn.Linear):
            return super().logits_of(features, labels)
        products = ops.sampled_dot(self.hidden(features), output.weight, labels)
        return products if output.bias is None else products + output.bias[labels.clamp(min=0)]

    def loss(self, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Computes the softmax cross entropy, the mean over the rows that have labels."""
        return softmax_loss(self(features), labels, self.label_smoothing, weights, self.class_weight)

    @torch.no_grad()
    def grow(self, num_features: int, num_labels: int) -> None:
        """Adds rows for new features and labels, initialised as in a new network; all others keep their numbers."""
        if num_features <= self.num_features and num_labels <= self.num_labels:
            return
        sizes = max(num_features, self.num_features), max(num_labels, self.num_labels)
        if isinstance(self.output, QuantizedLinear):
            if self.mixture is None or self.mixture.uses_logits:
                raise RuntimeError(
                    "a quantised network cannot learn more labels or features; train the float model further "
                    "and quantise it again"
                )
            with torch.device("meta"):  # nothing looks at its numbers
                new = self._new(*sizes)
            self.input, self.input_bias, self.output = new.input, new.input_bias, new.output
            return
        self.complete()
        larger = self._new(*sizes)
        if not self.dense_input:
            larger.input.weight[: self.num_features] = self.input.weight
            self.input = larger.input
        larger.output.weight[: self.num_labels] = self.output.weight
        assert larger.output.bias is not None
        assert self.output.bias is not None
        larger.output.bias[: self.num_labels] = self.output.bias
        self.output = larger.output

    def complete(self, seed: int | None = None) -> None:
        if self.input_bias.is_meta:
            new = self._new(self.num_features, self.num_labels, seed)
            self.input, self.input_bias, self.output = new.input, new.input_bias, new.output
            if self.dense_input and self.scale.is_meta:
                self.scale = new.scale

    def _new(self, num_features: int, num_labels: int, seed: int | None = None) -> WideNetwork:
        """A network of the same kind that is not trained; the seed decides its numbers, or else the sizes."""
        config = self.output.config if isinstance(self.output, LSHLinear) else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(num_features + num_labels if seed is None else seed)
            return WideNetwork(
                num_features,
                num_labels,
                len(self.input_bias),
                sampled=config is not None,
                config=config,
                dense_input=self.dense_input,
                activation=self.activation,
            )


def softmax_loss(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Computes the mean of the cross entropy over rows with a label.

    Args:
        logits: ``[B, N]``, lazy or in memory.
        labels: ``[B, P]`` int64 padded with -100; the labels of a row share the target equally.
        smoothing: Label smoothing where P is 1.
        weights: Weight of each row in the mean, ``[B]``; None means 1.
        class_weight: Weight of each label in the mean, ``[N]``; None means 1.
    """
    target = labels[:, 0] if labels.shape[1] == 1 else labels
    lazy = isinstance(logits, SampledLogits)
    if class_weight is not None and not bool(class_weight[labels.clamp(min=0)].masked_fill(labels < 0, 0).any()):
        # The mean of nothing is 0, not NaN, which would become the parameters.
        smoothing, weights = 0.0, logits.new_ones(len(labels)) if weights is None else weights
    if weights is None and (lazy or target.dim() == 1):
        return F.cross_entropy(logits, target, class_weight, label_smoothing=smoothing if target.dim() == 1 else 0.0)
    parsed = as_target(labels, logits.shape[:1], logits.shape[1], -100, logits.dtype)
    assert parsed is not None
    shares, chosen = parsed.shares, parsed.labels.clamp(min=0)
    if class_weight is not None:
        shares = shares * class_weight[chosen]
    mass = shares.sum(1)
    if lazy or target.dim() == 1:
        smoothing = smoothing if target.dim() == 1 else 0.0
        losses = F.cross_entropy(logits, target, class_weight, reduction="none", label_smoothing=smoothing)
    else:  # a dense target would have the shape of the logits; this needs none
        losses = -(shares * (logits.gather(1, chosen) - logits.logsumexp(1, keepdim=True))).sum(1)
    if weights is not None:
        losses, mass = losses * weights, mass * weights
    return losses.sum() / mass.sum().clamp(min=1e-12)
