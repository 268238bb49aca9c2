"""Exercises of lesson 12: pooling, honest splits and baselines, endings, what a confusion matrix says, and batches."""

import math

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("The mean of the real tokens")
def mean_of_real(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the vectors of each text's real tokens.

    Args:
        hidden: (B, T, D). Vectors of padding may hold anything, also infinities.
        mask: (B, T), whole numbers, 1 for real tokens and 0 for padding, which may stand on
            either side or in between.

    Returns:
        (B, D): in each row the mean of the vectors whose mask is 1; zeros if it has none.
    """
    real = mask[:, :, None] == 1  # (B, T, 1)
    total = torch.where(real, hidden, 0).sum(dim=1)
    return total / real.sum(dim=1).clamp(min=1)


def mean_by_loops(hidden: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for vectors, row in zip(hidden.numpy(), mask.tolist(), strict=True):
        real = [vector for vector, flag in zip(vectors, row, strict=True) if flag]
        rows.append(np.mean(real, axis=0) if real else np.zeros(hidden.shape[2]))
    return torch.from_numpy(np.stack(rows)).float()


@mean_of_real.check("Are the vectors of padding left out of the sum?")
def pads_left_out(answer):
    hidden = torch.tensor([[[1.0, -2.0], [-1.0, 2.0], [6.0, 9.0]], [[3.0, 0.0], [-3.0, 0.0], [5.0, 5.0]]])
    return answer(hidden, torch.tensor([[1, 1, 0], [1, 1, 0]])), torch.zeros(2, 2)  # real vectors that cancel


@mean_of_real.check("Is the sum divided by the number of real tokens, and not by T?")
def divided_by_real(answer):
    hidden = torch.tensor([[[2.0, 4.0], [4.0, 8.0], [9.0, 9.0]]])
    return answer(hidden, torch.tensor([[1, 1, 0]])), torch.tensor([[3.0, 6.0]])


@mean_of_real.check("Is each text divided by its own number of real tokens?")
def its_own_number(answer):
    hidden, mask = torch.randn(3, 5, 2), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    return answer(hidden, mask), mean_by_loops(hidden, mask)


@mean_of_real.check("Does it go by the mask, wherever the padding stands, and not by the number of real tokens?")
def padding_anywhere(answer):
    hidden, mask = torch.randn(3, 4, 2), torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]])
    return answer(hidden, mask), mean_by_loops(hidden, mask)


@mean_of_real.check("What does a row without a real token give? 0 divided by 0 is nan, which spoils every later sum.")
def nothing_real(answer):
    hidden, mask = torch.randn(2, 3, 2), torch.tensor([[0, 0, 0], [0, 1, 1]])
    return answer(hidden, mask), mean_by_loops(hidden, mask)


@mean_of_real.check("What if a pad's vector holds an infinity? 0 times infinity is nan.")
def infinite_padding(answer):
    hidden, mask = torch.randn(2, 3, 2), torch.tensor([[1, 1, 0], [0, 1, 1]])
    hidden[0, 2], hidden[1, 0] = math.inf, -math.inf
    return answer(hidden, mask), mean_by_loops(hidden, mask)


def torn_documents(documents, share):
    test = torch.arange(len(documents)) < round(share * len(documents))
    return ~test, test


@exercise("Mend a split that tears documents", faulty=torn_documents)
def split_documents(documents: list[str], share: float) -> tuple[Tensor, Tensor]:
    """Split snippets into training and test so that no document stands on both sides.

    Whole documents go to the test, in the order of their first snippets, as long as it holds
    less than the share that was asked for. All other documents are for training.

    Args:
        documents: for each of N snippets, the name of the document that it was cut from. The
            snippets of a document need not stand together.
        share: of all snippets, between 0 and 1, that the test holds at least.

    Returns:
        Two boolean tensors (N,): which snippets are for training, and which for the test.
    """
    chosen, size = set(), 0
    for name in dict.fromkeys(documents):  # each name once, in the order of first appearance
        if size < share * len(documents):
            chosen.add(name)
            size += documents.count(name)
    test = torch.tensor([name in chosen for name in documents])
    return ~test, test


def train_and_test(test: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(test) == 0, torch.tensor(test) == 1


@split_documents.check("Does each document stand on one side only? The test is to be about documents never seen.")
def one_side_only(answer):
    return answer(list("aaabbbbccc"), 0.5), train_and_test([1, 1, 1, 1, 1, 1, 1, 0, 0, 0])


@split_documents.check("What if the snippets of a document do not stand together?")
def scattered(answer):
    return answer(list("abcabcabca"), 0.3), train_and_test([1, 0, 0, 1, 0, 0, 1, 0, 0, 1])


@split_documents.check("Do documents come in the order in which they first appear, and not in that of the alphabet?")
def first_come(answer):
    return answer(["song", "ode", "ode", "song", "tale", "ode"], 0.3), train_and_test([1, 0, 0, 1, 0, 0])


@split_documents.check("Does the test hold at least the share that was asked for, counted in snippets?")
def at_least_the_share(answer):
    return answer(list("abaaca"), 0.5), train_and_test([1, 0, 1, 1, 0, 1])


@split_documents.check("Does it stop once the share is reached, and not one document later?")
def no_more_than_needed(answer):
    return answer(list("abacabca"), 0.5), train_and_test([1, 0, 1, 0, 1, 0, 0, 1])


@exercise("Predict what a classifier gets that reads nothing")
def guessing(
    train_labels: list[int], test_labels: list[int], num_labels: int
) -> tuple[float, float]:
    """Predict the score of a classifier that knows the training labels and reads no text.

    It gives label c the probability p_c = (n_c + 1) / (N + C): c occurs n_c times among the N
    training labels, and the + 1 keeps a label that never occurs from being impossible. Its
    answer is always the label with the largest p, the first of them if several are equal.

    Args:
        train_labels: N whole numbers from 0 to C - 1.
        test_labels: the labels on which it is judged.
        num_labels: C.

    Returns:
        The share of right answers on the test, and the mean cross-entropy in nats.
    """
    seen = [train_labels.count(label) + 1 for label in range(num_labels)]
    p = [number / sum(seen) for number in seen]
    answer = p.index(max(p))
    right = [label == answer for label in test_labels]
    losses = [-math.log(p[label]) for label in test_labels]
    return sum(right) / len(right), sum(losses) / len(losses)


@guessing.check("Is the loss the mean of -ln p of the right label? Six equally frequent labels give ln 6 = 1.792.")
def six_equal(answer):
    labels = [0, 1, 2, 3, 4, 5] * 2
    return answer(labels, labels, 6), (1 / 6, math.log(6))


@guessing.check("Does it always give the most frequent label? With 18 of 20 it is right 9 times of 10.")
def always_the_most_frequent(answer):
    labels = [1] * 18 + [0] * 2
    return answer(labels, labels, 2), (0.9, -0.9 * math.log(19 / 22) - 0.1 * math.log(3 / 22))


@guessing.check("Are the probabilities those of the training labels? The test's own are what it cannot know.")
def from_training_alone(answer):
    return answer([0, 0, 1], [1, 1, 1, 0], 2), (0.25, -0.75 * math.log(2 / 5) - 0.25 * math.log(3 / 5))


@guessing.check("What does a label cost that no training text has? Without the + 1 it would be impossible: ln 0.")
def never_seen(answer):
    return answer([0, 0, 0], [0, 2], 3), (0.5, -0.5 * math.log(4 / 6) - 0.5 * math.log(1 / 6))


@exercise("Ask the language model which ending is right")
def likeliest_ending(model, prompt: list[int], endings: list[list[int]]) -> int:
    """Choose the ending that a language model finds likeliest after a prompt.

    An ending costs the mean, over its tokens, of -ln p(token | everything before it): the
    prompt, then the ending's own earlier tokens. It is a mean, so that length alone does not
    make an ending expensive.

    Args:
        model: maps ids (1, T) to logits (1, T, V). Those at a place score the token
            that comes next.
        prompt: ids, one or more.
        endings: lists of ids, each one or more, of different lengths.

    Returns:
        The number of the cheapest ending, counted from 0.
    """
    costs = []
    for ending in endings:
        ids = torch.tensor([prompt + ending])
        log_p = model(ids)[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        costs.append(-log_p.gather(1, torch.tensor(ending)[:, None]).mean().item())
    return costs.index(min(costs))


class Scripted:
    """A language model of six tokens. `following` maps a token to the probability of each next one that is likely.

    What is left of the probability is shared by the others. `shift` is added to the logits after a token, which changes
    no probability.
    """

    def __init__(self, following: dict[int, dict[int, float]], shift: dict[int, float] | None = None):
        self.following, self.shift = following, shift or {}

    def __call__(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, 6)
        for token, likely in self.following.items():
            rest = (1 - sum(likely.values())) / (6 - len(likely))
            row = torch.tensor([likely.get(number, rest) for number in range(6)]).log()
            logits[ids == token] = row + self.shift.get(token, 0.0)
        return logits

    def __repr__(self) -> str:
        return "a model of six tokens"


@likeliest_ending.check("Is the ending that costs least the likeliest? Costs are -ln p: small is likely.")
def cheapest(answer):
    model, endings = Scripted(dict.fromkeys(range(6), {3: 0.7, 4: 0.2})), [[4], [3], [5]]
    return [answer(model, [1, 0], endings), answer(model, [1, 0], endings[::-1])], [1, 1]


@likeliest_ending.check("Do the logits of a place score the token after it? The prompt's last place scores the first.")
def scored_by_the_place_before(answer):
    model = Scripted({1: {2: 0.6, 3: 0.3}, 2: {2: 0.05, 5: 0.9}, 3: {3: 0.9}})
    return answer(model, [0, 1], [[3], [2]]), 1


@likeliest_ending.check("Does the model read the prompt in front of each ending?")
def after_the_prompt(answer):
    model = Scripted({n: {(n + 1) % 6: 0.9} for n in range(6)})
    return answer(model, [0, 1, 2], [[0, 1], [4, 5], [3, 4]]), 2


@likeliest_ending.check("Are logits turned into probabilities? A logit alone does not say how likely a token is.")
def logits_are_not_probabilities(answer):
    model = Scripted({0: {3: 0.5, 4: 0.4}, 3: {5: 0.2}, 4: {5: 0.9}}, shift={3: 9.0})
    return answer(model, [0], [[3, 5], [4, 5]]), 1


@likeliest_ending.check("Is it the mean over an ending's tokens? By the sum, long endings lose by length alone.")
def mean_over_tokens(answer):
    model = Scripted({0: {1: 0.4, 2: 0.5}, 2: {3: 0.5}, 3: {4: 0.5}})
    return answer(model, [0], [[1], [2, 3, 4]]), 1


@likeliest_ending.check("Do only the ending's tokens count? The prompt was given, however unlikely it is.")
def prompt_costs_nothing(answer):
    model = Scripted({5: {0: 0.01, 1: 0.9}, 0: {5: 0.01, 1: 0.6, 2: 0.38}, 2: {3: 0.4}, 3: {4: 0.4}})
    return answer(model, [5, 0, 5, 0, 5, 0], [[2, 3, 4], [1]]), 1


@exercise("Recall and precision from a confusion matrix")
def recall_and_precision(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Read the recall and the precision of each class off a confusion matrix.

    Args:
        counts: (C, C), whole numbers: row = what a text is, column = what it was taken for.

    Returns:
        recall (C,), float32: of the texts of a class, the share that was recognised;
        precision (C,), float32: of the texts given its name, the share that deserves it.
        Where there is nothing to divide by, both are 0.
    """
    right = counts.diagonal().float()
    return right / counts.sum(dim=1).clamp(min=1), right / counts.sum(dim=0).clamp(min=1)


@recall_and_precision.check("Is recall divided by what is in the row: all texts of the class?")
def recall_by_row(answer):
    return answer(torch.tensor([[3, 1], [0, 4]]))[0], torch.tensor([0.75, 1.0])


@recall_and_precision.check("Is precision divided by what is in the column: all texts that got the name?")
def precision_by_column(answer):
    return answer(torch.tensor([[3, 1], [0, 4]]))[1], torch.tensor([1.0, 0.8])


@recall_and_precision.check("Is it one number for each class, and not one for all of them?")
def one_for_each_class(answer):
    wanted = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([2 / 5, 1 / 3, 3 / 4])
    return answer(torch.tensor([[2, 2, 0], [2, 1, 1], [1, 0, 3]])), wanted


@recall_and_precision.check("What if a class never occurs, or its name is never given? 0 divided by 0 is nan.")
def nothing_to_divide(answer):
    counts = torch.tensor([[2, 0, 0], [1, 0, 1], [0, 0, 0]])
    return answer(counts), (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2 / 3, 0.0, 0.0]))


def mixed_up_batches(classify, texts, batch_size, pad_id):
    texts = sorted(texts, key=len)  # texts of like length together: less padding
    labels = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([text + [pad_id] * (width - len(text)) for text in batch])
        mask = (ids != pad_id).long()
        labels.append(classify(ids, mask).argmax(dim=-1))
    return torch.cat(labels)


@exercise("Mend batches that mix up texts and pads", faulty=mixed_up_batches)
def classify_in_batches(
    classify, texts: list[list[int]], batch_size: int, pad_id: int
) -> Tensor:
    """Label texts of different lengths in batches, those of like length together.

    Args:
        classify: maps ids (B, T) and a mask (B, T), 1 for real tokens and 0 for padding, to
            logits (B, C). Padding may stand on either side.
        texts: N lists of ids, each with one id or more. A real token may have the id `pad_id`.
        batch_size: at most so many texts in a batch.
        pad_id: what short rows are filled up with, to the length of the batch's longest text.

    Returns:
        (N,), torch.int64: the label with the largest logit, in the order of `texts`.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    labels = torch.zeros(len(texts), dtype=torch.int64)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(texts[i]) for i in chosen)
        ids = torch.tensor([texts[i] + [pad_id] * (width - len(texts[i])) for i in chosen])
        lengths = torch.tensor([len(texts[i]) for i in chosen])
        mask = (torch.arange(width) < lengths[:, None]).long()  # (B, T)
        labels[chosen] = classify(ids, mask).argmax(dim=-1)
    return labels


class Summing:
    """A classifier whose label is the sum of a text's real ids, each plus one, modulo C. It counts what it is given."""

    def __init__(self, C: int = 7):
        self.C, self.shapes = C, []

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.shapes.append(tuple(ids.shape))
        return torch.nn.functional.one_hot(((ids + 1) * mask).sum(dim=1) % self.C, self.C).float()

    def labels(self, texts: list[list[int]]) -> Tensor:
        return torch.tensor([sum(token + 1 for token in text) % self.C for text in texts])

    def __repr__(self) -> str:
        return "a classifier"


@classify_in_batches.check("Do the labels come in the order of the texts, and not in that of their lengths?")
def in_the_order_of_the_texts(answer):
    texts, classify = [[5, 9, 2], [4], [8, 8, 8, 1, 3], [7, 6]], Summing()
    return answer(classify, texts, 2, 0), classify.labels(texts)


@classify_in_batches.check("What says which tokens are real? One with the id of the padding can be a real token.")
def the_pads_id_in_a_text(answer):
    texts, classify = [[0, 5, 0], [3], [2, 0, 0, 4]], Summing()
    return answer(classify, texts, 3, 0), classify.labels(texts)


@classify_in_batches.check("Are all texts labelled, those of a last batch that is not full too?")
def a_last_batch_that_is_not_full(answer):
    texts, classify = [[6, 1], [2, 0, 3], [4], [1, 1, 1, 5], [0, 8]], Summing()
    return answer(classify, texts, 2, 0), classify.labels(texts)


@classify_in_batches.check("Are texts of like length in one batch, padded no further than its longest?",
                           compared="the labels, and the shape of each batch")  # fmt: skip
def no_more_padding_than_needed(answer):
    texts, classify = [[3] * 9, [1, 0], [2] * 8, [5]], Summing()
    labels = answer(classify, texts, 2, 0)
    return [labels, sorted(classify.shapes)], [classify.labels(texts), [(2, 2), (2, 9)]]
