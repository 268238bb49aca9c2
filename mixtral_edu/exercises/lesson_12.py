"""Exercises of lesson 12: the last real token, a loss that leaves labels out, and a confusion matrix."""

import math

import torch
from torch import Tensor

from mixtral_edu.exercises.comparison import form
from mixtral_edu.exercises.framework import exercise


@exercise("The vector of the last real token")
def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take, in each row, the vector of the last position whose mask is 1.

    Args:
        hidden: (B, T, D).
        mask: (B, T), whole numbers, 1 for real tokens and 0 for padding, which may stand left,
            right, or in between; each row has a real token.

    Returns:
        (B, D)
    """
    positions = torch.arange(mask.shape[1])
    last = (mask * positions).argmax(dim=1)  # (B,), padding counts as position 0
    return hidden[torch.arange(len(hidden)), last]


def hidden_and_mask(*rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Row b's vector at position t is (b, t), so that the right one can be read off."""
    mask = torch.tensor(rows)
    B, T = mask.shape
    hidden = torch.stack((torch.arange(B)[:, None].expand(B, T), torch.arange(T).expand(B, T)), dim=2).float()
    wanted = [[float(b), float(max(t for t in range(T) if row[t]))] for b, row in enumerate(rows)]
    return hidden, mask, torch.tensor(wanted)


@last_token.check("Is the result a tensor (B, D), in the dtype of hidden?")
def a_vector_for_each_row(answer):
    return form(answer(torch.randn(3, 4, 2), torch.ones(3, 4, dtype=torch.long))), "float32 (3, 2)"


@last_token.check("Is it one vector of each row, and not of the first row alone?")
def of_each_row(answer):
    hidden, mask, wanted = hidden_and_mask([1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1])
    return answer(hidden, mask), wanted


@last_token.check("With padding on the right, is it the last real token, and not the last column?")
def right_padding(answer):
    hidden, mask, wanted = hidden_and_mask([1, 1, 1, 0], [1, 0, 0, 0])
    return answer(hidden, mask), wanted


@last_token.check("With padding on the left, is the position still right? The number of real tokens does not tell it.")
def left_padding(answer):
    hidden, mask, wanted = hidden_and_mask([0, 0, 1, 1, 1], [0, 0, 0, 0, 1])
    return answer(hidden, mask), wanted


@last_token.check("With a hole in the row, is it the last 1, and not the one before the first 0?")
def holes(answer):
    hidden, mask, wanted = hidden_and_mask([1, 0, 1, 1, 0], [0, 1, 0, 1, 0])
    return answer(hidden, mask), wanted


@exercise("Cross entropy that leaves labels out")
def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[label] over all rows whose label is not -100.

    Args:
        logits: (N, C), of any size: also 1000.
        labels: (N,), from 0 to C - 1, or -100 for a row that does not count. At least one row
            counts.

    Returns:
        a scalar, in nats.
    """
    counted = labels != -100
    log_probabilities = logits[counted].log_softmax(dim=-1)  # (n, C)
    chosen = log_probabilities.gather(1, labels[counted][:, None])  # (n, 1)
    return -chosen.mean()


def loss_by_hand(logits: Tensor, labels: Tensor) -> float:
    losses = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        if label != -100:
            top = max(row)
            losses.append(top + math.log(sum(math.exp(x - top) for x in row)) - row[label])
    return sum(losses) / len(losses)


@label_loss.check("Is the result one number, and not one for each row or class?")
def one_number(answer):
    return form(answer(torch.randn(3, 4), torch.tensor([2, 0, 1]))), "a number"


@label_loss.check("Is it the negative logarithm of the label's probability? Equal logits of four classes give ln 4.")
def logarithm(answer):
    return answer(torch.zeros(1, 4), torch.tensor([2])), math.log(4)


@label_loss.check("Is it the mean over the rows, and not their sum?")
def mean_not_sum(answer):
    return answer(torch.zeros(3, 4), torch.tensor([2, 0, 1])), math.log(4)


@label_loss.check("Does each row count with its own label?")
def own_label(answer):
    logits, labels = torch.randn(5, 3), torch.tensor([2, 0, 1, 1, 0])
    return answer(logits, labels), loss_by_hand(logits, labels)


@label_loss.check("Does the loss stay the same when the logits of a row labelled -100 change?")
def left_out(answer):
    logits, labels = torch.randn(3, 2), torch.tensor([1, -100, 0])
    others = logits + torch.tensor([[0.0, 0.0], [4.0, -4.0], [0.0, 0.0]])
    return answer(logits, labels) - answer(others, labels), 0.0


@label_loss.check("Is the mean taken over the rows that count, and not over all of them?")
def mean_of_counted(answer):
    logits, labels = torch.randn(6, 4), torch.tensor([3, -100, -100, 0, -100, 2])
    return answer(logits, labels), loss_by_hand(logits, labels)


@label_loss.check(
    "Does it stay finite for large logits? exp(1000) is infinite, exp(-1000) is 0 and has no logarithm, and each row "
    "has a largest of its own."
)
def large_logits(answer):
    logits = torch.tensor([[1000.0, 0.0], [-1000.0, -1002.0], [-1000.0, 1000.0]])
    return answer(logits, torch.tensor([0, 0, 0])), (2000.0 + math.log(1 + math.exp(-2))) / 3


@exercise("A confusion matrix")
def confusion_matrix(labels: Tensor, predictions: Tensor, num_labels: int) -> Tensor:
    """Count how often each label was taken for each.

    Args:
        labels: (N,), what the texts are, from 0 to num_labels - 1.
        predictions: (N,), what they were taken for.
        num_labels: C; some labels may not occur at all.

    Returns:
        (C, C) in torch.int64: row = what it is, column = what it was taken for.
    """
    pairs = labels * num_labels + predictions
    return torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels)


def count_pairs(labels: list[int], predictions: list[int], C: int) -> Tensor:
    counts = [[0] * C for _ in range(C)]
    for label, prediction in zip(labels, predictions, strict=True):
        counts[label][prediction] += 1
    return torch.tensor(counts)


@confusion_matrix.check("Is the result a tensor (C, C) of torch.int64?")
def whole_numbers(answer):
    labels = torch.tensor([0, 1, 2, 2, 1])
    return form(answer(labels, labels.flip(0), 3)), "int64 (3, 3)"


@confusion_matrix.check("Do right answers count on the diagonal?")
def diagonal(answer):
    labels = [0, 1, 1, 2, 2, 2]
    return answer(torch.tensor(labels), torch.tensor(labels), 3), count_pairs(labels, labels, 3)


@confusion_matrix.check("Is the row what it is, and the column what it was taken for?")
def rows_and_columns(answer):
    return answer(torch.tensor([0]), torch.tensor([1]), 2), torch.tensor([[0, 1], [0, 0]])


@confusion_matrix.check("Is a mistake that happens twice counted twice?")
def repeated(answer):
    labels, predictions = [0, 0, 0, 1, 1], [1, 1, 0, 0, 0]
    return answer(torch.tensor(labels), torch.tensor(predictions), 2), count_pairs(labels, predictions, 2)


@confusion_matrix.check("Do labels that never occur have a row and a column of zeros?")
def unseen_labels(answer):
    labels, predictions = [0, 1, 0], [1, 1, 0]
    return answer(torch.tensor(labels), torch.tensor(predictions), 4), count_pairs(labels, predictions, 4)
