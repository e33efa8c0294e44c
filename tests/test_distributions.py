import gc
import math
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit

from ppse import ComplexNormal

GOF_LIMIT = 1e-4  # a right density fails once in 10,000 seeds; the seed is fixed


def _law() -> ComplexNormal:
    return ComplexNormal(torch.tensor([1 + 2j, -0.5j], dtype=torch.complex128), torch.tensor([0.5, 3.0], dtype=torch.float64))


def _goodness_of_fit(wrong_by: float = 0.0) -> torch.Tensor:
    law = _law()
    draws = law.sample(torch.Size([20_000]))
    density = (law.log_prob(draws) + wrong_by * (draws - law.loc).abs().square() / law.var).exp()
    return torch.stack([torch.as_tensor(auto_goodness_of_fit(torch.view_as_real(draws[:, i].contiguous()), density[:, i])) for i in range(2)])


def test_draws_follow_the_density_of_the_real_and_imaginary_part() -> None:
    assert (_goodness_of_fit() > GOF_LIMIT).all()


def test_goodness_of_fit_notices_a_wrong_density() -> None:
    assert (_goodness_of_fit(wrong_by=0.5) < GOF_LIMIT).all()  # the classic: variance per part instead of in all


def test_a_scaled_law_is_that_of_the_scaled_variable() -> None:
    law, power = _law(), torch.tensor([4.0, 0.25], dtype=torch.float64)
    scaled = law.scaled(power)
    torch.testing.assert_close((scaled.loc, scaled.var), (power.sqrt() * law.loc, power * law.var))
    assert ComplexNormal(0j, law.var).scaled(power).centred  # which is what makes it cheap


def test_log_prob_is_that_of_two_normal_laws() -> None:
    law, value = _law(), torch.tensor([0.3 - 1j, 2 + 0.1j], dtype=torch.complex128)
    scale = (law.var / 2).sqrt()
    parts = dist.Normal(law.loc.real, scale).log_prob(value.real) + dist.Normal(law.loc.imag, scale).log_prob(value.imag)
    torch.testing.assert_close(law.log_prob(value), parts)


def test_moments_and_circularity() -> None:
    law = _law()
    centred = law.sample(torch.Size([40_000])) - law.loc
    error = 5 * law.var / math.sqrt(40_000)
    assert ((centred.abs().square().mean(0) - law.variance).abs() < error).all()
    assert (centred.square().mean(0).abs() < 1.5 * error).all()  # E (a - m)^2 = 0: phases are uniform
    assert (centred.mean(0).abs() < 5 * law.var.sqrt() / math.sqrt(40_000)).all()
    assert torch.equal(law.mean, law.loc)


def test_sum_is_the_law_of_the_sum_of_independent_variables() -> None:
    total = _law() + ComplexNormal(1j, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(total.loc, _law().loc + 1j)
    torch.testing.assert_close(total.var, _law().var + 1)
    # Against the convolution, by quadrature over the first term on a grid: p(x) = int p_a(y) p_b(x - y) dy.
    grid = torch.linspace(-6, 6, 241, dtype=torch.float64)
    y = torch.complex(*torch.meshgrid(grid, grid, indexing="ij"))
    a, b = (ComplexNormal(loc, torch.tensor(var, dtype=torch.float64)) for loc, var in ((0.2j, 0.7), (-0.1, 1.3)))
    x = torch.tensor(0.4 + 0.3j, dtype=torch.complex128)
    convolved = (a.log_prob(y) + b.log_prob(x - y)).exp().sum() * (grid[1] - grid[0]) ** 2
    torch.testing.assert_close((a + b).log_prob(x).exp(), convolved, rtol=1e-6, atol=0)


def test_expand_mask_and_to_event() -> None:
    law, value = _law(), torch.randn(5, 2, dtype=torch.complex128)
    expanded = law.expand([5, 2])  # Pyro hands lists
    assert expanded.batch_shape == (5, 2) and expanded.sample().shape == (5, 2)
    torch.testing.assert_close(expanded.log_prob(value), law.log_prob(value))
    assert law.to_event(1).log_prob(value).shape == (5,)
    mask = torch.tensor([True, False])
    masked = law.mask(mask).log_prob(value)
    assert (masked[:, 1] == 0).all() and torch.equal(masked[:, 0], law.log_prob(value)[:, 0])


def test_works_as_a_site_in_a_plate_with_validation() -> None:
    def model(obs: torch.Tensor | None = None) -> torch.Tensor:
        with pyro.plate("frames", 3, dim=-1):
            return pyro.sample("x", ComplexNormal(0j, torch.ones(4)).to_event(1), obs=obs)

    x = model()
    assert x.shape == (3, 4) and x.dtype == torch.complex64
    expected = ComplexNormal(0j, torch.ones(3, 4)).log_prob(x).sum()
    torch.testing.assert_close(pyro.poutine.trace(model).get_trace(x).log_prob_sum(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_follows_the_variance(dtype: torch.dtype) -> None:
    law = ComplexNormal(1j, torch.ones(2, dtype=dtype))
    assert law.loc.dtype == law.sample().dtype == dtype.to_complex() and law.log_prob(law.sample()).dtype == dtype


def test_gradients_of_draws_reach_mean_and_variance() -> None:
    loc = torch.zeros(2, dtype=torch.complex128, requires_grad=True)
    var = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ComplexNormal(loc, var).rsample().abs().square().sum().backward()
    assert loc.grad is not None and var.grad is not None and loc.grad.abs().all() and var.grad.all()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="var"):
        ComplexNormal(0j, torch.tensor([1.0, -1.0]), validate_args=True)
    with pytest.raises(ValueError):
        ComplexNormal(0j, torch.ones(1), validate_args=True).log_prob(torch.tensor([complex(math.nan, 0)]))


def test_variance_zero_means_known() -> None:
    law = ComplexNormal(2j, torch.zeros(3))
    assert torch.equal(law.sample(), law.loc)


@pytest.mark.parametrize("centre", ["known to be 0", "given"])
def test_derivatives_of_the_density_of_first_and_second_order_under_broadcasting_and_vmap(centre: str) -> None:
    value = torch.randn(3, 1, 4, dtype=torch.complex128)
    loc = torch.randn(4, dtype=torch.complex128, requires_grad=True) if centre == "given" else 0j
    var = (torch.rand(2, 1, dtype=torch.float64) + 0.1).requires_grad_()

    def log_prob(value: torch.Tensor, var: torch.Tensor, *loc: torch.Tensor) -> torch.Tensor:
        return ComplexNormal(loc[0] if loc else 0j, var, validate_args=False).log_prob(value)

    inputs = (value.requires_grad_(), var, *((loc,) if isinstance(loc, torch.Tensor) else ()))
    assert torch.autograd.gradcheck(log_prob, inputs) and torch.autograd.gradgradcheck(log_prob, inputs)
    one_by_one = torch.stack([log_prob(v, *inputs[1:]) for v in value])
    torch.testing.assert_close(torch.func.vmap(log_prob, (0, *(None for _ in inputs[1:])))(*inputs), one_by_one)


def test_a_real_value_has_a_density_too() -> None:
    law = ComplexNormal(0j, torch.tensor([0.5, 2.0]))
    assert torch.equal(law.log_prob(torch.tensor([1.0, -3.0])), law.log_prob(torch.tensor([1.0 + 0j, -3.0])))


class TestPowerOfWhatIsObserved:
    """It is kept, since every iteration asks for it, and never old."""

    law = ComplexNormal(0j, torch.ones(2))

    def test_it_is_found_once(self) -> None:
        x = torch.tensor([1 + 2j, 3j])
        assert self.law.squared_error(x).tolist() == [5.0, 9.0]
        assert self.law.squared_error(x) is self.law.squared_error(x)

    def test_a_change_in_place_is_seen(self) -> None:
        x = torch.tensor([1 + 2j, 3j])
        self.law.squared_error(x)
        x *= 2
        assert self.law.squared_error(x).tolist() == [20.0, 36.0]

    def test_who_changes_what_was_found_harms_nobody(self) -> None:
        x = torch.tensor([1 + 2j, 3j])
        self.law.squared_error(x).zero_()
        assert self.law.squared_error(x).tolist() == [5.0, 9.0]

    def test_what_is_found_in_inference_mode_is_not_used_outside(self) -> None:
        x, var = torch.tensor([1 + 2j, 3j]), torch.ones(2, requires_grad=True)
        with torch.inference_mode():
            self.law.log_prob(x)
        ComplexNormal(0j, var).log_prob(x).sum().backward()
        assert var.grad is not None and var.grad.tolist() == [4.0, 8.0]

    def test_it_goes_with_the_tensor(self) -> None:
        x = torch.tensor([1 + 2j, 3j])
        power = weakref.ref(self.law.squared_error(x))
        del x
        gc.collect()
        assert power() is None

    def test_a_gradient_reaches_the_value(self) -> None:
        x = torch.tensor([1 + 2j, 3j], requires_grad=True)
        self.law.squared_error(x.detach())
        self.law.squared_error(x).sum().backward()
        assert x.grad is not None and torch.equal(x.grad, 2 * x.detach())
