"""What a pipeline does not give as its siblings do: read another way, or dense with a counted reason; no error."""

import types

import pytest
import torch

import dittools
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, find_family
from dittools.pipelines.rasters import Clip, clips
from tests.families_tiny import TINY, image_ids, noise
from tests.pipelines.test_families import Holder, grid_of

FULL = {"method": "draft", "sparsity": 0.0, "block_size": 64, "dense_steps": 0, "dense_layers": 0}
CACHED = {"method": "dense", "cache": "taylorseer:interval=2:order=0:first=1:start=0"}


def coordinates(frames, height, width, start=0):
    """(time, row, column) of the tokens of a clip, as LTX's pipelines count them: ``[3, S]``."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    t = (t * 8 - 7).clamp(min=0) + start
    return torch.stack((t / 25, y * 32.0, x * 32.0)).flatten(1)


FRAME = coordinates(1, 8, 9, start=16)
CLIP = coordinates(*grid_of("ltx"))
SEQUENCES = {
    "the picture alone": ([CLIP], None),
    "a frame that leads": ([FRAME, CLIP], [(1, 8, 9)]),
    "two frames that lead, out of order": ([FRAME, coordinates(1, 8, 9, 8), CLIP], [(1, 8, 9), (1, 8, 9)]),
    "a small reference behind": ([CLIP, coordinates(2, 4, 5)], [(2, 4, 5)]),
    "tokens in no raster behind": ([CLIP, FRAME[:, :50].flip(1)], None),
}


def test_clips_are_found_by_times_rows_and_columns():
    joined = torch.cat([FRAME, CLIP, coordinates(2, 4, 5), FRAME[:, :50]], dim=1)
    assert clips(joined) == [Clip(72, (1, 8, 9)), Clip(216, (3, 8, 9)), Clip(40, (2, 4, 5)), Clip(50, None)]


class Ltx(Holder):
    """A tiny LTX that is given coordinates, and a forward of it, which is a run of its own."""

    def __init__(self, *parts, **sizes):
        super().__init__("ltx")
        self.coords = torch.cat(parts, dim=1)
        given = TINY["ltx"].arguments(grid_of("ltx"), 1)
        for name in ("num_frames", "height", "width", "rope_interpolation_scale"):
            given.pop(name, None)
        given["hidden_states"] = noise(1, self.coords.shape[1], given["hidden_states"].shape[2])
        self.arguments = given | {"video_coords": self.coords[None]} | sizes

    def forward(self, **settings):
        self.scheduler.timesteps = self.scheduler.timesteps.clone()
        if not settings:
            return self.draw(self.arguments), None
        with dittools.accelerate(self, **settings) as fast:
            return self.draw(self.arguments), fast.record()


@pytest.mark.parametrize("what", SEQUENCES)
@pytest.mark.parametrize("sizes", [{}, {"num_frames": 1, "height": 1, "width": 1}], ids=["no sizes", "sizes of 1"])
def test_ltx_is_read_by_coordinates_where_no_sizes_are_given(what, sizes):
    parts, others = SEQUENCES[what]
    ltx = Ltx(*parts, **sizes)
    dense, _ = ltx.forward()
    out, record = ltx.forward(**FULL)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    assert record["calls"]["dense"] == 0 and record["calls"]["sparse"] > 0 and record["fallbacks"] == []
    assert [record["grid"][axis] for axis in ("frames", "height", "width")] == list(grid_of("ltx"))
    assert record["grid"]["tokens"] == ltx.coords.shape[1]
    if others:
        assert [part["shape"] for part in record["grid"]["parts"]] == others


@pytest.mark.parametrize("coords", [True, False], ids=["coordinates", "no coordinates"])
def test_tokens_beyond_sizes_that_are_given_are_behind_the_picture(coords):
    ltx = Ltx(CLIP, coordinates(1, 4, 5), **dict(zip(("num_frames", "height", "width"), grid_of("ltx"), strict=True)))
    given = ltx.arguments if coords else ltx.arguments | {"video_coords": None}
    layout = find_family("ltx").layout(ltx.transformer.config, given.get)
    assert [(part.kind, part.tokens, part.shape) for part in layout.parts] == [
        ("picture", 216, grid_of("ltx")),
        ("reference", 20, (1, 4, 5) if coords else None),
    ]
    dense, _ = ltx.forward()
    out, record = ltx.forward(**FULL)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    assert record["calls"]["sparse"] > 0 and record["fallbacks"] == []


def unreadable(name: str):
    """A model whose tokens are in no order that could be read, and its arguments."""
    if name == "ltx":
        ltx = Ltx(CLIP[:, torch.randperm(CLIP.shape[1], generator=torch.Generator().manual_seed(0))])
        return ltx, ltx.arguments
    holder, arguments = Holder(name), TINY[name].arguments(grid_of(name), 1)
    return holder, arguments | {"img_ids": arguments["img_ids"].flip(0)[::2].repeat_interleave(2, 0)[:210]}


@pytest.mark.parametrize("name", ["ltx", "flux"])
@pytest.mark.parametrize(
    "settings",
    [FULL, {"method": "auto", "dense_steps": 0, "dense_layers": 0}, CACHED],
    ids=["named", "auto", "dense with a cache"],
)
def test_what_cannot_be_read_runs_dense_with_a_counted_reason(name, settings):
    holder, arguments = unreadable(name)
    asked = settings["method"]

    def draw():
        unit = 1000 if name == "flux" else 1
        return [holder.draw(arguments | {"timestep": torch.tensor([t / unit])}) for t in (900.0, 500.0, 100.0)]

    dense = draw()
    with dittools.accelerate(holder, **settings) as fast:
        out = draw()
        record = fast.record()
        fast.summary()
    assert [torch.equal(a, b) for a, b in zip(out, dense, strict=True)] == [True, asked != "dense", True]
    assert record["calls"]["sparse"] == 0 and record["grid"] is None
    reasons = {f["reason"]: f["count"] for f in record["fallbacks"]}
    if asked == "dense":
        assert reasons == {} and record["calls"]["reused"] > 0
    else:
        ((reason, count),) = reasons.items()
        assert reason.startswith("the token grid cannot be read: ") and count == record["calls"]["dense"] > 0
    assert any("ran dense" in note for note in record["notes"]) == (asked == "draft")


@pytest.mark.parametrize(
    ("layered", "picture", "references"),
    [(True, (3, 4, 5), [(1, 2, 3)]), (False, (1, 4, 5), [(1, 4, 5)] * 2 + [(1, 2, 3)])],
)
def test_layers_that_are_drawn_are_frames_of_the_picture(layered, picture, references):
    given = {"img_shapes": [[(1, 4, 5), (1, 4, 5), (1, 4, 5), (1, 2, 3)]]}
    layout = find_family("qwen-image").layout(types.SimpleNamespace(use_layer3d_rope=layered), given.get)
    assert [(part.kind, part.shape) for part in layout.parts] == [
        ("text", None),
        ("picture", picture),
        *(("reference", shape) for shape in references),
    ]


@pytest.mark.parametrize("given", [None, torch.zeros(2), "text"], ids=["nothing", "one axis", "no tensor"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_reader_says_in_a_line_what_it_cannot_read(family, given):
    with pytest.raises(BadInput) as error:
        family.layout(None, lambda name: given)
    assert "\n" not in str(error.value)


def test_reference_keys_that_flux_2_keeps_run_dense_and_leave_the_picture_where_it_is():
    from diffusers.models.transformers import transformer_flux2 as flux_2

    holder, grid, references = Holder("flux-2"), grid_of("flux-2"), (1, 14, 17)
    for block in holder.transformer.transformer_blocks:
        block.attn.set_processor(flux_2.Flux2KVAttnProcessor())
    for block in holder.transformer.single_transformer_blocks:
        block.attn.set_processor(flux_2.Flux2KVParallelSelfAttnProcessor())
    given = TINY["flux-2"].arguments(grid, 1)
    ids = image_ids(references, given["img_ids"].shape[1])
    ids[:, 0] = 10
    count, seen = len(ids), {}
    first = given | {
        "hidden_states": torch.cat((noise(1, count, given["hidden_states"].shape[2]), given["hidden_states"]), 1),
        "img_ids": torch.cat((ids, given["img_ids"])),
        "kv_cache_mode": "extract",
        "num_ref_tokens": count,
    }

    def run():
        with torch.no_grad():
            out, cache = holder.transformer(**first, return_dict=False)
            cached = given | {"kv_cache_mode": "cached", "kv_cache": cache}
            return out, holder.transformer(**cached, return_dict=False)[0]

    dense = run()
    with dittools.accelerate(holder, **FULL) as fast:
        out = run()
        seen = fast.record()
    assert torch.equal(out[0], dense[0]) and torch.equal(out[1], dense[1])
    assert seen["calls"]["sparse"] == 0 and sum(f["count"] for f in seen["fallbacks"]) == seen["calls"]["dense"] > 0
    assert [seen["grid"][axis] for axis in ("frames", "height", "width")] == list(grid)
