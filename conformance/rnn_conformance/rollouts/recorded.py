"""Rollouts of real environments: recorded through TorchRL where it is installed, else shipped with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..suite.inputs import Rollout

ENVIRONMENTS = {"CartPole-v1": (8, 64), "Pendulum-v1": (2, 240)}
"""Name to rows and steps. A random policy drops CartPole's pole every twenty steps or so; Pendulum restarts after 200,
so its rows are long enough to have one reset each."""
SEED = 7


def rollouts(seed: int = SEED) -> list[Rollout]:
    """One rollout per environment: recorded now, or the shipped ones where TorchRL or Gymnasium cannot be imported."""
    try:
        return record(seed)
    except ModuleNotFoundError as error:
        missing = (error.name or "torchrl").split(".")[0]
        return shipped(f"data in the package, as {missing} is not installed")
    except ImportError as error:
        return shipped(f"data in the package, as {error}")


def record(seed: int = SEED) -> list[Rollout]:
    """Run the environments with a random policy, through TorchRL. torch's random state is left as it was.

    Raises:
        ImportError: TorchRL or Gymnasium is not installed, or cannot be imported.
        RuntimeError: a rollout has no reset in the middle of a row, so it would test little.
    """
    try:
        import gymnasium
        import torchrl
        import torchrl.envs
    except ImportError:
        raise
    except Exception as error:  # under PYTHONOPTIMIZE=2 TorchRL 0.14 adds up docstrings that are not there
        raise ImportError(f"TorchRL cannot be imported ({type(error).__name__}: {error})") from error

    source = f"recorded now with torchrl {torchrl.__version__}, gymnasium {gymnasium.__version__}"
    recorded = []
    with torch.random.fork_rng(devices=[]):
        for name, (rows, steps) in ENVIRONMENTS.items():
            rollout = Rollout(name, *_record_one(name, rows, steps, seed), source)
            if not rollout.resets:
                raise RuntimeError(f"{name} was not reset once after a row's first step in {rows} rows of {steps}")
            recorded.append(rollout)
    return recorded


def _record_one(name: str, rows: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    from torchrl.envs import GymEnv, InitTracker, TransformedEnv

    rolled = []
    for row in range(rows):
        env = TransformedEnv(GymEnv(name), InitTracker())
        torch.manual_seed(seed + row)  # the random policy's
        env.set_seed(seed + row)
        rolled.append(env.rollout(steps, break_when_any_done=False).select("observation", "is_init"))
        env.close()
    observation = torch.stack([td["observation"] for td in rolled])
    return observation.float(), torch.stack([td["is_init"].squeeze(-1) for td in rolled])


def shipped(source: str = "data in the package") -> list[Rollout]:
    """The rollouts that :func:`write_shipped` once wrote; needs neither TorchRL nor Gymnasium."""
    with files(__package__).joinpath("data/rollouts.npz").open("rb") as file, np.load(file) as data:
        return [
            Rollout(
                name, torch.from_numpy(data[f"{name}.observation"]), torch.from_numpy(data[f"{name}.is_init"]), source
            )
            for name in ENVIRONMENTS
        ]


def write_shipped(path: Path) -> None:
    """Record and write the package's own data: ``python -m rnn_conformance.rollouts.recorded`` in a checkout."""
    arrays: dict[str, Any] = {}
    for rollout in record():
        arrays[f"{rollout.name}.observation"] = rollout.observation.numpy()
        arrays[f"{rollout.name}.is_init"] = rollout.is_init.numpy()
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    target = Path(__file__).parent / "data" / "rollouts.npz"
    write_shipped(target)
    print(f"wrote {target.name}: {', '.join(f'{r.name} with {r.resets} resets' for r in shipped())}")
