"""Strategies for stored objects, made from their types so that no field is left out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from msgspec import inspect

_INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_FLOAT = st.floats(allow_nan=False)


_SIMPLE: dict[type[inspect.Type], st.SearchStrategy[Any]] = {
    inspect.IntType: _INT64,
    inspect.FloatType: _FLOAT,
    inspect.BoolType: st.booleans(),
    inspect.StrType: _TEXT,
    inspect.BytesType: st.binary(max_size=12),
    inspect.NoneType: st.none(),
}


def strategy_of(info: inspect.Type) -> st.SearchStrategy[Any]:
    """Build values of a type as msgspec describes it."""
    simple = _SIMPLE.get(type(info))
    return simple if simple is not None else _compound(info)


def _compound(info: inspect.Type) -> st.SearchStrategy[Any]:  # noqa: PLR0911 -- a table of types
    match info:
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case inspect.UnionType(types=types):
            return st.one_of(*map(strategy_of, types))
        case inspect.VarTupleType(item_type=item):
            return st.lists(strategy_of(item), max_size=2).map(tuple)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(strategy_of, items))
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(strategy_of(key), strategy_of(value), max_size=2)
        case inspect.StructType(cls=cls, fields=fields):
            return st.fixed_dictionaries(
                {field.name: strategy_of(field.type) for field in fields if field.required},
                optional={
                    field.name: strategy_of(field.type) for field in fields if not field.required
                },
            ).map(lambda values: cls(**values))
    raise AssertionError(f"no strategy for {info}")


def _objects(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return strategy_of(inspect.type_info(kind))


@pytest.fixture(scope="session")
def objects_of() -> Any:
    """Give the function that makes a strategy of a type."""
    return _objects
