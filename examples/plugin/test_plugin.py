"""What every family, objective and metric must do: pytest examples/plugin, where the package is installed."""

from cca_ray.testing.family_conformance import FamilyConformance
from cca_ray.testing.metric_conformance import MetricConformance
from cca_ray.testing.objective_conformance import ObjectiveConformance
from cca_ray_example.family import MixerFamily
from cca_ray_example.metric import MeanDistance
from cca_ray_example.objective import IPO


class TestMixer(FamilyConformance):
    family = MixerFamily()


class TestIPO(ObjectiveConformance):
    objective = IPO


class TestMeanDistance(MetricConformance):
    metric = MeanDistance()
