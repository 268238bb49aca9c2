"""Answers to the exercises of lesson 07."""

import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.heads import next_token_loss


@right("decoder_layer")
def one_part_at_a_time(x: Tensor, *functions) -> list[Tensor]:
    for norm, part in zip(functions[::2], functions[1::2], strict=True):
        x = torch.add(part(norm(x)), x)
    return x


@right("decoder_layer")
def as_a_sum_of_three(x: Tensor, before_attention, attend, before_experts, mix) -> Tensor:
    attended = attend(before_attention(x))
    mixed = mix(before_experts(x + attended))
    return torch.stack((x, attended, mixed)).sum(0)


@wrong("decoder_layer", "instead of replacing it")
def no_stream(x, norm_1, attention, norm_2, experts):
    return experts(norm_2(attention(norm_1(x))))


@wrong("decoder_layer", "instead of replacing it")
def second_sum_forgotten(x, norm_1, attention, norm_2, experts):
    return experts(norm_2(x + attention(norm_1(x))))


@wrong("decoder_layer", "and not norm_1(x)")
def stream_of_the_norm(x, norm_1, attention, norm_2, experts):
    x = norm_1(x)
    h = x + attention(x)
    return h + experts(norm_2(h))


@wrong("decoder_layer", "and not norm_1(x)")
def norm_after_the_sum(x, norm_1, attention, norm_2, experts):
    h = norm_1(x + attention(x))
    return norm_2(h + experts(h))


@wrong("decoder_layer", "Does attention get norm_1(x)?")
def norm_1_forgotten(x, norm_1, attention, norm_2, experts):
    h = x + attention(x)
    return h + experts(norm_2(h))


@wrong("decoder_layer", "to which attention has already added")
def both_parts_side_by_side(x, norm_1, attention, norm_2, experts):
    return x + attention(norm_1(x)) + experts(norm_2(x))


@wrong("decoder_layer", "Do the experts get norm_2 of h")
def norm_2_forgotten(x, norm_1, attention, norm_2, experts):
    h = x + attention(norm_1(x))
    return h + experts(h)


@wrong("decoder_layer", "Is h, which holds attention's part, added")
def x_added_twice(x, norm_1, attention, norm_2, experts):
    return x + experts(norm_2(x + attention(norm_1(x))))


@wrong("decoder_layer", "its [0] is the first row")
def parts_taken_for_tuples(x, norm_1, attention, norm_2, experts):
    h = x + attention(norm_1(x))[0]
    return h + experts(norm_2(h))[0]


@right("causal_loss")
def by_the_packages_function(logits: Tensor, labels: Tensor) -> Tensor:
    return next_token_loss(logits, labels)


@right("causal_loss")
def token_by_token(logits: Tensor, labels: Tensor) -> Tensor:
    pairs = [(b, t) for b, t in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist() if t > 0]
    pairs = [(b, t) for b, t in pairs if labels[b, t] != -100]
    costs = [logits[b, t - 1].float().logsumexp(0) - logits[b, t - 1, labels[b, t]].float() for b, t in pairs]
    return torch.stack(costs).mean()


def cross_entropy(logits: Tensor, labels: Tensor, **how) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), **how)


@wrong("causal_loss", "-ln of the softmax of the logits")
def in_bits(logits, labels):
    return next_token_loss(logits, labels) / torch.tensor(2.0).log()


@wrong("causal_loss", "-ln of the softmax of the logits")
def no_softmax(logits, labels):
    return -logits[:, :-1].gather(-1, labels[:, 1:, None].clamp(min=0)).mean()


@wrong("causal_loss", "go with the label at t + 1")
def no_shift(logits, labels):
    return cross_entropy(logits, labels)


@wrong("causal_loss", "go with the label at t + 1")
def shifted_backwards(logits, labels):
    return cross_entropy(logits[:, 1:], labels[:, :-1])


@wrong("causal_loss", "the mean of the costs")
def summed(logits, labels):
    return cross_entropy(logits[:, :-1], labels[:, 1:], reduction="sum")


@wrong("causal_loss", "nor the cost of the mean p")
def cost_of_the_mean(logits, labels):
    said, counted = logits[:, :-1].float().softmax(-1), labels[:, 1:] != -100
    return -said[counted].gather(-1, labels[:, 1:][counted][:, None]).mean().log()


@wrong("causal_loss", "stay with its own labels")
def shifted_after_flattening(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1)[:-1].float(), labels.flatten()[1:])


@wrong("causal_loss", "Are labels of -100 left out")
def ignored_ones_are_taken_for_0(logits, labels):
    return cross_entropy(logits[:, :-1], labels[:, 1:].clamp(min=0))


@wrong("causal_loss", "Are labels of -100 left out")
def divided_by_all(logits, labels):
    return cross_entropy(logits[:, :-1], labels[:, 1:], reduction="sum") / labels[:, 1:].numel()


@wrong("causal_loss", "shifted before those of -100 are dropped")
def shifted_after_dropping(logits, labels):
    rows = [(scores[row != -100][:-1], row[row != -100][1:]) for scores, row in zip(logits, labels, strict=True)]
    scores, wanted = map(torch.cat, zip(*rows, strict=True))
    return F.cross_entropy(scores.float(), wanted)


@wrong("causal_loss", "over all counted labels together")
def mean_of_rows(logits, labels):
    return torch.stack([next_token_loss(logits[b : b + 1], labels[b : b + 1]) for b in range(len(labels))]).mean()


def mean_cost(p: Tensor, labels: Tensor) -> Tensor:
    """By the probabilities (B, T, V)."""
    wanted = labels[:, 1:]
    counted = wanted != -100
    return -p[:, :-1][counted].gather(-1, wanted[counted][:, None]).log().mean()


@wrong("causal_loss", "a large score overflows")
def powers_over_their_sum(logits, labels):
    powers = logits.float().exp()
    return mean_cost(powers / powers.sum(-1, keepdim=True), labels)


@wrong("causal_loss", "ln of 0 is -inf")
def logarithm_of_a_softmax(logits, labels):
    return mean_cost(logits.float().softmax(-1), labels)


@wrong("causal_loss", "softmax taken in float32")
def in_the_dtype_of_the_logits(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@wrong("causal_loss", "softmax taken in float32")
def float32_too_late(logits, labels):
    return in_the_dtype_of_the_logits(logits, labels).float()


@right("count_parameters")
def by_the_packages_method(config: dict) -> tuple[int, int]:
    counts = MixtralConfig(**config).parameter_counts()
    return counts.total, counts.active


@right("count_parameters")
def by_building_two_models(config: dict) -> list[int]:
    state = torch.get_rng_state()

    def count(experts: int) -> int:
        model = MixtralForCausalLM(MixtralConfig(**config | {"num_local_experts": experts}))
        torch.set_rng_state(state)
        return sum(parameter.numel() for parameter in model.parameters())

    missing = config["num_local_experts"] - config["num_experts_per_tok"]
    rows_of_the_router = missing * config["hidden_size"] * config["num_hidden_layers"]
    return [count(config["num_local_experts"]), count(config["num_experts_per_tok"]) + rows_of_the_router]


def parameters(config: dict, tables=2, last_norm=1, matrices=3, router=1, active=None, **changes) -> tuple[int, int]:
    """A right count, but for what the arguments say."""
    config = {"head_dim": None} | config
    config = config | {"head_dim": config["head_dim"] or config["hidden_size"] // config["num_attention_heads"]}
    config |= {name: size(config) for name, size in changes.items()}
    D, L = config["hidden_size"], config["num_hidden_layers"]
    E, K = config["num_local_experts"], config["num_experts_per_tok"]
    attention = 2 * D * config["head_dim"] * (config["num_attention_heads"] + config["num_key_value_heads"])
    expert = matrices * D * config["intermediate_size"]
    outside = tables * config["vocab_size"] * D + last_norm * D
    rest = outside + L * (attention + router * E * D + 2 * D)
    return rest + L * E * expert, (active or (lambda rest, expert: rest + L * K * expert))(rest, expert)


@wrong("count_parameters", "an embedding, a head of the same size, and one norm")
def tied_embedding(config):
    return parameters(config, tables=1)


@wrong("count_parameters", "and one norm")
def last_norm_forgotten(config):
    return parameters(config, last_norm=0)


@wrong("count_parameters", "of three matrices each")
def two_matrices(config):
    return parameters(config, matrices=2)


@wrong("count_parameters", "as wide as Hkv heads")
def keys_for_each_query_head(config):
    return parameters(config, num_key_value_heads=lambda config: config["num_attention_heads"])


@wrong("count_parameters", "the router, D numbers for each expert")
def router_forgotten(config):
    return parameters(config, router=0)


@wrong("count_parameters", "the config's K experts")
def everything_is_active(config):
    return parameters(config, active=lambda rest, expert: parameters(config)[0])


@wrong("count_parameters", "the config's K experts")
def share_of_the_total(config):
    share = config["num_experts_per_tok"] / config["num_local_experts"]
    return parameters(config, active=lambda rest, expert: round(share * parameters(config)[0]))


@wrong("count_parameters", "the config's K experts")
def always_two_experts(config):
    return parameters(config)[0], parameters(config, num_experts_per_tok=lambda _: 2)[1]


@wrong("count_parameters", "D / Hq only where it has none")
def heads_always_divide(config):
    return parameters(config, head_dim=lambda config: config["hidden_size"] // config["num_attention_heads"])


@wrong("count_parameters", "D / Hq only where it has none")
def head_dim_expected(config):
    return parameters(config, head_dim=lambda _: config["head_dim"])


@wrong("count_parameters", "Are both numbers integers?")
def floats_for_want_of_a_head_dim(config):
    total, active = parameters(config)
    return (total, active) if config.get("head_dim") else (float(total), float(active))


@right("flops_per_token")
def by_the_active_parameters(config: dict, keys: int) -> int:
    counts = MixtralConfig(**config).parameter_counts()
    weights = counts.active - counts.per_part["embedding"] - counts.per_part["norms"]
    widths = config["num_attention_heads"] * config["head_dim"] * config["num_hidden_layers"]
    return 2 * weights + 4 * widths * min(keys, config["sliding_window"] or keys)


def flops(config: dict, keys: int, weight=2, a_key=4, heads="num_attention_heads", **changes) -> int:
    config = config | changes
    counts = MixtralConfig(**config).parameter_counts()
    weights = counts.active - counts.per_part["embedding"] - counts.per_part["norms"]
    keys = min(keys, config["sliding_window"] or keys)
    return weight * weights + a_key * keys * config[heads] * config["head_dim"] * config["num_hidden_layers"]


@wrong("flops_per_token", "2 operations for each weight")
def multiplications_alone(config, keys):
    return flops(config, keys, weight=1, a_key=2)


@wrong("flops_per_token", "the config's K experts")
def all_experts(config, keys):
    return flops(config, keys, num_experts_per_tok=config["num_local_experts"])


@wrong("flops_per_token", "the config's K experts")
def always_two_experts_pay(config, keys):
    return flops(config, keys, num_experts_per_tok=2)


@wrong("flops_per_token", "The embedding is looked up")
def twice_all_active_parameters(config, keys):
    return flops(config, keys) + 2 * config["vocab_size"] * config["hidden_size"]


@wrong("flops_per_token", "a score and a weighted value")
def scores_alone(config, keys):
    return flops(config, keys, a_key=2)


@wrong("flops_per_token", "each of the Hq query heads")
def key_heads(config, keys):
    return flops(config, keys, heads="num_key_value_heads")


@wrong("flops_per_token", "queries, keys, values, output")
def keys_for_each_query(config, keys):
    return flops(config, keys, num_key_value_heads=config["num_attention_heads"])


@wrong("flops_per_token", "router, experts, head")
def router_costs_nothing(config, keys):
    return flops(config, keys) - 2 * config["num_local_experts"] * config["hidden_size"] * config["num_hidden_layers"]


@wrong("flops_per_token", "no norms")
def norms_too(config, keys):
    return flops(config, keys) + 2 * MixtralConfig(**config).parameter_counts().per_part["norms"]


@wrong("flops_per_token", "this token's included")
def own_key_left_out(config, keys):
    return flops(config, keys - 1)


@wrong("flops_per_token", "Is the result an integer")
def as_a_float(config, keys):
    return float(flops(config, keys))


@wrong("flops_per_token", "Does a window limit the keys")
def window_forgotten(config, keys):
    return flops(config, keys, sliding_window=None)


@wrong("flops_per_token", "Does a window limit the keys")
def window_always_full(config, keys):
    return flops(config, config["sliding_window"] or keys)
