"""A number with its error: a 95 % interval, and how probable it is that the truth is on one side, by Student's t."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Estimate:
    """`freedom`: the degrees of freedom of its standard error; 0 where there is no error to speak of."""

    value: float
    error: float
    freedom: float

    @staticmethod
    def of(value: float, variances: Sequence[tuple[float, int]]) -> "Estimate":
        """From independent variances with their degrees of freedom, added up (Satterthwaite 1946)."""
        whole = sum(variance for variance, _ in variances)
        freedom = float(min(count for _, count in variances))
        if whole > 0 and freedom > 0:
            freedom = whole**2 / sum(variance**2 / count for variance, count in variances)
        return Estimate(value, whole**0.5, freedom)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """That covers the truth in this share of cases."""
        half = self.error * float(stdtrit(self.freedom, (1 + level) / 2))
        return self.value - half, self.value + half

    def probability_not_above(self, limit: float) -> float:
        """That the truth is at most `limit`, if nothing was known of it before."""
        if not self.error:
            return float(self.value <= limit)
        return float(stdtr(self.freedom, (limit - self.value) / self.error))

    def negative(self) -> "Estimate":
        return replace(self, value=-self.value)
