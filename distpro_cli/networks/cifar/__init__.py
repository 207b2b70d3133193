"""Networks of the distillation literature for 32×32 images (CRD, ReviewKD); importing registers them.

Architectures, parameter names and initialisation follow https://github.com/HobbitLong/RepDistiller, so that
its checkpoints load. Every network lists its stages in `feature_info`, as timm's networks do.
"""

from distpro_cli.networks.cifar import mobilenet, resnet, resnet50, shufflenet_v1, shufflenet_v2, vgg, wrn

__all__ = ["mobilenet", "resnet", "resnet50", "shufflenet_v1", "shufflenet_v2", "vgg", "wrn"]
