"""Published SO8T modules in PyTorch, written from their description: what the import is compared with."""

import math

import torch
from torch import nn

TOKENS = torch.arange(2, 26).reshape(2, 12)


def logits(model):
    """Of a language model, for some tokens."""
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def skew(theta):
    return theta - theta.transpose(-1, -2)


def cayley(theta):
    eye = torch.eye(8, dtype=theta.dtype)
    return torch.linalg.solve(eye - skew(theta) / 2, eye + skew(theta) / 2)


def exact(theta):
    return torch.linalg.matrix_exp(skew(theta))


def exp_l4(theta):
    """Scaling per block, squaring for all blocks as often as the largest one needs."""
    a = skew(theta)
    norm = torch.linalg.matrix_norm(a, keepdim=True)
    s = torch.clamp(torch.ceil(torch.log2(norm + 1e-7)), min=0)
    b = a / (torch.exp2(s) + 1e-7)
    total = torch.eye(8, dtype=theta.dtype).expand_as(a).clone()
    power = torch.eye(8, dtype=theta.dtype).expand_as(a)
    for k in range(1, 13):
        power = power @ b
        total = total + power / math.factorial(k)
    for _ in range(int(s.max())):
        total = total @ total
    return total


def exp_l5(theta):
    """Every block scaled to norm 1, all blocks squared if one of them is 1 or more."""
    eye = torch.eye(8, dtype=theta.dtype)
    b = skew(theta) + 1e-6 * eye
    scale = torch.clamp(torch.linalg.matrix_norm(b, keepdim=True), max=1.0)
    b = b / (scale + 1e-8)
    total, power = eye.expand_as(b).clone(), b.clone()
    for k in range(1, 11):
        total = total + power / math.factorial(k)
        power = power @ b
    for _ in range(int(scale.int().max())):
        total = total @ total
    return total


class Gate(nn.Module):
    """``y = x R`` block by block."""

    def __init__(self, theta, build):
        super().__init__()
        self.theta, self.build = nn.Parameter(theta), build

    def forward(self, x):
        blocks = x.reshape(*x.shape[:-1], -1, 8)
        return torch.einsum("btni,nio->btno", blocks, self.build(self.theta)).reshape(x.shape)


class Wrapper(nn.Module):
    """Attention inside a module that turns its output, as layouts L4 and L6c are."""

    def __init__(self, attention, gate, inner, name, unused=()):
        super().__init__()
        self.inner, self.gate_name = inner, name
        self.add_module(inner, attention)
        self.add_module(name, gate)
        for other in unused:
            self.add_module(other, Gate(gate.theta.detach().clone(), gate.build))

    def forward(self, *args, **kwargs):
        first, *rest = getattr(self, self.inner)(*args, **kwargs)
        return getattr(self, self.gate_name)(first), *rest
