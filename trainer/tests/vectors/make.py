"""What PyTorch and torchvision compute for the same weights and images: tests/pytorch.rs compares.

    pip install torch torchvision && python make.py

Weights, images and labels follow from integer hashes, so the files have results only: a line for each tensor (name, norm
of its gradient, the gradient's first, middle and last value); one for the loss before each of five LARS steps and after
the last; and one for each tensor after them ("after", name, its norm, its first, middle and last value).
"""
import os
from collections import OrderedDict

import numpy as np
import torch
import torchvision
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
TRUST, DECAY, MOMENTUM, SMOOTHING = 0.02, 5e-4, 0.9, 0.1


def uniform(seed, n):
    """n numbers in [-1, 1): SplitMix64 from seed << 32, the upper 24 bits."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed << 32) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def is_weight(p):
    return p.dim() > 1


def fill(model):
    """Weights by He's rule, scales about 1, shifts and biases about 0.

    The last scales of residual branches are about 0.1. With 1 the loss after one step is 3.07 in f32, 3.12 in f64, and
    2.90 in f32 where images differ by a millionth: rounding decides.
    """
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            u = uniform(i + 1, p.numel())
            scale_of_norm = p.dim() == 1 and name.endswith("weight")
            value = u * np.sqrt(6.0 / p[0].numel()) if is_weight(p) else 0.1 * u + scale_of_norm
            value = 0.1 * value if name.endswith(".bn3.weight") else value
            p.copy_(torch.from_numpy(value.astype(np.float32)).reshape(p.shape))


def alexnet(width, classes):
    """The one-tower AlexNet with norms, for images of 32 pixels."""
    layers, channels = {}, 3
    outs = [width * 3 // 2, width * 4, width * 6, width * 6, width * 4]
    for i, (out, kernel) in enumerate(zip(outs, [5, 5, 3, 3, 3]), 1):
        layers[f"conv{i}"] = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        if i < 5:
            layers[f"bn{i}"] = nn.BatchNorm2d(out)
        layers[f"relu{i}"] = nn.ReLU()
        if i in (1, 2, 5):
            layers[f"pool{i}"] = nn.MaxPool2d(3, 2)
        channels = out
    layers["bn5"] = nn.BatchNorm2d(channels)
    layers["flatten"] = nn.Flatten()
    layers["fc6"], layers["relu6"] = nn.Linear(channels * 9, width * 64), nn.ReLU()
    layers["fc7"], layers["relu7"] = nn.Linear(width * 64, width * 64), nn.ReLU()
    layers["fc8"] = nn.Linear(width * 64, classes)
    return nn.Sequential(OrderedDict(layers))


def lars(p, v, rate):
    weight = is_weight(p)
    g = p.grad
    if weight:
        ratio = TRUST * p.norm() / (g.norm() + DECAY * p.norm())
        rate = rate * ratio
        g = g + DECAY * p
    v.mul_(MOMENTUM).sub_(rate * g)
    p.add_(v)


def line(name, values):
    v = values.double().flatten()
    some = [v.norm(), v[0], v[len(v) // 2], v[-1]]
    return " ".join([name, *(f"{x.item():.9e}" for x in some)]) + "\n"


def record(name, model, batch, size, rate, classes=10):
    fill(model)
    images = uniform(1000, batch * 3 * size * size).astype(np.float32).reshape(batch, 3, size, size)
    images, labels = torch.from_numpy(images), torch.arange(batch) % classes
    loss_of = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    velocity = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    with open(os.path.join(HERE, name + ".txt"), "w") as file:
        for step in range(6):
            model.zero_grad()
            loss = loss_of(model(images), labels)
            loss.backward()
            if step == 0:
                for n, p in model.named_parameters():
                    file.write(line(n, p.grad))
            file.write(f"loss {loss.item():.9e}\n")
            if step == 5:
                break
            with torch.no_grad():
                for n, p in model.named_parameters():
                    lars(p, velocity[n], rate)
        for n, p in model.named_parameters():
            file.write("after " + line(n, p.detach()))


torch.manual_seed(0)
torch.set_num_threads(1)
record("alexnet", alexnet(4, 10), 8, 32, rate=0.5)
record("resnet50", torchvision.models.resnet50(num_classes=10), 8, 64, rate=0.1)
