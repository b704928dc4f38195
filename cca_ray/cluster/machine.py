"""What a worker computes with: processor, threads, card, versions. Two machines that differ round differently."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from cca_ray.cluster.device import local_device
from cca_ray.contracts import Machine
from cca_ray.registry import digest_of

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "pillow", "pyarrow", "ray", "optuna", "mlflow")
PACKAGE = Path(__file__).parents[1]


def machine_here() -> Machine:
    """Of this process."""
    return Machine(
        processor=processor(),
        arithmetic=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        card=torch.cuda.get_device_name() if local_device().type == "cuda" else "",
        python=platform.python_version(),
        libraries={name: version(name) for name in LIBRARIES},
        source=digest_of("cca_ray"),
        revision=revision(),
    )


def processor() -> str:
    """Its name, as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


FULL = 40  # digits of a commit


def revision(digits: int = 12) -> str:
    """The commit of the checkout that this package lies in, `-dirty` if the package was changed; empty without one."""
    if not (PACKAGE.parent / ".git").exists():
        return ""
    git = ["git", "-C", str(PACKAGE.parent)]
    try:
        found = subprocess.run(  # noqa: S603 (our words)
            [*git, "rev-parse", f"--short={digits}", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", PACKAGE.name], timeout=10)  # noqa: S603
        return found.stdout.strip() + ("-dirty" if same.returncode else "")
    except (OSError, subprocess.SubprocessError):  # there is no git, or the checkout is another user's
        return ""
