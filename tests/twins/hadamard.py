from __future__ import annotations

import torch
from torch import Tensor

from .hash import pack


def walsh_hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def hadamard_products(x: Tensor, signs: Tensor, rest: Tensor) -> Tensor:
    size = signs.shape[2]
    head = torch.nn.functional.pad(x[:, :size], (0, max(0, size - x.shape[1])))
    h = walsh_hadamard(size)
    blocks = [(((head * first) @ h * second) @ h * third) @ h / size for first, second, third in signs]
    return torch.cat([*blocks, x.new_empty(len(x), 0)], 1)[:, : rest.shape[1]] + x[:, size:] @ rest


def hadamard_codes(x: Tensor, signs: Tensor, rest: Tensor, hashes_per_table: int) -> Tensor:
    return pack(hadamard_products(x, signs, rest) > 0, hashes_per_table, bits=1)


def cross_polytope_codes(x: Tensor, signs: Tensor, rest: Tensor, dimension: int, hashes_per_table: int) -> Tensor:
    products = hadamard_products(x, signs, rest).unflatten(1, (-1, dimension))
    best = products.abs().argmax(2, keepdim=True)  # the first among equals
    vertices = 2 * best + (products.gather(2, best) < 0)
    return pack(vertices.squeeze(2), hashes_per_table, bits=(2 * dimension).bit_length() - 1)
