"""Several processes that train one student, started by torchrun or `accelerate launch`; alone, every call is nothing.

Each process takes a share of a step's units; the gradients, already divided by the whole step's normaliser, are summed
as one flat vector, so that the step is the one that a single process would have made. Process 0 alone writes the log
and the checkpoints and decides when to stop; evaluations run everywhere, since the others could only wait.

`shard` spreads the frozen weights over the devices (FSDP2, torch.distributed.fsdp.fully_shard): a decoder layer is
gathered while it computes. What is trained stands whole in every process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from potstill import progress
from potstill.errors import PotstillError

from .packing import Unit, micro_batches

T = TypeVar("T")
PATIENCE = timedelta(hours=24)  # process 0 may distil for hours before training begins; torchrun ends a broken group


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def first() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def join() -> None:
    """Meet the other processes, each with a device of its own; all but the first are silent from here on."""
    import torch
    from torch import distributed

    if count() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not first():
        progress.hush()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Part from the others, once all have come here."""
    from torch import distributed

    if count() > 1 and distributed.is_initialized():
        wait()
        distributed.destroy_process_group()


def agreed(value: T) -> T:
    """Process 0's value, everywhere."""
    if count() == 1:
        return value
    from torch import distributed

    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def by_first(make: Callable[[], T]) -> T:
    """What process 0 makes, everywhere; the others make nothing."""
    made: Any = make() if first() else None
    found: T = agreed(made)
    return found


def gathered(value: T) -> list[T]:
    """Every process's value, in their order."""
    if count() == 1:
        return [value]
    from torch import distributed

    held: list[Any] = [None] * count()
    distributed.all_gather_object(held, value)
    return held


def draw_apart(seed: int, step: int) -> None:
    """Give every process but the first random numbers of its own for a step, a function of seed, step and rank alone.

    The first one's go on from step to step and are in its checkpoints.
    """
    if not first():
        import torch

        digest = hashlib.sha256(f"{seed}/{step}/{rank()}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def wait() -> None:
    """Go on when all processes have come here."""
    gathered(None)


def add_up(vector: Any) -> None:
    """Replace a tensor by its sum over the processes, the same bits in each."""
    if count() > 1:
        from torch import distributed

        distributed.all_reduce(vector)


def take_from_first(vector: Any) -> None:
    """Replace a tensor by process 0's."""
    if count() > 1:
        from torch import distributed

        distributed.broadcast(vector, src=0)


def shares(units: Sequence[Unit], among: int) -> list[list[Unit]]:
    """The units in `among` parts of about as many tokens (longest first, to whoever has least), each in their order."""
    taken: list[list[int]] = [[] for _ in range(among)]
    tokens = [0] * among
    for at in sorted(range(len(units)), key=lambda at: (-units[at].tokens, at)):
        least = tokens.index(min(tokens))
        taken[least].append(at)
        tokens[least] += units[at].tokens
    return [[units[at] for at in sorted(part)] for part in taken]


def rounds(units: Sequence[Unit], micro_tokens: int) -> Iterator[tuple[list[Unit], bool]]:
    """This process's micro-batches of a step, and whether each counts.

    Every process gets as many, since sharded weights are gathered by all at once: one that is done before the others
    computes a unit again, which does not count.
    """
    parts = [micro_batches(part, micro_tokens) for part in shares(units, count())]
    own = parts[rank()]
    for at in range(max(len(part) for part in parts)):
        yield (own[at], True) if at < len(own) else ([min(units, key=lambda unit: unit.tokens)], False)


def shard(model: Any) -> Any:
    """Spread the frozen weights of the decoder layers over the processes (in place), one layer after the other.

    A model on the CPU comes to the cards so: none ever holds more than its shares, a whole layer, and what all hold.
    """
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not distributed.is_initialized():
        raise PotstillError("train.shard: full needs several processes; start the stage by torchrun (docs/gpus.md)")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = inner.get_decoder()
    mesh = init_device_mesh(device, (count(),))
    trained = {each for each in model.parameters() if each.requires_grad}
    for layer in decoder.layers:
        plain_quantised(layer)
        fully_shard(layer, mesh=mesh, ignored_params=trained)
    inside = {id(each) for layer in decoder.layers for each in layer.parameters()}
    outside = {each for each in decoder.parameters() if id(each) not in inside}
    fully_shard(decoder, mesh=mesh, ignored_params=trained | outside)
    bring_the_rest(model, device)
    return model


def bring_the_rest(model: Any, to: Any) -> None:
    """Bring what is not spread to a device: embeddings, head, adapter, buffers. Parameters stay the same objects."""
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        for each in module._parameters.values():
            if each is not None and not isinstance(each, DTensor):
                each.data = each.data.to(to)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(to)


def plain_quantised(layer: Any) -> None:
    """Make bitsandbytes' 4-bit weights plain parameters, which FSDP2 can cut.

    Their quantisation state stays with the module, from where bitsandbytes takes it back at the next forward pass. The
    bytes must be stored as a floating-point type (models.load_nf4 does so), the only kind that gathers with the rest.
    """
    import torch

    for module in layer.modules():
        weight = module._parameters.get("weight")  # of the layer itself: a peft layer shows that of its base
        state = getattr(weight, "quant_state", None)
        if state is not None:
            module.quant_state = state
            module.weight = torch.nn.Parameter(weight.data, requires_grad=False)
