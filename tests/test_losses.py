"The chunked loss against the plain one: the same numbers, for any shape."
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from seqlit.train.losses import ProjectedLoss, smoothed_loss


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 30), words=st.integers(2, 40), width=st.integers(1, 9), chunk=st.integers(1, 40),
       epsilon=st.sampled_from([0., 0.1, 0.5]), bias=st.booleans(), scale=st.sampled_from([1., 30.]))
def test_equals_the_plain_formula(seed, rows, words, width, chunk, epsilon, bias, scale):
    torch.manual_seed(seed)
    features = (torch.randn(rows, width)*scale).requires_grad_()
    output, target = nn.Linear(width, words, bias=bias), torch.randint(0, words, (rows,))
    counts = (torch.rand(rows) > 0.3).nonzero()[:, 0]
    inputs = [t for t in (features, output.weight, output.bias) if t is not None]
    plain = smoothed_loss(output(features)[counts].log_softmax(1), target[counts], epsilon)
    ours = ProjectedLoss.apply(features, output.weight, output.bias, target, counts, epsilon, True, chunk)
    for a, b in zip(ours, plain): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    # a gradient that is scaled, as with a loss scale
    expected = torch.autograd.grad(3*plain[0], inputs)
    for a, b in zip(torch.autograd.grad(3*ours[0], inputs), expected): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4*scale)
    judged = ProjectedLoss.apply(features.detach(), output.weight, output.bias, target, counts, epsilon, False, chunk)
    assert torch.equal(judged[0], ours[0])
