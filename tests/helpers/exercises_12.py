"""Answers to the exercises of lesson 12."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.exercises.lesson_12 import mixed_up_batches, torn_documents


@right("mean_of_real")
def row_by_row(hidden: Tensor, mask: Tensor) -> Tensor:
    rows = [row[real.bool()] for row, real in zip(hidden, mask, strict=True)]
    return torch.stack([row.mean(0) if len(row) else row.new_zeros(hidden.shape[2]) for row in rows])


@right("mean_of_real")
def by_a_product(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, hidden.masked_fill(mask[:, :, None] == 0, 0.0))


@wrong("mean_of_real", "left out of the sum")
def mean_of_all_columns(hidden, mask):
    return hidden.mean(1)


@wrong("mean_of_real", "left out of the sum")
def the_last_column(hidden, mask):
    return hidden[:, -1]


@wrong("mean_of_real", "not by T")
def divided_by_all(hidden, mask):
    return (hidden * mask[:, :, None]).mean(1)


@wrong("mean_of_real", "own number of real tokens")
def divided_by_the_first_rows(hidden, mask):
    return (hidden * mask[:, :, None]).sum(1) / mask[0].sum()


@wrong("mean_of_real", "wherever the padding stands")
def the_first_so_many(hidden, mask):
    return torch.stack([row[:n].mean(0) for row, n in zip(hidden, mask.sum(1).tolist(), strict=True)])


@wrong("mean_of_real", "0 divided by 0")
def without_a_floor(hidden, mask):
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


@wrong("mean_of_real", "0 times infinity")
def multiplied_by_the_mask(hidden, mask):
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


@right("split_documents")
def by_a_running_sum(documents: list[str], share: float) -> tuple[Tensor, Tensor]:
    names, first, inverse, sizes = np.unique(documents, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    before = np.cumsum(sizes[order]) - sizes[order]
    in_test = np.zeros(len(names), dtype=bool)
    in_test[order] = before < share * len(documents)
    test = torch.from_numpy(in_test[inverse])
    return test.logical_not(), test


@wrong("split_documents", "on one side only")
def as_it_was_given(documents, share):
    return torn_documents(documents, share)


@wrong("split_documents", "on one side only")
def every_other_snippet(documents, share):
    test = torch.arange(len(documents)) % round(1 / share) == 0
    return ~test, test


@wrong("split_documents", "do not stand together")
def on_to_the_documents_end(documents, share):
    cut = math.ceil(share * len(documents))
    while cut < len(documents) and documents[cut] == documents[cut - 1]:
        cut += 1
    test = torch.arange(len(documents)) < cut
    return ~test, test


def whole_documents(documents, share, names=None, enough=None):
    """A right split, with a place for each mistake."""
    chosen = []
    for name in names or dict.fromkeys(documents):
        size = sum(document in chosen for document in documents)
        if not (enough or (lambda size, chosen: size >= share * len(documents)))(size, chosen):
            chosen.append(name)
    test = torch.tensor([document in chosen for document in documents])
    return ~test, test


@wrong("split_documents", "not in that of the alphabet")
def in_the_alphabets_order(documents, share):
    return whole_documents(documents, share, names=sorted(set(documents)))


@wrong("split_documents", "counted in snippets")
def share_of_the_documents(documents, share):
    wanted = share * len(set(documents))
    return whole_documents(documents, share, enough=lambda size, chosen: len(chosen) >= wanted)


@wrong("split_documents", "not one document later")
def more_than_the_share(documents, share):
    return whole_documents(documents, share, enough=lambda size, chosen: size > share * len(documents) + 1e-9)


@right("guessing")
def with_numpy(train_labels: list[int], test_labels: list[int], num_labels: int) -> tuple[float, float]:
    p = np.bincount(train_labels, minlength=num_labels) + 1
    p = p / p.sum()
    return np.mean(np.array(test_labels) == p.argmax()), -np.log(p)[test_labels].mean()


def guess(train_labels, test_labels, num_labels, *, smooth=1, log=math.log, judged=None):
    """A right prediction, with a place for each mistake."""
    p = torch.tensor(train_labels).bincount(minlength=num_labels).double() + smooth
    p = (p / p.sum()).tolist()
    judged = test_labels if judged is None else judged
    accuracy = sum(label == p.index(max(p)) for label in judged) / len(judged)
    return accuracy, -sum(log(p[label]) if p[label] else -math.inf for label in judged) / len(judged)


@wrong("guessing", "mean of -ln p")
def in_bits(train_labels, test_labels, num_labels):
    return guess(train_labels, test_labels, num_labels, log=math.log2)


@wrong("guessing", "mean of -ln p")
def summed_up(train_labels, test_labels, num_labels):
    accuracy, loss = guess(train_labels, test_labels, num_labels)
    return accuracy, loss * len(test_labels)


@wrong("guessing", "most frequent label")
def drawn_by_its_share(train_labels, test_labels, num_labels):
    p = (torch.tensor(train_labels).bincount(minlength=num_labels).double() + 1) / (len(train_labels) + num_labels)
    return p[test_labels].mean().item(), guess(train_labels, test_labels, num_labels)[1]


@wrong("guessing", "most frequent label")
def always_equal(train_labels, test_labels, num_labels):
    return 1 / num_labels, math.log(num_labels)


@wrong("guessing", "of the training labels")
def from_the_test_labels(train_labels, test_labels, num_labels):
    return guess(test_labels, test_labels, num_labels)


@wrong("guessing", "of the training labels")
def judged_on_training(train_labels, test_labels, num_labels):
    return guess(train_labels, test_labels, num_labels, judged=train_labels)


@wrong("guessing", "Without the + 1")
def never_seen_is_left_out(train_labels, test_labels, num_labels):
    seen = [label for label in test_labels if label in train_labels]
    accuracy, _ = guess(train_labels, test_labels, num_labels)
    return accuracy, guess(train_labels, test_labels, num_labels, judged=seen)[1]


@right("likeliest_ending")
def by_cross_entropy(language_model, prompt: list[int], endings: list[list[int]]) -> int:
    def cost(ending):
        ids = torch.tensor(prompt + ending)
        return F.cross_entropy(language_model(ids[None])[0].double()[-len(ending) - 1 : -1], ids[-len(ending) :])

    return min(range(len(endings)), key=lambda number: float(cost(endings[number])))


def ending_by(language_model, prompt, endings, *, log=True, shift=1, alone=False, total=False, whole=False, sign=-1):
    """A right choice, with a place for each mistake."""
    costs = []
    for ending in endings:
        ids = torch.tensor(ending if alone else prompt + ending)
        scores = language_model(ids[None])[0]
        scores = scores.log_softmax(-1) if log else scores
        first = 1 if whole or alone else len(prompt)
        picked = scores[first - shift : len(ids) - shift].gather(1, ids[first:, None])
        costs.append(sign * float(picked.sum() if total else picked.mean()) if len(picked) else 0.0)
    return costs.index(min(costs))


@wrong("likeliest_ending", "small is likely")
def the_dearest(language_model, prompt, endings):
    return ending_by(language_model, prompt, endings, sign=1)


@wrong("likeliest_ending", "small is likely")
def always_the_first(language_model, prompt, endings):
    return 0


@wrong("likeliest_ending", "The prompt's last place scores the first")
def one_place_too_far(language_model, prompt, endings):
    return ending_by(language_model, prompt, endings, shift=0)


@wrong("likeliest_ending", "read the prompt in front")
def after_the_last_token_forgotten(language_model, prompt, endings):
    longest = max(len(ending) for ending in endings)
    return ending_by(language_model, prompt, endings, alone=longest > 1)


@wrong("likeliest_ending", "logits turned into probabilities")
def by_logits(language_model, prompt, endings):
    return ending_by(language_model, prompt, endings, log=False)


@wrong("likeliest_ending", "long endings lose")
def by_the_sum(language_model, prompt, endings):
    return ending_by(language_model, prompt, endings, total=True)


@wrong("likeliest_ending", "Do only the ending's tokens count")
def with_the_prompt(language_model, prompt, endings):
    return ending_by(language_model, prompt, endings, whole=True)


@right("recall_and_precision")
def class_by_class(counts: Tensor) -> tuple[Tensor, Tensor]:
    table = counts.tolist()
    C = len(table)
    given = [sum(table[row][column] for row in range(C)) for column in range(C)]
    recall = [table[c][c] / sum(table[c]) if sum(table[c]) else 0.0 for c in range(C)]
    return torch.tensor(recall), torch.tensor([table[c][c] / given[c] if given[c] else 0.0 for c in range(C)])


@wrong("recall_and_precision", "all texts of the class")
def turned_round(counts):
    return class_by_class(counts)[::-1]


@wrong("recall_and_precision", "all texts of the class")
def shares_of_all_texts(counts):
    return counts.diagonal() / counts.sum(), counts.diagonal() / counts.sum()


@wrong("recall_and_precision", "got the name")
def recall_twice(counts):
    return class_by_class(counts)[0], class_by_class(counts)[0]


@wrong("recall_and_precision", "not one for all of them")
def only_two_classes(counts):
    recall, precision = class_by_class(counts)
    return recall[:2], precision[:2]


@wrong("recall_and_precision", "0 divided by 0")
def divided_by_nothing(counts):
    return counts.diagonal() / counts.sum(1), counts.diagonal() / counts.sum(0)


@right("classify_in_batches")
def sorted_back(classify, texts: list[list[int]], batch_size: int, pad_id: int) -> Tensor:
    return batches(classify, texts, batch_size, pad_id)


def batches(classify, texts, batch_size, pad_id, *, restore=True, by_id=False, full=False, by_length=True, wide=False):
    """A right answer with padding on the left, with a place for each mistake."""
    lengths = torch.tensor([len(text) for text in texts])
    order = lengths.argsort(stable=True) if by_length else torch.arange(len(texts))
    labels = []
    for chosen in order.split(batch_size):
        if full and len(chosen) < batch_size:
            labels.append(torch.zeros_like(chosen))
            continue
        width = int((lengths if wide else lengths[chosen]).max())
        rows = [[pad_id] * (width - len(texts[i])) + texts[i] for i in chosen.tolist()]
        mask = [[0] * (width - len(texts[i])) + [1] * len(texts[i]) for i in chosen.tolist()]
        ids = torch.tensor(rows)
        labels.append(classify(ids, (ids != pad_id).long() if by_id else torch.tensor(mask)).argmax(-1))
    labels = torch.cat(labels)
    return labels[order.argsort()] if restore else labels


@wrong("classify_in_batches", "not in that of their lengths")
def as_they_were_given(classify, texts, batch_size, pad_id):
    return mixed_up_batches(classify, texts, batch_size, pad_id)


@wrong("classify_in_batches", "not in that of their lengths")
def left_in_the_order_of_lengths(classify, texts, batch_size, pad_id):
    return batches(classify, texts, batch_size, pad_id, restore=False)


@wrong("classify_in_batches", "which tokens are real")
def real_by_its_id(classify, texts, batch_size, pad_id):
    return batches(classify, texts, batch_size, pad_id, by_id=True)


@wrong("classify_in_batches", "last batch that is not full")
def full_batches_only(classify, texts, batch_size, pad_id):
    return batches(classify, texts, min(batch_size, len(texts)), pad_id, full=True)


@wrong("classify_in_batches", "padded no further than its longest")
def in_the_order_that_came(classify, texts, batch_size, pad_id):
    return batches(classify, texts, batch_size, pad_id, by_length=False)


@wrong("classify_in_batches", "padded no further than its longest")
def as_wide_as_the_longest_of_all(classify, texts, batch_size, pad_id):
    return batches(classify, texts, batch_size, pad_id, wide=True)
