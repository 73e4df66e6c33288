"""AGENTS.md as a check: imports point one way, frameworks stay at the edge, files and functions stay small."""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bebop

# Package -> the packages of ours it may import besides itself.
MAY_IMPORT = {
    "core": set(),
    "models": {"core"},
    "engines": {"core", "models"},
    "tasks": {"core", "models", "engines"},
    "training": {"core", "models", "engines", "tasks"},
    "rl": {"core", "models", "engines", "tasks", "training"},
    "audit": {"core", "models", "engines"},
    "recipes": {"models", "engines"},
    "bench": {"core", "models", "engines", "tasks", "training", "rl"},
    "report": {"core", "models", "engines", "tasks", "training", "rl", "bench"},
    "quickstart": {"report"},
    "plan": {"core", "models", "engines", "tasks", "training", "rl", "bench", "report"},
    "cli": {
        "core",
        "models",
        "engines",
        "tasks",
        "training",
        "rl",
        "bench",
        "report",
        "plan",
        "quickstart",
        "audit",
        "recipes",
    },
}
# The door of ``python -m bebop``.
ENTRY = "__main__.py"
# Modules beside the packages, which every package but core may import and which import one another alone.
BASE = {
    "",
    "config",
    "config_errors",
    "config_yaml",
    "dashboards",
    "errors",
    "files",
    "hardware",
    "metrics",
    "rows",
    "runs",
}
# Each of these is imported in one module at most.
FRAMEWORKS = {"vllm", "ray", "wandb", "tensorboard", "trackio"}
# Modules whose imports are named at run time.
DYNAMIC_IMPORTS = {"dashboards.py", "cli/main.py", "models/head.py", "tasks/own.py"}
# Functions that transformers calls with arguments of its own choosing.
FOREIGN_SIGNATURES = {
    ("engines/embedded/attention.py", "ragged_attention"),
}
# Runs code written by a model, which may raise anything.
RUNS_FOREIGN_CODE = {"tasks/sandbox/jail/roles.py"}
FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 300, 50, 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """A parsed source file and what it imports, by full dotted name."""

    def __init__(self, package: Path, path: Path) -> None:
        self.name = path.relative_to(package).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text, filename=str(path))

    @property
    def layer(self) -> str:
        """The package below ``bebop`` it belongs to, or "" for a module beside the packages."""
        return self.name.split("/")[0] if "/" in self.name else ""

    def imports(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = ".".join(filter(None, (self._parent(node.level), node.module)))
                yield from (f"{origin}.{alias.name}" for alias in node.names)
            elif (named := dynamic_import(node)) is not None and isinstance(named, ast.Constant):
                yield str(named.value)

    def _parent(self, level: int) -> str:
        """The package that so many leading dots mean here."""
        return ".".join(["bebop", *self.name.split("/")][:-level]) if level else ""

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def dynamic_import(node: ast.AST) -> ast.expr | None:
    """What a call of ``import_module`` or ``__import__`` names."""
    if isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__"):
            return node.args[0]
    return None


def wrong_directions(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        allowed = MAY_IMPORT.get(module.layer, set()) | {module.layer} if module.layer else set()
        if module.name == ENTRY:
            allowed = {"cli"}
        if module.layer and module.layer not in MAY_IMPORT:
            yield f"{module.name}: package {module.layer} has no row in MAY_IMPORT"
        for name in module.imports():
            if name.split(".")[0] != "bebop":
                continue
            target = [*name.split("."), ""][1]
            is_package = target in MAY_IMPORT
            base_allowed = module.layer != "core"
            if not (target in allowed if is_package else base_allowed):
                yield f"{module.name} imports {name}"
            if not is_package and target not in BASE and not target.startswith("__"):
                yield f"{module.name} imports {name}, which is neither in BASE nor a package in MAY_IMPORT"


def core_beyond_torch(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        allowed = {"torch", "bebop"} | ({"triton"} if module.name.startswith("core/fused_triton") else set())
        for name in module.imports():
            root = name.split(".")[0]
            if module.layer == "core" and root not in allowed | sys.stdlib_module_names:
                yield f"{module.name} imports {name}"


def frameworks_in_two_places(modules: list[Module]) -> Iterator[str]:
    users: dict[str, set[str]] = {}
    for module in modules:
        for name in module.imports():
            parts = name.split(".")
            for framework in FRAMEWORKS.intersection(parts) if parts[0] != "bebop" else ():
                users.setdefault(framework, set()).add(module.name)
    for framework, names in users.items():
        if len(names) > 1:
            yield f"{framework} is imported in {sorted(names)}"


def forbidden_imports(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for name in module.imports():
            if name.split(".")[0] in FORBIDDEN:
                yield f"{module.name} imports {name}"
        for node in ast.walk(module.tree):
            named = dynamic_import(node)
            if named is not None and not isinstance(named, ast.Constant) and module.name not in DYNAMIC_IMPORTS:
                yield f"{module.name} imports a module named at run time"
        if Path(module.name).stem in ("utils", "util", "helpers", "misc"):
            yield f"{module.name}: name a file for what is in it"


def over_budget(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        num_lines = len(module.text.splitlines())
        if num_lines > MAX_FILE_LINES:
            yield f"{module.name} has {num_lines} lines"
        for function in module.functions():
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{module.name}: {function.name} has {length} lines"
            num_parameters = len(parameters(function))
            is_free = (module.name, function.name) in FOREIGN_SIGNATURES or is_kernel(function)
            if num_parameters > MAX_PARAMETERS and not is_free:
                yield f"{module.name}: {function.name} takes {num_parameters} parameters"


def is_kernel(function: Function) -> bool:
    """Whether Triton compiles the function: a kernel takes pointers and strides one by one."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


def parameters(function: Function) -> list[str]:
    spec = function.args
    named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
    counted = (argument for argument in named if not declares_option(argument.annotation))
    return [argument.arg for argument in counted if argument.arg not in ("self", "cls")]


def declares_option(annotation: ast.expr | None) -> bool:
    """Whether a parameter is an option or argument of a command: a command has as many as a person may set."""
    if not (isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "Annotated"):
        return False
    calls = (node.func for node in ast.walk(annotation.slice) if isinstance(node, ast.Call))
    return any(isinstance(called, ast.Attribute) and called.attr in ("Option", "Argument") for called in calls)


def hidden_state_and_swallowing(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Global):
                yield f"{module.name}, line {node.lineno}: global"
            if isinstance(node, ast.ExceptHandler) and is_blanket(node) and module.name not in RUNS_FOREIGN_CODE:
                yield f"{module.name}, line {node.lineno}: an except that catches everything and does not raise"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and not is_false(node.value):
                yield f"{module.name}, line {node.value.lineno}: trust_remote_code"


def is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def is_blanket(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    is_wide = caught is None or (isinstance(caught, ast.Name) and caught.id in ("Exception", "BaseException"))
    return is_wide and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))


Check = Callable[[list[Module]], Iterator[str]]
CHECKS: tuple[Check, ...] = (
    wrong_directions,
    core_beyond_torch,
    frameworks_in_two_places,
    forbidden_imports,
    over_budget,
    hidden_state_and_swallowing,
)


def parse(package: Path) -> list[Module]:
    return [Module(package, path) for path in sorted(package.rglob("*.py"))]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_rules(check: Check) -> None:
    modules = parse(Path(bebop.__file__).parent)
    assert len(modules) > 10
    assert list(check(modules)) == []


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 50
PLANTED = [
    (wrong_directions, {"core/a.py": "from bebop.models.head import MTPHead"}),
    (wrong_directions, {"core/a.py": "from bebop.errors import UserError"}),
    (wrong_directions, {"models/a.py": "import bebop.engines.base"}),
    (wrong_directions, {"models/a.py": "from bebop import engines"}),
    (wrong_directions, {"models/a.py": "from ..engines import base"}),
    (wrong_directions, {"models/a/b.py": "from ...engines.base import Engine"}),
    (wrong_directions, {"tasks/a.py": "def f():\n    from bebop.training.sft import train"}),
    (wrong_directions, {"errors.py": "from bebop.core.sampling import Sampling"}),
    (wrong_directions, {"novel/a.py": "x = 1"}),
    (wrong_directions, {"training/a.py": "from bebop.novel import x"}),
    (core_beyond_torch, {"core/a.py": "import numpy as np"}),
    (core_beyond_torch, {"core/fused.py": "import triton"}),
    (frameworks_in_two_places, {"engines/a.py": "import vllm", "rl/b.py": "from vllm.engine import LLM"}),
    (
        frameworks_in_two_places,
        {"dashboards.py": "import tensorboard", "rl/b.py": "from torch.utils.tensorboard import SummaryWriter"},
    ),
    (
        frameworks_in_two_places,
        {"rl/a.py": "import ray", "rl/b.py": "from importlib import import_module as i\nimport ray"},
    ),
    (
        frameworks_in_two_places,
        {"rl/a.py": "import ray", "rl/b.py": "import importlib\nimportlib.import_module('ray')"},
    ),
    (forbidden_imports, {"models/a.py": "import pickle"}),
    (forbidden_imports, {"models/a.py": "import importlib\nimportlib.import_module(name)"}),
    (forbidden_imports, {"models/utils.py": "x = 1"}),
    (over_budget, {"a.py": "x = 1\n" * 301}),
    (over_budget, {"a.py": LONG_FUNCTION}),
    (over_budget, {"a.py": "def f(a, b, c, /, d, e, *, g, h): ..."}),
    (over_budget, {"a.py": "class A:\n    def f(self, a, b, c, d, e, *g, **h): ..."}),
    (over_budget, {"a.py": "def f(a, b, c, d, e: Annotated[int, 'x'], g: Annotated[int, Field(gt=0)], h): ..."}),
    (hidden_state_and_swallowing, {"a.py": "def f():\n    global x\n    x = 1"}),
    (hidden_state_and_swallowing, {"a.py": "try:\n    f()\nexcept Exception:\n    pass"}),
    (hidden_state_and_swallowing, {"a.py": "try:\n    f()\nexcept:\n    pass"}),
    (hidden_state_and_swallowing, {"a.py": "load(x, trust_remote_code=True)"}),
]
ALLOWED = {
    "core/a.py": "import math\nimport torch\nfrom bebop.core.sampling import Sampling",
    "core/fused_triton.py": "import triton\n@triton.jit\ndef kernel(a, b, c, d, e, f, g): ...",
    "engines/vllm.py": "import vllm",
    "engines/a.py": "from bebop.engines.vllm import Engine\nfrom bebop.models.policy import Policy",
    "cli/b.py": "def f(" + ", ".join(f"{x}: Annotated[int, typer.Option()] = 1" for x in "abcdefg") + "): ...",
    "cli/a.py": "from bebop.rl.loop import run\nfrom bebop.errors import UserError",
    "metrics.py": "from bebop.files import atomic_write\nx = 1\n" * 150,
    "b.py": "class A:\n    def f(self, a, b, c, d, e, g): ...\n" + LONG_FUNCTION.replace("    x = 1\n", "", 1),
    "models/b.py": "from .a import x\nfrom . import a\nfrom ..core import verify\nload(x, trust_remote_code=False)",
    "c.py": "try:\n    f()\nexcept BaseException:\n    clean()\n    raise",
}


def plant(package: Path, files: dict[str, str]) -> list[Module]:
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return parse(package)


@pytest.mark.parametrize(("check", "files"), PLANTED)
def test_a_planted_violation_is_found(check: Check, files: dict[str, str], tmp_path: Path) -> None:
    assert list(check(plant(tmp_path, files)))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_is_allowed_is_let_through(check: Check, tmp_path: Path) -> None:
    assert list(check(plant(tmp_path, ALLOWED))) == []
