"""A GPT-style transformer over bytes in plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend, self.feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(self.attend(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(functional.gelu(self.up(self.feed(x))))


class Transformer(nn.Module):
    """Predicts the next byte."""

    def __init__(
        self, width: int = 256, layers: int = 4, heads: int = 4, context: int = 64
    ) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        h = self.bytes(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        # The mean of a bfloat16 loss would have three digits.
        logits = self.head(self.last(h)).float()
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())
