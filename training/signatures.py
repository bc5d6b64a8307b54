"""A command's options without the imports of its module, so that ``--help`` and mistakes are answered at once."""

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["read_signature"]


def read_signature(target: str) -> Callable[..., Any]:
    """Return a function of the same signature and docstring as a command's, and without its body.

    The module is not imported: torch and Lightning alone take seconds. Its source is parsed, and of the statements at
    its top level those alone are run that define names in the signature, such as a type or a default.

    Args:
        target: ``module:function``.

    Raises:
        ImportError: there is no such module or function, or its signature holds a name that the module's top level
            does not define.
    """
    module, name = target.split(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no module {module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    function = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if function is None:
        raise ImportError(f"the module {module} has no function {name}")
    names = _names(function.args) | (_names(function.returns) if function.returns else set())
    for node in reversed(tree.body):  # an assignment may need names that are defined before it
        if isinstance(node, ast.Assign) and _defining(node, names):
            names |= _names(node.value)
    needed = [statement for node in tree.body if (statement := _defining(node, names))]
    function.body = [node for node in function.body[:1] if isinstance(node, ast.Expr)] or [ast.Pass()]
    namespace: dict[str, Any] = {"__name__": __name__}  # jsonargparse imports the module that a function names
    exec(compile(ast.Module([*needed, function], []), spec.origin, "exec"), namespace)  # noqa: S102  our own source
    stub: Callable[..., Any] = namespace[name]
    return stub


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _defining(node: ast.stmt, names: set[str]) -> ast.stmt | None:
    """The part of a statement that defines one of the names: an import of these alone, or an assignment."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        aliases = [alias for alias in node.names if (alias.asname or alias.name) in names]
        if not aliases:
            return None
        if isinstance(node, ast.Import):
            return ast.copy_location(ast.Import(aliases), node)
        return ast.copy_location(ast.ImportFrom(node.module, aliases, node.level), node)
    if isinstance(node, ast.Assign):
        defined = {target.id for target in node.targets if isinstance(target, ast.Name)}
        return node if defined & names else None
    return None
