"""The families of the modules that `--family` names, by their small bases."""

import sys

from cca_ray.registry import load_plugins
from cca_ray.testing.family_conformance import FamilyConformance
from cca_ray.testing.options import FAMILY_MODULES

load_plugins(FAMILY_MODULES)
for module in FAMILY_MODULES:
    for thing in sys.modules[module].PLUGINS:
        if thing.kind == "family":
            name = f"Test_{thing.name}"
            globals()[name] = type(name, (FamilyConformance,), {"family": thing, "__module__": __name__})
