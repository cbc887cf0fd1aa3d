"""``python -m torch_lsh``."""

from .cli import run

run()
