"""What --parallel says, and what is refused before anything is loaded."""

import contextlib
import json

import pytest

from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import find_family
from dittools.pipelines.parallel.setup import (
    Place,
    Spec,
    check_diffusers,
    check_folder,
    check_guidance,
    heads_of,
    parse,
    place,
    uneven,
)


@pytest.mark.parametrize(
    ("text", "world", "spec"),
    [
        ("ulysses:4", 4, Spec(ulysses=4)),
        ("ring:2", 2, Spec(ring=2)),
        ("ulysses:2,ring:2", 4, Spec(ulysses=2, ring=2)),
        (" ring:2 , ulysses:3 ", 6, Spec(ulysses=3, ring=2)),
        ("cfg:2,ulysses:2", 4, Spec(cfg=2, ulysses=2)),
        ("ulysses:1", 1, Spec()),
        (None, 3, Spec(ulysses=3)),
    ],
)
def test_a_text_is_read(text, world, spec):
    assert parse(text, world, heads=6) == spec and spec.ranks == world
    assert parse(str(spec), world) == spec


@pytest.mark.parametrize(
    ("text", "world", "heads", "says"),
    [
        ("", 2, None, "--parallel must be such as ulysses:4"),
        ("ulysses", 2, None, "must be such as"),
        ("ulysses:0", 2, None, "must be such as"),
        ("ulysses:-2", 2, None, "must be such as"),
        ("ulysses:٣", 3, None, "must be such as"),
        ("ulyses:2", 2, None, "did you mean ulysses?"),
        ("ring:2,ring:2", 4, None, "says ring twice"),
        ("cfg:3", 3, None, "cfg is at most 2"),
        ("ulysses:4", 2, None, "is for 4 ranks, and there are 2: use --gpus 4"),
        ("ulysses:4", 1, None, "this is one process: use --gpus 4, or start it by torchrun --nproc-per-node 4"),
        ("ulysses:1", 2, None, "leave --parallel out"),
        ("ulysses:8", 8, 6, "the model has 6: at most ulysses:6"),
        ("ulysses:4,ring:2", 8, 6, "ulysses has to divide the model's 6 heads"),
        (None, 4, 6, "6 heads cannot be dealt evenly to 4 ranks: use 2 or 3 ranks, or say --parallel ulysses:4"),
        (None, 2, 3, "3 heads cannot be dealt evenly to 2 ranks: say --parallel ulysses:2"),
        (None, 7, 6, "use 2 or 3 or 6 ranks, or say --parallel ring:7"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(text, world, heads, says):
    with pytest.raises(BadInput) as refused:
        parse(text, world, heads)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_heads_and_tokens_that_leave_a_rest_are_seen():
    assert not uneven(Spec(ulysses=2), 6, 432)
    assert uneven(Spec(ulysses=4), 6, 432) and uneven(Spec(ulysses=2), 6, 433) and uneven(Spec(ring=5), 6, 432)
    assert uneven(Spec(ulysses=2), None, 432, text=77)
    with pytest.raises(BadInput, match="cuts 434 tokens into 4 parts"):
        uneven(Spec(ulysses=2, ring=2), 6, 434)
    with pytest.raises(BadInput, match="433 tokens into 2 parts, which leaves a rest, and CPUs"):
        uneven(Spec(ring=2), 6, 433, gloo=True)
    assert uneven(Spec(ulysses=2), 6, 432, text=77, gloo=True)


def test_heads_come_from_the_folder_or_the_record():
    from dittools.pipelines import weights

    wan = find_family("wan")
    assert heads_of(wan, weights.embedded().folder) == 6 and heads_of(wan, None) == 12


def test_a_folder_of_a_kind_that_is_not_split_is_refused(tmp_path):
    (tmp_path / "transformer").mkdir()
    for kind, refused in (("latent_concat", False), ("token_replace", True)):
        (tmp_path / "transformer" / "config.json").write_text(json.dumps({"image_condition_type": kind}))
        with pytest.raises(BadInput, match="first frame") if refused else contextlib.nullcontext():
            check_folder(Spec(ulysses=2), find_family("hunyuan-video"), tmp_path)
        check_folder(Spec(cfg=2), find_family("hunyuan-video"), tmp_path)
    check_folder(Spec(ulysses=2), find_family("hunyuan-video"), None)


def test_the_place_is_what_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert place() == Place(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert place() == Place(5, 8, 5)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place() == Place(5, 8, 1)
    for name, value in (("WORLD_SIZE", "many"), ("RANK", "8")):
        with monkeypatch.context() as other:
            other.setenv(name, value)
            with pytest.raises(BadInput, match=name):
                place()


def test_a_model_that_cannot_be_split_so_is_refused():
    for name in ("wan", "flux", "ltx", "hunyuan-video", "cogvideox"):
        check_diffusers(Spec(ulysses=2, ring=2), find_family(name))
    for name, spec, says in (
        ("ltx-2", Spec(ring=2), "diffusers splits the text of ltx-2 too"),
        ("allegro", Spec(ulysses=2), "has a plan of how to split AllegroTransformer3DModel"),
        ("latte", Spec(ulysses=2), "sparse attention cannot run in latte"),
        ("wan-animate", Spec(ulysses=2), "its face blocks cut what they are given into frames"),
        ("mochi", Spec(ulysses=2, ring=2), "without the padding of its text"),
        (
            "flux",
            Spec(cfg=2),
            "flux is drawn without classifier-free guidance, so it has no second branch: use ulysses",
        ),
    ):
        with pytest.raises(BadInput, match=says):
            check_diffusers(spec, find_family(name))


def test_guidance_of_one_branch_cannot_be_shared():
    check_guidance(Spec(cfg=2), 5.0)
    check_guidance(Spec(cfg=2), None)
    check_guidance(Spec(ulysses=2), 1.0)
    with pytest.raises(BadInput, match="with --guidance 1 there is one: use ulysses:4, or guidance above 1"):
        check_guidance(Spec(cfg=2, ulysses=2), 1.0)
