"""Where the teacher is sure, what is left must still be right: Reverse CALM takes its logarithm."""

import torch

from tide_core.scoring.answers import Slices, target_log_probs


def test_a_sure_token_keeps_the_digits_of_what_is_left() -> None:
    # Logits of about 20 for the target, and others that sum to 1e-7 to 1e-3 of it, over many slices.
    draws = torch.Generator().manual_seed(0)
    rows, vocab = 64, 300
    logits = torch.rand(rows, vocab, generator=draws) * 2.0
    targets = torch.randint(0, vocab, (rows,), generator=draws)
    logits[torch.arange(rows), targets] = torch.linspace(14.0, 24.0, rows)
    # The head is the identity, so that the logits are the hidden states.
    found = target_log_probs(logits, torch.eye(vocab), targets, slices=Slices(16, 20))
    exact = logits.double().log_softmax(1)[torch.arange(rows), targets]
    torch.testing.assert_close(-found.double(), -exact, rtol=1e-4, atol=0.0)
