"""Columns hold the same whether records come one by one or by the thousand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.columns import Columns

_fields = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(allow_nan=False) | st.just("NaN"), max_size=2)


def record(step: int, fields: dict[str, Any]) -> dict[str, Any]:
    return {"seq": step, "t": float(step), "kind": "rank", "step": step, **fields}


def held(columns: Columns) -> dict[str, Any]:
    """Rows and values of the metrics that have any."""
    values = {name: ([*map(str, of.values)], [*of.rows]) for name, of in columns.metrics.items() if of.rows}
    return {"steps": [*columns.steps], "times": [*columns.times], **values}


@given(st.lists(st.tuples(st.integers(0, 9), _fields), max_size=12), st.sampled_from([None, ("a",), ("b", "c")]))
def test_many_records_at_once_are_what_they_are_one_by_one(
    given_: list[tuple[int, dict[str, Any]]], only: tuple[str, ...] | None
) -> None:
    records = [record(step, fields) for step, fields in given_]
    once, each = Columns(only=only), Columns(only=only)
    assert once.extend(records) == 0 and all(each.add(found) for found in records)
    assert held(once) == held(each)


@pytest.mark.parametrize("only", [None, ("data_s",)])
def test_a_metric_that_the_first_record_lacks_is_not_lost(only: tuple[str, ...] | None) -> None:
    columns = Columns(only=only)
    columns.extend([record(1, {"step_s": 1.0, "compile_s": 9.0})])
    columns.extend([record(1, {"step_s": 1.0, "compile_s": 9.0})])
    later = [record(step, {"step_s": 1.0, "data_s": 0.5}) for step in range(3, 8)]
    columns.extend([record(2, {"step_s": 1.0, "compile_s": 9.0}), *later])
    assert [*columns.metrics["data_s"].values] == [0.5] * 5
    assert columns.steps[columns.metrics["data_s"].rows[0]] == 3
