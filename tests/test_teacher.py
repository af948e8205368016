"""Solvers against diffusers' own trajectories; teachers as they lie on disks, sound and broken.

A smooth function of (x, time) serves as the model of the trajectories: what is tested is the walk.
"""

import shutil
import subprocess
import sys
from dataclasses import replace

import diffusers
import pytest
import torch
from conftest import edit_json
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)
from safetensors.torch import load_file, save_file

from hsivi_cli.errors import HsiviError
from hsivi_cli.method import chain as chains
from hsivi_cli.method import schedule, solvers
from hsivi_cli.models.loading import load_schedule, load_teacher
from hsivi_cli.models.spacings import (
    GRID_SPACINGS,
    at_times,
    multistep,
    own_times,
    solver,
    solver_names,
)
from hsivi_cli.models.teacher import digest_of

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
FAMILIES = {
    "dpm++2": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++3": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
}


def model(x, time):
    return torch.sin(1.3 * x + time / 300) + 0.3 * torch.sin(x)


def walk(chain, prediction, x):
    """The chain's sample, over the model as one of this prediction type."""

    def network(x, time, labels, alpha_bar):
        return schedule.to_eps(model(x, time[0]), x, alpha_bar, prediction)

    return chains.sample(network, chain, x, None, torch.zeros(1, 1, 1, 1))


def trajectory(scheduler, x):
    """diffusers' own walk, over the raw model output."""
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x).prev_sample
    return x


def start():
    return torch.randn(16, 5, 1, 1, generator=torch.Generator().manual_seed(0))


def assert_walks_agree(found, told, chain):
    """Within float32: an x0 or v prediction becomes an eps rounded to 6e-8, which x0 multiplies
    by sigma / sqrt(alpha_bar) of the first time: 157 for linear betas, 20,000 for cosine ones.
    """
    ratio = schedule.noise_to_signal(chain.alpha_bar[-1:]).item()
    close = 1e-5 + 5e-7 * ratio
    torch.testing.assert_close(found, told, rtol=close, atol=close * (1 + told.abs().max().item()))


def reference(name, nfe, betas, prediction, **more):
    family, spacing = name.split("-")
    kind, options = FAMILIES[family]
    options = options | more | {"beta_schedule": betas, "prediction_type": prediction}
    if spacing in ("lu", "karras"):
        options["use_lu_lambdas" if spacing == "lu" else "use_karras_sigmas"] = True
    else:
        options["timestep_spacing"] = spacing
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(nfe)
    return scheduler


THEIR_NAMES = [n for n in solver_names(tuple(FAMILIES)) if not n.endswith(GRID_SPACINGS)]


@pytest.mark.parametrize("name", THEIR_NAMES)
def test_a_solver_is_diffusers_own_scheduler(name):
    """At 1, 2, 3, 5 and 8 calls, from every prediction type, under every beta schedule."""
    for betas in BETAS:
        teacher = DDPMScheduler(beta_schedule=betas)
        table = teacher.alphas_cumprod.double()
        for nfe in (1, 2, 3, 5, 8):
            if betas == "squaredcos_cap_v2" and name.endswith("karras") and nfe > 3:
                continue  # visits a time twice: see below
            chain = solver(name, nfe, teacher, table)
            assert chain.nfe == nfe
            for prediction in schedule.PREDICTIONS:
                scheduler = reference(name, nfe, betas, prediction)
                told = trajectory(scheduler, start())
                assert_walks_agree(walk(chain, prediction, start()), told, chain)
                assert chain.time[1:].flip(0).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_multistep_solver_at_the_grids_times_is_diffusers_own_moved_there(family):
    """Moved to the times it has, it stays what it is; DPM-Solver++ takes times by itself."""
    teacher = DDPMScheduler(beta_schedule="scaled_linear")
    table = teacher.alphas_cumprod.double()
    for nfe in (1, 2, 5):
        moved, plain = (multistep(family, "trailing", nfe, teacher) for _ in range(2))
        at_times(moved, own_times("trailing", nfe, table), table)
        moved, plain = solvers.solver_chain(moved), solvers.solver_chain(plain)
        assert torch.equal(moved.time, plain.time)
        torch.testing.assert_close(moved.cx, plain.cx, rtol=1e-5, atol=0)  # ratios are float32
        torch.testing.assert_close(moved.ce, plain.ce, rtol=1e-5, atol=1e-5)
        for spacing in GRID_SPACINGS:
            chain = solver(f"{family}-{spacing}", nfe, teacher, table)
            times = schedule.grid(spacing, nfe, table)[1:]
            assert chain.time[1:].tolist() == times
            torch.testing.assert_close(chain.alpha_bar[1:], table[times], rtol=1e-6, atol=0)
            if family.startswith("dpm++"):
                own = reference(f"{family}-linspace", nfe, "scaled_linear", "epsilon")
                own.set_timesteps(timesteps=times[::-1])
                assert_walks_agree(walk(chain, "epsilon", start()), trajectory(own, start()), chain)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_ddim_is_the_first_order_of_diffusers_dpm_solver(spacing):
    scheduler = DDPMScheduler()
    for nfe in (1, 2, 3, 5, 8):
        chain = solver(f"ddim-{spacing}", nfe, scheduler, scheduler.alphas_cumprod.double())
        first = reference(f"dpm++2-{spacing}", nfe, "linear", "epsilon", solver_order=1)
        assert_walks_agree(walk(chain, "epsilon", start()), trajectory(first, start()), chain)


@pytest.mark.parametrize("name", solver_names(("ddim", "ipndm")))
@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_ddim_and_ipndm_are_their_closed_formulas_at_their_own_times(name, prediction):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    table = scheduler.alphas_cumprod.double()
    family, spacing = name.split("-", 1)
    weights = [
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    for nfe in (1, 3, 5):
        chain = solver(name, nfe, scheduler, table)
        assert torch.equal(chain.time, solver(f"ddim-{spacing}", nfe, scheduler, table).time)
        times = chain.time.long().tolist()
        assert times[0] == -1 and len(times) == nfe + 1
        x, earlier = start().double(), []
        for k in range(nfe, 0, -1):
            level, below = (
                table[times[k]],
                table[times[k - 1]] if k > 1 else torch.tensor(1.0).double(),
            )
            eps = schedule.to_eps(model(x, float(times[k])), x, level.expand(16), prediction)
            earlier.insert(0, eps)
            if family == "ipndm":
                used = weights[min(4, len(earlier)) - 1]
                eps = sum(w * e for w, e in zip(used, earlier, strict=False))
            x0 = (x - (1 - level).sqrt() * eps) / level.sqrt()
            x = below.sqrt() * x0 + (1 - below).sqrt() * eps
        # walked in float64: the level the network is told is float32, magnified as above
        assert_walks_agree(walk(chain, prediction, start().double()), x, chain)


@pytest.mark.parametrize("name", solver_names(("heun",)))
@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_heun_is_its_closed_formula_in_odd_numbers_of_calls(name, prediction):
    """In the variance-exploding state y = x / sqrt(alpha_bar), where a step is dy = eps d ratio."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    table = scheduler.alphas_cumprod.double()
    for nfe in (1, 3, 7):
        calls, chain = [], solver(name, nfe, scheduler, table)

        def eps_at(y, time, level, calls=calls):
            calls.append(time)
            x = y * level.sqrt()
            # time and level in float32, as a chain tells them: at time 0, 1 - level has 3 digits
            output = model(x, torch.tensor(float(time)))
            return schedule.to_eps(output, x, level.float().expand(16), prediction)

        times = own_times(name.split("-", 1)[1], (nfe + 1) // 2, table)[::-1]
        levels = [*table[times], torch.tensor(1.0).double()]
        y = start().double() / levels[0].sqrt()
        for i, time in enumerate(times):
            here, there = (schedule.noise_to_signal(level) for level in levels[i : i + 2])
            first = eps_at(y, time, levels[i])
            lower = y + (there - here) * first
            if i + 1 < len(times):
                second = eps_at(lower, times[i + 1], levels[i + 1])
                lower = y + (there - here) * (first + second) / 2
            y = lower
        assert len(calls) == nfe == chain.nfe and chain.time[1:].flip(0).tolist() == calls
        found = walk(chain, prediction, start().double())  # all else in float64
        torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("nfe", [1, 3, 5, 9])
def test_heun_is_diffusers_own_at_the_same_times(betas, nfe):
    """As a walk, and as the coefficients that are read off diffusers' scheduler."""
    teacher = DDPMScheduler(beta_schedule=betas)
    table = teacher.alphas_cumprod.double()
    chain = solver("heun-leading", nfe, teacher, table)
    told = HeunDiscreteScheduler(beta_schedule=betas, beta_start=1e-4, beta_end=0.02)
    told.set_timesteps(timesteps=own_times("leading", (nfe + 1) // 2, table)[::-1])
    assert told.timesteps.tolist() == chain.time[1:].flip(0).tolist()
    read = solvers.solver_chain(told)
    # its ratios and states are float32, and its first state is the ratio times ours
    close = 1e-6 * schedule.noise_to_signal(table[chain.time[-1].long()]).item() + 1e-6
    for name in ("time", "alpha_bar", "cx", "ce"):
        found, own = getattr(read, name), getattr(chain, name)
        torch.testing.assert_close(found, own, rtol=close, atol=close)


def test_the_spacings_of_the_own_solvers():
    scheduler = DDPMScheduler()

    def times(name, nfe=4):
        return solver(name, nfe, scheduler, scheduler.alphas_cumprod.double()).time.tolist()

    assert times("ddim") == times("ddim-linspace") == [-1, 250, 500, 749, 999]
    assert times("ddim-leading") == [-1, 200, 400, 600, 800]
    assert times("ipndm-trailing") == [-1, 249, 499, 749, 999]
    assert times("ddim-quad", 5) == [-1, 32, 128, 288, 512, 800]
    assert times("heun", 5) == [-1, 333, 333, 666, 666, 999]
    assert times("ddim-karras")[1:] == times("heun-karras", 7)[1::2] == times("unipc-karras")[1:]
    for name in ("dpm++2", "dpm++3-trailing", "unipc-leading", "deis"):
        spacing = name.partition("-")[2] or "linspace"
        assert times(name)[1:] == times(f"ddim-{spacing}")[1:]


def test_deis_ends_at_time_0_and_the_others_at_clean_data():
    scheduler = DDPMScheduler()
    table = scheduler.alphas_cumprod.double()
    for name in solver_names():
        chain = solver(name, 3, scheduler, table)
        if name.startswith("deis"):
            # its sigmas are float32
            assert chain.time[0] == 0 and chain.alpha_bar[0].item() == pytest.approx(
                table[0].item(), rel=1e-7
            )
        else:
            assert chain.time[0] == -1 and chain.alpha_bar[0] == 1
        assert torch.equal(chain.ce, chain.ce.triu()) and not chain.s0.any()


@pytest.mark.parametrize("family", ["dpm++2", "dpm++3", "unipc"])
def test_a_solver_that_would_visit_a_time_twice_is_refused(family):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    with pytest.raises(HsiviError, match="karras visits a time twice in 8 calls"):
        solver(f"{family}-karras", 8, scheduler, scheduler.alphas_cumprod.double())


@pytest.mark.parametrize(
    ("name", "nfe", "cause"),
    [
        ("edm", 5, "there is no solver 'edm': solvers are ddim, ipndm, heun, dpm"),
        ("euler-a", 5, "no solver 'euler-a' .it adds noise at every step.*: solvers are ddim"),
        ("heun", 4, "heun takes two calls a step but one for the last.* ask for 3 or 5"),
        ("unipc-lu", 4, "unipc has the spacings linspace, leading, trailing, karras"),
        ("ddim-karras", 400, "ddim-karras visits a time twice in 400 calls"),
        ("ddim", 0, "ddim cannot take 0 calls on a schedule of 1000 times"),
        ("unipc", 1001, "unipc cannot take 1001 calls"),
    ],
)
def test_a_solver_that_there_is_not_is_refused_with_those_there_are(name, nfe, cause):
    scheduler = DDPMScheduler()
    with pytest.raises(HsiviError, match=cause):
        solver(name, nfe, scheduler, scheduler.alphas_cumprod.double())


@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "the noise"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "thresholding"),
        ("UniPCMultistepScheduler", {"thresholding": True}, "thresholding"),
        ("DEISMultistepScheduler", {"thresholding": True}, "thresholding"),
        ("HeunDiscreteScheduler", {"clip_sample": True}, "clip_sample"),
        ("EulerAncestralDiscreteScheduler", {}, "the noise"),
    ],
)
def test_schedulers_that_clip_or_add_noise_are_no_chains(kind, options, cause):
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(4)
    told = f"{kind} is not a deterministic linear solver.* switch off {cause}.*or use ddim"
    with pytest.raises(HsiviError, match=told):
        solvers.solver_chain(scheduler)


def test_a_scheduler_that_keeps_no_levels_is_no_chain():
    scheduler = DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(4)
    with pytest.raises(HsiviError, match=r"DDIMScheduler keeps no sigmas.*use ddim"):
        solvers.solver_chain(scheduler)


def test_a_solver_ignores_the_teachers_own_thresholding_and_prediction_type():
    plain, odd = DDPMScheduler(), DDPMScheduler(thresholding=True, prediction_type="sample")
    table = plain.alphas_cumprod.double()
    for name in ("dpm++2", "unipc", "deis"):
        assert torch.equal(solver(name, 3, plain, table).ce, solver(name, 3, odd, table).ce)


# ---- loading -------------------------------------------------------------------------------------


def images(teacher, count=2):
    torch.manual_seed(1)
    return torch.randn(count, *teacher.shape), torch.tensor([3, 40])[:count]


def assert_predicts_as(teacher, unet, prediction="epsilon"):
    x, time = images(teacher)
    with torch.no_grad():
        output = unet(x, time).sample
        told = schedule.to_eps(output, x, teacher.table[time], prediction)
        # the same weights, and the same arithmetic
        torch.testing.assert_close(teacher.network()(x, time), told, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_a_pipeline_directory_loads(save_teacher, pipeline):
    scheduler = DDIMScheduler() if pipeline == "DDIMPipeline" else DDPMScheduler()
    folder = save_teacher(pipeline, scheduler)
    teacher = load_teacher(str(folder))
    assert (
        teacher.shape == (1, 8, 8)
        and teacher.label_count is None
        and teacher.prediction == "epsilon"
    )
    assert torch.equal(teacher.table, scheduler.alphas_cumprod.double())
    assert_predicts_as(teacher, DDPMPipeline.from_pretrained(folder).unet)


@pytest.mark.parametrize("beside", ["scheduler_config.json", "scheduler/scheduler_config.json"])
def test_a_bare_network_loads_with_its_schedule_beside_it(save_teacher, tmp_path, beside):
    folder = save_teacher()
    shutil.copytree(folder / "unet", tmp_path / "bare")
    (tmp_path / "bare" / beside).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path / "bare" / beside)
    assert load_teacher(str(tmp_path / "bare")).digest == load_teacher(str(folder)).digest


def test_an_older_pipeline_keeps_its_parts_at_the_root(save_teacher, tmp_path):
    # google/ddpm-cifar10-32 and its kin
    folder = save_teacher()
    shutil.copytree(folder / "unet", tmp_path / "old")
    shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path / "old")
    shutil.copy(folder / "model_index.json", tmp_path / "old")
    assert load_teacher(str(tmp_path / "old")).digest == load_teacher(str(folder)).digest


def test_a_pipelines_parts_need_no_index(save_teacher):
    folder = save_teacher()
    digest = load_teacher(str(folder)).digest
    (folder / "model_index.json").unlink()
    assert load_teacher(str(folder)).digest == digest


def test_a_bare_network_beside_a_folder_unet_is_the_teacher(save_teacher, tiny_unet):
    folder = save_teacher(seed=1)
    (folder / "model_index.json").unlink()
    tiny_unet().save_pretrained(folder)
    assert load_teacher(str(folder)).digest == digest_of(tiny_unet())


def test_a_teacher_may_lie_in_a_subfolder(save_teacher, tmp_path):
    save_teacher(folder="outer/inner")
    assert load_teacher(str(tmp_path / "outer"), subfolder="inner").shape == (1, 8, 8)
    with pytest.raises(HsiviError, match="has no subfolder other"):
        load_teacher(str(tmp_path / "outer"), subfolder="other")


def test_bin_weights_load(save_teacher):
    folder = save_teacher(safe=False)
    assert list((folder / "unet").glob("*.bin")) and not list(
        (folder / "unet").glob("*.safetensors")
    )
    assert load_teacher(str(folder)).digest == load_teacher(str(save_teacher(folder="safe"))).digest


def test_bin_weights_load_without_a_word(save_teacher):
    folder = save_teacher(safe=False)
    # in a process of its own: diffusers' handler keeps the stderr that it found when imported
    code = f"from hsivi_cli.models.loading import load_teacher; load_teacher({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_fp16_variant_loads_in_float32(tiny_unet, tmp_path):
    half = tiny_unet().half()
    DDPMPipeline(unet=half, scheduler=DDPMScheduler()).save_pretrained(
        tmp_path / "t", variant="fp16"
    )
    teacher = load_teacher(str(tmp_path / "t"), variant="fp16")
    assert {p.dtype for p in teacher.unet.parameters()} == {torch.float32}
    assert teacher.digest == digest_of(half)  # half widened to float32 is exact


def test_of_a_learned_variance_only_the_mean_is_used(save_teacher):
    folder = save_teacher(
        in_channels=2, out_channels=4, scheduler=DDPMScheduler(variance_type="learned_range")
    )
    teacher = load_teacher(str(folder))
    x, time = images(teacher)
    with torch.no_grad():
        eps, output = teacher.network()(x, time), teacher.unet(x, time).sample
    assert teacher.shape == (2, 8, 8) and output.shape[1] == 4 and torch.equal(eps, output[:, :2])


def test_a_class_conditional_teacher_hears_its_labels(save_teacher):
    teacher = load_teacher(str(save_teacher(num_class_embeds=5)))
    assert teacher.label_count == 5
    x, time = images(teacher)
    with torch.no_grad():
        one, other = (
            teacher.network()(x, time, torch.tensor(labels)) for labels in ([0, 1], [0, 4])
        )
    torch.testing.assert_close(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-4


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_every_prediction_type_loads_as_an_eps_network(save_teacher, prediction):
    folder = save_teacher(scheduler=DDPMScheduler(prediction_type=prediction))
    teacher = load_teacher(str(folder))
    assert teacher.prediction == prediction
    assert_predicts_as(teacher, DDPMPipeline.from_pretrained(folder).unet, prediction)


@pytest.mark.parametrize(
    "options",
    [{"beta_schedule": kind} for kind in (*BETAS, "sigmoid")]
    + [
        {"trained_betas": torch.linspace(1e-3, 0.3, 40).tolist(), "num_train_timesteps": 40},
        {"num_train_timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08},
        {"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=lambda options: "-".join(map(str, options))[:40],
)
def test_every_beta_schedule_loads_and_its_solvers_follow_it(save_teacher, options):
    told = DDPMScheduler(**options)
    teacher = load_teacher(str(save_teacher(scheduler=told)))
    assert torch.equal(teacher.table, told.alphas_cumprod.double())
    chain = solver("dpm++2", 3, teacher.scheduler, teacher.table)
    if options.get("beta_schedule") == "sigmoid":  # which the solver does not know by name
        options = {"trained_betas": told.betas.tolist()}
    own = DPMSolverMultistepScheduler(**options)
    own.set_timesteps(3)
    assert_walks_agree(walk(chain, "epsilon", start()), trajectory(own, start()), chain)
    # diffusers keeps the ratios in float32
    levels = teacher.table[chain.time[1:].long()]
    torch.testing.assert_close(chain.alpha_bar[1:], levels, rtol=1e-6, atol=0)


def test_a_teacher_need_not_be_square(save_teacher):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", sample_size=[8, 16])
    assert load_teacher(str(folder)).shape == (1, 8, 16)


def test_a_teacher_is_frozen_and_deaf_to_dropout_and_its_copy_trains(save_teacher):
    teacher = load_teacher(str(save_teacher(dropout=0.5)))
    assert not teacher.unet.training and not any(p.requires_grad for p in teacher.unet.parameters())
    x, time = images(teacher)
    network = teacher.network()
    assert torch.equal(network(x, time), network(x, time))
    copy = teacher.new_unet()
    assert not copy.training and all(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        next(copy.parameters()).add_(1)
    assert digest_of(copy) != teacher.digest == digest_of(teacher.unet)
    assert not torch.equal(teacher.network(copy)(x, time), network(x, time))


def test_the_digest_tells_teachers_apart_and_not_their_files(save_teacher):
    one, again, other = (
        load_teacher(str(save_teacher(folder=f, seed=s))) for f, s in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one.digest == again.digest != other.digest


def test_the_schedules_name_tells_schedules_apart_and_survives_saving(save_teacher, tmp_path):
    options = [
        {},
        {"beta_end": 0.03},
        {"num_train_timesteps": 500},
        {"beta_schedule": "scaled_linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.01] * 9, "num_train_timesteps": 9},
        {"trained_betas": [0.02] * 9, "num_train_timesteps": 9},
    ]
    names = set()
    for i, chosen in enumerate(options):
        teacher = load_teacher(str(save_teacher(scheduler=DDPMScheduler(**chosen), folder=f"t{i}")))
        teacher.scheduler.save_pretrained(tmp_path / "again")
        again, _ = load_schedule(tmp_path / "again" / "scheduler_config.json", "again")
        assert replace(teacher, scheduler=again).schedule_name == teacher.schedule_name
        names.add(teacher.schedule_name)
    assert len(names) == len(options) and "linear 0.0001 to 0.02, 1000 times" in names


def test_bfloat16_networks_answer_in_float32(save_teacher):
    teacher = load_teacher(str(save_teacher()))
    x, time = images(teacher)
    with torch.no_grad():
        low, full = teacher.network(dtype="bfloat16")(x, time), teacher.network()(x, time)
    assert low.dtype == torch.float32 and not torch.equal(low, full)
    torch.testing.assert_close(
        low, full, rtol=0, atol=0.1
    )  # bfloat16 keeps 8 bits, some ten layers deep


def test_a_teacher_hears_the_time(save_teacher):
    """Else the tiny teachers would not tell a wrong time from a right one."""
    teacher = load_teacher(str(save_teacher()))
    x, _ = images(teacher)
    with torch.no_grad():
        early, late = (teacher.network()(x, torch.tensor([t, t])) for t in (1, 900))
    assert (early - late).abs().max() > 1e-3


# ---- refusals ------------------------------------------------------------------------------------


def refused(folder, **options):
    """The one line that the user reads."""
    with pytest.raises(HsiviError) as caught:
        load_teacher(str(folder), **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def test_latent_and_text_conditioned_pipelines_are_refused_by_name(save_teacher):
    folder = save_teacher()
    for kind in ("StableDiffusionPipeline", "LDMPipeline", "DiTPipeline", None):
        edit_json(folder / "model_index.json", _class_name=kind)
        line = refused(folder)
        assert f"is a {kind}" in line and "DDPMPipeline" in line


def test_other_networks_are_refused_by_name(save_teacher):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")
    assert "is a UNet2DConditionModel; only UNet2DModel" in refused(folder)
    edit_json(folder / "model_index.json", unet=["diffusers", "Transformer2DModel"])
    assert "has a Transformer2DModel as its unet; only UNet2DModel" in refused(folder)


def test_zero_terminal_snr_is_refused(save_teacher):
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    folder = save_teacher("DDIMPipeline", scheduler)
    assert "zero terminal SNR" in refused(folder)
    betas = [0.01] * 9 + [1.0]
    scheduler = DDPMScheduler(trained_betas=betas, num_train_timesteps=10)
    assert "zero terminal SNR" in refused(save_teacher(scheduler=scheduler, folder="other"))


@pytest.mark.parametrize(
    "kind",
    [
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
        "ScoreSdeVeScheduler",
        "KarrasVeScheduler",
    ],
)
def test_foreign_schedulers_are_refused_by_name(save_teacher, kind):
    folder = save_teacher()
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name=kind)
    assert f"has a {kind}; only variance-preserving" in refused(folder)


def test_schedules_that_say_nothing_are_refused(save_teacher):
    file = (folder := save_teacher()) / "scheduler" / "scheduler_config.json"
    edit_json(file, prediction_type="flow_prediction")
    assert "predicts 'flow_prediction'; supported are epsilon, sample, v_prediction" in refused(
        folder
    )
    edit_json(file, prediction_type="epsilon", beta_schedule="mystery")
    assert f"{file} describes no schedule" in refused(folder)


def test_a_folder_that_is_not_there_or_no_teacher_is_refused(tmp_path, save_teacher):
    assert "there is no teacher at" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "there is no teacher at" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "is no diffusers teacher" in refused(tmp_path / "empty")
    folder = save_teacher()
    shutil.rmtree(folder / "scheduler")
    assert "scheduler_config.json is missing" in refused(folder)


def test_a_hub_id_that_cannot_be_fetched_is_refused_with_the_reason():
    line = refused("hsivi-tests/there-is-no-such-teacher")
    assert "could not fetch hsivi-tests/there-is-no-such-teacher from the hub (" in line
    assert "there is no teacher at" in refused("neither/a/hub/id")


def test_broken_json_is_refused(save_teacher):
    folder = save_teacher()
    file = folder / "unet" / "config.json"
    file.write_text(file.read_text()[:-20])
    assert f"{file} cannot be read as JSON" in refused(folder)
    file.write_text("[1]")
    assert f"{file} holds no JSON object but a list" in refused(folder)
    (folder / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": null}')
    assert "has a None as its unet" in refused(folder)


def weights_file(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_refused(save_teacher, kept):
    folder = save_teacher()
    content = weights_file(folder).read_bytes()
    weights_file(folder).write_bytes(content[:kept])
    line = refused(folder)
    assert f"the weights in {folder / 'unet'} cannot be loaded" in line and "again" in line


def test_corrupt_and_absent_weights_are_refused(save_teacher):
    folder = save_teacher()
    weights_file(folder).write_bytes(b"not weights" * 1000)
    assert "cannot be loaded" in refused(folder)
    weights_file(folder).unlink()
    assert "cannot be loaded" in refused(folder)


def test_a_truncated_bin_is_refused(save_teacher):
    folder = save_teacher(safe=False)
    file = folder / "unet" / "diffusion_pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:5000])
    assert "cannot be loaded" in refused(folder)


def test_weights_that_lack_a_key_or_have_another_shape_are_refused_by_its_name(save_teacher):
    folder = save_teacher()
    weights = load_file(weights_file(folder))
    lacking = {k: v for k, v in weights.items() if k != "conv_in.weight"}
    save_file(lacking, weights_file(folder), metadata={"format": "pt"})
    line = refused(folder)
    assert "conv_in.weight" in line and "missing" in line
    save_file(
        weights | {"conv_in.weight": torch.zeros(8, 3, 3, 3)},
        weights_file(folder),
        metadata={"format": "pt"},
    )
    assert "conv_in.weight" in refused(folder)


def test_networks_with_odd_channels_are_refused(save_teacher):
    assert "has 3 channels in and 4 out" in refused(save_teacher(in_channels=3, out_channels=4))


def test_other_conditions_than_class_labels_are_refused(save_teacher):
    assert "is conditioned by 'timestep'" in refused(save_teacher(class_embed_type="timestep"))


def test_a_variant_that_is_not_there_is_refused(save_teacher):
    assert "fp16" in refused(save_teacher(), variant="fp16")


def test_a_teacher_that_has_one_variant_alone_is_told_of_it(save_teacher):
    folder = save_teacher(variant="fp16")
    assert "give --variant fp16" in refused(folder)
    assert load_teacher(str(folder), variant="fp16").origin == {"variant": "fp16"}


def test_a_damaged_configuration_is_one_line(save_teacher):
    folder = save_teacher()
    unet, scheduler = (
        folder / "unet" / "config.json",
        folder / "scheduler" / "scheduler_config.json",
    )
    for file, change in (
        *((unet, {"sample_size": size}) for size in (8.0, True, [8, "8"], {"a": 1})),
        *((unet, {"in_channels": "1"}), (unet, {"block_out_channels": []})),
        *((scheduler, {"num_train_timesteps": n}) for n in (0, "1000")),
        *((scheduler, {"beta_start": beta}) for beta in (-0.1, float("nan"))),
        (scheduler, {"trained_betas": []}),
    ):
        before = file.read_text()
        edit_json(file, **change)
        assert len(refused(folder).splitlines()) == 1, change
        file.write_text(before)
    (folder / "unet" / "diffusion_pytorch_model_old").mkdir()
    load_teacher(str(folder))


@pytest.mark.parametrize("size", [7, [8, 6], 0])
def test_a_size_that_the_network_cannot_draw_is_refused(save_teacher, size):
    folder = save_teacher(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )
    assert load_teacher(str(folder)).shape == (1, 8, 8)
    edit_json(folder / "unet" / "config.json", sample_size=size)
    assert "that 4 divides" in refused(folder)


def test_a_network_that_does_not_say_its_size_is_refused(save_teacher):
    folder = save_teacher()
    edit_json(folder / "unet" / "config.json", sample_size=None)
    assert "does not say its image size: set sample_size in" in refused(folder)


def test_the_embedded_teacher_loads_and_knows_pure_noise():
    teacher = load_teacher()
    assert teacher.name == "embedded:teacher" and teacher.shape == (1, 28, 28)
    x = torch.randn(8, *teacher.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps = teacher.network()(x, torch.full((8,), 999))
    # all but a 1/158 of such an x is noise; an untrained network is off by about 1
    assert (eps - x).square().mean() < 0.01


@pytest.mark.parametrize("classes", [None, 3])
def test_a_network_told_its_row_starts_as_the_teacher_in_every_row(save_teacher, classes):
    teacher = load_teacher(str(save_teacher(num_class_embeds=classes)))
    told = teacher.network(teacher.layer_conditioned_unet(4))
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    time, row, label = torch.arange(12) * 80, torch.arange(12) // 3, torch.arange(12) % 3
    heard = row if classes is None else row * classes + label
    with torch.no_grad():
        exact = teacher.network()(x, time, label if classes else None)
        assert torch.equal(told(x, time, heard), exact)
    assert teacher.label_count == classes and teacher.digest == digest_of(teacher.unet)


def test_rows_of_a_told_network_train_apart(save_teacher):
    teacher = load_teacher(str(save_teacher()))
    unet = teacher.layer_conditioned_unet(2)
    network, x, time = teacher.network(unet), torch.ones(2, 1, 8, 8), torch.tensor([300, 300])
    network(x, time, torch.tensor([1, 1])).square().sum().backward()
    gradient = unet.class_embedding.weight.grad
    assert not gradient[0].any() and gradient[1].any()
    assert teacher.unet.class_embedding is None
