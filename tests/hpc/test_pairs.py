"""Pairs of nodes that try the network alone, and who is blamed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpc.pairs import blame, partner, turns


@given(st.integers(2, 200), st.integers(0, 2))
def test_partners_are_each_others(nodes: int, turn: int) -> None:
    for node in range(nodes):
        other = partner(node, nodes, turn)
        assert other != node
        if other is not None:
            assert partner(other, nodes, turn) == node


@given(st.integers(3, 200))
def test_everybody_has_two_partners(nodes: int) -> None:
    for node in range(nodes):
        found = [other for turn in range(turns(nodes)) if (other := partner(node, nodes, turn)) is not None]
        assert len(set(found)) == len(found) == 2


@given(st.integers(3, 200), st.data())
def test_one_bad_node_is_found(nodes: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, nodes - 1))
    passed = {
        node
        for node in range(nodes)
        for turn in range(turns(nodes))
        if node != bad and partner(node, nodes, turn) not in (None, bad)
    }
    assert blame(passed, nodes) == [bad]


def test_of_two_nodes_none_can_be_blamed() -> None:
    assert turns(2) == 0
    assert blame(set(), 2) == []
    assert blame(set(), 8) == []
