"""Laws whose quantities have limits that no run can cross: shares end at 1, counts of experts begin at 1."""

from __future__ import annotations

from typing import Any, ClassVar

from t5x_scale.core.errors import UserError
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Law, Values

SHARE = (0.0, 1.0)
COUNT = (1.0, float("inf"))


class BoundedLaw(Law):
    """A law that refuses what lies outside of `bounds`; outside of its domain it extrapolates."""

    bounds: ClassVar[Domain] = Domain()

    def checked(self, name: str, value: Any) -> Values:
        """As `Law.checked`.

        Raises:
          UserError: also for what is out of bounds.
        """
        found = super().checked(name, value)
        wrong = self.bounds.outside(**{name: found})
        if wrong:
            raise UserError(f"the law {self.name}: {wrong[0]}")
        return found
