"""Architectures of the zoo that read sequences: recurrent ones and transformers, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 97


class LSTMClassifier(nn.Module):
    """Two layers, both directions; the last states of both decide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 30)
        self.lstm = nn.LSTM(30, 22, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.fc = nn.Linear(2 * 22, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embed(tokens))
        return self.fc(torch.cat([hidden[-2], hidden[-1]], 1))


class GRUTagger(nn.Module):
    """A tag for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 30)
        self.gru, self.fc = nn.GRU(30, 26, 2, batch_first=True), nn.Linear(26, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.gru(self.embed(tokens))[0])


class ElmanNet(nn.Module):
    """nn.RNN, the sequence first, and a layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.rnn, self.fc2 = nn.Linear(9, 30), nn.RNN(30, 34), nn.Linear(34, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.rnn(torch.relu(self.fc1(x)).transpose(0, 1))[0][-1])


class ProjectedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 30)
        self.lstm = nn.LSTM(30, 38, 2, batch_first=True, proj_size=22)
        self.fc = nn.Linear(22, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embed(tokens))[0].mean(1))


class Unrolled(nn.Module):
    """A cell called in Python once a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.fc = nn.Embedding(VOCABULARY, 30), nn.GRUCell(30, 26), nn.Linear(26, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        state = torch.zeros(x.shape[0], self.cell.hidden_size)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.fc(state)


class CRNN(nn.Module):
    """Columns of convolved pictures read as a sequence: channels × height are the LSTM's inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 18, 3, 2, 1), nn.BatchNorm2d(18)
        self.conv2, self.norm2 = nn.Conv2d(18, 26, 3, (2, 1), 1), nn.BatchNorm2d(26)
        self.lstm, self.fc = nn.LSTM(26 * 8, 34, batch_first=True, bidirectional=True), nn.Linear(2 * 34, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = x.permute(0, 3, 1, 2).flatten(2)
        return self.fc(self.lstm(x)[0])


class FusedAttention(nn.Module):
    """Queries, keys and values from one matrix, as timm has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, width))


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), FusedAttention(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.cls, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, 80) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """nn.TransformerEncoder over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(VOCABULARY, 48), nn.Parameter(torch.randn(10, 48))
        layer = nn.TransformerEncoderLayer(48, 4, 80, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(48), enable_nested_tensor=False)
        self.head = nn.Linear(48, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens) + self.places).mean(1))


class CrossAttention(nn.Module):
    """nn.MultiheadAttention whose keys and values come from elsewhere and have widths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, 48))
        self.read = nn.Linear(9, 26)
        self.attend = nn.MultiheadAttention(48, 4, kdim=26, vdim=26, batch_first=True)
        self.norm, self.inner, self.out = nn.LayerNorm(48), nn.Linear(48, 80), nn.Linear(80, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.read(x))
        queries = self.queries.expand(x.shape[0], -1, -1)
        y, _ = self.attend(queries, x, x, need_weights=False)
        return self.out(F.relu(self.inner(self.norm(queries + y))))


class Translator(nn.Module):
    """nn.Transformer: an encoder, a causal decoder, and cross attention between them."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, 52), nn.Embedding(89, 52)
        self.transformer = nn.Transformer(52, 4, 1, 1, 76, batch_first=True)
        self.head = nn.Linear(52, 89)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(7), persistent=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x = self.transformer(self.source(source), self.target(target), tgt_mask=self.mask, tgt_is_causal=True)
        return self.head(x)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class LlamaBlock(nn.Module):
    """Rotary places, queries grouped on fewer keys, SwiGLU."""

    def __init__(self, width: int, heads: int, shared: int, inner: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q, self.o = nn.Linear(width, heads * self.size, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        y = self.norm1(x)
        q = rotate(self.q(y).view(batch, tokens, self.heads, self.size).transpose(1, 2), cos, sin)
        k = rotate(self.k(y).view(batch, tokens, self.shared, self.size).transpose(1, 2), cos, sin)
        v = self.v(y).view(batch, tokens, self.shared, self.size).transpose(1, 2)
        k, v = (z.repeat_interleave(self.heads // self.shared, dim=1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + self.o(y)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Llama(nn.Module):
    def __init__(self, width: int = 48, heads: int = 4, tokens: int = 10) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, 2, 80) for _ in range(2))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        half = width // heads // 2
        angles = torch.arange(tokens)[:, None] * 100.0 ** (-torch.arange(half) / half)
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


class TiedModel(nn.Module):
    """The head is the embedding's own matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(VOCABULARY, 48), nn.Linear(48, 80), nn.Linear(80, 48)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.fc2(F.gelu(self.fc1(x)))))


class EinsumAttention(nn.Module):
    """Weights of shape [heads, width, size], and einsum for all products."""

    def __init__(self, width: int = 40, heads: int = 4, size: int = 14) -> None:
        super().__init__()
        self.read = nn.Linear(9, width)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(heads, width, size)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(heads, size, width))
        self.norm, self.out, self.scale = nn.LayerNorm(width), nn.Linear(width, 7), size**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        q, k, v = (torch.einsum("btw,hwd->bhtd", x, w) for w in (self.q, self.k, self.v))
        attention = torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) * self.scale, -1)
        y = torch.einsum("bhij,bhjd->bhid", attention, v)
        return self.out(self.norm(x + torch.einsum("bhtd,hdw->btw", y, self.o)))
