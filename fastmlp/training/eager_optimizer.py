"""torch's optimisers without torch._dynamo, whose import takes two seconds and which nothing but a compiler needs.

torch.optim (torch 2.13) decorates methods so that a compiler leaves them alone, and imports it at their first call
(torch/_compile.py). Here they are called undecorated; what they compute, and what they save, is the same.
"""

import inspect

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """torch.optim.Optimizer, undecorated. A subclass's step needs torch.no_grad of its own."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class SGD(EagerOptimizer, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
