"""Fingerprints of the code that a rule runs: they change when what is computed changes, not when it is described.

Comments, blank lines and docstrings do not count. From the rule's script on, names are followed to the functions and
classes of `graft` that they stand for, in the module itself or where an import has them from; of every module that
gets imported on the way, the statements outside functions and classes count too. Of a plain class, which inherits from
none but plain classes of the package, the methods count that some counting code names; another class counts as a whole,
because frameworks call methods that no code names (forward). So a rule depends on what it can reach, and editing a
metric does not train a base again.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = "graft"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True)
class Reference:
    """A function, a class, or a method (Class.method) of a module; without a name, the statements outside of them."""

    path: Path
    name: str | None = None


@dataclass(frozen=True)
class Module:
    """A parsed module: its units of code by name (None for the rest), and what its imports bind names to."""

    units: dict[str | None, list[ast.stmt]]
    bound: dict[str, Reference]


@cache
def references(path: Path, name: str | None) -> frozenset[Reference]:
    """What a unit of the module at `path` refers to."""
    module, found = parse(path), set[Reference]()
    for node in nodes(path, name):
        match node:
            case ast.Name(id=word) if word in module.units:
                found.add(Reference(path, word))
            case ast.Name(id=word) if word in module.bound:
                found.add(module.bound[word])
            case ast.Attribute(attr=word):
                # Of a module bound by an import; which one, if there are several, is not looked into.
                modules = (target.path for target in module.bound.values() if target.name is None)
                found |= {Reference(other, word) for other in modules if word in parse(other).units}
            case ast.Import() | ast.ImportFrom():
                found |= {Reference(target.path) for target in bindings(node, package_root(path)).values()}
    return frozenset(found)


@cache
def attributes(path: Path, name: str | None) -> frozenset[str]:
    """Every attribute that a unit of the module at `path` mentions, of whatever object."""
    return frozenset(node.attr for node in nodes(path, name) if isinstance(node, ast.Attribute))


@cache
def nodes(path: Path, name: str | None) -> list[ast.AST]:
    """All syntax nodes of a unit."""
    return [node for statement in parse(path).units[name] for node in ast.walk(statement)]


def fingerprint(script: Path, task: str | None = None) -> str:
    """Hexadecimal fingerprint of the code that `script` (in the folder that holds the package) can reach.

    task: the name of the module of `graft.tasks` that the script loads by name, if it does.
    """
    reached = {Reference(script, name) for name in parse(script).units}
    if task is not None:
        module = script.parent / PACKAGE / "tasks" / f"{task}.py"
        reached |= {Reference(module, name) for name in parse(module).units if name is None or is_class(module, name)}
    waiting = set(reached)
    while waiting:
        found = {target for reference in waiting for target in references(reference.path, reference.name)}
        waiting = (found | named_methods(reached | found)) - reached
        reached |= waiting
    code = {
        f"{path.relative_to(script.parent)}:{name or ''}": "\n".join(map(ast.dump, without_imports(path, name)))
        for path, name in ((reference.path, reference.name) for reference in reached)
    }
    text = "\n".join(f"{label}\n{code[label]}" for label in sorted(code))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def named_methods(reached: set[Reference]) -> set[Reference]:
    """Methods of the reached plain classes that reached code mentions, and those that Python calls (__init__)."""
    words = {word for reference in reached for word in attributes(reference.path, reference.name)}
    return {
        Reference(reference.path, unit)
        for reference in reached
        if reference.name is not None
        for unit in parse(reference.path).units
        if unit is not None and unit.startswith(f"{reference.name}.")
        for method in [unit.rpartition(".")[2]]
        if method in words or method.startswith("__")
    }


def is_class(path: Path, name: str) -> bool:
    """Whether a unit of a module is a class."""
    return isinstance(parse(path).units[name][0], ast.ClassDef)


def without_imports(path: Path, name: str | None) -> list[ast.stmt]:
    """The statements of a unit; imports at the top of a module matter only for what is reached through them."""
    return [statement for statement in parse(path).units[name] if not isinstance(statement, Import)]


@cache
def parse(path: Path) -> Module:
    """The module at `path`, without docstrings."""
    tree = WithoutDocstrings().visit(ast.parse(path.read_text(), str(path)))
    units: dict[str | None, list[ast.stmt]] = {None: [node for node in tree.body if not isinstance(node, Definition)]}
    for node in (node for node in tree.body if isinstance(node, Definition)):
        if isinstance(node, ast.ClassDef) and node.name in plain_classes(path):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            node.body = [item for item in node.body if item not in methods]
            for method in methods:  # a property's getter and setter share a name
                units.setdefault(f"{node.name}.{method.name}", []).append(method)
        units[node.name] = [node]
    return Module(units, bound_names(tree, path))


@cache
def plain_classes(path: Path) -> set[str]:
    """Names of the classes of a module that inherit from none but such classes of the package."""
    tree, plain = ast.parse(path.read_text()), set[str]()
    bound = bound_names(tree, path)
    for node in tree.body:  # a class stands below those of its module that it inherits from
        if isinstance(node, ast.ClassDef) and not node.keywords:
            bases = [base.id if isinstance(base, ast.Name) else None for base in node.bases]
            if all(
                base in plain or (base in bound and bound[base].name in plain_classes(bound[base].path))
                for base in bases
            ):
                plain.add(node.name)
    return plain


def bound_names(tree: ast.Module, path: Path) -> dict[str, Reference]:
    """What all imports in the module at `path` bind names to."""
    root = package_root(path)
    imports = [node for node in ast.walk(tree) if isinstance(node, Import)]
    return {word: target for node in imports for word, target in bindings(node, root).items()}


def bindings(node: ast.Import | ast.ImportFrom, root: Path) -> dict[str, Reference]:
    """What an import of the package binds names to; nothing for other packages."""
    found = {}
    for alias in node.names:
        dotted = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        holder = dotted if isinstance(node, ast.Import) else node.module
        word = alias.asname or alias.name
        if (path := locate(dotted, root)) is not None:
            found[word] = Reference(path)
        elif (path := locate(holder, root)) is not None:
            name = alias.name if alias.name in definitions(path) else None
            found[word] = Reference(path, name)
    return found


def locate(dotted: str, root: Path) -> Path | None:
    """The file of a module of the package, if it is one."""
    if dotted.split(".")[0] != PACKAGE:
        return None
    base = root.joinpath(*dotted.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def definitions(path: Path) -> set[str]:
    """Names of the functions and classes of a module."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, Definition)}


def package_root(path: Path) -> Path:
    """The folder that holds the package, or the script itself."""
    packages = (parent for parent in path.parents if parent.name == PACKAGE and (parent / "__init__.py").is_file())
    return next((package.parent for package in packages), path.parent)


class WithoutDocstrings(ast.NodeTransformer):
    """Drops every statement that is a mere string: docstrings, and the descriptions of constants and fields."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node
