"""``rnn-backends doctor``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import Examples, refuse

EXAMPLES = """\
Examples:
  rnn-backends doctor                  the built-in example, a healthy one
  rnn-backends doctor my.agent:make_policy my.agent:make_env
  rnn-backends doctor my.agent:make_policy my.agent:make_env \\
      --data my.agent:make_batch

POLICY is a function that returns a TensorDict module with an LSTMModule in it.
ENV returns a TorchRL environment with its transforms. --data names a function
that returns rows [*batch, T] of a collector or buffer. ENV and --data may take
the policy as an argument. Modules are looked for in this folder first.

In a test: rnn_backends.testing.assert_rollout_equals_replay(policy, env).

Exit status:
  0 acting and replay agree   1 they differ, or a common mistake was found
  2 bad usage, something cannot be imported
"""
EXAMPLE = "rnn_conformance.doctor_example"
OPTIONS = {"policy": "POLICY", "environment": "ENV", "data": "--data"}
"""The names on the command line, by the part that is checked."""


@click.command("doctor", cls=Examples, epilog=EXAMPLES, short_help="Check a recurrent policy for the common mistakes.")
@click.argument("policy", required=False)
@click.argument("env", required=False)
@click.option("--data", metavar="FUNCTION", help="Stored rows to check as well: pkg.mod:function.")
@click.option("--steps", type=click.IntRange(min=2), default=64, show_default=True, help="Length of the rollout.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="torch's seed, set before the functions are called."
)
@click.pass_context
def doctor_command(
    ctx: click.Context, policy: str | None, env: str | None, data: str | None, steps: int, seed: int
) -> None:
    """Check that a recurrent policy is trained on the features it acted with; if not, name the common mistake.

    The policy is rolled out. The rollout is replayed in recurrent mode, as a loss does it. The features of both must
    be equal.
    """
    import torch
    from rnn_backends import InputError
    from rnn_backends.testing import diagnose

    from ..report.terminal import printable

    if (policy is None) != (env is None):
        refuse("ENV", "give POLICY and ENV, or neither")
    if importlib.util.find_spec("torchrl") is None:
        refuse("ENV", 'environments need TorchRL: pip install "rnn-backends[torchrl]"')
    sources = {"policy": policy or f"{EXAMPLE}:make_policy", "environment": env or f"{EXAMPLE}:make_env"}
    if data is not None:
        sources["data"] = data
    functions = {name: _function(source, name) for name, source in sources.items()}
    torch.manual_seed(seed)
    judged = _checked("policy", functions["policy"]())
    made = {name: _checked(name, _call(make, judged)) for name, make in functions.items() if name != "policy"}
    try:
        found = diagnose(judged, made["environment"], steps=steps, data=made.get("data"))
    except InputError as error:
        refuse("POLICY", str(error))
    said = "healthy: " if found.healthy else ""
    click.echo(printable(f"{said}{found}"))
    for place in dict.fromkeys(mistake.where for mistake in found.mistakes):
        click.echo(printable(f"the {place} is made in {_place(functions.get(place))}", line=True))
    ctx.exit(0 if found.healthy else 1)


def _checked(name: str, value: Any) -> Any:
    """The value that a function returned, if it has a method of its kind: nothing here imports TorchRL."""
    what, method = {
        "policy": ("module", "modules"),
        "environment": ("TorchRL environment", "rollout"),
        "data": ("TensorDict", "exclude"),
    }[name]
    if not callable(getattr(value, method, None)):
        refuse(OPTIONS[name], f"the function has to return a {what}, and returned {type(value).__name__}")
    return value


def _function(source: str, name: str) -> Callable[..., Any]:
    option = OPTIONS[name]
    module, _, attribute = source.partition(":")
    if not module or not attribute:
        refuse(option, f"is given as pkg.mod:function, got {source!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        refuse(option, f"{module} cannot be imported: {error}")
    function: Callable[..., Any] | None = getattr(found, attribute, None)
    if not callable(function):
        refuse(option, f"{module} has no function {attribute}")
    return function


def _call(make: Callable[..., Any], policy: Any) -> Any:
    """Call the function, with the policy if it has an argument without a default."""
    needed = [
        parameter
        for parameter in inspect.signature(make).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return make(policy) if needed else make()


def _place(function: Callable[..., Any] | None) -> str:
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"  # type: ignore[arg-type]
    except (TypeError, OSError):
        return "a function without a source file"
