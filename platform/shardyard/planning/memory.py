"""The memory of one rank, estimated before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shardyard.objectives.registry import objective_spec
from shardyard.planning.activations import Kept, checkpointed_share
from shardyard.planning.architecture import Architecture
from shardyard.planning.offload import swap_buffer_bytes, swapped_bytes
from shardyard.planning.reduction import BYTES, accumulation_type, buckets_of, reduces_afterwards
from shardyard.planning.zero3 import gathered_parameters, gradient_bytes
from shardyard.recipe.isolation import is_packed, isolation_of
from shardyard.recipe.mesh import MeshShape
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Optimizer, Recipe
from shardyard.recipe.sections.eight_bits import EIGHT_BITS, eight_bit_bytes

# 4 bits, plus one fp32 scale for each block of 64 weights; 8 bits, with a scale for each row, which is not counted.
QUANTIZED_BYTES_PER_WEIGHT = {"nf4": 0.5 + 4 / 64, "int8": 1.0}


# Hashes of replicated weights: of these, so many bytes are put together, and so many bytes of products exist at once.
HASHED_TOGETHER_BYTES = 16 << 20
HASH_PRODUCTS_BYTES = {"cpu": 2 << 20, "cuda": 16 << 20}

# Gradients of activations in the block whose backward pass runs, in parts of what the block keeps. Measured as 0.4 to
# 0.6 (`tests/numerics/memory/test_memory_peaks.py`): those of a block are freed one by one, as its activations are.
BACKWARD = 0.5


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank needs, by purpose; `device` is the accelerator or, without one, the host's RAM.

    offloaded_bytes: in host memory; swapped_bytes: in files.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    buffers_bytes: int
    offloaded_bytes: int
    swapped_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        """Peak device memory of a step."""
        return (
            self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.buffers_bytes
        )


def estimate_memory(
    recipe: Recipe, architecture: Architecture, mesh: MeshShape, *, micro_batch: int, gpu: bool = True
) -> Memory:
    """Model states according to Rajbhandari et al. 2020 (ZeRO), section 3, in the layout that DeepSpeed allocates.

    Sharded states are divided by the data-parallel size; offloaded states count for the host, not for the device.

    Args:
        gpu: whether ranks compute on GPUs, where reductions overlap the backward pass.
    """
    architecture = on_a_tensor_rank(architecture, mesh)
    stage, width = recipe.zero.stage, _parameter_bytes(recipe)
    count = architecture.trained_parameters
    adapters = count if recipe.model.adapter is not None else 0
    quantized = architecture.quantized_parameters
    # Experts on other ranks. What ZeRO shards is still divided by the data-parallel size.
    elsewhere = architecture.expert_parameters - architecture.expert_parameters // mesh.expert
    parameters = width * (architecture.parameters + adapters - quantized - (elsewhere if stage < 3 else 0))
    gradients = BYTES[accumulation_type(recipe)] * (count - (elsewhere if stage < 2 else 0))
    # ZeRO keeps an fp32 master copy of its partition even if the parameters are fp32.
    master = 4 * count if stage or width == 2 else 0
    optimizer = master + _state_bytes(recipe.optimizer, count)
    if stage >= 1:
        optimizer //= mesh.zero
    if stage >= 2:
        gradients //= mesh.zero
    gathered = 0
    if stage == 3:
        # hpZ keeps a second copy of the weights, shared by fewer ranks.
        second = parameters // recipe.zero.hpz_partition_size if recipe.zero.hpz_partition_size > 1 else 0
        parameters = parameters // mesh.zero + second
        gathered = width * gathered_parameters(recipe, architecture, mesh)
    frozen = architecture.frozen_parameters
    if objective_spec(recipe.objective).frozen == "reference" and recipe.model.adapter is None:
        frozen = architecture.parameters
    parameters += width * frozen // (mesh.data if stage == 3 else 1)
    if recipe.model.adapter is not None and recipe.model.adapter.quantize is not None:
        # Quantised weights are buffers, which ZeRO does not shard.
        parameters += round(QUANTIZED_BYTES_PER_WEIGHT[recipe.model.adapter.quantize] * quantized)
    owned = count // (mesh.zero if stage else 1)
    swapped = swapped_bytes(recipe, optimizer, owned)
    offloaded = (optimizer if recipe.zero.offload_optimizer and not swapped else 0) + (
        parameters if recipe.zero.offload_parameters else 0
    )
    offloaded += swap_buffer_bytes(recipe, architecture, mesh.zero, owned)
    logits = sum(_logits(recipe, architecture, micro_batch)) // mesh.sequence
    activations, inputs, block = _activations(recipe, architecture, mesh, micro_batch)
    step = _Step(logits, activations, block, gpu)
    reductions = max(
        _reductions(recipe, architecture, mesh, step),
        _hashed_bytes(recipe, architecture, mesh, gpu=gpu) - activations - logits,
    )
    several = recipe.train.global_batch > mesh.data * micro_batch
    at_once = gradients if several else _gradients_of_the_only_batch(recipe, gradients, step)
    return Memory(
        parameters_bytes=gathered + (0 if recipe.zero.offload_parameters else parameters),
        gradients_bytes=at_once,
        optimizer_bytes=0 if recipe.zero.offload_optimizer else optimizer,
        activations_bytes=activations + _mask_of_shared_rows(recipe, mesh, micro_batch),
        # Each rank of a tensor-parallel group has the logits of the whole vocabulary.
        logits_bytes=logits,
        buffers_bytes=reductions + _second_gradients(recipe, gradients, mesh, micro_batch),
        offloaded_bytes=offloaded + inputs,
        swapped_bytes=swapped,
    )


@dataclass(frozen=True)
class _Step:
    """Bytes at the peak of a step: logits; activations of all blocks; what a block keeps for its backward pass."""

    logits: int
    activations: int
    block: float
    gpu: bool


def _reductions(recipe: Recipe, architecture: Architecture, mesh: MeshShape, step: _Step) -> int:
    """Bytes of gradients that are collected and reduced, beside the logits and activations of a step's peak.

    Copies of a reduction exist while a block runs backward: after the logits, and with activation checkpointing before
    or after the block has most gradients of activations. Buckets of stages 1 and 2 come with the first gradient, after
    the logits; that of stage 3 stays.
    """
    trained, logits, block = architecture.trained_parameters, step.logits, step.block
    if reduces_afterwards(recipe):
        # The activations are gone then. Experts on other ranks have no gradients here.
        own = trained - (architecture.expert_parameters - architecture.expert_parameters // mesh.expert)
        found = buckets_of(recipe, own, mesh.zero)
        return max(0, found.collected + found.converted - step.activations - logits)
    recomputes = recipe.model.checkpointing != "none"
    working = ((1 + BACKWARD) if recomputes else _backward_of_fused(architecture)) * block
    # What a block has kept or recomputed, and its gradients, beside copies of other gradients.
    beside = block if recomputes else working
    if recipe.zero.stage < 3:
        found = buckets_of(recipe, trained, mesh.zero, gpu=step.gpu)
        copies = 0 if found.at_the_end else found.converted
        peak = found.collected + max(working, beside + copies)
        after = found.collected + found.converted - step.activations - logits
        return round(max(0.0, after, peak - max(logits, working)))
    bucket, copies = gradient_bytes(recipe, architecture, mesh)
    return bucket + round(max(0.0, beside + copies - max(logits, working)))


def _gradients_of_the_only_batch(recipe: Recipe, gradients: int, step: _Step) -> int:
    """Without ZeRO in fp32, gradients of a step's only micro-batch come as its activations go, those of the first block
    last. So at the peak there are as many as are more than the activations that are gone by then."""
    if recipe.zero.stage or precision_of(recipe) != "fp32":
        return gradients
    gone = step.activations + step.logits - (1 + BACKWARD) * step.block
    return max(0, min(gradients, round(gradients - gone)))


def _hashed_bytes(recipe: Recipe, architecture: Architecture, mesh: MeshShape, *, gpu: bool) -> int:
    """What hashing the replicated weights of a step takes, when its activations are gone: small weights put together,
    and the products of some of them (`engine/anomalies/content_hash.py`)."""
    if recipe.zero.stage == 3 or mesh.world == 1 or not recipe.cluster.replicas.every:
        return 0
    # Quantised weights are buffers, and other ranks' experts are not here.
    elsewhere = architecture.expert_parameters - architecture.expert_parameters // mesh.expert
    adapters = architecture.trained_parameters if recipe.model.adapter is not None else 0
    own = architecture.parameters - architecture.quantized_parameters - elsewhere + adapters
    weights = _parameter_bytes(recipe) * own
    return min(weights, HASHED_TOGETHER_BYTES) + min(weights, HASH_PRODUCTS_BYTES["cuda" if gpu else "cpu"])


def _backward_of_fused(architecture: Architecture) -> float:
    """Gradients of activations of a block in parts of what it keeps. Counted rows of models that are no decoders hold
    attention matrices, which fused kernels do not store: room for gradients."""
    return BACKWARD if architecture.flops_per_row is None else 0.0


def _second_gradients(recipe: Recipe, gradients: int, mesh: MeshShape, micro_batch: int) -> int:
    """Gradients in the model's number format beside their sum.

    At stage 1 with a sum in fp32, DeepSpeed keeps those of all weights, and sets them to zero. At stage 2, it keeps
    those of a micro-batch beside the sum of those before it, if the sum has their format; another sum is added to
    directly.
    """
    if recipe.zero.stage == 1 and reduces_afterwards(recipe):
        return gradients * BYTES[precision_of(recipe)] // BYTES[accumulation_type(recipe)]
    several = recipe.train.global_batch > mesh.data * micro_batch
    same = accumulation_type(recipe) == precision_of(recipe)
    return gradients if recipe.zero.stage == 2 and several and same else 0


def on_a_tensor_rank(architecture: Architecture, mesh: MeshShape) -> Architecture:
    """The weights of one rank of a tensor-parallel group: an equal part of every matrix of the blocks, and the whole
    embeddings, output head and routed experts."""
    if mesh.tensor == 1:
        return architecture
    head = architecture.vocabulary * architecture.hidden_size
    used = architecture.active_parameters or architecture.parameters
    # Embeddings and head; the head is counted once if it is tied.
    whole = max(0, used - architecture.matmul_parameters) + head + architecture.expert_parameters
    own = whole + max(0, architecture.parameters - whole) // mesh.tensor
    share = own / architecture.parameters
    experts = architecture.block_experts
    trained = architecture.trainable_parameters
    return replace(
        architecture,
        parameters=own,
        largest_block_parameters=experts + (architecture.largest_block_parameters - experts) // mesh.tensor,
        trainable_parameters=None if trained is None else round(trained * share),
        quantized_parameters=round(architecture.quantized_parameters * share),
    )


def _block_share(mesh: MeshShape) -> float:
    """The part of a block's activations that a rank of a tensor-parallel group holds; of the block's input, all.

    Korthikanti et al. 2022, equation 2: 10 of 34 bytes a token and unit of width are inputs of matrices and norms,
    which ranks of a tensor-parallel group hold whole.
    """
    return (10 + 24 / mesh.tensor) / 34


def _mask_of_shared_rows(recipe: Recipe, mesh: MeshShape, micro_batch: int) -> int:
    """The mask of whole rows that every rank of a sequence builds if their documents do not see each other."""
    if mesh.sequence == 1 or not is_packed(recipe) or recipe.data.isolation == "rows":
        return 0
    return micro_batch * (recipe.data.sequence_length or 0) ** 2


def _parameter_bytes(recipe: Recipe) -> int:
    return 4 if precision_of(recipe) == "fp32" else 2


def _state_bytes(optimizer: Optimizer, weights: int) -> int:
    """Bytes of what the optimizer keeps for so many weights."""
    return eight_bit_bytes(weights) if optimizer.name in EIGHT_BITS else 4 * weights * _states_per_parameter(optimizer)


def _states_per_parameter(optimizer: Optimizer) -> int:
    """fp32 numbers that the optimizer keeps for each weight."""
    if optimizer.name in ("adam", "adamw"):
        return 2
    if optimizer.name == "rmsprop":
        return 2 if optimizer.momentum else 1
    if optimizer.name == "sgd":
        return 1 if optimizer.momentum else 0
    return 1


def kept_of(recipe: Recipe, architecture: Architecture) -> Kept:
    """What the model keeps of a token in the recipe's precision: counted, or else by the formula for decoders."""
    width = _parameter_bytes(recipe)
    if architecture.flops_per_row is not None and architecture.kept_32 is not None:
        one = architecture.kept_32
        return one if width == 4 else one.halved()
    kept = architecture.kept_16 if width == 2 else architecture.kept_32
    if kept is None or recipe.model.compile:  # compiled, element-wise operations keep what the formula counts
        kept = _by_formula(architecture, width)
    if recipe.model.attention == "eager" and not kept.pairs:
        kept = replace(kept, pairs=2.5 * width * architecture.heads * architecture.layers)
    elif is_packed(recipe) and isolation_of(recipe.data) == "positions" and recipe.model.attention in (None, "sdpa"):
        # transformers makes a mask of the documents of a row, of which each layer stores a copy in its number format.
        kept = replace(kept, pairs=kept.pairs + width * (kept.count or architecture.layers))
    return kept


def _activations(
    recipe: Recipe, architecture: Architecture, mesh: MeshShape, micro_batch: int
) -> tuple[int, int, float]:
    """Bytes of activations on the device, of those that are offloaded to the host, and of the largest block.

    With activation checkpointing, the inputs of blocks are stored, and what else the mode keeps, plus one block that is
    being recomputed.
    """
    length = recipe.data.sequence_length or 0
    tokens = micro_batch * objective_spec(recipe.objective).sequences * length
    if architecture.flops_per_row is not None:
        tokens = micro_batch * (architecture.tokens_per_row or length)
    kept, model = kept_of(recipe, architecture), recipe.model
    inner = _inner_of_parts(recipe, architecture, kept, tokens)
    kept = replace(kept, blocks=kept.blocks - inner * (kept.count or architecture.layers), largest=kept.largest - inner)
    # One part at a time is computed again, at the end of which its activations and their gradients exist.
    part = round((1 + BACKWARD) * _block_share(mesh) * inner * min(model.mlp_chunk, tokens))
    scores = kept.pairs * length
    mask = _parameter_bytes(recipe) * tokens * length if recipe.data.isolation == "mask" else 0  # one for all layers
    mode, count = model.checkpointing, kept.count or architecture.layers
    recomputed = checkpointed_share(mode, model.activation_checkpointing_interval, count)
    share = _block_share(mesh)
    backward = _backward_of_fused(architecture)
    logits, _ = _logits(recipe, architecture, micro_batch)
    block = share * (kept.largest + scores / max(1, count))
    blocks = share * (kept.blocks + scores)
    if mode == "none":
        # The logits and their gradients are gone before the first block runs backward.
        working = max(0.0, max(tokens * backward * block, part) - logits)
        device = tokens * (kept.rest + blocks) + working + mask
        return round(device / mesh.sequence), 0, tokens * block
    # The logits and their gradients are gone before the first block is recomputed.
    there = kept.selected / max(1, count) if mode == "selective" else 0.0
    # So are the activations of the blocks after it, which are not checkpointed.
    after = (count - 1) % model.activation_checkpointing_interval * block if count else 0.0
    working = max(0.0, ((1 + backward) * block - share * there - after) * tokens - logits)
    stored = kept.rest + recomputed * kept.again(mode) + (1 - recomputed) * blocks
    # Of the offloaded inputs, that of a block in use and one on its way are on the device.
    away = max(0.0, recomputed - 2 / max(1, count)) * kept.inputs if model.offload_activations else 0.0
    device = tokens * (stored - away) + working + mask + part
    return round(device / mesh.sequence), round(tokens * away / mesh.sequence), tokens * block / mesh.sequence


def _inner_of_parts(recipe: Recipe, architecture: Architecture, kept: Kept, tokens: int) -> float:
    """Bytes of each token inside the feed-forward part of a block, if `model.mlp_chunk` computes it in parts: they are
    kept of one part alone. A gated layer keeps both products, the activation and what it gates, another one two."""
    layer = architecture.layer
    if not 0 < recipe.model.mlp_chunk < tokens or layer is None or layer.experts:
        return 0.0
    return min(kept.largest, _parameter_bytes(recipe) * layer.mlp_width * (4.0 if layer.gated else 2.0))


def _by_formula(architecture: Architecture, width: int) -> Kept:
    """Korthikanti et al. 2022, section 4: 34·d bytes a token and block in 16 bits, without attention matrices."""
    block = 17.0 * width * architecture.hidden_size
    inputs = float(width * architecture.hidden_size * architecture.layers)
    # Of these 34: queries, keys and values 6, attention and its projection 4, the wide layer 8, the narrow one 2.
    selected = 10.0 * inputs
    return Kept(block * architecture.layers, block, inputs, 0.0, 0.0, selected, count=architecture.layers)


def _logits(recipe: Recipe, architecture: Architecture, micro_batch: int) -> tuple[int, int]:
    """Bytes of the logits in the model's precision and in fp32 for the loss, and of the gradients of both; with
    `model.logits_chunk`, of so many tokens, and then also the gradient of the output matrix: of one chunk, and the sum
    in fp32. The z-loss keeps the logits of a chunk, which whole ones do anyway."""
    width, spec = _parameter_bytes(recipe), objective_spec(recipe.objective)
    logits = (recipe.data.sequence_length or 0) * spec.sequences * architecture.vocabulary
    if architecture.flops_per_row is not None:
        logits = architecture.logits_per_row
    logits *= micro_batch
    # Only hidden tokens are targets, and of these alone the loss takes logits.
    targets = round(logits * recipe.masking.probability) if "masking" in spec.sections else logits
    each = 2 * (width + 4)
    if spec.frozen == "teacher":
        # Most exists when the divergence is computed, before the labels' loss: logits of both; in fp32 both logarithms,
        # a distribution, the difference of the logarithms and their product; and where the distribution is not 0.
        each = 2 * width + 5 * 4 + 1
    chunk = (recipe.model.logits_chunk or 0) * architecture.vocabulary
    if not 0 < chunk < targets:
        # Those of all tokens, or their gradients, are beside copies of those of the targets.
        return each * targets + (width * logits if targets < logits else 0), 0
    kept = width * chunk if recipe.loss.z_loss else 0
    return each * chunk + kept, (width + 4) * architecture.vocabulary * architecture.hidden_size
