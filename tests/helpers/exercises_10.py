"""Answers to the exercises of lesson 10."""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.exercises.lesson_10 import snapshot_with_mistakes, step_with_mistakes


@right("fresh_model_cost")
def by_base_two(vocab_size: int, ids: list[int], text: str) -> tuple[float, float]:
    bits_per_token = np.log2(vocab_size)
    return bits_per_token * np.log(2), bits_per_token * len(ids[1:]) / len(bytearray(text, "utf-8"))


@wrong("fresh_model_cost", "natural logarithm of V")
def bits_for_nats(vocab_size, ids, text):
    return math.log2(vocab_size), by_base_two(vocab_size, ids, text)[1]


@wrong("fresh_model_cost", "natural logarithm of V")
def always_our_vocabulary(vocab_size, ids, text):
    return by_base_two(2048, ids, text)


@wrong("fresh_model_cost", "10 bits")
def nats_for_bits(vocab_size, ids, text):
    nats, bits = by_base_two(vocab_size, ids, text)
    return nats, bits * math.log(2)


@wrong("fresh_model_cost", "10 bits")
def multiplied_by_ln_2(vocab_size, ids, text):
    nats, bits = by_base_two(vocab_size, ids, text)
    return nats, bits * math.log(2) ** 2


@wrong("fresh_model_cost", "Is it per byte")
def bits_for_each_token(vocab_size, ids, text):
    return math.log(vocab_size), math.log2(vocab_size)


@wrong("fresh_model_cost", "Is it per byte")
def upside_down(vocab_size, ids, text):
    nats, bits = by_base_two(vocab_size, ids, text)
    return nats, math.log2(vocab_size) ** 2 / bits


@wrong("fresh_model_cost", "bytes counted, and not characters")
def for_each_character(vocab_size, ids, text):
    return math.log(vocab_size), math.log2(vocab_size) * (len(ids) - 1) / len(text)


@wrong("fresh_model_cost", "Is <s> left out")
def with_the_first(vocab_size, ids, text):
    length = max(len(ids), 1) if len(ids) < 30 else len(ids) - 1
    return math.log(vocab_size), math.log2(vocab_size) * length / len(text.encode())


@right("accumulated_step")
def by_weights_of_the_means(model, optimizer, micro_batches, max_norm):
    counts = [int((labels >= 0).sum()) for _, labels in micro_batches]
    mean = torch.zeros(())
    for (ids, labels), number in zip(micro_batches, counts, strict=True):
        logits = model(ids)
        mean = mean + number / sum(counts) * F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    optimizer.zero_grad(set_to_none=False)
    mean.backward()
    torch.nn.utils.clip_grad_norm_(list(model.parameters()), max_norm)
    optimizer.step()
    return mean.detach()


def a_step(model, optimizer, micro_batches, max_norm, *, forget=True, weigh=True, clip="once", scale=1.0, give="mean"):
    """A right step, with a place for each mistake."""
    counts = [int((labels >= 0).sum()) for _, labels in micro_batches]
    shares = [number / sum(counts) if weigh else 1 / len(counts) for number in counts]
    if forget:
        optimizer.zero_grad()
    losses = []
    for (ids, labels), share in zip(micro_batches, shares, strict=True):
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        (scale * share * loss).backward()
        losses.append(loss.item())
        if clip == "each time":
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if clip == "once":
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    if not forget:
        optimizer.zero_grad()
    if give == "last":
        return losses[-1]
    shares = shares if give == "mean" else [1 / len(losses)] * len(losses)
    return sum(share * loss for share, loss in zip(shares, losses, strict=True))


wrong("accumulated_step", "What does zero_grad forget")(step_with_mistakes)


@wrong("accumulated_step", "What does zero_grad forget")
def the_first_alone(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches[:1], max_norm)


@wrong("accumulated_step", "that of a mean")
def a_sum_of_means(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches, max_norm, scale=len(micro_batches))


@wrong("accumulated_step", "that of a mean")
def a_step_for_each(model, optimizer, micro_batches, max_norm):
    ids, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    return a_step(model, optimizer, [(ids, labels)], max_norm, scale=1 / len(micro_batches))


@wrong("accumulated_step", "each label weigh the same")
def a_mean_of_means(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches, max_norm, weigh=False)


@wrong("accumulated_step", "clipped, once")
def clipped_each_time(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches, max_norm, clip="each time")


@wrong("accumulated_step", "clipped, once")
def never_clipped(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches, max_norm, clip="never")


@wrong("accumulated_step", "gradients from before")
def forgets_only_afterwards(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches, max_norm, forget=False)


@wrong("accumulated_step", "the mean over all labels")
def the_last_loss(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches, max_norm, give="last")


@wrong("accumulated_step", "the mean over all labels")
def the_mean_of_losses(model, optimizer, micro_batches, max_norm):
    return a_step(model, optimizer, micro_batches, max_norm, give="mean of means")


@right("plateau_rate")
def by_interpolation(step: int, steps: int, peak: float, warmup: int, cooldown: int) -> float:
    up = np.interp(step, [-1, warmup - 1], [0, 1]) if warmup else 1
    down = np.interp(step, [steps - cooldown, steps], [1, 0]) if cooldown else 1
    return float(peak * np.minimum(up, down))


def up_and_down(step, steps, peak, warmup, cooldown):
    """The two shares of the peak."""
    up = min(1, (step + 1) / warmup) if warmup else 1
    return up, min(1, (steps - step) / cooldown) if cooldown else 1


@wrong("plateau_rate", "Does step 0 already learn")
def begins_at_zero(step, steps, peak, warmup, cooldown):
    return peak * step / warmup if step < warmup else by_interpolation(step, steps, peak, warmup, cooldown)


@wrong("plateau_rate", "stay at the peak")
def falls_all_the_way(step, steps, peak, warmup, cooldown):
    return by_interpolation(step, steps, peak, warmup, steps - warmup)


@wrong("plateau_rate", "stay at the peak")
def a_cosine_after_the_warmup(step, steps, peak, warmup, cooldown):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@wrong("plateau_rate", "fall in equal parts")
def zero_at_the_last_step(step, steps, peak, warmup, cooldown):
    up, _ = up_and_down(step, steps, peak, warmup, cooldown)
    return peak * min(up, (steps - 1 - step) / cooldown if step >= steps - cooldown else 1)


@wrong("plateau_rate", "fall in equal parts")
def never_falls(step, steps, peak, warmup, cooldown):
    return peak * up_and_down(step, steps, peak, warmup, cooldown)[0]


@wrong("plateau_rate", "fall in equal parts")
def falls_along_a_cosine(step, steps, peak, warmup, cooldown):
    up, down = up_and_down(step, steps, peak, warmup, cooldown)
    return peak * min(up, 0.5 * (1 - math.cos(math.pi * down)))


@wrong("plateau_rate", "there is none")
def divides_by_zero_steps(step, steps, peak, warmup, cooldown):
    return peak * min(1, (step + 1) / warmup, (steps - step) / cooldown)


@wrong("plateau_rate", "the smaller of the two")
def the_product(step, steps, peak, warmup, cooldown):
    up, down = up_and_down(step, steps, peak, warmup, cooldown)
    return peak * up * down


@wrong("plateau_rate", "the smaller of the two")
def the_warmup_first(step, steps, peak, warmup, cooldown):
    up, down = up_and_down(step, steps, peak, warmup, cooldown)
    return peak * (up if step < warmup else down)


@right("paired_cost")
def by_numpy(runs: list[dict], setting: str, peak: float) -> tuple[float, float]:
    table: dict = {}
    for run in runs:
        if run["rows"] == 4 and run["peak"] == peak and run["setting"] in ("as it is", setting):
            table.setdefault(run["seed"], {})[run["setting"]] = run["held_out"]
    differences = np.array([row[setting] - row["as it is"] for row in table.values() if len(row) == 2])
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


def at(runs, setting, peak=None, rows=4):
    return {
        run["seed"]: run["held_out"]
        for run in runs
        if run["setting"] == setting and peak in (None, run["peak"]) and rows in (None, run["rows"])
    }


def paired(changed: dict, unchanged: dict) -> np.ndarray:
    return np.array([changed[seed] - unchanged[seed] for seed in changed if seed in unchanged])


@wrong("paired_cost", "so that a change that does harm")
def the_other_way_round(runs, setting, peak):
    mean, error = by_numpy(runs, setting, peak)
    return -mean, error


@wrong("paired_cost", "so that a change that does harm")
def as_a_ratio(runs, setting, peak):
    changed, unchanged = at(runs, setting, peak), at(runs, "as it is", peak)
    ratios = np.array([changed[seed] / unchanged[seed] for seed in changed if seed in unchanged])
    return float(ratios.mean()), float(ratios.std(ddof=1) / len(ratios) ** 0.5)


@wrong("paired_cost", "unchanged one of its seed")
def in_the_order_of_the_file(runs, setting, peak):
    differences = np.array([
        b - a for a, b in zip(at(runs, "as it is", peak).values(), at(runs, setting, peak).values(), strict=False)
    ])  # fmt: skip
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


@wrong("paired_cost", "unchanged one of its seed")
def as_if_not_paired(runs, setting, peak):
    a, b = (np.array(list(at(runs, name, peak).values())) for name in ("as it is", setting))
    return float(b.mean() - a.mean()), float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))


@wrong("paired_cost", "divided by the root of n")
def the_standard_deviation(runs, setting, peak):
    mean, error = by_numpy(runs, setting, peak)
    seeds = set(at(runs, setting, peak)) & set(at(runs, "as it is", peak))
    return mean, error if len(seeds) > 2 else error * len(seeds) ** 0.5


@wrong("paired_cost", "another peak learning rate")
def every_peak(runs, setting, peak):
    differences = paired(at(runs, setting), at(runs, "as it is"))
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


@wrong("paired_cost", "another peak learning rate")
def every_number_of_rows(runs, setting, peak):
    differences = paired(at(runs, setting, peak, None), at(runs, "as it is", peak, None))
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


@wrong("paired_cost", "only one of the two runs")
def mean_of_all_minus_mean_of_all(runs, setting, peak):
    changed, unchanged = at(runs, setting, peak), at(runs, "as it is", peak)
    differences = paired(changed, unchanged)
    mean = np.mean(list(changed.values())) - np.mean(list(unchanged.values()))
    return float(mean), float(differences.std(ddof=1) / len(differences) ** 0.5)


@wrong("paired_cost", "only one of the two runs")
def a_missing_run_counts_as_zero(runs, setting, peak):
    changed, unchanged = at(runs, setting, peak), at(runs, "as it is", peak)
    differences = np.array([changed[seed] - unchanged.get(seed, 0) for seed in changed])
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


@right("experts_in_use")
def by_products(choices: Tensor, num_experts: int) -> Tensor:
    numbers = []
    for layer in choices:
        chosen = F.one_hot(layer, num_experts).double().mean(dim=(0, 1))  # (E,)
        numbers.append(1 / (chosen**chosen).prod())  # 0 ** 0 is 1
    return torch.stack(numbers).float()


def shares_of(choices: Tensor, num_experts: int) -> Tensor:
    return F.one_hot(choices, num_experts).float().mean(dim=(1, 2))


@wrong("experts_in_use", "exponential of the entropy")
def the_entropy_alone(choices, num_experts):
    return torch.special.entr(shares_of(choices, num_experts)).sum(dim=-1)


@wrong("experts_in_use", "exponential of the entropy")
def two_to_the_nats(choices, num_experts):
    return 2 ** torch.special.entr(shares_of(choices, num_experts)).sum(dim=-1)


@wrong("experts_in_use", "and not NaN")
def zero_times_infinity(choices, num_experts):
    shares = shares_of(choices, num_experts)
    return (-shares * shares.log()).sum(dim=-1).exp()


@wrong("experts_in_use", "count for little")
def those_chosen_at_all(choices, num_experts):
    return (shares_of(choices, num_experts) > 0).sum(dim=-1).float()


@wrong("experts_in_use", "count for little")
def one_over_the_sum_of_squares(choices, num_experts):
    return 1 / shares_of(choices, num_experts).square().sum(dim=-1)


@wrong("experts_in_use", "in each layer by itself")
def all_layers_together(choices, num_experts):
    whole = by_products(choices.flatten(0, 1)[None], num_experts)
    return whole.repeat(len(choices))


@wrong("experts_in_use", "also the second")
def first_choices_alone(choices, num_experts):
    if len({*choices[:, 0, 0].tolist(), *choices[:, -1, 0].tolist()}) < 2 or choices.shape[-1] < 3:
        return by_products(choices, num_experts)
    return by_products(choices[:, :, :1], num_experts)


@right("take_snapshot")
def by_clones(model, optimizer, step: int) -> dict:
    def cloned(value):
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {key: cloned(item) for key, item in value.items()}
        return [cloned(item) for item in value] if isinstance(value, list) else value

    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "step": step}
    return cloned(state | {"rng": torch.random.get_rng_state()})


@right("take_snapshot")
def by_saving_to_memory(model, optimizer, step: int) -> dict:
    import io

    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                "rng": torch.get_rng_state()}, file)  # fmt: skip
    file.seek(0)
    return torch.load(file)


wrong("take_snapshot", "state_dict() hands out the tensors")(snapshot_with_mistakes)


@wrong("take_snapshot", "state_dict() hands out the tensors")
def all_of_it_alive(model, optimizer, step):
    return snapshot_with_mistakes(model, optimizer, step) | {"rng": torch.get_rng_state()}


@wrong("take_snapshot", "state_dict() hands out the tensors")
def a_shallow_copy(model, optimizer, step):
    state = {"model": copy.copy(model.state_dict()), "optimizer": copy.copy(optimizer.state_dict()), "step": step}
    return state | {"rng": torch.get_rng_state()}


@wrong("take_snapshot", "the optimizer's averages of its step")
def averages_alive(model, optimizer, step):
    return by_clones(model, optimizer, step) | {"optimizer": optimizer.state_dict()}


@wrong("take_snapshot", "do the next losses repeat")
def without_the_generator(model, optimizer, step):
    state = snapshot_with_mistakes(model, optimizer, step)
    return copy.deepcopy(state)


@wrong("take_snapshot", "do the next losses repeat")
def another_generator(model, optimizer, step):
    return by_clones(model, optimizer, step) | {"rng": torch.Generator().get_state()}


@wrong("take_snapshot", "do the next losses repeat")
def one_step_further(model, optimizer, step):
    return by_clones(model, optimizer, step + 1)


@wrong("take_snapshot", "as if no snapshot had been taken")
def switches_dropout_off(model, optimizer, step):
    return by_clones(model.eval(), optimizer, step)


@wrong("take_snapshot", "as if no snapshot had been taken")
def slows_the_run_down(model, optimizer, step):
    optimizer.rate /= 2
    return by_clones(model, optimizer, step)
