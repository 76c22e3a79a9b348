"""LoRA with PEFT: only the adapters have gradients, so only they are stepped and have a state."""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from radam_fused import FusedRAdam

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=64, vocab_size=256)
adapters = LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
model = get_peft_model(GPT2LMHeadModel(config), adapters)
model.print_trainable_parameters()
optimizer = FusedRAdam(model.parameters(), lr=1e-2)  # the frozen weights are not looked at

tokens = torch.randint(256, (8, 32))
for _ in range(options.steps):
    loss = model(input_ids=tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"final loss {loss.item():.4f}, {len(optimizer.state)} tensors with a state")
