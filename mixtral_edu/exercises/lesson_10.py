"""Exercises of lesson 10: a fresh model's cost, summed gradients, a schedule, an ablation, collapse, and snapshots."""

import copy
import math
import statistics
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.exercises.framework import exercise


@exercise("Predict what a fresh model pays")
def fresh_model_cost(vocab_size: int, ids: list, text: str) -> tuple[float, float]:
    """Predict what a freshly initialised model needs for a text, without running it.

    Args:
        vocab_size: V, the number of tokens in the vocabulary.
        ids: the text's token ids. The first is <s>, which nobody has to predict.
        text: the text itself.

    Returns:
        The mean loss in nats per token, and the bits per byte of the text in UTF-8.
    """
    nats = math.log(vocab_size)  # every token has the probability 1 / V
    bits = (len(ids) - 1) * nats / math.log(2)
    return nats, bits / len(text.encode())


def loss_of_a_fresh_model(vocab_size: int) -> float:
    from mixtral_edu.config import Config  # only here, so that this module is imported quickly
    from mixtral_edu.heads import CausalLM, next_token_loss

    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CausalLM(Config.tiny(vocab_size=vocab_size, num_key_value_heads=1, num_local_experts=2, **sizes))
    input_ids = torch.randint(3, vocab_size, (2, 60))
    with torch.no_grad():
        return next_token_loss(model(input_ids).logits, input_ids).item()


@fresh_model_cost.check(
    "Is the loss -ln(1/V), the natural logarithm of V? Models with three vocabularies were built here and asked.",
    rtol=0.03,
    compared="the loss of each, in nats per token",
)
def as_fresh_models_do(answer):
    sizes = (16, 250, 1500)
    return [answer(V, [1, 5], "a")[0] for V in sizes], [loss_of_a_fresh_model(V) for V in sizes]


@fresh_model_cost.check("Are bits counted? One nat is 1 / ln 2 = 1.443 bits, so a choice among 1024 tokens is 10 bits.")
def in_bits(answer):
    return answer(1024, [1] + [9] * 50, "x" * 50)[1], 10.0


@fresh_model_cost.check("Is it per byte: the bits of all tokens together, divided by the bytes of the text?")
def for_each_byte(answer):
    return answer(1024, [1] + [9] * 100, "x" * 400)[1], 2.5


@fresh_model_cost.check("Are bytes counted, and not characters? An ñ takes two bytes.")
def bytes_not_characters(answer):
    return answer(256, [1] + [9] * 30, "ñu" * 20)[1], 8 * 30 / 60


@fresh_model_cost.check("Is <s> left out of the sum? It opens the text, and no place has to predict it.")
def without_the_first(answer):
    return answer(256, [1, 7, 7], "abcd")[1], 4.0


def step_with_mistakes(model, optimizer, micro_batches: list, max_norm: float) -> float:
    total = 0.0
    for ids, labels in micro_batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        total += loss.item()
    optimizer.step()
    return total / len(micro_batches)


@exercise("Mend a step that accumulates gradients", changes=("model", "optimizer"), faulty=step_with_mistakes)
def accumulated_step(model, optimizer, micro_batches: list, max_norm: float) -> float:
    """Take one step with the gradient of all micro-batches together, as if they were one.

    A batch that does not fit in memory is read in parts. The weights are to move as they would
    after one backward pass over all of it: by the gradient of the mean over all its labels.

    Args:
        model: an nn.Module that maps ids (B, T) to logits (B, T, V).
        optimizer: a torch optimizer of the model's parameters.
        micro_batches: pairs of ids and labels, both (B, T). Labels are shifted already; -100
            marks a place that does not count, as F.cross_entropy knows.
        max_norm: the bound of the whole gradient's norm.

    Returns:
        The mean loss over all labels that count, in all micro-batches.
    """
    optimizer.zero_grad()
    counted = sum((labels != -100).sum().item() for _, labels in micro_batches)
    total = 0.0
    for ids, labels in micro_batches:
        summed = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum")
        (summed / counted).backward()  # gradients add up
        total += summed.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return total / counted


class SmallModel(nn.Sequential):
    """Ids to logits, with few weights, drawn anew from the same seed."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Embedding(7, 5), nn.Linear(5, 7))

    def __repr__(self) -> str:
        return "a small model"


class Averaging:
    """Gradient descent along a running average, with the methods of torch's optimizers, whose import takes a second.

    Its state_dict holds the averages themselves, as theirs do.
    """

    def __init__(self, parameters, rate: float, keep: float):
        self.parameters, self.rate, self.keep = list(parameters), rate, keep
        self.averages = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None if set_to_none else torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            average.lerp_(parameter.grad, 1 - self.keep)
            parameter -= self.rate * average

    def state_dict(self) -> dict:
        return {"rate": self.rate, "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        self.rate = state["rate"]
        for average, stored in zip(self.averages, state["averages"], strict=True):
            average.copy_(stored)

    def __repr__(self) -> str:
        return "an optimizer"


def micro(*counts: int, length: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches of one row each, of which the first labels count: `counts` says how many."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for number in counts:
        ids, labels = torch.randint(7, (2, 1, length), generator=generator)
        parts.append((ids, labels.masked_fill(torch.arange(length) >= number, -100)))
    return parts


def moved(answer, micro_batches, max_norm: float = 1e9, leftover: bool = False) -> tuple[Tensor, float]:
    """Return how far a step of `answer` moves the weights, in one row, and the loss that it returns."""
    model = SmallModel()
    optimizer = Averaging(model.parameters(), rate=1.0, keep=0.0)
    if leftover:
        model(torch.tensor([[0, 1, 2]])).square().sum().backward()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    loss = answer(model, optimizer, micro_batches, max_norm)
    return before - nn.utils.parameters_to_vector(model.parameters()).detach(), loss


def gradient_of_one_batch(micro_batches) -> tuple[np.ndarray, float]:
    """The gradient, in one row, and the loss of all micro-batches stacked to one batch."""
    model = SmallModel()
    ids, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return np.concatenate([gradient.numpy().ravel() for gradient in gradients]), loss.item()


def direction(vector) -> np.ndarray:
    vector = np.asarray(vector, dtype=np.float64)
    return vector / max(np.linalg.norm(vector), 1e-12)


STEP = "how far one step of plain gradient descent moves the weights, all in one row"


@accumulated_step.check(
    "Do all micro-batches move the weights, and not the last alone? What does zero_grad forget?",
    rtol=2e-3,
    compared="the direction in which the weights move, all in one row",
)
def every_micro_batch(answer):
    batches = micro(6, 6, 6)
    return torch.from_numpy(direction(moved(answer, batches)[0])), direction(gradient_of_one_batch(batches)[0])


@accumulated_step.check(
    "Is the gradient that of a mean? Gradients add up, so that three micro-batches give three times as much.",
    rtol=2e-3,
    compared=STEP,
)
def a_mean(answer):
    batches = micro(6, 6, 6)
    return moved(answer, batches)[0], gradient_of_one_batch(batches)[0]


@accumulated_step.check(
    "Does each label weigh the same? A mean of the micro-batches' means gives those with few labels too much.",
    rtol=2e-3,
    compared=STEP,
)
def each_label_alike(answer):
    batches = micro(6, 1, 3)
    return moved(answer, batches)[0], gradient_of_one_batch(batches)[0]


@accumulated_step.check("Is the whole gradient clipped, once, after the last backward pass?", rtol=2e-3, compared=STEP)
def clipped_once(answer):
    batches = micro(6, 2, 5)
    gradient = gradient_of_one_batch(batches)[0]
    return moved(answer, batches, max_norm=0.05)[0], 0.05 * direction(gradient)


@accumulated_step.check(
    "Are gradients from before the step forgotten before the first backward pass?", rtol=2e-3, compared=STEP
)
def nothing_left_over(answer):
    batches = micro(4, 6)
    return moved(answer, batches, leftover=True)[0], gradient_of_one_batch(batches)[0]


@accumulated_step.check("Is the loss that it returns the mean over all labels that count?")
def loss_of_all(answer):
    batches = micro(1, 6)
    return moved(answer, batches)[1], gradient_of_one_batch(batches)[1]


@exercise("Another schedule: a plateau with a cooldown")
def plateau_rate(step: int, steps: int, peak: float, warmup: int, cooldown: int):
    """The learning rate of a step, counted from 0.

    For `warmup` steps it rises in equal parts and reaches `peak` in the last of them. It stays
    there until `cooldown` steps are left. The first of these still has the peak; from there it
    falls in equal parts, so that step `steps`, which is not taken any more, would have 0.
    Where both overlap, the smaller rate counts.

    Args:
        step: from 0 to steps - 1.
        steps: of the whole run.
        peak: the highest rate.
        warmup: how many steps rise; 0 for none.
        cooldown: how many steps fall; 0 for none.
    """
    rising = (step + 1) / warmup if step < warmup else 1.0
    falling = (steps - step) / cooldown if step >= steps - cooldown else 1.0
    return peak * min(rising, falling)


@plateau_rate.check("Does step 0 already learn a little, and the last step of the warm-up at the full rate?")
def rises_in_equal_parts(answer):
    return [answer(step, 100, 2.0, 4, 10) for step in range(4)], [0.5, 1.0, 1.5, 2.0]


@plateau_rate.check("Does it stay at the peak between warm-up and cooldown, instead of falling all the way?")
def flat_between(answer):
    return [answer(step, 100, 2.0, 4, 10) for step in (4, 50, 89)], [2.0, 2.0, 2.0]


@plateau_rate.check(
    "Does it fall in equal parts: the peak at the first step of the cooldown, 1/4 of it at the last of 4?"
)
def falls_in_equal_parts(answer):
    return [answer(step, 20, 2.0, 5, 4) for step in (16, 17, 18, 19)], [2.0, 1.5, 1.0, 0.5]


@plateau_rate.check("Do a warm-up or a cooldown of 0 steps mean that there is none?")
def none_at_all(answer):
    calls = [(0, 8, 3.0, 0, 2), (7, 8, 3.0, 2, 0), (3, 8, 3.0, 0, 0)]
    return [answer(*call) for call in calls], [3.0, 3.0, 3.0]


@plateau_rate.check("In a run so short that both overlap, does the smaller of the two rates count?")
def both_at_once(answer):
    return [answer(step, 5, 1.0, 4, 4) for step in range(5)], [0.25, 0.5, 0.75, 0.5, 0.25]


@exercise("Read an ablation: is the difference larger than its spread?")
def paired_cost(runs: list[dict], setting: str, peak: float) -> tuple[float, float]:
    """Say what a change of the training costs, with its standard error, over the seeds.

    A run with the change is compared with the unchanged run of the same seed, so that what
    both owe to their random weights and stories drops out.

    Args:
        runs: one dictionary per run, with "setting" ("as it is" for an unchanged one), "seed",
            "peak" (the learning rate), "rows" (per batch) and "held_out" (a loss in nats).
        setting: the change that is judged.
        peak: compare runs with this peak learning rate only, and with 4 rows.

    Returns:
        The mean over the seeds that have both runs of (changed - unchanged), and its standard
        error: the sample standard deviation (n - 1) of the n differences, divided by sqrt(n).
    """
    runs = [run for run in runs if run["peak"] == peak and run["rows"] == 4]
    unchanged = {run["seed"]: run["held_out"] for run in runs if run["setting"] == "as it is"}
    changed = {run["seed"]: run["held_out"] for run in runs if run["setting"] == setting}
    differences = [changed[seed] - unchanged[seed] for seed in changed if seed in unchanged]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), error


def some_runs(setting: str, losses: dict[int, float], peak: float = 0.006, rows: int = 4) -> list[dict]:
    return [
        {"setting": setting, "seed": seed, "peak": peak, "rows": rows, "held_out": loss, "clipped": 0.5}
        for seed, loss in losses.items()
    ]


UNCHANGED = {0: 1.0, 1: 2.0, 2: 4.0}


@paired_cost.check("Is it changed - unchanged, so that a change that does harm costs something above 0?")
def sign_of_the_cost(answer):
    runs = some_runs("as it is", UNCHANGED) + some_runs("no X", {0: 1.5, 1: 2.5, 2: 5.25})
    return answer(runs, "no X", 0.006)[0], 0.75


@paired_cost.check("Is each run compared with the unchanged one of its seed, in whatever order the runs are listed?")
def by_seed(answer):
    runs = some_runs("no X", {2: 4.5, 0: 1.25, 1: 2.75}) + some_runs("as it is", UNCHANGED)
    return answer(runs, "no X", 0.006)[1], float(np.std([0.5, 0.25, 0.75], ddof=1)) / math.sqrt(3)


@paired_cost.check(
    "Is the standard error that of the mean: the standard deviation with n - 1, divided by the root of n?"
)
def standard_error(answer):
    runs = some_runs("as it is", {0: 1.0, 1: 1.0}) + some_runs("no X", {0: 1.0, 1: 3.0})
    return answer(runs, "no X", 0.006), (1.0, 1.0)


@paired_cost.check("Are runs with another peak learning rate or another number of rows left out, on both sides?")
def same_peak_and_rows(answer):
    runs = some_runs("as it is", UNCHANGED) + some_runs("no X", {0: 2.0, 1: 2.5, 2: 5.5})
    runs += some_runs("as it is", {0: 7.0, 1: 9.0, 2: 9.5}, rows=16)
    runs += some_runs("no X", {0: 0.5, 1: 0.1, 2: 0.7}, peak=0.012)
    return answer(runs, "no X", 0.006), (1.0, float(np.std([1.0, 0.5, 1.5], ddof=1)) / math.sqrt(3))


@paired_cost.check("Is a seed left out that has only one of the two runs?")
def seeds_with_both(answer):
    runs = some_runs("as it is", UNCHANGED | {3: 9.0}) + some_runs("no X", {0: 1.5, 2: 4.25, 5: 0.5})
    return answer(runs, "no X", 0.006), (0.375, 0.125)


@exercise("How many experts work?")
def experts_in_use(choices: Tensor, num_experts: int) -> Tensor:
    """Say for each layer how many experts work, as one number that a training run can watch.

    It is the exponential of the entropy of the shares: with all choices on n experts in equal
    shares it is n; an expert with few choices counts for little.

        exp( -Σ_e p_e · ln p_e ),   p_e = share of the layer's choices that go to expert e

    Args:
        choices: int64 (L, N, K), the experts of N tokens in L layers; all K choices count.
        num_experts: E. Experts that nobody chooses have p_e = 0 and add nothing.

    Returns:
        float32 (L,), from 1 to E.
    """
    counts = [layer.flatten().bincount(minlength=num_experts) for layer in choices]
    counts = torch.stack(counts)
    shares = counts / counts.sum(dim=-1, keepdim=True)  # (L, E)
    return torch.special.entr(shares).sum(dim=-1).exp()  # entr(p) = -p ln p, and 0 for p = 0


def number_by_loops(choices: Tensor) -> np.ndarray:
    numbers = []
    for layer in choices.flatten(1).tolist():
        shares = [layer.count(expert) / len(layer) for expert in set(layer)]
        numbers.append(math.exp(-sum(share * math.log(share) for share in shares)))
    return np.array(numbers)


@experts_in_use.check("Is it the exponential of the entropy? With even shares of 4 experts it is 4.")
def even_shares(answer):
    return answer(torch.tensor([[[0, 1], [2, 3]]]), 4), torch.tensor([4.0])


@experts_in_use.check("Do experts that nobody chooses add nothing? 0 · ln 0 is 0 here, and not NaN.")
def unused_experts(answer):
    return answer(torch.tensor([[[5, 2]] * 3]), 8), torch.tensor([2.0])


@experts_in_use.check("Does an expert with few choices count for little, instead of for one?")
def rare_experts(answer):
    choices = torch.tensor([[[0, 1]] * 19 + [[0, 2]]])
    return answer(choices, 3), number_by_loops(choices)


@experts_in_use.check(
    "Is it counted in each layer by itself? Two layers that collapse onto different experts look even together."
)
def each_layer_alone(answer):
    return answer(torch.tensor([[[0, 1]] * 5, [[2, 3]] * 5]), 4), torch.tensor([2.0, 2.0])


@experts_in_use.check("Do all K choices of a token count, also the second?")
def all_choices(answer):
    choices = torch.stack([torch.rand(50, 6).argsort(dim=-1)[:, :3] for _ in range(2)])
    choices[0, :, 0] = 3
    return answer(choices, 6), number_by_loops(choices)


def snapshot_with_mistakes(model: nn.Module, optimizer, step: int) -> dict:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}


@exercise("Mend a snapshot that does not stay", faulty=snapshot_with_mistakes)
def take_snapshot(model: nn.Module, optimizer, step: int) -> dict:
    """Keep the state of a run in memory, so that it can go back to this step at any time.

    Args:
        model: the model. It and the optimizer stay as they are, and train on afterwards.
        optimizer: has a state_dict() and a load_state_dict(), as torch's optimizers do.
        step: the number of steps done.

    Returns:
        A dictionary with "model" and "optimizer", as their load_state_dict takes them, "step",
        and "rng", as torch.set_rng_state takes it.
    """
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    return copy.deepcopy(state) | {"rng": torch.get_rng_state()}


class Run:
    """A small run with dropout, whose batches depend on the step."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = ModelWithDropout(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = Averaging(self.model.parameters(), rate=0.2, keep=0.9)

    def train(self, first: int, steps: int) -> list[float]:
        losses = []
        for step, _ in zip(count(first), range(steps), strict=False):
            x = torch.linspace(-1, 1, 24).view(6, 4).roll(step, dims=0)
            loss = (self.model(x)[:, 0] - x.sum(dim=1).sin()).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def go_back(self, snapshot: dict) -> int:
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        torch.set_rng_state(snapshot["rng"])
        return snapshot["step"]


class ModelWithDropout(nn.Sequential):
    def __repr__(self) -> str:
        return "a small model"


@take_snapshot.check(
    "Does the snapshot keep the weights of its step? state_dict() hands out the tensors that training changes.",
    compared="a weight matrix in the snapshot, after more steps",
)
def weights_of_then(answer):
    run = Run()
    run.train(0, 3)
    then = run.model[0].weight.detach().clone()
    snapshot = answer(run.model, run.optimizer, 3)
    run.train(3, 2)
    return snapshot["model"]["0.weight"], then


@take_snapshot.check(
    "Does it keep the optimizer's averages of its step too? Its state_dict() is as live as the model's.",
    compared="an average in the snapshot, after more steps",
)
def averages_of_then(answer):
    run = Run()
    run.train(0, 3)
    then = run.optimizer.averages[0].clone()
    snapshot = answer(run.model, run.optimizer, 3)
    run.train(3, 2)
    return snapshot["optimizer"]["averages"][0], then


@take_snapshot.check(
    "After going back, do the next losses repeat, dropout included? What decides on them besides weights and averages?",
    compared="the losses of three steps, after going back",
)
def losses_repeat(answer):
    run = Run()
    run.train(0, 3)
    snapshot = answer(run.model, run.optimizer, 3)
    losses = run.train(3, 3)
    run.train(6, 4)
    return run.train(run.go_back(snapshot), 3), losses


@take_snapshot.check(
    "Does the run train on as if no snapshot had been taken?",
    compared="the losses after the snapshot, and those after going back",
)
def leaves_the_run_alone(answer):
    expected = Run().train(0, 6)[3:]
    run = Run()
    run.train(0, 3)
    snapshot = answer(run.model, run.optimizer, 3)
    return [run.train(3, 3), run.train(run.go_back(snapshot), 3)], [expected] * 2
