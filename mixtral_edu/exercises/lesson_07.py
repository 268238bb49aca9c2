"""Exercises of lesson 07: a decoder layer, the next-token loss, and a model's parameters and FLOPs."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.exercises.framework import exercise


@exercise("A decoder layer from its parts")
def decoder_layer(x: Tensor, norm_1, attention, norm_2, experts) -> Tensor:
    """Let attention and then the experts add to the stream x.

        h = x + attention(norm_1(x))        y = h + experts(norm_2(h))

    Args:
        x: (B, T, D).
        norm_1, attention, norm_2, experts: functions from (B, T, D) to (B, T, D).

    Returns:
        y, (B, T, D). x itself stays as it is.
    """
    h = x + attention(norm_1(x))
    return h + experts(norm_2(h))


@dataclass(frozen=True, repr=False)
class Toy:
    """A part of a layer, which a message shows by what it does."""

    words: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def __repr__(self) -> str:
        return self.words


zero, same, square = Toy("× 0", torch.zeros_like), Toy("× 1", torch.clone), Toy("square", torch.square)


def plus(number: float) -> Toy:
    return Toy(f"+ {number}", lambda x: x + number)


def times(number: float) -> Toy:
    return Toy(f"× {number}", lambda x: x * number)


@decoder_layer.check("Do both parts add to the stream, instead of replacing it? Where both return 0, y is x.")
def parts_add(answer):
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    return answer(x, same, zero, same, zero), x


@decoder_layer.check("Is the stream that passes attention x as it is, and not norm_1(x)?")
def stream_is_not_normalised(answer):
    x = torch.tensor([[[1.0, 2.0]]])
    return answer(x, times(10), zero, same, zero), x


@decoder_layer.check("Is h, which holds attention's part, added to what the experts return?")
def stream_passes_experts(answer):
    x = torch.tensor([[[1.0, 2.0]]])
    return answer(x, same, plus(10), same, zero), torch.tensor([[[12.0, 14.0]]])


@decoder_layer.check("Does attention get norm_1(x)?")
def attention_reads_the_norm(answer):
    x = torch.tensor([[[1.0, 2.0]]])  # normed (10, 20), and attention gives its square
    return answer(x, times(10), square, same, zero), torch.tensor([[[101.0, 402.0]]])


@decoder_layer.check("Do the experts get norm_2 of h, to which attention has already added?")
def experts_read_h(answer):
    x = torch.tensor([[[1.0, 2.0]]])  # h (2, 3), normed (20, 30), and the experts give its square
    return answer(x, zero, plus(1), times(10), square), torch.tensor([[[402.0, 903.0]]])


@decoder_layer.check("Does each row of the batch get its own part? A toy returns one tensor; its [0] is the first row.")
def rows_of_the_batch(answer):
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # h is 11 x, and the experts return h + 1
    return answer(x, same, times(10), same, plus(1)), 22 * x + 1


@exercise("The next-token loss, with labels that are not counted")
def causal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -ln p(next token), over the labels that count.

    The logits at place t predict the label at place t + 1. A label of -100 is not counted.

    Args:
        logits: (B, T, V), scores of the next token after each token; maybe in bfloat16.
        labels: (B, T), the ids of the tokens themselves, or -100. At least one after the
            first column is not -100.

    Returns:
        A float32 tensor without dimensions, in nats.
    """
    said = logits[:, :-1].float().log_softmax(dim=-1)  # (B, T-1, V)
    wanted = labels[:, 1:]  # (B, T-1)
    counted = wanted != -100
    ids = torch.where(counted, wanted, 0)  # any valid id: not counted below
    nats = -said.gather(-1, ids[..., None])[..., 0]  # (B, T-1)
    return nats[counted].mean()


def loss_by_loops(logits: Tensor, labels: Tensor) -> Tensor:
    nats = []
    for scores, row in zip(logits.double().tolist(), labels.tolist(), strict=True):
        for t, label in enumerate(row[1:]):
            if label != -100:
                nats.append(math.log(sum(math.exp(score) for score in scores[t])) - scores[t][label])
    return torch.tensor(sum(nats) / len(nats))


@causal_loss.check("Is it -ln of the softmax of the logits? Equal scores for 4 tokens cost ln 4 = 1.386 nats.")
def equal_scores(answer):
    return answer(torch.zeros(1, 2, 4), torch.tensor([[0, 3]])), torch.tensor(math.log(4))


@causal_loss.check("Do the logits at place t go with the label at t + 1?")
def shifted_by_one(answer):
    logits = torch.zeros(1, 4, 5)
    logits[0, torch.arange(4), torch.tensor([1, 2, 3, 0])] = 20.0  # sure, and right, about the next token
    return answer(logits, torch.tensor([[0, 1, 2, 3]])), torch.tensor(0.0)


@causal_loss.check("Is it the mean of the costs, and neither their sum nor the cost of the mean p?")
def mean_of_the_costs(answer):
    logits = torch.tensor([0.5, 0.25, 0.25]).log().repeat(1, 4, 1)
    return answer(logits, torch.tensor([[2, 0, 1, 2]])), torch.tensor(5 / 3 * math.log(2))  # ln 2, 2 ln 2, 2 ln 2


@causal_loss.check("Does each row of the batch stay with its own labels?")
def rows_apart(answer):
    logits, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    return answer(logits, labels), loss_by_loops(logits, labels)


@causal_loss.check("Are labels of -100 left out, both of the sum and of the count?")
def ignored_labels(answer):
    logits, labels = torch.randn(1, 6, 7), torch.tensor([[1, 2, 3, -100, -100, -100]])
    logits[0, :2] *= 3
    return answer(logits, labels), loss_by_loops(logits, labels)


@causal_loss.check("Are labels shifted before those of -100 are dropped? Each goes with the logits just before it.")
def shifted_before_dropping(answer):
    logits, labels = torch.randn(1, 7, 7), torch.tensor([[-100, -100, 5, 2, -100, 3, 4]])
    return answer(logits, labels), loss_by_loops(logits, labels)


@causal_loss.check("Is the mean over all counted labels together, so that a longer row counts more?")
def mean_over_tokens(answer):
    logits, labels = torch.randn(2, 6, 7), torch.tensor([[1, 2, 3, 4, 5, 6], [0, 1, -100, -100, -100, -100]])
    logits[1] *= 5
    return answer(logits, labels), loss_by_loops(logits, labels)


@causal_loss.check("Is it log_softmax, in one step? e to the power of a large score overflows, and ln of 0 is -inf.")
def large_scores(answer):
    return answer(torch.tensor([[[0.0, 120.0, 0.0], [0.0, 0.0, 0.0]]]), torch.tensor([[1, 2]])), torch.tensor(120.0)


@causal_loss.check("Is the softmax taken in float32? The result is float32, also for bfloat16 logits.")
def loss_in_float32(answer):
    logits, labels = torch.randn(2, 9, 50).bfloat16(), torch.randint(50, (2, 9))
    return answer(logits, labels), loss_by_loops(logits, labels)


@exercise("Parameters in all, and for one token")
def count_parameters(config: dict) -> tuple[int, int]:
    """Count the parameters of a Mixtral from its `config.json`.

    Args:
        config: has the integers "vocab_size" (V), "hidden_size" (D), "intermediate_size" (F),
            "num_hidden_layers" (L), "num_attention_heads" (Hq), "num_key_value_heads" (Hkv),
            "num_local_experts" (E) and "num_experts_per_tok" (K). "head_dim" (Dh) may be
            missing or None, and is D / Hq then.

    Returns:
        The parameters in all, and those that one token meets, which has K of the E experts.
        Embedding and head are two tables; there are two norms a layer and one at the end.
    """
    V, D, F = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    Hq, Hkv = config["num_attention_heads"], config["num_key_value_heads"]
    E, K = config["num_local_experts"], config["num_experts_per_tok"]
    Dh = config.get("head_dim") or D // Hq
    attention = 2 * D * Hq * Dh + 2 * D * Hkv * Dh  # queries and output, keys and values
    shared = attention + E * D + 2 * D  # of a layer: the router and two norms too
    expert = 3 * D * F
    outside = 2 * V * D + D  # embedding, head, last norm
    L = config["num_hidden_layers"]
    return outside + L * (shared + E * expert), outside + L * (shared + K * expert)


SIZES = {
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 5,
    "head_dim": 4,
}


def counted(config: dict) -> tuple[int, int]:
    """Both numbers, counted on a model."""
    model = MixtralForCausalLM(MixtralConfig(**config))
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = [list(layer.block_sparse_moe.experts) for layer in model.model.layers]
    idle = [expert for of_a_layer in experts for expert in of_a_layer[config["num_experts_per_tok"] :]]
    return total, total - sum(parameter.numel() for expert in idle for parameter in expert.parameters())


@count_parameters.check(
    "Outside of the layers: an embedding, a head of the same size, and one norm?",
    compared="what 0 layers would leave of the first number: twice that of 1 layer, less that of 2",
)
def outside_of_the_layers(answer):
    one, two = (SIZES | {"num_hidden_layers": layers} for layers in (1, 2))
    return 2 * answer(one)[0] - answer(two)[0], 2 * counted(one)[0] - counted(two)[0]


@count_parameters.check(
    "Does each of the L layers have all E experts, of three matrices each?",
    compared="how much more the first number is with intermediate_size + 1",
)
def experts_of_a_layer(answer):
    narrow, wide = SIZES, SIZES | {"intermediate_size": SIZES["intermediate_size"] + 1}
    return answer(wide)[0] - answer(narrow)[0], counted(wide)[0] - counted(narrow)[0]


@count_parameters.check(
    "Are keys and values as wide as Hkv heads?",
    compared="how much more the first number is with num_key_value_heads + 1",
)
def shared_keys_and_values(answer):
    few, many = SIZES, SIZES | {"num_key_value_heads": SIZES["num_key_value_heads"] + 1}
    return answer(many)[0] - answer(few)[0], counted(many)[0] - counted(few)[0]


@count_parameters.check(
    "Have you counted the router, D numbers for each expert, and two norms a layer?", compared="the first number"
)
def all_of_a_layer(answer):
    return answer(SIZES)[0], counted(SIZES)[0]


@count_parameters.check("Does a token meet the config's K experts, but a router that scores all E, and the rest once?")
def active_for_a_token(answer):
    return answer(SIZES), counted(SIZES)


NO_HEAD_DIM = {name: size for name, size in SIZES.items() if name != "head_dim"} | {"hidden_size": 36}


@count_parameters.check("Is the head dim the config's own, and D / Hq only where it has none, or None?")
def head_dim(answer):
    configs = SIZES | {"head_dim": 10}, NO_HEAD_DIM | {"head_dim": None}, NO_HEAD_DIM
    return [answer(config) for config in configs], [counted(config) for config in configs]


def kind(number: object) -> str:
    return "an integer" if isinstance(number, numbers.Integral) else f"a {type(number).__name__}"


@count_parameters.check(
    "Are both numbers integers? In Python D / Hq is a float, and D // Hq an integer.", compared="kinds of number"
)
def integers(answer):
    return [kind(number) for number in answer(NO_HEAD_DIM)], ["an integer", "an integer"]


@exercise("FLOPs for one token")
def flops_per_token(config: dict, keys: int) -> int:
    """Count the floating-point operations that one token takes.

    A weight of a matrix that the token meets takes 2. The embedding is looked up and takes
    none; norms, softmax and rotary embedding are not counted. In each layer, each query
    head takes 2 Dh for the score of each key that it sees, and 2 Dh to add its value.

    Args:
        config: as for `count_parameters`, with "head_dim" (Dh), and with "sliding_window" (W):
            a token sees at most the W latest keys, its own included; None for no window.
        keys: tokens in the text so far, this one included.

    Returns:
        The number of operations.
    """
    D, F, L = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    Hq, Hkv = config["num_attention_heads"], config["num_key_value_heads"]
    E, K = config["num_local_experts"], config["num_experts_per_tok"]
    Dh, W = config["head_dim"], config["sliding_window"]
    seen = keys if W is None else min(keys, W)
    layer = 2 * D * Dh * (Hq + Hkv) + E * D + K * 3 * D * F  # weights
    head = config["vocab_size"] * D
    return 2 * (L * layer + head) + 4 * seen * Hq * Dh * L


DENSE = SIZES | {"sliding_window": None}


def flops_by_parts(config: dict, seen: int) -> int:
    """2 for each weight of a model that a token meets, and the work of each head on each key."""
    used = [f"experts.{number}." for number in range(config["num_experts_per_tok"])]
    flops = 0
    for name, weight in MixtralForCausalLM(MixtralConfig(**config)).named_parameters():
        idle = name.startswith("model.embed") or "norm" in name
        if not idle and ("experts" not in name or any(part in name for part in used)):
            flops += 2 * weight.numel()
    heads = config["num_hidden_layers"] * config["num_attention_heads"]
    score, weighted_value = 2 * config["head_dim"], 2 * config["head_dim"]
    return flops + heads * seen * (score + weighted_value)


def cost_of_width(flops: Callable, config: dict) -> int:
    """What one more of F costs, by the function `flops`."""
    wider = config | {"intermediate_size": config["intermediate_size"] + 1}
    return flops(wider, 1) - flops(config, 1)


WIDER = "how much more it is with intermediate_size + 1"


@flops_per_token.check("Are there 2 operations for each weight, a multiplication and an addition?", compared=WIDER)
def two_for_a_weight(answer):
    config = DENSE | {"num_local_experts": 2, "num_experts_per_tok": 2}  # whether K or E is taken, is another question
    return cost_of_width(answer, config), cost_of_width(flops_by_parts, config)


@flops_per_token.check("Does a token pay for the config's K experts, no more and no fewer?", compared=WIDER)
def chosen_experts_alone(answer):
    return cost_of_width(answer, DENSE), cost_of_width(flops_by_parts, DENSE)


@flops_per_token.check(
    "Does the vocabulary count once, for the head? The embedding is looked up.",
    compared="how much more it is with vocab_size + 1",
)
def no_flops_in_the_embedding(answer):
    larger = DENSE | {"vocab_size": SIZES["vocab_size"] + 1}
    return answer(larger, 1) - answer(DENSE, 1), 2 * SIZES["hidden_size"]


@flops_per_token.check(
    "Does a key cost 4 Dh for each of the Hq query heads, in each layer: a score and a weighted value?",
    compared="how much more it is with keys + 1",
)
def cost_of_a_key(answer):
    return answer(DENSE, 8) - answer(DENSE, 7), flops_by_parts(DENSE, 8) - flops_by_parts(DENSE, 7)


@flops_per_token.check(
    "Are exactly these counted: queries, keys, values, output, router, experts, head, no norms, and all keys, "
    "this token's included?"
)
def all_matrices(answer):
    return answer(DENSE, 11), flops_by_parts(DENSE, 11)


@flops_per_token.check("Does a window limit the keys that count, also where the text is shorter than the window?")
def window_limits_the_keys(answer):
    config = SIZES | {"sliding_window": 6}
    return [answer(config, keys) for keys in (4, 6, 50)], [flops_by_parts(config, seen) for seen in (4, 6, 6)]


@flops_per_token.check("Is the result an integer?", compared="its kind")
def an_integer(answer):
    return kind(answer(DENSE, 11)), "an integer"
