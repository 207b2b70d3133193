"""What there is to do, counted, and what it costs on a machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a piece of a training step does, counted from shapes alone as if all were float32; each ≥ 0.

    Attributes:
        moved_bytes: All that operations read and write.
        flops: Floating-point operations of convolutions and matrix products, but for `backward_flops`.
        backward_flops: Those of the products in a convolution's backward pass.
        operations: How many run a kernel; a new view of a tensor does not.
    """

    moved_bytes: float
    flops: float
    backward_flops: float
    operations: float


@dataclass(frozen=True)
class Machine:
    """What takes as long as moving a byte; the defaults are built in, read off a server's CPU core in float32 (80
    GFLOP/s forward, 57 backward, 13 GB/s).

    Attributes:
        flops_per_byte: Floating-point operations of a convolution or matrix product, above 0. A matrix product does
            not say which pass it belongs to, and backward ones take little longer than forward ones.
        backward_factor: How much longer a convolution's products take in a backward pass than their number says, ≥ 0.
        operation_bytes: Bytes that are moved in the time that an operation takes whatever its size, ≥ 0.
        name: Where it was measured, such as `cpu, 2 threads, float32`; empty: built in.
    """

    flops_per_byte: float = 6.0
    backward_factor: float = 1.4
    operation_bytes: float = 0.0
    name: str = ""

    def cost(self, work: Work) -> float:
        """Returns the cost of work, in bytes moved."""
        flops = work.flops + self.backward_factor * work.backward_flops
        return work.moved_bytes + flops / self.flops_per_byte + self.operation_bytes * work.operations


BUILT_IN = Machine()
