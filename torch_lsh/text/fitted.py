"""What the training of a text classifier ends in."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..models.network import Network
from .columns import Columns
from .hashed_text import HashedText


class FittedText(NamedTuple):
    """A trained network, and all that turns texts into its features and its logits into labels.

    Attributes:
        features: How texts are hashed.
        columns: Which hashed columns are features.
        network: The trained network.
        classes: The labels.
        multilabel: Whether a text may have several labels.
        multi_hot: Whether labels were given as zeros and ones.
        threshold: Probability from which on a label is predicted (multi-label).
        temperature: What logits are divided by before they become probabilities.
        history: A dict per epoch.
    """

    features: HashedText
    columns: Columns
    network: Network
    classes: list[Any]
    multilabel: bool
    multi_hot: bool
    threshold: float
    temperature: float
    history: list[dict[str, float]]
