"""Mean Teacher against numbers worked out by hand."""

import math

import pytest
import torch

from corrmatch_hf.methods import MeanTeacher, MeanTeacherOptions, Supervised

from .tiny import logits_of, random_batch, targets, tiny_model


def test_a_step_by_hand():
    """One labelled and one unlabelled image of one pixel."""
    student, teacher = logits_of([[[0.7]], [[0.5]]]), logits_of([[[0.9]], [[0.6]]])
    total, logs = MeanTeacher(tiny_model(num_labels=2)).losses(
        student, teacher, targets(torch.tensor([[[1]]]))
    )
    labeled = -math.log(0.7)
    consistency = (2 * 0.2**2 + 2 * 0.1**2) / 4  # both classes of both pixels
    assert logs["loss/x"].item() == pytest.approx(labeled, rel=1e-5)
    assert logs["loss/consistency"].item() == pytest.approx(consistency, rel=1e-4)
    assert total.item() == pytest.approx(labeled + 100 * consistency, rel=1e-4)


def test_a_second_step_by_hand():
    """The labelled pixel is ignored, so only the agreement counts."""
    student, teacher = logits_of([[[0.2]], [[0.8]]]), logits_of([[[0.2]], [[0.5]]])
    options = MeanTeacherOptions(consistency_weight=10.0)
    total, _ = MeanTeacher(tiny_model(num_labels=2), options).losses(
        student, teacher, targets(torch.tensor([[[255]]]))
    )
    assert total.item() == pytest.approx(10 * (2 * 0.3**2) / 4, rel=1e-4)


def test_without_consistency_it_is_the_supervised_baseline():
    """Unlabelled images have batch statistics of their own, so they leave the labelled ones alone."""
    torch.manual_seed(0)
    model = tiny_model()
    method = MeanTeacher(model, MeanTeacherOptions(consistency_weight=0.0)).train()
    batch = random_batch()
    _, logs = method(batch)
    _, expected = Supervised(model).train()(batch)
    torch.testing.assert_close(logs["loss/x"], expected["loss/x"])


def test_the_teacher_starts_equal_and_then_follows_the_students_parameters_only():
    method = MeanTeacher(tiny_model(), MeanTeacherOptions(mean_teacher_decay=0.75)).train()
    batch = random_batch()
    loss, logs = method(batch)
    assert logs["loss/consistency"] == 0  # the same network in the same mode
    loss.backward()
    old = {k: p.clone() for k, p in method.model.named_parameters()}
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    method.after_step()
    for key, own in method.teacher.network.named_parameters():
        torch.testing.assert_close(own, 0.75 * old[key] + 0.25 * method.model.get_parameter(key))
    _, logs = method(batch)
    assert logs["loss/consistency"] > 0


def test_the_teacher_keeps_batch_statistics_of_its_own():
    method = MeanTeacher(tiny_model()).train()
    name = next(k for k, _ in method.teacher.network.named_buffers() if k.endswith("running_mean"))
    before = method.teacher.network.get_buffer(name).clone()
    method(random_batch())
    after = method.teacher.network.get_buffer(name)
    assert not torch.equal(before, after)  # it runs in training mode
    torch.testing.assert_close(after, method.model.get_buffer(name))  # on the same images
    method.after_step()
    assert torch.equal(method.teacher.network.get_buffer(name), after)


def test_the_student_is_what_is_saved():
    method = MeanTeacher(tiny_model())
    assert method.segmentation_model is method.model
