from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest

from corrmatch_hf.data.endless import EndlessList, EndlessStream, Stream, generator
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
