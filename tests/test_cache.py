"""The rolling cache: what lies where, what a query sees, what it costs, and that no use of it changes a result."""

import functools
import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from mixtral_edu import MixtralForCausalLM, RollingKVCache
from mixtral_edu.api.cache import CacheView
from tolerances import chain_error

pytestmark = pytest.mark.numerics

V = 53
WINDOWS = st.sampled_from([None, 1, 2, 3, 5, 8, 64])
CHUNKS = st.lists(st.integers(1, 9) | st.just(1), min_size=1, max_size=8)
# Two layers of at most 200 additions each (D + Dh + S + Hq·Dh, D + F + K, D in each norm), logits of a size up to 5.
CLOSE = {"rtol": 0, "atol": 5 * chain_error(450)}


@pytest.fixture(scope="module")
def model_with(make_config):
    """A function that returns one small model for each window, always with the same weights."""

    @functools.cache
    def model_with(window: int | None, **changes) -> MixtralForCausalLM:
        torch.manual_seed(0)
        sizes = {"vocab_size": V, "hidden_size": 20, "intermediate_size": 13, "num_hidden_layers": 2, "head_dim": 6}
        return MixtralForCausalLM(make_config(**sizes | changes, sliding_window=window, initializer_range=0.3)).eval()

    return model_with


def random_ids(*shape: int) -> Tensor:
    """The same ids for the same shape, so that a failing example fails again."""
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(0))


@st.composite
def texts(draw) -> tuple[list[int], Tensor]:
    """Chunk sizes, and a mask (3, T): a row without padding, one padded on the left, one with padding anywhere."""
    chunks = draw(CHUNKS)
    T = sum(chunks)
    left = draw(st.integers(0, T))
    holes = draw(st.lists(st.booleans(), min_size=T, max_size=T))
    return chunks, torch.tensor([[True] * T, [False] * left + [True] * (T - left), holes])


def in_chunks(
    model: MixtralForCausalLM,
    ids: Tensor,
    real: Tensor | None,
    chunks: list[int],
    cache: RollingKVCache,
    whole_mask: bool = False,
) -> Tensor:
    """Logits of all tokens, computed chunk by chunk; the mask is given for new tokens, or for all so far."""
    logits, start = [], 0
    for size in chunks:
        stop = start + size
        mask = None if real is None else real[:, (0 if whole_mask else start) : stop]
        out = model(ids[:, start:stop], attention_mask=mask, past_key_values=cache)
        assert out.past_key_values is cache
        logits.append(out.logits)
        start = stop
    return torch.cat(logits, dim=1)


@given(texts(), WINDOWS, st.booleans(), st.booleans())
@settings(max_examples=100)
@example(([7, 7, 1, 1, 20], torch.ones(3, 36, dtype=torch.bool)), 7, False, False)
@example(([80], torch.arange(80).expand(3, 80) > 3), 3, True, False)
@example(([70, 1, 68, 1], torch.arange(140).expand(3, 140) > 5), 5, True, True)
def test_any_chunking_equals_no_cache(model_with, text, window, whole_mask, gradients):
    chunks, real = text
    model = model_with(window)
    ids = random_ids(*real.shape)
    with torch.set_grad_enabled(gradients):
        expected = model(ids, attention_mask=real, use_cache=False).logits
        logits = in_chunks(model, ids, real, chunks, RollingKVCache(model.config, 3), whole_mask)
    assert_close(logits[real], expected[real], **CLOSE)
    assert logits.isfinite().all()


@given(CHUNKS, WINDOWS)
@settings(max_examples=40)
@example([3] * 20, 4)
@example([60, 3, 1, 1, 1, 80, 1], None)
@torch.no_grad()
def test_any_chunking_without_padding_equals_no_cache(model_with, chunks, window):
    model = model_with(window)
    ids = random_ids(2, sum(chunks))
    logits = in_chunks(model, ids, None, chunks, RollingKVCache(model.config, 2))
    assert_close(logits, model(ids, use_cache=False).logits, **CLOSE)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), WINDOWS, st.integers(1, 6), st.integers(0, 4))
@settings(max_examples=40)
@torch.no_grad()
def test_a_left_padded_batch_equals_each_prompt_alone(model_with, lengths, window, first_chunk, new_tokens):
    model = model_with(window)
    longest, B = max(lengths), len(lengths)
    ids = random_ids(B, longest + new_tokens)
    real = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        real[row, : longest - length] = 0
    first_chunk = min(first_chunk, longest)
    chunks = [size for size in (first_chunk, longest - first_chunk, *[1] * new_tokens) if size]
    logits = in_chunks(model, ids, real, chunks, RollingKVCache(model.config, B))
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, longest - length :], use_cache=False).logits
        assert_close(logits[row, longest - length :], alone[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 5])
def test_chunks_and_decoding_equal_transformers_with_its_own_cache(model_with, transformers_twin, window):
    model = model_with(window)
    twin, cache, past = transformers_twin(model), RollingKVCache(model.config, 2), None
    since_5_24 = "cache" in inspect.signature(twin.forward).parameters
    name = "cache" if since_5_24 else "past_key_values"  # what they call it
    ids, real = random_ids(2, 25), torch.ones(2, 25, dtype=torch.long)
    real[0, :4] = 0
    start = 0
    for size in (6, 9, 1, 1, 3, 1, 1, 1, 1, 1):
        new, stop = slice(start, start + size), start + size
        expected = twin(ids[:, new], attention_mask=real[:, :stop], use_cache=True, **{name: past})
        past = expected[name]
        logits = model(ids[:, new], attention_mask=real[:, :stop], past_key_values=cache).logits
        kept = real[:, new].bool()
        assert_close(logits[kept], expected.logits[kept], **CLOSE)
        start = stop
    assert past.get_seq_length() == cache.get_seq_length() == 25


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_one_decoding_loop_runs_on_both_libraries_by_either_name(model_with, transformers_twin, name):
    """transformers takes the newer name since 5.24, and the older one until 5.40."""
    model = model_with(5)
    twin = transformers_twin(model)
    names_there = inspect.signature(twin.forward).parameters.keys() | {"past_key_values"}
    if name not in names_there:
        pytest.skip("this transformers knows the older name alone")
    prompts = random_ids(2, 9)
    texts = []
    for each in (model, twin):
        ids, latest, past = prompts, prompts, None
        for _ in range(12):
            out = each(latest, use_cache=True, **{name: past})
            past = getattr(out, name)
            latest = out.logits[:, -1:].argmax(-1)
            ids = torch.cat((ids, latest), dim=1)
        texts.append(ids)
    assert torch.equal(*texts)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
def test_a_ring_that_never_wraps_a_full_cache_and_max_length_agree(model_with, window):
    model = model_with(window)
    ids = random_ids(2, 12)
    chunks = [3, 1, 1, 7]
    expected = in_chunks(model, ids, None, chunks, RollingKVCache(model.config, 2))
    assert_close(in_chunks(model, ids, None, chunks, RollingKVCache(model.config, 2, max_length=12)), expected, **CLOSE)
    if window is None:
        wide = model_with(12)
        assert_close(in_chunks(wide, ids, None, chunks, RollingKVCache(wide.config, 2)), expected, **CLOSE)


class Simulation:
    """A cache of plain lists, one token after the other."""

    def __init__(self, B: int, slots: int):
        self.slots = [[-1] * slots for _ in range(B)]
        self.columns_after_first = [0] * B

    def feed(self, real: list[list[bool]]) -> list[list[int]]:
        """Store a chunk; return each token's position, or -1 for padding."""
        positions = []
        for row, row_real in enumerate(real):
            positions.append([])
            for is_real in row_real:
                position = self.columns_after_first[row]
                if is_real:
                    self.slots[row][position % len(self.slots[row])] = position
                if is_real or position:
                    self.columns_after_first[row] += 1
                positions[-1].append(position if is_real else -1)
        return positions

    def next_slots(self) -> list[int]:
        return [position % len(slots) for position, slots in zip(self.columns_after_first, self.slots, strict=True)]


@pytest.mark.parametrize("gradients", [False, True])
@given(texts(), st.sampled_from([None, 1, 2, 3, 5, 8]))
@settings(max_examples=80)
def test_view_and_what_each_query_sees_equal_a_simulation(make_config, gradients, text, window):
    """Keys are filled with their position, so that what a query may look at tells which tokens these are."""
    with torch.set_grad_enabled(gradients):
        compare_with_simulation(RollingKVCache(make_config(sliding_window=window, num_hidden_layers=2), 3), *text)


def compare_with_simulation(cache: RollingKVCache, chunks: list[int], real: Tensor) -> None:
    window, Dh = cache.window, cache.keys[0].shape[3]
    simulation = Simulation(3, window or 1000)
    history = [[], [], []]
    start = 0
    for size in chunks:
        chunk = real[:, start : start + size]
        positions = simulation.feed(chunk.tolist())
        step = cache.step(size, None if chunk.all() else chunk)
        k = torch.tensor(positions)[:, None, :, None].expand(3, 2, size, Dh).float()
        for layer in range(2):
            keys, values = step.update(layer, k, -k)
            visible = step.visibility.mask.expand(3, 1, size, keys.shape[2])
            for row in range(3):
                seen_so_far = history[row] + positions[row]
                for t, i in enumerate(positions[row]):
                    expected = {j for j in seen_so_far if i != -1 != j and 0 <= i - j < (window or 1000)}
                    for shown, sign in ((keys, 1), (values, -1)):
                        seen = shown[row, 1, visible[row, 0, t], 3] * sign
                        assert sorted(seen.tolist()) == sorted(expected)
        step.commit()
        for row in range(3):
            history[row] += positions[row]
        start += size
        view = cache.view(1)
        expected = torch.tensor([row[: cache.num_slots] for row in simulation.slots])
        assert_close(view.positions[:2], expected[:2])
        # At a hole a slot keeps what has left the window, or never got it: nobody looks there.
        reachable = torch.tensor(simulation.columns_after_first)[:, None] - (window or 1000)
        assert_close(view.positions.clamp(min=reachable), expected.clamp(min=reachable))
        assert view.write_slot.tolist() == simulation.next_slots()
        filled = view.positions != -1
        assert_close(view.keys[:, 0, :, 0][filled], view.positions[filled].float())
        assert_close(view.values[:, 1, :, 5][filled], -view.positions[filled].float())
    assert cache.get_seq_length() == start


def test_convention_position_p_lies_in_slot_p_mod_w(model_with):
    cache = model_with(4)(random_ids(1, 6)).past_key_values
    assert cache.view().positions.tolist() == [[4, 5, 2, 3]]
    assert cache.view().write_slot.tolist() == [2]


@torch.no_grad()
def test_convention_a_chunk_attends_before_it_is_stored(model_with):
    """The first query of a chunk sees W - 1 older keys, which the rest of the chunk overwrites."""
    model = model_with(4, attn_implementation="eager")
    cache = model(random_ids(1, 4)).past_key_values
    weights = model(random_ids(1, 4), past_key_values=cache, output_attentions=True).attentions[0]
    assert weights.shape == (1, 4, 4, 3 + 4)
    assert (weights[0, 0] > 0).int().tolist() == [
        [1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 1],
    ]


def test_convention_rows_of_a_batch_write_different_slots_and_padding_none(model_with):
    cache = RollingKVCache(model_with(4).config, 2)
    model_with(4)(random_ids(2, 6), attention_mask=torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6]), past_key_values=cache)
    view = cache.view()
    assert view.positions.tolist() == [[0, 1, 2, -1], [4, 5, 2, 3]]
    assert view.write_slot.tolist() == [3, 2]
    assert not view.keys[0, :, 3].any() and not view.values[0, :, 3].any()


@torch.no_grad()
def test_memory_does_not_grow_past_the_window(model_with):
    model = model_with(5)
    cache = RollingKVCache(model.config, 3)
    memory = {tensor.data_ptr() for tensor in (*cache.keys, *cache.values)}
    expected = 2 * 2 * 3 * 2 * 5 * 6 * 4  # keys and values, L, B, Hkv, W, Dh, bytes
    for size in (1, 3, 40, 1, 1, 7, 100):
        model(random_ids(3, size), past_key_values=cache)
        assert cache.num_slots == 5 and cache.num_bytes == expected
        assert cache.view().keys.shape == cache.view().values.shape == (3, 2, 5, 6)
    assert {tensor.data_ptr() for tensor in (*cache.keys, *cache.values)} == memory, "written in place"
    assert cache.get_seq_length() == 153


def test_without_window_slots_double_when_they_are_full(make_config):
    config = make_config(sliding_window=None, num_hidden_layers=1)
    cache = RollingKVCache(config, 1)
    slots = []
    for size in (1, 63, 1, 63, 1, 1000):
        cache.step(size).commit()
        slots.append(cache.num_slots)
    assert slots == [64, 64, 128, 128, 256, 1129], "twice as many, or as many as are needed"
    assert cache.num_bytes == 2 * 2 * 1129 * 14 * 4
    assert cache.view().positions[0, :1129].tolist() == list(range(1129))


@torch.no_grad()
def test_growth_keeps_what_was_stored(model_with):
    model = model_with(None)
    ids = random_ids(2, 140)
    real = torch.ones(2, 140, dtype=torch.long)
    real[0, :30] = 0
    logits = in_chunks(model, ids, real, [60, 3, 1, 1, 1, 70, 1, 3], RollingKVCache(model.config, 2))
    assert_close(logits[real.bool()], model(ids, real, use_cache=False).logits[real.bool()], **CLOSE)


@torch.no_grad()
def test_max_length_is_a_limit_and_nothing_is_lost_at_it(model_with):
    model = model_with(None)
    cache = RollingKVCache(model.config, 1, max_length=6)
    ids = random_ids(1, 7)
    assert cache.num_slots == 6
    model(ids[:, :5], past_key_values=cache)
    with pytest.raises(ValueError, match="max_length=6.*7"):
        model(ids[:, 5:], past_key_values=cache)
    last = model(ids[:, 5:6], past_key_values=cache).logits
    assert_close(last, model(ids[:, :6], use_cache=False).logits[:, 5:], **CLOSE)
    assert cache.num_slots == 6 and cache.get_seq_length() == 6
    with pytest.raises(ValueError, match="max_length=6.*7"):
        model(ids[:, 6:], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
def test_reset_and_reuse_equals_a_new_cache_in_the_same_memory(model_with, window):
    model = model_with(window)
    cache = RollingKVCache(model.config, 2)
    memory = [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)]
    model(random_ids(2, 11), torch.tensor([[0] * 3 + [1] * 8, [1] * 11]), past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == 0 and (cache.view().positions == -1).all() and not cache.view().write_slot.any()
    ids = random_ids(2, 8)
    logits = in_chunks(model, ids, None, [2, 1, 5], cache)
    assert_close(logits, in_chunks(model, ids, None, [2, 1, 5], RollingKVCache(model.config, 2)), rtol=0, atol=0)
    assert [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)] == memory


@torch.no_grad()
def test_forward_makes_a_cache_where_none_is_given(model_with):
    model = model_with(5)
    ids = random_ids(2, 9)
    first = model(ids[:, :6])
    assert isinstance(first.past_key_values, RollingKVCache)
    assert_close(model(ids[:, 6:], past_key_values=first.past_key_values).logits, model(ids).logits[:, 6:], **CLOSE)
    assert model(ids, use_cache=False).past_key_values is None
    assert first.past_key_values.keys[0].dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_chunk_of_padding_only_changes_nothing(model_with, window):
    model = model_with(window)
    ids = random_ids(2, 10)
    real = torch.tensor([[0] * 5 + [1] * 5, [0] * 3 + [1] * 7])
    logits = in_chunks(model, ids, real, [1, 2, 1, 1, 5], RollingKVCache(model.config, 2))
    assert logits.isfinite().all()
    for row, pads in enumerate((5, 3)):
        assert_close(logits[row, pads:], model(ids[row : row + 1, pads:]).logits[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 1, 3])
def test_decoding_goes_on_in_one_row_while_another_gets_padding(model_with, window):
    model = model_with(window)
    ids = random_ids(2, 12)
    real = torch.ones(2, 12, dtype=torch.long)
    real[0, :2] = 0
    real[0, 8:] = 0  # the first row has finished
    logits = in_chunks(model, ids, real, [4, *[1] * 8], RollingKVCache(model.config, 2))
    assert logits.isfinite().all()
    assert_close(logits[1], model(ids[1:]).logits[0], **CLOSE)
    assert_close(logits[0, 2:8], model(ids[:1, 2:8]).logits[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("window", [None, 4])
def test_after_a_forward_that_failed_on_its_way_a_cache_is_refused_until_reset(model_with, window, size, monkeypatch):
    """Of a longer chunk, the first layers have by then overwritten keys that its first tokens still see."""
    model = model_with(window)
    ids = random_ids(1, 7 + size)
    cache = model(ids[:, :7]).past_key_values
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1], "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids[:, 7:], past_key_values=cache)
    with pytest.raises(RuntimeError, match=r"past_key_values.*reset\(\)"):
        model(ids[:, 7:], past_key_values=cache)
    cache.reset()
    logits = in_chunks(model, ids, None, [7, size], cache)
    assert_close(logits, model(ids, use_cache=False).logits, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
def test_given_position_ids_go_with_a_cache(model_with, window):
    model = model_with(window)
    ids, positions = random_ids(1, 9), torch.tensor([[0, 1, 5, 6, 7, 20, 21, 30, 40]])
    cache = RollingKVCache(model.config, 1)
    logits = [
        model(ids[:, new], position_ids=positions[:, new], past_key_values=cache).logits
        for new in (slice(0, 4), slice(4, 5), slice(5, 9))
    ]
    expected = model(ids, position_ids=positions, use_cache=True).logits  # without a cache, gaps would separate texts
    assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
    assert (expected - model(ids).logits).abs().max() > 0.1


def test_what_is_stored_carries_no_gradient(model_with):
    model = model_with(5)
    cache = model(random_ids(1, 4)).past_key_values
    assert not any(tensor.requires_grad for tensor in (*cache.keys, *cache.values))
    model(random_ids(1, 3), past_key_values=cache).logits.sum().backward()


@torch.no_grad()
def test_a_view_shows_one_moment(model_with):
    model = model_with(4)
    cache = model(random_ids(1, 6)).past_key_values
    before = cache.view(layer_idx=1)
    copy = CacheView(*(tensor.clone() for tensor in before))
    model(random_ids(1, 1), past_key_values=cache)
    cache.reset()
    for shown, expected in zip(before, copy, strict=True):
        assert_close(shown, expected, rtol=0, atol=0)


@pytest.mark.parametrize("window", [None, 4])
def test_the_write_slot_is_where_the_next_token_goes_also_when_all_slots_are_full(make_config, window):
    cache = RollingKVCache(make_config(sliding_window=window), 1)
    cache.step(64).commit()
    write_slot = cache.view().write_slot.item()
    cache.step(1).commit()
    assert cache.view().positions[0, write_slot] == 64


@pytest.mark.parametrize(
    ("arguments", "name"), [({"batch_size": 0}, "batch_size=0"), ({"batch_size": 1, "max_length": 0}, "max_length=0")]
)
def test_sizes_below_one_are_refused_by_name(make_config, arguments, name):
    with pytest.raises(ValueError, match=name):
        RollingKVCache(make_config(), **arguments)


@pytest.mark.parametrize("size", [2**45, 2**62])  # more than a process can address, and more bytes than torch counts
def test_a_cache_that_no_memory_holds_is_named_with_its_size(make_config, model_with, size):
    needed = f"{3 * 2 * 2 * size * 14 * 4 / 1e9:.3g} GB"
    for changes, arguments, name in (
        ({"sliding_window": size}, {"batch_size": 1}, f"sliding_window={size}"),
        ({"sliding_window": None}, {"batch_size": 1, "max_length": size}, f"max_length={size}"),
        ({"sliding_window": 1}, {"batch_size": size}, f"batch_size={size}"),
    ):
        with pytest.raises(MemoryError, match=rf"\b{name}\b") as caught:
            RollingKVCache(make_config(**changes), **arguments)
        assert needed in str(caught.value)
    with pytest.raises(RuntimeError, match="nowhere"):  # a device that does not exist is no matter of memory
        RollingKVCache(make_config(), 1, device="nowhere")
    model = model_with(4)
    model.config.sliding_window = size
    for call in (model, lambda ids: model.generate(ids, max_new_tokens=1)):
        with pytest.raises(MemoryError, match=f"sliding_window={size}"):
            call(random_ids(1, 3))
    assert model(random_ids(1, 3), use_cache=False).logits.isfinite().all()


def test_a_full_cuda_device_stays_an_error_of_torchs_type(make_config, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError, match="sliding_window=7"):
        RollingKVCache(make_config(), 1)


def test_the_configs_dtype_and_an_own_one(make_config):
    assert RollingKVCache(make_config(), 1).keys[0].dtype == torch.float32
    assert RollingKVCache(make_config(dtype="bfloat16"), 1).keys[0].dtype == torch.bfloat16
    assert RollingKVCache(make_config(dtype="bfloat16"), 1, dtype=torch.float64).values[0].dtype == torch.float64


def test_a_cache_takes_over_what_another_one_of_its_sizes_holds(model_with):
    model = model_with(7)
    ids = random_ids(2, 9)
    with torch.no_grad():
        other = model(ids, use_cache=True).past_key_values
        cache = RollingKVCache(model.config, 2)
        memory = [tensor.data_ptr() for tensor in (*cache.keys, cache.positions, cache.next_position)]
        cache.copy_(other)
        assert memory == [tensor.data_ptr() for tensor in (*cache.keys, cache.positions, cache.next_position)]
        results = [model(ids[:, :1], past_key_values=c).logits for c in (cache, other)]
    assert torch.equal(*results) and cache.seen == other.seen == 10
    for sizes in ({"batch_size": 1}, {"config": replace(model.config, num_hidden_layers=1), "batch_size": 2}):
        with pytest.raises(ValueError, match=r"other has 2 layers of keys \(2, 2, 7, 6\) and window=7; it must"):
            RollingKVCache(**{"config": model.config} | sizes).copy_(other)
