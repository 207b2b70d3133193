"""How the outer loss depends on every weight: one way per file, behind one interface (`base.Hypergradient`).

| name | how | cost |
| --- | --- | --- |
| cheap | gradient of D_k where the pathway starts times the start's change along v | one more student forward |
| exact | autograd through the student, pathway by pathway | K more backward passes |
| central-difference | second-order scheme of DARTS (Liu et al. 2019): whole steps at w ± εv | three more whole steps |
"""

from distpro_cli.training.hypergradients.base import (
    HYPERGRADIENTS,
    Hypergradient,
    make_hypergradient,
    register_hypergradient,
)

__all__ = ["HYPERGRADIENTS", "Hypergradient", "make_hypergradient", "register_hypergradient"]
