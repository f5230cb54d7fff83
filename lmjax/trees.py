"""Pytrees by path: names for leaves, masks, tables of parameters."""

import math

import jax


def path_name(path) -> str:
    """`(DictKey('blocks'), GetAttrKey('mu'))` as "blocks/mu"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree) -> list[tuple[str, jax.Array]]:
    """(path, leaf) for every leaf, in the order of `jax.tree.leaves`."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(function, tree):
    """Map `function(path, leaf)` over the leaves."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree)


def nested(leaves: dict) -> dict:
    """Leaves by path as nested dicts."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree


def count(tree) -> int:
    """Number of scalars in all leaves; leaves may be abstract."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def table(tree) -> str:
    """The parameters as text: path, shape, number; the total last."""
    leaves = named_leaves(tree)
    rows = [(name, "x".join(map(str, leaf.shape)), f"{math.prod(leaf.shape):,}") for name, leaf in leaves]
    rows.append(("total", "", f"{count(tree):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {number:>{widths[2]}}".rstrip() for name, shape, number in rows
    )
