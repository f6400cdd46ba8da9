"""`retrograde.nn.RNN` against `torch.nn.RNN` with the same weights."""

from itertools import product

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import retrograde as rg
from retrograde.nn import RNN

OPTIONS = list(
    product(
        ("tanh", "relu"),
        (1, 2),  # layers
        (True, False),  # bias
        (True, False),  # batch first
        (True, False),  # both directions
    )
)


def pair(*args, **kwargs):
    torch.manual_seed(0)
    theirs = torch.nn.RNN(*args, **kwargs, dtype=torch.float64)
    ours = RNN(*args, **kwargs, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def agree(ours, theirs, input, hx=None):
    """Outputs, and the gradients of a reward of both outputs in the input, hx and every weight."""
    found = []
    for rnn in (ours, theirs):
        leaves = [
            t.detach().clone().requires_grad_()
            for t in (input.data if isinstance(input, PackedSequence) else input, *([] if hx is None else [hx]))
        ]
        given = PackedSequence(leaves[0], *input[1:]) if isinstance(input, PackedSequence) else leaves[0]
        output, h_n = rnn(given, *leaves[1:])
        data = output.data if isinstance(output, PackedSequence) else output
        R = (data * torch.arange(data.numel()).reshape(data.shape).cos()).sum() + h_n.square().sum()
        found.append([data, h_n, *torch.autograd.grad(R, [*leaves, *rnn.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("nonlinearity", "layers", "bias", "batch_first", "bidirectional"), OPTIONS)
def test_parity_over_all_options(nonlinearity, layers, bias, batch_first, bidirectional):
    ours, theirs = pair(
        4,
        6,
        num_layers=layers,
        nonlinearity=nonlinearity,
        bias=bias,
        batch_first=batch_first,
        bidirectional=bidirectional,
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    hx = torch.randn(layers * (2 if bidirectional else 1), 3, 6, dtype=torch.float64)
    batch = torch.randn(*((3, 5) if batch_first else (5, 3)), 4, dtype=torch.float64)
    agree(ours, theirs, batch)
    agree(ours, theirs, batch, hx)
    agree(ours, theirs, batch[0] if batch_first else batch[:, 0], hx[:, 0])
    ragged = pack_sequence([torch.randn(k, 4, dtype=torch.float64) for k in (2, 5, 3)], enforce_sorted=False)
    agree(ours, theirs, ragged)
    agree(ours, theirs, ragged, hx)
    assert repr(ours) == repr(theirs)


def test_dropout_between_layers_draws_what_theirs_draws():
    ours, theirs = pair(4, 6, num_layers=3, dropout=0.4)
    input = torch.randn(5, 3, 4, dtype=torch.float64)
    outputs = []
    for rnn in (ours, theirs):
        torch.manual_seed(1)
        outputs.append(rnn(input)[0])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(ours.eval()(input)[0], theirs.eval()(input)[0])


def test_same_seed_same_weights():
    torch.manual_seed(3)
    ours = RNN(4, 6, 2, "relu")
    torch.manual_seed(3)
    theirs = torch.nn.RNN(4, 6, 2, "relu")
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight)


WRONG_CALLS = [
    (torch.randn(4), None),
    (torch.randn(5, 3, 7), None),
    (torch.randn(5, 3, 4), torch.randn(2, 3, 6)),
    (torch.randn(5, 3, 4), torch.randn(1, 6)),
    (torch.randn(5, 4), torch.randn(1, 1, 6)),
    (torch.randn(5, 3, 4).double(), None),
    (torch.randn(0, 3, 4), None),
]


@pytest.mark.parametrize(("input", "hx"), WRONG_CALLS, ids=range(len(WRONG_CALLS)))
def test_errors_are_of_the_same_kind(input, hx):
    with pytest.raises((ValueError, RuntimeError)):
        torch.nn.RNN(4, 6)(input, hx)
    with pytest.raises((ValueError, RuntimeError)):
        RNN(4, 6)(input, hx)


WRONG_MODULES = [
    {"hidden_size": 0},
    {"dropout": 2.0},
    {"bias": 1},
    {"num_layers": 0},
    {"proj_size": 2},
    {"nonlinearity": "gelu"},
]


@pytest.mark.parametrize("wrong", WRONG_MODULES, ids=lambda wrong: next(iter(wrong)))
def test_the_constructor_refuses_what_theirs_refuses(wrong):
    arguments = {"input_size": 4, "hidden_size": 6} | wrong
    with pytest.raises((ValueError, TypeError)):
        torch.nn.RNN(**arguments)
    with pytest.raises((ValueError, TypeError)):
        RNN(**arguments)


def test_other_nonlinearities_and_a_leak():
    leak = torch.nn.Parameter(torch.full((6,), 0.3, dtype=torch.float64))
    rnn = RNN(4, 6, nonlinearity=rg.Softplus(), leak=leak, dtype=torch.float64)
    input = torch.randn(5, 3, 4, dtype=torch.float64)
    output, h_n = rnn(input)
    x = torch.zeros(3, 6, dtype=torch.float64)
    for t in range(5):
        u = input[t] @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + rnn.bias_hh_l0 + x @ rnn.weight_hh_l0.T
        x = 0.7 * x + 0.3 * torch.nn.functional.softplus(u)
        torch.testing.assert_close(output[t], x)
    torch.testing.assert_close(h_n[0], x)
    output.sum().backward()
    assert leak.grad is not None and leak.grad.abs().min() > 0


def test_positional_arguments_mean_what_they_mean_there():
    arguments = (4, 6, 2, "relu", False, True, 0.1, True)
    ours, theirs = RNN(*arguments), torch.nn.RNN(*arguments)
    assert repr(ours) == repr(theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


@pytest.mark.parametrize("bidirectional", (False, True))
def test_what_lies_behind_the_end_of_a_sequence_cannot_diverge(bidirectional):
    ours, theirs = (m(2, 3, 1, "relu", bidirectional=bidirectional).double() for m in (RNN, torch.nn.RNN))
    for rnn in (ours, theirs):
        for weight in rnn.parameters():
            torch.nn.init.ones_(weight)
    sequences = [-10 * torch.ones(2000, 2), torch.ones(2, 2), -torch.ones(7, 2), torch.ones(2, 2)]
    packed = torch.nn.utils.rnn.pack_sequence([s.double() for s in sequences], enforce_sorted=False)
    answers = []
    for rnn in (ours, theirs):
        output, h_n = rnn(packed)
        loss = output.data.clamp(max=1e3).sin().sum() + h_n.clamp(max=1e3).cos().sum()
        answers.append((output.data, h_n, *torch.autograd.grad(loss, list(rnn.parameters()))))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other)


def test_under_autocast():
    rnn = RNN(4, 6)
    input = torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = rnn(input)
    torch.testing.assert_close(output.float(), rnn(input)[0], atol=0.05, rtol=0.05)


def test_a_leak_that_does_not_fit():
    with pytest.raises(ValueError, match="leak: expected one number or 6, got 5"):
        RNN(4, 6, leak=torch.full((5,), 0.5))
