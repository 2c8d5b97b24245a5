"""The identity of a function: a digest of its code and of everything that this code depends on.

`fingerprint` walks from a function to the functions, classes and constants that it uses, in its own package and in jaxbp, and hashes their
syntax trees and values. Comments, formatting, docstrings and annotations of functions do not count. Other packages count by their version.

>>> def area(radius, *, pi=3.14):
...     return pi * radius**2
>>> before = fingerprint(area)
>>> area.__kwdefaults__["pi"] = 3.1416
>>> [line.split(".")[-2:] for line in explain(before.parts, fingerprint(area).parts)]
[['14 then, 3', '1416 now']]
"""

import ast
import dataclasses
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.runtime import syntax

_PROGRAM = ("__main__", "__mp_main__")  # what Python calls a program that it runs, and that program in the processes which it starts
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(...))


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The identity of a function.

    Attributes:
        digest: 32 hexadecimal digits.
        parts: each function, class, value and package that the function depends on, by kind and qualified name, with its short digest; a
            small constant stands for itself.
    """

    digest: str
    parts: dict[str, str]


def fingerprint(fn: Callable, ignore: Collection[str] = ()) -> Fingerprint:
    """Return the identity of a function, partial, bound method, cached or jitted function.

    ``ignore`` names modules, with all below them, that cannot change a result; the walk does not enter them. Names that are looked up as
    strings (``getattr``, ``globals()``) are not seen. A function without source counts by its bytecode, which depends on Python's version.
    """
    walk = _Walk(fn, tuple(ignore))
    root = walk.encode(fn)
    while walk.pending:  # names wait here, so that a long chain of calls is no deep recursion
        walk.encode(walk.pending.pop())
    parts = {name: _join(walk.parts[name]) for name in sorted(walk.parts)}
    return Fingerprint(_hash(repr((root, parts)), 32), parts)


def explain(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the differences between the ``parts`` of two fingerprints, one sentence each, sorted by name."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before is None:
            lines.append(f"{name} is newly used")
        elif after is None:
            lines.append(f"{name} is no longer used")
        elif before != after:
            lines.append(f"{name} changed" if "#" in (before[0], after[0]) else f"{name}: {before} then, {after} now")
    return lines


class _Walk:
    """One walk over all that a function depends on; ``parts`` holds what was seen under each name."""

    def __init__(self, fn: Callable, ignore: tuple[str, ...]) -> None:
        while not isinstance(fn, types.FunctionType | type):
            inner = getattr(fn, "func", None) or getattr(fn, "__func__", None) or getattr(fn, "__wrapped__", None)
            if inner is None:
                fn = type(fn)
            else:
                fn = inner
        self.packages = {module_name(fn).split(".")[0], "jaxbp"}
        self.ignore = ignore
        self.parts: dict[str, set[str]] = {}
        self.pending: list[Any] = []
        self.stated: set[tuple[str, str]] = set()
        self.codes: dict[int, tuple[Any, str]] = {}  # by id, with the object, which keeps the id its own

    def follows(self, module: str) -> bool:
        module = _imported(module)
        return module.split(".")[0] in self.packages and not any(f"{module}.".startswith(f"{prefix}.") for prefix in self.ignore)

    def add(self, name: str, content: str) -> None:
        self.parts.setdefault(name, set()).add(content)

    def add_package(self, module: str) -> None:
        package = _imported(module).split(".")[0]
        if package not in self.packages and package not in sys.stdlib_module_names and package != "__main__":
            self.add(package, _version(package))

    def add_value(self, name: str, value: Any) -> None:
        """Add a constant, a default, a closure's variable or an argument."""
        code = self.encode(value)
        self.add(name, code if isinstance(value, _PLAIN) and len(code) <= 60 else f"#{_hash(code)}")

    def encode(self, value: Any) -> str:
        """Return a text that equal values share; add the functions and classes in it to the parts."""
        if type(value) in _PLAIN:
            return repr(value)
        if id(value) not in self.codes:
            self.codes[id(value)] = value, f"again {type(value).__qualname__}"  # a cycle ends here
            self.codes[id(value)] = value, self._encode(value)
        return self.codes[id(value)][1]

    def _encode(self, value: Any) -> str:
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, type):
            return self.class_(value)
        if isinstance(value, types.ModuleType):
            return self.module(value)
        kind = type(value).__qualname__
        if isinstance(value, functools.partial):
            inner = self.encode(value.func)
            name = inner.split(" ")[0].strip("()")
            for key, argument in [*enumerate(value.args), *value.keywords.items()]:
                self.add_value(f"argument {name}.{key}", argument)
            return f"partial({inner}, {self.encode(value.args)}, {self.encode(value.keywords)})"
        if isinstance(value, types.MethodType):
            return f"method({self.encode(value.__self__)}, {self.encode(value.__func__)})"
        if isinstance(value, property):
            return f"property{[self.encode(fn) for fn in (value.fget, value.fset, value.fdel)]}"
        if isinstance(value, staticmethod | classmethod):
            return f"{kind}({self.encode(value.__func__)})"
        if isinstance(value, functools.cached_property):
            return f"{kind}({self.encode(value.func)})"
        if isinstance(value, enum.Enum):
            return f"{self.encode(type(value))}.{value.name}={self.encode(value.value)}"
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            content = self.encode(array.tolist()) if array.dtype.hasobject else hashlib.sha256(array.tobytes()).hexdigest()
            return f"array({array.dtype}, {array.shape}, {content})"
        if isinstance(value, np.dtype | os.PathLike):
            return f"{kind}({value})"
        if "jax" in sys.modules and isinstance(value, sys.modules["jax"].Array) and not isinstance(value, sys.modules["jax"].core.Tracer):
            keys = sys.modules["jax"].dtypes.issubdtype(value.dtype, sys.modules["jax"].dtypes.prng_key)
            return f"{value.dtype} {self.encode(np.asarray(sys.modules['jax'].random.key_data(value) if keys else value))}"
        if isinstance(value, Mapping):
            return f"{kind}{[(self.encode(key), self.encode(item)) for key, item in value.items()]}"
        if isinstance(value, tuple | list):
            return f"{kind}{[self.encode(item) for item in value]}"
        if isinstance(value, set | frozenset):
            return f"{kind}{sorted(self.encode(item) for item in value)}"
        if dataclasses.is_dataclass(value):
            fields = [(field.name, self.encode(getattr(value, field.name, None))) for field in dataclasses.fields(value)]
            return f"{self.encode(type(value))}{fields}"
        if hasattr(value, "__wrapped__"):  # a function that functools or JAX has wrapped
            return f"{kind}({self.encode(value.__wrapped__)})"
        if callable(value) and hasattr(value, "__name__"):
            self.add_package(getattr(value, "__module__", None) or "builtins")
            return f"{_imported(getattr(value, '__module__', None) or 'None')}.{value.__name__}"
        if isinstance(value, _PLAIN):  # a subclass of int, str, ...
            base: Any = next(base for base in type(value).__mro__ if base in _PLAIN)
            return f"{kind}({base.__repr__(value)})"
        return self.object(value)

    def function(self, fn: types.FunctionType) -> str:
        """Add a function, its defaults and closure, and all that its code uses; return its name and the digest of these."""
        module, code = module_name(fn), fn.__code__
        name = f"{module}.{code.co_qualname}"
        cells = {}
        for variable, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            try:
                cells[variable] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        if not self.follows(module):
            self.add_package(module)
            return f"{name} {_hash(repr([(variable, self.encode(value)) for variable, value in cells.items()]))}"
        positional = code.co_varnames[: code.co_argcount]
        defaults = fn.__defaults__ or ()
        by_name = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True)) | (fn.__kwdefaults__ or {})
        values = {f"default {name}.{key}": value for key, value in by_name.items()}
        values |= {f"closure {name}.{key}": value for key, value in cells.items() if not isinstance(value, types.ModuleType)}
        node = syntax.function_node(code)
        text = _bytecode(code, fn.__doc__) if node is None else syntax.dump(node)
        self.add(name, f"#{_hash(text)}")
        for key, value in values.items():
            self.add_value(key, value)
        loaded = _loaded_names(code)
        if node is None:
            self.names([(key,) for key in sorted(loaded)], fn.__globals__)
        else:
            local = {key: value for key, value in cells.items() if isinstance(value, types.ModuleType)}
            local |= self.imports(node, fn.__globals__)
            self.names([chain for chain in syntax.dotted_names(node) if chain[0] in loaded or chain[0] in local], fn.__globals__, local)
            decorators = [chain for decorator in getattr(node, "decorator_list", ()) for chain in syntax.dotted_names(decorator)]
            self.names(decorators, fn.__globals__)
            self.statements(fn.__globals__, code.co_qualname)
        return f"{name} {_hash(repr((text, [(key, self.encode(value)) for key, value in values.items()])))}"

    def object(self, value: Any) -> str:
        """Add an object of a class of its own: its class and its attributes; of another package's object those that are plain or arrays."""
        code, name = self.encode(type(value)), f"{module_name(type(value))}.{type(value).__qualname__}"
        slots = [slot for cls in type(value).__mro__ for slot in _names(vars(cls).get("__slots__", ()))]
        attributes = {slot: getattr(value, slot) for slot in slots if not slot.startswith("__") and hasattr(value, slot)}
        attributes |= getattr(value, "__dict__", {})
        if not self.follows(module_name(type(value))):
            attributes = {key: item for key, item in attributes.items() if isinstance(item, (*_PLAIN, np.ndarray, np.generic))}
            return f"{code}{[(key, self.encode(item)) for key, item in sorted(attributes.items())]}"
        for key, item in attributes.items():
            self.add_value(f"attribute {name}.{key}", item)
        return f"{code}{[(key, self.encode(item)) for key, item in sorted(attributes.items())]}"

    def class_(self, cls: type) -> str:
        """Add a class with its bases and methods; return its name."""
        module = module_name(cls)
        name = f"{module}.{cls.__qualname__}"
        if not self.follows(module):
            self.add_package(module)
            return name
        scope = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
        nodes = syntax.source_of(getattr(sys.modules.get(cls.__module__), "__file__", None) or "").by_name.get(cls.__qualname__, [])
        members = {key: value for key, value in vars(cls).items() if not key.startswith("__") or isinstance(value, types.FunctionType)}
        if nodes:
            self.add(name, f"#{_hash(''.join(map(syntax.dump, nodes)))}")
            defined = {item.name for node in nodes for item in node.body if isinstance(item, ast.FunctionDef | ast.ClassDef)}
            members = {key: value for key, value in members.items() if key in defined}
            for node in nodes:
                outside: list[Any] = [item for item in node.body if not isinstance(item, ast.FunctionDef | ast.ClassDef)]
                outside += [*node.bases, *node.decorator_list, *node.keywords]
                self.names([chain for item in outside for chain in syntax.dotted_names(item)], scope)
            self.statements(scope, cls.__qualname__)
        for base in cls.__bases__:
            self.encode(base)
        contents = [(key, self.encode(value)) for key, value in members.items()]
        if not nodes:
            self.add(name, f"#{_hash(repr(contents))}")
        return name

    def module(self, module: types.ModuleType) -> str:
        """Add a whole module that is used as a value, by its source alone."""
        name = _canonical(vars(module))
        if self.follows(name):
            self.add(f"module {name}", f"#{_hash(syntax.dump(syntax.source_of(module.__file__ or '').tree))}")
        else:
            self.add_package(name)
        return name

    def names(self, chains: list[tuple[str, ...]], scope: Mapping[str, Any], local: Mapping[str, Any] = types.MappingProxyType({})) -> None:
        """Add what dotted names stand for: modules are walked through, then the first object that is no module counts."""
        for root, *attributes in sorted(set(chains)):
            if root not in local and root not in scope:
                continue
            value, owner, last = local.get(root, scope.get(root)), scope, root
            while isinstance(value, types.ModuleType) and attributes and self.follows(value.__name__):
                owner, last = vars(value), attributes.pop(0)
                if not hasattr(value, last) and importlib.util.find_spec(f"{value.__name__}.{last}"):
                    importlib.import_module(f"{value.__name__}.{last}")
                value = getattr(value, last, None)
            wrapped = hasattr(value, "__wrapped__")
            foreign = callable(value) and not self.follows(getattr(value, "__module__", None) or "builtins")
            if isinstance(value, types.FunctionType | type | types.ModuleType) or wrapped or foreign:
                self.pending.append(value)
            elif self.follows(_canonical(owner)) and not last.startswith("__"):
                self.add_value(f"constant {_canonical(owner)}.{last}", value)
                self.statements(owner, last)

    def imports(self, node: ast.AST, scope: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the imports inside a function bind; a package that is not followed is not imported."""
        bound: dict[str, Any] = {}
        for item in ast.walk(node):
            sources: list[tuple[str, str | None, str | None]]
            if isinstance(item, ast.Import):
                sources = [(alias.name, None, alias.asname) for alias in item.names]
            elif isinstance(item, ast.ImportFrom):
                package = "." * item.level + (item.module or "")
                source = importlib.util.resolve_name(package, scope.get("__package__")) if item.level else package
                sources = [(source, alias.name, alias.asname or alias.name) for alias in item.names]
            else:
                continue
            for source, attribute, alias in sources:
                if not self.follows(source):
                    self.add_package(source)
                    continue
                value = importlib.import_module(source)
                if attribute is not None and alias is not None:
                    if not hasattr(value, attribute):
                        importlib.import_module(f"{source}.{attribute}")
                    value = getattr(value, attribute)
                    self.names([(alias,)], {**vars(sys.modules[source]), alias: value} if not isinstance(value, types.ModuleType) else {})
                bound[alias or source.split(".")[0]] = value if alias else sys.modules[source.split(".")[0]]
        return bound

    def statements(self, scope: Mapping[str, Any], name: str) -> None:
        """Add the top-level statements of a module that use one of its names, registrations such as ``f.defvjp(forward, back)``."""
        module = _canonical(scope)
        if (module, name) in self.stated:
            return
        self.stated.add((module, name))
        for statement in syntax.source_of(scope.get("__file__") or "").mentions.get(name, ()):
            self.add(f"statement on {module}.{name}", f"#{_hash(syntax.dump(statement))}")
            self.names(syntax.dotted_names(statement), scope)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _loaded_names(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes in a function and in the functions inside it."""
    return set(code.co_names).union(*(_loaded_names(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _bytecode(code: types.CodeType, doc: str | None) -> str:
    consts = [_bytecode(const, None) if isinstance(const, types.CodeType) else _constant(const) for const in code.co_consts if const != doc]
    return repr((code.co_code, consts, code.co_names))


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def module_name(thing: Any) -> str:
    """Return the name by which the module of a function or class is imported, that of a script which is run included."""
    return _canonical(thing.__globals__) if isinstance(thing, types.FunctionType) else _imported(thing.__module__)


def _canonical(scope: Mapping[str, Any]) -> str:
    """Return a module's name; that of a program is the name under which others import it, such as a script's file, where there is one."""
    name = scope.get("__name__") or "__main__"
    if name not in _PROGRAM:
        return name
    spec, file = scope.get("__spec__"), scope.get("__file__")
    return spec.name if spec else Path(file).stem if file else "__main__"


def _imported(name: str) -> str:
    """Return `_canonical` of a module that is there by name."""
    return _canonical(vars(sys.modules[name])) if name in _PROGRAM and name in sys.modules else name


@functools.cache
def _version(package: str) -> str:
    """Return a package's version without importing it; a package that is not installed counts by its file."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, ())  # slow: reads what all installed packages hold
    if names:
        return " ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in {*names}))
    spec = importlib.util.find_spec(package)
    return f"#{_hash(Path(spec.origin).read_text())}" if spec and spec.origin and Path(spec.origin).is_file() else "not found"


def _hash(text: str, length: int = 12) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _join(contents: set[str]) -> str:
    return contents.copy().pop() if len(contents) == 1 else f"#{_hash(repr(sorted(contents)))}"
