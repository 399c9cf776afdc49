"""Which pairs of nodes can exchange something, and who is to blame where not all can. Pure."""

from __future__ import annotations

from collections.abc import Collection


def turns(nodes: int) -> int:
    """How many turns it takes for every node to be paired with two others; none for two nodes, which tell nothing."""
    return 0 if nodes < 3 else 2 + nodes % 2


def partner(node: int, nodes: int, turn: int) -> int | None:
    """With whom a node, by its index, is paired in a turn: with another in each. None: with nobody."""
    if turn == 2:
        return {0: nodes - 1, nodes - 1: 0}.get(node)
    other = node ^ 1 if turn == 0 else ((node - 1) ^ 1) + 1
    if turn == 1 and nodes % 2 == 0 and nodes > 2 and {node, other} & {0, nodes}:
        other = nodes - 1 if node == 0 else 0
    return other if 0 <= other < nodes else None


def blame(passed: Collection[int], nodes: int) -> list[int]:
    """Nodes that could exchange nothing in any turn, although a partner of theirs could with somebody else.

    Args:
        passed: the nodes that could, in whichever turn.
    """
    found = []
    for node in range(nodes):
        partners = {other for turn in range(turns(nodes)) if (other := partner(node, nodes, turn)) is not None}
        if node not in passed and partners & set(passed):
            found.append(node)
    return found
