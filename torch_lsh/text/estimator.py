"""Estimator: scikit-learn's conventions."""

from __future__ import annotations

import inspect
import sys
from typing import Any, TypeVar

_Self = TypeVar("_Self", bound="Estimator")


class Estimator:
    """What scikit-learn asks of a classifier of texts whose arguments are its attributes of the same names.

    Attributes:
        network_: Of a fitted one.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self: _Self, **params: Any) -> _Self:
        known = self.get_params()
        unknown = params.keys() - known.keys()
        if unknown:
            raise ValueError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
        vars(self).update(params)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True, multi_output=True),
            classifier_tags=ClassifierTags(multi_label=True),
            input_tags=InputTags(string=True, two_d_array=False),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            # scikit-learn's own class where it is in use; it is a ValueError, too.
            exceptions = sys.modules.get("sklearn.exceptions")
            kind: type[Exception] = ValueError if exceptions is None else exceptions.NotFittedError
            raise kind(f"this {type(self).__name__} is not fitted; call fit first, or load a saved one")

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name].default]
        return f"{type(self).__name__}({', '.join(changed)})"
