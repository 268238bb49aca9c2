"""Answers to the exercises of lesson 12."""

import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.heads import last_real_column


@right("last_token")
def by_the_packages_column(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[range(len(hidden)), last_real_column(mask != 0)]


@right("last_token")
def row_by_row(hidden: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([row[real.nonzero().max()] for row, real in zip(hidden, mask, strict=True)])


@wrong("last_token", "a tensor (B, D)")
def rows_of_one_vector(hidden, mask):
    return row_by_row(hidden, mask)[:, None]


@wrong("last_token", "a tensor (B, D)")
def a_list_of_vectors(hidden, mask):
    return list(row_by_row(hidden, mask))


@wrong("last_token", "first row alone")
def the_first_row_for_all(hidden, mask):
    return row_by_row(hidden, mask)[:1].expand(len(hidden), -1)


@wrong("last_token", "not the last column")
def the_last_column(hidden, mask):
    return hidden[:, -1]


@wrong("last_token", "number of real tokens does not tell")
def as_many_as_are_real(hidden, mask):
    return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]


@wrong("last_token", "not the one before the first 0")
def before_the_first_pad_after_a_token(hidden, mask):
    ends = (mask[:, :-1] == 1) & (mask[:, 1:] == 0)
    last = torch.where(ends.any(1), ends.int().argmax(1), mask.shape[1] - 1)
    return hidden[torch.arange(len(hidden)), last]


@right("label_loss")
def pytorchs_own(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=-100)


@right("label_loss")
def by_logsumexp(logits: Tensor, labels: Tensor) -> Tensor:
    losses = [row.logsumexp(0) - row[label] for row, label in zip(logits, labels.tolist(), strict=True) if label >= 0]
    return torch.stack(losses).mean()


@wrong("label_loss", "one for each row or class")
def a_loss_for_each_row(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")


@wrong("label_loss", "one for each row or class")
def nothing_returned(logits, labels):
    pytorchs_own(logits, labels)


@wrong("label_loss", "ln 4")
def in_bits(logits, labels):
    return pytorchs_own(logits, labels) / torch.log(torch.tensor(2.0))


@wrong("label_loss", "not their sum")
def sum_of_the_rows(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


@wrong("label_loss", "a largest of its own")
def one_largest_for_all(logits, labels):
    counted = labels != -100
    shifted = (logits - logits[counted].max())[counted]
    return (shifted.exp().sum(-1).log() - shifted.gather(1, labels[counted][:, None])[:, 0]).mean()


@wrong("label_loss", "its own label")
def the_first_rows_label(logits, labels):
    return pytorchs_own(logits, torch.where(labels == -100, labels, labels[0]))


@wrong("label_loss", "labelled -100 change")
def last_class_for_left_out(logits, labels):
    losses = -logits.log_softmax(-1)[torch.arange(len(labels)), labels.clamp(min=-1)]
    return losses.sum() / (labels != -100).sum()


@wrong("label_loss", "not over all of them")
def mean_over_all(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / len(labels)


@wrong("label_loss", "finite for large logits")
def exponentials_as_they_are(logits, labels):
    counted = labels != -100
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -probabilities[counted].gather(1, labels[counted][:, None]).log().mean()


@right("confusion_matrix")
def pair_by_pair(labels: Tensor, predictions: Tensor, num_labels: int) -> Tensor:
    counts = torch.zeros(num_labels, num_labels, dtype=torch.long)
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        counts[label, prediction] += 1
    return counts


@right("confusion_matrix")
def by_one_hot_rows(labels: Tensor, predictions: Tensor, num_labels: int) -> Tensor:
    return F.one_hot(labels, num_labels).T @ F.one_hot(predictions, num_labels)


@wrong("confusion_matrix", "(C, C) of torch.int64")
def counts_in_float32(labels, predictions, num_labels):
    return pair_by_pair(labels, predictions, num_labels).float()


@wrong("confusion_matrix", "(C, C) of torch.int64")
def counts_in_one_row(labels, predictions, num_labels):
    return pair_by_pair(labels, predictions, num_labels).flatten()


@wrong("confusion_matrix", "on the diagonal")
def mistakes_only(labels, predictions, num_labels):
    return pair_by_pair(labels[labels != predictions], predictions[labels != predictions], num_labels)


@wrong("confusion_matrix", "the column what it was taken for")
def turned_round(labels, predictions, num_labels):
    return pair_by_pair(predictions, labels, num_labels)


@wrong("confusion_matrix", "counted twice")
def each_mistake_once(labels, predictions, num_labels):
    counts = pair_by_pair(labels, predictions, num_labels)
    once = counts.clamp(max=1)
    return torch.where(torch.eye(num_labels, dtype=torch.bool), counts, once)


@wrong("confusion_matrix", "never occur")
def only_labels_that_occur(labels, predictions, num_labels):
    return pair_by_pair(labels, predictions, int(max(labels.max(), predictions.max())) + 1)
