"""The chunked loss and its gradients equal the naive form to the last digits, in a fraction of its memory."""

import pytest
import torch
import torch.nn.functional as F

from lotlip_data.training import loss as losses
from lotlip_data.training.loss import contrastive_loss, lotlip_loss, one_way_loss, project_on_principal_components
from tests.training.peak_memory import peak_memory

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def naive(image, text, scale, local_rows=None):
    """Eq. 1–3 as they are written, with ½ and the batch mean."""
    logits = scale * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def inputs(batch, dim=16, *shape, dtype=torch.float64):
    torch.manual_seed(batch)
    image, short = (F.normalize(torch.randn(batch, dim, dtype=dtype), dim=-1).requires_grad_() for _ in range(2))
    long = F.normalize(torch.randn(batch, *shape, dim, dtype=dtype), dim=-1).requires_grad_()
    return image, short, long, torch.tensor(1 / 0.07, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("max_logits", [1, 50, 10**6])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_loss_and_gradients_equal_the_naive_form_for_any_chunk_size(monkeypatch, max_logits, reduction):
    monkeypatch.setattr(losses, "MAX_LOGITS", max_logits)
    arguments = inputs(23, 16, 3, 3)
    image, short, long, scale = arguments
    terms = [naive(image, short, scale)] + [naive(image, long[:, t, c], scale) for t in range(3) for c in range(3)]
    total = sum(terms) if reduction == "sum" else sum(terms) / len(terms)
    expected = torch.autograd.grad(total, arguments)
    loss = lotlip_loss(*arguments, reduction)
    torch.testing.assert_close(loss.total, total, **EXACT)
    torch.testing.assert_close(loss.short + loss.long, total, **EXACT)
    for gradient, exact in zip(torch.autograd.grad(loss.total, arguments), expected, strict=True):
        torch.testing.assert_close(gradient, exact, **EXACT)


def test_gradients_are_the_derivatives_by_finite_differences():
    image, short, _, scale = inputs(7, 5)
    assert torch.autograd.gradcheck(contrastive_loss, (image, short, scale))


def test_the_shares_of_processes_add_up_to_the_batch():
    """Each process has some of the queries and all keys. Loss and gradients equal those of the whole batch."""
    image, text, _, scale = inputs(24)
    whole = one_way_loss(image, text, scale)
    expected = torch.autograd.grad(whole, (image, text, scale))
    shares = [one_way_loss(image[first : first + 6], text, scale, first) for first in range(0, 24, 6)]
    torch.testing.assert_close(sum(shares), whole, **EXACT)
    for gradient, exact in zip(torch.autograd.grad(sum(shares), (image, text, scale)), expected, strict=True):
        torch.testing.assert_close(gradient, exact, **EXACT)


def test_the_loss_is_in_float32_under_autocast_too():
    arguments = inputs(8, 16, 2, 3, dtype=torch.float32)
    expected = torch.autograd.grad(lotlip_loss(*arguments).total, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = torch.autograd.grad(lotlip_loss(*arguments).total, arguments)
    assert all(map(torch.equal, gradients, expected))


def test_locked_features_get_no_gradient():
    image, short, long, scale = inputs(8, 16, 1, 1)
    image = image.detach()
    lotlip_loss(image, short, long, scale).total.backward()
    assert image.grad is None and short.grad is not None and long.grad is not None


def test_peak_memory_does_not_hold_the_logits_of_every_text_set():
    """With 10 sets of 1,024 texts, the naive form keeps the tables of all sets, the chunked form those of one chunk."""

    def peak(form, max_logits=None):
        image, short, long, scale = inputs(1024, 16, 3, 3, dtype=torch.float32)
        with pytest.MonkeyPatch.context() as patch, peak_memory() as memory:
            patch.setattr(losses, "contrastive_loss", form)
            if max_logits:
                patch.setattr(losses, "MAX_LOGITS", max_logits)
            lotlip_loss(image.detach(), short, long, scale).total.backward()
        return memory.peak

    table = 4 * 1024**2
    features = 4 * 1024 * 16 * 10
    assert peak(naive) > 20 * table
    assert peak(contrastive_loss) < 4 * table + 6 * features
    assert peak(contrastive_loss, max_logits=1024 * 32) < table / 4 + 6 * features  # linear in the batch, not quadratic


def test_the_principal_components_are_those_of_the_singular_value_decomposition():
    image = inputs(40, 12)[0]
    mean = image.mean(0)
    u, s, v = torch.linalg.svd(image - mean, full_matrices=False)
    rebuilt = mean + (u[:, :5] * s[:5]) @ v[:5]
    torch.testing.assert_close(project_on_principal_components(image, 5), rebuilt, **EXACT)
    torch.testing.assert_close(project_on_principal_components(image, 12), image, **EXACT)


def test_only_short_texts_are_matched_to_the_principal_components():
    image, short, long, scale = inputs(40, 16, 1, 1)
    rebuilt = project_on_principal_components(image, 4)
    loss = lotlip_loss(image, short, long, scale, short_image=rebuilt)
    torch.testing.assert_close(loss.short, naive(rebuilt, short, scale), **EXACT)
    torch.testing.assert_close(loss.long, naive(image, long[:, 0, 0], scale), **EXACT)
