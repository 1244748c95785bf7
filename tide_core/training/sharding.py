"""A student in parts: FSDP2, for students whose weights, gradients and moments do not fit one GPU.

Each decoder layer is gathered for its own forward and backward and given up in between; embedding, final norm
and LM head are gathered from the student's forward until its backward, because the fused losses read the
head's weight after the forward. Names and shapes of the parameters stay as they are, so that a training state
is the same file for both forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from tide_core.models.student import BlockDiffusionStudent


def shard(student: BlockDiffusionStudent, device: torch.device, compute: torch.dtype | None) -> None:
    """Split the student over all trainers, in place; every trainer calls it with the same whole student.

    Args:
        student: whole, in float32; may lie on the CPU, from where a layer at a time goes to `device`.
        device: where this trainer computes.
        compute: dtype of the layers' forward and backward, None for the weights' own. Autocast would keep a
            copy of every gathered weight for the backward, and so hold the whole student after all.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for layer in student.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        register_fsdp_forward_method(layer, "at")
    # The losses read the head's weight in float32 after the forward: neither cast nor given up until then.
    fully_shard(student, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(student, "forward_at")


def is_sharded(student: nn.Module) -> bool:
    """Whether `shard` was called: then all trainers take part in each forward and each whole weight."""
    return isinstance(student, FSDPModule)


def gather_whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be in parts; if it is, every trainer must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This trainer's part of a whole tensor, cut as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return tensor
    # No source rank: every trainer has read the whole and cuts out its own part without a message.
    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


@contextmanager
def evaluation_mode(student: BlockDiffusionStudent) -> Iterator[None]:
    """Evaluation mode for a while; a student in parts gives up again what its forwards gathered."""
    student.eval()
    try:
        yield
    finally:
        student.train()
        if isinstance(student, FSDPModule):
            student.reshard()


def gather_student(student: BlockDiffusionStudent, rank: int) -> BlockDiffusionStudent | None:
    """The student in one piece, for the export; a student in parts is copied to the CPU of trainer 0 alone.

    Every trainer must call it. One parameter at a time is gathered on the device.
    """
    if not is_sharded(student):
        return student
    weights = {}
    for name, parameter in student.named_parameters():
        tensor = gather_whole(parameter.detach())
        if rank == 0:
            weights[name] = tensor.cpu()
    return BlockDiffusionStudent.of_parameters(student.config, weights) if rank == 0 else None
