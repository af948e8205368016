"""Every statement of the method about losses and gradients, in float64, by exact integration.

A layer here is x_k -> A x_k + B + std noise with x_k's law held, so its marginal q and all noise
predictions are known. The losses are polynomials of the nodes where everything is Gaussian, and
Gauss-Hermite quadrature is then exact; for mixtures the trapezoid rule errs by exp(-2 pi d / h),
d > 0.1 the poles' distance from the axis and h = 0.02. So tolerances of 1e-10 are float64 rounding
through sums of some hundred terms.
"""

import math
from itertools import pairwise

import pytest
import torch
from conftest import gauss_hermite, linear_table

from hsivi_cli.method import losses, schedule
from hsivi_cli.method.chain import observe, with_noise_share
from hsivi_cli.method.losses import (
    divergence_bound,
    dot,
    fake_score_loss,
    kernel_stein_loss,
    level_weight,
    lower_bound_loss,
    median_bandwidth,
    normal_log_density,
    regression_loss,
    reverse_kl_loss,
    score_matching_loss,
)
from hsivi_cli.method.solvers import ddim_chain

EXACT = {"rtol": 1e-10, "atol": 1e-10}
LEVEL = 0.7  # alpha_bar of the layer's own level
LEVELS = (0.7, 0.69, 0.4, 0.01)  # and where it is observed


def number(value, grad=False):
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def grad(value, *parameters):
    """The gradients of a scalar as one flat vector."""
    parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, parts, strict=True)
        ]
    )


def trapezoid():
    """Nodes [N, 1] and weights [N] of E[f(z)], z ~ N(0, 1), for smooth f."""
    nodes = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    return nodes[:, None], (-nodes.square() / 2).exp() * 0.02 / math.sqrt(2 * math.pi)


class Layer:
    """A layer q(x | x_k) = N(A x_k + B, exp(2 log_scale) s0^2), x_k ~ N(m_k, s_k^2).

    The target is N(mu, v) at tau.
    """

    def __init__(
        self, A=0.8, B=0.3, log_scale=0.2, s0=0.4, m_k=0.5, s_k=0.6, mu=-0.4, v=0.9, tau=LEVEL
    ):
        self.A, self.B, self.log_scale = number(A, True), number(B, True), number(log_scale, True)
        self.parameters = (self.A, self.B, self.log_scale)
        self.s0, self.m_k, self.s_k, self.mu, self.v, self.tau = s0, m_k, s_k, mu, v, tau
        self.sigma = math.sqrt(1 - tau)

    def marginal(self):
        """Mean and variance of q(x_tau)."""
        r = self.tau / LEVEL
        own = (self.A * self.s_k).square() + (2 * self.log_scale).exp() * self.s0**2
        return math.sqrt(r) * (self.A * self.m_k + self.B), r * own + 1 - r

    def draw(self, count=6):
        """x [N, 1], layer_eps [N, 1] and the weights [N] of their nodes."""
        nodes, weights = gauss_hermite(count, 2)
        mean = self.A * (self.m_k + self.s_k * nodes[:, :1]) + self.B
        levels = [number(level).expand(len(nodes)) for level in (LEVEL, self.tau)]
        x, layer_eps = observe(mean, self.log_scale.exp() * self.s0, *levels, nodes[:, 1:])
        return x, layer_eps, weights

    def teacher(self, x):
        return self.sigma * (x - self.mu) / self.v

    def exact(self):
        """The marginal's noise prediction at the present parameters, which are held."""
        mean, var = (t.detach() for t in self.marginal())
        return lambda x: self.sigma * (x - mean) / var

    def divergence(self):
        """D = sigma^2 E|eps_q - teacher_eps|^2, in closed form."""
        mean, var = self.marginal()
        return self.sigma**4 * (
            var * (1 / var - 1 / self.v).square() + ((mean - self.mu) / self.v).square()
        )

    def loss(self, f, a=0.5, held=False, weight=None):
        x, layer_eps, weights = self.draw(6)
        layer_eps = layer_eps.detach() if held else layer_eps
        weight = torch.full_like(weights, self.sigma**2 if weight is None else weight)
        return weights @ score_matching_loss(f(x), self.teacher(x), layer_eps, weight, a)

    def frozen(self, f):
        """E[sigma^2 |gap|^2] with f held: what must not be descended."""
        x, _, weights = self.draw()
        return self.sigma**2 * weights @ dot(f(x) - self.teacher(x), f(x) - self.teacher(x))


# ---- score matching ------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", LEVELS)
def test_with_f_exact_the_loss_is_half_the_divergence_and_so_is_its_gradient(tau):
    layer = Layer(tau=tau)
    loss, half = layer.loss(layer.exact()), layer.divergence() / 2
    torch.testing.assert_close(loss, half, **EXACT)
    torch.testing.assert_close(
        grad(loss, *layer.parameters), grad(half, *layer.parameters), **EXACT
    )


def test_the_divergence_is_sigma4_times_the_fisher_divergence():
    layer = Layer()
    x, _, weights = layer.draw()
    mean, var = layer.marginal()
    fisher = weights @ (-(x - mean) / var + (x - layer.mu) / layer.v).square().squeeze(1)
    torch.testing.assert_close(layer.divergence(), layer.sigma**4 * fisher, **EXACT)


def test_in_several_dimensions_with_full_covariances_too():
    torch.manual_seed(0)
    tau, s0, d = 0.4, 0.3, 2
    sigma, r = math.sqrt(1 - tau), tau / LEVEL
    A, B = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((d, d), (d,)))
    log_scale = torch.randn(d, dtype=torch.float64).mul(0.3).requires_grad_()
    factor, mu = torch.randn(d, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    precision = torch.linalg.inv(factor @ factor.T + torch.eye(d, dtype=torch.float64))
    std = log_scale.exp() * s0
    q_mean = math.sqrt(r) * B
    q_cov = r * (A @ A.T + torch.diag(std.square())) + (1 - r) * torch.eye(d, dtype=torch.float64)
    nodes, weights = gauss_hermite(4, 2 * d)
    levels = [number(level).expand(len(nodes)) for level in (LEVEL, tau)]
    x, layer_eps = observe(nodes[:, :d] @ A.T + B, std, *levels, nodes[:, d:])
    held, centre = torch.linalg.inv(q_cov).detach(), q_mean.detach()
    f_eps, teacher_eps = sigma * (x - centre) @ held, sigma * (x - mu) @ precision
    loss = weights @ score_matching_loss(
        f_eps, teacher_eps, layer_eps, torch.full_like(weights, sigma**2)
    )
    gap = precision - torch.linalg.inv(q_cov)
    half = (
        sigma**4 / 2 * (torch.trace(gap @ q_cov @ gap) + (precision @ (q_mean - mu)).square().sum())
    )
    torch.testing.assert_close(loss, half, **EXACT)
    torch.testing.assert_close(grad(loss, A, B, log_scale), grad(half, A, B, log_scale), **EXACT)


class Mixture:
    """A layer whose x_k is one of several points: neither f exact nor the teacher is linear."""

    def __init__(self, tau, log_scale=-0.4):
        self.tau, self.sigma = tau, math.sqrt(1 - tau)
        self.means = torch.tensor([-1.2, 0.1, 0.9], dtype=torch.float64, requires_grad=True)
        self.log_scale = number(log_scale, True)
        self.parameters = (self.means, self.log_scale)

    def components(self):
        r = self.tau / LEVEL
        return math.sqrt(r) * self.means, r * (2 * self.log_scale).exp() * 0.25 + 1 - r

    def eps(self, x, means, var):
        share = (-(x - means).square() / (2 * var)).softmax(1)
        return self.sigma * (share * (x - means) / var).sum(1, keepdim=True)

    def exact(self):
        means, var = (t.detach() for t in self.components())
        return lambda x: self.eps(x, means, var)

    def teacher(self, x):
        return self.eps(x, torch.tensor([-0.8, 1.0], dtype=torch.float64), number(0.5))

    def draw(self):
        nodes, weights = trapezoid()
        mean = self.means.repeat_interleave(len(nodes))[:, None]
        levels = [number(level).expand(len(mean)) for level in (LEVEL, self.tau)]
        x, layer_eps = observe(mean, self.log_scale.exp() * 0.5, *levels, nodes.repeat(3, 1))
        return x, layer_eps, weights.repeat(3) / 3

    def loss(self, f, held=False):
        x, layer_eps, weights = self.draw()
        layer_eps = layer_eps.detach() if held else layer_eps
        weight = torch.full_like(weights, self.sigma**2)
        return weights @ score_matching_loss(f(x), self.teacher(x), layer_eps, weight)

    def divergence(self):
        x, _, weights = self.draw()
        gap = self.eps(x, *self.components()) - self.teacher(x)
        return self.sigma**2 * weights @ dot(gap, gap)


@pytest.mark.parametrize("tau", LEVELS)
def test_for_a_mixture_too_the_gradient_is_the_divergences_by_finite_differences(tau):
    mixture = Mixture(tau)
    gradient = 2 * grad(mixture.loss(mixture.exact()), *mixture.parameters)
    step, found = 1e-5, []
    for parameter in mixture.parameters:
        for i in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[i] += sign * step
                    values.append(mixture.divergence().item())
                    parameter.view(-1)[i] -= sign * step
            found.append((values[0] - values[1]) / (2 * step))
    # central differences err by step^2 (1e-10) and rounding over step (1e-11)
    torch.testing.assert_close(
        gradient, torch.tensor(found, dtype=torch.float64), rtol=1e-8, atol=1e-8
    )


def test_detaching_layer_eps_trains_the_noise_scale_in_the_wrong_direction():
    layer = Layer(log_scale=-0.5, A=0.3, v=1.5)  # a student that is too narrow and must widen
    finite = []
    for shift in (1e-5, -1e-5):
        moved = Layer(log_scale=-0.5 + shift, A=0.3, v=1.5)
        finite.append(moved.divergence().item() / 2)
    truth = (finite[0] - finite[1]) / 2e-5
    right = grad(layer.loss(layer.exact()), layer.log_scale).item()
    wrong = grad(layer.loss(layer.exact(), held=True), layer.log_scale).item()
    assert right == pytest.approx(truth, rel=1e-7)  # central differences
    assert truth < -0.01 and wrong > 0.01


def test_the_loss_is_not_the_gap_with_f_frozen_whose_gradient_can_point_the_other_way():
    layer = Layer(A=0.2, m_k=0.0, B=0.0, mu=0.0, log_scale=-0.5, v=1.5)
    f = layer.exact()
    truth, frozen = (
        grad(layer.divergence(), layer.log_scale),
        grad(layer.frozen(f), layer.log_scale),
    )
    assert truth.item() < -0.1 and frozen.item() > 0.1
    torch.testing.assert_close(layer.frozen(f), layer.divergence(), **EXACT)  # yet the values agree


@pytest.mark.parametrize("tau", LEVELS)
@pytest.mark.parametrize("a", [0.5, 1.0, 1.2, 0.0])
def test_the_gradient_for_general_a_is_half_the_divergences_and_the_rest_of_the_frozen_gaps(a, tau):
    layer = Layer(tau=tau)
    f = layer.exact()
    told = grad(layer.divergence(), *layer.parameters) / 2
    told = told + (0.5 - a) * grad(layer.frozen(f), *layer.parameters)
    torch.testing.assert_close(grad(layer.loss(f, a), *layer.parameters), told, **EXACT)


def closed_form(layer, a):
    """d/dm and d/ds of a loss whose q = N(m, s^2), p = N(mu, v)."""
    mean, var = (t.item() for t in layer.marginal())
    s, v, sigma4, gap = math.sqrt(var), layer.v, layer.sigma**4, 1 / var - 1 / layer.v
    d_mean = sigma4 * (mean - layer.mu) / v * (1 / v + (2 * a - 1) * gap)
    return d_mean, -2 * sigma4 * s * gap * (a / var + (1 - a) / v)


@pytest.mark.parametrize("a", [0.5, 0.8, 1.0, 1.2, 1.5])
@pytest.mark.parametrize("log_scale", [-1.0, 0.0, 1.5])
def test_the_gradients_closed_form_for_gaussians_and_every_a(a, log_scale):
    layer = Layer(
        A=0.0, log_scale=log_scale
    )  # then m = B and s = exp(log_scale) s0, so d/dlog_scale = s d/ds
    d_mean, d_s = closed_form(layer, a)
    found = grad(layer.loss(layer.exact(), a), layer.B, layer.log_scale)
    told = torch.tensor([d_mean, d_s * math.sqrt(layer.marginal()[1].item())], dtype=torch.float64)
    torch.testing.assert_close(found, told, **EXACT)


def test_a_of_1_pushes_harder_where_the_student_is_too_narrow_and_softer_where_it_is_too_wide():
    for log_scale, harder in ((-1.0, True), (1.5, False)):
        layer = Layer(A=0.0, log_scale=log_scale)
        half, one = (
            abs(grad(layer.loss(layer.exact(), a), layer.log_scale).item()) for a in (0.5, 1.0)
        )
        assert (one > half) == harder


def test_a_above_1_reverses_for_a_student_wide_enough():
    a, v = 1.2, 0.9
    bound = v * (2 * a - 1) / (2 * a - 2)  # of d/dm; d/ds turns at v a / (a - 1), further out
    signs = {}
    for factor in (0.98, 1.02):
        layer = Layer(A=0.0, s0=1.0, log_scale=math.log(factor * bound) / 2, v=v)
        signs[factor] = grad(layer.loss(layer.exact(), a), layer.B).item()
        assert layer.marginal()[0] > layer.mu  # so a positive gradient is the right one
        assert grad(layer.loss(layer.exact(), 1.0), layer.B) > 0
    assert signs[0.98] > 0 > signs[1.02]
    signs = {}
    for factor in (0.98, 1.02):
        layer = Layer(A=0.0, s0=1.0, log_scale=math.log(factor * v * a / (a - 1)) / 2, v=v)
        signs[factor] = grad(layer.loss(layer.exact(), a), layer.log_scale).item()
    assert signs[0.98] > 0 > signs[1.02]


@pytest.mark.parametrize("f", [torch.tanh, torch.sin, lambda x: 3 * x + 1, torch.zeros_like])
@pytest.mark.parametrize("tau", LEVELS)
def test_for_any_f_the_bound_is_the_divergence_less_fs_error(f, tau):
    mixture = Mixture(tau)
    x, layer_eps, weights = mixture.draw()
    truth = mixture.divergence() / mixture.sigma**2
    bound = weights @ divergence_bound(f(x), mixture.teacher(x), layer_eps)
    error = f(x) - mixture.exact()(x)
    torch.testing.assert_close(bound, truth - weights @ dot(error, error), **EXACT)
    assert bound < truth


def test_the_squared_gap_is_no_bound():
    layer = Layer()
    above = layer.frozen(lambda x: 3 * x + 1) / layer.divergence()
    below = layer.frozen(lambda x: layer.teacher(x)) / layer.divergence()
    assert above > 2 and below == 0


def test_with_f_exact_the_bound_is_the_divergence_and_the_loss_of_a_1_says_nothing():
    layer = Layer()
    x, layer_eps, weights = layer.draw()
    bound = weights @ divergence_bound(layer.exact()(x), layer.teacher(x), layer_eps)
    torch.testing.assert_close(layer.sigma**2 * bound, layer.divergence(), **EXACT)
    assert abs(layer.loss(layer.exact(), a=1.0).item()) < 1e-12 < layer.divergence()


def test_where_f_is_still_the_teacher_loss_gradient_and_bound_are_all_zero():
    layer = Layer()
    x, layer_eps, _ = layer.draw()
    loss = layer.loss(layer.teacher)
    assert loss == 0 and not grad(loss, *layer.parameters).any()
    assert not divergence_bound(layer.teacher(x), layer.teacher(x), layer_eps).any()


def test_detaching_the_networks_leaves_the_mean_no_gradient_at_all():
    layer = Layer()
    f = layer.exact()
    x, layer_eps, weights = layer.draw()
    loss = weights @ score_matching_loss(
        f(x).detach(), layer.teacher(x).detach(), layer_eps, torch.ones_like(weights)
    )
    assert not grad(loss, layer.A, layer.B).any()


def test_with_phi_shared_by_layers_the_gradient_holds_the_law_of_x_k():
    """Two layers with one A: layer 1's gradient is its divergence's with x_1's law held."""
    A = number(0.7, True)

    def divergence(A_below, A_above):
        var = (A_below * 0.5).square() * ((A_above * 0.9).square() + 0.1) + 0.2
        return var * (1 / var - 1 / 1.3).square()

    law = ((A.detach() * 0.9).square() + 0.1).sqrt().item() * 0.5
    layer = Layer(A=0.7, B=0.0, m_k=0.0, s_k=law, mu=0.0, v=1.3, log_scale=0.0, s0=math.sqrt(0.2))
    semi = 2 * grad(layer.loss(layer.exact()), layer.A) / layer.sigma**4
    torch.testing.assert_close(semi, grad(divergence(A, A.detach()), A), **EXACT)
    assert not torch.allclose(semi, grad(divergence(A, A), A), rtol=0.1)


# ---- the fake score ------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", LEVELS)
def test_the_fake_score_loss_is_least_at_the_marginals_own_noise_prediction(tau):
    mixture = Mixture(tau)
    x, layer_eps, weights = mixture.draw()
    exact = mixture.exact()(x).detach()
    for direction in (torch.ones_like(x), x.detach(), torch.sin(3 * x.detach())):
        t = number(0.0, True)
        loss = weights @ fake_score_loss(
            exact + t * direction, layer_eps.detach(), torch.ones_like(weights)
        )
        assert abs(grad(loss, t).item()) < 1e-10
        moved = weights @ fake_score_loss(exact + direction, layer_eps, torch.ones_like(weights))
        torch.testing.assert_close(moved - loss, weights @ dot(direction, direction), **EXACT)


def test_two_layers_at_shared_levels_read_no_divergence_from_their_mixtures_score():
    """Each layer holds one mode of the target: own fake scores see it, a shared one does not."""
    sigma2, var, modes = 0.3, 0.5, torch.tensor([-1.0, 1.0], dtype=torch.float64)
    sigma = math.sqrt(sigma2)

    def target(x):
        share = (-(x - modes).square() / (2 * var)).softmax(1)
        return sigma * (share * (x - modes) / var).sum(1, keepdim=True)

    nodes, weights = trapezoid()
    for mode in modes:
        x = mode + math.sqrt(var) * nodes
        layer_eps = sigma / math.sqrt(var) * nodes
        own, mixture = sigma * (x - mode) / var, target(x)
        shared = weights @ divergence_bound(mixture, target(x), layer_eps)
        truth = weights @ divergence_bound(own, target(x), layer_eps)
        assert shared == 0
        torch.testing.assert_close(truth, weights @ dot(own - target(x), own - target(x)), **EXACT)
        assert truth > 0.1
    # the mixture's is what a shared one learns: over both layers' draws it fits best
    both = [(mode + math.sqrt(var) * nodes, sigma / math.sqrt(var) * nodes) for mode in modes]
    one = torch.ones_like(weights)
    fit = sum(weights @ fake_score_loss(target(x), layer_eps, one) for x, layer_eps in both)
    for mode in modes:
        other = sum(weights @ fake_score_loss(sigma * (x - mode) / var, e, one) for x, e in both)
        assert fit < other


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_second_moment_of_layer_eps_is_one_over_the_noise_share_squared(share):
    table = linear_table()
    times = [0, 150, 400, 700]
    chain = with_noise_share(ddim_chain(times, table[times]), share)
    nodes, weights = gauss_hermite(4)
    for k in (1, 2, 3):
        level = chain.alpha_bar[k - 1].expand(len(nodes))
        _, layer_eps = observe(torch.zeros_like(nodes), chain.s0[k], level, level, nodes)
        second = weights @ dot(layer_eps, layer_eps)
        # alpha_bar near 1 loses digits in 1 - alpha_bar, some 1e-12 at time 0
        assert second.item() == pytest.approx(1 / share**2, rel=1e-9)


# ---- reverse KL ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", LEVELS)
def test_the_reverse_kl_gradient_is_weight_times_sigma_times_that_of_the_kl(tau):
    layer = Layer(tau=tau)
    mean, var = layer.marginal()
    kl = 0.5 * (var / layer.v + (mean - layer.mu).square() / layer.v - 1 - (var / layer.v).log())
    x, _, weights = layer.draw()
    loss = weights @ reverse_kl_loss(
        x, layer.exact()(x), layer.teacher(x), torch.full_like(weights, 1.7)
    )
    told = 1.7 * layer.sigma * grad(kl, *layer.parameters)
    torch.testing.assert_close(grad(loss, *layer.parameters), told, **EXACT)


def test_reverse_kl_sends_nothing_back_through_the_networks():
    layer = Layer()
    x, _, weights = layer.draw()
    f_eps, teacher_eps = (
        torch.zeros_like(x, requires_grad=True),
        torch.ones_like(x, requires_grad=True),
    )
    loss = reverse_kl_loss(x, f_eps, teacher_eps, torch.ones_like(weights)).sum()
    assert not grad(loss, f_eps, teacher_eps).any() and grad(loss, x).any()


# ---- weights -------------------------------------------------------------------------------------


def test_the_weights_of_a_level():
    alpha_bar = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    assert level_weight("flat", alpha_bar).tolist() == [1, 1, 1]
    for kind, told in (("sigma2", 1 - alpha_bar), ("ratio", ((1 - alpha_bar) / alpha_bar).sqrt())):
        # weights are float32
        torch.testing.assert_close(level_weight(kind, alpha_bar).double(), told, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="no weight is called 'sigma'"):
        level_weight("sigma", alpha_bar)


@pytest.mark.parametrize("a", [1.0, 1.2])
def test_one_call_fully_renoised_with_sid_weights_is_sids_loss(a):
    """omega a_t^2 / sigma^4 ((1 - alpha) |D|^2 + D.(x0_f - x_g)) with D = x0_teacher - x0_f

    and omega = sigma^4 / a_t^2 * C / |x_g - x0_teacher|_1 [Zhou et al. 2024, eq. 23 and 28].
    """
    torch.manual_seed(0)
    x_g, noise, f_eps, teacher_eps = (torch.randn(5, 3, 4, 4) for _ in range(4))
    alpha_bar = torch.tensor([0.99, 0.8, 0.5, 0.2, 0.01], dtype=torch.float64)
    clean = torch.ones(5, dtype=torch.float64)
    x, layer_eps = observe(x_g, torch.zeros(1), clean, alpha_bar, noise)
    signal, sigma = (
        t.float().reshape(5, 1, 1, 1) for t in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    )
    x0_f, x0_teacher = ((x - sigma * eps) / signal for eps in (f_eps, teacher_eps))
    gap = x0_teacher - x0_f
    size = 48 / (x_g - x0_teacher).abs().flatten(1).sum(1)
    told = size * ((1 - a) * dot(gap, gap) + dot(gap, x0_f - x_g))
    x_g.requires_grad_()
    weight = level_weight("sid", alpha_bar, x_g, x0_teacher)
    assert not weight.requires_grad
    found = score_matching_loss(f_eps, teacher_eps, layer_eps, weight, a)
    torch.testing.assert_close(
        found, told, rtol=1e-4, atol=1e-4
    )  # float32; x0 is divided by 0.1 at the last level


def test_losses_are_one_value_a_sample_summed_over_its_elements():
    torch.manual_seed(0)
    f_eps, teacher_eps, layer_eps = (torch.randn(3, 2, 5, 4) for _ in range(3))
    weight = torch.tensor([1.0, 2.0, 0.5])
    parts = [
        fake_score_loss(f_eps, layer_eps, weight),
        score_matching_loss(f_eps, teacher_eps, layer_eps, weight),
        reverse_kl_loss(layer_eps, f_eps, teacher_eps, weight),
    ]
    gap = f_eps - teacher_eps
    told = [
        (f_eps - layer_eps) ** 2,
        gap * (layer_eps - teacher_eps - gap / 2),
        -gap * layer_eps,
    ]
    for part, elements in zip(parts, told, strict=True):
        torch.testing.assert_close(part, weight * elements.sum((1, 2, 3)))


@pytest.mark.parametrize("apart", [0.0, 1e-3, 0.03, 0.5, -2.0])
def test_the_regression_loss_is_a_square_below_four_grey_levels_and_a_distance_far_above(apart):
    x0 = torch.full((2, 3, 4), 0.25 + apart, dtype=torch.float64, requires_grad=True)
    loss = regression_loss(x0, torch.full((2, 3, 4), 0.25, dtype=torch.float64))
    told = 12 * (math.hypot(apart, 0.03) - 0.03)
    torch.testing.assert_close(loss, torch.full((2,), told, dtype=torch.float64), **EXACT)
    slope = torch.full((2, 3, 4), apart / math.hypot(apart, 0.03), dtype=torch.float64)
    torch.testing.assert_close(grad(loss.sum(), x0), slope.flatten(), **EXACT)
    if abs(apart) == 1e-3:
        assert told == pytest.approx(12 * apart**2 / (2 * 0.03), rel=1e-3)
    if abs(apart) >= 0.5:
        assert told == pytest.approx(12 * (abs(apart) - 0.03), rel=3e-3)


# ---- losses against a density: no fake score -----------------------------------------------------


def test_a_normal_log_density_is_torchs():
    x, mean, log_std = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(normal_log_density(x, mean, log_std.exp()), expected, **EXACT)


def bound(mixing, count, seed=0):
    """Mean and standard error of the lower bound's loss: z ~ N(0, 1), x = z + .3 noise, against q's
    own normalised marginal N(0, 1.09), where KL is 0.
    """
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 1, generator=rng).double()
    x = z + 0.3 * torch.randn(count, 1, generator=rng).double()
    others = torch.randn(count, mixing, 1, generator=rng).double()
    std = number([0.3])
    loss = lower_bound_loss(
        normal_log_density(x, z, std),
        normal_log_density(x[:, None], others, std),
        normal_log_density(x, 0 * x, number([1.09**0.5])),
    )
    return loss.mean().item(), loss.std().item() / count**0.5


def test_the_lower_bound_is_a_bound_and_tightens_with_the_mixing_samples():
    found = [bound(mixing, 20_000) for mixing in (0, 1, 10, 100)]
    # without mixing samples the mean is the mutual information of x and z, 1/2 log(1.09 / .09)
    assert found[0][0] == pytest.approx(math.log(1.09 / 0.09) / 2, abs=5 * found[0][1])
    for (loose, error), (tight, _) in pairwise(found):
        assert loose > tight + 5 * error
    assert -5 * found[-1][1] < found[-1][0] < 0.05


def test_the_lower_bound_stays_finite_where_all_densities_underflow():
    far = number([-1e4])
    found = lower_bound_loss(far, far[:, None].expand(1, 3), number([0.0]))
    torch.testing.assert_close(found, far, **EXACT)


def stein(count, seed, mean=0.0):
    """The kernel Stein estimate of x = z + .6 noise, z ~ N(mean, .64), against N(0, 1)."""
    rng = torch.Generator().manual_seed(seed)
    z = mean + 0.8 * torch.randn(count, 2, generator=rng).double()
    noise = torch.randn(count, 2, generator=rng).double()
    x = z + 0.6 * noise
    return kernel_stein_loss(x, x, noise / 0.6, number(1.0)).mean().item()


def test_the_kernel_stein_estimate_is_zero_at_the_truth_and_only_there():
    found = torch.tensor([stein(50, seed) for seed in range(400)])
    assert abs(found.mean()) < 4 * found.std() / 20  # standard errors of 400 estimates
    # q = N(m, I): both pulls are -m, so it is |m|^2 E[k], E[k] = 1 / (1 + 2) in two dimensions
    away = torch.tensor([stein(50, seed, mean=0.5) for seed in range(400)])
    assert away.mean().item() == pytest.approx(0.5 / 3, abs=4 * away.std().item() / 20)


def test_the_kernel_stein_loss_leaves_pairs_with_themselves_out():
    x, pull = number([[0.0], [1.0], [3.0]]), number([[1.0], [2.0], [-1.0]])
    k = [math.exp(-d / 8) for d in (1, 9, 4)]
    expected = number([2 * k[0] - k[1], 2 * k[0] - 2 * k[2], -k[1] - 2 * k[2]]) / 2
    found = kernel_stein_loss(x, 0 * pull, pull, number(2.0))
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_bandwidth_is_the_median_distance_of_pairs():
    assert median_bandwidth(number([[0.0], [1.0], [3.0]])).item() == pytest.approx(2)


@pytest.mark.parametrize("kind", ["lower bound", "kernel Stein"])
def test_gradients_into_mean_and_scale_are_central_differences(kind):
    rng = torch.Generator().manual_seed(0)
    z, others, noise = torch.randn(3, 6, 2, generator=rng).double()

    def loss(theta):
        shift, std = theta[:2], theta[2:].exp()
        x = z + shift + std * noise
        if kind == "kernel Stein":
            return kernel_stein_loss(x, x.sin(), noise / std, number(1.3)).mean()
        mixed = normal_log_density(x[:, None], others[None] + shift, std)
        return lower_bound_loss(normal_log_density(x, z + shift, std), mixed, x.cos().sum(1)).mean()

    theta = torch.tensor([0.3, -0.2, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    steps = 1e-6 * torch.eye(4, dtype=torch.float64)
    slope = torch.stack([(loss(theta + e) - loss(theta - e)) / 2e-6 for e in steps])
    torch.testing.assert_close(grad(loss(theta), theta), slope, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_the_output_weight_makes_an_error_of_eps_one_of_what_the_network_predicts(prediction):
    draw = torch.Generator().manual_seed(0)
    x, told, true = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64)
    alpha_bar = torch.tensor([0.9, 0.5, 0.01, 1e-4], dtype=torch.float64)
    eps = [schedule.to_eps(out, x, alpha_bar, prediction) for out in (told, true)]
    loss = losses.fake_score_loss(*eps, losses.output_weight(prediction, alpha_bar))
    assert torch.allclose(loss, (told - true).square().sum(1), rtol=1e-6)


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_a_gap_counts_as_the_networks_own_outputs_but_at_most_as_it_is(prediction):
    """In score matching by its square, in reverse KL by its size."""
    draw = torch.Generator().manual_seed(0)
    x, told, true = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64)
    alpha_bar = torch.tensor([0.999, 0.9, 0.51, 0.01], dtype=torch.float64)
    gap = schedule.to_eps(told, x, alpha_bar, prediction) - schedule.to_eps(
        true, x, alpha_bar, prediction
    )
    wanted = (told - true).square().sum(1).minimum(gap.square().sum(1))
    square = losses.gap_weight(prediction, alpha_bar, linear=False)
    root = losses.gap_weight(prediction, alpha_bar, linear=True)
    assert torch.allclose(square * gap.square().sum(1), wanted, rtol=1e-6)
    assert torch.allclose(root * gap.norm(dim=1), wanted.sqrt(), rtol=1e-6)
    capped = square == 1
    assert capped.tolist() == [False] * 3 + [True] if prediction == "sample" else capped.all()


def test_no_other_prediction_has_an_output_weight():
    with pytest.raises(ValueError, match="no network predicts 'flow'"):
        losses.output_weight("flow", torch.ones(1))
