"""Plans of ours for models that diffusers does not split, or not so that all of their arguments do."""

import functools

import pytest
import torch

from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, find_family
from dittools.pipelines.parallel import plans
from dittools.pipelines.parallel.setup import Spec, check_diffusers
from tests.parallel.scenes import MORE_GRIDS, Scene, compare
from tests.parallel.test_settings import case, check, name_of

CASES = [
    case("dense", dense_layers=1),
    case("draft"),
    case("gna", correction="centroids"),
    case("xattention", scope="layer"),
]


@functools.cache
def found(pool, family, degree, ring):
    made = pool.run(functools.partial(compare, ring=ring), family, (degree,), CASES)[0]
    return dict(zip(map(name_of, CASES), made, strict=True))


@pytest.mark.parametrize("asked", CASES, ids=name_of)
@pytest.mark.parametrize(
    ("degree", "ring"), [(2, 1), (4, 1), (2, 2), (4, 2)], ids=("ulysses2", "ulysses4", "ring2", "2x2")
)
@pytest.mark.parametrize("family", MORE_GRIDS)
def test_ranks_draw_what_one_device_draws(family, degree, ring, asked, pool):
    one = found(pool, family, degree, ring)[name_of(asked)]
    if asked["method"] != "dense":
        check(one)
    assert {each["error"] for each in one["ranks"]} == {None} and one["difference"] <= 1e-5
    assert all(each["record"]["calls"] == one["alone"]["record"]["calls"] for each in one["ranks"])


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
