"""Networks of the distillation literature for 32×32 images (CRD, ReviewKD), a family per module.

Architectures, parameter names and initialisation follow https://github.com/HobbitLong/RepDistiller, so that
its checkpoints load. Every network lists its stages in `feature_info`, as timm's networks do.
"""
