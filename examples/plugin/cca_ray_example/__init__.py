"""A model family, an objective and a metric of one's own: `mixer`, `ipo` and `mean_distance`."""

from cca_ray_example.family import MixerFamily
from cca_ray_example.metric import MeanDistance
from cca_ray_example.objective import IPO

PLUGINS = [MixerFamily(), IPO, MeanDistance()]
