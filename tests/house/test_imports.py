"""The rooms and who may know whom, as in docs and design: left of oneself only, and heavy packages only when needed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOW = {
    "errors": set(),
    "recipe": {"errors"},
    "kernels": {"errors", "recipe"},
    "schemes": {"errors", "recipe"},
    "layers": {"errors", "recipe", "kernels", "schemes"},
    "passes": {"errors", "recipe", "kernels", "schemes", "layers"},
}
HEAVY = {
    *("torchvision", "onnx", "onnxscript", "onnxruntime", "scipy", "rich", "sklearn", "matplotlib", "jinja2"),
    *("accelerate", "torchmetrics", "pycocotools", "PIL"),
    *("torch.export", "torch.onnx", "torch._dynamo", "torch.utils.data.distributed"),
}


def modules():
    for folder in (ROOT / "binarize", ROOT / "passes", ROOT / "kernels"):
        for path in sorted(folder.rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = path.relative_to(ROOT).with_suffix("").parts
                yield ".".join(parts if parts[0] == "binarize" else ("binarize", *parts)).removesuffix(".__init__")


def path_of(module):
    relative = Path(*module.split("."))
    bases = [ROOT / relative, ROOT / relative.relative_to("binarize")]
    return next(p for base in bases for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file())


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def at_import_time(tree):
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not typing_only:
            yield node
            yield from at_import_time(node)


def room(module):
    return module.split(".")[1] if "." in module else ""


def may_import(own, other):
    if own in LOW:
        return other == own or other in LOW[own]
    # rooms from convert on know each other; the command line is known to nobody, the package root to nobody inside
    return other != "" and (other != "cli" or own in ("cli", "__main__"))


@pytest.mark.parametrize("module", list(modules()))
def test_imports_go_one_way(module):
    for line, target in imports(ast.walk(ast.parse(path_of(module).read_text()))):
        if target.split(".")[0] == "binarize":
            # the version is the one name that the root itself defines
            known = target.count(".") > 1 or path_exists(target) or target == "binarize.__version__"
            assert known, f"{module}:{line}: import from the module that defines the name, not from the package root"
            assert may_import(room(module), room(target)), f"{module}:{line}: {room(module)} imports {room(target)}"


def path_exists(target):
    relative = Path(*target.split(".")[1:])
    return any(
        (base / relative).with_suffix(".py").is_file() or (base / relative).is_dir()
        for base in (ROOT, ROOT / "binarize")
    )


@pytest.mark.parametrize("module", list(modules()))
def test_heavy_packages_are_imported_only_where_they_are_used(module):
    for line, target in imports(at_import_time(ast.parse(path_of(module).read_text()))):
        heavy = {name for name in HEAVY if f"{target}.".startswith(f"{name}.")}
        assert not heavy, f"{module}:{line}: imports {heavy.pop()} before anybody asked for it"


def test_a_forbidden_import_would_be_seen():
    assert not may_import("kernels", "schemes")
    assert not may_import("passes", "convert")
    assert not may_import("convert", "cli")
    assert may_import("convert", "artifact")
    assert [target for _, target in imports(at_import_time(ast.parse("def f():\n  import onnx\nimport rich")))] == [
        "rich"
    ]
