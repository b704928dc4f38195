"""Where `tracking.pyfunc` was when version 0.1.0 packed its models: MLflow still finds their loader by this name."""

from cca_ray.tracking.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
