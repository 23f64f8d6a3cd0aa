"""The import rules: core has few dependencies and imports no plugin, no layer imports one above it, private names stay
in ``_torch.py``."""

import ast
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import rnn_backends
import torch

CORE = Path(rnn_backends.__file__).parent
ALLOWED = {"torch", "tensordict", "pluggy", *sys.stdlib_module_names}
# From the bottom up, as in docs/architecture.md: a module may import only those in lower layers.
LAYERS = (
    {"errors", "_torch", "paths"},
    {"contract", "options", "plain"},
    {"hooks", "torch_tools", "torchrl_names", "transforms", "weights"},
    {"prepare", "checks"},
    {"registry", "crossovers"},
    {"ranking"},
    {"choose"},
    {"resets", "unroll"},
    {"stack", "arguments", "weight_cache", "double_backward", "autograd_rule", "vmap_rule"},
    {"kernels", "acting"},
    {"operators"},
    {"handwritten", "binding", "scripting"},
    {"one_step"},
    {"execution", "authoring"},
    {"lstm"},
    {"layout", "keys", "mode", "mlp"},
    {"module", "net"},
    {"mistakes"},
    {"testing"},
    {"__init__"},
)
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}
# Allowed imports inside functions: (module, function, imported name).
LATE = {("lstm", "scriptable", ".scripting"), ("module", "make_tensordict_primer", "torchrl")}
MODULES = sorted(path.stem for path in CORE.glob("*.py"))


def imports(module):
    """``(function or None, imported)`` for each import; ``.name`` for a sibling; type-checking ones left out."""
    found = []

    def visit(node, function):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((function, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.extend((function, name) for name in sources(node))
        inner = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse((CORE / f"{module}.py").read_text()), None)
    return found


def sources(node):
    if node.level and not node.module:
        return [f".{alias.name}" for alias in node.names]
    return ["." * node.level + node.module]


def is_late(module, function, imported):
    return any((module, function) == late[:2] and imported.startswith(late[2]) for late in LATE)


def test_every_module_of_core_has_a_layer():
    assert all(path.is_file() for path in CORE.glob("*") if path.name != "__pycache__"), "a folder has no layer yet"
    assert set(MODULES) <= set(LEVEL), "add the new module to LAYERS, and to docs/architecture.md"


@pytest.mark.parametrize("module", MODULES)
def test_core_imports_the_standard_library_torch_tensordict_pluggy_and_itself(module):
    outside = {
        name
        for function, name in imports(module)
        if not name.startswith(".") and name.split(".")[0] not in ALLOWED and not is_late(module, function, name)
    }
    assert not outside, f"{module}.py imports {outside}"


@pytest.mark.parametrize("module", MODULES)
def test_no_layer_imports_one_above_it(module):
    for function, name in imports(module):
        if name.startswith(".") and not is_late(module, function, name):
            assert LEVEL[name[1:]] < LEVEL[module], f"{module}.py imports {name}, which is not below it"


PLUGINS = Path(importlib.util.find_spec("rnn_backends_plugins").origin).parent
PLUGIN_FILES = sorted(str(path.relative_to(PLUGINS)) for path in PLUGINS.rglob("*.py"))
REPOSITORY = Path(__file__).parents[2]
CONFORMANCE, BENCHMARKS = REPOSITORY / "conformance/rnn_conformance", REPOSITORY / "asv_benchmarks/rnn_benchmarks"

# Private in effect, although their names do not begin with an underscore.
UNDOCUMENTED = {"out_keys_source", "torchrl.modules.tensordict_module", "ops.mkldnn", "current_callable"}
DOCUMENTED = {
    *("_asdict", "_fields", "_make", "_replace"),  # typing.NamedTuple's public methods
    "_exit",  # os._exit
    "_version",  # of a Tensor: torch's notes on autograd name it
}
# Outside of core and the plugins, which use `_torch.py`: files that may use a private name, and why.
ALLOWED_PRIVATE = {
    "suite/poison.py": ({"_python_dispatch"}, "TorchDispatchMode has no public module; without it no law can run"),
    "suite/isolation.py": ({"_inductor"}, "a fork must set compile_threads; the environment is read too early for it"),
    "suite/interpreter.py": ({"_inductor"}, "Inductor is prepared there to save time; if a name is gone nothing is"),
    "gpu/memory.py": (
        {"_python_dispatch", "_cdata"},
        "TorchDispatchMode has no public module, nor a storage a public identity; only this measurement needs them",
    ),
    "laws/tensors.py": (
        {
            "_internal",
            "_parameters",
            "_subclasses",
            "_pytree",
            "_python_dispatch",
            "_make_wrapper_subclass",
            "_enable_functionalization",
            "_disable_functionalization",
            "_to_functional_tensor",
            "_from_functional_tensor",
            "_is_functional_tensor",
            "_sync",
            "_efficientzerotensor",
        },
        "the kinds of tensors that these laws try have no public constructor; if one is gone only its law fails",
    ),
    "laws/recompiling.py": ({"_dynamo"}, "torch.compile's counters have no public name; only these laws read them"),
}


def own_private_names(files):
    """Names with one leading underscore that these files define: functions, classes, variables and attributes."""
    own = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                own.add(node.id if isinstance(node, ast.Name) else node.attr)
    return own


def names_used(tree):
    """Attributes, also those named by a string in ``getattr`` and similar calls, and the parts of imported names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            yield from (part.value for part in node.args if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".") if not node.level else ()
            yield from (alias.name for alias in node.names)


def strange_names(text, own):
    """Private and undocumented names of other packages in a source."""
    used = {name for name in names_used(ast.parse(text)) if isinstance(name, str)}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    return private - own - DOCUMENTED - {"_torch"} | {word for word in UNDOCUMENTED if word in text}


# Allowed functions of torch without a docstring: (name, reason).
ALLOWED_UNDOCUMENTED = {
    "torch.get_autocast_dtype": "torch's message about the deprecated get_autocast_gpu_dtype names it",
    "torch.is_autocast_enabled": "torch's message about the deprecated is_autocast_cpu_enabled names it",
    "torch.set_autocast_enabled": "torch's message about the deprecated set_autocast_cpu_enabled names it",
    "torch.is_autocast_cache_enabled": "the counterpart of torch.autocast(cache_enabled=); only laws read it",
    "torch.set_autocast_cache_enabled": "the counterpart of torch.autocast(cache_enabled=); only laws set it",
    "torch.is_anomaly_enabled": "the counterpart of torch.autograd.set_detect_anomaly; only laws read it",
    "torch.backends.mkldnn.is_available": "torch's page on torch.backends lists it",
    "torch.lstm": "the stand-in for cuDNN replaces this very name",
}
STANDS_FOR_TORCH = "testing/cudnn.py"


def dotted(node):
    """``a.b.c`` of a chain of attributes, or ``None``."""
    if isinstance(node, ast.Attribute):
        return None if (head := dotted(node.value)) is None else f"{head}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def imported(tree):
    """The full name of each imported name of torch and tensordict: ``{"Tensor": "torch.Tensor"}``."""
    found = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in ("torch", "tensordict"):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def undocumented_functions(text):
    """Functions of torch and tensordict in a source that have no docstring and are in no ``__all__`` except torch's
    own. ``torch.lstm_cell`` is one. Classes are left out: those written in C++ are documented only on torch's pages.
    """
    tree = ast.parse(text)
    names = imported(tree)
    for whole in {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | set(names):
        head, _, rest = (whole or "").partition(".")
        if head not in names:
            continue
        path = names[head] + (f".{rest}" if rest else "")
        if path.startswith("torch.ops.") or any(part.startswith("_") for part in path.split(".")):
            continue  # operators; private names, which have a test of their own
        try:
            owner, value = pkgutil.resolve_name(path.rpartition(".")[0] or path), pkgutil.resolve_name(path)
        except (AttributeError, ImportError):
            continue
        listed = owner is not torch and path.rpartition(".")[2] in getattr(owner, "__all__", ())
        if inspect.isroutine(value) and not listed and not inspect.getdoc(value):
            yield path


# Planted defects (rnn_conformance/defects) replace private names on purpose: they are left out.
PACKAGES = {
    folder: [path for path in sorted(folder.rglob("*.py")) if "defects" not in path.parts]
    for folder in (CORE, PLUGINS, CONFORMANCE, BENCHMARKS)
}


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_private_names_of_other_packages_are_used_in_one_file_alone(folder):
    own = own_private_names(PACKAGES[folder])
    for path in PACKAGES[folder]:
        file = str(path.relative_to(folder))
        if file == "_torch.py":
            continue
        strange = strange_names(path.read_text(), own) - ALLOWED_PRIVATE.get(file, (set(),))[0]
        assert not strange, f"{path} uses {strange}: put it behind a function in _torch.py, with a fallback"


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_undocumented_functions_of_torch_are_used_in_one_file_alone(folder):
    for path in PACKAGES[folder]:
        file = str(path.relative_to(folder))
        allowed = set(ALLOWED_UNDOCUMENTED) - ({"torch.lstm"} if file != STANDS_FOR_TORCH else set())
        found = set() if file == "_torch.py" else set(undocumented_functions(path.read_text())) - allowed
        assert not found, f"{path} uses {found}: put it behind a function in _torch.py, with a fallback"


def test_an_allowed_undocumented_function_is_used():
    used = {name for files in PACKAGES.values() for path in files for name in undocumented_functions(path.read_text())}
    assert set(ALLOWED_UNDOCUMENTED) <= used, "remove the row"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("torch.lstm_cell(x, state, w)", ["torch.lstm_cell"]),
        ("from torch import lstm as run", ["torch.lstm"]),
        ("import torch\nf = torch.rnn_tanh", ["torch.rnn_tanh"]),
        ("torch.cat(x), torch.device('cpu'), torch.ops.aten.add, torch.Tensor", []),
        ("from torch.utils.flop_counter import register_flop_formula", []),
    ],
)
def test_an_undocumented_function_is_noticed(text, found):
    assert list(undocumented_functions(text)) == found


@pytest.mark.parametrize("file", ALLOWED_PRIVATE)
def test_a_private_name_that_is_allowed_is_used(file):
    path = next(path for files in PACKAGES.values() for path in files if str(path).endswith(file))
    names, reason = ALLOWED_PRIVATE[file]
    assert names <= strange_names(path.read_text(), set()), "remove the row"
    assert reason


def test_a_private_name_is_noticed_however_it_is_read():
    for text in (
        "torch._C",
        "import torch._dynamo",
        "from torch._x import y",
        "getattr(torch, '_C')",
        "torch.ops.mkldnn",
    ):
        assert strange_names(text, set()), text
    assert not strange_names("self._own, row._asdict()", {"_own"})


@pytest.mark.parametrize("file", PLUGIN_FILES)
def test_built_in_backends_use_of_core_what_every_author_may_use(file):
    tree = ast.parse((PLUGINS / file).read_text())
    used = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    used |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    inside = {name for name in used if name.split(".")[0] == "rnn_backends"} - {
        "rnn_backends",
        "rnn_backends.authoring",
    }
    assert not inside, f"{file} imports {inside}: only rnn_backends and rnn_backends.authoring are public"
    taken = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module == "rnn_backends" and not node.level
    }
    assert taken <= {*rnn_backends.__all__, "authoring"}, f"{file} imports a name from rnn_backends that is not public"


def test_importing_core_imports_nothing_optional_and_no_plugin():
    barred = (
        "torchrl",
        "gymnasium",
        "click",
        "rich",
        "hypothesis",
        "pytest",
        "rnn_conformance",
        "rnn_backends_plugins",
    )
    program = f"import sys, rnn_backends; print(sorted(set({barred}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
