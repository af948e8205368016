"""What a training begins with: --start auto's choice and its memory."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from command import QUICK, TINY, refusal, train

from hsivi_cli.config import TrainConfig, solved
from hsivi_cli.errors import HsiviError
from hsivi_cli.method.chain import with_noise_share
from hsivi_cli.method.distill import observe_batch
from hsivi_cli.method.draws import draw_batch
from hsivi_cli.method.schedule import grid
from hsivi_cli.models import starts as start
from hsivi_cli.models.loading import load_teacher
from hsivi_cli.models.networks import PATH_CALLS, make_path, networks_of
from hsivi_cli.models.schedules import END
from hsivi_cli.models.spacings import solver, solver_names
from hsivi_cli.models.starts import (
    bare_chains,
    choose_starts,
    make_chain,
    make_chains,
    teacher_gap,
)
from hsivi_cli.models.student import load_student


@pytest.fixture(scope="module")
def folder(tiny_unet, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    unet = tiny_unet(**TINY)
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def teacher(folder):
    return load_teacher(str(folder))


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    monkeypatch.setattr(start, "PAIRS", 8)
    monkeypatch.setattr(start, "FIT_PAIRS", 16)


AUTO = {"start": "auto", "noise_share": "0.3"}


@pytest.mark.parametrize("name", ["sde-dpm++2-auto", "ddpm-auto"])
def test_a_start_that_adds_noise_keeps_its_own(teacher, name):
    config = TrainConfig(start=name, noise_share="own")
    made, truth = make_chain(config, 4, teacher), solver(name, 4, teacher.scheduler, teacher.table)
    for part in ("cx", "ce", "c0", "time", "alpha_bar"):
        assert torch.equal(getattr(made, part), getattr(truth, part))
    torch.testing.assert_close(made.s0, truth.s0, rtol=1e-12, atol=0)
    assert (made.s0[2:] > 0).all()


def test_noise_of_a_starts_own_and_a_start_that_adds_it_go_together(teacher):
    for share in ("0.2", "1", "eta:1"):
        with pytest.raises(HsiviError, match="has noise of its own: give --noise-share own"):
            make_chain(TrainConfig(start="sde-dpm++2-lu", noise_share=share), 4, teacher)
    for name in ("unipc-auto", "ddim"):
        with pytest.raises(HsiviError, match="own goes with a --start that adds noise: sde-dpm"):
            make_chain(TrainConfig(start=name, noise_share="own"), 4, teacher)
    with pytest.raises(HsiviError, match="own goes with a --start that adds noise"):
        choose_starts(TrainConfig(start="auto", noise_share="own"), teacher)


def test_a_start_steps_to_the_levels_that_it_calls_the_network_at(teacher):
    make_chain(TrainConfig(start="ddim-diffusers-leading", noise_share="0.2"), 4, teacher)
    config = TrainConfig(start="ddim-diffusers-linspace", noise_share="0.2")
    with pytest.raises(HsiviError, match="steps to other levels than it calls the network at"):
        make_chain(config, 4, teacher)
    names = [name for name, _ in bare_chains(config, 4, teacher)]
    # all but those are starts, and what adds noise is none that auto compares
    missing = {"heun", "deis-karras", "ddim-diffusers-linspace", "ddpm", "sde-dpm++2", "sde-dpm++3"}
    assert not [n for n in solver_names() if n not in names and not any(m in n for m in missing)]


@pytest.mark.parametrize("name", ["unipc-trailing", "dpm++2-karras", "ddim-leading"])
def test_auto_finds_the_solver_that_draws_the_teachers_own_images(teacher, monkeypatch, name):
    truth = solver(name, 3, teacher.scheduler, teacher.table)
    monkeypatch.setattr(start, "truth_chain", lambda *any_top: truth)
    assert choose_starts(TrainConfig(**AUTO, nfe="3"), teacher) == {3: name}


def test_of_the_starts_from_every_level_those_of_the_least_gap_are_judged(teacher):
    """Gaps from different levels say different things: from a low one little is missing."""
    config, looks = TrainConfig(**AUTO, nfe="3"), []
    chains = dict(bare_chains(config, 3, teacher))
    gap = teacher_gap(teacher, start.PAIRS)
    nearest = start.finalists(sorted(chains, key=lambda name: gap(chains[name])), chains)
    tops = [round(chains[name].time[-1].item()) for name in nearest]
    assert len(nearest) == start.FINALISTS and 1 < len(set(tops)) < start.FINALISTS
    assert set(tops[: len(set(tops))]) == {round(c.time[-1].item()) for c in chains.values()}
    judged = []

    def judge(chain):
        judged.extend([] if chain.s0.any() else [chain])
        return 99.0 - len(judged)

    found = choose_starts(config, teacher, judge, lambda: looks.append(1))
    assert found == {3: nearest[-1]} and len(looks) == len(chains) + start.FINALISTS
    assert all(a.cx.equal(chains[b].cx) for a, b in zip(judged, nearest, strict=True))


def test_a_start_that_diverges_is_not_judged_and_where_all_do_it_is_said(teacher, monkeypatch):
    """Of its own top level it would be a finalist, and NaN sorts nothing."""
    config, judged = TrainConfig(**AUTO, nfe="3"), []
    chains = dict(bare_chains(config, 3, teacher))
    one = chains["unipc-trailing"]
    wild = replace(one, ce=one.ce * 1e38, cx=one.cx * 1e38, time=one.time * 0.9)
    several = {"wild": wild, "a": one, "wilder": wild, "b": chains["unipc-leading"]}
    monkeypatch.setattr(start, "bare_chains", lambda *any_config: several.items())

    def judge(chain):
        judged.extend([] if chain.s0.any() else [chain])
        return float(len(judged))

    assert choose_starts(config, teacher, judge)[3] in "ab"
    assert len(judged) == 2 and not any(chain is wild for chain in judged)
    monkeypatch.setattr(start, "bare_chains", lambda *any_config: [("wild", wild)])
    with pytest.raises(HsiviError, match="no start of 3 calls draws finite images"):
        choose_starts(config, teacher, judge)


@pytest.mark.parametrize("nfe", [start.MANY - 1, start.MANY])
def test_from_many_calls_up_the_gap_counts_beside_the_judge(teacher, nfe):
    """Of two that the judge has nearly level the one of the lesser gap is taken."""
    config = TrainConfig(**AUTO, nfe=str(nfe))
    chains = dict(bare_chains(config, nfe, teacher))
    gap = teacher_gap(teacher, start.PAIRS)
    gaps = {name: gap(chain) for name, chain in chains.items()}
    nearest = start.finalists(sorted(gaps, key=gaps.get), chains)
    first, second = sorted(nearest, key=gaps.get)[:2]
    level = (1 + gaps[second] / gaps[first]) / 2  # more than 1, less than the gaps' ratio
    judged = {name: 99.0 for name in nearest} | {first: level, second: 1.0}

    def judge(chain):
        return next(v for name, v in judged.items() if chains[name].cx.equal(chain.cx))

    found = choose_starts(config, teacher, judge)
    assert found == {nfe: first if nfe >= start.MANY else second}


def test_a_start_that_does_not_bear_the_noise_of_its_share_is_passed_over(teacher):
    """As a solver of high order may not, which is exact without noise."""
    config = TrainConfig(start="auto", noise_share="0.1,0.3,0", nfe="3")

    def judge(chain):
        if chain.s0.any():
            share = chain.s0[2:] / chain.sigma[1:-1]
            assert share.tolist() == pytest.approx([0.3, 0])
            return 6.0  # more than three times the first two's, not the third's
        names.append(next(name for name, own in chains.items() if own.cx is chain.cx))
        return [0.5, 1.9, 2.1, 2.2, 2.3, 2.4][len(names) - 1]

    chains, names = dict(bare_chains(config, 3, teacher)), []
    gap = teacher_gap(teacher, start.PAIRS)
    found = start.choose_start(config, chains, gap, judge, lambda: None)
    assert found == names[2] and len(names) == start.FINALISTS
    names.clear()

    def harder(chain):
        return judge(chain) + 9 * chain.s0.any().item()

    wild = start.choose_start(config, chains, gap, harder, lambda: None)
    assert wild == names[0]  # where none does, the noise is left out of it


def test_images_of_a_chain_with_noise_are_drawn_with_it(teacher):
    bare = solver("ipndm-leading", 3, teacher.scheduler, teacher.table)
    noisy = with_noise_share(bare, [0.1, 0.3, 0])
    drawn = start.images(teacher, noisy, 100)
    assert torch.equal(drawn, start.images(teacher, noisy, 100))
    assert (drawn - start.images(teacher, bare, 100)).flatten(1).std(1).min() > 0  # all have some


@pytest.mark.parametrize("nfe", [start.MANY - 1, start.MANY])
def test_many_calls_begin_in_noise_where_some_start_does(save_teacher, monkeypatch, nfe):
    """On cosine betas unipc-leading begins where images show, and its gap does not see that."""
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    cosine = load_teacher(str(save_teacher(scheduler=scheduler, **TINY)))
    monkeypatch.setattr(start, "PAIRS", 1)
    chains = dict(bare_chains(TrainConfig(**AUTO), nfe, cosine))
    assert chains["unipc-leading"].alpha_bar[-1] > END > chains["unipc-auto"].alpha_bar[-1]

    def tops():
        seen = []
        config = TrainConfig(**AUTO, nfe=str(nfe))
        choose_starts(config, cosine, lambda chain: seen.append(chain) or float(len(seen)))
        return [chain.alpha_bar[-1].item() for chain in seen]

    assert (max(tops()) <= END) == (nfe >= start.MANY)
    low = [(name, chain) for name, chain in chains.items() if chain.alpha_bar[-1] > END]
    monkeypatch.setattr(start, "bare_chains", lambda *any_config: low)
    assert min(tops()) > END  # where none does, all are compared


def test_ddim_over_the_grid_is_a_start_beside_the_solvers_own_spacings(teacher, monkeypatch):
    monkeypatch.setattr(start, "FINALISTS", 99)  # all are judged
    config, grid = TrainConfig(**AUTO, nfe="3", grid="0,200,500,900"), [0, 200, 500, 900]
    names = [name for name, _ in bare_chains(config, 3, teacher)]
    assert names[0] == "ddim" and set(names[1:]) <= set(solver_names())
    found = choose_starts(config, teacher, lambda chain: float(chain.time.tolist() != grid))
    assert found == {3: "ddim"}


def test_the_gap_is_the_mean_squared_distance_of_images_from_the_same_noise(teacher):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(8, *teacher.shape, generator=draw)

    def images(chain):  # the walk of a deterministic chain, written out
        state, history = x, {}
        for k in range(chain.nfe, 0, -1):
            time, level = chain.time[k].float().expand(8), chain.alpha_bar[k].float().expand(8)
            with torch.no_grad():
                history[k] = teacher.network(clip=teacher.clip)(state, time, None, level)
            state = chain.cx[k] * state + sum(chain.ce[k, j] * e for j, e in history.items())
            state = state.float()
        return state

    gap = teacher_gap(teacher, start.PAIRS)
    for name in ("ddim-leading", "unipc-linspace", "dpm++3-lu", "ipndm-quad"):
        chain = solver(name, 2, teacher.scheduler, teacher.table)
        truth = images(start.truth_chain(teacher, int(chain.time[-1]), start.GAP_CALLS))
        told = (images(chain) - truth).square().mean().item()
        assert gap(chain) == pytest.approx(told, rel=1e-4)  # float32 sums in another order


@pytest.mark.parametrize("top", [999, 600, 30, 2])
def test_the_truth_is_fifty_calls_from_a_chains_own_beginning(teacher, top):
    chain = start.truth_chain(teacher, top)
    assert chain.nfe == min(50, top // 2) and chain.time[-1] == top
    assert chain.alpha_bar[-1] == pytest.approx(teacher.table[top].item(), rel=1e-5)
    assert (chain.time.diff() > 0).all() and chain.alpha_bar[0] == 1 and not chain.s0.any()


def test_where_only_x0_is_kept_auto_is_ddim_and_costs_no_call(teacher, monkeypatch):
    monkeypatch.setattr(start, "images", None)
    assert choose_starts(TrainConfig(start="auto", nfe="1,4"), teacher) == {1: "ddim", 4: "ddim"}
    assert choose_starts(TrainConfig(start="deis", noise_share="0"), teacher) == {}


@pytest.mark.parametrize(
    ("prediction", "wide"), [("epsilon", 1.0), ("sample", start.WIDE), ("v_prediction", start.WIDE)]
)
def test_a_student_draws_wider_where_its_network_predicts_no_noise(teacher, prediction, wide):
    told = replace(teacher, prediction=prediction)
    chains = make_chains(TrainConfig(), teacher, {})

    def top_sd(**chosen):
        (chain,) = start.widened(TrainConfig(**solved(4) | chosen), told, chains)
        assert torch.equal(chain.ce, chains[0].ce)
        return chain.top_sd.item()

    assert top_sd() == top_sd(steps=60, student_rate=3.33e-5) == top_sd(steps=0) == wide
    assert top_sd(steps=2000) == top_sd(student_rate=1e-4) == 1.0  # it leaves its teacher
    assert top_sd(top_sd="1.1") == top_sd(top_sd="1.1", steps=2000) == 1.1
    assert top_sd(top_sd="1") == chains[0].top_sd == 1.0


def test_every_budget_has_the_chain_of_its_own_start(teacher):
    config, starts = TrainConfig(**AUTO, nfe="2,3"), {2: "deis", 3: "ddim"}
    two, three = make_chains(config, teacher, starts)
    assert torch.equal(two.ce, solver("deis", 2, teacher.scheduler, teacher.table).ce)
    assert torch.equal(three.time, make_chain(TrainConfig(), 3, teacher).time)
    for chain in (two, three):
        inner = chain.noise_share[chain.sigma[:-1] > 0]
        assert torch.allclose(inner, torch.full_like(inner, 0.3))


def test_the_choice_is_told_stored_and_not_made_again(folder, tmp_path, monkeypatch):
    out, options = tmp_path / "run", ("--start", "auto", "--noise-share", 0.3, "--nfe", "1,2")
    result = train(folder, out, *options, "--minutes", 1e-9)
    starts = json.loads((out / "hsivi.json").read_text())["starts"]
    assert starts.keys() == {"1", "2"}
    assert f"--start auto at 2 calls: {starts['2']}" in result.stderr.splitlines()
    monkeypatch.setattr(start, "choose_starts", None)
    train(folder, out, *options)
    assert json.loads((out / "hsivi.json").read_text())["starts"] == starts
    student, loaded = load_student(out), load_teacher(str(folder))
    assert student.info["step"] == 2 and student.info["config"]["start"] == "auto"
    chain = make_chain(TrainConfig(noise_share="0.3"), 2, loaded, starts["2"])
    assert torch.equal(student.chains[2].ce, chain.ce)


def test_a_resume_with_another_start_is_refused(folder, tmp_path):
    train(folder, tmp_path / "run", "--noise-share", 0.3, "--steps", 0)
    options = ("--noise-share", 0.3, "--start", "auto")
    told = refusal("train", folder, "--out", tmp_path / "run", *QUICK, *options)
    assert "--start ddim, not auto" in told


def test_a_layer_without_noise_between_neighbouring_times_is_refused(teacher):
    config = TrainConfig(nfe="3", grid="0,10,11,500", noise_share="0")
    with pytest.raises(HsiviError, match=r"layer 2, from time 11 to 10, has no noise"):
        make_chain(config, 3, teacher)


@pytest.mark.parametrize(
    "fine",
    [
        {"noise_share": "0,0.1,0"},
        {"noise_share": "eta:0.2"},
        {"grid": "0,10,12,500"},
        {"levels": "above"},
    ],
    ids=str,
)
def test_a_layer_that_is_not_refused_is_observed_at_finite_values(teacher, fine):
    config = TrainConfig(**{"nfe": "3", "grid": "0,10,11,500", "noise_share": "0"} | fine)
    networks = networks_of(config, teacher, [make_chain(config, 3, teacher)])
    for i in range(10):
        batch = draw_batch(networks, config, 0, "student", i, [1, 2, 3])
        mean = torch.zeros(len(batch.tau), *teacher.shape)
        x, layer_eps, _ = observe_batch(networks, networks.chains[0], batch, mean)
        assert x.isfinite().all() and layer_eps.isfinite().all()


# ---- --fit-steps ---------------------------------------------------------------------------------

FIT = ("--start", "deis", "--noise-share", "0", "--nfe", 2, "--fit-steps", 3)


def test_fitted_coefficients_are_all_that_no_steps_train(folder, teacher, tmp_path):
    train(folder, tmp_path / "run", *FIT, "--steps", 0)
    student = load_student(tmp_path / "run")
    chain, plain = student.chains[2], solver("deis", 2, teacher.scheduler, teacher.table)
    assert not torch.equal(chain.ce, plain.ce) and torch.equal(chain.alpha_bar, plain.alpha_bar)
    ours, theirs = student.model.unet.state_dict(), teacher.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_fit_lies_nearer_to_the_teacher(teacher):
    config = TrainConfig(nfe="2", start="deis", noise_share="0", fit_steps=30)
    x, _ = start.noises(teacher, start.FIT_PAIRS)
    plain = start.bare_chain(config, 2, teacher, "deis")
    wanted = start.images(teacher, start.truth_chain(teacher, int(plain.time[-1])), len(x))
    (fitted,) = make_chains(config, teacher, {})
    near, far = (
        (start.images(teacher, chain, len(x)) - wanted).square().mean() for chain in (fitted, plain)
    )
    assert near < 0.98 * far  # .969 in so few updates, on a network with random weights


def test_a_resumed_run_keeps_its_fit(folder, tmp_path, monkeypatch):
    train(folder, tmp_path / "run", *FIT, "--steps", 1)
    before = load_student(tmp_path / "run").chains[2]
    monkeypatch.setattr(start, "make_chains", None)  # not fitted anew
    train(folder, tmp_path / "run", *FIT, "--steps", 2)
    after = load_student(tmp_path / "run").chains[2]
    assert torch.equal(before.ce, after.ce) and torch.equal(before.time, after.time)


def test_a_fit_needs_shares_below_one(folder, tmp_path):
    error = refusal(
        "train", folder, "--out", tmp_path / "run", "--fit-steps", 3, "--noise-share", 1
    )
    assert "--fit-steps" in error and "--noise-share 1" in error


def test_the_teachers_images_are_drawn_once_a_beginning_and_after_every_refusal(
    teacher, monkeypatch
):
    drawn = []
    draw = start.images
    monkeypatch.setattr(start, "images", lambda *args: drawn.append(args) or draw(*args))
    config = TrainConfig(nfe="2,3", start="deis", noise_share="0", fit_steps=1)
    assert [chain.nfe for chain in make_chains(config, teacher, {})] == [2, 3]
    assert len(drawn) == 1  # both begin at the last time
    make_chains(replace(config, start="deis-leading"), teacher, {})
    assert len(drawn) == 3  # at 666 and 750
    with pytest.raises(HsiviError, match="--levels own needs noise"):
        make_chains(replace(config, levels="own"), teacher, {})
    assert len(drawn) == 3


# ---- --regress-steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("times", [1000, 100, 30])
def test_a_path_goes_through_every_level_of_its_chain(save_teacher, nfe, times):
    scheduler = diffusers.DDPMScheduler(times)
    teacher = load_teacher(str(save_teacher(scheduler=scheduler, **TINY)))
    chain = make_chain(TrainConfig(), nfe, teacher)
    path = make_path(chain, teacher)
    own, visited = chain.time.tolist(), path.chain.time.tolist()
    assert [visited[place] for place in path.places[:-1]] == own[1:-1]
    near_noise = grid("auto", min(8, times // 2), teacher.table)[-1]
    assert path.places[-1] == path.chain.nfe and visited[-1] == max(own[-1], near_noise)
    assert min(PATH_CALLS, times // 2, nfe) <= path.chain.nfe <= 2 * max(8, nfe)
    assert path.chain.alpha_bar[0] == 1 and not path.chain.s0.any()  # ends clean, without noise
