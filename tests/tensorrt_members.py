"""Reads our modules' syntax trees and finds every member of TensorRT and of CUDA's driver that they use.

What an expression is follows from the annotations ("trt.ICudaEngine"), from the classes that are called
(`trt.Builder(...)`) and from RETURNS. A member of something that came out of TensorRT and is of no known class is
reported too, so that nothing slips through unseen.
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import tensorrt_rtx
from cuda.bindings import driver

from .fake_tensorrt import APIS, SINCE_10_1, members

ALL = frozenset({"10", "11", "rtx"})
#: The two questions of versions.py, and where each is answered with yes.
QUESTIONS = {"is_modern": frozenset({"11", "rtx"}), "is_rtx": frozenset({"rtx"})}
#: Names of the library's module.
MODULE = ("trt", "library")
RETURNS = {
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "INetworkDefinition.get_input": "ITensor",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "IBuilderConfig.get_timing_cache": "ITimingCache",
    "OnnxParser.get_error": "ParserError",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "ICudaEngine.create_execution_context": "IExecutionContext",
}


@dataclass(frozen=True)
class Kind:
    """What an expression is: the module, a class of it, an object of a class, a member, or an unknown result."""

    what: str
    name: str = ""
    real: Any = None


@dataclass
class Members:
    """What a set of modules uses.

    Attributes:
        used: "Class.member" of TensorRT.
        called: functions of the driver.
        wrong: one line for each use that some version would not understand.
    """

    used: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def find_members(sources: Iterable[tuple[str, str]]) -> Members:
    """Check modules, each a name and its text; one that is named rtx.py is for TensorRT-RTX alone."""
    found = Members()
    trees = [(name, ast.parse(text)) for name, text in sources]
    known: dict[str, Kind] = {}
    for _, tree in trees:
        known.update(_declared(tree))
    for name, tree in trees:
        _Reader(found, name, dict(known)).block(tree.body, QUESTIONS["is_rtx"] if name == "rtx.py" else ALL)
    return found


def _annotated(annotation: ast.expr | None) -> Kind | None:
    text = ast.unparse(annotation) if annotation is not None else ""
    match = re.search(r"\btrt\.(\w+)", text)
    return Kind("object", match[1]) if match else None


def _declared(tree: ast.Module) -> dict[str, Kind]:
    """Fields of classes and results of functions that are annotated: `.field` and `function()`."""
    known = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and (kind := _annotated(node.annotation))
        ):
            known[f".{node.target.id}"] = kind
        if isinstance(node, ast.FunctionDef) and (kind := _annotated(node.returns)):
            known[f"{node.name}()"] = kind
    return known


class _Reader:
    def __init__(self, found: Members, module: str, known: dict[str, Kind]) -> None:
        self.found, self.module, self.known = found, module, known
        self.versions = ALL

    def block(self, body: list[ast.stmt], versions: frozenset[str]) -> None:
        """Statements; after `if is_rtx(trt): return ...` the rest is for the others."""
        for statement in body:
            self.versions = versions
            asked = statement.test if isinstance(statement, ast.If) else None
            if isinstance(asked, ast.Call) and isinstance(asked.func, ast.Name) and asked.func.id in QUESTIONS:
                yes = QUESTIONS[asked.func.id] & versions
                self.block(statement.body, yes)
                self.block(statement.orelse, versions - yes)
                if isinstance(statement.body[-1], ast.Return):
                    versions = versions - yes
            else:
                self.statement(statement, versions)

    def statement(self, node: ast.stmt, versions: frozenset[str]) -> None:
        if isinstance(node, ast.FunctionDef):
            outer = dict(self.known)
            for argument in (*node.args.args, *node.args.kwonlyargs):
                self.bind(argument.arg, _annotated(argument.annotation))
            self.block(node.body, versions)
            self.known = outer | {name: kind for name, kind in self.known.items() if name.startswith("self.")}
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.expression(child)
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self.assign(target, node.value)
        elif isinstance(node, ast.AnnAssign):
            self.bind(ast.unparse(node.target), _annotated(node.annotation))
        elif isinstance(node, ast.For):
            self.assign(node.target, node.iter)
        elif isinstance(node, ast.With):
            for item in node.items:
                self.expression(item.context_expr)
        for part in ("body", "orelse", "finalbody"):
            self.block(getattr(node, part, []), versions)
        for handler in getattr(node, "handlers", []):
            self.block(handler.body, versions)

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=True):
                self.assign(one, other)
        else:
            self.bind(ast.unparse(target), self.expression(value))

    def bind(self, name: str, kind: Kind | None) -> None:
        if kind is not None:
            self.known[name] = kind
        elif not name.startswith("self."):
            self.known.pop(name, None)

    def expression(self, node: ast.expr) -> Kind | None:
        """Report the members in an expression, and say what it is."""
        if isinstance(node, ast.Name):
            return Kind("module") if node.id in MODULE else self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
            for generator in node.generators:  # a list of things stands for one of them
                self.assign(generator.target, generator.iter)
                for test in generator.ifs:
                    self.expression(test)
            if isinstance(node, ast.DictComp):
                self.expression(node.key)
                return self.expression(node.value)
            return self.expression(node.elt)
        kinds = [self.expression(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return kinds[0] if isinstance(node, ast.NamedExpr | ast.Subscript) else None

    def attribute(self, node: ast.Attribute) -> Kind | None:
        base = self.expression(node.value)
        name = node.attr
        if name.startswith("__"):
            return None
        if name in MODULE:
            return Kind("module")
        if name == "_cuda":
            return Kind("real", "driver", driver)
        if base is None:
            return self.known.get(ast.unparse(node)) or self.known.get(f".{name}")
        if base.what == "real":
            self.require(hasattr(base.real, name), f"{base.name}.{name}", "cuda-bindings")
            return Kind("real", name, getattr(base.real, name, None))
        if base.what == "module":
            for version in sorted(self.versions):
                here = hasattr(tensorrt_rtx, name) if version == "rtx" else name in APIS[version]["TOP"]
                self.require(here, f"trt.{name}", version)
            return Kind("class", name)
        if base.what == "result":
            self.require(False, f"{name} of the unknown result of {base.name}", "the table RETURNS")
            return None
        use = f"{base.name}.{name}"
        self.found.used.add(use)
        for version in sorted(self.versions):
            known = members(version, base.name) - (SINCE_10_1 if version == "10" else set())
            self.require(name in known, use, version)
        return Kind("member", use)

    def call(self, node: ast.Call) -> Kind | None:
        called = self.expression(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.expression(argument)
        if called is None:
            name = ast.unparse(node.func).removeprefix("self.")
            return self.known.get(f"{name}()")
        if called.what == "class":
            return Kind("object", called.name)
        if called.what == "real":
            self.found.called.add(called.name)
            parameters = re.match(r"\w+\((.*)\)", (called.real.__doc__ or "").split("\n")[0])
            if called.name.startswith("cu") and parameters:
                wanted = len([part for part in parameters[1].split(",") if part.strip()])
                self.require(
                    len(node.args) == wanted, f"{called.name} with {len(node.args)} arguments", "cuda-bindings"
                )
            return None
        if called.what == "member":
            kind = RETURNS.get(called.name)
            return Kind("object", kind) if kind else Kind("result", called.name)
        return None

    def require(self, holds: bool, use: str, where: str) -> None:
        line = f"{self.module}: {use} is not in {where}"
        if not holds and line not in self.found.wrong:
            self.found.wrong.append(line)
