"""Settings of the built-in processes, which `distpro transfer --process NAME` and `distpro compare` run."""

from __future__ import annotations

from pydantic import Field

from distpro_cli.recipe.base import BelowOne, Model, PositiveInt, PositiveNumber


class Uniform(Model):
    """Every pathway of the recipe at one constant weight."""

    weight: PositiveNumber | None = Field(
        None, description="weight of every pathway; default: the one that a search starts from"
    )


class KnowledgeDistillation(Model):
    """Softened logits (Hinton et al. 2015): task loss + weight × T² × KL divergence."""

    weight: PositiveNumber = Field(1.0, description="weight of the divergence, T² included")
    temperature: PositiveNumber = Field(4.0, description="T, by which the logits of both networks are divided")


class Hint(Model):
    """One level regressed onto the teacher's through a 1×1 convolution (FitNets, Romero et al. 2015)."""

    weight: PositiveNumber = Field(1.0, description="weight of the mean squared error")
    level: PositiveInt | None = Field(
        None, description="number of the level in both networks; default: the middle one of the maps or tokens"
    )


class AttentionTransfer(Model):
    """Attention maps, level by level (Zagoruyko and Komodakis 2017), for any number of channels."""

    weight: PositiveNumber = Field(
        1000.0, description="weight of every level; the authors use 1000 with a mean over positions, as here"
    )


class ReviewKD(Model):
    """Knowledge review (Chen et al. 2021): fused levels, compared by the hierarchical context loss."""

    weight: PositiveNumber = Field(
        1.0,
        description="weight of every level; the authors use: ImageNet 1 (ResNet-18) and 8 (MobileNet), CIFAR-100 5 "
        "(WRN, x4), 0.6 (ResNet-20), 1 (ResNet-32)",
    )
    warmup: BelowOne = Field(
        0.0,
        description="share of the run over which the weight rises linearly from 0; CIFAR-100: 20 of 240 epochs = 0.083",
    )
    mid: PositiveInt | None = Field(
        None, description="channels of the fused maps; default: those of the student's deepest level, at most 512"
    )


class Pearson(Model):
    """Maps by 1 - Pearson's correlation of their channels (PKD, Cao et al. 2022), made for feature pyramids."""

    weight: PositiveNumber = Field(
        6.0, description="weight of every level; the authors use 6 for two-stage detectors, on P2 to P5"
    )


class DistillationToken(Model):
    """DeiT's distillation token under hard labels (Touvron et al. 2021), for students that have one."""

    weight: PositiveNumber = Field(
        1.0, description="weight of the distillation token's loss beside the class token's; the authors use equal ones"
    )


class Schemes(Model):
    """Settings of the built-in processes; plain, the student alone, has none."""

    uniform: Uniform = Field(Uniform(), description="the recipe's pathways at one weight")
    kd: KnowledgeDistillation = Field(KnowledgeDistillation(), description="softened logits")
    hint: Hint = Field(Hint(), description="one level regressed onto the teacher's")
    attention_transfer: AttentionTransfer = Field(AttentionTransfer(), description="attention maps, level by level")
    reviewkd: ReviewKD = Field(ReviewKD(), description="knowledge review")
    pkd: Pearson = Field(Pearson(), description="correlation of maps, channel by channel")
    deit: DistillationToken = Field(DistillationToken(), description="DeiT's distillation token")
