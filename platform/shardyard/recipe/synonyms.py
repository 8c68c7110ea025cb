"""Field names of other tools: transformers' TrainingArguments, axolotl, Lightning, torchtune, litgpt, nanoGPT, NeMo.

Such a name is never accepted silently: it often means something else (the batch of one device instead of the global
batch), so the message states the field and the difference.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Synonym:
    """The field for a name, by dotted path, and the difference in meaning, if any."""

    path: str
    difference: str = ""


_WORKERS = "a worker is one process; cluster.gpus_per_worker says what each has"
_GLOBAL = "rows of one optimizer step, over all workers"
_MICRO = "rows of one worker at a time; train.global_batch counts those of a step"
_DERIVED = "accumulation follows from train.global_batch, train.micro_batch and cluster.workers"
_SHARE = "a number of steps"
_CONFIG = "names inside model.config are those of the family, as transformers has them"
_STREAM = "documents are streamed; one source is an entry of this list"

# field, its names in other tools, how it differs
_TABLE: tuple[tuple[str, str, str], ...] = (
    # optimizer
    ("optimizer.lr", "learning_rate max_lr peak_lr base_lr init_lr initial_lr", ""),
    ("optimizer.weight_decay", "wd decay l2", ""),
    ("optimizer.betas", "adam_beta1 adam_beta2 beta1 beta2 adam_betas", "both, as a list: [0.9, 0.95]"),
    ("optimizer.eps", "adam_epsilon epsilon optimizer_eps", ""),
    ("optimizer.name", "optim optimizer_name optimizer_type opt", ""),
    # schedule
    ("schedule.warmup", "warmup_steps num_warmup_steps lr_warmup_steps warmup_iters n_warmup_steps", ""),
    ("schedule.warmup", "warmup_ratio warmup_fraction warmup_proportion", ""),
    ("schedule.name", "lr_scheduler_type lr_scheduler scheduler scheduler_type lr_decay_style lr_schedule", ""),
    ("schedule.min_ratio", "min_lr min_learning_rate min_lr_ratio lr_min eta_min final_lr", "a share of optimizer.lr"),
    # train
    ("train.global_batch", "batch_size global_batch_size train_batch_size batch total_batch_size bs", _GLOBAL),
    (
        "train.micro_batch",
        "per_device_train_batch_size per_device_batch_size micro_batch_size mbs train_micro_batch_size_per_gpu",
        _MICRO,
    ),
    (
        "train.global_batch",
        "gradient_accumulation_steps accumulate_grad_batches grad_accum grad_accum_steps accumulation_steps ga",
        _DERIVED,
    ),
    (
        "train.steps",
        "max_steps num_steps total_steps train_steps num_train_steps max_iters train_iters iterations iters n_steps",
        "",
    ),
    ("train.epochs", "epochs num_epochs num_train_epochs max_epochs n_epochs epoch", ""),
    ("train.tokens", "max_tokens train_tokens num_tokens total_tokens token_budget", ""),
    ("train.seed", "random_seed manual_seed data_seed rng_seed", ""),
    ("train.precision", "bf16 fp16 fp32 dtype torch_dtype mixed_precision amp half precision_type", ""),
    (
        "train.gradient_clipping",
        "max_grad_norm grad_clip clip_grad gradient_clip_val clip_grad_norm grad_norm_clip gradient_clip",
        "",
    ),
    ("train.threads", "num_threads omp_num_threads cpu_threads", ""),
    # model
    ("model.family", "model_type architecture arch model_family", ""),
    (
        "model.pretrained",
        "model_name_or_path pretrained_model_name_or_path base_model model_name checkpoint_path init_from hf_model",
        "",
    ),
    ("model.config.num_hidden_layers", "num_hidden_layers num_layers layers depth", _CONFIG),
    ("model.config.n_layer", "n_layer n_layers", _CONFIG),
    ("model.config.n_head", "n_head n_heads", _CONFIG),
    ("model.config.num_attention_heads", "num_attention_heads num_heads heads", _CONFIG),
    ("model.config.n_embd", "n_embd n_embed embedding_size", _CONFIG),
    ("model.config.hidden_size", "hidden_size d_model dim embed_dim hidden_dim model_dim", _CONFIG),
    ("model.config.intermediate_size", "intermediate_size ffn_dim d_ff ffn_hidden_size mlp_dim", _CONFIG),
    ("model.config.num_key_value_heads", "num_key_value_heads n_kv_heads num_kv_heads", _CONFIG),
    ("model.config.n_positions", "n_positions n_ctx", f"the longest row that the model takes; {_CONFIG}"),
    (
        "model.config.max_position_embeddings",
        "max_position_embeddings",
        f"the longest row that the model takes; {_CONFIG}",
    ),
    ("model.config.vocab_size", "vocab_size vocabulary_size", "it follows from the tokenizer where it is not given"),
    ("model.dropout", "dropout_rate attn_pdrop resid_pdrop hidden_dropout", ""),
    ("model.attention", "attn_implementation flash_attention use_flash_attention flash_attn attention_backend", ""),
    (
        "model.activation_checkpointing",
        "gradient_checkpointing grad_checkpointing activation_checkpoint recompute checkpoint_activations",
        "",
    ),
    (
        "model.activation_checkpointing_interval",
        "every_n_layers checkpoint_every_n_layers activation_checkpoint_interval",
        "",
    ),
    (
        "model.offload_activations",
        "activation_offloading enable_activation_offloading cpu_checkpointing offload_checkpoints",
        "",
    ),
    ("model.mlp_chunk", "tiled_mlp tiled_mlp_num_shards mlp_tiling", "tokens at a time, not a number of parts"),
    ("model.compile", "torch_compile use_compile compile_model", ""),
    ("model.kernels", "use_liger_kernel use_liger liger_kernel enable_liger_kernel fused_kernels", ""),
    ("model.freeze", "frozen freeze_layers unfrozen_parameters", ""),
    ("model.adapter", "lora peft qlora adapters peft_config lora_config", ""),
    ("model.adapter.rank", "lora_r lora_rank", ""),
    ("model.adapter.alpha", "lora_alpha", ""),
    ("model.adapter.dropout", "lora_dropout", ""),
    ("model.adapter.targets", "target_modules lora_target_modules", ""),
    ("model.adapter.rslora", "use_rslora", ""),
    ("model.adapter.dora", "use_dora", ""),
    ("model.adapter.init", "init_lora_weights peft_init_lora_weights", ""),
    ("model.adapter.loraplus_ratio", "loraplus_lr_ratio", ""),
    ("model.adapter.pretrained", "lora_model_dir adapter_name_or_path", ""),
    ("model.adapter.quantize", "load_in_4bit load_in_8bit quantization bnb_4bit_quant_type", ""),
    ("model.experts", "moe mixture_of_experts num_experts", ""),
    ("parallel", "parallelism mesh device_mesh", ""),
    ("parallel.tensor", "tensor_parallel tensor_parallel_size tp_size tensor_model_parallel_size autotp_size", ""),
    (
        "parallel.sequence",
        "sequence_parallel sequence_parallel_size sp_size context_parallel context_parallel_size cp_size ulysses",
        "",
    ),
    ("parallel.expert", "expert_parallel expert_parallel_size ep_size expert_model_parallel_size", ""),
    ("parallel.data", "data_parallel data_parallel_size dp_size", "`rest` by default"),
    # objective and data
    ("objective", "training_task loss_type task_type head", ""),
    ("tokenizer", "tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer_type vocab vocab_file", ""),
    ("data", "dataset datasets data_config datamodule", ""),
    (
        "data.sequence_length",
        (
            "seq_len seq_length context_length context_window max_seq_length max_seq_len max_length block_size ctx_len "
            "context_size cutoff_len model_max_length"
        ),
        "",
    ),
    ("data.train", "train_data training_data train_dataset dataset_name dataset_path train_file train_files", _STREAM),
    (
        "data.validation",
        "val_data valid_data validation_data eval_dataset val_dataset validation_file dev_data",
        _STREAM,
    ),
    ("data.train.text_column", "text_field text_key text_column_name dataset_text_field", ""),
    ("data.train.split", "dataset_split train_split", ""),
    ("data.train.config", "dataset_config dataset_config_name subset", ""),
    ("data.train.weight", "sampling_weight mix_weight data_weight", ""),
    ("data.train.epochs", "max_epochs_per_source repeat num_repeats", "the most passes over a source"),
    ("data.train.tokens", "token_budget max_tokens", "the most tokens from a source"),
    (
        "data.temperature",
        "sampling_temperature mixing_temperature mixture_temperature",
        "the exponent α is 1/temperature",
    ),
    ("data.stages", "curriculum phases annealing data_stages", "a list; each begins `at` steps or a share of the run"),
    ("data.train.holdout", "val_fraction val_set_size validation_split test_size valid_fraction", ""),
    ("data.shuffle_window", "shuffle shuffle_buffer shuffle_buffer_size buffer_size", "documents; 1 keeps their order"),
    ("data.prefetch", "prefetch_factor dataloader_prefetch_factor", ""),
    ("data.readers", "num_workers dataloader_num_workers num_proc preprocessing_num_workers", ""),
    ("data.group_by_length", "length_grouped bucket_by_length bucketing length_column_name", ""),
    ("data.packing", "sample_packing pack_sequences", "best_fit or concat; documents are packed anyway"),
    # saving, measuring, watching
    ("checkpoint", "checkpointing checkpoints save", ""),
    (
        "checkpoint.every",
        "save_steps save_interval save_every checkpoint_interval ckpt_interval every_n_train_steps",
        "",
    ),
    ("checkpoint.shard_size", "max_shard_size shard_bytes", ""),
    ("checkpoint.keep", "save_total_limit keep_last max_checkpoints save_top_k keep_checkpoints", ""),
    ("evaluate", "eval evaluation val", ""),
    ("evaluate.every", "eval_steps eval_interval eval_every val_check_interval eval_freq evaluation_steps", _SHARE),
    ("evaluate.rows", "eval_iters max_eval_samples eval_samples limit_val_batches eval_batches", "rows, not batches"),
    ("evaluate.early_stopping", "early_stopping_callback early_stop", ""),
    ("evaluate.early_stopping.patience", "early_stopping_patience", ""),
    ("sample", "generation generate inference", ""),
    ("sample.prompts", "prompt prompts eval_prompts sample_prompts", ""),
    ("tracking", "logging log logger report_to loggers", ""),
    ("tracking.every", "logging_steps log_interval log_every log_every_n_steps print_every", _SHARE),
    ("tracking.wandb", "wandb wandb_log use_wandb wandb_config", ""),
    ("tracking.wandb.project", "wandb_project project_name", ""),
    ("tracking.wandb.entity", "wandb_entity", ""),
    ("name", "run_name experiment_name wandb_run_name exp_name experiment", ""),
    # where it runs
    ("cluster", "ray scaling_config resources distributed", ""),
    (
        "cluster.workers",
        "gpus num_gpus n_gpus devices num_devices num_processes nproc_per_node world_size num_workers_total ngpus",
        _WORKERS,
    ),
    ("cluster.workers", "num_nodes nnodes num_machines", f"those of all nodes together; {_WORKERS}"),
    ("cluster.max_failures", "max_restarts max_retries failure_config", ""),
    ("zero", "deepspeed fsdp sharding strategy zero_optimization deepspeed_config ds_config", ""),
    ("zero.stage", "zero_stage deepspeed_stage sharding_strategy", ""),
    ("zero.offload_optimizer", "cpu_offload offload offload_optimizer_device", ""),
    ("zero.offload_parameters", "offload_param offload_params", ""),
    ("zero.nvme_path", "nvme_folder swap_folder offload_path offload_folder", ""),
    (
        "zero.communication_data_type",
        "reduce_dtype grad_reduce_in_fp32 reduce_in_fp32 allreduce_dtype communication_dtype grad_reduce_dtype",
        "",
    ),
    ("zero.grad_accum_dtype", "gradient_accumulation_dtype accumulate_allreduce_grads_in_fp32 data_types", ""),
    ("zero.bucket_bytes", "reduce_bucket_size allgather_bucket_size ddp_bucket_size bucket_cap_mb", "here in bytes"),
    ("zero.hpz_partition_size", "zero_hpz_partition_size hpz zero_hpz", ""),
    ("zero.live_parameters", "stage3_max_live_parameters max_live_parameters stage3_max_reuse_distance", ""),
    (
        "zero.persistence_threshold",
        "stage3_param_persistence_threshold param_persistence_threshold min_num_params",
        "",
    ),
    # sections under other names
    ("train", "training trainer training_args training_arguments train_args", ""),
    ("optimizer", "optimizers optimization", ""),
    ("schedule", "lr_scheduler_config scheduler_config schedules", ""),
    ("model", "net models model_args", ""),
    ("model.config", "model_config config architecture_config model_kwargs", ""),
)
SYNONYMS: dict[str, Synonym] = {
    name: Synonym(path, difference) for path, names, difference in _TABLE for name in names.split()
}


def synonym(name: str) -> Synonym | None:
    """The field for a name of another tool; letter case and dashes are ignored."""
    return SYNONYMS.get(name.strip().lower().replace("-", "_"))
