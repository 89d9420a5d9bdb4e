"""Inter-pixel losses against slow versions with loops, and the properties that they promise."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from corrmatch_hf.ops.inter_pixel import inter_pixel_correlation, inter_pixel_kl, inter_pixel_pairwise

from ..two_processes import in_two_processes


def pairwise(student, teacher, confident, pixels=10_000, temperature=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return inter_pixel_pairwise(student, teacher, confident, generator, pixels, temperature)


LOSSES = {"kl": inter_pixel_kl, "correlation": inter_pixel_correlation, "pairwise": pairwise}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


# Slow versions of one image: pixels are lists of K logits, float64.


def kl(p, q):
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def slow_kl(student, teacher, temperature=1.0):
    classes = len(student[0])
    total = 0
    for k in range(classes):
        a = torch.stack([pixel[k] for pixel in teacher]).div(temperature).softmax(0)
        b = torch.stack([pixel[k] for pixel in student]).div(temperature).softmax(0)
        total = total + kl(a, b)
    return temperature**2 * total / classes


def slow_correlation(student, teacher):
    distances = []
    for k in range(len(student[0])):
        q = torch.stack([pixel.softmax(0)[k] for pixel in student])
        p = torch.stack([pixel.softmax(0)[k] for pixel in teacher])
        if p.std(correction=0) >= 1e-6:
            distances.append(1 - torch.corrcoef(torch.stack([p, q]))[0, 1])
    return sum(distances) / len(distances) if distances else None


def slow_pairwise(student, teacher, temperature=1.0):
    def row(pixels, i):
        p = [pixel.softmax(0) for pixel in pixels]
        return torch.stack([torch.dot(p[i], other) / (p[i].norm() * other.norm()) for other in p])

    total = 0
    for i in range(len(student)):
        a, b = (row(pixels, i).div(temperature).softmax(0) for pixels in (teacher, student))
        total = total + kl(a, b)
    return total / len(student)


def slow(of_image, student, teacher, confident):
    values = []
    for n in range(len(student)):
        at = [(i, j) for i, j in confident[n].nonzero().tolist()]
        if len(at) >= 2:
            value = of_image(
                [student[n, :, i, j].double() for i, j in at], [teacher[n, :, i, j].double() for i, j in at]
            )
            values += [] if value is None else [value]
    return sum(values) / len(values)


def random_case(classes=4, seed=1):
    """Four images: some pixels, all, one (too few), none."""
    g = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(4, classes, 4, 5, generator=g) for _ in range(2))
    confident = torch.rand(4, 4, 5, generator=g) < 0.5
    confident[1], confident[2], confident[3] = True, False, False
    confident[2, 1, 1] = True
    return student.requires_grad_(), teacher, confident


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("fast", "of_image"),
    [
        (inter_pixel_kl, slow_kl),
        (partial(inter_pixel_kl, temperature=4.0), partial(slow_kl, temperature=4.0)),
        (inter_pixel_correlation, slow_correlation),
        (pairwise, slow_pairwise),
        (partial(pairwise, temperature=0.2), partial(slow_pairwise, temperature=0.2)),
    ],
)
def test_value_and_gradient_against_loops(fast, of_image, classes):
    student, teacher, confident = random_case(classes)
    got = fast(student, teacher, confident)
    want = slow(of_image, student, teacher, confident)
    assert got.dtype == torch.float32 and got.ndim == 0
    assert want.item() > 0.01
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(got, student)
    (wanted,) = torch.autograd.grad(want, student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


@every_loss
def test_a_student_that_agrees_costs_nothing(loss):
    _, teacher, confident = random_case()
    assert abs(loss(teacher.clone(), teacher, confident).item()) < 1e-6


@every_loss
def test_the_order_of_the_pixels_does_not_matter(loss):
    student, teacher, confident = random_case()
    order = torch.randperm(20)

    def permuted(x):
        return x.flatten(-2)[..., order].view(x.shape)

    torch.testing.assert_close(
        loss(permuted(student), permuted(teacher), permuted(confident)), loss(student, teacher, confident)
    )


def test_kl_does_not_see_a_number_added_to_a_class():
    student, teacher, confident = random_case()
    shift = torch.tensor([3.0, -1.0, 0.0, 7.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(
        inter_pixel_kl(student + shift, teacher, confident), inter_pixel_kl(student, teacher, confident)
    )


def test_correlation_does_not_see_a_positive_affine_map_of_the_probabilities():
    student, teacher, confident = random_case()
    mapped = ((teacher.softmax(1) + 0.3) / (1 + 4 * 0.3)).log()
    assert abs(inter_pixel_correlation(mapped, teacher, confident).item()) < 1e-5
    torch.testing.assert_close(
        inter_pixel_correlation(student, mapped, confident),
        inter_pixel_correlation(student, teacher, confident),
    )


@every_loss
def test_no_gradient_reaches_the_teacher(loss):
    student, teacher, confident = random_case()
    teacher.requires_grad_()
    loss(student, teacher, confident).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@every_loss
def test_pixels_that_are_not_confident_neither_matter_nor_learn(loss):
    student, teacher, confident = random_case()
    value = loss(student, teacher, confident)
    value.backward()
    used = confident & (confident.flatten(1).sum(1) >= 2).view(-1, 1, 1)
    outside = (~used).unsqueeze(1).expand_as(student)
    assert torch.equal(student.grad[outside], torch.zeros(outside.sum()))
    assert (student.grad[~outside] != 0).any()

    hidden = (~confident).unsqueeze(1)
    noise = 1e4 * torch.randn_like(teacher)
    changed = loss(torch.where(hidden, noise, student), torch.where(hidden, -noise, teacher), confident)
    torch.testing.assert_close(changed, value)


@every_loss
@pytest.mark.parametrize("pixels", [0, 1])
def test_fewer_than_two_confident_pixels_are_zero_with_zero_gradient(loss, pixels):
    student, teacher, confident = random_case()
    confident[:] = False
    confident.view(4, -1)[:, :pixels] = True
    value = loss(student, teacher, confident)
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@every_loss
def test_images_without_relations_do_not_dilute_the_mean(loss):
    student, teacher, confident = random_case()
    single = [loss(student[n : n + 1], teacher[n : n + 1], confident[n : n + 1]) for n in (0, 1)]
    torch.testing.assert_close(loss(student, teacher, confident), (single[0] + single[1]) / 2)


@every_loss
def test_autocast_computes_in_float32(loss):
    student, teacher, confident = random_case()
    half = student.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, teacher.bfloat16(), confident)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.float(), teacher.bfloat16().float(), confident))
    assert half.grad.isfinite().all()


@every_loss
def test_extreme_logits_stay_finite(loss):
    student, teacher, confident = random_case()
    student = (1e4 * student.detach()).requires_grad_()
    value = loss(student, -1e4 * teacher, confident)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_correlation_leaves_out_classes_that_are_constant_in_the_teacher():
    student, _, confident = random_case(3)
    first = 0.1 + 0.6 * torch.rand(4, 4, 5)
    teacher = torch.stack([first, 0.8 - first, torch.full_like(first, 0.2)], 1).log()
    got = inter_pixel_correlation(student, teacher, confident)
    torch.testing.assert_close(got.double(), slow(slow_correlation, student, teacher, confident))
    # With two classes opposite to each other, both distances are one number: a third, left out, cannot lower it.
    other = inter_pixel_correlation(teacher.flip(1).roll(-1, 1), teacher, confident)
    torch.testing.assert_close(other, torch.tensor(2.0))


def test_correlation_of_a_constant_teacher_is_zero_with_zero_gradient():
    student, teacher, confident = random_case(2)
    value = inter_pixel_correlation(student, torch.ones_like(teacher), confident)
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_correlation_leaves_out_images_where_the_teacher_is_constant():
    student, teacher, confident = random_case()
    teacher[1] = 1
    only_first = inter_pixel_correlation(student[:1], teacher[:1], confident[:1])
    torch.testing.assert_close(inter_pixel_correlation(student, teacher, confident), only_first)


def test_correlation_of_a_constant_student_is_one_with_finite_gradient():
    _, teacher, confident = random_case()
    student = torch.zeros_like(teacher, requires_grad=True)
    value = inter_pixel_correlation(student, teacher, confident)
    value.backward()
    assert value.item() == pytest.approx(1)
    assert student.grad.isfinite().all()


def test_pairwise_samples_confident_pixels_only_and_as_many_as_asked():
    student, teacher, confident = random_case()
    pairwise(student, teacher, confident, pixels=5).backward()
    learning = (student.grad != 0).any(1) & confident
    assert torch.equal(learning, (student.grad != 0).any(1))
    assert learning.flatten(1).sum(1).tolist() == [5, 5, 0, 0]
    # The sample is all that counts: the loss is that of a mask of these five.
    sample = pairwise(student, teacher, confident, pixels=5)
    torch.testing.assert_close(sample, pairwise(student, teacher, learning))


def test_pairwise_draws_again_with_another_generator_only():
    case = random_case()
    values = [pairwise(*case, pixels=5, seed=seed).item() for seed in (3, 3, 4)]
    assert values[0] == values[1] != values[2]


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@every_loss
def test_no_tensor_is_larger_than_the_logits(loss):
    student = torch.randn(1, 3, 96, 96, requires_grad=True)
    teacher, confident = torch.randn(1, 3, 96, 96), torch.ones(1, 96, 96, dtype=torch.bool)
    if loss is pairwise:
        loss = partial(pairwise, pixels=128)
    with LargestTensor() as mode:
        loss(student, teacher, confident).backward()
    assert mode.numel == student.numel()


def values_and_gradients(rows):
    student, teacher, confident = random_case()
    student = student.detach()[rows].requires_grad_()
    result = {}
    for name, loss in {**LOSSES, "pairwise": partial(pairwise, pixels=5)}.items():
        value = loss(student, teacher[rows], confident[rows])
        (gradient,) = torch.autograd.grad(value, student)
        result[name] = (value.detach(), gradient)
    return result


def of_process(rank):
    """Image 0 here, images 1 to 3 there: the processes have different numbers of images, and of usable ones."""
    return values_and_gradients(slice(0, 1) if rank == 0 else slice(1, 4))


def test_two_processes_equal_one(tmp_path):
    two = in_two_processes(of_process, tmp_path)
    for name, (value, gradient) in values_and_gradients(slice(0, 4)).items():
        # Data-parallel training averages the processes' gradients.
        torch.testing.assert_close((two[0][name][0] + two[1][name][0]) / 2, value)
        torch.testing.assert_close(torch.cat([two[0][name][1], two[1][name][1]]) / 2, gradient)
