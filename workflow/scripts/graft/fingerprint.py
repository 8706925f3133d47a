"""Fingerprints of the code that a rule runs: they change when what is computed changes, not when it is described.

Comments, blank lines and docstrings do not count. From the rule's script on, imports of `graft` are followed; of a
module, all statements outside functions count, and of its functions those whose name is mentioned in code that
counts. So a rule depends on the functions that it can reach, and editing a metric does not train a base again.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = "graft"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Unit:
    """A function, or the statements of a module outside functions."""

    label: str
    nodes: list[ast.AST] = field(default_factory=list)

    def names(self) -> set[str]:
        """Every identifier that the code mentions, strings that could be one included (getattr, params)."""
        found: set[str] = set()
        for node in self._walk():
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                    found.add(name)
                case ast.Constant(value=str(name)) if name.isidentifier():
                    found.add(name)
        return found

    def imports(self) -> Iterator[str]:
        """Dotted names that may be modules of the package."""
        for node in self._walk():
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def code(self) -> str:
        """The code without comments, docstrings and positions."""
        return "\n".join(ast.dump(node) for node in self.nodes)

    def _walk(self) -> Iterator[ast.AST]:
        for node in self.nodes:
            yield from ast.walk(node)


def fingerprint(script: Path) -> str:
    """Hexadecimal fingerprint of the code that `script` (in the folder that holds the package) can reach."""
    root, units = script.parent, dict[str, Unit]()
    names: set[str] = set()
    modules = {script}
    while True:
        reached = {
            unit.label: unit
            for module in modules
            for name, unit in _units(module)
            if name is None or name in names or name.startswith("__") or module == script
        }
        if reached.keys() == units.keys():
            break
        units = reached
        names = {name for unit in units.values() for name in unit.names()}
        modules = {script} | {
            path for unit in units.values() for dotted in unit.imports() for path in _resolve(dotted, root)
        }
    text = "\n".join(f"{label}\n{units[label].code()}" for label in sorted(units))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resolve(dotted: str, root: Path) -> list[Path]:
    """The file of a module of the package; nothing for other names."""
    if dotted.split(".")[0] != PACKAGE:
        return []
    base = root.joinpath(*dotted.split("."))
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


@cache
def _units(path: Path) -> list[tuple[str | None, Unit]]:
    """A module's functions and methods by name, and the rest of it under None."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        _drop_docstring(node)
    label = f"{path.parent.name}/{path.name}"
    rest, units = Unit(label), list[tuple[str | None, Unit]]()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, Function)]
            node.body = [item for item in node.body if item not in methods]
            units += [(method.name, Unit(f"{label}:{node.name}.{method.name}", [method])) for method in methods]
            rest.nodes.append(node)
        elif isinstance(node, Function):
            units.append((node.name, Unit(f"{label}:{node.name}", [node])))
        else:
            rest.nodes.append(node)
    return [(None, rest), *units]


def _drop_docstring(node: ast.AST) -> None:
    if isinstance(node, ast.Module | ast.ClassDef | Function) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:]
