"""Fine-tune in a loop of your own: the training form is an ordinary module, its gradients are straight-through.

Usage: python examples/own_training_loop.py [--tiny]
"""

import argparse

import torch
from torch.nn import functional as F

import binarize
from binarize.demo import network, training
from binarize.layers.binary import binary_layers


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(words)
    epochs, limit = (1, 256) if given.tiny else (given.epochs, None)
    torch.manual_seed(0)
    model = network.network()
    training.train(model, epochs=epochs)
    train = binarize.load_data("digits:train", batch_size=64, shuffle=True, limit=limit)
    test = binarize.load_data("digits:test", batch_size=64)

    net = binarize.convert(model, scheme="xnor-net", data=train)
    before = binarize.evaluate(net, test).top1

    # Layers have scales of their own: let Adam move a weight by 2 % of the way between its levels, -mean and +mean.
    latent = {id(layer.weight) for _, layer in binary_layers(net)}
    groups = [
        {"params": [p], "lr": (0.04 if id(p) in latent else 0.005) * float(p.detach().abs().mean())}
        for p in net.parameters()
        if p.dim() > 1
    ]
    optimiser = torch.optim.Adam(groups)
    net.train()
    for _ in range(epochs):
        for images, _ in train:
            with torch.no_grad():
                target = model(images).softmax(1)
            optimiser.zero_grad()
            F.cross_entropy(net(images), target).backward()
            optimiser.step()
    net.eval()

    packed = binarize.pack(net)
    print(f"converted {before:.1%}, fine-tuned and packed {binarize.evaluate(packed, test).top1:.1%}")


if __name__ == "__main__":
    main()
