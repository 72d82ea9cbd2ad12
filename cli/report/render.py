"""The render phase of a report: gather what the folder says, pick the pictures, write Markdown and the page."""

from __future__ import annotations

from dittools.cli.output import Output
from dittools.cli.report.quality import read_frames
from dittools.pipelines import saving
from dittools.pipelines.errors import BadInput
from dittools.report import page
from dittools.report.folder import Folder
from dittools.report.pictures import Shown, clip, strips
from dittools.report.results import Results, gather

PAIRS = 2
"""Prompts and seeds whose pictures lie in the page; the rest stay in the folder."""
CLIP_BYTES, CLIPS_BYTES = 1_000_000, 10_000_000


def render(folder: Folder, output: Output) -> None:
    """Write report.md and report.html."""
    output.line("making the page ...")
    results = gather(folder)
    pages = {"report.md": page.markdown(results), "report.html": page.page(results, _pictures(folder, results, output))}
    for name, text in pages.items():
        with saving.told(folder.path / name):
            folder.write(name, text)


def _pictures(folder: Folder, results: Results, output: Output) -> page.Pictures:
    found: dict[tuple[str, int, int], Shown] = {}
    plan, room = results.plan, CLIPS_BYTES
    drawn = results.drawn
    chosen = [(prompt, seed) for seed in plan.seeds for prompt in range(len(plan.prompts)) if (prompt, seed) in drawn][
        :PAIRS
    ]
    for outcome in results.outcomes:
        row = outcome.row
        if (row.prompt, row.seed) not in chosen or outcome.record is None:
            continue
        video = folder.video(row.case.id)
        uri = clip(video, min(CLIP_BYTES, room)) if video else None
        room -= len(uri) if uri else 0
        link = f"cases/{row.case.id}/{video.name}" if video else None
        pictures = []
        if row.case.id != row.reference.id and folder.done(row.reference.id):
            try:
                frames, reference = (read_frames(folder, plan, case.id) for case in (row.case, row.reference))
                pictures = strips(frames, reference, outcome.per_frame.get("psnr", []))
            except BadInput as error:
                output.note(f"no pictures of {row.setting.name}: {error}")
        found[row.setting.key, row.prompt, row.seed] = Shown(pictures, uri, link)
    return found
