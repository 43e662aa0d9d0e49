"""What untraceable code does with its children: only a child that is merely called may be replaced by its graph."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache

from torch import nn

__all__ = ["reads_of", "why_not_replaceable"]


def why_not_replaceable(parent: nn.Module, name: str, child: nn.Module) -> str | None:
    """Return what the code of ``parent`` does with ``self.<name>`` that a graph in its place could not do.

    A graph can be called and keeps plain attributes; it has no methods, no properties and no items of its own.
    Code whose source cannot be read is taken to be harmless, and so are the items of a ModuleList.
    """
    for kind in type(parent).__mro__:
        if not (kind.__module__ or "").startswith("torch.nn.") and kind is not object:
            for attribute, use in _uses(kind):
                if attribute == name and (why := _harm(use, child)):
                    return f"{type(parent).__name__} {why.format(f'self.{name}')}; only what is called alone is traced"
    return None


def reads_of(parent: nn.Module, name: str) -> tuple[str, ...]:
    """Return what the code of ``parent`` reads of ``self.<name>`` other than by calling it."""
    uses = (use for kind in type(parent).__mro__ if kind is not object for use in _uses(kind))
    return tuple(member for attribute, member in uses if attribute == name)


def _harm(use: str, child: nn.Module) -> str | None:
    """Return a phrase for one use of a child, given as `_uses` does, or None if a graph serves it too."""
    if use == "":
        return "uses {} otherwise than by calling it"
    member = getattr(type(child), use, None)
    harmless = member is None or hasattr(nn.Module, use) or not (callable(member) or isinstance(member, property))
    return None if harmless else f"uses {{}}.{use}"


@lru_cache(maxsize=256)
def _uses(kind: type) -> tuple[tuple[str, str], ...]:
    """Return how methods of a class use what ``self`` holds: (name, member read from it, or "" for anything else)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return ()
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    return tuple(_of_methods(tree, parents))


def _of_methods(tree: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[tuple[str, str]]:
    for method in ast.walk(tree):
        if not isinstance(method, ast.FunctionDef) or method.name == "__init__":
            continue
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                use = _use(node, parents[node])
                if use is not None:
                    yield node.attr, use


def _use(node: ast.Attribute, parent: ast.AST) -> str | None:
    """Return the member that is read from ``node``, "" for any other use, None for a call or a comparison with None."""
    if isinstance(parent, ast.Attribute):
        return parent.attr
    called = isinstance(parent, ast.Call) and parent.func is node
    # `if self.head:` and `self.head is not None` ask whether it is there
    asked = isinstance(parent, (ast.Compare, ast.If, ast.BoolOp)) or isinstance(node.ctx, ast.Store)
    return None if called or asked else ""
