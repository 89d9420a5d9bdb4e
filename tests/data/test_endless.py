import json
from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest

from corrmatch_hf.data.endless import EndlessList, EndlessStream, ShardedStream, Stream, generator
from corrmatch_hf.errors import InputError


def test_generators_of_different_purposes_are_independent():
    keys = [(0, s, p, i, v) for s in Stream for p in range(3) for i in range(3) for v in range(3)]
    values = [generator(*key).random() for key in keys]
    assert len(set(values)) == len(values)
    assert values == [generator(*key).random() for key in keys]


def test_a_list_is_a_new_permutation_on_every_pass():
    samples = EndlessList(datasets.Dataset.from_dict({"x": list(range(7))}), seed=1, order=Stream.LABELED)
    drawn = [samples[p] for p in range(70)]
    passes = [[s.row["x"] for s in drawn[i : i + 7]] for i in range(0, 70, 7)]
    assert all(sorted(rows) == list(range(7)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 5
    assert all(s.number == p // 7 and s.index == s.row["x"] for p, s in enumerate(drawn))
    assert samples[3] == drawn[3]  # backwards too


@pytest.fixture
def stream():
    return datasets.Dataset.from_dict({"x": list(range(23))}).to_iterable_dataset(num_shards=3)


def test_a_stream_is_a_new_order_on_every_pass(stream):
    samples = list(islice(EndlessStream(stream, 0, Stream.UNLABELED, 10).from_position(0), 69))
    passes = [[s.row["x"] for s in samples[i : i + 23]] for i in range(0, 69, 23)]
    assert all(sorted(rows) == list(range(23)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 3
    assert [(s.number, s.index) for s in samples] == [divmod(p, 23) for p in range(69)]


@pytest.mark.parametrize("start", [0, 1, 22, 23, 24, 50, 200])
def test_a_stream_starts_anywhere(stream, start):
    endless = EndlessStream(stream, 5, Stream.UNLABELED, 10)
    expected = list(islice(endless.from_position(0), start, start + 30))
    assert list(islice(endless.from_position(start), 30)) == expected


def test_an_empty_stream_is_an_error_and_no_endless_loop(stream):
    with pytest.raises(InputError, match=r"empty"):
        next(EndlessStream(stream.take(0), 0, Stream.UNLABELED).from_position(0))


def test_every_image_is_as_frequent_as_the_others():
    samples = EndlessList(datasets.Dataset.from_dict({"x": list(range(5))}), seed=0, order=Stream.UNLABELED)
    first = Counter(samples[5 * n].row["x"] for n in range(400))
    assert np.allclose([first[i] / 400 for i in range(5)], 0.2, atol=0.06)


@pytest.fixture
def counted():
    """A stream of five shards with 23 rows, and the rows that were read of it."""
    seen = []

    def rows(shards):
        for shard in shards:
            for x in range(shard, 23, 5):
                seen.append(x)
                yield {"x": x}

    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(5))}), seen


def test_two_processes_read_different_shards_and_together_all_of_them(counted):
    stream, seen = counted
    parts = []
    for rank in range(2):
        seen.clear()
        length = [5, 5, 5, 4, 4]  # of the shards
        order = generator(0, Stream.UNLABELED, 0).permutation(5)[rank::2]
        mine = sum(length[i] for i in order)
        samples = ShardedStream(stream, 0, Stream.UNLABELED, 2, rank, block=4).from_position(0)
        parts.append(list(islice(samples, mine)))
        assert {s.number for s in parts[-1]} == {0}
        assert len(seen) <= mine + 1, "no process reads the shards of another"
    rows = [sample.row["x"] for part in parts for sample in part]
    assert sorted(rows) == list(range(23))
    numbers = [sample.index for part in parts for sample in part]
    assert len(set(numbers)) == 23, "no two samples have the same random numbers"


def test_the_passes_of_a_process_have_different_orders_and_shards(counted):
    samples = list(islice(ShardedStream(counted[0], 0, Stream.UNLABELED, block=4).from_position(0), 69))
    passes = [[s.row["x"] for s in samples[i : i + 23]] for i in range(0, 69, 23)]
    assert all(sorted(rows) == list(range(23)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 3


@pytest.mark.parametrize("start", [0, 1, 3, 4, 11, 23, 40, 95])
def test_shards_go_on_from_a_state_and_read_no_pass_again(counted, start):
    stream, seen = counted
    first = ShardedStream(stream, 5, Stream.UNLABELED, 2, 1, block=4)
    whole = list(islice(first.from_position(0), start + 30))
    state = json.loads(json.dumps(first.state_at(start)))
    seen.clear()
    again = ShardedStream(stream, 5, Stream.UNLABELED, 2, 1, block=4)
    assert list(islice(again.from_position(start, state), 30)) == whole[start:]
    assert len(seen) <= 30 + 2 * 4 + 5, "a generator reads a begun shard again, files need not"
    without = ShardedStream(stream, 5, Stream.UNLABELED, 2, 1, block=4)
    assert list(islice(without.from_position(start), 30)) == whole[start:], "slower, but the same"


def test_a_process_whose_shards_are_empty_says_so(counted):
    empty = datasets.IterableDataset.from_generator(lambda shards: iter(()), gen_kwargs={"shards": [0, 1]})
    with pytest.raises(InputError, match="--stream_order total"):
        next(ShardedStream(empty, 0, Stream.UNLABELED).from_position(0))
