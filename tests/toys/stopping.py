"""A hypergradient that stops rank 1 in the middle of a run: by a signal, or by an error of the user's."""

import os

from distpro_cli.errors import DistproError
from distpro_cli.training.hypergradients import register_hypergradient
from distpro_cli.training.hypergradients.cheap import CheapHypergradient

STEP = 7


@register_hypergradient("stopping")
class Stopping(CheapHypergradient):
    """The cheap one; $STOPS_BY says what happens before step 7 of a run that was not started again."""

    def step(self, inner, outer, weights_k, step):
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        stops_by = os.environ.get("STOPS_BY", "")
        if stops_by and step == STEP and os.environ.get("RANK") == "1" and not again:
            if stops_by == "error":
                raise DistproError("rank 1 has had enough")
            os.kill(os.getpid(), int(stops_by))
        return super().step(inner, outer, weights_k, step)
