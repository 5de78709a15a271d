"""MixUp: its pairs, the distribution of lam, and that embeddings can be mixed instead of images."""

import numpy as np
import torch
from scipy import stats

from fastmlp.transforms.mixup import mix, mixup_lam, swap_partners


def test_mixup_pairs_and_weights():
    values = torch.arange(7.0)[:, None]
    assert swap_partners(values).ravel().tolist() == [1, 0, 3, 2, 5, 4, 6]
    assert torch.equal(torch.cat([swap_partners(values[:4]), swap_partners(values[4:])]), swap_partners(values))
    torch.testing.assert_close(mix(values, 0.25), 0.25 * values + 0.75 * swap_partners(values))
    assert mix(values, 1.0) is values and mixup_lam(0.0, 1, 1) == 1.0
    weights = np.array([mixup_lam(0.8, 0, step) for step in range(5000)])
    assert stats.kstest(weights, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    assert weights[3] == mixup_lam(0.8, 0, 3) != mixup_lam(0.8, 1, 3)
    assert mixup_lam(0.8, 0, 1) != mixup_lam(0.8, 1, 0)


def test_mixing_embeddings_equals_mixing_images():
    torch.manual_seed(0)
    embed, images = torch.nn.Linear(48, 16), torch.randn(9, 48)
    torch.testing.assert_close(mix(embed(images), 0.3), embed(mix(images, 0.3)), atol=1e-5, rtol=1e-5)
