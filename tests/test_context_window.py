import numpy as np
import pytest

from tfgpt.context_window import check_room, continue_in_segments, fit_context, pad_left, room_left, until_stop
from tfgpt.errors import UserError


def counting(rows, contexts, count, first_index):
    """A decoder whose next token is one more than the last."""
    return [[context[-1] + i + 1 for i in range(count)] for context in contexts]


def recorded(decode):
    calls = []

    def recording(rows, contexts, count, first_index):
        calls.append((list(rows), [list(context) for context in contexts], count, first_index))
        return decode(rows, contexts, count, first_index)

    return recording, calls


@pytest.mark.parametrize(
    "length, window, kept",
    [(1, 8, 1), (7, 8, 7), (8, 8, 8), (9, 8, 4), (20, 8, 4), (10, 9, 4), (2, 2, 2), (3, 2, 1), (1, 1, 1), (2, 1, 1)],
)
def test_a_context_is_whole_or_the_last_half_window(length, window, kept):
    assert fit_context(list(range(length)), window) == list(range(length))[-kept:]


@pytest.mark.parametrize("length, room", [(1, 8), (4, 5), (7, 2), (8, 1)])
def test_the_last_token_needs_no_position(length, room):
    assert room_left([0] * length, 8) == room


def test_a_context_is_cut_when_it_outgrows_the_window():
    decode, calls = recorded(counting)
    [new] = continue_in_segments([[1, 2, 3]], 13, 8, decode)
    assert new == list(range(4, 17))
    # 3 + 6 tokens are one more than the window; the last 4 of them go on.
    assert calls == [
        ([0], [[1, 2, 3]], 6, 0),
        ([0], [[6, 7, 8, 9]], 5, 6),
        ([0], [[11, 12, 13, 14]], 2, 11),
    ]


def test_a_prompt_longer_than_the_window_is_cut_first():
    decode, calls = recorded(counting)
    continue_in_segments([list(range(30))], 2, 8, decode)
    assert calls == [([0], [[26, 27, 28, 29]], 2, 0)]


def test_a_window_of_one_token():
    decode, calls = recorded(counting)
    assert continue_in_segments([[5, 6]], 3, 1, decode) == [[7, 8, 9]]
    assert [context for _, [context], _, _ in calls] == [[6], [7], [8]]


@pytest.mark.parametrize("prompts", [[[1], [1, 2, 3, 4, 5]], [list(range(n)) for n in (8, 1, 9, 30, 4)]])
def test_a_row_sees_in_a_batch_the_contexts_that_it_sees_alone(prompts):
    """A token that is a hash of the context tells any difference."""

    def hashing(rows, contexts, count, first_index):
        results = []
        for context in contexts:
            context, new = list(context), []
            assert len(context) + count - 1 <= 8
            for _ in range(count):
                new.append(hash(tuple(context)) % 1000)
                context.append(new[-1])
            results.append(new)
        return results

    together = continue_in_segments(prompts, 25, 8, hashing)
    assert together == [continue_in_segments([prompt], 25, 8, hashing)[0] for prompt in prompts]
    assert [len(new) for new in together] == [25] * len(prompts)


def test_a_row_ends_at_its_stop_token_and_the_others_go_on():
    decode, calls = recorded(counting)
    new = continue_in_segments([[0], [10, 11], [20]], 12, 8, decode, stop_token_ids=(3, 19))
    assert new == [[1, 2, 3], list(range(12, 20)), list(range(21, 33))]
    assert [rows for rows, *_ in calls] == [[0, 1, 2], [1, 2], [2]]


def test_a_stop_token_as_the_last_of_a_segment_ends_the_row():
    decode, calls = recorded(counting)
    assert continue_in_segments([[0, 1]], 20, 8, decode, stop_token_ids=(8,)) == [list(range(2, 9))]
    assert len(calls) == 1


def test_a_row_that_the_decoder_ended_early_is_not_continued():
    assert continue_in_segments([[0]], 20, 8, lambda *call: [[1, 2]]) == [[1, 2]]


def test_no_prompts():
    assert continue_in_segments([], 5, 8, counting) == []


@pytest.mark.parametrize("tokens, expected", [([1, 2, 3], [1, 2]), ([3, 1], [3, 1]), ([2, 2], [2]), ([], [])])
def test_until_stop(tokens, expected):
    assert until_stop(tokens, (2, 9)) == expected


def test_pad_left():
    token_ids, mask = pad_left([[7], [4, 5, 6], (8, 9)])
    np.testing.assert_array_equal(token_ids, [[0, 0, 7], [4, 5, 6], [0, 8, 9]])
    np.testing.assert_array_equal(mask, [[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    assert token_ids.dtype == mask.dtype == np.int32


@pytest.mark.parametrize("lengths, count", [((8,), 1), ((1, 3, 5), 4), ((1,), 8)])
def test_what_fits_the_window(lengths, count):
    """The last token needs no position, as in `room_left`."""
    prompts = [[0] * length for length in lengths]
    check_room(prompts, count, 8)
    sentence = (
        f"beam search stays within the window of 8 tokens, expected max_new_tokens of at most {count} after the "
        f"longest prompt, found {count + 1}"
    )
    with pytest.raises(UserError) as error:
        check_room(prompts, count + 1, 8)
    assert str(error.value) == sentence


def test_a_prompt_that_does_not_fit_the_window():
    with pytest.raises(UserError) as error:
        check_room([[0], [0] * 9], 1, 8)
    assert str(error.value) == "a prompt has 9 tokens, expected at most the window's 8 for beam search"
