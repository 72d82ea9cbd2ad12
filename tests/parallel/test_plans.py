"""Plans of ours for models that diffusers does not split, or not so that all of their arguments do."""

import functools

import pytest
import torch

from dittools import summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, find_family
from dittools.pipelines.parallel import plans
from dittools.pipelines.parallel.setup import Spec, check_diffusers
from tests.parallel.scenes import MORE_GRIDS, TEXT, Scene, compare
from tests.parallel.test_settings import case, check, name_of

CASES = [case("dense", dense_layers=1), case("draft"), case("gna", correction="centroids")]


LAYOUTS = {"ulysses2": (2, 1), "ulysses4": (4, 1), "ring2": (2, 2), "2x2": (4, 2)}
TEXT_THAT_DIVIDES = {"hunyuan-video-1.5": 9}  # with its second text and its image
UNPADDED = ("mochi", "framepack")
PLACES = [
    pytest.param(family, *LAYOUTS[layout], asked, id=f"{family}-{layout}-{name_of(asked)}")
    for family in MORE_GRIDS
    for layout in LAYOUTS
    for asked in CASES
    if layout != "2x2" or family not in UNPADDED
]


@functools.cache
def found(pool, family, ring):
    text = TEXT_THAT_DIVIDES.get(family, TEXT)
    degrees = (2, 4) if ring == 1 or family not in UNPADDED else (2,)
    made = pool.run(functools.partial(compare, ring=ring, text=text), family, degrees, CASES)[0]
    return {(one["degree"], name_of(one["case"])): one for one in made}


@pytest.mark.parametrize(("family", "degree", "ring", "asked"), PLACES)
def test_ranks_draw_what_one_device_draws(family, degree, ring, asked, pool):
    one = found(pool, family, ring)[degree, name_of(asked)]
    if asked["method"] != "dense":
        check(one)
    assert {each["error"] for each in one["ranks"]} == {None} and one["difference"] <= 1e-5
    assert all(each["record"]["calls"] == one["alone"]["record"]["calls"] for each in one["ranks"])


def with_times_of_tokens(name, degree, ring):
    """What a forward gives in which tokens have timesteps of their own, and its calls."""
    scene = Scene(name, degree, ring=ring)
    if degree > 1:
        scene.share()
    given = scene.arguments()
    if name == "skyreels-v2":
        given |= {"timestep": torch.linspace(100, 900, scene.grid[0])[None], "enable_diffusion_forcing": True}
    else:
        given |= {"timestep": torch.linspace(100, 900, given["hidden_states"].shape[1])[None]}
    attachment = attach(scene, Config("draft", 0.6, dense_steps=0, dense_layers=0))
    with torch.no_grad():
        out = scene.transformer(**given, return_dict=False)[0]
    record = summary.record(attachment.runtime)
    attachment.detach()
    return out, record["calls"], record["fallbacks"]


@pytest.mark.parametrize("name", ("skyreels-v2", "ltx"))
def test_timesteps_of_tokens_are_split_with_them(name, pool):
    wanted, *expected = pool.run(with_times_of_tokens, name, 1, 1)[0]
    for ring in (1, 2):
        for out, *counted in pool.run(with_times_of_tokens, name, 4, ring):
            torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
            assert counted == expected and counted[0]["sparse"] == 2


def shared_so(name, ring, text):
    """What is said of ranks that share a scene in this way, and whether its transformer is split then."""
    scene = Scene(name, 4, ring=ring, text=text)
    said = refused(scene, scene.share)
    if said is None:
        attachment = attach(scene, Config("draft", 0.6, dense_steps=1, dense_layers=0))
        said = refused(scene)
        attachment.detach()
    return said, scene.transformer._parallel_config is not None


@pytest.mark.parametrize("name", UNPADDED)
def test_models_that_attend_without_padding_are_shared_by_ulysses_or_a_ring_alone(name, pool):
    for said, split in pool.run(shared_so, name, 2, TEXT):
        assert "without the padding of its text" in said and "\n" not in said and not split


@pytest.mark.parametrize(("ring", "says"), [(1, "ulysses_anything=True"), (2, "use Ulysses or a ring alone")])
def test_text_that_cannot_be_shared_evenly_is_refused_with_the_remedy(ring, says, pool):
    for said, _ in pool.run(shared_so, "cogvideox", ring, 6):
        assert said.startswith("6 tokens of text cannot be shared evenly by 4 ranks") and says in said


def unaccelerated(name):
    """What is said before `accelerate`, where gradients are on, and after `restore`; and what is drawn in between."""
    scene = Scene(name, 2)
    scene.share()
    said = [refused(scene)]
    attachment = attach(scene, Config("draft", 0.6, dense_steps=1, dense_layers=0))
    given = scene.arguments()
    with torch.enable_grad():
        said.append(refused(scene, lambda: scene.transformer(**given)))
    out = scene.draw()
    attachment.detach()
    return [*said, refused(scene)], torch.isfinite(out).all().item()


def refused(scene, draw=None):
    try:
        (draw or scene.draw)()
    except BadInput as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ("hunyuan-video", "cogvideox"))
def test_a_model_that_only_our_attention_draws_rightly_says_so(name, pool):
    for said, drawn in pool.run(unaccelerated, name):
        before, gradients, after = said
        assert drawn and before == after and 'dittools.accelerate(pipe) first, with method="dense"' in before
        assert "torch.no_grad()" in gradients and "\n" not in before + gradients


def plain(name, degree, one_processor):
    """What diffusers draws by itself, and modules that it shares."""
    scene = Scene(name, degree)
    if one_processor:
        scene.transformer.set_attn_processor(type(next(iter(scene.transformer.attn_processors.values())))())
    if degree > 1:
        scene.share()
    shared = {
        path.rsplit(".", 1)[-1]
        for path, module in scene.transformer.named_modules()
        if getattr(getattr(module, "processor", None), "_parallel_config", None) is not None
    }
    return scene.draw(), shared


@pytest.mark.parametrize("one_processor", (False, True))
def test_diffusers_alone_draws_rightly_under_the_plan_of_ltx_with_padded_text(one_processor, pool):
    wanted, _ = pool.run(plain, "ltx", 1, False)[0]
    for out, shared in pool.run(plain, "ltx", 4, one_processor):
        assert shared == {"attn1"}
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


def public(name):
    """By the public name, which takes a pipeline."""
    from diffusers import ContextParallelConfig

    import dittools
    from tests.parallel.scenes import mesh

    scene, told = Scene(name, 2), []
    config = ContextParallelConfig(ulysses_degree=2, mesh=mesh(2, 1))
    dittools.enable_parallelism(scene, config)
    with dittools.accelerate(scene, "draft", 0.6) as fast:
        scene.draw()
    told.append(fast.record()["parallel"]["ranks"])
    return told, config._mesh is None, scene.transformer._parallel_config is not None


@pytest.mark.parametrize("name", ("wan", "hunyuan-video"))
def test_a_pipeline_is_split_by_the_public_name(name, pool):
    assert pool.run(public, name) == [([2], True, True)] * 4


def test_a_variant_that_cannot_be_split_is_refused_untouched():
    import dittools

    scene = Scene("hunyuan-video")
    scene.transformer.register_to_config(image_condition_type="token_replace")
    with pytest.raises(BadInput, match="token_replace") as refused:
        dittools.enable_parallelism(scene, None)
    assert "\n" not in str(refused.value) and scene.transformer._parallel_config is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_model_is_split_or_says_why_not(family):
    import diffusers

    theirs = getattr(getattr(diffusers, family.transformer, None), "_cp_plan", None)
    if theirs or family.transformer in plans.PLANS:
        check_diffusers(Spec(ulysses=2), family)
        return
    with pytest.raises(BadInput) as refused:
        check_diffusers(Spec(ulysses=2), family)
    assert plans.why_whole(family) in str(refused.value) and "\n" not in str(refused.value)


def test_reasons_are_of_families_that_are_not_split():
    assert not [name for name in plans.REASONS if find_family(name).transformer in plans.PLANS]
