"""The hash of a user's own code: what a part of a study's file is, so that changed code is another part.

Hashed are the values that a part names. Of a function or class of the user's it is the syntax tree, without comments, layout and
docstrings, and that of every name it uses that is defined in the study's file or in the files beside it. Of what comes from an
installed package it is the name. The hash is the same on every machine and version of Python.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dit.errors import UserError

LENGTH = 16
"""Hexadecimal digits of a source: 64 bits."""
_HOME = Path(__file__).parents[2]
_INSTALLED = (
    *(_HOME / room for room in ("dit", "sweeps", "analysis", "experiments")),
    *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
)


def source_of(what: str, values: dict[str, Any]) -> str:
    """The hash of those values and of the code behind them.

    Raises:
        UserError: for a value that has no readable source, naming `what` it belongs to.
    """
    code = _Code(what)
    told = {name: code.told(value) for name, value in values.items()}
    text = json.dumps([told, sorted(code.statements())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def files_beside(path: Path) -> list[Path]:
    """The user's files that the one at `path` imports, and those that they import."""
    code = _Code(path.name)
    code.take(path, None)
    list(code.statements())
    return sorted(file for file in code.files if file != path.resolve())


def is_users(path: Path) -> bool:
    """Whether the file is the user's own: in no installed package, and not of this one."""
    return path.suffix == ".py" and not any(path.is_relative_to(folder) for folder in _INSTALLED)


class _File:
    """The statements of a file by the names that they bind or change."""

    def __init__(self, path: str):
        linecache.checkcache(path)
        self.tree = ast.parse("".join(linecache.getlines(path)))
        self.body = _without_docstring(self.tree.body)
        self.binds: dict[str, list[ast.stmt]] = {}
        for statement in self.body:
            for name in set(_bound(statement)):
                self.binds.setdefault(name, []).append(statement)


class _Code:
    """Statements that values rest on, followed from name to name."""

    def __init__(self, what: str):
        self.what = what
        self.files: dict[Path, _File] = {}
        self._left: list[tuple[Path, str | None]] = []
        self._seen: set[Any] = set()
        self._loose: list[tuple[Path, ast.AST]] = []

    def take(self, path: Path, name: str | None) -> None:
        """Count what the file binds to that name; all of the file for `None`."""
        self._left.append((path.resolve(), name))

    def told(self, value: Any) -> Any:
        """A value as plain JSON values; the code of functions and classes is taken."""
        if value is None or isinstance(value, str | bool | int | float):
            return [type(value).__name__, repr(value)]
        if isinstance(value, bytes):
            return ["bytes", hashlib.sha256(value).hexdigest()]
        if isinstance(value, list | tuple):
            return [type(value).__name__, *map(self.told, value)]
        if isinstance(value, dict):
            return ["dict", *([self.told(key), self.told(each)] for key, each in value.items())]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(json.dumps(self.told(each)) for each in value)]
        if isinstance(value, functools.partial):
            return ["partial", self.told(value.func), self.told(value.args), self.told(value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", value.__name__, self.told(value.__func__), self.told(value.__self__)]
        if isinstance(value, type | types.FunctionType):
            return self._definition(value)
        if hasattr(value, "tobytes") and hasattr(value, "dtype"):
            return ["array", str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif callable(value) and hasattr(value, "__wrapped__"):
            return ["wrapped", type(value).__name__, self.told(value.__wrapped__)]
        elif callable(value) and hasattr(value, "__module__") and hasattr(value, "__qualname__"):
            return ["name", value.__module__, value.__qualname__]
        elif _file_of(type(value)) is not None:
            fields = vars(value)
        else:
            raise UserError(
                f"{self.what} rests on {str(value)[:40]!r} ({type(value).__name__}), which has no source to hash: "
                "make it a constant or a function of the study's file"
            )
        if id(value) in self._seen:
            return ["again"]
        self._seen.add(id(value))
        return ["object", self.told(type(value)), self.told(fields)]

    def _definition(self, value: Any) -> Any:
        name = f"{value.__module__}:{value.__qualname__}"
        file = _file_of(value)
        if file is None:
            return ["name", name]
        if id(value) in self._seen:
            return ["again"]
        self._seen.add(id(value))
        functions = [value] if isinstance(value, types.FunctionType) else list(vars(value).values())
        held = [_held(one, value) for one in functions if isinstance(one, types.FunctionType)]
        top, *inner = value.__qualname__.split(".")
        if value.__name__ == "<lambda>":
            self._lambda(file, value)
        if top in self._file(file).binds:
            self.take(file, top)
        elif top != "<lambda>":
            raise UserError(f"{self.what}: {name} is not found in {file}: define it there under its own name")
        return ["code", *inner, *map(self.told, held)]

    def _lambda(self, file: Path, value: types.FunctionType) -> None:
        line = value.__code__.co_firstlineno
        found = [n for n in ast.walk(self._file(file).tree) if isinstance(n, ast.Lambda) and n.lineno == line]
        self._loose += [(file.resolve(), node) for node in found]

    def statements(self) -> Iterator[str]:
        """Each statement taken, once."""
        while self._left or self._loose:
            if self._loose:
                path, node = self._loose.pop()
                yield from self._taken(path, node, None)
                continue
            path, name = self._left.pop()
            if (path, name) in self._seen:
                continue
            self._seen.add((path, name))
            file = self._file(path)
            for statement in file.body if name is None else file.binds.get(name, file.binds.get("*", [])):
                yield from self._taken(path, statement, name)

    def _taken(self, path: Path, node: ast.AST, name: str | None) -> Iterator[str]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            used = [
                one for one in node.names if name in (None, one.asname or one.name.split(".")[0]) or one.name == "*"
            ]
            for alias in used:
                target = self._imported(path, node, alias, name)
                yield json.dumps([alias.asname or "", alias.name, "" if target else getattr(node, "module", None)])
            return
        if (path, id(node)) in self._seen:
            return
        self._seen.add((path, id(node)))
        yield json.dumps(_plain(node))
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                self.take(path, inner.id)
            elif isinstance(inner, ast.Import | ast.ImportFrom):
                for alias in inner.names:
                    self._imported(path, inner, alias, None)

    def _imported(self, path: Path, node: ast.Import | ast.ImportFrom, alias: ast.alias, name: str | None) -> bool:
        """Take what is imported from a file of the user's; whether it is one."""
        if isinstance(node, ast.Import):
            file = _resolved(path, alias.name, 0)
            if file is not None:
                self.take(file, None)
            return file is not None
        inside = _resolved(path, ".".join(filter(None, (node.module, alias.name))), node.level)
        file = _resolved(path, node.module or "", node.level)
        if inside is not None and inside != file:
            self.take(inside, None)
        if file is not None:
            self.take(file, name if alias.name == "*" else alias.name)
        return file is not None or inside is not None

    def _file(self, path: Path) -> _File:
        path = path.resolve()
        if path not in self.files:
            self.files[path] = _File(str(path))
        return self.files[path]


def _held(function: types.FunctionType, owner: Any) -> dict[str, Any]:
    """Values that a function made inside another, or a lambda, brings along."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    values = {name: cell.cell_contents for name, cell in cells.items()}
    if "<" in function.__qualname__:
        values |= {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    return {name: value for name, value in values.items() if value is not owner}


def _file_of(value: Any) -> Path | None:
    """The user's file that a function or class is defined in; `None` for a package's."""
    if isinstance(value, types.FunctionType):
        name: str | None = value.__code__.co_filename
    else:
        name = getattr(sys.modules.get(value.__module__), "__file__", None)
    if name is None or name.startswith("<"):
        return None
    path = Path(name).resolve()
    return path if is_users(path) else None


def _resolved(path: Path, module: str, level: int) -> Path | None:
    """The user's file of a module that the file at `path` imports."""
    parts = module.split(".") if module else []
    roots = [path.parents[level - 1]] if level else [*map(Path, sys.path), path.parent]
    for root in roots:
        base = root.joinpath(*parts)
        for file in (base / "__init__.py", base.with_name(base.name + ".py") if parts else base / "__init__.py"):
            if file.is_file():
                return file.resolve() if is_users(file.resolve()) else None
    return None


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement binds, or changes by an item, an attribute or a method."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute | ast.Subscript):
            called = isinstance(statement, ast.Expr) and isinstance(node, ast.Attribute)
            root: ast.AST = node
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            if isinstance(root, ast.Name) and (called or isinstance(node.ctx, ast.Store)):
                yield root.id


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if is_text else body


def _plain(node: Any) -> Any:
    """A syntax tree as JSON values, without places, contexts, and fields that are empty."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, ast.AST):
        return [type(node).__name__, repr(node)]
    fields = {name: getattr(node, name, None) for name in node._fields if name not in ("ctx", "kind", "type_comment")}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        fields["body"] = _without_docstring(node.body)
    return [type(node).__name__, *([name, _plain(each)] for name, each in fields.items() if each not in (None, []))]
