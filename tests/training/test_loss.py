"""The chunked losses and their gradients equal the naive forms to the last digits, in a fraction of their memory."""

import math

import pytest
import torch
import torch.nn.functional as F

from lotlip_data.training import loss as losses
from lotlip_data.training.loss import (
    contrastive_loss,
    loss_of_guessing,
    lotlip_loss,
    one_way_loss,
    project_on_principal_components,
    sigmoid_loss,
)
from tests.training.peak_memory import peak_memory

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def naive(image, text, scale, local_rows=None, smoothing=0.0):
    """Eq. 1–3 as they are written, with ½ and the batch mean."""
    logits = scale * image @ text.T
    target = torch.arange(len(image))
    both_ways = [F.cross_entropy(each, target, label_smoothing=smoothing) for each in (logits, logits.T)]
    return sum(both_ways) / 2


def naive_sigmoid(image, text, scale, bias, local_rows=None):
    """SigLIP's loss (arXiv 2303.15343, Algorithm 1): labels 1 for pairs and -1 for others, over all pairs, by B."""
    labels = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(labels * (scale * image @ text.T + bias)).sum() / len(image)


def smoothed(image, text, scale):
    return naive(image, text, scale, smoothing=0.1)


FORMS = {
    "softmax": (contrastive_loss, naive, False),
    "smoothed softmax": (lambda *inputs: contrastive_loss(*inputs, label_smoothing=0.1), smoothed, False),
    "sigmoid": (sigmoid_loss, naive_sigmoid, True),
}
"""The chunked form of a loss, its naive form, and whether it has a bias."""


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


def form_inputs(has_bias, batch, dim=16):
    image, text, _, scale = inputs(batch, dim)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    return (image, text, scale, bias) if has_bias else (image, text, scale)


@pytest.mark.parametrize("max_logits", [1, 50, 10**6])
@pytest.mark.parametrize("name", FORMS)
def test_each_form_and_its_gradients_equal_the_naive_one_for_any_chunk_size(monkeypatch, name, max_logits):
    monkeypatch.setattr(losses, "MAX_LOGITS", max_logits)
    chunked, plain, has_bias = FORMS[name]
    arguments = form_inputs(has_bias, 23)
    value, expected = chunked(*arguments), plain(*arguments)
    torch.testing.assert_close(value, expected, **EXACT)
    gradients = torch.autograd.grad(value, arguments), torch.autograd.grad(expected, arguments)
    for gradient, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, exact, **EXACT)


@pytest.mark.parametrize("name", FORMS)
def test_gradients_are_the_derivatives_by_finite_differences(name):
    chunked, _, has_bias = FORMS[name]
    assert torch.autograd.gradcheck(chunked, form_inputs(has_bias, 7, 5))


@pytest.mark.parametrize("name", FORMS)
def test_the_shares_of_processes_add_up_to_the_batch(name):
    """Each process has some of the rows and all columns. Loss and gradients equal those of the whole batch."""
    chunked, _, has_bias = FORMS[name]
    arguments = form_inputs(has_bias, 24)
    whole = chunked(*arguments)
    expected = torch.autograd.grad(whole, arguments)
    shares = [chunked(*arguments, slice(first, first + 6)) for first in range(0, 24, 6)]
    torch.testing.assert_close(sum(shares), whole, **EXACT)
    for gradient, exact in zip(torch.autograd.grad(sum(shares), arguments), expected, strict=True):
        torch.testing.assert_close(gradient, exact, **EXACT)


def test_a_one_way_loss_of_some_queries_is_their_share():
    image, text, _, scale = inputs(24)
    shares = [one_way_loss(image[first : first + 6], text, scale, first) for first in range(0, 24, 6)]
    torch.testing.assert_close(sum(shares), one_way_loss(image, text, scale), **EXACT)


def test_the_sigmoid_loss_is_that_of_open_clip():
    from open_clip.loss import SigLipLoss

    arguments = form_inputs(True, 23)
    theirs = SigLipLoss()(*arguments)
    ours = sigmoid_loss(*arguments)
    torch.testing.assert_close(ours, theirs, **EXACT)
    for gradient, exact in zip(
        torch.autograd.grad(ours, arguments), torch.autograd.grad(theirs, arguments), strict=True
    ):
        torch.testing.assert_close(gradient, exact, **EXACT)


def test_the_sigmoid_loss_stays_exact_at_large_logits():
    """SigLIP's own checkpoints have a scale above 100."""
    image = inputs(5)[0]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        arguments = [each.detach().to(dtype) for each in (image, image, torch.tensor(1000.0), torch.tensor(-10.0))]
        torch.testing.assert_close(sigmoid_loss(*arguments), naive_sigmoid(*arguments), rtol=tolerance, atol=1e-12)


def test_the_mean_of_sigmoid_losses_is_the_multi_positive_loss_of_flair():
    """-log σ of all B × B·K pairs, K positives per image, divided by B·K (FLAIR's code, `mps_loss`)."""
    image, short, long, scale = inputs(9, 16, 3, 1)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    texts = torch.cat([short[:, None], long[:, :, 0]], dim=1)  # [B, K, D]
    logits = scale * image @ texts.flatten(0, 1).T + bias
    labels = 2 * torch.eye(9, dtype=torch.float64).repeat_interleave(4, dim=1) - 1
    expected = -F.logsigmoid(labels * logits).sum() / (9 * 4)
    arguments = (image, short, long, scale, bias)
    value = lotlip_loss(image, short, long, scale, "mean", bias=bias).total
    torch.testing.assert_close(value, expected, **EXACT)
    for gradient, exact in zip(
        torch.autograd.grad(value, arguments), torch.autograd.grad(expected, arguments), strict=True
    ):
        torch.testing.assert_close(gradient, exact, **EXACT)


def test_a_short_weight_weighs_the_short_loss_against_the_sum_of_the_long_ones():
    image, short, long, scale = inputs(12, 16, 2, 1)
    loss = lotlip_loss(image, short, long, scale, short_weight=0.1)
    torch.testing.assert_close(loss.short, 0.1 * naive(image, short, scale), **EXACT)
    torch.testing.assert_close(loss.long, 0.9 * sum(naive(image, long[:, t, 0], scale) for t in range(2)), **EXACT)
    torch.testing.assert_close(loss.total, loss.short + loss.long, **EXACT)


@pytest.mark.parametrize("bias", [None, -10.0, -3.0])
def test_the_loss_of_guessing_is_that_of_orthogonal_features(bias):
    image, text = torch.eye(32, dtype=torch.float64).split(16)
    scale = torch.tensor(10.0, dtype=torch.float64)
    if bias is None:
        expected = contrastive_loss(image, text, scale)
    else:
        expected = sigmoid_loss(image, text, scale, torch.tensor(bias, dtype=torch.float64))
    assert loss_of_guessing(16, bias) == pytest.approx(expected.item(), rel=1e-12)
    assert bias is not None or loss_of_guessing(16) == math.log(16)


@pytest.mark.parametrize("bias", [None, torch.tensor(-10.0)])
def test_the_loss_is_in_float32_under_autocast_too(bias):
    arguments = inputs(8, 16, 2, 3, dtype=torch.float32)
    expected = torch.autograd.grad(lotlip_loss(*arguments, bias=bias).total, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = torch.autograd.grad(lotlip_loss(*arguments, bias=bias).total, arguments)
    assert all(map(torch.equal, gradients, expected))


def test_locked_features_get_no_gradient():
    image, short, long, scale = inputs(8, 16, 1, 1)
    image = image.detach()
    lotlip_loss(image, short, long, scale).total.backward()
    assert image.grad is None and short.grad is not None and long.grad is not None


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_peak_memory_does_not_hold_the_logits_of_every_text_set(name):
    """With 10 sets of 1,024 texts, the naive form keeps the tables of all sets, the chunked form those of one chunk."""
    chunked, plain, has_bias = FORMS[name]

    def peak(form, max_logits=None):
        image, short, long, scale = inputs(1024, 16, 3, 3, dtype=torch.float32)
        with pytest.MonkeyPatch.context() as patch, peak_memory() as memory:
            patch.setattr(losses, chunked.__name__, form)
            if max_logits:
                patch.setattr(losses, "MAX_LOGITS", max_logits)
            bias = torch.tensor(-10.0, requires_grad=True) if has_bias else None
            lotlip_loss(image.detach(), short, long, scale, bias=bias).total.backward()
        return memory.peak

    table = 4 * 1024**2
    features = 4 * 1024 * 16 * 10
    assert peak(plain) > 20 * table
    assert peak(chunked) < 4 * table + 6 * features
    assert peak(chunked, max_logits=1024 * 32) < table / 4 + 6 * features  # linear in the batch, not quadratic


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
