"""Hugging Face's Trainer: pass the optimizer's class, and resume from a checkpoint."""

import argparse
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=64, vocab_size=256)
tokens = torch.randint(256, (64, 32))
data = [{"input_ids": row, "labels": row} for row in tokens]


def trainer_for(folder: str, steps: int) -> Trainer:
    """A trainer that saves a checkpoint at its last step."""
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        save_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        GPT2LMHeadModel(config),
        arguments,
        train_dataset=data,
        optimizer_cls_and_kwargs=(FusedRAdam, {"lr": arguments.learning_rate}),
    )


with tempfile.TemporaryDirectory() as folder:
    trainer_for(folder, options.steps // 2).train()
    resumed = trainer_for(folder, options.steps)
    result = resumed.train(resume_from_checkpoint=True)
    print(f"final loss {result.training_loss:.4f} at step {result.global_step}")
