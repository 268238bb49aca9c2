"""Exercises of lesson 08: rows out of a file, broken files, shards, one expert's tensors, names, and conversions."""

import json
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("A few rows, and not one byte more")
def read_rows(read: Callable, name: str, start: int, stop: int) -> Tensor:
    """Take rows `start` to `stop - 1` of a matrix out of a safetensors file.

    The file lies far away, and every byte costs time: read the length, the header, and the
    bytes of these rows, nothing else.

    Args:
        read: `read(position, count)` returns that many bytes of the file, from that place on.
        name: of a matrix of dtype "BF16" in the file.
        start: the first row.
        stop: the row after the last.

    Returns:
        (stop - start, columns), in float32.
    """
    length = int.from_bytes(read(0, 8), "little")
    header = json.loads(read(8, length))
    columns = header[name]["shape"][1]
    begin = 8 + length + header[name]["data_offsets"][0]
    data = read(begin + start * 2 * columns, (stop - start) * 2 * columns)
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(-1, columns).float()


COMPARED = "the rows, and how many bytes were read"


def file_with(tensors: dict[str, Tensor], padding: int = 0, order: list[str] | None = None) -> bytes:
    """A file of bfloat16 tensors as the format wants it; `order` is that of the header's lines."""
    entries, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        numbers = bytes(tensor.bfloat16().contiguous().flatten().view(torch.uint8).tolist())
        offsets = [len(data), len(data) + len(numbers)]
        entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        data += numbers
    header = json.dumps({name: entries[name] for name in order or entries}).encode() + b" " * padding
    return len(header).to_bytes(8, "little") + header + data


def whole(*shape: int) -> Tensor:
    """Whole numbers that bfloat16 can hold, so that nothing is rounded."""
    return (torch.arange(math.prod(shape)) % 251).float().view(shape)


def rows_and_bytes(answer, tensors: dict[str, Tensor], name: str, start: int, stop: int, padding: int = 0):
    """Return what was found and is right: the rows, and the bytes read (those beyond the needed ones count)."""
    content, count = file_with(tensors, padding), 0

    def read(position: int, number: int) -> bytes:
        nonlocal count
        part = content[position : position + number]
        count += len(part)
        return part

    rows = answer(read, name, start, stop)
    needed = len(content) - sum(2 * tensor.numel() for tensor in tensors.values())
    needed += 2 * tensors[name][start:stop].numel()
    return [rows, max(count, needed)], [tensors[name][start:stop], needed]


@read_rows.check(
    "Do the numbers begin after the 8 bytes of the length (lowest first) and the header?", compared=COMPARED
)
def after_the_header(answer):
    return rows_and_bytes(answer, {"a": whole(3, 4)}, "a", 0, 3)


@read_rows.check("Are the offsets of this tensor used, and not those of the first one?", compared=COMPARED)
def own_offsets(answer):
    return rows_and_bytes(answer, {"a": whole(2, 3), "b": whole(4, 3) + 1}, "b", 0, 4)


@read_rows.check("Does a row begin after `start` rows of `columns` numbers, two bytes each?", compared=COMPARED)
def where_a_row_begins(answer):
    return rows_and_bytes(answer, {"a": whole(7, 5)}, "a", 2, 7)


@read_rows.check("Are only the bytes of these rows read, not those of rows after them?", compared=COMPARED)
def nothing_else(answer):
    return rows_and_bytes(answer, {"a": whole(9, 5), "b": whole(2, 2)}, "a", 3, 5)


@read_rows.check("Is the length read from all eight bytes? Here the header is longer than 255.", compared=COMPARED)
def all_eight_bytes(answer):
    return rows_and_bytes(answer, {"a": whole(4, 3)}, "a", 1, 2, padding=300)


@exercise("What is wrong with this file?")
def find_fault(file: bytes) -> str:
    """Check the promises of a safetensors file, without a look at its numbers.

    Args:
        file: the whole content. Its tensors are of dtype "F32" (4 bytes) or "BF16" (2 bytes).
            The entry "__metadata__" of the header, if there is one, is no tensor.

    Returns:
        the first of these that is true, or "" if none is:
        "header": the file ends before its header does;
        "size": a tensor's offsets do not hold as many bytes as its shape and dtype need;
        "gap": the tensors do not fill the bytes from 0 on without a gap or an overlap;
        "end": the last tensor does not end where the file ends.
    """
    length = int.from_bytes(file[:8], "little")
    if len(file) < 8 + length:
        return "header"
    header = json.loads(file[8 : 8 + length])
    header.pop("__metadata__", None)
    for entry in header.values():
        start, end = entry["data_offsets"]
        if end - start != math.prod(entry["shape"]) * {"F32": 4, "BF16": 2}[entry["dtype"]]:
            return "size"
    place = 0
    for start, end in sorted(entry["data_offsets"] for entry in header.values()):
        if start != place:
            return "gap"
        place = end
    return "" if 8 + length + place == len(file) else "end"


SOUND = {"a": whole(2, 3), "b": whole(4), "c": whole(3, 1)}


def with_entry(file: bytes, name: str, **changes) -> bytes:
    """The file with a changed entry of its header."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header[name] |= changes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


@find_fault.check('Does a file that was cut off, or that goes on, get "end", and a whole one ""?')
def ends_early_or_late(answer):
    file = file_with(SOUND)
    return [answer(file[:-1]), answer(file + bytes(2)), answer(file)], ["end", "end", ""]


@find_fault.check("Is the tensor that ends last looked for? The header may name it first.")
def order_of_the_header(answer):
    file = file_with(SOUND, order=["c", "b", "a"])
    return [answer(file[:-2]), answer(file)], ["end", ""]


@find_fault.check("Is the size of each tensor compared with its shape, and with the bytes of its own dtype?")
def sizes(answer):
    file = file_with(SOUND)
    files = [with_entry(file, "a", shape=[2, 4]), with_entry(file, "b", dtype="F32", shape=[2]),
             with_entry(file, "b", dtype="F32")]  # fmt: skip
    return [answer(each) for each in files], ["size", "", "size"]


@find_fault.check("Is a shape of [] one number, and one with a 0 none? math.prod knows both.")
def scalars_and_nothing(answer):
    file = file_with({"scale": torch.tensor(3.0), "none": whole(0, 5), "a": whole(2, 2)})
    return [answer(with_entry(file, "scale", shape=[0])), answer(file)], ["size", ""]


@find_fault.check("May two tensors claim the same bytes, or bytes belong to none?")
def overlap_and_gap(answer):
    file = file_with(SOUND)
    overlap = with_entry(file, "b", data_offsets=[4, 12])
    gap = with_entry(with_entry(file, "b", data_offsets=[14, 22]), "c", data_offsets=[22, 28])
    return [answer(overlap), answer(gap + bytes(2))], ["gap", "gap"]


@find_fault.check("What if the file ends within its header, or within the eight bytes before it?")
def cut_in_the_header(answer):
    file = file_with(SOUND)
    return [answer(file[:40]), answer(file[:8]), answer(file[:3])], ["header", "header", "header"]


@exercise("Fill the shards")
def fill_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Split the tensors of a model into shards, in the order in which they come.

    A shard takes tensors as long as they fit; the first that does not fit opens the next
    shard. A tensor that is larger than the limit by itself gets a shard of its own.

    Args:
        sizes: bytes of each tensor, by name, in the order of the model; at least one.
        limit: bytes that a shard may have.

    Returns:
        the names in each shard; no shard is empty.
    """
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


@fill_shards.check("Does one shard take everything that fits?")
def everything_fits(answer):
    return answer({"a": 10, "b": 20, "c": 30}, 100), [["a", "b", "c"]]


@fill_shards.check("May a shard be exactly as large as the limit?")
def exactly_full(answer):
    return answer({"a": 60, "b": 40, "c": 30}, 100), [["a", "b"], ["c"]]


@fill_shards.check("Does a new shard start empty, so that only its own tensors count?")
def starts_empty(answer):
    return answer({"a": 90, "b": 60, "c": 30, "d": 30}, 100), [["a"], ["b", "c"], ["d"]]


@fill_shards.check("Do tensors stay in their order, also where a later one would fill a gap?")
def order_stays(answer):
    return answer({"a": 70, "b": 60, "c": 20}, 100), [["a"], ["b", "c"]]


@fill_shards.check("Does a tensor above the limit get a shard, without an empty one before it?")
def too_large(answer):
    return answer({"a": 500, "b": 20, "c": 500}, 100), [["a"], ["b"], ["c"]]


def prefixes_that_fit_too_much(weight_map: dict[str, str], layer: int, expert: int):
    found = {}
    for name, file in weight_map.items():
        if f"layers.{layer}" in name and f"experts.{expert}" in name:
            found.setdefault(file, []).append(name)
    return found


@exercise("Mend a search that finds too much", faulty=prefixes_that_fit_too_much)
def tensors_of_expert(
    weight_map: dict[str, str], layer: int, expert: int
) -> dict[str, list[str]]:
    """Say which tensors one expert has, and which shards to download for them.

    Args:
        weight_map: of the index: the shard of each tensor, by the tensor's name in Hugging
            Face's layout.
        layer: 0 to L - 1.
        expert: 0 to E - 1.

    Returns:
        for each shard that holds tensors of this expert, their names in the order of the map.
    """
    beginning = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
    found = {}
    for name, file in weight_map.items():
        if name.startswith(beginning):
            found.setdefault(file, []).append(name)
    return found


def index_of(*owners: tuple[int, int], per_shard: int = 100) -> dict[str, str]:
    """The index of these layers' experts; each shard holds that many tensors."""
    experts = [f"model.layers.{layer}.block_sparse_moe.experts.{expert}" for layer, expert in owners]
    names = [f"{expert}.w{n}.weight" for expert in experts for n in (1, 2, 3)]
    return {name: f"shard-{place // per_shard}" for place, name in enumerate(names)}


def found_in(weight_map: dict[str, str], layer: int, expert: int) -> dict[str, list[str]]:
    wanted = [f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{n}.weight" for n in (1, 2, 3)]
    return {file: [n for n in wanted if weight_map[n] == file] for file in dict.fromkeys(map(weight_map.get, wanted))}


@tensors_of_expert.check("Is layer 1 told apart from layer 10?")
def layer_1_and_10(answer):
    index = index_of((1, 2), (10, 2))
    return answer(index, 1, 2), found_in(index, 1, 2)


@tensors_of_expert.check("Is expert 1 told apart from expert 10?")
def expert_1_and_10(answer):
    index = index_of((0, 1), (0, 10))
    return answer(index, 0, 1), found_in(index, 0, 1)


@tensors_of_expert.check("Is layer 2 told apart from layer 12, which ends alike?")
def layer_2_and_12(answer):
    index = index_of((2, 3), (12, 3), (20, 3))
    return answer(index, 2, 3), found_in(index, 2, 3)


@tensors_of_expert.check("Are tensors listed under their own shard, where an expert lies in two?")
def two_shards(answer):
    index = index_of((4, 0), (4, 1), (40, 1), per_shard=4)
    return answer(index, 4, 1), found_in(index, 4, 1)


@exercise("From Mistral's names to Hugging Face's")
def published_name(raw: str) -> str:
    """Translate the name of a tensor in Mistral's files into that of Hugging Face's.

    Args:
        raw: such as "layers.0.attention.wq.weight".

    Returns:
        such as "model.layers.0.self_attn.q_proj.weight".
    """
    words = {
        "tok_embeddings": "model.embed_tokens",
        "layers": "model.layers",
        "norm": "model.norm",
        "output": "lm_head",
        "attention": "self_attn",
        "wq": "q_proj",
        "wk": "k_proj",
        "wv": "v_proj",
        "wo": "o_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward": "block_sparse_moe",
    }
    return ".".join(words.get(word, word) for word in raw.split("."))


@published_name.check("What are the embedding, the last norm and the output called?")
def around_the_layers(answer):
    found = [answer(name) for name in ("tok_embeddings.weight", "norm.weight", "output.weight")]
    return found, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


@published_name.check("Do the four matrices of attention get their names, in the layer that they belong to?")
def attention(answer):
    found = [answer(f"layers.12.attention.w{letter}.weight") for letter in "qkvo"]
    return found, [f"model.layers.12.self_attn.{letter}_proj.weight" for letter in "qkvo"]


@published_name.check("Which norm comes before attention, and which before the experts?")
def norms(answer):
    found = [answer(f"layers.3.{norm}.weight") for norm in ("attention_norm", "ffn_norm")]
    return found, [f"model.layers.3.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]


@published_name.check("Do the router and the experts keep their own names below block_sparse_moe?")
def experts(answer):
    found = [answer(f"layers.0.feed_forward.{name}.weight") for name in ("gate", "experts.7.w1", "experts.0.w3")]
    moe = "model.layers.0.block_sparse_moe"
    return found, [f"{moe}.gate.weight", f"{moe}.experts.7.w1.weight", f"{moe}.experts.0.w3.weight"]


@exercise("Diagnose a conversion")
def what_happened(loaded: Tensor, right: Tensor, num_heads: int) -> str:
    """Say what a conversion from Mistral's layout did to the rows of a query or key matrix.

    Mistral's rows are interleaved: in each head, pairs are rows (0, 1), (2, 3), … The right
    order is half-split: (0, Dh/2), (1, Dh/2 + 1), …

    Args:
        loaded: (H*Dh, D), as the conversion left it.
        right: (H*Dh, D), as it must be.
        num_heads: H of this matrix; D_h is even.

    Returns:
        the first of these that is true:
        "right": the rows are in order;
        "forgotten": they are still interleaved;
        "twice": they were reordered two times;
        "heads": they were reordered with another number of heads (one that divides H*Dh into
        heads of an even size);
        "other": none of these.
    """

    def half_split(matrix: Tensor, heads: int) -> Tensor:
        return matrix.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    interleaved = right.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    rows = len(right)
    if torch.equal(loaded, right):
        return "right"
    if torch.equal(loaded, interleaved):
        return "forgotten"
    if torch.equal(loaded, half_split(right, num_heads)):
        return "twice"
    others = [heads for heads in range(1, rows // 2 + 1) if rows % (2 * heads) == 0]
    if any(torch.equal(loaded, half_split(interleaved, heads)) for heads in others):
        return "heads"
    return "other"


def converted(rows: int, num_heads: int, used: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Rows 0, 1, … of a matrix, reordered with these numbers of heads, and as they must be."""

    def new_order(order: list[int], heads: int) -> list[int]:
        size = len(order) // heads
        return [order[h * size + row] for h in range(heads) for first in (0, 1) for row in range(first, size, 2)]

    def as_matrix(order: list[int]) -> Tensor:
        return torch.tensor(order)[:, None] + torch.tensor([0.0, 0.25, 0.5])

    order = list(range(rows))
    for heads in used:
        order = new_order(order, heads)
    return as_matrix(order), as_matrix(new_order(list(range(rows)), num_heads))


@what_happened.check('Are rows in their order "right", and rows that stayed interleaved "forgotten"?')
def right_or_forgotten(answer):
    return [answer(*converted(24, 2, used), 2) for used in ((), (2,))], ["forgotten", "right"]


@what_happened.check('Is each head looked at by itself? With one head for all, this would be "heads".')
def each_head_by_itself(answer):
    return [answer(*converted(24, 4, used), 4) for used in ((4,), (1,), ())], ["right", "heads", "forgotten"]


@what_happened.check("Are rows that were reordered two times recognised?")
def two_times(answer):
    return [answer(*converted(24, 2, used), 2) for used in ((2, 2), (2,))], ["twice", "right"]


@what_happened.check("Is every other number of heads tried, more heads than there are as well as fewer?")
def other_numbers(answer):
    return [answer(*converted(48, 3, (used,)), 3) for used in (1, 2, 4, 6, 12)], ["heads"] * 5


@what_happened.check('Is it the first of the list where two are true? With Dh = 4, "forgotten" is also "twice".')
def two_are_true(answer):
    return [answer(*converted(8, 2, used), 2) for used in ((), (2, 2), (2,))], ["forgotten", "forgotten", "right"]


@what_happened.check('Do rows in any other order, or other numbers, get "other"?')
def anything_else(answer):
    loaded, right = converted(24, 2, (2,))
    changed = loaded.clone()
    changed[5, 1] += 1
    return [answer(loaded.flip(0), right, 2), answer(changed, right, 2), answer(loaded, right, 2)], [
        "other", "other", "right"
    ]  # fmt: skip
