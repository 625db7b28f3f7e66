"""The updates of a run by plain PyTorch, on the whole batch at once, and the norms they have."""

import math

import torch

from data_pipeline.augment import normalise
from models.layer_groups import layer_groups
from models.param_groups import weight_decay_groups
from models.zoo import build_model

# Both sides add in another order; bf16's weights are rounded on one side only.
TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 1e-2}


def expected_norms(plan, architecture, batches, clip_norm):
    """Metrics of each step that `pretrain.norms` should give, from (images, labels) of each."""
    model = build_model(architecture, seed=plan.config.seed)
    optimizer = torch.optim.AdamW(weight_decay_groups(model, plan.config.optim.weight_decay))
    group_of = layer_groups(name for name, _ in model.named_parameters())
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(normalise(images)), labels).backward()
        parameters = dict(model.named_parameters())
        gradients = {name: p.grad.clone() for name, p in parameters.items()}
        before = {name: p.detach().clone() for name, p in parameters.items()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        updates = {name: p.detach() - before[name] for name, p in parameters.items()}
        metrics = {}
        for group in (*dict.fromkeys(group_of.values()), "all"):
            inside = [name for name in parameters if group in ("all", group_of[name])]
            gradient, weight, update = (
                math.sqrt(sum(float(tensors[name].double().square().sum()) for name in inside))
                for tensors in (gradients, {n: p.detach() for n, p in parameters.items()}, updates)
            )
            if group != "all":
                metrics[f"grad_norm/{group}"] = gradient
            metrics[f"weight_norm/{group}"] = weight
            if weight:
                metrics[f"relative_update/{group}"] = update / weight
        yield metrics


def batches_of(loader, plan, steps):
    """Images and labels of the first global batches of a one-rank loader; it starts anew after."""
    per_step = plan.accumulation_steps
    micro = [next(loader) for _ in range(steps * per_step)]
    loader.skip_to(0)
    for first in range(0, len(micro), per_step):
        step = micro[first : first + per_step]
        yield torch.cat([b.images for b in step]), torch.cat([b.labels for b in step])
