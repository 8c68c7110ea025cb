"""The recipe: every field with its meaning, unit, default and allowed range.

Pure data. A recipe says *what* to train; what follows from it (accumulation, number of steps, memory, the
DeepSpeed configuration) is computed in `plan.py`. Fields use the standard terms of the field and are strict: an
unknown key, a string where a number belongs or a value out of range is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Section(BaseModel):
    """Base of all sections: unknown keys fail, types are not coerced, values never change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


def _described(default: Any, description: str, unit: str = "", **constraints: Any) -> Any:
    extra: dict[str, JsonValue] | None = {"unit": unit} if unit else None
    return Field(default, description=description, json_schema_extra=extra, **constraints)


REQUIRED: Any = ...
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"

ObjectiveName = Literal[
    "causal_lm",
    "masked_lm",
    "bert_pretraining",
    "seq2seq",
    "image_classification",
    "masked_image",
    "contrastive",
    "vision_language",
    "speech_to_text",
    "text_classification",
    "instruction",
    "preference",
    "distillation",
]
Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "adam", "sgd", "adagrad", "rmsprop", "lion", "muon"]
ScheduleName = Literal["constant", "linear", "cosine", "inverse_sqrt", "step", "exponential", "wsd"]


class Adapter(Section):
    """LoRA (Hu et al. 2021), through peft; merged into the weights on export."""

    rank: int = _described(8, "Rank of the update of each matrix.", ge=1)
    alpha: float = _described(16.0, "Scale of the update: alpha / rank.", gt=0.0)
    dropout: float = _described(0.0, "Probability of dropout before the adapter.", ge=0.0, lt=1.0)
    targets: list[str] = _described(
        [], "Names of the linear layers, such as q_proj; by default every linear layer but the head."
    )
    quantize: Literal["nf4"] | None = _described(
        None, "Hold the frozen weights in 4 bits (NF4, as QLoRA does); adapters keep the precision of training."
    )


class Experts(Section):
    """Settings of a mixture of experts that transformers' configuration does not have."""

    parallel: int = _described(
        1,
        "Ranks over which the experts of each layer are spread (DeepSpeed AutoEP); 1 keeps all on each.",
        "ranks",
        ge=1,
    )
    balance: float = _described(
        0.0, "Weight of the load-balancing loss (Fedus et al. 2021), added to the loss of the targets.", ge=0.0
    )
    z_loss: float = _described(
        0.0, "Weight of the router z-loss (Zoph et al. 2022), which keeps the routers' logits small.", ge=0.0
    )


class Model(Section):
    family: str = _described(
        REQUIRED,
        "Model type of transformers that has the head which the objective needs, such as gpt2, llama or qwen2.",
    )
    config: dict[str, Any] = _described(
        {}, "Fields of the family's transformers configuration; whatever is not named keeps its default there."
    )
    pretrained: str | None = _described(
        None,
        "Hub id, folder, prepared model or run:NAME (its newest finished run) with weights to start from; its "
        "configuration is used, `config` overrides it.",
    )
    dropout: float | None = _described(
        None, "Probability of every dropout in the model; by default what the configuration says.", ge=0.0, lt=1.0
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = _described(
        None, "Attention implementation of transformers. Default: sdpa where the family has it, else eager."
    )
    activation_checkpointing: bool = _described(
        False, "Recompute activations in the backward pass: less memory, about a third more compute."
    )
    compile: bool = _described(False, "Compile the model with torch.compile; needs a C++ compiler.")
    freeze: list[str] = _described(
        [], "Names of parts that are not trained, such as model.vision_tower.*; * stands for anything."
    )
    adapter: Adapter | None = _described(
        None, "Train low-rank adapters on the linear layers instead of the weights themselves (LoRA)."
    )
    experts: Experts = _described(Experts(), "Mixtures of experts: balance and where experts live.")


class Source(Section):
    """One source of documents: an embedded corpus (`source`) or anything that `load_dataset` streams (`path`)."""

    source: str | None = _described(
        None,
        "Embedded corpus that needs no download (python-docs, python-docstrings, python-code), or a set that "
        "`shardyard data prepare` has made ready (`shardyard data list`).",
    )
    path: str | None = _described(
        None, "Hub id, folder, or file or URL (.parquet, .jsonl, .json, .csv, .txt, each also .gz, with * allowed)."
    )
    config: str | None = _described(None, "Configuration (subset) of a hub dataset.")
    revision: str | None = _described(None, "Git revision of a hub dataset: pin it to repeat a run exactly.")
    split: str | None = _described(
        None, "Split to read; by default `train` under data.train and `validation` under data.validation."
    )
    text_column: str = _described("text", "Column that holds the text of a document.")
    columns: dict[str, str] = _described(
        {}, "Where columns are called otherwise than the objective calls them, such as {image: picture, text: caption}."
    )
    weight: float = _described(1.0, "Share of this source in the rows of training, relative to the others.", gt=0.0)
    holdout: float = _described(
        0.0,
        "Fraction of the documents, chosen by the hash of their text, that is kept for validation: a source under "
        "data.train leaves them out, the same source under data.validation reads only them.",
        ge=0.0,
        le=0.5,
    )


class Data(Section):
    sequence_length: int | None = _described(
        None,
        "Length of a row; longer examples are cut, and counted. Needed by every objective with text.",
        "tokens",
        ge=2,
    )
    source_length: int | None = _described(None, "Longest source of seq2seq. Default: sequence_length.", "tokens", ge=2)
    blind: bool = _described(
        False,
        "Replace what is translated or transcribed by nothing, in training and evaluation: the baseline that a model "
        "must beat to show that it uses its source (seq2seq, speech_to_text).",
    )
    train: list[Source] = _described(REQUIRED, "Sources of training documents, mixed by weight.", min_length=1)
    validation: list[Source] = _described(
        [], "Sources of held-out documents; by default what the training sources hold out."
    )
    isolate_documents: bool = _described(
        True, "Documents that share a row do not attend to each other and each starts at position 0."
    )
    shuffle_window: int = _described(
        256, "Documents that a lane reads and permutes together; 1 keeps the order of the source.", "documents", ge=1
    )
    lanes: int | None = _described(
        None,
        "Independent streams that the data is cut into; row j of the global batch comes from lane j modulo lanes, so "
        "the world size must divide it. Default: the largest divisor of the global batch up to 64.",
        ge=1,
    )
    prefetch: int = _described(4, "Global batches that are made ready in the background.", "batches", ge=1, le=1024)


class Loss(Section):
    """The loss of a target."""

    name: Literal["cross_entropy", "focal"] = _described("cross_entropy", "Loss of a target.")
    label_smoothing: float = _described(
        0.0, "Probability that the target gives to all classes alike (Szegedy et al. 2016).", ge=0.0, lt=1.0
    )
    focal_gamma: float = _described(2.0, "How much focal loss plays down what is predicted well.", ge=0.0)


class Masking(Section):
    """Which tokens BERT predicts (Devlin et al. 2018): 80% become the mask token, 10% a random one, 10% stay."""

    probability: float = _described(0.15, "Share of the tokens that are predicted.", gt=0.0, lt=1.0)
    whole_word: bool = _described(False, "Choose whole words instead of single pieces of them.")
    short_probability: float = _described(
        0.1, "Share of the rows that are cut to a random length, so that short texts are known too.", ge=0.0, le=1.0
    )


class Image(Section):
    """How pictures become tensors."""

    size: int | None = _described(
        None,
        "Height and width of the pictures. Default: image_size of the model's configuration, or 224 where it has none.",
        "pixels",
        ge=1,
    )
    mean: list[float] = _described([0.5], "Mean of each channel (one value for all), of values in 0 … 1.", min_length=1)
    std: list[float] = _described([0.5], "Standard deviation of each channel, likewise.", min_length=1)
    flip: bool = _described(False, "Training: mirror every second picture.")
    crop_padding: int = _described(
        0, "Training: pad by so many pixels and cut the size out again at a random place.", "pixels", ge=0
    )
    min_scale: float = _described(
        1.0, "Training: least area of a random crop that is resized; 1 takes the whole picture.", gt=0.0, le=1.0
    )
    rotate: float = _described(0.0, "Training: largest random rotation.", "degrees", ge=0.0, le=180.0)
    erase: float = _described(0.0, "Training: probability that a random rectangle is blanked.", ge=0.0, le=1.0)


class Audio(Section):
    """How recordings are changed in training; their length and features are those of the model's configuration."""

    shift: float = _described(0.0, "Longest random silence that is put before the recording.", "seconds", ge=0.0)
    speed: float = _described(
        0.0, "Largest random change of the speed, as a share of it (Ko et al. 2015).", ge=0.0, lt=1.0
    )
    time_masks: int = _described(0, "Stretches of time that are blanked (SpecAugment, Park et al. 2019).", ge=0)
    time_mask_frames: int = _described(20, "Longest of them, in frames of 10 ms.", "frames", ge=1)
    frequency_masks: int = _described(0, "Bands of frequencies that are blanked.", ge=0)
    frequency_mask_bins: int = _described(10, "Widest of them.", "Mel bins", ge=1)
    join: int = _described(
        1, "Most recordings, drawn at random, that follow each other in a row as far as they fit.", "recordings", ge=1
    )


class Preference(Section):
    """Direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = _described(0.1, "Strength of the pull towards the reference model.", gt=0.0)
    label_smoothing: float = _described(0.0, "Share of the preferences that are taken to be wrong.", ge=0.0, lt=0.5)


class Distillation(Section):
    """Learning from a teacher's probabilities (Hinton et al. 2015)."""

    teacher: str | None = _described(
        None, "Hub id, folder, or run:NAME of the teacher, a model with the same tokenizer."
    )
    temperature: float = _described(2.0, "Temperature of both distributions.", gt=0.0)
    weight: float = _described(0.5, "Share of the teacher's loss; the labels' has the rest.", ge=0.0, le=1.0)


class Train(Section):
    global_batch: int = _described(REQUIRED, "Rows in one optimizer step, over all ranks.", "sequences", ge=1)
    steps: int | None = _described(None, "Optimizer steps; give this or `tokens`.", "steps", ge=1)
    tokens: int | None = _described(
        None, "Training tokens, rounded up to whole steps; give this or `steps`.", "tokens", ge=1
    )
    micro_batch: int | None = _described(
        None,
        "Rows that one rank puts through the model at once. Default: the largest that divides a rank's share of the "
        "global batch, holds at most 8192 tokens and fits the memory.",
        "sequences",
        ge=1,
    )
    seed: int = _described(1234, "Seed of initial weights, data order and dropout.", ge=0, lt=2**32)
    precision: Precision = _described(
        "bf16", "Number format of the forward and backward pass; master weights are fp32."
    )
    gradient_clipping: float = _described(1.0, "Largest norm of the gradient; 0 turns clipping off.", ge=0.0)
    initial_loss_scale: int = _described(
        16, "First loss scale of fp16 as a power of two; it then adapts.", "log2", ge=0, le=32
    )
    threads: int | None = _described(
        None, "CPU threads a rank computes with. Default: cluster.cpus_per_worker.", "threads", ge=1
    )


class Optimizer(Section):
    name: OptimizerName = _described("adamw", "Optimizer.")
    lr: float = _described(REQUIRED, "Peak learning rate, which the schedule scales.", gt=0.0)
    weight_decay: float = _described(
        0.0,
        "Weight decay on all weights but norms and biases; decoupled, L2 for adam, sgd, adagrad and rmsprop.",
        ge=0.0,
    )
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = _described(
        [0.9, 0.95], "Decay rates of the running averages (adam, adamw, lion, muon's AdamW part)."
    )
    eps: float = _described(1e-8, "Term in the denominator for numerical stability.", gt=0.0)
    momentum: float = _described(0.9, "Momentum of sgd, rmsprop and muon.", ge=0.0, lt=1.0)
    nesterov: bool = _described(False, "Nesterov momentum (sgd).")
    alpha: float = _described(0.99, "Smoothing constant of rmsprop.", ge=0.0, lt=1.0)
    aux_lr: float | None = _described(
        None, "Learning rate of the AdamW that muon uses for embeddings, norms and biases. Default: lr.", gt=0.0
    )


class Schedule(Section):
    name: ScheduleName = _described("cosine", "Shape of the learning rate after the warm-up.")
    warmup: int = _described(0, "Steps over which the learning rate rises linearly to its peak.", "steps", ge=0)
    min_ratio: float = _described(
        0.1,
        "Learning rate at the end as a share of the peak (linear, cosine, wsd) or its floor (step, exponential).",
        ge=0.0,
        le=1.0,
    )
    decay_fraction: float = _described(0.2, "Share of the steps that wsd spends on its final decay.", gt=0.0, le=1.0)
    step_size: int | None = _described(None, "Steps between two drops of the step schedule.", "steps", ge=1)
    gamma: float = _described(
        0.5, "Factor of each drop (step), or of the decay over the whole run (exponential).", gt=0.0, le=1.0
    )


class Zero(Section):
    stage: Literal[0, 1, 2, 3] = _described(
        1, "ZeRO stage: 1 shards optimizer states over the ranks, 2 also gradients, 3 also parameters."
    )
    offload_optimizer: bool = _described(False, "Keep optimizer states in CPU memory (stages 1 to 3).")
    offload_parameters: bool = _described(False, "Keep parameters in CPU memory (stage 3).")
    bucket_bytes: int = _described(
        100_000_000, "Size of a bucket in which gradients are reduced and parameters gathered.", "bytes", ge=1_000_000
    )


class Checkpoint(Section):
    every: int | None = _described(
        None,
        "Steps between two checkpoints. Default: a tenth of the run; one is always written at the end.",
        "steps",
        ge=1,
    )
    keep: int = _described(
        3, "Newest checkpoints to keep; older ones are removed once a newer one is whole.", "checkpoints", ge=1
    )


class EarlyStopping(Section):
    metric: str = _described("eval/validation/loss", "Metric to watch, as the run records it.")
    patience: int = _described(
        REQUIRED, "Evaluations without improvement after which training ends.", "evaluations", ge=1
    )
    min_delta: float = _described(0.0, "Least change that counts as an improvement.", ge=0.0)


class Evaluate(Section):
    every: int | None = _described(
        None,
        "Steps between two evaluations. Default: a tenth of the run; one is always done at the end.",
        "steps",
        ge=1,
    )
    rows: int = _described(64, "Held-out rows in one evaluation, the same ones each time.", "sequences", ge=1)
    generate_rows: int = _described(
        0, "Held-out rows that are also decoded, for BLEU, chrF and error rates; 0 decodes none.", "sequences", ge=0
    )
    beams: int = _described(1, "Beams of the decoding; 1 is greedy.", ge=1)
    early_stopping: EarlyStopping | None = _described(None, "End when a validation metric no longer improves.")


class Sample(Section):
    prompts: list[str] = _described([], "Prompts that are continued after each evaluation, into samples.jsonl.")
    temperature: float = _described(
        0.0,
        "Randomness of the continuation: 0 takes the likeliest token, 1 draws from the model's probabilities.",
        ge=0.0,
    )
    max_new_tokens: int = _described(64, "Length of each continuation.", "tokens", ge=1)


class Wandb(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = _described(
        "auto", "auto is online where a key is found and offline otherwise; WANDB_MODE wins over this."
    )
    project: str = _described("shardyard", "W&B project.", min_length=1)
    entity: str | None = _described(None, "W&B entity (team or user).")
    group: str | None = _described(None, "W&B group.")


class Tracking(Section):
    every: int = _described(1, "Steps between two records in metrics.jsonl.", "steps", ge=1)
    tags: list[str] = _described([], "Free labels of the run.")
    wandb: Wandb = _described(Wandb(), "Weights & Biases, which mirrors the run folder.")


class Cluster(Section):
    workers: int = _described(1, "Ray workers; one rank each (the world size).", "ranks", ge=1)
    gpus_per_worker: Literal[0, 1] | None = _described(
        None, "GPUs of each worker. Default: 1 where the machine or cluster has GPUs, else 0.", "GPUs"
    )
    cpus_per_worker: int = _described(1, "CPU cores that Ray reserves for each worker.", "cores", ge=1)
    memory_per_worker: str | None = _described(
        None,
        "Memory of a worker's device, such as 80GiB, that the plan must fit. Default: that of the GPU found here.",
        "bytes",
        pattern=r"^\d+(\.\d+)? ?([KMGT]i?)?B$",
    )
    address: str | None = _described(None, "Ray cluster to use (RAY_ADDRESS wins); by default a local one is started.")
    max_failures: int = _described(
        3, "Restarts after failures, each from the newest whole checkpoint.", "restarts", ge=0
    )


class Recipe(Section):
    """One training run from end to end."""

    name: str = _described(REQUIRED, "Name of the run; its folder is called after it.", pattern=NAME_PATTERN)
    description: str = _described("", "What this recipe is for, in a sentence or two.")
    paper: str | None = _described(None, "Where the architecture and its settings come from.")
    expected: str | None = _described(None, "What a run of this recipe gives, and on what hardware.")
    model: Model = _described(REQUIRED, "The architecture.")
    objective: ObjectiveName = _described("causal_lm", "What the model learns to do.")
    tokenizer: str = _described("bytes", "Spec in tokenizers/ by name, or a path or hub id that AutoTokenizer loads.")
    loss: Loss = _described(Loss(), "How predictions are scored.")
    masking: Masking = _described(Masking(), "Which tokens are predicted (masked_lm, bert_pretraining).")
    image: Image = _described(Image(), "How pictures become tensors, and their augmentation.")
    audio: Audio = _described(Audio(), "Augmentation of recordings (speech_to_text).")
    preference: Preference = _described(Preference(), "Settings of the objective preference.")
    distillation: Distillation = _described(Distillation(), "Settings of the objective distillation.")
    data: Data = _described(REQUIRED, "Where documents come from and how they become rows.")
    train: Train = _described(REQUIRED, "Length, batch size and number format of training.")
    optimizer: Optimizer = _described(REQUIRED, "How gradients become updates.")
    schedule: Schedule = _described(Schedule(), "Learning rate over the steps.")
    zero: Zero = _described(Zero(), "How DeepSpeed ZeRO shards the model states.")
    checkpoint: Checkpoint = _described(Checkpoint(), "When the state is saved.")
    evaluate: Evaluate = _described(Evaluate(), "When held-out data is measured.")
    sample: Sample = _described(Sample(), "Continuations to watch during training.")
    tracking: Tracking = _described(Tracking(), "What is recorded and where.")
    cluster: Cluster = _described(Cluster(), "Where it runs.")
