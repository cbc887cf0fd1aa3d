"""Declarations of operators in Python against the schemas of the compiled library."""

from __future__ import annotations

import inspect
import typing

import pytest
import torch
from twins.samples import SAMPLES

from torch_lsh import ops
from torch_lsh.ops.declaration import NeedsData, declared, operator

SCHEMAS = {
    schema.name.removeprefix("torch_lsh::"): schema
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("torch_lsh::")
}
TYPES = {
    torch.Tensor: "Tensor",
    torch.dtype: "ScalarType",
    bool: "bool",
    float: "float",
    int: "int",
    str: "str",
}
each_operator = pytest.mark.parametrize("name", sorted(declared))


def of_schema(annotation) -> str:
    """The schema type of a Python annotation."""
    alternatives = [one for one in typing.get_args(annotation) if one is not type(None)]
    return f"Optional[{TYPES[alternatives[0]]}]" if alternatives else TYPES[annotation]


def test_every_operator_of_the_library_is_declared():
    assert set(declared) == set(SCHEMAS)
    assert set(declared) <= set(ops.__all__)


@each_operator
def test_the_signature_is_that_of_the_schema(name):
    schema, signature = SCHEMAS[name], inspect.signature(declared[name])
    types = typing.get_type_hints(declared[name])
    assert list(signature.parameters) == [argument.name for argument in schema.arguments]
    for argument, parameter in zip(schema.arguments, signature.parameters.values()):
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert not argument.kwarg_only
        assert of_schema(types[argument.name]) == str(argument.real_type), argument.name
        assert argument.has_default_value() == (parameter.default is not parameter.empty), argument.name
        assert not argument.has_default_value() or argument.default_value == parameter.default, argument.name
    returned = types["return"]
    results = typing.get_args(returned) if typing.get_origin(returned) is tuple else [returned]
    results = [] if returned is type(None) else results
    assert [of_schema(result) for result in results] == [str(result.real_type) for result in schema.returns]


@each_operator
def test_the_public_function_has_the_same_signature_and_documentation(name):
    assert inspect.signature(getattr(ops, name)) == inspect.signature(declared[name])
    assert inspect.getdoc(getattr(ops, name)).splitlines()[0].endswith((".", ":"))


def test_an_operator_that_the_library_lacks_cannot_be_declared():
    def gather_nothing(table: torch.Tensor) -> torch.Tensor:
        return table

    with pytest.raises(AttributeError, match="gather_nothing"):
        operator(gather_nothing)


@each_operator
def test_changes_raise_the_version(name):
    (sample, *_) = SAMPLES[name]()
    tensors = {i: a for i, a in enumerate(sample.arguments) if torch.is_tensor(a)}
    before = {i: tensor._version for i, tensor in tensors.items()}
    declared[name](*sample.arguments)
    changed = [i for i, tensor in tensors.items() if tensor._version > before[i]]
    writes = [i for i, a in enumerate(SCHEMAS[name].arguments) if a.alias_info is not None and a.alias_info.is_write]
    assert changed == [i for i in writes if i in tensors]


def test_a_change_of_a_named_argument_raises_its_version():
    counts = torch.zeros(3, dtype=torch.uint8)
    ops.count_touches_(rows=torch.tensor([1]), touches=counts)
    assert counts.tolist() == [0, 1, 0]
    assert counts._version == 1


@each_operator
def test_tensors_of_several_devices_are_refused(name):
    (sample, *_) = SAMPLES[name]()
    tensors = [i for i, argument in enumerate(sample.arguments) if torch.is_tensor(argument)]
    arguments = [a.detach() if torch.is_tensor(a) else a for a in sample.arguments]
    before = [a.clone() if torch.is_tensor(a) else a for a in arguments]
    for i in tensors if len(tensors) > 1 else ():
        moved = [*arguments]
        moved[i] = moved[i].to("meta")
        with pytest.raises(RuntimeError, match=rf"torch_lsh::{name}: .* on cpu and meta; wanted one device"):
            declared[name](*moved)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before) if torch.is_tensor(a))
    if len(tensors) == 1:  # all that it takes is elsewhere: a result without data, if any can be told
        arguments[tensors[0]] = arguments[tensors[0]].to("meta")
        if not sample.has_fake:
            with pytest.raises(NeedsData):
                declared[name](*arguments)
        elif name != "word_spans":  # the number of words is not known
            result = declared[name](*arguments)
            assert all(
                one.is_meta for one in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(one)
            )


def test_a_result_that_needs_data_breaks_the_graph_only():
    def doubled_if_increasing(rows):
        return 2 * rows if ops.is_increasing(rows) else rows

    compiled = torch.compile(doubled_if_increasing, backend="eager")
    assert compiled(torch.tensor([1, 2])).tolist() == [2, 4]
    assert compiled(torch.tensor([2, 1])).tolist() == [2, 1]
