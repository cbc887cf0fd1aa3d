"""Optimizers that take dense and row-sparse parameters in one list, and gradient clipping that knows both."""

from .optimizers import SGD, Adagrad, Adam, AdamW

__all__ = ["SGD", "Adagrad", "Adam", "AdamW"]
