"""Step caches on every family's own transformer: what a reused call gives, whatever goes in and comes out."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.utils._pytree import tree_leaves

from dittools import summary
from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, find_family
from dittools.pipelines.step_reuse import blocks_of
from tests.families_tiny import TINY, noise, transformer
from tests.pipelines.test_families import grid_of

ABLE = [family.name for family in FAMILIES if family.why_not is None]
STEPS = 5
# All steps but the first two are reused.
ONCE = {"interval": 100, "start": 0, "warmup_steps": 2, "cooldown_steps": 0, "taylor_order": 0}
DECIDE = {
    "easycache": {"threshold": 1e9, "warmup_steps": 2, "cooldown_steps": 0},
    "sea": {"threshold": 1e9, "warmup_steps": 2, "cooldown_steps": 0, "max_consecutive_skips": 0},
    "first_block": {"threshold": 1e9, "warmup_steps": 2, "cooldown_steps": 0},
}
"""Caches that look at something, at a threshold that nothing reaches."""


class Made:
    """A tiny model of a family with a schedule, and a run of it: every step with latents of its own."""

    def __init__(self, name: str):
        self.family = find_family(name)
        self.transformer = transformer(name, self.family.transformer)
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.scheduler.set_timesteps(STEPS)
        self.arguments = TINY[name].arguments(grid_of(name), 2)

    def given(self, step: int) -> dict:
        """The arguments of a step."""
        family, t = self.family, float(self.scheduler.timesteps[step])
        self._current_timestep = t
        found = dict(self.arguments)
        if family.clock != "pipeline":
            found[family.timestep] = found[family.timestep] / 500 * (1000 - t if family.clock == "reversed" else t)
        for name in (family.latents, *family.latents_beside):
            value, more = found[name], 1 + step / 4
            found[name] = [x * more for x in value] if isinstance(value, list) else value * more
        return found

    def run(self, **changes) -> list[list[torch.Tensor]]:
        """All tensors that every step gives, but for those that it is given."""
        self.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            return [self._step(self.given(step) | changes) for step in range(STEPS)]

    def _step(self, given: dict) -> list[torch.Tensor]:
        kept = {id(leaf) for leaf in tree_leaves(given)}
        found = tree_leaves(self.transformer(**given, return_dict=False))
        return [tensor.clone() for tensor in found if id(tensor) not in kept]

    def with_cache(self, name: str, **options):
        return attach(self, Config(method="dense", cache=name, cache_options=options))


@pytest.fixture(scope="module")
def made():
    kept = {}
    return lambda name: kept.get(name) or kept.setdefault(name, Made(name))


def latents(made: Made, step: int) -> list[torch.Tensor]:
    """What is denoised in a step, a tensor for each that comes out."""
    given = made.given(step)
    return [
        tensor for name in (made.family.latents, *made.family.latents_beside) for tensor in tree_leaves(given[name])
    ]


def with_difference(kept: torch.Tensor, then: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """An output moved by as much as its latents, where it speaks of them."""
    moved = kept.clone()
    places = tuple(slice(min(a, b)) for a, b in zip(kept.shape, now.shape, strict=True))
    moved[places] += (now - then)[places]
    return moved


@pytest.mark.parametrize("family", ABLE)
def test_a_reused_call_gives_what_the_computed_one_gave_in_its_form(made, family):
    model = made(family)
    attachment = model.with_cache("taylorseer", **ONCE)
    try:
        kept = model.run()
        record = summary.record(attachment.runtime)["cache"]
    finally:
        attachment.detach()
    assert record["computed_steps"] == [0, 1] and record["reused_steps"] == [2, 3, 4]
    plain = model.run()
    for step, found in enumerate(kept):
        assert [t.shape for t in found] == [t.shape for t in plain[step]]
        assert all(torch.equal(a, b) for a, b in zip(found, plain[min(step, 1)], strict=True))
    attachment = model.with_cache("taylorseer", **ONCE, reuse="delta")
    try:
        found = model.run()
    finally:
        attachment.detach()
    for step in (2, 4):
        inputs = zip(plain[1], latents(model, 1), latents(model, step), strict=True)
        expected = [with_difference(*each) for each in inputs]
        torch.testing.assert_close(found[step], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ABLE)
def test_what_all_blocks_added_is_carried_over_or_refused_when_put_on(made, family):
    model = made(family)
    paths = [path for path, _ in model.transformer.named_modules() if model.family.is_self_attention(path)]
    blocks = blocks_of(model.transformer, paths)
    passes = []
    hook = blocks[0].register_forward_hook(lambda m, a, out: passes.append(len(tree_leaves(out))))
    plain = model.run()
    hook.remove()
    right = passes[0] == 1 and len(blocks) > 1 and len({path.split(".")[0] for path in paths}) == 1
    try:
        attachment = model.with_cache("taylorseer", **ONCE, reuse="stack")
    except BadInput as error:
        assert not right and "reuse=stack" in str(error) and "\n" not in str(error)
        return
    assert right
    try:
        # The very arguments of the computed step again: then what the blocks added is what they would add.
        model.given = lambda step, given=model.given: given(min(step, 1))
        found = model.run()
    finally:
        attachment.detach()
        del model.given
    assert summary.record(attachment.runtime)["cache"]["computed_steps"] == [0, 1]
    torch.testing.assert_close(found[4], plain[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ABLE)
def test_a_cache_that_looks_at_something_sees_it_in_every_family(made, family):
    model = made(family)
    for name, options in DECIDE.items():
        attachment = model.with_cache(name, **options)
        try:
            found = model.run()
        finally:
            attachment.detach()
        record = summary.record(attachment.runtime)
        assert record["cache"]["reused_steps"] == [2, 3, 4], name
        assert not [note for note in record["notes"] if "finite" in note or "watched" in note], name
        assert all(torch.equal(a, b) for a, b in zip(found[4], found[1], strict=True)), name
        signals = next(iter(record["cache"]["branches"].values()))["signals"]
        assert all(signal > 0 for signal in signals[2:]), name


@pytest.mark.parametrize("family", ["flux", "sd3", "longcat-image", "qwen-image"])
def test_the_picture_is_watched_where_there_are_as_many_text_tokens(made, family):
    model, count = made(family), 14 * 15
    given = dict(model.arguments)
    changes = {"encoder_hidden_states": noise(2, count, given["encoder_hidden_states"].shape[-1])}
    if "txt_ids" in given:
        changes["txt_ids"] = torch.zeros(count, given["txt_ids"].shape[-1])
    if "encoder_hidden_states_mask" in given:
        changes["encoder_hidden_states_mask"] = torch.ones(2, count, dtype=torch.long)
    added = []
    block = model.transformer.transformer_blocks[0]

    def hear(module, args, kwargs, out):
        hidden = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments["hidden_states"]
        added.append(out[1] - hidden)

    attachment = model.with_cache("first_block", threshold=1e-9, sample=1, warmup_steps=1, cooldown_steps=0)
    hook = block.register_forward_hook(hear, with_kwargs=True)
    try:
        model.run(**changes)
    finally:
        hook.remove()
        attachment.detach()
    signals = next(iter(summary.record(attachment.runtime)["cache"]["branches"].values()))["signals"]
    expected = [float((b - a).abs().mean() / a.abs().mean()) for a, b in itertools.pairwise(added)]
    assert signals[1:] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["framepack", "krea-2", "ernie-image", "flux"])
def test_tokens_of_history_text_and_references_are_not_watched(made, family, monkeypatch):
    from dittools.caches.output_reuse import OutputReuse

    seen, watch = [], OutputReuse.watch
    monkeypatch.setattr(OutputReuse, "watch", lambda self, tokens: seen.append(tokens) or watch(self, tokens))
    model = made(family)
    changes = {}
    if family == "flux":  # a reference picture behind the picture, as Kontext has it
        ids = model.arguments["img_ids"].clone()
        ids[:, 0] = 1
        changes["img_ids"] = torch.cat([model.arguments["img_ids"], ids])
        changes["hidden_states"] = torch.cat([model.arguments["hidden_states"]] * 2, 1)
    attachment = model.with_cache("first_block", warmup_steps=1, cooldown_steps=0)
    try:
        model.run(**changes)
    finally:
        attachment.detach()
    frames, height, width = grid_of(family)
    assert {tuple(tokens.shape[:2]) for tokens in seen} == {(2, frames * height * width)}


def test_a_reference_behind_packed_latents_changes_no_signal(made):
    """References never change: with them among what is compared, the same change of the picture looks smaller."""
    model, found = made("flux"), {}
    for references in (0, 1):
        given = model.arguments["hidden_states"]
        seen = []
        attachment = model.with_cache("sea", threshold=1e-9, warmup_steps=1, cooldown_steps=0)
        model.scheduler.set_timesteps(STEPS)
        try:
            with torch.no_grad():
                for step in range(STEPS):
                    call, ids = model.given(step), model.arguments["img_ids"].clone()
                    if references:
                        ids[:, 0] = 1
                        call["hidden_states"] = torch.cat([call["hidden_states"], given], 1)
                        call["img_ids"] = torch.cat([call["img_ids"], ids])
                    seen.append(model.transformer(**call, return_dict=False))
        finally:
            attachment.detach()
        branches = summary.record(attachment.runtime)["cache"]["branches"]
        found[references] = next(iter(branches.values()))["signals"][1:]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_pictures_of_several_sizes_in_one_call_are_carried_each_for_itself(made):
    from dittools.pipelines.step_reuse import taken_apart, together

    several = [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 6, 10)]
    apart, again = taken_apart((several,), together(several))
    assert [t.shape for t in apart] == [t.shape for t in several]
    assert all(torch.equal(a, b) for a, b in zip(again(apart)[0], several, strict=True))
    same = [torch.randn(4, 1, 8, 8) for _ in range(2)]
    (batch,), again = taken_apart((same,), together(same))
    assert batch.shape == (2, 4, 1, 8, 8) and torch.equal(again([batch])[0][1], same[1])
    (one,), again = taken_apart((same[:1],), together(same[:1]))
    assert one.shape == (1, 4, 1, 8, 8) and len(again([one])[0]) == 1
