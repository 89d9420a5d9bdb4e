"""The moving average, against its recurrence in plain numbers."""

import pytest
import torch
from torch import nn

from corrmatch_hf.methods.teacher import Teacher


class Tiny(nn.Module):
    def __init__(self, weight=1.0, mean=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("count", torch.tensor(0))


def test_weights_and_buffers_follow_with_a_rising_share():
    student = Tiny()
    teacher = Teacher(student, decay=0.6)
    g = h = None
    for t, (weight, mean) in enumerate([(2.0, 1.0), (4.0, 3.0), (8.0, 5.0), (0.0, 9.0), (1.0, 1.0)]):
        student.weight.data.fill_(weight)
        student.mean.fill_(mean)
        student.count.fill_(t)
        teacher.update(student)
        a = min(1 - 1 / (t + 1), 0.6)
        g = weight if g is None else a * g + (1 - a) * weight
        h = mean if h is None else a * h + (1 - a) * mean
        assert teacher.network.weight.item() == pytest.approx(g, rel=1e-6)
        assert teacher.network.mean.item() == pytest.approx(h, rel=1e-6)
        assert teacher.network.count == t


def test_without_warm_up_and_buffers_only_parameters_follow():
    student = Tiny(weight=1.0, mean=3.0)
    teacher = Teacher(student, decay=0.9, buffers=False, warm_up=False)
    student.weight.data.fill_(2.0)
    student.mean.fill_(7.0)
    teacher.update(student)
    assert teacher.network.weight.item() == pytest.approx(1.1) and teacher.network.mean == 3.0


def test_it_never_learns_and_is_saved_with_its_count():
    student = Tiny()
    teacher = Teacher(student, decay=0.9)
    assert not any(p.requires_grad for p in teacher.parameters())
    student.weight.data.fill_(5.0)
    for _ in range(3):
        teacher.update(student)
    again = Teacher(Tiny(), decay=0.9)
    again.load_state_dict(teacher.state_dict())
    student.weight.data.fill_(-1.0)
    for each in (teacher, again):
        each.update(student)
    assert again.updates == 4 and torch.equal(again.network.weight, teacher.network.weight)


def test_it_starts_as_a_copy_of_its_own():
    student = Tiny(weight=1.5)
    teacher = Teacher(student, decay=0.9)
    student.weight.data.fill_(3.0)
    assert teacher.network.weight == 1.5
